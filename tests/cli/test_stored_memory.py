"""Snapshots are verified, and memory is compressed as the commands say, against a served stand-in."""

import json

from ramet.core.compression import Compression, CompressionAsk
from tests.api.stand_in import Served
from tests.cli.conftest import Ramet
from tests.cli.test_commands import IMAGE


def test_a_snapshot_is_verified(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    warm = served.snapshots.put("web", name="warm")
    exit_code, out, err = ramet("snapshot", "verify", "warm")
    assert (exit_code, err) == (0, "")
    head, memory, disk = out.splitlines()
    assert head.split() == ["PART", "FILE", "READ", "PROOF", "FOUND"]
    assert (memory.split()[0], memory.split()[-1]) == ("memory", "whole")
    assert disk.split()[-2:] == ["checksums", "whole"]
    served.snapshots.damage[warm.id] = ("it is not what was stored", 17)
    exit_code, out, err = ramet("snapshot", "verify", "warm")
    assert (exit_code, out.splitlines()[1].endswith("it is not what was stored, chunk 17")) == (1, True)
    assert err.splitlines()[0].endswith("[snapshot_damaged]")
    assert f"from byte {17 << 20} on" in err
    exit_code, out, _ = ramet("snapshot", "verify", "warm", "--json")
    assert (exit_code, json.loads(out)["ok"], json.loads(out)["parts"][0]["chunk"]) == (1, False, 17)
    assert ramet("snapshot", "verify", "nobody")[2].splitlines()[0].endswith("[snapshot_not_found]")


def test_it_says_how_memory_is_compressed(ramet: Ramet, served: Served) -> None:
    options = ("--compression", "lz4:9", "--compression-delay", "5m")
    assert ramet("run", "--name", "web", *options, IMAGE)[0] == 0
    asked = CompressionAsk(Compression.of("lz4", 9), is_said=True, delay_s=300)
    assert served.fleet.get("web").record.spec.compression == asked
    shown = json.loads(ramet("inspect", "web")[1])["snapshot_policy"]
    assert shown == {
        "compression": {"enabled": True, "algorithm": "lz4", "level": 9},
        "standby_compression_delay": "5m",
    }
    assert ramet("snapshot", "create", "web", "--name", "warm", "--compression", "zstd")[0] == 0
    assert served.snapshots.memory[served.snapshots.get("warm").id].how == Compression.of()
    assert ramet("standby", "web", "--compression", "off")[0] == 0
    assert served.fleet.compression == CompressionAsk(None, is_said=True)
    assert ramet("restore", "web")[0] == 0
    assert ramet("standby", "web")[0] == 0
    assert served.fleet.compression == CompressionAsk()
    exit_code, _, err = ramet("run", "--compression", "gzip", IMAGE)
    assert (exit_code, "'gzip' compresses nothing" in err) == (1, True)

"""The volume commands against a served stand-in."""

import io
import json
import tarfile
from pathlib import Path

from ramet.core.spec import State
from ramet.core.volumes import VolumeMount
from tests.api.stand_in import Served
from tests.cli.conftest import Ramet

IMAGE = "docker.io/library/alpine:latest"


def test_volumes_are_made_listed_and_removed(ramet: Ramet, served: Served) -> None:
    exit_code, out, _ = ramet("volume", "create", "data", "--size-gb", "3", "-l", "of=me", "--id", "own")
    data = served.volumes.get("data")
    assert (exit_code, out, data.id, data.tags, data.size_bytes) == (0, "own\n", "own", {"of": "me"}, 3 << 30)
    more = json.loads(ramet("volume", "create", "more", "--json")[1])
    assert (more["size_gb"], more["attachments"]) == (1, [])
    head, *rows = ramet("volume", "ls")[1].splitlines()
    assert head.split() == ["NAME", "ID", "SIZE", "INSTANCES", "CREATED"]
    assert [row.split()[:4] for row in rows] == [
        ["data", "own", "3GB", "0"],
        ["more", more["id"][:12], "1GB", "0"],
    ]
    assert ramet("volume", "ls", "-q", "-l", "of=me")[1] == "own\n"
    assert json.loads(ramet("volume", "ls", "--json", "-l", "of=you")[1]) == []
    assert json.loads(ramet("volume", "inspect", "data")[1])["name"] == "data"
    exit_code, _, err = ramet("volume", "create", "data")
    assert (exit_code, err.splitlines()[0].endswith("[volume_name_taken]")) == (1, True)
    assert ramet("volume", "rm", "nobody", "data", "more")[:2] == (1, "data\nmore\n")
    assert served.volumes.list() == []


def test_a_volume_is_filled_from_a_file(ramet: Ramet, served: Served, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    file = tmp_path / "data.tar.gz"
    file.write_bytes(buffer.getvalue())
    options = ("--from-archive", str(file), "-l", "of=me", "--id", "own")
    assert ramet("volume", "create", "data", *options)[:2] == (0, "own\n")
    assert served.volumes.archives == [buffer.getvalue()]
    assert served.volumes.get("own").tags == {"of": "me"}
    exit_code, _, err = ramet("volume", "create", "other", "--from-archive", str(tmp_path / "nothing"))
    assert (exit_code, err.splitlines()[0].endswith("[host_path_not_found]")) == (1, True), err


def test_an_instance_is_given_volumes_and_they_are_taken_from_it(ramet: Ramet, served: Served) -> None:
    data, more = served.volumes.put("data").id, served.volumes.put("more").id
    options = ("-v", "data:/data", "--volume", "more:/more:ro:overlay=1GB")
    assert ramet("run", "--name", "web", *options, IMAGE)[0] == 0
    spec = served.fleet.get("web").record.spec
    assert spec.volumes == (
        VolumeMount(data, "/data"),
        VolumeMount(more, "/more", is_read_only=True, overlay_part=0),
    )
    assert spec.overlay_parts == (1 << 30,)
    served.fleet.set("web", State.STOPPED)
    web = served.fleet.get("web").record.id
    assert ramet("volume", "detach", "data", "web")[:2] == (0, f"{web}\n")
    assert ramet("volume", "attach", "data", "web", "/again", "--readonly")[:2] == (0, f"{web}\n")
    assert served.fleet.get("web").record.spec.volumes[-1] == VolumeMount(data, "/again", is_read_only=True)
    assert ramet("volume", "rm", "data")[2].splitlines()[0].endswith("[volume_in_use]")
    for wrong in ("data:/x:wo", "data:/x:ro:more", "data:/x:ro:overlay=1GB:x", "data:/x:rw:overlay=1GB"):
        exit_code, _, err = ramet("run", "-v", wrong, IMAGE)
        assert (exit_code, "VOLUME:PATH" in err) == (2, True)

"""The commands against a served stand-in: what they print, and what they exit with."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jwt
import pytest

from ramet.admission.demand import Resource
from ramet.admission.ledger import Limit
from ramet.core.spec import Exit, State
from tests.api.stand_in import SECRET, Served
from tests.cli.conftest import Ramet

IMAGE = "docker.io/library/alpine:latest"


@contextmanager
def spawned(served: Served, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a command in a process of its own; whatever happens, it is over afterwards."""
    with subprocess.Popen(
        [sys.executable, "-m", "ramet.cli", *arguments],
        env={**os.environ, "RAMET_HOST": served.unix_url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_run_prints_the_id_of_what_it_made(ramet: Ramet, served: Served) -> None:
    options = (
        "--name",
        "web",
        "--cpus",
        "1",
        "--memory",
        "512MB",
        "-e",
        "A=b=c",
        "-l",
        "team=x",
        "--no-network",
    )
    exit_code, out, _ = ramet("run", *options, "--entrypoint", "/bin/env", IMAGE, "ls", "-l")
    record = served.fleet.get("web").record
    assert (exit_code, out) == (0, record.id + "\n")
    spec = record.spec
    assert (spec.vcpu_count, spec.memory_bytes, spec.env, spec.tags) == (
        1,
        512 << 20,
        {"A": "b=c"},
        {"team": "x"},
    )
    assert (spec.entrypoint, spec.cmd, spec.has_network) == (("/bin/env",), ("ls", "-l"), False)


def test_run_limits_what_comes_and_goes(ramet: Ramet, served: Served) -> None:
    rates = ("--bandwidth-down", "1Gbps", "--bandwidth-up", "20Mbit/s")
    assert ramet("run", "--name", "web", *rates, IMAGE)[0] == 0
    spec = served.fleet.get("web").record.spec
    assert (spec.download_bytes_per_s, spec.upload_bytes_per_s) == (125_000_000, 2_500_000)
    assert "'fast' is not a rate" in ramet("run", "--bandwidth-up", "fast", IMAGE)[2]


def test_run_makes_up_a_name(ramet: Ramet, served: Served) -> None:
    ramet("run", IMAGE)
    ramet("run", IMAGE)
    names = {view.record.name for view in served.fleet.list()}
    assert len(names) == 2
    assert all(name.count("-") == 2 for name in names)


def test_run_imports_an_image_that_is_a_file_here(ramet: Ramet, served: Served, tmp_path: Path) -> None:
    (tmp_path / "app.tar").touch()
    assert ramet("run", "--name", "web", str(tmp_path / "app.tar"))[0] == 0
    assert served.catalog.imported == [tmp_path / "app.tar"]
    assert served.fleet.get("web").record.spec.image == "docker.io/library/app:latest"


def test_run_takes_a_layout_but_no_other_folder_for_an_image(
    ramet: Ramet, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nope").mkdir()
    assert "Error: docker.io has no docker.io/library/nope:latest" in ramet("run", "nope")[2]
    (tmp_path / "nope" / "oci-layout").touch()
    assert ramet("run", "nope")[0] == 0
    assert served.catalog.imported == [tmp_path / "nope"]


@pytest.mark.parametrize("path", ["./app.tar", "/nowhere/app", "../app"])
def test_a_path_where_nothing_is_is_not_taken_for_a_name(ramet: Ramet, served: Served, path: str) -> None:
    exit_code, _, err = ramet("run", path)
    assert (exit_code, err.splitlines()[0].partition(" [")[0]) == (1, f"Error: there is nothing at {path}")
    assert served.catalog.pulls.asked == []


def test_ps_shows_what_runs(ramet: Ramet, served: Served) -> None:
    running = served.fleet.put("web")
    served.fleet.put("done", State.STOPPED)
    served.fleet.set("done", State.STOPPED, Exit(3))
    _, out, _ = ramet("ps")
    head, row = out.splitlines()
    assert head.split() == ["NAME", "ID", "IMAGE", "STATE", "IP", "CREATED"]
    assert row.split()[:5] == ["web", running.id[:12], "img", "Running", "10.100.0.7"]
    assert "Stopped (3)" in ramet("ps", "-a")[1]
    assert ramet("ps", "-q")[1] == running.id + "\n"
    assert [found["name"] for found in json.loads(ramet("ps", "--state", "Stopped", "--json")[1])] == ["done"]


def test_inspect_hides_the_values_of_the_environment(ramet: Ramet) -> None:
    ramet("run", "--name", "web", "-e", "KEY=secret", IMAGE)
    assert json.loads(ramet("inspect", "web")[1])["env"] == {"KEY": "***"}
    assert json.loads(ramet("inspect", "--show-env", "web")[1])["env"] == {"KEY": "secret"}


def test_exec_passes_streams_and_exit_code_on(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    assert ramet("exec", "web", "--", "fail", "oops", "3") == (3, "before ", "oops")
    assert ramet("exec", "web", "nothing")[0] == 127


def test_exec_leaves_the_command_its_options(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    options = ("-e", "K=v", "--cwd", "/tmp", "-u", "nobody", "--timeout", "1m30s")
    assert ramet("exec", *options, "web", "echo", "-e", "--json", "--")[1] == "-e --json --\n"
    command = served.fleet.commands[0].command
    assert (command.env, command.cwd, command.user) == ({"K": "v"}, "/tmp", "nobody")
    assert (command.timeout_s, command.has_stdin) == (90, False)


@pytest.mark.parametrize("option", ["--cwd", "--workdir", "-w"])
def test_execs_working_directory_has_its_names_from_docker_and_hypeman(
    ramet: Ramet, served: Served, option: str
) -> None:
    served.fleet.put("web")
    ramet("exec", option, "/tmp", "web", "echo")
    assert served.fleet.commands[0].command.cwd == "/tmp"


def test_exec_passes_stdin_on_to_its_end(served: Served) -> None:
    served.fleet.put("web")
    sent = bytes(range(256)) * 1000
    with spawned(served, "exec", "-i", "web", "cat") as process:
        out, err = process.communicate(sent)
        assert (process.returncode, out, err) == (0, sent, b"")


def test_exec_passes_an_interrupt_on(served: Served) -> None:
    served.fleet.put("web")
    with spawned(served, "exec", "web", "hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hanging\n"
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 128 + signal.SIGINT
    assert served.fleet.commands[0].signals == [signal.SIGINT]


def test_a_second_interrupt_gives_up_on_a_command_that_ignores_the_first(served: Served) -> None:
    served.fleet.put("web")
    with spawned(served, "exec", "web", "hang", "for-good") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hanging\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"got 2\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert (process.returncode, err) == (130, b"")


def test_exec_where_nothing_runs_says_so(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web", State.STOPPED)
    exit_code, out, err = ramet("exec", "web", "ls")
    assert (exit_code, out) == (1, "")
    assert err.splitlines() == [
        "Error: web is Stopped, and commands run in running instances only [invalid_state]",
        "  ramet start web",
    ]


def test_logs(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    assert ramet("logs", "--tail", "2", "-s", "vmm", "web")[1] == "vmm: line 198\nvmm: line 199\n"
    assert len(ramet("logs", "web")[1].splitlines()) == 100


def test_a_reader_that_has_enough_ends_the_command_quietly(served: Served) -> None:
    served.fleet.put("web")
    with spawned(served, "logs", "-f", "web") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        served.fleet.following.append("one more")
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_fork_prints_the_id_of_the_child(ramet: Ramet, served: Served) -> None:
    source = served.fleet.put("web")
    _, out, _ = ramet("fork", "web", "kid")
    child = served.fleet.get("kid").record
    assert (out, child.identity.parent) == (child.id + "\n", source.id)
    assert json.loads(ramet("fork", "web", "--json")[1])["timings_ms"]["total"] == 80


def test_many_forks_are_listed_and_a_failed_one_fails_the_command(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    exit_code, out, _ = ramet("fork", "web", "--count", "3")
    assert exit_code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "web-1", "web-2", "web-3"]
    served.fleet.failing.add("kid-2")
    exit_code, out, _ = ramet("fork", "web", "--count", "2", "--name-prefix", "kid")
    assert exit_code == 1
    assert "the VMM did not start" in out.splitlines()[2]


def test_a_pool_is_set_and_shown(ramet: Ramet, served: Served) -> None:
    assert ramet("run", "--name", "src", "--fork-pool", "3", IMAGE)[0] == 0
    assert served.fleet.get("src").record.spec.fork_pool == 3
    exit_code, out, _ = ramet("pool", "src", "5")
    assert exit_code == 0
    assert out.splitlines()[1].split() == ["src", "5", "0", "0", "0", "resting"]
    assert json.loads(ramet("pool", "--json", "src")[1])["fork_pool"]["size"] == 5
    assert ramet("pool", "src", "0")[1].splitlines()[1].split() == ["src", "0", "0", "0", "0", "-"]
    exit_code, _, err = ramet("pool", "src", "901")
    assert exit_code == 1
    assert "from 0 to 900" in err


@pytest.mark.parametrize("state", ["Running", "Standby", "Stopped"])
def test_a_fork_comes_to_the_state_that_was_asked_for(ramet: Ramet, served: Served, state: str) -> None:
    served.fleet.put("web", State.STANDBY)
    assert json.loads(ramet("fork", "web", "--json")[1])["state"] == "Standby"
    assert json.loads(ramet("fork", "web", "--target", state, "--json")[1])["state"] == state
    _, out, _ = ramet("fork", "web", "--count", "2", "--target-state", state.lower())
    assert [line.split()[2] for line in out.splitlines()] == ["STATE", state, state]


def test_standby_and_restore_go_on_after_a_failure(ramet: Ramet, served: Served) -> None:
    served.fleet.put("one")
    served.fleet.put("two")
    served.fleet.put("three", State.STOPPED)
    exit_code, out, err = ramet("standby", "three", "one", "two")
    assert (exit_code, out) == (1, "one\ntwo\n")
    assert "three is Stopped" in err
    assert ramet("ps", "-q")[1] == ""
    assert "Standby" in ramet("ps", "-a")[1]
    exit_code, out, _ = ramet("restore", "one", "--json")
    assert (exit_code, [found["state"] for found in json.loads(out)]) == (0, ["Running"])
    assert json.loads(ramet("standby", "one", "--json")[1])[0]["has_snapshot"] is True
    assert ramet("restore", "one", "three", "two")[:2] == (1, "one\ntwo\n")


def test_snapshots(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    exit_code, out, _ = ramet("snapshot", "create", "web", "--name", "warm", "-l", "of=web")
    warm = served.snapshots.get("warm")
    assert (exit_code, out, warm.tags) == (0, warm.id + "\n", {"of": "web"})
    served.fleet.set("web", State.STOPPED)
    cold = json.loads(ramet("snapshot", "create", "web", "--json")[1])
    assert (cold["kind"], "name" in cold) == ("Stopped", False)
    exit_code, _, err = ramet("snapshot", "create", "web", "--kind", "standby")
    assert exit_code == 1
    assert err.splitlines() == [
        "Error: web is Stopped [invalid_state]",
        "  take one of kind Stopped, or: ramet start web",
    ]
    head, *rows = ramet("snapshot", "ls")[1].splitlines()
    assert head.split() == ["NAME", "ID", "KIND", "INSTANCE", "SIZE", "CREATED"]
    assert [row.split()[:5] for row in rows] == [
        ["warm", warm.id[:12], "Standby", "web", "91.0MB"],
        ["-", cold["id"][:12], "Stopped", "web", "1.0MB"],
    ]
    filters = ("--instance", "web", "--kind", "Standby", "--name", "warm", "-l", "of=web")
    assert ramet("snapshot", "ls", "-q", *filters)[1] == warm.id + "\n"
    assert json.loads(ramet("snapshot", "ls", "--json", "--instance", "nobody")[1]) == []
    assert json.loads(ramet("snapshot", "inspect", "warm")[1])["id"] == warm.id
    assert ramet("snapshot", "rm", "nobody", "warm", cold["id"])[:2] == (1, f"warm\n{cold['id']}\n")
    assert served.snapshots.list() == []


def test_a_snapshot_goes_to_a_file_and_comes_back(ramet: Ramet, served: Served, tmp_path: Path) -> None:
    served.fleet.put("web")
    warm = served.snapshots.put("web", name="warm")
    served.snapshots.filling = b"x" * 2_000_000
    file = tmp_path / "warm.tar"
    file.write_text("what was there before")
    assert ramet("snapshot", "export", "warm", str(file)) == (0, warm.id + "\n", "")
    assert os.listdir(tmp_path) == ["warm.tar"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert ramet("snapshot", "export", "warm", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()
    assert (
        ramet("snapshot", "export", "warm", str(tmp_path))[2]
        .splitlines()[0]
        .endswith("[host_is_a_directory]")
    )
    exit_code, out, _ = ramet("snapshot", "import", str(file), "--name", "again")
    made = served.snapshots.get("again")
    assert (exit_code, out) == (0, made.id + "\n")
    assert ramet("snapshot", "import", str(file))[2].splitlines()[0].endswith("[snapshot_name_taken]")
    assert json.loads(ramet("snapshot", "export", "again", str(file), "--json")[1])["id"] == made.id
    served.snapshots.records.clear()
    assert json.loads(ramet("snapshot", "import", str(file), "--json")[1])["name"] == "again"


def test_a_snapshot_goes_through_pipes(served: Served) -> None:
    served.fleet.put("web")
    served.snapshots.put("web", name="warm")
    with spawned(served, "snapshot", "export", "warm", "-") as export:
        data, _ = export.communicate()
    assert export.returncode == 0
    with spawned(served, "snapshot", "import", "-", "--name", "again") as imports:
        out, _ = imports.communicate(data)
    assert out.decode() == served.snapshots.get("again").id + "\n"


def test_a_snapshot_that_is_not_exported_or_imported_leaves_nothing(
    ramet: Ramet, served: Served, tmp_path: Path
) -> None:
    served.fleet.put("web")
    file = tmp_path / "file"
    assert (
        ramet("snapshot", "export", "nobody", str(file))[2].splitlines()[0].endswith("[snapshot_not_found]")
    )
    assert ramet("snapshot", "import", str(file))[2].splitlines()[0].endswith("[host_path_not_found]")
    file.write_bytes(b"no snapshot")
    assert ramet("snapshot", "import", str(file))[2].splitlines()[0].endswith("[bad_export]")
    warm = served.snapshots.put("web", name="warm")
    served.snapshots.breaks = True
    assert ramet("snapshot", "export", "warm", str(file))[0] == 1
    assert file.read_bytes() == b"no snapshot"
    assert os.listdir(tmp_path) == ["file"]
    assert served.snapshots.list() == [warm]


def test_a_snapshots_pool_is_set_and_shown(ramet: Ramet, served: Served) -> None:
    served.fleet.put("src", State.RUNNING)
    assert ramet("snapshot", "create", "--name", "warm", "--fork-pool", "2", "src")[0] == 0
    assert served.snapshots.get("warm").fork_pool == 2
    exit_code, out, _ = ramet("snapshot", "pool", "warm", "5")
    assert exit_code == 0
    assert out.splitlines()[1].split() == ["warm", "5", "0", "0", "0", "resting"]
    assert json.loads(ramet("snapshot", "pool", "--json", "warm")[1])["fork_pool"]["size"] == 5
    assert ramet("snapshot", "pool", "warm", "0")[1].splitlines()[1].split() == [
        "warm",
        "0",
        "0",
        "0",
        "0",
        "-",
    ]
    served.fleet.put("cold", State.STOPPED)
    exit_code, _, err = ramet("snapshot", "create", "--kind", "Stopped", "--fork-pool", "2", "cold")
    assert exit_code == 1
    assert "no memory" in err


def test_snapshots_are_forked_and_gone_back_to(ramet: Ramet, served: Served) -> None:
    source = served.fleet.put("web")
    served.snapshots.put("web", name="warm")
    exit_code, out, _ = ramet("snapshot", "fork", "warm", "kid")
    child = served.fleet.get("kid").record
    assert (exit_code, out, child.identity.parent) == (0, child.id + "\n", source.id)
    assert (
        json.loads(ramet("snapshot", "fork", "warm", "--target", "Standby", "--json")[1])["state"]
        == "Standby"
    )
    _, out, _ = ramet("snapshot", "fork", "warm", "--count", "2")
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "web-1", "web-2"]
    exit_code, out, err = ramet("snapshot", "restore", "web", "warm")
    assert (exit_code, out) == (1, "")
    assert err.splitlines() == ["Error: web is Running [invalid_state]", "  ramet stop web"]
    ramet("stop", "web")
    assert ramet("snapshot", "restore", "web", "warm", "--target", "Stopped")[:2] == (0, source.id + "\n")
    assert json.loads(ramet("snapshot", "restore", "web", "warm", "--json")[1])["state"] == "Running"


def test_stop_and_rm_go_on_after_a_failure(ramet: Ramet, served: Served) -> None:
    served.fleet.put("one")
    served.fleet.put("two")
    exit_code, out, err = ramet("stop", "nobody", "one")
    assert (exit_code, out) == (1, "one\n")
    assert "no instance nobody" in err
    exit_code, out, err = ramet("rm", "two", "one")
    assert (exit_code, out) == (1, "one\n")
    assert "ramet rm -f two" in err
    assert ramet("rm", "-f", "two")[:2] == (0, "two\n")
    assert served.fleet.list() == []


def test_wait_exits_by_what_came(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    assert ramet("wait", "web") == (0, "", "")
    exit_code, out, err = ramet("wait", "web", "--state", "Stopped", "--timeout", "1s", "--json")
    assert (exit_code, json.loads(out)["timed_out"]) == (1, True)
    assert err == "Error: web is Running after 1s, not Stopped [other_state]\n"


def test_images(ramet: Ramet, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.tar").touch()
    monkeypatch.chdir(tmp_path)
    assert ramet("image", "import", "app.tar")[1] == "docker.io/library/app:latest\n"
    assert served.catalog.imported == [tmp_path / "app.tar"]
    assert ramet("image", "import", "--name", "mine", "app.tar", "--json")[0] == 0
    assert [line.split()[0] for line in ramet("image", "list")[1].splitlines()[1:]] == list(
        served.catalog.images
    )
    assert ramet("image", "rm", "mine", "nope")[:2] == (1, "mine\n")
    assert "mine" not in ramet("image", "list", "-q")[1]


def test_a_token_is_one_the_server_takes(
    ramet: Ramet, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAMET_JWT_SECRET", SECRET)
    _, out, _ = ramet("token", "--scope", "instance:read", "--duration", "1h")
    monkeypatch.setenv("RAMET_HOST", served.url)
    monkeypatch.setenv("RAMET_API_KEY", out.strip())
    assert ramet("ps")[0] == 0
    assert "does not allow image:read" in ramet("image", "list")[2]
    claims = jwt.decode(out.strip(), SECRET, algorithms=["HS256"])
    assert claims["exp"] - claims["iat"] == 3600


def test_a_token_needs_a_good_secret(ramet: Ramet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAMET_JWT_SECRET", raising=False)
    assert "no secret" in ramet("token")[2]
    assert "shorter than 32 bytes" in ramet("token", "--secret", "short")[2]
    (tmp_path / "secret").write_text(SECRET + "\n")
    assert ramet("token", "--secret-file", str(tmp_path / "secret"))[0] == 0


def test_resources_show_what_there_is_and_what_is_held(ramet: Ramet, served: Served) -> None:
    served.fleet.limits = (Limit(Resource.CPU, 2, 4.0), Limit(Resource.MEMORY, 8 << 30, 1.5))
    served.fleet.put("web")
    code, out, _ = ramet("resources", "--instances")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[:4] == [
        ["RESOURCE", "CAPACITY", "RATIO", "LIMIT", "ALLOCATED", "AVAILABLE"],
        ["cpu", "2", "4", "8", "2", "6"],
        ["memory", "8.0GB", "1.5", "12.0GB", "1.0GB", "11.0GB"],
        ["disk", "unknown", "-", "none", "10.0GB", "-"],
    ]
    assert ["endpoints", "1000", "1", "1000", "1", "999"] in rows
    assert "captures in memory   1, 256.0MB\n" in out
    assert "images 5.0MB, pulled layers 3.0MB, volumes 2.0MB, overlays 1.0MB\n" in out
    assert rows[-1] == ["web", "2", "1.0GB", "10.0GB"]
    assert "web" not in ramet("resources")[1]
    assert json.loads(ramet("resources", "--json")[1])["cpu"]["available"] == 6


def test_version_says_both(ramet: Ramet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ramet("version")[1].splitlines()[1] == "server  0.1.0 (API 0.3.0)"
    monkeypatch.setenv("RAMET_HOST", f"unix://{tmp_path}/none")
    assert ramet("version")[1].splitlines()[1] == "server  not reachable"


def test_without_a_server_it_says_what_to_do(ramet: Ramet, tmp_path: Path) -> None:
    exit_code, out, err = ramet("--host", f"unix://{tmp_path}/none", "ps")
    assert (exit_code, out) == (1, "")
    assert f"{tmp_path}/none" in err
    assert "ramet serve" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("fork",),
        ("fork", "web", "kid", "--count", "2"),
        ("fork", "web", "--name-prefix", "kid"),
        ("fork", "web", "--count", "1001"),
        ("fork", "web", "--target", "Paused"),
        ("standby",),
        ("standby", "web", "--compression", "zstd:high"),
        ("restore",),
        ("snapshot", "create"),
        ("snapshot", "create", "web", "--kind", "Running"),
        ("snapshot", "fork", "warm", "kid", "--count", "2"),
        ("snapshot", "fork", "warm", "--name-prefix", "kid"),
        ("snapshot", "restore", "web"),
        ("snapshot", "export", "warm"),
        ("snapshot", "export", "warm", "-", "--json"),
        ("snapshot", "import"),
        ("snapshot", "rm"),
        ("run", "-e", "NOVALUE", "image"),
        ("exec", "web"),
        ("serve", "--port", "1", "--listen", "127.0.0.1:2"),
        ("logs", "--source", "kernel", "web"),
    ],
)
def test_a_command_that_is_not_understood_exits_with_2(ramet: Ramet, arguments: tuple[str, ...]) -> None:
    exit_code, out, err = ramet(*arguments)
    assert (exit_code, out) == (2, "")
    assert "Error: " in err


def test_serve_passes_on_what_was_given(ramet: Ramet, monkeypatch: pytest.MonkeyPatch) -> None:
    class Daemon:
        def serve(self, overrides: dict[str, object]) -> None:
            print(overrides)

    monkeypatch.setitem(sys.modules, "ramet.daemon.main", Daemon())
    assert ramet("serve")[1] == "{}\n"
    _, out, _ = ramet("serve", "--port", "4973", "--data-dir", "/data", "--config", "c.yaml")
    assert (
        out == "{'data_dir': PosixPath('/data'), 'listen': '127.0.0.1:4973', 'config': PosixPath('c.yaml')}\n"
    )


def test_ps_imports_nothing_heavy(served: Served) -> None:
    code = (
        "import sys; from ramet.cli.main import run; assert run(['ps']) == 0;"
        " print(sorted(sys.modules), file=sys.stderr)"
    )
    env = {**os.environ, "RAMET_HOST": served.unix_url}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True, text=True)
    heavy = ("pydantic", "fastapi", "starlette", "rich", "websockets", "http.client", "asyncio", "jwt", "ssl")
    assert [name for name in heavy if f"'{name}'" in done.stderr] == []


def test_a_burst_is_measured_and_its_children_are_removed(
    ramet: Ramet, served: Served, tmp_path: Path
) -> None:
    served.fleet.put("web")
    picture = tmp_path / "burst.svg"
    code, out, err = ramet(
        "bench", "burst", "web", "--count", "3", "--rounds", "2", "--picture", str(picture)
    )
    assert (code, err) == (0, "")
    heads, row = out.splitlines()[:2]
    assert heads.split()[:3] == ["SUCCEEDED", "WALL", "MEAN"]
    assert row.split()[:3] == ["3/3", "0.06", "s"]
    assert ["capture", "12.5", "12.5"] in [line.split() for line in out.splitlines()]
    assert picture.read_text().startswith("<svg")
    assert ramet("ps", "-aq")[1].split() == [served.fleet.get("web").record.id]


def test_a_burst_as_json(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    code, out, _ = ramet("bench", "burst", "web", "--count", "2", "--rounds", "1", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["platform"] == {
        **{"count": 2, "succeeded": 2, "wall_s": 0.06, "mean_s": 0.06},
        **{"p50_s": 0.06, "p95_s": 0.06, "max_s": 0.06},
    }
    assert report["source_pause_s"] == {"p50": 0.002, "max": 0.002}
    assert (report["first_s"], report["rounds"]) == (0.06, 1)
    assert report["daemon_cpu_s_per_fork"] >= 0
    assert report["phases"]["capture"]["p95_s"] == 0.0125


def test_a_burst_of_what_cannot_be_forked_says_why(ramet: Ramet, served: Served) -> None:
    code, out, err = ramet("bench", "burst", "nobody", "--rounds", "1")
    assert (code, out) == (1, "")
    assert "nobody" in err

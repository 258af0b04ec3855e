"""The demo and the examples of the documentation do what they say, with real guests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm

PROJECT = Path(__file__).parents[2]
PYTHON_EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
RUN_PYTHON_EXAMPLE = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)
EXAMPLE = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)

# In a network namespace of its own: a daemon, then the commands, then the daemon's orderly end.
SESSION = """
set -e
ip link set lo up
ramet serve --data-dir "$FOLDER/data" --socket "$FOLDER/api.sock" 2>"$FOLDER/daemon.log" &
daemon=$!
trap 'ramet rm --force $(ramet ps -a -q) >/dev/null 2>&1 || true; kill $daemon; wait $daemon || true' EXIT
for _ in $(seq 600); do ramet ps >/dev/null 2>&1 && break; kill -0 $daemon; sleep 0.1; done
sh -ex -c "$COMMANDS"
"""


def run_session(folder: Path, commands: str) -> subprocess.CompletedProcess[str]:
    environment = dict(
        os.environ,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        PYTHONPATH=str(PROJECT),
        FOLDER=str(folder),
        RAMET_HOST=f"unix://{folder}/api.sock",
        COMMANDS=commands,
    )
    command = ["unshare", "--net", "bash", "-c", SESSION]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def run_examples(
    page: str, folders: pytest.TempPathFactory, *, with_box: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the one example of a page, which must succeed; `with_box`: the image box:1 is there already."""
    [commands] = EXAMPLE.findall((PROJECT / page).read_text())
    folder = folders.mktemp("s")  # A short path: sockets lie in it.
    (folder / "examples").symlink_to(PROJECT / "examples")
    made = "python examples/make_image.py box; ramet image import box --name box:1\n" if with_box else ""
    done = run_session(folder, made + commands)
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "daemon.log").read_text()
    return done


def test_the_demo_forks_and_every_child_is_itself() -> None:
    command = [sys.executable, str(PROJECT / "examples/demo.py"), "--count", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["forks"]["succeeded"] == report["forks"]["count"] == 3
    expected = {"boot_s", "source_pause_s", "source_gap_s", "forks", "cores", "load1", "accelerator"}
    assert report.keys() == expected
    assert report["forks"].keys() == {"count", "succeeded", "wall_s", "mean_s", "p50_s", "p95_s", "max_s"}


@pytest.mark.parametrize("page", ["README.md"])
def test_the_examples_of_a_page_work(page: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run_examples(page, tmp_path_factory)
    assert done.stdout.count("warm\n") == 2, done.stdout  # The source's state, and the child's.
    assert "web-copy\n" in done.stdout
    assert "hello\n" in done.stdout


def test_the_examples_of_logs_work(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run_examples("docs/logs.md", tmp_path_factory)  # Each `grep` of them has to find something.
    assert "line 2\nline 3\n" in done.stdout


def test_the_examples_of_standby_and_snapshots_work(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run_examples("docs/standby-and-snapshots.md", tmp_path_factory)
    assert done.stdout.count("warm\n") >= 5, done.stdout  # Fork, waker, put back, last, of the file.
    assert "warm\nawake\n" in done.stdout
    assert "spoilt" not in done.stdout


def test_the_examples_of_reclaim_work(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run_examples("docs/resources.md", tmp_path_factory, with_box=True)
    assert [line.split()[-2:] for line in done.stdout.splitlines() if line.startswith("big ")] == [
        ["1.0GB", "planned"],
        ["768.0MB", "applied"],
        ["1.0GB", "applied"],
    ], done.stdout


def test_the_examples_of_volumes_work(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run_examples("docs/volumes.md", tmp_path_factory)
    assert "mine\n" in done.stdout
    assert "weights\n" in done.stdout


def test_the_example_of_hypervisors_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run_examples("docs/hypervisors.md", tmp_path_factory, with_box=True)
    assert "virtio0\n" in done.stdout


def test_the_example_of_health_and_restarts_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run_examples(
        "docs/health-and-restarts.md", tmp_path_factory
    )  # Each `grep` of them has to find something.
    assert done.stdout.count("Running (healthy)") >= 2, done.stdout


OFFICIAL_CLIENT = """
from hypeman import Hypeman
from hypeman.lib.exec import exec
import os
token = os.environ["TOKEN"]
client = Hypeman(base_url="http://127.0.0.1:4973", api_key=token)
instance = client.instances.create(name="web", image="box:1", size="256MB", vcpus=1, cmd=["sleep", "100000"])
assert instance.state == "Running", instance
{readme}
assert (child.state, child.name) == ("Running", "another")
assert child.network.ip != instance.network.ip
assert {i.name for i in client.instances.list()} == {"web", "another"}
assert client.instances.wait(child.id, state="Running").state == "Running"
done = exec(client, child.id, ["hostname"])
assert (done.output, done.exit_code) == (b"another\\n", 0), done
assert client.instances.stop(child.id).state == "Stopped"
client.instances.delete(child.id)
client.instances.delete("web")
assert [image.name for image in client.images.list()] == ["docker.io/library/box:1"]
print("official client: done")
"""


def test_the_official_client_works_unmodified_over_tcp(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("c")
    (folder / "examples").symlink_to(PROJECT / "examples")
    [readme] = PYTHON_EXAMPLE.findall((PROJECT / "README.md").read_text())
    (folder / "official.py").write_text(OFFICIAL_CLIENT.replace("{readme}", readme))
    monkeypatch.setenv("RAMET_JWT_SECRET", "0123456789abcdef" * 4)
    monkeypatch.setenv("RAMET_LISTEN", "127.0.0.1:4973")
    commands = """
        python examples/make_image.py box
        ramet image import box --name box:1
        TOKEN=$(ramet token) python official.py
    """
    done = run_session(folder, commands)
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "daemon.log").read_text()
    assert "official client: done" in done.stdout


def test_the_examples_of_the_guide_to_the_api_work(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in Python are one program, those in shell another."""
    page = (PROJECT / "docs/api-guide.md").read_text()
    folder = tmp_path_factory.mktemp("g")
    (folder / "examples").symlink_to(PROJECT / "examples")
    (folder / "guide.py").write_text("".join(RUN_PYTHON_EXAMPLE.findall(page)))
    (folder / "guide.sh").write_text("".join(EXAMPLE.findall(page)))
    monkeypatch.setenv("RAMET_JWT_SECRET", "0123456789abcdef" * 4)
    monkeypatch.setenv("RAMET_LISTEN", "127.0.0.1:4973")
    monkeypatch.setenv("HYPEMAN_BASE_URL", "http://127.0.0.1:4973")
    commands = """
        python examples/make_image.py box
        ramet image import box --name box:1
        export HYPEMAN_API_KEY=$(ramet token)
        python guide.py
        bash -ex guide.sh
        test -z "$(ramet ps -a -q)"
    """
    done = run_session(folder, commands)
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "daemon.log").read_text()
    assert "Running 10.100." in done.stdout


def test_the_examples_of_pools_work(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run_examples("docs/forking.md", tmp_path_factory)
    assert "warm\n" in done.stdout

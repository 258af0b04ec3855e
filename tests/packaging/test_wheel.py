"""The wheel in an empty virtual environment: it, what it declares to need, and nothing else."""

import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]
START_TIMEOUT_S = 120.0
NATIVE = ("ramet-guest", "ramet-pager")
PLACES = ("RAMET_KERNEL_PACKAGE", "RAMET_KITS_DIR")  # Where `./run` keeps what guests boot.


@dataclass
class Installed:
    """A virtual environment with the wheel in it."""

    folder: Path
    wheel: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in PLACES if name in os.environ}
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), **kept, **more}

    @property
    def ramet(self) -> str:
        return str(self.folder / "bin/ramet")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.ramet, *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
        )


def build(kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(PROJECT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.iterdir()
    return built


def declared(wheel: Path) -> set[str]:
    """Return the names of all distributions the wheel needs, directly or not."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = importlib.metadata.PathDistribution(zipfile.Path(archive, str(Path(name).parent) + "/"))
        pending = [(text, frozenset[str]()) for text in metadata.requires or ()]
    needed: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        text, extras = pending.pop()
        wanted = Requirement(text)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            continue
        key = (wanted.name, frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found = importlib.metadata.distribution(wanted.name)
        assert found.version in wanted.specifier, f"{wanted} is declared, {found.version} is installed"
        needed.add(wanted.name)
        pending += [(inner, key[1]) for inner in found.requires or ()]
    return needed


def lend(names: set[str], site_packages: Path) -> None:
    """Make these distributions of our environment appear in another."""
    for name in names:
        found = importlib.metadata.distribution(name)
        paths = [Path(str(file)).parts for file in found.files or ()]
        for top in {parts[0] for parts in paths if ".." not in parts}:
            place = site_packages / top
            if top != "__pycache__" and not place.exists():
                place.symlink_to(Path(str(found.locate_file(top))))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("v")  # A short path: a socket lies in it.
    wheel = build("wheel", tmp_path_factory.mktemp("dist"))
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True)
    [site_packages] = folder.glob("lib/python*/site-packages")
    lend(declared(wheel), site_packages)
    return Installed(folder, wheel)


def test_the_wheel_is_for_every_python_3_on_this_platform(installed: Installed) -> None:
    assert installed.wheel.name.endswith("-py3-none-linux_x86_64.whl")


def test_the_wheel_has_the_programs_the_types_and_the_licence(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        assert {*NATIVE, "py.typed", "LICENSE", "THIRD_PARTY.md"} <= names.keys()
        strange = [name for name in archive.namelist() if not name.startswith(("ramet/", "ramet-"))]
        assert strange == []


def test_every_crate_is_named_with_its_licence() -> None:
    lock = tomllib.loads((PROJECT / "native/Cargo.lock").read_text())
    needs = {package["name"]: package.get("dependencies", []) for package in lock["package"]}
    crates, waiting = set[str](), list(NATIVE)  # The fuzz targets' own are in nothing that is given away.
    while waiting:
        fresh = {name.partition(" ")[0] for name in needs[waiting.pop()]} - crates
        crates |= fresh
        waiting += fresh
    assert {"libc", "serde_json", "memchr"} <= crates
    words = set(re.findall(r"[\w-]+", (PROJECT / "THIRD_PARTY.md").read_text()))
    assert crates <= words


def test_the_programs_are_static_and_start(installed: Installed) -> None:
    [native] = installed.folder.glob("lib/python*/site-packages/ramet/_native")
    for name in NATIVE:
        program = native / name
        assert os.access(program, os.X_OK)
        assert b"/ld-linux" not in program.read_bytes()[:4096]


def test_the_sdist_has_what_builds_the_programs_and_nothing_built(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    rust = {"Cargo.toml", "Cargo.lock", "build.py", "guest/src/main.rs", "pager/src/main.rs"}
    needed = {"hatch_build.py", "pyproject.toml", "LICENSE", "src/ramet/py.typed"}
    needed |= {f"native/{name}" for name in rust}
    assert needed <= names
    assert not [name for name in names if "/target/" in name or "_native/" in name or "__pycache__" in name]


def test_the_installed_package_is_not_the_checkout(installed: Installed) -> None:
    code = "import ramet, sys; print(ramet.__file__); print(*sys.path, sep='\\n')"
    done = subprocess.run(
        [installed.folder / "bin/python", "-c", code],
        cwd=installed.folder,
        env=installed.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    first, *paths = done.stdout.splitlines()
    assert first.startswith(str(installed.folder))
    assert not [path for path in paths if path.startswith(str(PROJECT / "src"))]


def test_every_module_can_be_imported_with_what_is_declared(installed: Installed) -> None:
    code = (
        "import importlib, pkgutil, ramet\n"
        "for module in pkgutil.walk_packages(ramet.__path__, 'ramet.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    done = subprocess.run(
        [installed.folder / "bin/python", "-c", code],
        cwd=installed.folder,
        env=installed.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_command_tells_its_version(installed: Installed) -> None:
    done = installed.run("--version")
    assert done.stdout.strip() in installed.wheel.name
    assert done.stderr == ""


def test_the_doctor_finds_the_installed_programs(installed: Installed) -> None:
    report = json.loads(installed.run("doctor", "--json").stdout)
    assert "programs_own" in {finding["code"] for finding in report["findings"]}


@dataclass
class Served:
    """A daemon from the wheel, started as the unit starts it, in a network namespace of its own."""

    process: subprocess.Popen[bytes]
    root: Path
    notices: list[bytes]

    @property
    def inside(self) -> list[str]:
        return ["nsenter", "--net", f"--target={self.process.pid}"]


@pytest.fixture(scope="module")
def served(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if os.geteuid() != 0 or not all(name in os.environ for name in PLACES):
        pytest.skip("takes root, and the guest kernel that ./run gets")
    root = tmp_path_factory.mktemp("r")
    done = installed.run("setup", "--root", str(root), "--listen", "127.0.0.1:4973")
    assert done.returncode == 0, done.stderr
    script = 'ip link set lo up && exec "$0" "$@"'
    serve = [installed.ramet, "serve", "--config", str(root / "etc/ramet/config.yaml")]
    serve += ["--data-dir", str(root / "data"), "--socket", str(root / "s")]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        (root / "log").open("wb") as log,
    ):
        manager.bind(str(root / "notify"))
        manager.settimeout(START_TIMEOUT_S)
        process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script, *serve],
            cwd=root,
            env=installed.environment(NOTIFY_SOCKET=str(root / "notify")),
            stdout=log,
            stderr=log,
        )
        try:
            yield Served(process, root, [_first_notice(manager, process, root / "log")])
        finally:
            process.terminate()
            assert process.wait(START_TIMEOUT_S) == 0, (root / "log").read_text()
        assert manager.recv(100) == b"STOPPING=1"


def _first_notice(manager: socket.socket, process: subprocess.Popen[bytes], log: Path) -> bytes:
    manager.settimeout(0.2)
    until = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < until:
        try:
            return manager.recv(100)
        except TimeoutError:
            continue
    pytest.fail(f"it did not become ready:\n{log.read_text()}")


@pytest.mark.netns
def test_the_daemon_says_when_it_is_ready_and_the_token_of_setup_opens_it(
    installed: Installed, served: Served
) -> None:
    assert served.notices == [b"READY=1"]
    [client_file] = served.root.rglob("cli.toml")
    command = [*served.inside, installed.ramet, "ps", "--json"]
    environment = installed.environment(RAMET_CLI_CONFIG=str(client_file))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr
    nobody = installed.environment(RAMET_HOST="http://127.0.0.1:4973")
    refused = subprocess.run(command, env=nobody, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "token" in refused.stderr


@pytest.mark.netns
def test_the_doctor_recognises_the_running_daemon(installed: Installed, served: Served) -> None:
    command = [*served.inside, installed.ramet, "doctor", "--json", "--data-dir", str(served.root / "data")]
    done = subprocess.run(
        [*command, "--socket", str(served.root / "s")],
        env=installed.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = {finding["code"] for finding in json.loads(done.stdout)["findings"]}
    assert {"daemon", "data_folder", "subnet", "no_uplink"} <= found

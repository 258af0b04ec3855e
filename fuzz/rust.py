"""The fuzz targets of the Rust programs: built with coverage, run by libFuzzer.

Coverage needs two options of rustc that its stable release has (an LLVM pass, and arguments for it). A
sanitizer would need a nightly one; instead overflow checks and debug assertions are on.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from native.build import find_cargo

NATIVE: Final = Path(__file__).resolve().parent.parent / "native"
CORPORA: Final = Path(__file__).parent / "corpus"
TARGETS: Final = (
    "guest_frames",
    "guest_messages",
    "guest_archive",
    "pager_requests",
    "pager_handshake",
    "pager_packed",
)
INPUT_BYTES_MAX: Final = 8192
INPUT_TIMEOUT_S: Final = 20

_PACKAGE: Final = "ramet-fuzz"
_TRIPLE: Final = "x86_64-unknown-linux-gnu"
_COVERAGE: Final = (
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
)


def build() -> Path:
    """Build all targets with libFuzzer; return the folder of the programs."""
    goal = NATIVE / "target" / "fuzz"
    environment = dict(os.environ, RUSTFLAGS=" ".join(_COVERAGE), CARGO_TARGET_DIR=str(goal))
    command = [find_cargo(), "build", "--quiet", "--package", _PACKAGE, "--profile", "fuzz"]
    subprocess.run([*command, "--target", _TRIPLE], cwd=NATIVE, env=environment, check=True)
    return goal / _TRIPLE / "fuzz"


def build_replay(native: Path = NATIVE, goal: Path = NATIVE / "target") -> Path:
    """Build all targets as programs that run the files they are given; return the folder of the programs.

    Needs no C++ and no network: all it needs is what the guest's program needs, too. Overflow checks and
    debug assertions are on.

    Args:
        native: the workspace, or a copy of it.
        goal: where cargo keeps what it makes.
    """
    environment = dict(os.environ, CARGO_TARGET_DIR=str(goal), CARGO_NET_OFFLINE="true")
    command = [find_cargo(), "build", "--quiet", "--locked", "--package", _PACKAGE]
    subprocess.run(command, cwd=native, env=environment, check=True)
    return goal / "debug"


def replay(program: Path) -> subprocess.CompletedProcess[str]:
    """Run a target that `build_replay` made over its committed corpus; status 0 if nothing was found."""
    files = sorted((CORPORA / program.name).iterdir())
    return subprocess.run([program, *files], capture_output=True, text=True, check=False)


def run(name: str, work: Path, seconds: int) -> int:
    """Fuzz `name` for `seconds`; return the status, 0 if nothing was found. Findings are left in `work`."""
    learnt = work / "learnt"
    learnt.mkdir(parents=True, exist_ok=True)
    command = [
        str(build() / name),
        str(learnt),
        str(CORPORA / name),
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-artifact_prefix={work}/",
        "-print_final_stats=1",
    ]
    return subprocess.run(command, check=False).returncode


def minimise(name: str, work: Path, files_max: int, bytes_max: int) -> int:
    """Fold what was learnt into the committed corpus: inputs that reach something new, the smallest first.

    Args:
        files_max: how many at most.
        bytes_max: of each.
    """
    corpus = CORPORA / name
    with tempfile.TemporaryDirectory(prefix="ramet-fuzz-") as merged:
        command = [str(build() / name), "-merge=1", f"-max_len={bytes_max}", merged]
        done = subprocess.run([*command, str(corpus), str(work / "learnt")], check=False)
        known = {file.read_bytes() for file in corpus.iterdir()}
        found = sorted(Path(merged).iterdir(), key=lambda file: (file.stat().st_size, file.name))
        fresh = [file for file in found if file.read_bytes() not in known][:files_max]
        for file in fresh:
            shutil.copyfile(file, corpus / f"learnt-{file.name[:12]}")
    print(f"{name}: {len(fresh)} learnt inputs kept")
    return done.returncode

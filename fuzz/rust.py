"""The fuzz targets of the Rust programs: built with coverage, run by libFuzzer.

Coverage needs two options of rustc that its stable release has (an LLVM pass, and arguments for it). A
sanitizer would need a nightly one; instead overflow checks and debug assertions are on.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

from native.build import find_cargo

FOLDER: Final = Path(__file__).resolve().parent.parent / "native" / "fuzz"
CORPORA: Final = Path(__file__).parent / "corpus"
TARGETS: Final = ("guest_frames", "guest_messages", "pager_requests", "pager_handshake")
INPUT_BYTES_MAX: Final = 4096
INPUT_TIMEOUT_S: Final = 20

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
    """Build all targets; return the folder of the programs."""
    goal = FOLDER.parent / "target" / "fuzz"
    environment = dict(os.environ, RUSTFLAGS=" ".join(_COVERAGE), CARGO_TARGET_DIR=str(goal))
    command = [find_cargo(), "build", "--quiet", "--release", "--target", _TRIPLE]
    subprocess.run(command, cwd=FOLDER, env=environment, check=True)
    return goal / _TRIPLE / "release"


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


def minimise(name: str, work: Path) -> int:
    """Fold what was learnt into the committed corpus: only inputs that reach something new."""
    command = [str(build() / name), "-merge=1", f"-max_len={INPUT_BYTES_MAX}", str(CORPORA / name)]
    return subprocess.run([*command, str(work / "learnt")], check=False).returncode


def replay(name: str) -> int:
    """Run the committed corpus once; return the status."""
    files = sorted(str(file) for file in (CORPORA / name).iterdir())
    return subprocess.run([str(build() / name), *files], check=False).returncode

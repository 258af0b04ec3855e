"""`./run fuzz`: drive targets, with coverage where atheris is installed, and keep what fails.

    python -m fuzz                          the targets
    python -m fuzz TARGET --seconds N       fuzz one, from its corpus and what earlier runs learnt
    python -m fuzz all --seconds N          all of them, N seconds each
    python -m fuzz TARGET --input FILE      run one input, for a finding
    python -m fuzz TARGET --minimise        fold what was learnt into the committed corpus

A finding is a file `crash-...` in the working folder (`.cache/fuzz/TARGET`). Move it into the corpus, so that
the suite replays it for ever, and mend the code.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from fuzz import rust
from fuzz.targets import TARGETS, Target

ROOT: Final = Path(__file__).resolve().parent.parent
WORK: Final = ROOT / ".cache" / "fuzz"
CORPUS_FILES_MAX: Final = 60
SEED_BYTES_MAX: Final = 2048


def main() -> int:
    """Do what the command line asks; return 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="./run fuzz", description="Fuzz parsers and the API.")
    names = [*TARGETS, *rust.TARGETS, "api"]
    parser.add_argument("target", nargs="?", choices=[*names, "all"], metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--minimise", action="store_true")
    asked = parser.parse_args()
    if asked.target is None:
        print("\n".join([*names, "all"]))
        return 0
    if asked.input is not None:
        if asked.target not in (*TARGETS, *rust.TARGETS):
            parser.error(f"{asked.target} takes no input")
        return _run_one(asked.target, asked.input)
    found = []
    for name in names if asked.target == "all" else [asked.target]:
        began = time.monotonic()
        status = _minimise(name) if asked.minimise else _run(name, asked.seconds)
        print(f"{name}: {time.monotonic() - began:.0f} s, {'FOUND SOMETHING' if status else 'nothing found'}")
        if status:
            found.append(name)
    return 1 if found else 0


def _run_one(name: str, file: Path) -> int:
    if name in rust.TARGETS:
        return subprocess.run([rust.build_replay() / name, file], check=False).returncode
    TARGETS[name].run(file.read_bytes())
    return 0


def _run(name: str, seconds: int) -> int:
    if name == "api":
        from fuzz import api  # Brings in schemathesis, which the others need not.

        return api.run(seconds)
    work = WORK / name
    work.mkdir(parents=True, exist_ok=True)
    if name in rust.TARGETS:
        return rust.run(name, work, seconds)
    # A process of its own: libFuzzer never returns, and an input may end its process.
    command = [sys.executable, "-m", "fuzz.inside", name, str(seconds), str(work)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _minimise(name: str) -> int:
    """Keep of what was learnt the small inputs that each reach something new, a bounded number of them."""
    if name in rust.TARGETS:
        return rust.minimise(name, WORK / name, CORPUS_FILES_MAX, SEED_BYTES_MAX)
    if name not in TARGETS:
        return 0
    target = TARGETS[name]
    reached = set[tuple[str, int]]()
    for data in target.seeds():
        reached |= _lines(target, data)
    learnt = sorted((WORK / name / "learnt").glob("*"), key=lambda file: (file.stat().st_size, file.name))
    kept = 0
    for file in learnt:
        data = file.read_bytes()
        if len(data) > SEED_BYTES_MAX or kept == CORPUS_FILES_MAX:
            continue
        lines = _lines(target, data)
        if lines - reached:
            reached |= lines
            (target.corpus / f"learnt-{file.name[:12]}").write_bytes(data)
            kept += 1
    print(f"{name}: {kept} of {len(learnt)} learnt inputs kept")
    return 0


def _lines(target: Target, data: bytes) -> set[tuple[str, int]]:
    """Return the lines of the target's modules that `data` reaches."""
    found = set[tuple[str, int]]()
    parts = tuple(module.replace(".", "/") for module in target.modules)

    def trace(frame: object, event: str, _: object) -> object:
        code = frame.f_code  # type: ignore[attr-defined]
        if not any(part in code.co_filename for part in parts):
            return None
        if event == "line":
            found.add((code.co_filename, frame.f_lineno))  # type: ignore[attr-defined]
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        target.run(data)
    finally:
        sys.settrace(None)
    return found


if __name__ == "__main__":
    sys.exit(main())

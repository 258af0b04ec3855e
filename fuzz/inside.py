"""The process that fuzzes one Python target: `python -m fuzz.inside TARGET SECONDS WORK`.

With atheris every line of ours, and of `tarfile`, that an input reaches for the first time makes that input
worth changing further. It must see our modules as they are imported, so nothing here imports them at the top.
"""

import random
import sys
import time
from pathlib import Path
from typing import Final

INPUT_TIMEOUT_S: Final = 20  # An input that takes longer is a finding, too.
MEMORY_MIB_MAX: Final = 2048
PLAIN_BATCH: Final = 10_000
INSTRUMENTED: Final = ("ramet", "tarfile")


def main() -> None:
    """Fuzz until the time is over; a finding ends the process with a status that is not 0."""
    name, seconds, work = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    try:
        import atheris
    except ImportError:
        print("atheris is not installed (pip install -e .[fuzz]): fuzzing without coverage", file=sys.stderr)
        _fuzz_plain(name, seconds, work)
        return
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from fuzz.targets import TARGETS
    target = TARGETS[name]
    learnt = work / "learnt"
    learnt.mkdir(exist_ok=True)
    arguments = [
        sys.argv[0],
        str(learnt),
        str(target.corpus),
        f"-max_total_time={seconds}",
        f"-max_len={target.input_bytes_max}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-artifact_prefix={work}/",
        "-print_final_stats=1",
    ]
    from fuzz import mutate

    def change(data: bytes, size_max: int, seed: int) -> bytes:
        # Bytes changed blindly are hardly ever JSON, or a tar archive whose headers have the right sums.
        chance = random.Random(seed)
        changed = mutate.change_json(data, chance) if chance.random() < 0.6 else None
        if changed is None:
            fresh = bytearray(atheris.Mutate(data, size_max))
            if chance.random() < 0.9:
                mutate.repair_tar(fresh)
            changed = bytes(fresh)
        return changed[:size_max]

    atheris.Setup(arguments, target.run, custom_mutator=change)
    atheris.Fuzz()


def _fuzz_plain(name: str, seconds: int, work: Path) -> None:
    from fuzz import mutate
    from fuzz.targets import TARGETS

    target = TARGETS[name]
    seeds = target.seeds()
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        for data in mutate.inputs(seeds, PLAIN_BATCH, target.input_bytes_max, seed=time.monotonic_ns()):
            try:
                target.run(data)
            except BaseException:
                (work / "crash-plain").write_bytes(data)
                raise
            count += 1
            if time.monotonic() >= end:
                break
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Run a command in a host within that has KVM: ./run nested [--timeout SECONDS] COMMAND [ARGUMENT ...]"""

import argparse
import os
import sys
from pathlib import Path

from tests.nested.host import NestedFailed, run_within, why_not


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run nested", description=__doc__)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for all of it (default 900)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, in the project's folder")
    options = parser.parse_args()
    if not options.command:
        parser.error("which command?")
    lacking = why_not()
    if lacking is not None:
        parser.error(lacking)
    try:
        return run_within(
            options.command,
            kernel_package=Path(os.environ["RAMET_KERNEL_PACKAGE"]),
            timeout_s=options.timeout,
            say=lambda line: print(line, flush=True),
        )
    except NestedFailed as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""`python -m ramet.boot`: prepares a boot kit ahead of time and prints where it is."""

import argparse
import sys
from pathlib import Path

from ramet.boot.kit import prepare_kit
from ramet.boot.locate import GUEST_PROGRAM, native_program
from ramet.core.errors import RametError


def main() -> int:
    """Prepare the kit that the arguments name; the exit status is 1 where that fails."""
    parser = argparse.ArgumentParser(prog="python -m ramet.boot", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the kits")
    parser.add_argument("--kernel-package", type=Path, help="a kernel's .deb (default: the one installed)")
    asked = parser.parse_args()
    try:
        kit = prepare_kit(
            asked.cache, guest_program=native_program(GUEST_PROGRAM), kernel_package=asked.kernel_package
        )
    except RametError as error:
        print(f"boot kit: {error}", file=sys.stderr)
        return 1
    print(kit.kernel.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())

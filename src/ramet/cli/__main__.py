"""`python -m ramet.cli` is `ramet`."""

from ramet.cli.main import main

main()

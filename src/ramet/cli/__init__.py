"""The command line; `ramet.cli.main` is the door, and light."""

"""ramet: OCI images as microVMs that sleep, wake, and fork while they run."""

__version__ = "0.1.0"

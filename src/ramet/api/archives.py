"""Which requests bring an archive: its bytes are passed on as they come, and never kept."""

from starlette.types import Scope


def is_archive(scope: Scope) -> bool:
    """Return whether the body of an HTTP request is one."""
    path: str = scope["path"]
    if scope["method"] == "POST":
        return path in ("/snapshots/import", "/volumes/from-archive")
    return scope["method"] == "PUT" and path.startswith("/instances/") and path.endswith("/archive")

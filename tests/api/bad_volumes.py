"""What a request on volumes can get wrong: rows for `test_bad_input`, of a server with the volume "data"."""

from typing import Any, Final

VOLUME: Final = {"name": "more", "size_gb": 1}
ATTACH: Final = "/instances/src/volumes/data"
MOUNT: Final = {"mount_path": "/data"}
READ: Final = {"volume_id": "data", "mount_path": "/a", "readonly": True}

MOUNTS: Final[tuple[object, ...]] = (
    "data",
    7,
    {},
    ["data"],
    [{}],
    [{"volume_id": "data"}],
    [{"mount_path": "/data"}],
    [{"volume_id": "nobody", "mount_path": "/data"}],
    *([{"volume_id": "data", "mount_path": path}] for path in ("data", "/", "/proc/x", "/usr", "/a/../b")),
    *([{"volume_id": "data", "mount_path": path}] for path in ("/a\0", "/a/", "//a", "/" + "x" * 5000)),
    [{**READ, "later": 1}],
    [{**READ, "readonly": "perhaps"}],
    [{**READ, "readonly": False, "overlay": True, "overlay_size": "1GB"}],
    [{**READ, "overlay": True}],
    [{**READ, "overlay_size": "1GB"}],
    [{**READ, "overlay": True, "overlay_size": "1KB"}],
    [{**READ, "overlay": True, "overlay_size": "x"}],
    [READ, READ],
    [READ, {**READ, "mount_path": "/b"}],
)
REQUIRED: Final[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "/volumes": (VOLUME, ("name", "size_gb")),
    ATTACH: (MOUNT, ("mount_path",)),
}
FIELDS: Final[list[tuple[str, dict[str, Any], str, str]]] = [
    ("/volumes", VOLUME, "name", "text"),
    ("/volumes", VOLUME, "size_gb", "number"),
    ("/volumes", VOLUME, "id", "text"),
    ("/volumes", VOLUME, "tags", "tags"),
    (ATTACH, MOUNT, "mount_path", "text"),
    (ATTACH, MOUNT, "readonly", "flag"),
]
ALSO_WRONG: Final[list[tuple[str, dict[str, Any]]]] = [
    ("/volumes", {**VOLUME, "name": "data"}),
    ("/volumes", {**VOLUME, "id": "data-id"}),
    ("/volumes", {**VOLUME, "size_gb": 8193}),
    ("/volumes", {**VOLUME, "later": 1}),
    (ATTACH, {**MOUNT, "later": 1}),
    (ATTACH, MOUNT),  # It runs.
    ("/instances/src/volumes/nobody", MOUNT),
    ("/instances/nobody/volumes/data", MOUNT),
]
PATHS: Final[list[tuple[str, str]]] = [
    ("GET", "/volumes/nobody"),
    ("GET", "/volumes/%00"),
    ("GET", "/volumes?limit=0"),
    ("GET", "/volumes?cursor=x"),
    ("DELETE", "/volumes/nobody"),
    ("DELETE", ATTACH),
    ("POST", "/volumes/from-archive"),
    ("POST", "/volumes/from-archive?name=more"),
    ("POST", "/volumes/from-archive?name=more&size_gb=1"),  # Nothing is no archive.
    ("POST", "/volumes/from-archive?name=more&size_gb=x"),
    ("POST", "/volumes/from-archive?name=more&size_gb=0"),
    ("POST", "/volumes/from-archive?name=..%2f&size_gb=1"),
    ("POST", "/volumes/from-archive?name=more&size_gb=1&id=..%2f.."),
    ("POST", "/volumes/from-archive?name=more&size_gb=1&tags[a!]=x"),
    ("POST", "/volumes/from-archive?name=data&size_gb=1"),
]

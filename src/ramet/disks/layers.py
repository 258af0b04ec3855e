"""The layers that instances write to, and who still needs which.

```
ext4-<bytes>.raw  <-  <layer>.qcow2  <-  <layer>.qcow2     (top: written by one running instance)
                                     <-  <layer>.qcow2     (top of a child)
```

A live fork freezes its source's top layer and puts a new one above it; children get tops of their own on the
frozen one. A layer names its backing in its own header, so the chain needs no record beside the files. A
layer is *held* while it is some instance's top or below a held one; the rest is deleted.
"""

import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from ramet.core.errors import Broken
from ramet.core.ids import LayerId, mint_id
from ramet.disks.qcow2 import create_qcow2, read_backing

CHAIN_LENGTH_MAX: Final = 16
"""Layers over the base before a source's chain is drawn together; each costs a lookup on a first read."""

_SUFFIX: Final = ".qcow2"
_BASE_PREFIX: Final = "ext4-"


class LayerBroken(Broken):
    """A layer's file, or one below it, is missing or damaged."""

    code = "disk_layer_broken"


class LayerStore:
    """The folder of all layers. Synchronous: every call is a few small file operations.

    Making a base for a size that was never asked for before runs mkfs.ext4 (about 20 ms), so `create` may be
    called in a thread; all calls may be made at the same time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tops: set[LayerId] = set()
        self._changing = threading.RLock()  # Held for microseconds: a new file is not yet held by anybody.
        self._formatting = threading.Lock()

    def path(self, layer: LayerId) -> Path:
        return self._folder / f"{layer}{_SUFFIX}"

    def id_of(self, path: Path) -> LayerId:
        """Return the id of the layer in file `path`."""
        return LayerId(path.name.removesuffix(_SUFFIX))

    def create(self, size_bytes: int) -> LayerId:
        """Make an empty, formatted disk of `size_bytes` and hold its top.

        Raises:
            LayerBroken: mkfs failed, or the disk is full.
        """
        return self._create_on(self._base(size_bytes), "raw", size_bytes)

    def create_on(self, backing: LayerId, size_bytes: int) -> LayerId:
        """Make an empty layer on `backing`, which need not be frozen yet, and hold it.

        Raises:
            LayerBroken: the disk is full.
        """
        return self._create_on(self.path(backing), "qcow2", size_bytes)

    def hold(self, layer: LayerId) -> None:
        """Hold a layer that a stored record names as its top.

        Raises:
            LayerBroken: its chain is not whole.
        """
        with self._changing:
            self.chain(layer)
            self._tops.add(layer)

    def move(self, old: LayerId, new: LayerId) -> None:
        """Say that the instance which wrote to `old` writes to `new` on top of it."""
        with self._changing:
            self._tops.discard(old)
            self._tops.add(new)

    def release(self, layer: LayerId) -> None:
        """Hold `layer` no more; it and what only it needed is deleted. Idempotent."""
        with self._changing:
            self._tops.discard(layer)
            self.sweep()

    def chain(self, layer: LayerId) -> tuple[tuple[Path, Literal["raw", "qcow2"]], ...]:
        """Return the files of a disk with their formats, topmost first.

        Raises:
            LayerBroken: one is missing or damaged.
        """
        path, files = self.path(layer), list[tuple[Path, Literal["raw", "qcow2"]]]()
        while True:
            if not path.exists():
                raise LayerBroken(f"disk layer {path.name} is missing", layer=layer)
            if path.suffix != _SUFFIX:
                return (*files, (path, "raw"))
            files.append((path, "qcow2"))
            path = self._backing(path)

    def base(self, layer: LayerId) -> Path:
        """Return the formatted, empty file at the bottom of the chain of `layer`."""
        return self.chain(layer)[-1][0]

    def sweep(self) -> list[Path]:
        """Delete what nobody holds; returns the files deleted."""
        with self._changing:
            needed = {path for top in self._tops if self.path(top).exists() for path, _ in self.chain(top)}
            gone = [path for path in self._files() if path not in needed]
            for path in gone:
                path.unlink()
        return gone

    def statistics(self) -> dict[str, int]:
        """Return counts: `held` tops and `files`."""
        return {"held": len(self._tops), "files": len(list(self._files()))}

    def _files(self) -> Iterable[Path]:
        return self._folder.glob(f"*{_SUFFIX}")

    def _backing(self, path: Path) -> Path:
        try:
            backing = read_backing(path)
        except (ValueError, OSError) as error:
            raise LayerBroken(f"disk layer {path.name} is damaged") from error
        if backing is None:
            raise LayerBroken(f"disk layer {path.name} names no backing")
        return backing

    def _create_on(self, backing: Path, form: Literal["raw", "qcow2"], size_bytes: int) -> LayerId:
        layer = LayerId(mint_id())
        with self._changing:
            try:
                create_qcow2(self.path(layer), size_bytes, backing, form)
            except OSError as error:
                self.path(layer).unlink(missing_ok=True)
                raise LayerBroken(f"no disk layer can be written: {error.strerror}") from error
            self._tops.add(layer)
        return layer

    def _base(self, size_bytes: int) -> Path:
        base = self._folder / f"{_BASE_PREFIX}{size_bytes}.raw"
        with self._formatting:
            if not base.exists():
                self._format(base, size_bytes)
        return base

    def _format(self, base: Path, size_bytes: int) -> None:
        part = base.with_suffix(".part")
        part.unlink(missing_ok=True)
        with part.open("wb") as file:
            file.truncate(size_bytes)
        # No lazy initialisation: a guest would do it in the background, at a guest's price.
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        command: list[str | Path] = [
            "mkfs.ext4",
            "-q",
            "-F",
            "-m",
            "0",
            "-O",
            "^resize_inode",
            "-E",
            options,
            part,
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            part.unlink(missing_ok=True)
            raise LayerBroken(f"mkfs.ext4 failed: {done.stdout.strip()}")
        part.rename(base)

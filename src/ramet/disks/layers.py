"""The layers that instances write to, and who still needs which.

```
ext4-<bytes>.raw  <-  <layer>.qcow2  <-  <layer>.qcow2     (top: written by one running instance)
                                     <-  <layer>.qcow2     (top of a child)
```

A live fork freezes its source's top layer and puts a new one above it; children get tops of their own on the
frozen one. A layer names its backing in its own header, so the chain needs no record beside the files. A
layer is *held* while it is some instance's top, or *pinned* as somebody's restore point, or below such a one;
the rest is deleted.

Layers of a VMM that knows raw disks only are `<layer>.raw`, each a whole disk or still empty
(`ramet.disks.raw_layers`). A layer has the form of that below it, unless another is asked for.

Where one that is needed is damaged, nobody can tell any more what it stands on, and
nothing is deleted until it can tell again.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import structlog

from ramet.core.errors import Broken, Unsupported
from ramet.core.ids import LayerId, mint_id
from ramet.disks.qcow2 import create_qcow2, read_backing
from ramet.disks.raw_layers import (
    BELOW_SUFFIX,
    RAW_SUFFIX,
    RawWriter,
    create_raw,
    forget_below,
    is_whole,
    read_below,
)
from ramet.disks.whole_disk import DiskReader, DiskWriter

CHAIN_LENGTH_MAX: Final = 16
"""Layers over the base before a source's chain is drawn together; each costs a lookup on a first read."""

_SUFFIX: Final = ".qcow2"
_BASE_PREFIX: Final = "ext4-"
_PART_SUFFIX: Final = ".part"

Form = Literal["raw", "qcow2"]

_BLOCK_BYTES: Final = 512  # Of st_blocks: stat(2).
_ROOM_REMEDY: Final = "see that the file system of the data folder has space and can be written"

log = structlog.get_logger(__name__)


class LayerBroken(Broken):
    """A layer's file, or one below it, is missing or damaged."""

    code = "disk_layer_broken"


class DiskFormUnsupported(Unsupported):
    """A VMM that knows raw disks only is to go on from a disk of layers."""

    code = "disk_form_unsupported"


class LayerStore:
    """The folder of all layers. For the event loop's thread, but for `ensure_base`.

    Calls are a few small file operations and never look at layers that are not concerned.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tops: set[LayerId] = set()
        self._pins: Counter[LayerId] = Counter()
        self._undeleted: set[LayerId] = set()
        self._damaged: set[LayerId] = set()
        self._backing: dict[LayerId, Path | None] = {}
        """What each layer stands on; None: it is damaged, and cannot tell."""
        self._raw: set[LayerId] = set()
        self._unfilled: set[LayerId] = set()
        """Raw layers that were empty when they were looked at last."""
        self._above: Counter[LayerId] = Counter()
        for path in folder.glob(f"*{_SUFFIX}"):
            try:
                self._backing[self.id_of(path)] = _read_backing(path)
            except LayerBroken as error:  # Of concern only if somebody's disk has it.
                log.warning("damaged_layer_found", error=str(error))
                self._backing[self.id_of(path)] = None
                self._damaged.add(self.id_of(path))
        for path in folder.glob(f"*{RAW_SUFFIX}"):
            if not path.name.startswith(_BASE_PREFIX):
                self._find_raw(path)
        for backing in self._backing.values():
            if backing is not None:
                self._count_above(backing, 1)

    def path(self, layer: LayerId) -> Path:
        return self._folder / f"{layer}{RAW_SUFFIX if layer in self._raw else _SUFFIX}"

    def id_of(self, path: Path) -> LayerId:
        """Return the id of the layer in file `path`."""
        return LayerId(path.name.removesuffix(path.suffix))

    def ensure_base(self, size_bytes: int, behind: Sequence[int] = ()) -> Path:
        """Return the formatted, empty disk of `size_bytes`, making it if there is none (about 20 ms).

        It is larger by what is to be `behind` that: a further empty file system for each of these sizes. May
        be called in any thread, and by several at once.

        Raises:
            LayerBroken: mkfs failed, or the disk is full.
        """
        base = self._base_path(size_bytes, *behind)
        if not base.exists():
            part = base.with_name(f"{base.name}.{mint_id()}{_PART_SUFFIX}")
            try:
                _format(part, (size_bytes, *behind))
                part.rename(base)
            except OSError as error:
                raise LayerBroken(
                    f"no disk can be formatted: {error.strerror}", remedy=_ROOM_REMEDY
                ) from error
            finally:
                with suppress(OSError):  # The next start's sweep finds it.
                    part.unlink(missing_ok=True)
        return base

    def create(self, size_bytes: int, form: Form = "qcow2", behind: Sequence[int] = ()) -> LayerId:
        """Make an empty disk, formatted as `ensure_base` has it, and hold its top.

        Raises:
            LayerBroken: mkfs failed, or the disk is full.
        """
        return self._create_on(self.ensure_base(size_bytes, behind), form, size_bytes + sum(behind))

    def create_on(
        self, backing: LayerId, size_bytes: int, layer: LayerId | None = None, form: Form | None = None
    ) -> LayerId:
        """Make an empty layer on `backing`, which need not be frozen yet, and hold it; `layer` names it.

        Args:
            form: its form; without, that of `backing`.

        Raises:
            LayerBroken: the disk is full.
            DiskFormUnsupported: it is to be raw, and `backing` is not.
        """
        form = form or ("raw" if backing in self._raw else "qcow2")
        if form == "raw" and backing not in self._raw:
            raise DiskFormUnsupported(
                "this disk is made of qcow2 layers, and the hypervisor asked for knows raw disks only",
                remedy="leave the hypervisor as it was",
                layer=backing,
            )
        return self._create_on(self._whole(backing), form, size_bytes, layer)

    @contextmanager
    def reader(self, layer: LayerId) -> Iterator[DiskReader]:
        """Open a whole disk that does not change, to read it inside.

        Raises:
            LayerBroken: a layer is missing or damaged.
        """
        try:
            reader = DiskReader(self.chain(layer))
        except (OSError, ValueError) as error:
            raise LayerBroken(f"the disk {layer} cannot be read: {error}", layer=layer) from error
        try:
            yield reader
        finally:
            reader.close()

    @contextmanager
    def draft(self, size_bytes: int, form: Form | None = None) -> Iterator["LayerDraft"]:
        """Make a layer inside that holds a whole disk; uncommitted, it is dropped.

        Raises:
            LayerBroken: the disk is full.
        """
        layer = LayerId(mint_id())
        part, base = self.path(layer).with_suffix(_PART_SUFFIX), self._base_path(size_bytes)
        try:
            is_raw = form == "raw"
            writer = RawWriter(part, size_bytes) if is_raw else DiskWriter(part, size_bytes, base)
            draft = LayerDraft(self, layer, size_bytes, form or "qcow2", writer)
        except OSError as error:
            with suppress(OSError):  # The next start's sweep finds it.
                part.unlink(missing_ok=True)
            raise _unwritable(error) from error
        try:
            yield draft
        finally:
            draft.writer.close()
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def adopt(self, draft: "LayerDraft") -> None:
        """Hold the layer of a finished draft as a top, from here on; its base is there.

        Raises:
            LayerBroken: the disk is failing.
        """
        if draft.form == "raw":
            self._raw.add(draft.id)
        path = self.path(draft.id)
        try:
            path.with_suffix(_PART_SUFFIX).rename(path)
        except OSError as error:
            raise _unwritable(error) from error
        self._tops.add(draft.id)
        self._backing[draft.id] = self._base_path(draft.size_bytes)

    def hold(self, layer: LayerId) -> None:
        """Hold a layer that a stored record names as its top.

        Raises:
            LayerBroken: its chain is not whole. What there is of it is held, until it is released.
        """
        self._tops.add(layer)
        self.chain(layer)

    def release(self, layer: LayerId) -> None:
        """Hold `layer` no more; it and what only it needed is deleted. Idempotent.

        A file that cannot be deleted is tried again whenever something is released.
        """
        self._tops.discard(layer)
        self._settle()
        for unneeded in (layer, *tuple(self._undeleted)):
            self._delete_unneeded(unneeded)

    def pin(self, layer: LayerId) -> None:
        """Keep a frozen layer, once more, whoever else holds it.

        Raises:
            LayerBroken: its chain is not whole. What there is of it is pinned, until it is unpinned.
        """
        self._pins[layer] += 1
        self.chain(layer)

    def unpin(self, layer: LayerId) -> None:
        """Take one pin of `layer` back; without any, what nobody needs of it is deleted."""
        assert self._pins[layer], f"{layer} is not pinned"
        self._pins[layer] -= 1
        if not self._pins[layer]:
            del self._pins[layer]
            self._settle()
            self._delete_unneeded(layer)

    def rebased(self, layer: LayerId) -> None:
        """Learn that the backing of `layer` is another now, and delete what was only needed under it."""
        if layer in self._raw:  # It never stood on anything for long.
            self._settle()
            return
        former, now = self._backing[layer], _read_backing(self.path(layer))
        self._backing[layer] = now
        self._count_above(now, 1)
        if former is not None:
            self._count_above(former, -1)
            self._delete_unneeded(self.id_of(former))

    def chain(self, layer: LayerId) -> tuple[tuple[Path, Form], ...]:
        """Return the files of a disk with their formats, topmost first.

        Of a raw layer it is that alone if it is whole, or it and the whole disk that it is to be a copy of.

        Raises:
            LayerBroken: one is missing or damaged.
        """
        path, files = self.path(layer), list[tuple[Path, Form]]()
        while True:
            if not os.path.exists(path):
                raise LayerBroken(f"disk layer {path.name} is missing", layer=layer)
            if path.suffix == _SUFFIX:
                files.append((path, "qcow2"))
            elif self._is_base(path) or is_whole(path):
                return (*files, (path, "raw"))
            elif not files:  # Of several that are empty the topmost alone will ever be written.
                files.append((path, "raw"))
            path = self._backing_of(self.id_of(path))

    def disk_bytes(self, layer: LayerId) -> int:
        """Return how many bytes the layers of a disk take on the host's; the base, which all share, aside.

        Raises:
            LayerBroken: one is missing or damaged.
        """
        blocks = sum(path.stat().st_blocks for path, _ in self.chain(layer) if not self._is_base(path))
        return blocks * _BLOCK_BYTES

    def is_directly_on(self, layer: LayerId, backing: LayerId) -> bool:
        """Tell whether `layer` exists and has `backing` right below it."""
        return self._backing.get(layer) == self.path(backing)

    def base(self, layer: LayerId) -> Path:
        """Return the raw file at the bottom of the chain of `layer`."""
        return self.chain(layer)[-1][0]

    def sweep(self) -> list[Path]:
        """Delete what nobody holds, such as a crash left it; returns the files deleted."""
        self._settle()
        before = set(self._backing)
        files = {layer: self.path(layer) for layer in before}
        if not self._is_told_by_all():
            log.warning("layers_not_swept")  # Tried again with the next that is deleted.
        for layer in before:
            self._delete_unneeded(layer)
        parts = list(self._folder.glob(f"*{_PART_SUFFIX}"))
        for part in parts:
            part.unlink(missing_ok=True)
        for link in self._folder.glob(f"*{BELOW_SUFFIX}"):
            if self.id_of(link) not in self._backing:
                link.unlink(missing_ok=True)
        return sorted(files[layer] for layer in before - self._backing.keys()) + parts

    def statistics(self) -> dict[str, int]:
        """Return counts: `held` tops, `files`, and those of these that could not be deleted: `undeleted`."""
        return {"held": len(self._tops), "files": len(self._backing), "undeleted": len(self._undeleted)}

    def _base_path(self, *part_bytes: int) -> Path:
        return self._folder / f"{_BASE_PREFIX}{'-'.join(map(str, part_bytes))}.raw"

    def _delete_unneeded(self, layer: LayerId) -> None:
        """Delete `layer` if nobody needs it, then what it stood on, and so on down."""
        while layer in self._backing and not self._is_needed(layer):
            if not self._is_told_by_all():
                self._undeleted.add(layer)
                return
            try:
                self.path(layer).unlink(missing_ok=True)
            except OSError as error:
                if layer not in self._undeleted:
                    log.warning("layer_not_deleted", layer=layer, error=str(error))
                self._undeleted.add(layer)
                return
            self._undeleted.discard(layer)
            if layer in self._raw:
                forget_below(self.path(layer))
                self._raw.discard(layer)
                self._unfilled.discard(layer)
            backing = self._backing.pop(layer)
            del self._above[layer]
            if backing is None:
                self._damaged.discard(layer)
                return
            self._count_above(backing, -1)
            layer = self.id_of(backing)

    def _is_told_by_all(self) -> bool:
        """Tell whether every layer that is needed can say what it needs itself."""
        return not any(self._is_needed(layer) for layer in self._damaged)

    def _is_needed(self, layer: LayerId) -> bool:
        return layer in self._tops or self._pins[layer] > 0 or self._above[layer] > 0

    def _backing_of(self, layer: LayerId) -> Path:
        backing = self._backing.get(layer)
        if backing is None:
            # Asked again where it is damaged: it may have been repaired, or the error tells why.
            path = self.path(layer)
            read = _read_raw_backing if layer in self._raw else _read_backing
            backing = self._backing[layer] = read(path)
            self._damaged.discard(layer)
            self._count_above(backing, 1)
        return backing

    def _count_above(self, backing: Path, change: int) -> None:
        if not self._is_base(backing):
            self._above[self.id_of(backing)] += change
            if change > 0:
                self._undeleted.discard(self.id_of(backing))

    def _is_base(self, path: Path) -> bool:
        return path.name.startswith(_BASE_PREFIX)

    def _whole(self, layer: LayerId) -> Path:
        """Return `layer`, or where it is empty the whole disk that it is to be a copy of."""
        return self.chain(layer)[-1][0] if layer in self._raw else self.path(layer)

    def _find_raw(self, path: Path) -> None:
        """Learn of a raw layer that is there."""
        layer = self.id_of(path)
        self._raw.add(layer)
        try:
            self._backing[layer] = _read_raw_backing(path)
            self._unfilled.add(layer)
        except LayerBroken as error:
            if is_whole(path):
                self._backing[layer] = self._base_path(path.stat().st_size)
            else:
                log.warning("damaged_layer_found", error=str(error))
                self._backing[layer] = None
                self._damaged.add(layer)

    def _settle(self) -> None:
        """Have raw layers that have become whole stand on nothing; delete what only they needed."""
        for layer in tuple(self._unfilled):
            path = self.path(layer)
            if layer not in self._raw or not is_whole(path):
                continue
            self._unfilled.discard(layer)
            former = self._backing[layer]
            forget_below(path)
            # Where it came from at last, which no layer is.
            self._backing[layer] = self._base_path(path.stat().st_size)
            if former is not None:
                self._count_above(former, -1)
                self._delete_unneeded(self.id_of(former))

    def _create_on(self, backing: Path, form: Form, size_bytes: int, layer: LayerId | None = None) -> LayerId:
        layer = layer or LayerId(mint_id())
        part = self.path(layer).with_suffix(_PART_SUFFIX)
        try:
            if form == "raw":
                create_raw(part.with_suffix(RAW_SUFFIX), backing)
                self._raw.add(layer)
                self._unfilled.add(layer)
            else:
                create_qcow2(part, size_bytes, backing, "raw" if backing.suffix == RAW_SUFFIX else "qcow2")
                part.rename(self.path(layer))
        except OSError as error:
            with suppress(OSError):  # The next start's sweep finds it.
                part.unlink(missing_ok=True)
            raise _unwritable(error) from error
        self._tops.add(layer)
        self._backing[layer] = backing
        self._count_above(backing, 1)
        return layer


class LayerDraft:
    """A whole disk that is being written, to be a layer of `store`. Its methods may be called in a thread."""

    def __init__(
        self,
        store: LayerStore,
        layer: LayerId,
        size_bytes: int,
        form: Form,
        writer: DiskWriter | RawWriter,
    ) -> None:
        self.id, self.size_bytes, self.form, self.writer = layer, size_bytes, form, writer
        self._store = store

    def write(self, offset: int, data: bytes) -> None:
        """Write whole clusters, or up to the end of the disk, that were not written yet.

        Raises:
            LayerBroken: the disk is full.
        """
        try:
            self.writer.write(offset, data)
        except OSError as error:
            raise _unwritable(error) from error

    def finish(self) -> None:
        """Have all of it durable, and its base there. It is a layer when the store has adopted it.

        Raises:
            LayerBroken: the disk is full, or failing.
        """
        self._store.ensure_base(self.size_bytes)
        try:
            self.writer.finish()
        except OSError as error:
            raise _unwritable(error) from error


def _unwritable(error: OSError) -> LayerBroken:
    return LayerBroken(f"no disk layer can be written: {error.strerror}", remedy=_ROOM_REMEDY)


def _read_backing(path: Path) -> Path:
    try:
        backing = read_backing(path)
    except (ValueError, OSError) as error:
        raise LayerBroken(f"disk layer {path.name} is damaged: {error}") from error
    if backing is None:
        raise LayerBroken(f"disk layer {path.name} names no backing")
    return backing


def _read_raw_backing(path: Path) -> Path:
    below = read_below(path)
    if below is None:
        raise LayerBroken(f"disk layer {path.name} is empty, and names nothing to be a copy of")
    return below


def _format(path: Path, part_bytes: Sequence[int]) -> None:
    """Make a sparse file with an empty ext4 in each of its parts."""
    with path.open("wb") as file:
        file.truncate(sum(part_bytes))
    offset = 0
    for size_bytes in part_bytes:
        _format_part(path, offset, size_bytes)
        offset += size_bytes


def _format_part(path: Path, offset: int, size_bytes: int) -> None:
    # No lazy initialisation: a guest would do it in the background, at a guest's price.
    options = f"lazy_itable_init=0,lazy_journal_init=0,nodiscard,offset={offset}"
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
        path,
        f"{size_bytes >> 10}k",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise LayerBroken(f"mkfs.ext4 failed: {' '.join(done.stdout.split())}", remedy=_ROOM_REMEDY)

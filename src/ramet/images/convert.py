"""From a selected manifest to a folder holding its files: every layer verified, then applied.

Both digests of a layer count: the blob's own, which the manifest promises, and that of its uncompressed
stream, which the config promises. An image whose two documents disagree is refused.
"""

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ramet.images.archive import Archive
from ramet.images.blobs import CHUNK_BYTES, HashedReader, open_decompressed, open_verified
from ramet.images.documents import Descriptor
from ramet.images.errors import DigestMismatch, ImageSourceNotFound, ImageTooLarge, LayerCorrupt
from ramet.images.layout import LayoutFolder
from ramet.images.limits import ImageLimits
from ramet.images.reference import Digest
from ramet.images.source import Selection, Source
from ramet.images.unpack import Staging, Unpacked

PROGRESS_STEP_BYTES: Final = 4 << 20


class Phase(StrEnum):
    """What an import is doing."""

    UNPACKING = "unpacking"
    CONVERTING = "converting"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is.

    Attributes:
        layer_count: layers in the image.
        layer_index: the layer being unpacked, from 0; equals `layer_count` afterwards.
        done_bytes: of the layers' blobs, as stored.
        total_bytes: of all layers' blobs.
    """

    phase: Phase
    layer_index: int
    layer_count: int
    done_bytes: int
    total_bytes: int


def open_source(path: Path, scratch: Path, limits: ImageLimits, check: Callable[[], None]) -> Source:
    """Return the images at `path`: an OCI layout folder, an OCI archive or one of docker save. Blocks.

    Raises:
        ImageSourceNotFound: there is nothing.
        NotAnImage: it is something else.
    """
    if not path.exists():
        raise ImageSourceNotFound(f"There is nothing at {path}")
    if path.is_dir():
        return LayoutFolder(path, limits)
    return Archive(path, scratch, limits, check)


def unpack(
    source: Source,
    selection: Selection,
    folder: Path,
    limits: ImageLimits,
    check: Callable[[], None],
    progress: Callable[[ImportProgress], None],
) -> Unpacked:
    """Apply all layers of `selection` to the empty `folder`. Blocks.

    Raises:
        DigestMismatch: a layer is not what the manifest or the config promises.
        LayerCorrupt, UnsafePath, ImageTooLarge, StorageFull, ConversionFailed: see `Staging.add_layer`.
    """
    layers = selection.manifest.layers
    total_bytes = sum(layer.size_bytes for layer in layers)
    done_bytes = itertools.accumulate((layer.size_bytes for layer in layers), initial=0)
    with Staging(folder, limits, check) as staging:
        for index, (layer, diff_id, before_bytes) in enumerate(
            zip(layers, selection.document.diff_ids, done_bytes, strict=False)
        ):
            report = _Steps(
                lambda count, index=index, before_bytes=before_bytes: progress(  # type: ignore[misc]
                    ImportProgress(Phase.UNPACKING, index, len(layers), before_bytes + count, total_bytes)
                ),
                check,
            )
            _add_layer(source, layer, diff_id, staging, limits, report)
        return staging.finish()


class _Steps:
    """Adds up what was read, and reports it now and then."""

    def __init__(self, report: Callable[[int], None], check: Callable[[], None]) -> None:
        self._report = report
        self._check = check
        self._done_bytes = 0
        self._reported_bytes = 0
        report(0)

    def __call__(self, count: int) -> None:
        self._check()
        self._done_bytes += count
        if self._done_bytes - self._reported_bytes >= PROGRESS_STEP_BYTES:
            self._reported_bytes = self._done_bytes
            self._report(self._done_bytes)


def _add_layer(
    source: Source,
    layer: Descriptor,
    diff_id: Digest,
    staging: Staging,
    limits: ImageLimits,
    on_bytes: Callable[[int], None],
) -> None:
    with source.open_blob(layer) as file:
        blob = open_verified(file, layer, on_bytes)
        plain = HashedReader(
            open_decompressed(io.BufferedReader(blob, CHUNK_BYTES)),
            diff_id,
            limits.layer_bytes_max,
            lambda: ImageTooLarge(
                f"The layer {layer.digest} uncompresses to more than {limits.layer_bytes_max} bytes",
                layer_bytes_max=limits.layer_bytes_max,
            ),
        )
        try:
            staging.add_layer(io.BufferedReader(plain, CHUNK_BYTES))
            plain.drain()
        except LayerCorrupt as error:
            # Most often the bytes were damaged on their way; then that is the better answer.
            blob.drain()
            try:
                blob.verify()
            except DigestMismatch as mismatch:
                raise mismatch from error
            raise
        blob.drain()
        blob.verify()
        plain.verify()

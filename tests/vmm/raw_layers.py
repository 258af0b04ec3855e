"""Layers for a VMM that knows raw disks only: each is a whole disk, and made of another by copying it.

A new layer is empty until its driver has made it a copy, which can be after the VMM was started: of the one
below it, which its chain names.
"""

from pathlib import Path
from typing import Literal

from ramet.core.ids import LayerId, mint_id
from ramet.disks.layers import LayerStore


class RawLayerStore(LayerStore):
    """A folder of raw layers, with as much of `LayerStore` as a bench needs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._raw_folder = folder
        self._below: dict[LayerId, Path] = {}

    def path(self, layer: LayerId) -> Path:
        return self._raw_folder / f"{layer}.raw"

    def create(self, size_bytes: int) -> LayerId:
        base = self._raw_folder / f"empty-{size_bytes}.raw"
        with base.open("wb") as file:
            file.truncate(size_bytes)
        return self._create_empty(base)

    def create_on(self, backing: LayerId, size_bytes: int, layer: LayerId | None = None) -> LayerId:
        return self._create_empty(self.path(backing), layer)

    def release(self, layer: LayerId) -> None:
        self.path(layer).unlink()
        del self._below[layer]

    def chain(self, layer: LayerId) -> tuple[tuple[Path, Literal["raw", "qcow2"]], ...]:
        return (self.path(layer), "raw"), (self._below[layer], "raw")

    def rebased(self, layer: LayerId) -> None:
        assert self.path(layer).stat().st_size, "a layer that is whole needs none"

    def _create_empty(self, below: Path, layer: LayerId | None = None) -> LayerId:
        layer = layer or LayerId(mint_id())
        self.path(layer).touch(exist_ok=False)
        self._below[layer] = below
        return layer

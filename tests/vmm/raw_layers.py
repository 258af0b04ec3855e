"""A store of layers for a VMM that knows raw disks only."""

from collections.abc import Sequence

from ramet.core.ids import LayerId
from ramet.disks.layers import Form, LayerStore


class RawLayerStore(LayerStore):
    """Makes raw disks where nobody says otherwise."""

    def create(self, size_bytes: int, form: Form = "raw", behind: Sequence[int] = ()) -> LayerId:
        return super().create(size_bytes, form, behind)

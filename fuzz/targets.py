"""What is fuzzed, each a function from bytes to nothing that fails when a promise is broken.

A target knows nothing of the fuzzer: the suite replays corpora through it, `./run fuzz` drives it with
coverage, and a finding is one file that either can read. Errors a parser promises are swallowed here and
nowhere else; whatever else comes out is a finding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuzz import catalog, copies, guest, http, images, registry, settings, wire

CORPORA: Final = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Target:
    """One fuzz target.

    Attributes:
        run: takes the input; raises if a promise is broken.
        modules: what is measured for coverage.
        input_bytes_max: longer inputs find nothing that shorter ones do not.
    """

    name: str
    run: Callable[[bytes], None]
    modules: tuple[str, ...]
    input_bytes_max: int = 4096

    @property
    def corpus(self) -> Path:
        """The folder of the committed seeds."""
        return CORPORA / self.name

    def seeds(self) -> list[bytes]:
        """Return the committed inputs, in the order of their names."""
        return [file.read_bytes() for file in sorted(self.corpus.iterdir())]


_ALL: Final = (
    Target("frames", wire.frames, ("ramet.wire",)),
    Target("messages", wire.messages, ("ramet.wire",)),
    Target("boot_config", wire.boot_config, ("ramet.wire",)),
    Target("channel", guest.channel, ("ramet.wire", "ramet.guest")),
    Target("layer", images.layer, ("ramet.images", "tarfile"), 16_384),
    Target("archive", images.archive, ("ramet.images", "tarfile"), 16_384),
    Target("copied", copies.copied, ("ramet.wire_api.tar", "ramet.client.unpack"), 16_384),
    Target("documents", images.documents, ("ramet.images",)),
    Target("reference", images.reference, ("ramet.images.reference",), 512),
    Target("registry", registry.registry, ("ramet.images.registry",)),
    Target("catalog", catalog.catalog, ("ramet.images", "ramet.core")),
    Target("http1", http.http1, ("ramet.client.http1",)),
    Target("exec_messages", http.exec_messages, ("ramet.api", "ramet.wire_api")),
    Target("codec", http.codec, ("ramet.wire_api",)),
    Target("settings", settings.settings, ("ramet.daemon.config", "ramet.core.units")),
    Target("units", settings.units, ("ramet.core.units",), 512),
)

TARGETS: Final[Mapping[str, Target]] = {target.name: target for target in _ALL}

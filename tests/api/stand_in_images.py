"""A catalog that lives in memory, and a registry that it pulls from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ramet.core.errors import RametError
from ramet.images import (
    LINUX_AMD64,
    Credentials,
    Digest,
    Image,
    ImageConfig,
    ImportProgress,
    Platform,
    PullStatus,
    PullView,
    Reference,
    parse_reference,
)
from ramet.images.errors import (
    ImageInUse,
    ImageNotFound,
    ImageSourceNotFound,
    InvalidReference,
    NotInRegistry,
)


def image(name: str, tags: tuple[str, ...], command: tuple[str, ...] = ("/bin/sh",)) -> Image:
    """Return an image that is not there on disk."""
    config = ImageConfig(
        entrypoint=(),
        cmd=command,
        env=("PATH=/bin", "EMPTY="),
        working_dir="/srv",
        user="",
        exposed_ports=(),
        labels={},
        stop_signal="",
        volumes=(),
        os="linux",
        architecture="amd64",
        variant="",
        created="",
    )
    digest = Digest("sha256:" + f"{len(name):02x}" * 32)
    created = datetime(2026, 1, 2, tzinfo=UTC)
    return Image(name, digest, 4096, config, LINUX_AMD64, created, Path("/nowhere"), tags)


def failed_pull(name: str, created_at: datetime) -> PullView:
    """Return a pull of `name` that was asked for at `created_at` and failed."""
    error = NotInRegistry(f"there is no {name}", remedy="check the name")
    reference = parse_reference(name)
    return PullView(reference, LINUX_AMD64, PullStatus.FAILED, None, None, error, created_at, {}, 0, 0, 0, 0)


@dataclass
class StandInCatalog:
    """Images in memory, by name."""

    images: dict[str, Image] = field(default_factory=dict)
    pulls: "StandInPulls" = field(init=False)
    imported: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pulls = StandInPulls(self)

    def put(self, name: str, command: tuple[str, ...] = ("/bin/sh",)) -> Image:
        self.images[name] = image(name, (name,), command)
        return self.images[name]

    async def import_path(
        self,
        path: Path,
        *,
        name: str | None = None,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> Image:
        if not path.exists():
            raise ImageSourceNotFound(f"there is nothing at {path}")
        self.imported.append(path)
        return self.put(name or f"docker.io/library/{path.stem}:latest")

    def resolve(self, ref: str) -> Image:
        for name, found in self.images.items():
            if ref in (name, found.digest, f"{name}@{found.digest}"):
                return found
        raise ImageNotFound(f"There is no image {ref!r}", remedy="ramet image list", ref=ref)

    def list(self) -> Sequence[Image]:
        return list(self.images.values())

    async def tag(self, ref: str, name: str) -> Image:
        target = parse_reference(name)
        if target.digest is not None:
            raise InvalidReference(f"{name} names a digest")
        self.images[target.name] = replace(self.resolve(ref), name=target.name)
        return self.images[target.name]

    async def remove(self, ref: str, *, in_use: Callable[[Digest], bool]) -> None:
        found = self.resolve(ref)
        if in_use(found.digest):
            raise ImageInUse(f"{ref} is used", remedy="remove the instances first")
        del self.images[found.name]


@dataclass
class StandInPulls:
    """A registry that has what `offered` names; `asked` is every pull's name and credentials.

    With a `failure` it fails at everything. A pull takes the `stages`, one for each look at it, before its
    image is there; one with an error is the last. The `failed` are listed.
    """

    catalog: StandInCatalog
    failure: RametError | None = None
    offered: set[str] = field(default_factory=set)
    asked: list[tuple[str, Credentials | None]] = field(default_factory=list)
    stages: list[PullView] = field(default_factory=list)
    failed: list[PullView] = field(default_factory=list)
    _under_way: Reference | None = None

    async def start(
        self,
        reference: Reference,
        *,
        platform: Platform | None = None,
        credentials: Credentials | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> PullView:
        self.asked.append((str(reference), credentials))
        if self.stages:
            self._under_way = reference
            return self.stages.pop(0)
        found = await self.fetch(reference)
        return PullView(
            reference,
            platform or LINUX_AMD64,
            PullStatus.READY,
            found.digest,
            None,
            None,
            found.created_at,
            labels or {},
            1,
            1,
            10,
            10,
        )

    async def fetch(self, reference: Reference) -> Image:
        if self.failure is not None:
            raise self.failure
        if reference.name not in self.offered:
            raise NotInRegistry(f"{reference.registry} has no {reference}", remedy="check the name")
        return self.catalog.put(reference.name)

    def find(self, ref: str) -> PullView | None:
        if self._under_way is None or ref.partition("@")[0] != str(self._under_way):
            return None
        if self.stages:
            return self.stages.pop(0)
        self.catalog.put(self._under_way.name)
        self._under_way = None
        return None

    def list(self) -> Sequence[PullView]:
        return self.failed

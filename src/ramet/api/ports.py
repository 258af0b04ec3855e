"""What the API needs of the fleet and of the images; the daemon passes the real ones, tests a stand-in."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from ramet.core.spec import InstanceSpec, State
from ramet.images import Digest, Image, ImportProgress
from ramet.instance.fleet_types import ExecCommand, ExecSession, ForkOutcome, InstanceView, WaitOutcome

LogSource = Literal["app", "vmm", "hypeman"]


class FleetPort(Protocol):
    """All instances. `ref` is a name, an id or a unique beginning of an id."""

    def get(self, ref: str) -> InstanceView:
        """Return one instance.

        Raises:
            InstanceNotFound, InstanceAmbiguous: as they say; so does every other method with a `ref`.
        """
        ...

    def list(self) -> Sequence[InstanceView]: ...

    async def create(self, name: str, spec: InstanceSpec) -> InstanceView: ...

    async def stop(self, ref: str) -> InstanceView: ...

    async def delete(self, ref: str) -> None: ...

    async def wait(self, ref: str, state: State, timeout_s: float) -> WaitOutcome: ...

    async def fork(self, ref: str, names: Sequence[str]) -> Sequence[ForkOutcome]:
        """Fork a running instance, one child per name, in their order; raises only if none could be made."""
        ...

    async def open_exec(self, ref: str, command: ExecCommand) -> ExecSession: ...

    def logs(self, ref: str, *, source: LogSource, tail: int, follow: bool) -> AsyncIterator[str]:
        """Yield the last `tail` lines, then, if `follow`, each new one."""
        ...


class CatalogPort(Protocol):
    """All images."""

    async def import_path(
        self,
        path: Path,
        *,
        name: str | None = None,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> Image: ...

    def resolve(self, ref: str) -> Image: ...

    def list(self) -> Sequence[Image]: ...

    async def remove(self, ref: str, *, in_use: Callable[[Digest], bool]) -> None: ...

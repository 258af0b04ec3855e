"""The steps of an operation, found in the code and listed by nobody.

A step is a call of a public function of a package that touches the host, made by another module; or the end
of a context that such a call opened, which is where a transaction is committed and a guest goes on. So a step
added tomorrow is one of them. Tests that kill a process at every step first let it take them all, and have
them told.
"""

import functools
import importlib
import inspect
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import _AsyncGeneratorContextManager, _GeneratorContextManager
from types import FunctionType, ModuleType
from typing import Any, Final

HOST: Final = (
    "ramet.disks",
    "ramet.effects.folder",
    "ramet.guest",
    "ramet.linux",
    "ramet.net",
    "ramet.snapshots.catalog",
    "ramet.snapshots.schedules",
    "ramet.snapshots.store",
    "ramet.store",
    "ramet.vmm",
    "ramet.volumes",
)
ONLY_LOOKING: Final = frozenset(
    {
        "Capture.demand_format",
        "CaptureStore.manifest",
        "Channel.judging",
        "DataFolder.instance",
        "FakeVm.wait_exited",
        "HeldProcess.wait_exited",
        "LayerStore.chain",
        "LayerStore.disk_bytes",
        "LayerStore.id_of",
        "LayerStore.path",
        "EventSocket.fileno",
        "LinkRemovals.read",
        "Network.degraded",
        "Network.endpoint",
        "RateLimits.or_else",
        "ShapingQueue.degraded",
        "SnapshotCatalog.get",
        "base_of",
        "SnapshotCatalog.list",
        "SlotPool.endpoint",
        "Vm.unless_starved",
        "Vm.when_starved",
        "VolumeCatalog.disk_of",
        "VolumeCatalog.folder_of",
        "VolumeCatalog.get",
        "VolumeCatalog.list",
        "interface_exists",
        "interface_index",
        "is_clean",
        "list_command_lines",
        "node_name",
        "pack_memory",
        "read_start_ticks",
        "shaping_requests",
    }
)
"""Calls that change nothing: to die before one of them is to die before what follows it."""
_APART: Final = frozenset(
    {
        "ramet.linux.attributes",  # It packs and unpacks what others send.
        "ramet.vmm.fake.faults",  # What makes calls fail is no part of them.
        "ramet.volumes.attachments",  # What it knows is in memory alone.
    }
)
_EVENT_LOOP: Final = "asyncio."  # What it calls is news, and no step of anybody.

Reached = Callable[[str], None]
"""Called with the step that is about to be taken; from any thread."""


class Steps:
    """Tells the steps taken since `begin`: "LayerStore.create_on 2" is the second call of that."""

    def __init__(self, reached: Reached, not_from: Collection[str]) -> None:
        self._reached, self._not_from = reached, tuple(f"{package}." for package in not_from)
        self._counts: Counter[str] | None = None

    def begin(self) -> None:
        """Tell, and count, from here on."""
        self._counts = Counter()

    def end(self) -> None:
        """Tell no more."""
        self._counts = None

    def take(self, name: str) -> None:
        """Tell a step."""
        if self._counts is not None:
            self._counts[name] += 1
            self._reached(f"{name} {self._counts[name]}")

    def is_step(self, caller: str, module: str) -> bool:
        """Tell whether a call of something in `module` from the module `caller` is a step."""
        return caller != module and not f"{caller}.".startswith((_EVENT_LOOP, *self._not_from))


def watch_steps(reached: Reached, packages: Collection[str] = HOST, not_from: Collection[str] = ()) -> Steps:
    """Have `reached` told the steps of this process, once they are begun. Cannot be undone.

    `not_from`: packages whose own calls are not steps; with `packages`, each of these is one whole.
    """
    steps = Steps(reached, not_from)
    seen = set()
    for module in [module for package in packages for module in _modules(package)]:
        if module.__name__ in _APART:
            continue
        for owner, name, function in list(_public_functions(module)):
            label = name if owner is module else f"{owner.__name__}.{name}"
            seen.add(label)
            if label not in ONLY_LOOKING:
                stepped = _stepped(function, label, steps)
                setattr(owner, name, stepped)
                if owner is module:
                    _replace(function, stepped)
    assert packages is not HOST or seen >= ONLY_LOOKING, f"gone: {ONLY_LOOKING - seen}"
    return steps


def _modules(package: str) -> Iterator[ModuleType]:
    module = importlib.import_module(package)
    yield module
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{package}."):
        yield importlib.import_module(found.name)


def _public_functions(module: ModuleType) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Yield (module or class, name, function) of what is defined in `module`."""
    for name, found in vars(module).items():
        if getattr(found, "__module__", None) != module.__name__ or name.startswith("_"):
            continue
        if isinstance(found, FunctionType):
            yield module, name, found
        elif inspect.isclass(found) and not issubclass(found, BaseException):
            for method, function in vars(found).items():
                is_abstract = getattr(function, "__isabstractmethod__", False)
                if isinstance(function, FunctionType) and not method.startswith("_") and not is_abstract:
                    yield found, method, function


def _replace(original: object, stepped: object) -> None:
    """Put `stepped` wherever a module of ours has the function by name."""
    top = getattr(original, "__module__", "").partition(".")[0]
    for module in list(sys.modules.values()):
        if module.__name__.partition(".")[0] == top:
            for name, found in list(vars(module).items()):
                if found is original:
                    setattr(module, name, stepped)


def _stepped(function: Callable[..., Any], name: str, steps: Steps) -> Callable[..., Any]:
    @functools.wraps(function)
    def stepped(*arguments: Any, **named: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not steps.is_step(caller, function.__module__):
            return function(*arguments, **named)
        steps.take(name)
        result = function(*arguments, **named)
        if isinstance(result, _GeneratorContextManager | _AsyncGeneratorContextManager):
            return _Context(result, f"end of {name}", steps)
        return result

    return stepped


class _Context:
    """A context whose end is a step."""

    def __init__(self, context: Any, name: str, steps: Steps) -> None:
        self._context, self._name, self._steps = context, name, steps

    def __enter__(self) -> Any:
        return self._context.__enter__()

    def __exit__(self, *exception: Any) -> Any:
        self._steps.take(self._name)
        return self._context.__exit__(*exception)

    async def __aenter__(self) -> Any:
        return await self._context.__aenter__()

    async def __aexit__(self, *exception: Any) -> Any:
        self._steps.take(self._name)
        return await self._context.__aexit__(*exception)

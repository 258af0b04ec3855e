"""`ramet serve`: the daemon's life, from settings to the last signal."""

import os
import signal
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus

import ramet
from ramet.api.app import create_app
from ramet.api.auth import TokenAuth
from ramet.api.facts import HostFacts, RuntimeFacts, SizeLimits, runtime_features
from ramet.api.idempotency import KeptAnswers
from ramet.api.parts import Parts
from ramet.api.peers import PeerAuth
from ramet.api.serving import HttpServer
from ramet.core.errors import Broken, Conflict, Invalid
from ramet.daemon.config import Settings, load_settings
from ramet.daemon.garbage import short_searches
from ramet.daemon.wiring import DRIVERS, Running, running
from ramet.instance.held_exec import HeldExecs
from ramet.linux.priority import go_first
from ramet.linux.service import ServiceNotice, ServiceSilent
from ramet.telemetry.tracing import send_spans

STOP_ALL_TIMEOUT_S: Final = 60.0
"""Over what one instance may take to stop, forced at last; all are stopped at once."""

NICENESS: Final = -15
"""Of the event loop: it has little to do, and every guest and every caller waits for it."""

log = structlog.get_logger(__name__)


class SocketInUse(Conflict):
    """Another process serves this socket or port."""

    code = "socket_in_use"


def serve(overrides: dict[str, object]) -> None:
    """Run the daemon until SIGTERM or SIGINT; guests run on. `overrides` are settings from flags.

    Raises:
        RametError: it could not start; nothing was changed.
    """
    file = overrides.pop("config", None)
    settings = load_settings(overrides, Path(str(file)) if file else None)
    _set_up_logging(settings)
    otel = settings.otel
    end_tracing = send_spans(otel.endpoint, otel.service_name) if otel.enabled else None
    try:
        anyio.run(_serve, settings)
    finally:
        if end_tracing is not None:
            end_tracing()


async def _serve(settings: Settings) -> None:
    notice = ServiceNotice.from_environment()
    _go_before_guests()
    users = settings.socket_scopes()
    with (
        bound_unix(settings.socket, for_others=bool(users)) as unix,
        anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
    ):
        tcp = _bind_tcp(settings.listen) if settings.listen else None
        execs = HeldExecs()
        async with (
            running(settings) as parts,
            short_searches(),
            execs.running(),
            anyio.create_task_group() as group,
        ):
            facts = _host_facts(parts, settings)
            served = Parts(
                facts,
                parts.fleet,
                parts.images,
                parts.snapshots,
                parts.volumes,
                parts.resources,
                parts.keepers.idle,
                parts.keepers.schedules,
                parts.keepers.reclaims,
                KeptAnswers(parts.answers),
                execs,
            )
            servers = [HttpServer(create_app(served, auth=PeerAuth(users)), unix)]
            if tcp is not None:
                app = create_app(served, auth=TokenAuth(settings.jwt_secret))
                servers.append(HttpServer(app, tcp))
            for server in servers:
                await group.start(_run_server, server)
            log.info(
                "daemon_started",
                socket=str(settings.socket),
                listen=settings.listen,
                data=str(settings.data_dir),
            )
            _tell(notice, "READY=1")
            async for number in signals:
                _tell(notice, "STOPPING=1")
                log.info("daemon_stopping", signal=number.name)
                for server in servers:
                    server.stop()
                if settings.stop_all:
                    await _stop_all(parts)
                break


def _go_before_guests() -> None:
    try:
        go_first(NICENESS)
    except OSError as error:  # Slower under load; nothing else is lost.
        log.warning("daemon_waits_among_guests", error=str(error))


def _tell(notice: ServiceNotice, text: str) -> None:
    try:
        notice.say(text)
    except ServiceSilent as error:  # Its affair; guests need us all the same.
        log.warning("service_manager_silent", error=str(error))


async def _stop_all(parts: Running) -> None:
    """Stop all instances; gives up on what does not end in time, which runs on."""
    with anyio.move_on_after(STOP_ALL_TIMEOUT_S) as scope:
        await parts.fleet.stop_all()
    if scope.cancelled_caught:
        log.warning("instances_still_run", timeout_s=STOP_ALL_TIMEOUT_S)


async def _run_server(server: HttpServer, *, task_status: TaskStatus[None]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        task_status.started()


def _host_facts(parts: Running, settings: Settings) -> HostFacts:
    network, limits = parts.network, settings.limits
    can_reclaim = settings.hypervisor.memory.reclaim_enabled
    return HostFacts(
        version=ramet.__version__,
        default_hypervisor=parts.default_hypervisor,
        runtimes=tuple(runtimes(parts.drivers, can_reclaim=can_reclaim)),
        gateway=str(network.facts.gateway),
        subnet=str(network.config.subnet),
        limits=SizeLimits(
            limits.max_vcpus_per_instance, limits.max_memory_per_instance, limits.max_overlay_size
        ),
    )


def runtimes(available: Collection[str], *, can_reclaim: bool) -> Iterator[RuntimeFacts]:
    """Yield every hypervisor that there is a driver for, whether this host has what it needs or not."""
    for name, kind in DRIVERS.items():
        features = runtime_features(
            plugs_memory=kind.plugs_memory,
            limits_disks=kind.limits_disks,
            has_balloon=kind.has_balloon and can_reclaim,
            speaks_vsock=kind.speaks_vsock,
        )
        yield RuntimeFacts(name, name in available, features)


@contextmanager
def bound_unix(path: Path, *, for_others: bool) -> Iterator[socket.socket]:
    """Listen on the unix socket of the API, for root alone or for everybody; gone with the daemon."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _is_served(path):
        raise SocketInUse(f"a daemon serves {path} already", remedy="stop it, or choose another --socket")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    former = os.umask(0o111 if for_others else 0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise Broken(f"{path} cannot be bound: {error}", remedy="choose another --socket") from error
    finally:
        os.umask(former)
    try:
        yield listener
    finally:
        path.unlink(missing_ok=True)
        listener.close()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _bind_tcp(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal():
        raise Invalid(f"{listen!r} is not HOST:PORT", remedy="write it like 127.0.0.1:4973")
    try:
        return socket.create_server(
            (host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise SocketInUse(
            f"{listen} cannot be listened on: {error.strerror}", remedy="choose another --listen"
        ) from error


def _set_up_logging(settings: Settings) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
            if sys.stderr.isatty()
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )

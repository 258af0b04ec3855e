"""The settings, read once: flags, then environment (`RAMET_...`, `__` for nesting), then a YAML file.

Below the daemon nobody reads the environment or a settings file: each part gets a frozen dataclass.
"""

import os
import stat
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from ramet.admission.capacity import (
    CPU_RATIO,
    DISK_IO_RATIO,
    DISK_RATIO,
    MEMORY_RATIO,
    NETWORK_RATIO,
    CapacityConfig,
)
from ramet.core.compression import Compression
from ramet.core.errors import Invalid
from ramet.core.spec import (
    FORK_POOL_IDLE_S,
    MEMORY_BYTES_MAX,
    MEMORY_BYTES_MIN,
    OVERLAY_BYTES_MAX,
    OVERLAY_BYTES_MIN,
    RATE_BYTES_PER_S_MAX,
    RATE_BYTES_PER_S_MIN,
    VCPU_COUNT_MAX,
)
from ramet.core.units import parse_duration, parse_rate, parse_size
from ramet.daemon.socket_users import SocketUsers, uid_of
from ramet.images.limits import ImageLimits
from ramet.images.reference import is_authority, parse_reference
from ramet.images.registry.config import CACHE_BYTES_MAX, RegistryConfig
from ramet.logs.rotation import LogBounds
from ramet.net.bridge import DNS_DEFAULT, SUBNET_DEFAULT, BridgeConfig
from ramet.net.rates import RateLimits
from ramet.pager.graduation import GraduationConfig
from ramet.policies.checks import MAX_CONCURRENT as HEALTH_MAX_CONCURRENT
from ramet.policies.idle import MAX_CONCURRENT as IDLE_MAX_CONCURRENT
from ramet.policies.idle import IdleConfig
from ramet.policies.reclaim import ReclaimConfig
from ramet.policies.retention import ANY as ANY_IMAGE
from ramet.policies.retention import LayerConfig, RetentionConfig

FILE_BYTES_MAX: Final = 1 << 20
PLACE_LENGTH_MAX: Final = 80
LINE_LENGTH_MAX: Final = 250
LOG_BYTES_MIN: Final = 64 << 10
RATIO_MAX: Final = 10_000.0
MAX_IMAGE_STORAGE: Final = 0.2  # As in the API that we are compatible with.

_BELOW: Final = "/any/any"  # Of one component alone, as in docker.io/any, Docker makes library/any.
_FILE_REMEDY: Final = "name a file of settings with --config, or leave it out; `ramet setup` makes one"


class SettingsInvalid(Invalid):
    """A setting is unknown or has no possible value; the message names it."""

    code = "settings_invalid"
    remedy_default = "docs/daemon.md lists the settings"


def _parse_bytes(value: object) -> object:
    """Return the bytes that a size such as "50MB" stands for; what is none is judged by the model."""
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except Invalid as error:
        raise ValueError(str(error)) from error


def _parse_duration(value: object) -> object:
    """Return the seconds that a duration such as "10m" stands for; what is none is judged by the model."""
    if not isinstance(value, str):
        return value
    try:
        return parse_duration(value)
    except Invalid as error:
        raise ValueError(str(error)) from error


def _parse_rate(value: object) -> object:
    """Return the bytes per second that a rate such as "1Gbps" stands for; what is none is judged later."""
    if not isinstance(value, str):
        return value
    try:
        return parse_rate(value)
    except Invalid as error:
        raise ValueError(str(error)) from error


def _or_auto(parse: Callable[[object], object] = lambda value: value) -> BeforeValidator:
    """Return what reads a value with `parse`, and "auto" as None."""
    return BeforeValidator(lambda value: None if value == "auto" else parse(value))


def _parse_share(value: object) -> object:
    """Return a share such as "0.2" as a number, a size in bytes, and "" as None: no limit."""
    if not isinstance(value, str):
        return value
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        return _parse_bytes(value)


Duration = Annotated[PositiveFloat, BeforeValidator(_parse_duration)]
Rate = Annotated[int, BeforeValidator(_parse_rate), Field(ge=RATE_BYTES_PER_S_MIN, le=RATE_BYTES_PER_S_MAX)]


def _check_registry(text: str) -> str:
    if not is_authority(text):
        raise ValueError("a registry is written as host or host:port, without https://")
    return text


Finite = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DiskShare = Annotated[Finite | None, BeforeValidator(_parse_share)]
"""Up to 1 a share of the disk, beyond that bytes."""
Percent = Annotated[int, Field(ge=0, le=100)]
RegistryHost = Annotated[str, AfterValidator(_check_registry)]


class NetworkSettings(BaseModel, extra="forbid"):
    """The guests' bridge. `allow_host_ports` are those of the gateway that guests may use, as "udp/53".

    `default_download` and `default_upload` limit guests for which no other rate is asked.
    """

    bridge_name: str = "rmtbr0"
    subnet_cidr: IPv4Network = SUBNET_DEFAULT
    uplink_interface: str | None = None
    dns_servers: tuple[IPv4Address, ...] = DNS_DEFAULT
    allow_host_ports: tuple[str, ...] = ()
    tap_prefix: str = "rmt"
    default_download: Rate | None = None
    default_upload: Rate | None = None

    def bridge(self) -> BridgeConfig:
        """Return the part `ramet.net` understands.

        Raises:
            Invalid: a value makes no sense.
        """
        return BridgeConfig(
            name=self.bridge_name,
            subnet=self.subnet_cidr,
            uplink=self.uplink_interface,
            dns=self.dns_servers,
            allow_host_ports=tuple(_parse_port(text) for text in self.allow_host_ports),
            tap_prefix=self.tap_prefix,
            default_limits=RateLimits(self.default_download, self.default_upload),
        )


class RegistrySettings(BaseModel, extra="forbid"):
    """Where images are pulled from: `insecure` registries speak plain HTTP, `mirrors` are asked first.

    All are "host" or "host:port", as in the name of an image; the mirror of Docker Hub is that of docker.io.
    `docker_config` is the folder of Docker's config.json, by default as DOCKER_CONFIG or ~/.docker says;
    `cache_bytes_max` bounds the downloaded layers that are kept for other images.
    """

    insecure: tuple[RegistryHost, ...] = ()
    mirrors: dict[RegistryHost, RegistryHost] = {}
    docker_config: Path | None = None
    cache_bytes_max: NonNegativeInt = CACHE_BYTES_MAX

    def config(self) -> RegistryConfig:
        """Return the part `ramet.images` understands."""
        named = os.environ.get("DOCKER_CONFIG")
        return RegistryConfig(
            insecure=frozenset(self.insecure),
            mirrors=self.mirrors,
            docker_config=self.docker_config or Path(named or Path.home() / ".docker"),
            cache_bytes_max=self.cache_bytes_max,
        )


class LimitSettings(BaseModel, extra="forbid"):
    """What may be had at most.

    `max_image_storage`: what images and downloaded layers take of the disk; `max_total_volume_storage`: how
    large all volumes are together, None: no end.
    """

    max_image_storage: DiskShare = MAX_IMAGE_STORAGE
    max_total_volume_storage: Annotated[
        PositiveInt | None, BeforeValidator(lambda text: None if text == "" else _parse_bytes(text))
    ] = None
    max_vcpus_per_instance: Annotated[int, Field(ge=1, le=VCPU_COUNT_MAX)] = VCPU_COUNT_MAX
    max_memory_per_instance: Annotated[
        int, BeforeValidator(_parse_bytes), Field(ge=MEMORY_BYTES_MIN, le=MEMORY_BYTES_MAX)
    ] = MEMORY_BYTES_MAX
    max_overlay_size: Annotated[
        int, BeforeValidator(_parse_bytes), Field(ge=OVERLAY_BYTES_MIN, le=OVERLAY_BYTES_MAX)
    ] = OVERLAY_BYTES_MAX

    def images(self, disk_bytes: int | None) -> ImageLimits:
        """Return the part `ramet.images` understands; `disk_bytes` are what the disk has; None: no end."""
        most = self.max_image_storage
        if most is not None and most <= 1:
            most = None if disk_bytes is None else most * disk_bytes
        return ImageLimits(storage_bytes_max=None if most is None else int(most))


def _check_repository(text: str) -> str:
    """Return a repository in full; "*" and what ends in "/*" stand for several."""
    if text == ANY_IMAGE:
        return text
    part = text.removesuffix("/*")
    if part == text and ("@" in text or ":" in text.rpartition("/")[2]):
        raise ValueError(f"{text!r} names an image, not a repository")
    below = "" if part == text else _BELOW
    try:
        found = parse_reference(part + below)
    except Invalid as error:
        raise ValueError(str(error)) from error
    full = f"{found.registry}/{found.repository}"
    return f"{full.removesuffix(below)}/*" if below else full


class AutoDeleteSettings(BaseModel, extra="forbid"):
    """Whether images go that nobody has used for `unused_for`: those all of whose names are `allowed`, as
    repositories such as `debian`, `registry.example/team/*`, or `*`.
    """

    enabled: bool = False
    unused_for: Duration = 720 * 3600.0
    allowed: tuple[Annotated[str, AfterValidator(_check_repository)], ...] = ()

    def config(self) -> RetentionConfig | None:
        """Return the part `ramet.policies` understands; None if it is off."""
        return RetentionConfig(self.unused_for, self.allowed) if self.enabled else None


class CacheCollectionSettings(BaseModel, extra="forbid"):
    """Whether and how often downloaded layers go that no pull has used for `min_blob_age`."""

    enabled: bool = False
    interval: Duration = 3600.0
    min_blob_age: Duration = 3600.0

    def config(self) -> LayerConfig | None:
        """Return the part `ramet.policies` understands; None if it is off."""
        return LayerConfig(self.interval, self.min_blob_age) if self.enabled else None


class ImageSettings(BaseModel, extra="forbid"):
    """What goes by itself of images and of the layers they were made of."""

    auto_delete: AutoDeleteSettings = AutoDeleteSettings()
    oci_cache_gc: CacheCollectionSettings = CacheCollectionSettings()


class GraduationSettings(BaseModel, extra="forbid"):
    """Whether and when a guest that the pager serves is given all of its memory and needs it no more."""

    enabled: bool = False
    min_session_age: Duration = 600.0
    max_concurrent: PositiveInt = 1
    scan_interval: Duration = 60.0
    completion_timeout: Duration = 600.0

    def config(self) -> GraduationConfig | None:
        """Return the part `ramet.pager` understands; None if it is off."""
        if not self.enabled:
            return None
        return GraduationConfig(
            min_session_age_s=self.min_session_age,
            max_concurrent=self.max_concurrent,
            scan_interval_s=self.scan_interval,
            completion_timeout_s=self.completion_timeout,
        )


class ActiveBallooningSettings(BaseModel, extra="forbid"):
    """What no guest is asked for, and when the host is short of memory; in percent, and bytes."""

    pressure_high_watermark_available_percent: Percent = 10
    pressure_low_watermark_available_percent: Percent = 15
    protected_floor_percent: Percent = 50
    protected_floor_min_bytes: Annotated[NonNegativeInt, BeforeValidator(_parse_bytes)] = 512 << 20


class MemorySettings(BaseModel, extra="forbid"):
    """Whether guests can be asked to give memory back, and how much."""

    reclaim_enabled: bool = True
    active_ballooning: ActiveBallooningSettings = ActiveBallooningSettings()

    def config(self) -> ReclaimConfig:
        """Return the part `ramet.policies` understands."""
        asked = self.active_ballooning
        return ReclaimConfig(
            is_enabled=self.reclaim_enabled,
            floor_percent=asked.protected_floor_percent,
            floor_bytes_min=asked.protected_floor_min_bytes,
            high_watermark_percent=asked.pressure_high_watermark_available_percent,
            low_watermark_percent=asked.pressure_low_watermark_available_percent,
        )


class HypervisorSettings(BaseModel, extra="forbid"):
    """What runs the guests: `default` for an instance that names none; None: the first that this host has.

    `firecracker_jail`, `cloud_hypervisor_jail`: whether each of its processes is a user of its own that sees
    only its own files. Firecracker's `..._snapshot_memory_backend`: `file` maps a capture's file, `uffd` asks
    the pager where that is quicker. `firecracker_binary_path`: where it is, if not on the path.
    """

    default: Literal["qemu", "qemu-microvm", "firecracker", "cloud-hypervisor"] | None = None
    firecracker_jail: Literal["auto", "on", "off"] = "auto"
    cloud_hypervisor_jail: Literal["auto", "on", "off"] = "auto"
    firecracker_snapshot_memory_backend: Literal["file", "uffd"] = "file"
    firecracker_uffd_cache_max_bytes: Annotated[PositiveInt, BeforeValidator(_parse_bytes)] = 4 << 30
    firecracker_max_concurrent_restores: PositiveInt = 32
    firecracker_uffd_graduation: GraduationSettings = GraduationSettings()
    firecracker_binary_path: Path | None = None
    memory: MemorySettings = MemorySettings()

    @property
    def uses_pager(self) -> bool:
        """Whether the pager is to serve guests, where that is quicker."""
        return self.firecracker_snapshot_memory_backend == "uffd"


class AutoStandbySettings(BaseModel, extra="forbid"):
    """What keeps instances awake that may sleep by themselves, besides connections to them: open execs if
    `busy_exec`, their own connections if `busy_outbound`; and how many are put to sleep at a time. With
    `wake_on_traffic` a TCP connection to one of them wakes it, unless the instance says otherwise.
    """

    busy_exec: bool = True
    busy_outbound: bool = False
    max_concurrent: PositiveInt = IDLE_MAX_CONCURRENT
    wake_on_traffic: bool = False

    def config(self) -> IdleConfig:
        """Return the part `ramet.policies` understands."""
        return IdleConfig(self.busy_exec, self.busy_outbound, self.max_concurrent)


class HealthSettings(BaseModel, extra="forbid"):
    """How health checks share the host: so many instances are asked at a time."""

    max_concurrent: PositiveInt = HEALTH_MAX_CONCURRENT


class ForkSettings(BaseModel, extra="forbid"):
    """How forks share the host: `width` VMMs start, and emulated guests wake, at once; None: one per core.

    A pool of children made ahead is emptied when nobody has forked its source for `pool_idle_s` seconds.
    """

    width: PositiveInt | None = None
    pool_idle_s: PositiveFloat = FORK_POOL_IDLE_S


class CompressionSettings(BaseModel, extra="forbid"):
    """How stored memory is compressed if a request does not say; `level` None: the algorithm's first."""

    enabled: bool = False
    algorithm: str = "zstd"
    level: int | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            Compression.of(self.algorithm, self.level)
        except Invalid as error:
            raise ValueError(str(error)) from error
        return self

    def how(self) -> Compression | None:
        """Return what the daemon understands; None: not at all."""
        return Compression.of(self.algorithm, self.level) if self.enabled else None


class SnapshotSettings(BaseModel, extra="forbid"):
    """How memory is stored, of what sleeps and of snapshots."""

    compression_default: CompressionSettings = CompressionSettings()


class LoggingSettings(BaseModel, extra="forbid"):
    """How much is kept of each log of an instance: rotated at `max_size`, `max_files` older are kept."""

    max_size: Annotated[int, BeforeValidator(_parse_bytes), Field(ge=LOG_BYTES_MIN)] = 50 << 20
    max_files: PositiveInt = 1

    def bounds(self) -> LogBounds:
        """Return the part `ramet.logs` understands."""
        return LogBounds(self.max_size, self.max_files)


class OtelSettings(BaseModel, extra="forbid"):
    """Whether spans are sent, and to which collector: `endpoint` is the URL of OTLP over HTTP."""

    enabled: bool = False
    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    service_name: str = "ramet"


Ratio = Annotated[float, Field(gt=0, le=RATIO_MAX, allow_inf_nan=False)]


class CapacitySettings(BaseModel, extra="forbid"):
    """How much there is of each resource; "auto" is found out. `network` is each way.

    `disk_io` is what disks let through; "auto" is without limit there, since nobody tells it.
    """

    cpu: Annotated[PositiveInt | None, _or_auto()] = None
    memory: Annotated[PositiveInt | None, _or_auto(_parse_bytes)] = None
    disk: Annotated[PositiveInt | None, _or_auto(_parse_bytes)] = None
    network: Annotated[PositiveInt | None, _or_auto(_parse_rate)] = None
    disk_io: Annotated[PositiveInt | None, _or_auto(_parse_rate)] = None


class OversubscriptionSettings(BaseModel, extra="forbid"):
    """How many times what there is may be promised to instances, see docs/resources.md."""

    cpu: Ratio = CPU_RATIO
    memory: Ratio = MEMORY_RATIO
    disk: Ratio = DISK_RATIO
    network: Ratio = NETWORK_RATIO
    disk_io: Ratio = DISK_IO_RATIO


class Settings(BaseSettings):
    """All settings.

    `listen` is HOST:PORT of the API over TCP and needs `jwt_secret`; the unix socket is always there.
    `kernel_package` is a .deb to take the guests' kernel from; without, an installed cloud kernel is used.
    `stop_all`: end in order takes all instances along; without, they run on.
    `kits_dir` is where kernel and initramfs are kept, by default in the data folder.
    """

    model_config = SettingsConfigDict(env_prefix="RAMET_", env_nested_delimiter="__", extra="forbid")

    data_dir: Path = Path("/var/lib/ramet")
    socket: Path = Path("/run/ramet/api.sock")
    listen: str | None = None
    socket_users: SocketUsers = {}
    jwt_secret: str = ""
    kernel_package: Path | None = None
    kits_dir: Path | None = None
    hypervisor: HypervisorSettings = HypervisorSettings()
    network: NetworkSettings = NetworkSettings()
    registries: RegistrySettings = RegistrySettings()
    limits: LimitSettings = LimitSettings()
    images: ImageSettings = ImageSettings()
    forks: ForkSettings = ForkSettings()
    auto_standby: AutoStandbySettings = AutoStandbySettings()
    health: HealthSettings = HealthSettings()
    snapshot: SnapshotSettings = SnapshotSettings()
    logging: LoggingSettings = LoggingSettings()
    otel: OtelSettings = OtelSettings()
    capacity: CapacitySettings = CapacitySettings()
    oversubscription: OversubscriptionSettings = OversubscriptionSettings()
    stop_all: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def socket_scopes(self) -> dict[int, tuple[str, ...]]:
        """Return what users may do on the unix socket, by uid."""
        return {uid_of(user): scopes for user, scopes in self.socket_users.items()}

    def capacity_config(self) -> CapacityConfig:
        """Return the part `ramet.admission` understands."""
        found, ratios = self.capacity, self.oversubscription
        return CapacityConfig(
            cpu_count=found.cpu,
            memory_bytes=found.memory,
            disk_bytes=found.disk,
            network_bytes_per_s=found.network,
            disk_io_bytes_per_s=found.disk_io,
            cpu_ratio=ratios.cpu,
            memory_ratio=ratios.memory,
            disk_ratio=ratios.disk,
            network_ratio=ratios.network,
            disk_io_ratio=ratios.disk_io,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load_settings(overrides: dict[str, object], file: Path | None = None) -> Settings:
    """Read the settings; `overrides` (from flags) come first.

    Raises:
        SettingsInvalid: one of them cannot be.
    """
    if file is not None:
        _check_file(file)

    class FromFile(Settings):
        model_config = SettingsConfigDict(
            **{**Settings.model_config, "yaml_file": file, "yaml_file_encoding": "utf-8"}
        )

    try:
        settings = FromFile(**overrides)  # type: ignore[arg-type]  # What comes in is judged by the model.
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part)[:PLACE_LENGTH_MAX] for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsInvalid(f"there is no setting {_line(place)}") from error
        raise SettingsInvalid(f"setting {_line(place)}: {_line(first['msg'])}") from error
    except SettingsError as error:
        raise SettingsInvalid(_line(str(error))) from error
    if settings.listen is not None and not settings.jwt_secret:
        raise SettingsInvalid(
            "the API does not listen on TCP without a secret", remedy="set RAMET_JWT_SECRET, or drop --listen"
        )
    return settings


def _check_file(file: Path) -> None:
    """Raise SettingsInvalid unless `file` is YAML of the right shape; its values are judged later."""
    try:
        found_file = file.stat()
        if not stat.S_ISREG(found_file.st_mode):  # A pipe could be read only once, and would be waited for.
            raise SettingsInvalid(f"the settings file {file} is not a regular file", remedy=_FILE_REMEDY)
        if found_file.st_size > FILE_BYTES_MAX:
            raise SettingsInvalid(
                f"the settings file {file} is larger than {FILE_BYTES_MAX} bytes", remedy=_FILE_REMEDY
            )
        found = yaml.safe_load(file.read_bytes().decode())
    except FileNotFoundError as error:
        raise SettingsInvalid(f"there is no settings file {file}", remedy=_FILE_REMEDY) from error
    except OSError as error:
        raise SettingsInvalid(
            f"the settings file {file} cannot be read: {error.strerror}", remedy=_FILE_REMEDY
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsInvalid(f"the settings file {file} is not UTF-8", remedy="save it as UTF-8") from error
    # ValueError is a date or number that looks like one and is none.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = _line(str(getattr(error, "problem", None) or error))
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise SettingsInvalid(f"the settings file {file}{where} is not YAML: {what}") from error
    if found is not None and not (isinstance(found, dict) and all(isinstance(name, str) for name in found)):
        raise SettingsInvalid(f"the settings file {file} is not a list of `name: value`")


def _line(text: str) -> str:
    """Return `text` on one line of bounded length: it may repeat what the file holds."""
    line = " ".join(text.split())
    return line if len(line) <= LINE_LENGTH_MAX else line[: LINE_LENGTH_MAX - 1] + "…"


def _parse_port(text: str) -> tuple[Literal["tcp", "udp"], int]:
    protocol, _, port = text.partition("/")
    if protocol not in ("tcp", "udp") or not port.isdecimal():
        raise SettingsInvalid(f"setting network.allow_host_ports: {text!r} is not like udp/53")
    return ("tcp" if protocol == "tcp" else "udp"), int(port)

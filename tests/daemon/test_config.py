"""Settings come from flags, environment and file, in this order, and what cannot be is refused by name."""

import os
from pathlib import Path

import pytest

from ramet.admission.capacity import DISK_RATIO
from ramet.daemon.config import SettingsInvalid, load_settings
from ramet.policies.retention import LayerConfig, RetentionConfig


@pytest.fixture(autouse=True)
def _no_settings_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAMET_KERNEL_PACKAGE", "RAMET_KITS_DIR", "RAMET_LISTEN", "RAMET_JWT_SECRET"):
        monkeypatch.delenv(name, raising=False)


def test_a_flag_beats_the_environment_and_that_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text("data_dir: /file\nsocket: /file.sock\nlog_level: debug\n")
    monkeypatch.setenv("RAMET_DATA_DIR", "/environment")
    monkeypatch.setenv("RAMET_SOCKET", "/environment.sock")
    settings = load_settings({"data_dir": "/flag"}, file)
    assert (settings.data_dir, settings.socket) == (Path("/flag"), Path("/environment.sock"))
    assert settings.log_level == "debug"


def test_the_network_is_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_NETWORK__SUBNET_CIDR", "10.9.0.0/24")
    monkeypatch.setenv("RAMET_NETWORK__ALLOW_HOST_PORTS", '["udp/53"]')
    bridge = load_settings({}).network.bridge()
    assert str(bridge.subnet) == "10.9.0.0/24"
    assert bridge.allow_host_ports == (("udp", 53),)


def test_rates_that_hold_for_all_are_written_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text("network: {default_download: 1Gbps, default_upload: 20Mbit/s}")
    limits = load_settings({}, file).network.bridge().default_limits
    assert (limits.download_bytes_per_s, limits.upload_bytes_per_s) == (125_000_000, 2_500_000)
    unlimited = load_settings({}).network.bridge().default_limits
    assert (unlimited.download_bytes_per_s, unlimited.upload_bytes_per_s) == (None, None)


def test_capacity_is_found_out_or_said_in_any_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text("capacity: {cpu: auto, memory: 48GB, network: 10Gbps}\noversubscription: {memory: 1}\n")
    monkeypatch.setenv("RAMET_CAPACITY__DISK", "auto")
    monkeypatch.setenv("RAMET_OVERSUBSCRIPTION__CPU", "4.0")
    config = load_settings({}, file).capacity_config()
    assert (config.cpu_count, config.memory_bytes) == (None, 48 << 30)
    assert (config.disk_bytes, config.network_bytes_per_s) == (None, 1_250_000_000)
    assert (config.cpu_ratio, config.memory_ratio, config.disk_ratio) == (4.0, 1.0, DISK_RATIO)


@pytest.mark.parametrize(("text", "named"), [("foo: 1", "foo"), ("network: {foo: 1}", "network.foo")])
def test_a_setting_that_is_none_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings({}, file)
    assert caught.value.message == f"there is no setting {named}"


def test_tcp_without_a_secret_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match="secret"):
        load_settings({"listen": "127.0.0.1:4973"})
    assert load_settings({"listen": "127.0.0.1:4973", "jwt_secret": "s" * 32}).listen == "127.0.0.1:4973"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour: red\n", "colour"),
        ("log_level: loud\n", "log_level"),
        ("network:\n  subnet_cidr: everywhere\n", "network.subnet_cidr"),
        ("network:\n  subnett: 10.0.0.0/8\n", "network.subnett"),
        ("network:\n  default_upload: fast\n", "network.default_upload: .*not a rate"),
        ("network:\n  default_download: 1bps\n", "network.default_download"),
        ("registries:\n  insecure: ['http://r.example']\n", "registries.insecure"),
        ("registries:\n  mirrors: {docker.io: 'https://m.example'}\n", "registries.mirrors"),
        ("registries:\n  mirrors: {docker.io: 'm.example/path'}\n", "registries.mirrors"),
        ("registries:\n  mirrors: {'*': m.example}\n", "registries.mirrors"),
        ("registries:\n  cache_bytes_max: -1\n", "registries.cache_bytes_max"),
        ("limits:\n  max_image_storage: much\n", "limits.max_image_storage"),
        ("limits:\n  max_image_storage: 0\n", "limits.max_image_storage"),
        ("limits:\n  max_image_storage: -1\n", "limits.max_image_storage"),
        ("limits:\n  max_image_storage: .nan\n", "limits.max_image_storage"),
        ("limits:\n  max_images: 1\n", "limits.max_images"),
        ("images:\n  auto_delete: {unused_for: soon}\n", "images.auto_delete.unused_for"),
        ("images:\n  auto_delete: {unused_for: 0s}\n", "images.auto_delete.unused_for"),
        ("images:\n  auto_delete: {allowed: [Debian]}\n", "images.auto_delete.allowed"),
        ("images:\n  auto_delete: {allowed: ['debian:12']}\n", "not a repository"),
        ("images:\n  auto_delete: {allowed: ['debian:latest']}\n", "not a repository"),
        ("images:\n  auto_delete: {allowed: ['deb*']}\n", "images.auto_delete.allowed"),
        ("images:\n  auto_delete: {allowed: ['']}\n", "images.auto_delete.allowed"),
        ("images:\n  oci_cache_gc: {interval: 0}\n", "images.oci_cache_gc.interval"),
        ("images:\n  oci_cache_gc: {min_blob_age: -1}\n", "images.oci_cache_gc.min_blob_age"),
        ("capacity:\n  memory: much\n", "capacity.memory"),
        ("capacity:\n  network: 100MB\n", "capacity.network"),
        ("capacity:\n  cpu: 0\n", "capacity.cpu"),
        ("oversubscription:\n  cpu: 0\n", "oversubscription.cpu"),
        ("oversubscription:\n  disk: .inf\n", "oversubscription.disk"),
        ("oversubscription:\n  gpu: 1\n", "oversubscription.gpu"),
        ("hypervisor:\n  firecracker_jail: maybe\n", "hypervisor.firecracker_jail"),
        ("hypervisor:\n  cloud_hypervisor_jail: 1\n", "hypervisor.cloud_hypervisor_jail"),
        ("hypervisor:\n  firecracker_max_concurrent_restores: 0\n", "max_concurrent_restores"),
        ("hypervisor:\n  firecracker_snapshot_memory_backend: tape\n", "memory_backend"),
        ("hypervisor:\n  firecracker_uffd_graduation:\n    scan_interval: soon\n", "scan_interval"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text(text)
    with pytest.raises(SettingsInvalid, match=named):
        load_settings({}, file)


@pytest.mark.parametrize(
    ("text", "bytes_max"),
    [("0.5", 500), ("1", 1000), ("300", 300), ("2KB", 2048), ('""', None), ('"0.25"', 250), ("null", None)],
)
def test_images_may_take_a_share_of_the_disk_or_so_many_bytes(
    tmp_path: Path, text: str, bytes_max: int | None
) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text(f"limits:\n  max_image_storage: {text}\n")
    assert load_settings({}, file).limits.images(1000).storage_bytes_max == bytes_max


def test_images_may_take_a_fifth_of_the_disk_if_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}).limits.images(1000).storage_bytes_max == 200
    monkeypatch.setenv("RAMET_LIMITS__MAX_IMAGE_STORAGE", "0.5")
    assert load_settings({}).limits.images(1000).storage_bytes_max == 500
    monkeypatch.setenv("RAMET_LIMITS__MAX_IMAGE_STORAGE", "")
    assert load_settings({}).limits.images(1000).storage_bytes_max is None


def test_no_image_goes_by_itself_if_nothing_is_said() -> None:
    images = load_settings({}).images
    assert (images.auto_delete.config(), images.oci_cache_gc.config()) == (None, None)


def test_repositories_are_listed_as_images_are_named(tmp_path: Path) -> None:
    asked = ("debian", "team/app", "localhost:5000/app", "registry.example/*", "docker.io/*", "team/*", "*")
    file = tmp_path / "ramet.yaml"
    file.write_text(
        "images:\n  auto_delete: {enabled: true, unused_for: 36h, allowed: ["
        + ", ".join(f"'{each}'" for each in asked)
        + "]}\n  oci_cache_gc: {enabled: true, min_blob_age: 30m}\n"
    )
    images = load_settings({}, file).images
    assert images.oci_cache_gc.config() == LayerConfig(3600.0, 1800.0)
    assert images.auto_delete.config() == RetentionConfig(
        36 * 3600.0,
        (
            "docker.io/library/debian",
            "docker.io/team/app",
            "localhost:5000/app",
            "registry.example/*",
            "docker.io/*",
            "docker.io/team/*",
            "*",
        ),
    )


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsInvalid, match="not a regular file") as caught:
        load_settings({}, tmp_path / "pipe")
    assert "--config" in caught.value.remedy


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="nowhere"):
        load_settings({}, tmp_path / "nowhere.yaml")


def test_a_port_that_is_none_is_refused() -> None:
    settings = load_settings({"network": {"allow_host_ports": ["domain"]}})
    with pytest.raises(SettingsInvalid, match="domain"):
        settings.network.bridge()


def test_hypervisors_defaults_and_what_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_settings({}).hypervisor
    assert (found.default, found.firecracker_jail, found.cloud_hypervisor_jail) == (None, "auto", "auto")
    assert found.firecracker_snapshot_memory_backend == "file"
    assert found.firecracker_uffd_cache_max_bytes == 4_294_967_296
    assert found.firecracker_max_concurrent_restores == 32
    assert found.firecracker_uffd_graduation.config() is None
    monkeypatch.setenv("RAMET_HYPERVISOR__FIRECRACKER_UFFD_CACHE_MAX_BYTES", "64MB")
    monkeypatch.setenv("RAMET_HYPERVISOR__FIRECRACKER_UFFD_GRADUATION__ENABLED", "true")
    monkeypatch.setenv("RAMET_HYPERVISOR__FIRECRACKER_UFFD_GRADUATION__MIN_SESSION_AGE", "90s")
    found = load_settings({}).hypervisor
    assert found.firecracker_uffd_cache_max_bytes == 64 << 20
    graduation = found.firecracker_uffd_graduation.config()
    assert graduation is not None
    assert (graduation.min_session_age_s, graduation.max_concurrent) == (90, 1)
    assert (graduation.scan_interval_s, graduation.completion_timeout_s) == (60, 600)


def test_registries_are_nested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAMET_REGISTRIES__INSECURE", '["r.example:5000", "10.0.0.1", "[::1]:5000"]')
    monkeypatch.setenv("RAMET_REGISTRIES__MIRRORS", '{"docker.io": "m.example:443"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    config = load_settings({}).registries.config()
    assert config.insecure == {"r.example:5000", "10.0.0.1", "[::1]:5000"}
    assert (config.mirrors, config.docker_config) == ({"docker.io": "m.example:443"}, tmp_path)
    chosen = load_settings({"registries": {"docker_config": "/etc/docker"}}).registries.config()
    assert chosen.docker_config == Path("/etc/docker")


def test_users_of_the_socket_are_named_with_what_they_may_do(tmp_path: Path) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text('socket_users:\n  root: [instance:read, instance:write]\n  1001: ["*"]\n')
    assert load_settings({}, file).socket_scopes() == {0: ("instance:read", "instance:write"), 1001: ("*",)}
    assert load_settings({}).socket_scopes() == {}


@pytest.mark.parametrize(
    ("users", "why"), [("{nobody-like-that: []}", "no user"), ("{root: [instances]}", "no scope")]
)
def test_users_and_scopes_that_there_are_not_are_refused(tmp_path: Path, users: str, why: str) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text(f"socket_users: {users}\n")
    with pytest.raises(SettingsInvalid, match=why):
        load_settings({}, file)


def test_what_may_be_had_at_most_is_written_as_people_write_it(tmp_path: Path) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text(
        "limits:\n  max_vcpus_per_instance: 4\n  max_memory_per_instance: 8GB\n"
        "  max_overlay_size: 20GB\n  max_total_volume_storage: 1TB\n"
    )
    limits = load_settings({}, file).limits
    assert (limits.max_vcpus_per_instance, limits.max_memory_per_instance) == (4, 8 << 30)
    assert (limits.max_overlay_size, limits.max_total_volume_storage) == (20 << 30, 1 << 40)
    assert load_settings({}).limits.max_total_volume_storage is None
    file.write_text('limits: {max_total_volume_storage: ""}\n')
    assert load_settings({}, file).limits.max_total_volume_storage is None


@pytest.mark.parametrize(
    "limit", ["max_vcpus_per_instance: 17", "max_memory_per_instance: 64GB", "max_overlay_size: 1MB"]
)
def test_no_limit_is_beyond_what_can_be(tmp_path: Path, limit: str) -> None:
    file = tmp_path / "ramet.yaml"
    file.write_text(f"limits: {{{limit}}}\n")
    with pytest.raises(SettingsInvalid, match=limit.partition(":")[0]):
        load_settings({}, file)

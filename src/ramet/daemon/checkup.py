"""`ramet doctor` with the daemon's settings: the checks are told what the daemon would be told."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from ramet.core.errors import RametError
from ramet.daemon.config import Settings, load_settings
from ramet.doctor.checkup import check_all
from ramet.doctor.findings import Finding, fail, info, ok
from ramet.doctor.host import HostView
from ramet.doctor.subject import Subject

SETTINGS_FILE: Final = Path("/etc/ramet/config.yaml")


def examine(overrides: dict[str, object], file: Path | None, host: HostView | None = None) -> list[Finding]:
    """Check this host for a daemon with these settings; changes nothing.

    Args:
        overrides: settings from flags.
        file: of settings; None takes the one that `ramet setup` writes, if it is there.
    """
    finding, settings = _read_settings(overrides, file, host or HostView())
    program = settings.hypervisor.firecracker_binary_path
    subject = Subject(
        settings.data_dir,
        settings.socket,
        settings.kernel_package,
        default_hypervisor=settings.hypervisor.default,
        firecracker=None if program is None else str(program),
    )
    try:
        subject = replace(subject, bridge=settings.network.bridge())
    except RametError as error:
        finding = fail("settings", error.code, error.message, error.remedy)
    return [finding, *check_all(subject, host)]


def _read_settings(
    overrides: dict[str, object], file: Path | None, host: HostView
) -> tuple[Finding, Settings]:
    default = host.path(SETTINGS_FILE)
    chosen = file or (default if host.exists(SETTINGS_FILE) else None)
    # Where the settings cannot be had, the checks go on with the defaults.
    fallback = Settings.model_construct(None, **overrides)
    try:
        if chosen is not None and chosen.exists():
            chosen.read_bytes()
        settings = load_settings(dict(overrides), chosen)
    except OSError as error:
        message = f"{chosen or default} cannot be read: {error.strerror}"
        return info("settings", "settings_not_seen", message, "sudo ramet doctor"), fallback
    except RametError as error:
        remedy = error.remedy or (f"edit {chosen}" if chosen else "unset the variable RAMET_...")
        return fail("settings", error.code, error.message, remedy), fallback
    if chosen is None:
        message = "there is no settings file; defaults hold"
        return info("settings", "settings_default", message, "ramet setup"), settings
    return ok("settings", "settings", f"settings are read from {chosen}"), settings

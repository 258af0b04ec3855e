"""What `ramet setup` puts on a host: settings with a secret, a unit, a sysctl, and a token for the CLI.

Each file is written only if it is not there, so it may be run again at any time; the settings are never
written over, since the secret in them signs every token that is out.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import yaml

from ramet.core.errors import Invalid
from ramet.setup.files import HEADER, Outcome, Step, make_folder, remove_file, write_file
from ramet.setup.unit import Unit
from ramet.wire_api.scopes import ALGORITHM, SECRET_BYTES_MIN

CONFIG: Final = Path("/etc/ramet/config.yaml")
UNIT: Final = Path("/etc/systemd/system/ramet.service")
SYSCTL: Final = Path("/etc/sysctl.d/60-ramet.conf")
CLIENT_CONFIG: Final = Path(".config/ramet/cli.toml")  # In the home of the user.
DATA_DIR_DEFAULT: Final = Path("/var/lib/ramet")
SOCKET_DEFAULT: Final = Path("/run/ramet/api.sock")

SECRET_BYTES: Final = 32
TOKEN_DAYS: Final = 365
_DAY_S: Final = 86_400

_SYSCTL_TEXT: Final = f"""{HEADER}
# Guests reach the uplink through this host. The daemon sets it too; here it stays set.
net.ipv4.ip_forward = 1
"""


class SettingsUnreadable(Invalid):
    """The settings that are there cannot be understood."""

    code = "settings_invalid"


@dataclass(frozen=True, slots=True)
class User:
    """For whom the CLI is set up. `home` is without the prefix of `Plan.root`."""

    name: str
    uid: int
    gid: int
    home: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What to install.

    Attributes:
        root: prefix of every path that is written, for images and tests; no written text contains it.
        program: the words that start `ramet`.
        listen: HOST:PORT of the API over TCP, None for the unix socket alone.
        force: write unit, sysctl and client settings anew where they are ours.
    """

    root: Path
    program: tuple[str, ...]
    user: User
    data_dir: Path = DATA_DIR_DEFAULT
    listen: str | None = None
    kernel_package: Path | None = None
    force: bool = False

    def place(self, path: Path) -> Path:
        """Return where `path` is written."""
        return self.root / str(path).lstrip("/")

    @property
    def client_config(self) -> Path:
        """The CLI's settings of the user."""
        return self.user.home / CLIENT_CONFIG


def install(plan: Plan) -> Iterator[Step]:
    """Install what is missing, and yield what was done.

    Raises:
        RametError: a step could not be done; those yielded before were.
    """
    _check_listen(plan.listen)
    config = plan.place(CONFIG)
    text = config_text(plan)
    # Whatever may be refused is, before the first file is there.
    settings = read_settings(config) if config.exists() else yaml.safe_load(text)
    unit = unit_of(plan, settings).render(HEADER)
    client_settings = client_text(settings)
    yield make_folder(config.parent, 0o755)
    yield write_file(config, text, 0o600, replace=False)
    yield make_folder(plan.place(Path(str(settings.get("data_dir", DATA_DIR_DEFAULT)))), 0o700)
    for path, content in ((UNIT, unit), (SYSCTL, _SYSCTL_TEXT)):
        make_folder(plan.place(path.parent), 0o755)
        yield write_file(plan.place(path), content, 0o644, replace=plan.force)
    owner = (plan.user.uid, plan.user.gid)
    client = plan.place(plan.client_config)
    for folder in (client.parent.parent, client.parent):
        make_folder(folder, 0o700, owner)
    replace = plan.force or not _is_token_good(client, settings)
    yield write_file(client, client_settings, 0o600, replace=replace, owner=owner)


def uninstall(plan: Plan) -> Iterator[Step]:
    """Remove what `install` wrote, but settings and data, and yield what was done.

    Raises:
        RametError: a file could not be removed.
    """
    for path in (UNIT, SYSCTL, plan.client_config):
        yield remove_file(plan.place(path))
    yield Step(plan.place(CONFIG), Outcome.KEPT, "settings and data are left to you")


def texts(plan: Plan) -> Iterator[tuple[Path, str]]:
    """Yield what `install` would write on an empty host, with a placeholder for each secret."""
    config = config_text(plan, secret="<random>")
    settings = yaml.safe_load(config)
    yield CONFIG, config
    yield UNIT, unit_of(plan, settings).render(HEADER)
    yield SYSCTL, _SYSCTL_TEXT
    yield plan.client_config, client_text(settings, token="<token>")


def config_text(plan: Plan, secret: str | None = None) -> str:
    """Return the settings, with a new secret of 256 bits unless there is one."""
    lines = [
        HEADER,
        "# Settings of `ramet serve`; who has the secret may do everything.",
        f"data_dir: {json.dumps(str(plan.data_dir))}",
        f"socket: {json.dumps(str(SOCKET_DEFAULT))}",
        f"jwt_secret: {json.dumps(secret or secrets.token_hex(SECRET_BYTES))}",
    ]
    if plan.listen is not None:
        lines.append(f"listen: {json.dumps(plan.listen)}")
    if plan.kernel_package is not None:
        lines.append(f"kernel_package: {json.dumps(str(plan.kernel_package))}")
    return "\n".join(lines) + "\n"


def unit_of(plan: Plan, settings: Mapping[str, Any]) -> Unit:
    """Return the unit for these settings."""
    folders = [Path(str(settings.get("data_dir", DATA_DIR_DEFAULT)))]
    if settings.get("kits_dir"):
        folders.append(Path(str(settings["kits_dir"])))
    socket_folder = Path(str(settings.get("socket", SOCKET_DEFAULT))).parent
    if socket_folder != SOCKET_DEFAULT.parent:
        folders.append(socket_folder)
    return Unit(plan.program, CONFIG, tuple(folders))


def client_text(settings: Mapping[str, Any], token: str | None = None) -> str:
    """Return the CLI's settings: by TCP with a token where the daemon listens, else by its socket."""
    secret, listen = settings.get("jwt_secret"), settings.get("listen")
    if not listen or not isinstance(secret, str):
        socket = settings.get("socket", SOCKET_DEFAULT)
        return f"{HEADER}\nhost = {json.dumps(f'unix://{socket}')}\n"
    host, _, port = str(listen).rpartition(":")
    near = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)
    signed = token or sign(secret)
    return f"{HEADER}\nhost = {json.dumps(f'http://{near}:{port}')}\napi_key = {json.dumps(signed)}\n"


def sign(secret: str) -> str:
    """Return a token for everything, good for `TOKEN_DAYS`.

    Raises:
        Invalid: the secret is too short to be one.
    """
    if len(secret.encode()) < SECRET_BYTES_MIN:
        raise Invalid(
            f"the setting jwt_secret has fewer than {SECRET_BYTES_MIN} bytes",
            remedy="make one with: openssl rand -hex 32",
        )
    now = int(time.time())
    claims = {"sub": "ramet-cli", "iat": now, "exp": now + TOKEN_DAYS * _DAY_S}
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def read_settings(path: Path) -> Mapping[str, Any]:
    """Read the settings that are there, as plain values.

    Raises:
        SettingsUnreadable: they are no YAML mapping.
    """
    remedy = f"mend {path}, or move it away"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    # ValueError is a date or number that looks like one and is none, or bytes that are no text.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SettingsUnreadable(f"{path} cannot be read as settings", remedy=remedy) from error
    if not isinstance(found, dict | None):
        raise SettingsUnreadable(f"{path} holds no settings", remedy=remedy)
    return found or {}


def _check_listen(listen: str | None) -> None:
    host, _, port = (listen or "localhost:1").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise Invalid(f"{listen!r} is not HOST:PORT", remedy="write it like 127.0.0.1:4973")


def _is_token_good(path: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether the CLI's settings hold a token the daemon takes; those without one are good as well."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return True  # Not there: it will be written, not replaced.
    values = [line.partition("=")[2].strip() for line in lines if line.startswith("api_key")]
    if not values:
        return True
    try:
        jwt.decode(values[0].strip('"'), str(settings.get("jwt_secret", "")), algorithms=[ALGORITHM])
    except jwt.PyJWTError:
        return False
    return True

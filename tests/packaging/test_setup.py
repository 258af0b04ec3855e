"""`ramet setup` into a folder: what it writes, keeps, replaces and removes."""

import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner, Result

from ramet.cli.main import cli
from ramet.client import Endpoint
from ramet.core.errors import Invalid
from ramet.daemon.config import load_settings
from ramet.setup.files import HEADER, NotWritable, Outcome, remove_file, write_file
from ramet.setup.install import SettingsUnreadable, sign
from ramet.setup.unit import Unit

HOME = pwd.getpwuid(os.geteuid()).pw_dir.lstrip("/")
WRITTEN = {
    "etc/ramet/config.yaml": 0o600,
    "etc/systemd/system/ramet.service": 0o644,
    "etc/sysctl.d/60-ramet.conf": 0o644,
    f"{HOME}/.config/ramet/cli.toml": 0o600,
}
CONFIG, UNIT, SYSCTL, CLIENT = WRITTEN
Setup = Callable[..., Result]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Return what runs `ramet setup --root tmp_path` with more arguments."""
    for name in ("SUDO_USER", "RAMET_KERNEL_PACKAGE", "RAMET_KITS_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["setup", "--root", str(tmp_path), *arguments])
        if exit_code == 0:
            assert result.exception is None, result.output
        return result

    return run


def files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_everything_is_written_with_the_right_modes(setup: Setup, tmp_path: Path) -> None:
    said = setup().output
    assert files(tmp_path) == WRITTEN
    assert all(str(tmp_path / path) in said for path in WRITTEN)
    assert stat.S_IMODE((tmp_path / "var/lib/ramet").stat().st_mode) == 0o700


def test_no_written_text_names_the_folder_it_was_written_into(setup: Setup, tmp_path: Path) -> None:
    setup()
    assert not [path for path in WRITTEN if str(tmp_path) in (tmp_path / path).read_text()]


def test_a_second_time_nothing_changes(setup: Setup, tmp_path: Path) -> None:
    setup()
    before = {path: (tmp_path / path).read_bytes() for path in WRITTEN}
    said = setup("--data-dir", "/elsewhere", "--listen", "127.0.0.1:1").output
    assert {path: (tmp_path / path).read_bytes() for path in WRITTEN} == before
    assert all(line.startswith("kept") for line in said.splitlines() if line)


def test_the_daemon_takes_the_settings_and_their_secret_is_random(setup: Setup, tmp_path: Path) -> None:
    secrets = set()
    for _ in range(2):
        (tmp_path / CONFIG).unlink(missing_ok=True)
        setup("--data-dir", "/srv/ramet", "--listen", "127.0.0.1:4999", "--kernel-package", "/srv/k.deb")
        settings = load_settings({}, tmp_path / CONFIG)
        assert str(settings.data_dir) == "/srv/ramet"
        assert settings.listen == "127.0.0.1:4999"
        assert settings.kernel_package == Path("/srv/k.deb")
        assert re.fullmatch("[0-9a-f]{64}", settings.jwt_secret)
        secrets.add(settings.jwt_secret)
    assert len(secrets) == 2


def test_the_command_line_gets_a_token_the_secret_signed(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup("--listen", "0.0.0.0:4999")
    monkeypatch.setenv("RAMET_CLI_CONFIG", str(tmp_path / CLIENT))
    for name in ("RAMET_HOST", "RAMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    endpoint = Endpoint.from_environment()
    assert str(endpoint) == "http://127.0.0.1:4999"
    assert endpoint.api_key is not None
    secret = load_settings({}, tmp_path / CONFIG).jwt_secret
    claims = jwt.decode(endpoint.api_key, secret, algorithms=["HS256"])
    assert claims["exp"] - claims["iat"] == 365 * 86_400


def test_without_tcp_the_command_line_is_told_the_socket_and_no_token(setup: Setup, tmp_path: Path) -> None:
    setup("--listen", "")
    assert "listen" not in (tmp_path / CONFIG).read_text()
    assert (tmp_path / CLIENT).read_text() == f'{HEADER}\nhost = "unix:///run/ramet/api.sock"\n'


def test_a_token_of_another_secret_is_made_anew(setup: Setup, tmp_path: Path) -> None:
    setup()
    old = (tmp_path / CLIENT).read_text()
    (tmp_path / CONFIG).unlink()
    assert "replaced" in setup().output
    assert (tmp_path / CLIENT).read_text() != old


def test_files_of_somebody_else_are_never_written_over(setup: Setup, tmp_path: Path) -> None:
    for path in WRITTEN:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("# mine\n")
    setup("--force")
    assert {(tmp_path / path).read_text() for path in WRITTEN} == {"# mine\n"}
    setup("--uninstall")
    assert files(tmp_path).keys() == WRITTEN.keys()


def test_force_writes_our_files_anew_but_keeps_the_secret(setup: Setup, tmp_path: Path) -> None:
    setup()
    secret = (tmp_path / CONFIG).read_text()
    for path in (UNIT, SYSCTL):
        (tmp_path / path).write_text(f"{HEADER}\nof an older version\n")
    setup("--force")
    assert (tmp_path / CONFIG).read_text() == secret
    assert "KillMode=process" in (tmp_path / UNIT).read_text()


def test_uninstall_leaves_settings_and_data(setup: Setup, tmp_path: Path) -> None:
    setup()
    setup("--uninstall")
    assert files(tmp_path).keys() == {CONFIG}
    assert (tmp_path / "var/lib/ramet").is_dir()
    setup("--uninstall")


def test_print_shows_all_and_writes_nothing(setup: Setup, tmp_path: Path) -> None:
    shown = setup("--print").output
    assert files(tmp_path) == {}
    assert all(f"==> /{path}" in shown for path in WRITTEN)
    assert "<random>" in shown
    assert "<token>" in shown


@pytest.mark.parametrize("text", ["- a list\n", "{", "\x00", "at: 2026-99-99\n", "[" * 5000])
def test_settings_that_are_none_stop_it_before_anything_depends_on_them(
    setup: Setup, tmp_path: Path, text: str
) -> None:
    (tmp_path / CONFIG).parent.mkdir(parents=True)
    (tmp_path / CONFIG).write_text(text)
    assert isinstance(setup(exit_code=1).exception, SettingsUnreadable)
    assert files(tmp_path).keys() == {CONFIG}


def test_an_unknown_user_is_refused(setup: Setup) -> None:
    assert isinstance(setup("--user", "nobody-of-that-name", exit_code=1).exception, Invalid)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--data-dir", "/with space"),
        ("--program", "/with space"),
        ("--listen", "4973"),
        ("--listen", "h:70000"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    setup: Setup, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    assert isinstance(setup(*arguments, exit_code=1).exception, Invalid)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_stand_in_a_unit_is_refused() -> None:
    for bad in ("/with space", "/with\nline", '/with"quote', "/with$dollar", "/with;semicolon"):
        with pytest.raises(Invalid):
            Unit((bad,), Path("/c"), (Path("/d"),)).render(HEADER)
    assert "ExecStart=/a%%b serve" in Unit(("/a%b",), Path("/c"), (Path("/d"),)).render(HEADER)


def test_short_secrets_sign_nothing() -> None:
    with pytest.raises(Invalid):
        sign("short")


def test_files_are_written_whole_and_leave_no_traces(tmp_path: Path) -> None:
    place = tmp_path / "file"
    assert write_file(place, f"{HEADER}\n1\n", 0o640, replace=False).outcome is Outcome.WRITTEN
    assert write_file(place, f"{HEADER}\n2\n", 0o640, replace=False).outcome is Outcome.KEPT
    assert write_file(place, f"{HEADER}\n2\n", 0o600, replace=True).outcome is Outcome.REPLACED
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert remove_file(place).outcome is Outcome.REMOVED
    assert remove_file(place).outcome is Outcome.ABSENT
    with pytest.raises(NotWritable):
        write_file(tmp_path / "no" / "file", "x", 0o600, replace=False)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_line_of_the_unit(setup: Setup, tmp_path: Path) -> None:
    setup("--program", "/bin/true")
    unit = tmp_path / UNIT
    assert verify(unit) == ""
    unit.write_text(unit.read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in verify(unit)  # It would say so if it did not.


def verify(unit: Path) -> str:
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_unit_keeps_guests_and_what_they_need(setup: Setup, tmp_path: Path) -> None:
    setup("--data-dir", "/srv/ramet")
    lines = (tmp_path / UNIT).read_text().splitlines()
    needed = {"KillMode=process", "OOMPolicy=continue", "Type=notify", "TasksMax=infinity", "Delegate=yes"}
    assert needed <= set(lines)
    assert "ReadWritePaths=/srv/ramet -/var/tmp" in lines
    assert not [line for line in lines if line.startswith(("PrivateTmp=", "ProtectKernelModules="))]


EXPOSURE_MAX = 5.0  # Of 10, by systemd's own count; what is left is named in the unit, with why.


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_counts_the_unit_as_hardened(setup: Setup, tmp_path: Path) -> None:
    setup()
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(tmp_path / UNIT)]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Overall exposure level for ramet\.service: ([0-9.]+)", told)
    assert found is not None, told
    assert float(found[1]) <= EXPOSURE_MAX

"""The unix socket is root's alone where nobody else is listed; where somebody is, all can connect to it."""

import stat
from pathlib import Path

import pytest

from ramet.daemon.main import SocketInUse, bound_unix


@pytest.mark.parametrize(("for_others", "mode"), [(False, 0o600), (True, 0o666)])
def test_its_mode_says_who_can_connect(tmp_path: Path, for_others: bool, mode: int) -> None:
    path = tmp_path / "run/api.sock"
    with bound_unix(path, for_others=for_others):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert not path.exists()


def test_one_that_is_served_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with bound_unix(path, for_others=False) as listener:
        listener.listen()
        with pytest.raises(SocketInUse), bound_unix(path, for_others=True):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

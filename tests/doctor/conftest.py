"""Hosts as the doctor may find them."""

from pathlib import Path

import pytest

from tests.doctor.made_host import MadeHost


@pytest.fixture
def host(tmp_path: Path) -> MadeHost:
    """Return a host on which there is nothing."""
    return MadeHost(tmp_path)

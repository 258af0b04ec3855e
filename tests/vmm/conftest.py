"""A booted source is shared by the tests of one module, so the event loop is too."""

import pytest


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"

"""The examples of the pages, in the official client, do what they say."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypeman import Hypeman

from tests.api.stand_in import token
from tests.compat.drives import IMAGE
from tests.compat.server import Served

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
IMAGES = re.compile(r"\b(nginx|box):1")


@pytest.fixture
def client(server: Served) -> Iterator[Hypeman]:
    with Hypeman(base_url=server.url, api_key=token()) as client:
        yield client
        client.instances.delete("web")
        for volume in client.volumes.list():
            client.volumes.delete(volume.id)


def run_example(page: str, client: Hypeman) -> None:
    """Run the one example of a page, with the image that there is."""
    [example] = EXAMPLE.findall((DOCS / page).read_text())
    names: dict[str, Any] = {"client": client, "Path": Path}
    exec(compile(IMAGES.sub(IMAGE, example), page, "exec"), names)


def test_that_of_auto_standby(client: Hypeman) -> None:
    run_example("auto-standby.md", client)
    found = client.instances.get("web")
    assert found.auto_standby is not None
    assert (found.auto_standby.enabled, found.auto_standby.idle_timeout) == (True, "5m")
    assert (found.auto_standby.model_extra or {})["wake_on_traffic"] is True


def test_that_of_volumes(client: Hypeman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_text("1")
    with tarfile.open("models.tar.gz", "w:gz") as archive:
        archive.add("weights")
    run_example("volumes.md", client)
    (mounted,) = client.instances.get("web").volumes or []
    models = client.volumes.get("models")
    assert (mounted.volume_id, mounted.mount_path, mounted.readonly) == (models.id, "/models", True)

"""docs/openapi.json is the description that a server answers with."""

import json
from pathlib import Path

from ramet.wire_api.instances import API_VERSION
from tests.api.document import document

FILE = Path(__file__).parents[2] / "docs/openapi.json"


def test_the_committed_description_is_that_of_the_routes() -> None:
    assert json.loads(FILE.read_text()) == document(), "run: python -m tests.api.document > docs/openapi.json"


def test_it_says_which_version_of_the_api_it_is_of() -> None:
    assert json.loads(FILE.read_text())["info"]["version"] == API_VERSION

"""The API's description as a file: `python -m tests.api.document > docs/openapi.json`.

It is made of the routes as they stand; nothing is served and no daemon needed.
"""

import json
from typing import Any

from ramet.api import create_app
from tests.api.stand_in import StandInFleet, stand_in_parts
from tests.api.stand_in_images import StandInCatalog
from tests.api.stand_in_schedules import StandInSchedules
from tests.api.stand_in_snapshots import StandInSnapshots
from tests.api.stand_in_volumes import StandInVolumes


def document() -> dict[str, Any]:
    """Return the OpenAPI document, as `GET /spec.json` answers."""
    fleet = StandInFleet()
    try:
        snapshots = StandInSnapshots(fleet)
        schedules = StandInSchedules(fleet, snapshots)
        parts = stand_in_parts(fleet, StandInCatalog(), snapshots, StandInVolumes(fleet), schedules)
        return create_app(parts, auth=None).openapi()
    finally:
        fleet.files.remove()


def render() -> str:
    """Return the file's text."""
    return json.dumps(document(), indent=1) + "\n"


if __name__ == "__main__":
    print(render(), end="")

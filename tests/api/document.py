"""The API's description as a file: `python -m tests.api.document > docs/openapi.json`.

It is made of the routes as they stand; nothing is served and no daemon needed.
"""

import json
from typing import Any

from ramet.api import KeptAnswers, create_app
from ramet.instance.held_exec import HeldExecs
from ramet.store.answers import AnswerStore
from tests.api.stand_in import FACTS, StandInFleet
from tests.api.stand_in_idle import StandInIdle
from tests.api.stand_in_images import StandInCatalog
from tests.api.stand_in_reclaims import StandInReclaims
from tests.api.stand_in_resources import StandInResources
from tests.api.stand_in_schedules import StandInSchedules
from tests.api.stand_in_snapshots import StandInSnapshots
from tests.api.stand_in_volumes import StandInVolumes


def document() -> dict[str, Any]:
    """Return the OpenAPI document, as `GET /spec.json` answers."""
    fleet = StandInFleet()
    try:
        snapshots = StandInSnapshots(fleet)
        kept = (StandInIdle(fleet), StandInSchedules(fleet, snapshots), StandInReclaims(fleet))
        host = (StandInResources(fleet), *kept, FACTS)
        served = (fleet, StandInCatalog(), snapshots, StandInVolumes(fleet), *host)
        return create_app(*served, answers=KeptAnswers(AnswerStore()), execs=HeldExecs(), auth=None).openapi()
    finally:
        fleet.files.remove()


def render() -> str:
    """Return the file's text."""
    return json.dumps(document(), indent=1) + "\n"


if __name__ == "__main__":
    print(render(), end="")

"""The steps of a pull after each of which the daemon may die, told to whoever tests that.

Nothing depends on them. A test replaces `reached`, kills the process at every member of `PullStep`, and
looks at what a new daemon makes of the rest; so a step added here is a step tested.
"""

from enum import StrEnum


class PullStep(StrEnum):
    """What has just been done; in this order, and `LAYER_FETCHED` once for each layer."""

    RECORDED = "recorded"
    RESOLVED = "resolved"
    LAYER_FETCHED = "layer fetched"
    LAYERS_FETCHED = "layers fetched"
    UNPACKED = "unpacked"
    CONVERTED = "converted"
    SEALED = "sealed"
    PUBLISHED = "published"
    NAMED = "named"
    FORGOTTEN = "forgotten"


def reached(step: PullStep) -> None:
    """Do nothing; `step` has been done."""

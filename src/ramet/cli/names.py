"""Names for instances that nobody named: readable, and unlikely to meet twice."""

import random
from typing import Final

_QUALITIES: Final = (
    *("amber", "ancient", "brisk", "calm", "clever", "dusky", "eager", "early", "fair", "gentle", "golden"),
    *("green", "hardy", "hidden", "humble", "keen", "late", "light", "little", "lively", "lucky", "mellow"),
    *("mild", "misty", "noble", "patient", "plain", "proud", "quick", "quiet", "rapid", "rosy", "shady"),
    *("silent", "silver", "slender", "soft", "spry", "steady", "still", "sunny", "swift", "tall", "tender"),
    *("upright", "vivid", "warm", "wild", "wise", "young"),
)
_PLANTS: Final = (
    *(
        "alder",
        "aspen",
        "bamboo",
        "basil",
        "birch",
        "bracken",
        "bramble",
        "cedar",
        "clover",
        "cress",
        "daisy",
    ),
    *("elder", "elm", "fern", "fir", "flax", "ginger", "gorse", "hazel", "heath", "holly", "iris", "ivy"),
    *(
        "jasmine",
        "juniper",
        "larch",
        "laurel",
        "lilac",
        "linden",
        "maple",
        "mint",
        "moss",
        "myrtle",
        "nettle",
    ),
    *("oak", "olive", "peony", "pine", "poplar", "poppy", "reed", "rowan", "rush", "sage", "sedge", "sorrel"),
    *("spruce", "thyme", "willow", "yew"),
)
_NUMBERS: Final = 1000


def invent_name() -> str:
    """Return a name such as "quiet-aspen-417"."""
    draw = random.SystemRandom()
    return f"{draw.choice(_QUALITIES)}-{draw.choice(_PLANTS)}-{draw.randrange(_NUMBERS)}"

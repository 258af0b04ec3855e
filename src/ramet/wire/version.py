"""The number of the guest protocol this side speaks, written in every hello."""

from typing import Final

PROTOCOL_VERSION: Final = 1

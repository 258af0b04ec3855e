"""Identifiers, one type each, so that a type checker tells an instance from a disk layer."""

import re
import secrets
import string
from typing import Final, NewType

InstanceId = NewType("InstanceId", str)
LayerId = NewType("LayerId", str)
CaptureId = NewType("CaptureId", str)
SnapshotId = NewType("SnapshotId", str)
VolumeId = NewType("VolumeId", str)

ID_LENGTH: Final = 24  # As CUID2: a letter, then 23 characters of base 36 (119 bits of chance).
NAME_LENGTH_MAX: Final = 63  # One DNS label; also the guest's hostname.

_ALPHABET: Final = string.ascii_lowercase + string.digits
_ID_COUNT: Final = len(string.ascii_lowercase) * len(_ALPHABET) ** (ID_LENGTH - 1)
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def mint_id() -> str:
    """Return a new identifier of the form of a CUID2: 24 characters, the first a letter."""
    number, head = divmod(secrets.randbelow(_ID_COUNT), len(string.ascii_lowercase))
    characters = [string.ascii_lowercase[head]]
    for _ in range(ID_LENGTH - 1):
        number, index = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return "".join(characters)


def is_name(text: str) -> bool:
    """Tell whether `text` may name an instance: a DNS label of 1 to 63 characters."""
    return len(text) <= NAME_LENGTH_MAX and _NAME.fullmatch(text) is not None

"""What a registry asks for when it answers 401: the header `WWW-Authenticate` (RFC 7235, 4.1).

Several challenges may share one header, separated by the same comma as their parameters.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

HEADER_LENGTH_MAX: Final = 16 << 10

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?:,|$)')
_SCHEME: Final = re.compile(rf"[\s,]*({_TOKEN})(?:\s+|$|\s*,)")
_ESCAPED: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: `scheme` in lower case, and its parameters, their names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges in all `WWW-Authenticate` headers; what is none ends a header's reading."""
    found: list[Challenge] = []
    for header in headers:
        if len(header) > HEADER_LENGTH_MAX:
            continue
        position = 0
        while position < len(header):
            scheme = _SCHEME.match(header, position)
            if scheme is None:
                break
            position = scheme.end()
            parameters: dict[str, str] = {}
            while (pair := _PARAMETER.match(header, position)) is not None:
                value = pair[3] if pair[2] is None else _ESCAPED.sub(r"\1", pair[2])
                parameters.setdefault(pair[1].lower(), value)
                position = pair.end()
            found.append(Challenge(scheme[1].lower(), parameters))
    return tuple(found)

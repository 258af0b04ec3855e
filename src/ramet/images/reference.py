"""Names of images as Docker's users write them, and the one full form we compare.

"alpine", "docker.io/alpine" and "docker.io/library/alpine:latest" are one image. The catalog knows only the
full form, so a name written either way finds it. The grammar is that of the distribution project's
`reference` package.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, NewType

from ramet.images.errors import InvalidReference

Digest = NewType("Digest", str)

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
REPOSITORY_LENGTH_MAX: Final = 255
PORT_MAX: Final = 65535

_LEGACY_REGISTRY: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_BARE_HEX: Final = re.compile(r"[0-9a-f]{64}")
_REMEDY: Final = "write it like alpine, alpine:3.19 or registry.example/team/app:1.0"


def parse_digest(text: str) -> Digest:
    """Return `text` as a digest: "sha256:" and 64, or "sha512:" and 128, lower-case hex digits.

    Raises:
        InvalidReference: it is not one.
    """
    if _DIGEST.fullmatch(text) is None:
        raise InvalidReference(
            f"{text[:200]!r} is not a digest", remedy="write it like sha256:<64 hex digits>"
        )
    return Digest(text)


@dataclass(frozen=True, slots=True)
class Reference:
    """One image's full name.

    Attributes:
        registry: host and optional port, such as "docker.io".
        repository: path in the registry, such as "library/alpine".
        tag: None only where a digest is given instead.
        digest: of the manifest, where the reference pins it.
    """

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}{self._suffix()}"

    @property
    def name(self) -> str:
        """The full form without the digest: what the catalog files a tag under."""
        return f"{self.registry}/{self.repository}" + (f":{self.tag}" if self.tag else "")

    @property
    def display(self) -> str:
        """The shortest form that parses to the same reference, as a person would write it."""
        if self.registry != DEFAULT_REGISTRY:
            return str(self)
        for short in (self.repository.removeprefix(_OFFICIAL), self.repository):
            # Of "docker.io/a.io/b" no part can go: "a.io/b" is an image of another registry.
            if _is_same(self, short + self._suffix()):
                return short + self._suffix()
        return str(self)

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def _is_same(reference: Reference, text: str) -> bool:
    try:
        return parse_reference(text) == reference
    except InvalidReference:
        return False


def is_authority(text: str) -> bool:
    """Tell whether `text` is "host" or "host:port", the host a name, an IPv4 or an [IPv6] address."""
    if _REGISTRY.fullmatch(text) is None:
        return False
    host, _, port = text.rpartition(":") if not text.endswith("]") and ":" in text else (text, "", "")
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except ValueError:
            return False
    return not port or int(port) <= PORT_MAX


def parse_reference(text: str) -> Reference:
    """Return the image that `text` names: [registry/]repository[:tag][@digest].

    Without a tag and a digest the tag is "latest"; without a registry it is docker.io, where a name
    without a slash lies under "library/".

    Raises:
        InvalidReference: `text` is not a reference.
    """
    rest, at, digest_text = text.partition("@")
    digest = parse_digest(digest_text) if at else None
    colon = rest.rfind(":")
    tag: str | None = None
    if colon > rest.rfind("/"):
        rest, tag = rest[:colon], rest[colon + 1 :]
    if tag is None and digest is None:
        tag = DEFAULT_TAG
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        registry, repository = head, tail
    else:
        registry, repository = DEFAULT_REGISTRY, rest
    if registry == _LEGACY_REGISTRY:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = _OFFICIAL + repository
    if (
        not is_authority(registry)
        or _REPOSITORY.fullmatch(repository) is None
        or len(registry) + 1 + len(repository) > REPOSITORY_LENGTH_MAX
        or (tag is not None and _TAG.fullmatch(tag) is None)
    ):
        raise InvalidReference(f"{text[:200]!r} does not name an image", remedy=_REMEDY)
    if rest == "sha256" and tag is not None and _BARE_HEX.fullmatch(tag):
        raise InvalidReference(
            f"{text[:200]!r} is a digest and says of no repository", remedy=f"write REPOSITORY@{text[:71]}"
        )
    if _BARE_HEX.fullmatch(rest):
        raise InvalidReference(
            f"{text[:200]!r} could be a digest or a name", remedy=f"write sha256:{rest} if it is a digest"
        )
    return Reference(registry, repository, tag, digest)

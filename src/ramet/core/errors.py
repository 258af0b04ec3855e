"""Every error we raise on purpose.

RametError
 +-- Invalid       the request could never succeed       (HTTP 400)
 +-- NotFound      no such thing                         (HTTP 404)
 +-- Conflict      not in this state, or name taken      (HTTP 409)
 +-- Exhausted     a limit we enforce was reached        (HTTP 409 insufficient_resources)
 +-- Unsupported   this backend cannot do that           (HTTP 501)
 +-- Broken        something we depend on failed us      (HTTP 500)

The class says what the caller may do; `code` says which condition it was and is stable, a part
of the API. A narrower condition is a subclass with a `code` of its own. The text is one sentence
for a person, and `remedy`, where there is one, is the command or change that mends it; who raises an error
knows it best, and otherwise it is the one that mends this condition most often, `remedy_default`.
"""

from typing import ClassVar


class RametError(Exception):
    """Base of all our errors.

    Args:
        message: one sentence for a person.
        remedy: what the person may do about it; by default `remedy_default`, which may be empty.
        fields: facts for a program, JSON-able.
    """

    code: ClassVar[str] = "internal_error"
    remedy_default: ClassVar[str] = ""

    def __init__(self, message: str, *, remedy: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy or self.remedy_default
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class Invalid(RametError):
    """The request could never succeed; change it."""

    code = "bad_request"


class NotFound(RametError):
    """There is no such thing."""

    code = "not_found"


class Conflict(RametError):
    """The thing exists, but its state or its name forbids this."""

    code = "conflict"


class Exhausted(RametError):
    """A limit we enforce was reached; retrying later may succeed."""

    code = "insufficient_resources"


class Unsupported(RametError):
    """This backend, or this version of ramet, cannot do that."""

    code = "not_supported"


class Broken(RametError):
    """Something we depend on failed us: the kernel, a VMM, a guest, a file."""

    code = "internal_error"

"""What a check says: a level, a stable code, one sentence, and the command that mends it.

The doctor only looks. A finding that nobody can act upon is an `info`; `fail` is kept for what ramet
cannot do its work without.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is, from nothing to see to ramet cannot work."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        check: what was looked at, such as "accelerator"; several findings may share it.
        code: which condition it is, stable, such as "kvm_paravirtual".
        message: one sentence for a person.
        remedy: the command or setting that mends it, empty where nothing needs mending.
    """

    check: str
    code: str
    level: Level
    message: str
    remedy: str = ""


def ok(check: str, code: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, code, Level.OK, message)


def info(check: str, code: str, message: str, remedy: str = "") -> Finding:
    """Good to know."""
    return Finding(check, code, Level.INFO, message, remedy)


def warn(check: str, code: str, message: str, remedy: str) -> Finding:
    """It works, but not as well as it could, or not for long."""
    return Finding(check, code, Level.WARN, message, remedy)


def fail(check: str, code: str, message: str, remedy: str) -> Finding:
    """Ramet cannot do its work."""
    return Finding(check, code, Level.FAIL, message, remedy)


def worst(findings: Iterable[Finding]) -> Level:
    """Return `fail`, `warn` or `ok`: the worst that was found; an `info` is no trouble."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)

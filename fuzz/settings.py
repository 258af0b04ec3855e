"""What the administrator writes: the settings file, sizes, rates and durations."""

import os
import tempfile
from pathlib import Path
from typing import Final

from ramet.core.errors import Invalid
from ramet.core.units import format_rate, format_size, parse_duration, parse_rate, parse_size
from ramet.daemon.config import load_settings

MESSAGE_LENGTH_MAX: Final = 500


def settings(data: bytes) -> None:
    """A settings file is understood or refused in one sentence."""
    fd, name = tempfile.mkstemp(prefix="ramet-fuzz-")
    try:
        os.write(fd, data)
        load_settings({}, Path(name))
    except Invalid as error:
        _check_sentence(error)
    finally:
        os.close(fd)
        os.unlink(name)


def units(data: bytes) -> None:
    """A size, rate or duration is a finite number that is not negative, or is refused."""
    text = data.decode("utf-8", "replace")
    try:
        size_bytes = parse_size(text)
    except Invalid as error:
        _check_sentence(error)
    else:
        assert size_bytes >= 0
        assert parse_size(format_size(size_bytes)) == size_bytes, f"{size_bytes} is written as another size"
    try:
        rate_bytes_per_s = parse_rate(text)
    except Invalid as error:
        _check_sentence(error)
    else:
        assert rate_bytes_per_s >= 0
        assert parse_rate(format_rate(rate_bytes_per_s)) == rate_bytes_per_s
    try:
        assert 0 <= parse_duration(text) < float("inf")
    except Invalid as error:
        _check_sentence(error)


def _check_sentence(error: Invalid) -> None:
    assert "\n" not in error.message, "more than one line"
    assert len(error.message) <= MESSAGE_LENGTH_MAX, "a message as long as the input"

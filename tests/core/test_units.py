"""Rates and sizes as people write them, and what a fork takes along of a spec."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.core.errors import Invalid
from ramet.core.spec import FORK_RULES, InstanceSpec
from ramet.core.units import (
    AMOUNT_MAX,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "rate_bytes_per_s"),
    [
        ("1Gbps", 125_000_000),
        ("125MB/s", 125_000_000),
        ("100MB/s", 100_000_000),
        ("20Mbit/s", 2_500_000),
        ("20mbit", 2_500_000),
        (" 2.5 Gbps ", 312_500_000),
        ("1 MiB/s", 1 << 20),
        ("8Kibps", 1_024),
        ("64kbits/s", 8_000),
        ("8bps", 1),
        ("7B/s", 7),
        ("1Tbps", 125_000_000_000),
        ("0bps", 0),
    ],
)
def test_a_rate_is_read_as_it_is_written(text: str, rate_bytes_per_s: int) -> None:
    assert parse_rate(text) == rate_bytes_per_s


@pytest.mark.parametrize(
    "text",
    ["", "fast", "-1Mbps", "1", "1GB", "1GBps", "1gb/s", "1 Mbps per guest", "1e3bps", "9" * 65 + "bps"],
)
def test_what_is_no_rate_or_may_mean_two_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(Invalid, match="not a rate") as caught:
        parse_rate(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("rate_bytes_per_s", "text"),
    [
        (125_000_000, "1Gbps"),
        (312_500_000, "2500Mbps"),
        (187_500, "1500Kbps"),
        (187, "1496bps"),
        (100, "800bps"),
        (0, "0bps"),
        (125_000_000_000, "1Tbps"),
    ],
)
def test_a_rate_is_written_in_the_largest_unit_that_keeps_it_whole(rate_bytes_per_s: int, text: str) -> None:
    assert format_rate(rate_bytes_per_s) == text


@given(st.integers(0, AMOUNT_MAX // 8))
def test_what_is_written_is_read_as_the_same(rate_bytes_per_s: int) -> None:
    assert parse_rate(format_rate(rate_bytes_per_s)) == rate_bytes_per_s


@given(st.integers(0, 10**10))
def test_a_duration_that_is_written_is_read_as_the_same(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0, "0s"), (0.25, "250ms"), (90, "1m30s"), (3600, "1h"), (5400.25, "1h30m0.25s")],
)
def test_durations_are_written_as_go_does(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


def test_each_field_of_a_spec_has_its_rule_for_forks() -> None:
    assert {field.name for field in fields(InstanceSpec)} == FORK_RULES.keys()


def test_a_fork_is_limited_as_its_source() -> None:
    spec = InstanceSpec("i", "d", "qemu", 1, 1, 1, download_bytes_per_s=8_000, upload_bytes_per_s=9_000)
    child = spec.for_fork()
    assert (child.download_bytes_per_s, child.upload_bytes_per_s) == (8_000, 9_000)


@pytest.mark.parametrize("text", ["8388608T", "9223372036854775808", "1" * 62 + "t"])
def test_a_size_beyond_all_memory_and_disks_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="larger than any"):
        parse_size(text)
    assert parse_size(format_size(AMOUNT_MAX)) == AMOUNT_MAX


@pytest.mark.parametrize("text", ["1" * 40 + "bps", "9223372036854775807B/s"])
def test_a_rate_beyond_all_networks_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="faster than any"):
        parse_rate(text)

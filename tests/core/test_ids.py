"""Identifiers: of the form of a CUID2, and never twice."""

import re
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from ramet.core import ids
from ramet.core.ids import mint_id


def test_an_id_is_a_letter_and_23_of_letters_and_digits() -> None:
    minted = {mint_id() for _ in range(500)}
    assert len(minted) == 500
    assert all(re.fullmatch(r"[a-z][a-z0-9]{23}", one) for one in minted)
    for place in range(1, 24):
        assert len({one[place] for one in minted}) > 30, f"{place} is chosen from all 36"


@given(st.integers(0, ids._ID_COUNT - 1), st.integers(0, ids._ID_COUNT - 1))
def test_every_number_is_an_id_of_its_own(one: int, other: int) -> None:
    def minted(number: int) -> str:
        with patch("secrets.randbelow", return_value=number):
            return mint_id()

    assert (minted(one) == minted(other)) is (one == other)

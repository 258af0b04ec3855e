"""Every method of the official client, both ways, does what is declared of it."""

from collections.abc import Mapping
from typing import Any

import hypeman
import pytest
from hypeman import AsyncHypeman, Hypeman, types

from tests.compat import volume_drives
from tests.compat.client import helpers, methods, parameters
from tests.compat.declared import METHODS, UNTOLD
from tests.compat.drives import DRIVES, Place

pytestmark = pytest.mark.anyio

assert volume_drives, "they have entered themselves"

LATER = [name for name, declared in METHODS.items() if declared.is_later]
DONE = [name for name, declared in METHODS.items() if not declared.is_later]
REFUSED = [(name, field) for name, declared in METHODS.items() for field in declared.refuses]
SYNC = methods(Hypeman(base_url="http://nowhere", api_key="none"))
EXAMPLES: Mapping[str, Any] = {
    "int": 1,
    "Iterable[ingress_create_params.Rule]": [],
    "Iterable[IngressRuleParam]": [],
    "FileTypes": b"some",
}
"""What a parameter of that type can be; of any other, text."""


def least_arguments(method: str) -> dict[str, Any]:
    """Return what `method` must be told."""
    return {
        name: EXAMPLES.get(str(parameter.annotation), "some")
        for name, parameter in parameters(SYNC[method]).items()
        if parameter.default is parameter.empty
    }


async def test_every_method_of_the_client_is_declared_and_no_other() -> None:
    awaited = methods(AsyncHypeman(base_url="http://nowhere", api_key="none"))
    assert len(SYNC) > 60, "the walk does not fit this version of the client"
    assert SYNC.keys() == awaited.keys()
    assert METHODS.keys() == SYNC.keys() | helpers().keys()
    assert DRIVES.keys() == set(DONE)


@pytest.mark.parametrize("method", DONE)
async def test_a_method_that_works_takes_all_of_its_parameters(place: Place, method: str) -> None:
    await DRIVES[method](place)
    function = SYNC.get(method) or helpers()[method][0]
    refused = {field for field in METHODS[method].refuses if "." not in field}
    assert parameters(function).keys() - refused == place.call.used[method]
    for model, fields in place.call.untold.items():
        assert fields == UNTOLD.get(model, set()), model


@pytest.mark.parametrize("method", LATER)
async def test_a_method_that_comes_later_says_so_by_its_name(place: Place, method: str) -> None:
    with pytest.raises(hypeman.APIStatusError) as refused:
        await place.call(method, **least_arguments(method))
    assert refused.value.status_code == 501
    body = refused.value.body
    assert isinstance(body, dict)
    assert (body["code"], body["fields"]) == ("not_supported", {"operation": method})


@pytest.mark.parametrize(("method", "field"), REFUSED)
async def test_a_parameter_that_comes_later_says_so_by_its_name(
    place: Place, method: str, field: str
) -> None:
    name, _, member = field.partition(".")
    value = METHODS[method].refuses[field]
    arguments = least_arguments(method) | {name: {member: value} if member else value}
    with pytest.raises(hypeman.APIStatusError) as refused:
        await place.call(method, **arguments)
    assert refused.value.status_code == 501
    body = refused.value.body
    assert isinstance(body, dict)
    assert (body["code"], body["fields"]["field"]) == ("not_supported", field)


async def test_fields_declared_as_untold_are_fields_of_the_client() -> None:
    for model, fields in UNTOLD.items():
        assert fields <= getattr(types, model).model_fields.keys()

"""The page of docs on compatibility, from the declarations.

`python -m tests.compat.table > docs/compatibility.md`
"""

from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

from tests.compat.declared import METHODS, UNTOLD, Method

HEAD = """\
# Compatibility

Written by `python -m tests.compat.table` from what `tests/compat/` declares. The suite calls each method of
the official Python client (`hypeman` {version} on PyPI), sync and async, on a real daemon with fake VMMs. A
method that works takes every parameter it has, and each answer is checked strictly against the client's type.
`tests/vm/test_official_client.py` calls those that need a guest on real ones. What comes later is answered
with 501 and its name.

Point the client at a server by `base_url` and `api_key`, or by `HYPEMAN_BASE_URL` and `HYPEMAN_API_KEY`; the
key is a token of `ramet token`. What ramet adds to the API is told in [the API's page](api.md).

| | methods |
|---|---|
{counts}

## Methods

`lib` are the client's helpers that speak over WebSockets.

| method | here | what is missing |
|---|---|---|
"""
FIELDS = """
## Fields that no answer has yet

The client reads each as `None`.

| type | fields |
|---|---|
"""


def render() -> str:
    """Return the whole page."""
    counted = Counter(method.status for method in METHODS.values())
    counts = "\n".join(f"| {status} | {counted[status]} |" for status in ("works", "partly", "later"))
    head = HEAD.format(version=version("hypeman"), counts=counts)
    return head + "\n".join(_rows()) + "\n" + FIELDS + "\n".join(_fields()) + "\n"


def _rows() -> Iterator[str]:
    for name, method in METHODS.items():
        yield f"| `{name}` | {method.status} | {_missing(method)} |"


def _missing(method: Method) -> str:
    refused = f"answered with 501: {_listed(method.refuses)}" if method.refuses else ""
    return "; ".join(filter(None, (refused, method.missing)))


def _fields() -> Iterator[str]:
    for model, fields in sorted(UNTOLD.items()):
        yield f"| `{model}` | {_listed(fields)} |"


def _listed(names: object) -> str:
    assert isinstance(names, dict | frozenset)
    return ", ".join(f"`{name}`" for name in sorted(names))


if __name__ == "__main__":
    print(render(), end="")

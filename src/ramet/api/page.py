"""The API's description as a page to browse: calls with what they take and answer, types with their fields.

No script, and nothing from other hosts: it can be read where there is no network but the server's.
"""

import html
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ramet.api.links import operations_of

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .4rem 0 }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
details { border-top: 1px solid #ddd; padding: .3rem 0 }
summary { cursor: pointer }
nav a { margin-right: 1rem }
.method { display: inline-block; width: 4.5rem; font-weight: 600 }
"""

Json = Mapping[str, Any]


def render(document: Json) -> str:
    """Return the page of an OpenAPI document."""
    info = document["info"]
    title = f"{_text(info['title'])} API {_text(info['version'])}"
    kinds = sorted({tag for _, _, call in operations_of(document) for tag in call.get("tags", ())})
    links = "".join(f"<a href=#{_text(kind)}>{_text(kind)}</a>" for kind in (*kinds, "types"))
    calls = "".join("".join(_calls(document, kind)) for kind in kinds)
    types = "".join(_type(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>{_text(info.get('description', ''))}</p>"
        "<p>For programs: <a href=/spec.json>/spec.json</a>, <a href=/spec.yaml>/spec.yaml</a></p>"
        f"<nav>{links}</nav>{calls}<h2 id=types>types</h2>{types}"
    )


def _calls(document: Json, kind: str) -> Iterator[str]:
    yield f"<h2 id={_text(kind)}>{_text(kind)}</h2>"
    for path, method, call in operations_of(document):
        if kind in call.get("tags", ()):
            head = f"<span class=method>{method.upper()}</span><code>{_text(path)}</code>"
            yield (
                f"<details id={_text(call['operationId'])}>"
                f"<summary>{head} {_text(call.get('summary', ''))}</summary>"
                f"{_scope(call)}{_parameters(call)}{_body(call)}{_answers(call)}</details>"
            )


def _scope(call: Json) -> str:
    allowed = [scope for needed in call.get("security", ()) for scope in needed.get("token", ())]
    if allowed:
        return f"<p>Scope: <code>{_text(allowed[0])}</code></p>"
    return f"<p>{'Any token.' if call.get('security') else 'No token.'}</p>"


def _parameters(call: Json) -> str:
    rows = [
        f"<tr><td><code>{_text(one['name'])}</code><td>{_text(one['in'])}<td>{_kind(one.get('schema', {}))}"
        f"<td>{'required' if one.get('required') else ''}<td>{_text(one.get('description', ''))}"
        for one in call.get("parameters", ())
    ]
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _body(call: Json) -> str:
    contents = call.get("requestBody", {}).get("content", {})
    return "".join(
        f"<p>Body, <code>{_text(media)}</code>: {_kind(content.get('schema', {}))}</p>"
        for media, content in contents.items()
    )


def _answers(call: Json) -> str:
    rows = [
        f"<tr><td>{_text(status)}<td>{_text(answer.get('description', ''))}"
        f"<td>{', '.join(_kind(content.get('schema', {})) for content in answer.get('content', {}).values())}"
        for status, answer in call["responses"].items()
    ]
    return f"<table><tr><th>Status<th><th>Answer{''.join(rows)}</table>"


def _type(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{_text(field)}</code><td>{_kind(kind)}<td>{'required' if field in required else ''}"
        for field, kind in schema.get("properties", {}).items()
    )
    return (
        f"<h3 id=type-{_text(name)}>{_text(name)}</h3><p>{_text(schema.get('description', ''))}</p>"
        f"<table>{rows}</table>"
    )


def _kind(schema: Json) -> str:
    """Return in a few words what a value is, with a link where it is of a type of ours."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f"<a href=#type-{name}>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"<code>{_text(one)}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_kind(schema['additionalProperties'])}"
    return _text(schema.get("type", "anything"))


def _text(value: object) -> str:
    return html.escape(str(value))

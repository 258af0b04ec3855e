"""Every setting there is stands in the documentation, and none that is not."""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ramet.daemon.config import Settings

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\|(.*?)\|", re.MULTILINE)


def names_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from names_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_tables_of_settings_are_whole() -> None:
    pages = [(DOCS / name).read_text() for name in ("daemon.md", "networking.md", "resources.md")]
    tables = [page.partition("## Settings\n")[2].partition("\n## ")[0] for page in pages]
    cells = [cell for table in tables for cell in ROW.findall(table)]
    written = {name for cell in cells for name in re.findall(r"`([a-z_.]+)`", cell)}
    assert written == set(names_of(Settings))

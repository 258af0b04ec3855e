"""What we wrote to disk ourselves, and find damaged."""

import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from ramet.images.errors import CatalogCorrupt
from ramet.images.record import content_to_bytes, load_content, load_names
from ramet.store.database import Database, StateUnreadable


def catalog(data: bytes) -> None:
    """A damaged record, tag file or image description is told as such, and is never half believed.

    The first byte chooses which.
    """
    if not data:
        return
    with tempfile.TemporaryDirectory(prefix="ramet-fuzz-") as folder:
        file = Path(folder) / "file"
        match data[0] % 4:
            case 0:
                _content(file, data[1:])
            case 1:
                file.write_bytes(data[1:])
                with suppress(CatalogCorrupt):
                    load_names(file)
            case 2:
                _record(file, data[1:])
            case _:
                file.write_bytes(data[1:])
                with suppress(StateUnreadable), closing(Database(file)) as state:
                    state.load()
                    state.unfinished()


def _content(file: Path, text: bytes) -> None:
    file.write_bytes(text)
    try:
        content = load_content(file)
    except CatalogCorrupt:
        return
    file.write_bytes(content_to_bytes(content))
    assert load_content(file) == content


def _record(file: Path, text: bytes) -> None:
    with closing(Database(file)) as state:
        with sqlite3.connect(file) as rows:
            rows.execute("INSERT INTO instances VALUES ('id', 'name', ?)", (text.decode("utf-8", "replace"),))
        rows.close()
        try:
            records = state.load()
        except StateUnreadable:
            return
        for record in records:
            assert type(record).from_json(record.to_json()) == record

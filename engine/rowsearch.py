"""Any row of a stored file, found by its place or by a text in it, as it is written there: good and bad ones alike.

The file is read as a stream each time, so nothing grows with it; a text is looked for as it may be written in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from engine.check import opened
from engine.read import lines

# A longer row is shown in part and edited elsewhere.
EDITABLE_CHARACTERS = 100_000


class Row(NamedTuple):
    """A record: its 1-based number, the line it starts on (None in Parquet), and its text as it stands in the file; for
    a table the JSON that its cells mean. `whole` is False when the text is cut or could not be read."""

    row: int
    line: int | None
    text: str
    whole: bool


class Page(NamedTuple):
    """Rows found, and the row to go on from, or None at the end."""

    rows: list[Row]
    next_row: int | None


def find(
    path: Path,
    mapping: dict[str, str],
    *,
    start: int = 1,
    count: int = 20,
    text: str = "",
    only: Collection[int] | None = None,
) -> Page:
    """The first `count` rows from row `start` on that hold `text` (in any case) and, with `only`, are among these."""
    needles = _needles(text)
    found: list[Row] = []
    last = max(only, default=0) if only is not None else None
    with opened(path, mapping) as (_, records):
        for row, (line, raw) in enumerate(records, start=1):
            if last is not None and row > last:
                break
            if row < start or (only is not None and row not in only) or (needles and not _holds(raw, needles)):
                continue
            if len(found) == count:
                return Page(found, row)
            found.append(_row(row, line, raw))
    return Page(found, None)


def _row(row: int, line: int | None, raw: bytes) -> Row:
    if isinstance(raw, lines.Unreadable):
        return Row(row, line, "", False)
    text = raw.decode("utf-8", "replace").strip("\r\n")
    return Row(row, line, text[:EDITABLE_CHARACTERS], len(text) <= EDITABLE_CHARACTERS)


def _needles(text: str) -> tuple[str, ...]:
    """A text as it may stand in a file: as it is, and with JSON's escapes, of letters outside ASCII too."""
    small = text.casefold()
    if not small:
        return ()
    forms = {small}
    for case in {text, small, text.lower(), text.upper()}:
        forms |= {json.dumps(case)[1:-1].casefold(), json.dumps(case, ensure_ascii=False)[1:-1].casefold()}
    return tuple(forms)


def _holds(raw: bytes, needles: tuple[str, ...]) -> bool:
    text = raw.decode("utf-8", "replace").casefold()
    return any(needle in text for needle in needles)

"""A file that holds its columns one after the other instead of rows, as pandas and dictionaries of lists are written."""

from __future__ import annotations

from typing import Any

from engine.read import formats, texts
from engine.read.source import NotRows
from engine.words import later

# The ways to write a table as one JSON object, as pandas calls them.
_COLUMNS, _SPLIT, _INDEX = "columns", "split", "index"


class Columns:
    """Looks at the rows that decide a file's layout: whether each is a whole table."""

    def __init__(self) -> None:
        self.rows = 0
        self.known = True  # whether each has the columns of a layout
        self.orient: str | None = None
        self.names: list[str] = []

    def add(self, row: object, mapping: dict[str, str]) -> None:
        """Look at the next row."""
        if self.rows and self.orient is None:
            return
        self.rows += 1
        self.orient = _orient(row)
        if self.orient is not None and isinstance(row, dict):
            self.names = _names(row, self.orient)
            self.known = self.known and formats.layout_of(mapping.get(name, name) for name in self.names) is not None

    def problem(self) -> NotRows | None:
        """What is to be said about the file: a single record that is a table, or several with the columns of a layout.
        (Lists of one length may be what rows of an unknown layout hold.)"""
        if self.orient is None or not (self.known or self.rows == 1):
            return None
        call = later("with pandas: {call}", call=_CALL.format(orient=self.orient))
        return NotRows("columns-not-rows", found=texts.name_list(self.names, 12), call=call)


_CALL = 'read_json("...", orient="{orient}").to_json("rows.jsonl", orient="records", lines=True)'


def _orient(row: object) -> str | None:
    """How a table is written into one object, or None when the object is none."""
    if not isinstance(row, dict) or not row:
        return None
    values = list(row.values())
    if {"columns", "data"} <= row.keys() <= {"columns", "data", "index"}:
        return _SPLIT if all(isinstance(value, list) for value in values) else None
    if all(isinstance(value, list) for value in values):
        # Lists of one length, of values or of conversations. Messages themselves are what a row holds.
        lengths = {len(value) for value in values}
        messages = any(isinstance(part, dict) for value in values for part in value)
        nested = any(isinstance(part, list) and any(isinstance(m, dict) for m in part) for v in values for part in v)
        several = len(values) > 1 or nested
        return _COLUMNS if several and len(lengths) == 1 and lengths != {0} and not messages else None
    if not all(isinstance(value, dict) and value for value in values):
        return None
    if all(key.isdigit() for key in row):
        return _INDEX if len({tuple(value) for value in values}) == 1 else None
    keys = {tuple(value) for value in values}
    return _COLUMNS if len(keys) == 1 and all(key.isdigit() for key in keys.pop()) else None


def _names(row: dict[str, Any], orient: str) -> list[str]:
    """The names of the columns of a table."""
    if orient == _SPLIT:
        return [str(name) for name in row["columns"]]
    return list(next(iter(row.values()))) if orient == _INDEX else list(row)

"""A key that stands twice in one object, of which every parser keeps the last alone."""

from __future__ import annotations

import json
from typing import Any


def quotes_of(value: Any) -> int:
    """How many quotes the keys and texts of a value need."""
    kind = type(value)
    if kind is str:
        return 2
    if kind is dict:
        return 2 * len(value) + sum([quotes_of(part) for part in value.values()])
    if kind is list:
        return sum([quotes_of(part) for part in value])
    return 0


def key_twice(raw: bytes, row: Any) -> str | None:
    """The first key that stands twice in one object of a record, or None.

    Parsers keep the last of equal keys, so each leaves quotes that the value does not account for. Where quotes may
    be hidden by backslashes the record is parsed again, and each key looked at.
    """
    quotes = raw.count(b'"')
    if quotes != quotes_of(row) and (quotes - raw.count(b'\\"') != quotes_of(row) or b'\\\\"' in raw):
        try:
            json.loads(raw, object_pairs_hook=_unique)
        except _Twice as twice:
            return str(twice)
        except (ValueError, RecursionError):
            return None
    return None


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> None:
    met: set[str] = set()
    for key, _ in pairs:
        if key in met:
            raise _Twice(key)
        met.add(key)

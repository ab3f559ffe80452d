"""Small words about values: what is blank, what a value is called, how a text is shortened for a message."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from engine.words import Text, later

# White space and characters of no width: a text of nothing else is blank.
_INVISIBLE = (
    "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
    + "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u3164\ufeff\uffa0"
    + "".join(map(chr, [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]))
)
INVISIBLE_SET = frozenset(_INVISIBLE)


def is_blank(text: str) -> bool:
    """True when nothing in `text` can be seen."""
    return not text or (text[0] in INVISIBLE_SET and not text.strip(_INVISIBLE))


def short(text: str, limit: int = 40) -> str:
    """At most `limit` characters on one line, for a message; what a terminal would act on is written as an escape."""
    text = " ".join(text[: limit * 4].split()) or text[:limit]
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def kind_of(value: object) -> str | Text:
    """Name the type of a JSON value as a person would."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str):
        return later("text")
    if isinstance(value, int | float):
        return later("a number")
    return later("a list") if isinstance(value, list) else later("an object")


def name_list(names: Iterable[str], limit: int) -> str:
    """The first names, shortened for a message."""
    first = [short(name, 60) for name in itertools.islice(names, limit + 1)]
    return ", ".join(first if len(first) <= limit else [*first[:limit], "…"])


def column_list(row: dict[str, Any]) -> str | Text:
    return name_list(row, 12) or later("no fields")

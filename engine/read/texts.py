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


def is_empty(value: object) -> bool:
    """Whether a value holds nothing: null, a blank text, an empty list (also as text), or only such values."""
    if isinstance(value, str):
        return is_blank(value) or value.strip() in ("[]", "{}", "null", "None")
    if isinstance(value, list | dict):
        return all(is_empty(part) for part in (value.values() if isinstance(value, dict) else value))
    return value is None


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


def shown_name(name: str) -> str:
    """A name, shortened for a message, with the blanks at its ends to be seen."""
    inside = name.strip(" \t\r\n")
    if not inside:
        return "␣" * min(len(name), 8)
    before = name.index(inside)
    return "␣" * min(before, 8) + short(inside, 60) + "␣" * min(len(name) - before - len(inside), 8)


def name_list(names: Iterable[str], limit: int) -> str:
    """The first names, shortened for a message."""
    first = [shown_name(name) for name in itertools.islice(names, limit + 1)]
    return ", ".join(first if len(first) <= limit else [*first[:limit], "…"])


def column_list(row: dict[str, Any]) -> str | Text:
    return name_list(row, 12) or later("no fields")

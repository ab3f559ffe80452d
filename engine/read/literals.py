"""Lists that stand in a text, as tables have to write them: as JSON, or as Python shows them (pandas, numpy).

Nothing is run: a Python literal is put into JSON token by token, in one pass, and what is no literal is no list.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from engine.read import formats, lines, turns

# More than a cell of any table program holds; a text beyond it is left a text.
LIMIT_CHARACTERS = 4 << 20
# Columns that hold lists, by their meaning.
_OF_MESSAGES = ("messages", "prompt", "completion", "chosen", "rejected")
_OF_VALUES = ("history", "choices", "steps", "step_labels", "tools")

# Loops over the inside of a string match one text in one way only, so a failure costs one pass over it.
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")"""
    r"|(?P<call>(?:array|list)\()|(?P<kind>,\s*dtype=\w+)|(?P<mark>[\[\]{}(),:])"
    r"|(?P<word>True|False|None|nan|NaN|-?inf)\b|(?P<number>-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?))",
    re.DOTALL,
)
_WORDS = {"True": "true", "False": "false"}  # any other is nothing that a row could use
_ENDS = {"[": "]", "{": "}"}


def list_in(text: str) -> list[Any] | None:
    """The list that a text holds as JSON, JSON inside a JSON string or a Python literal; None when it holds none."""
    start = text[:64].lstrip()[:1]
    if start not in ("[", '"', "a", "(") or not start or len(text) > LIMIT_CHARACTERS:
        return None
    value: Any = text
    for _ in range(2):
        try:
            value = msgspec.json.decode(value)
        except lines.UNPARSED:
            break
        if not isinstance(value, str):
            return value if isinstance(value, list) else None
    written = _as_json(value)
    try:
        value = msgspec.json.decode(written) if written is not None else None
    except lines.UNPARSED:
        return None
    return value if isinstance(value, list) else None


def _as_json(text: str) -> str | None:
    """A Python literal as JSON; of numpy's arrays too, which are shown without commas. None when it is none."""
    out: list[str] = []
    closing: list[str] = []  # what closes each bracket that is open: nothing, for a call
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        kind, piece = match.lastgroup, match[match.lastgroup or 0]
        if kind == "kind":
            continue
        if kind == "call":
            closing.append("")
            continue
        if kind == "mark" and piece in "])}":
            if not closing:
                return None
            if out and out[-1] == ",":
                out.pop()
            out.append(closing.pop())
            continue
        if out and out[-1] in ("}", "]") and piece in ("{", "["):
            out.append(",")  # between two elements of an array
        if kind == "mark" and piece in "[{(":
            piece = "[" if piece == "(" else piece
            closing.append(_ENDS[piece])
        elif kind == "text":
            try:
                piece = json.dumps(ast.literal_eval(piece) if "\\" in piece else piece[1:-1])
            except (ValueError, SyntaxError):
                return None
        elif kind == "word":
            piece = _WORDS.get(piece, "null")
        out.append(piece)
    return None if closing else "".join(out)


def unpacked(row: dict[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """The row with the lists that its texts in these columns hold; a text that holds none stays."""
    found = {
        column: value
        for column in columns
        if isinstance(text := row.get(column), str) and (value := list_in(text)) is not None
    }
    return row | found if found else row


class Cells:
    """Counts, over the rows that decide a file's layout, which columns hold lists written as text."""

    def __init__(self) -> None:
        self.texts: Counter[str] = Counter()
        self.lists: Counter[str] = Counter()
        self.conversations: Counter[str] = Counter()

    def add(self, row: dict[str, Any]) -> None:
        for column, value in row.items():
            if isinstance(value, str) and value and not value.isspace():
                if column in ("tools", "functions") and lines.parses(value.encode("utf-8", "surrogatepass")):
                    continue  # JSON is what is expected there
                self.texts[column] += 1
                if (held := list_in(value)) is not None:
                    self.lists[column] += 1
                    self.conversations[column] += turns.is_message_list(held)

    def columns(self, mapping: dict[str, str]) -> tuple[str, ...]:
        """The columns of which most texts hold lists that a layout may mean: of messages wherever these can stand, of
        anything where only a list can."""
        anything, messages = set[str](), {"text"}
        for layout in formats.LAYOUTS:
            anything |= {layout.fields[meaning] for meaning in _OF_VALUES if meaning in layout.fields}
            if layout.conversational is not False:
                messages |= {layout.fields[meaning] for meaning in _OF_MESSAGES if meaning in layout.fields}
        return tuple(
            column
            for column, count in self.texts.items()
            if (2 * self.lists[column] > count and mapping.get(column, column) in anything)
            or (2 * self.conversations[column] > count and mapping.get(column, column) in messages)
        )

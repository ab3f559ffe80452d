"""What the quick way needs, which RowChecks.block goes: a decoder of conversations that look like most of their file, and
the sequences of roles that are plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.check.message_rules import take_turns
from engine.read import formats, turns


def quick_way(reading: formats.Reading, example: dict[str, Any]) -> QuickChat | None:
    """The quick way for the rows of a reading that look like `example`, where there is one."""
    fields = reading.layout.fields
    plain = reading.layout.type == "language-modeling" and "messages" in fields and not reading.prompts_only
    if not plain or reading.layout.is_bare or reading.layout.is_nested or reading.turn_pairs:
        return None
    return QuickChat.of(reading, example)


class CLOSED:
    """No quick way."""

    ready = False
    decode = quotes = sequences = sequence = None


class QuickChat:
    """What the quick way needs to know about conversations. It is written out in RowChecks.block, as a call for each row
    would cost a tenth of the time."""

    def __init__(self, decode: Callable[[bytes], Any], reading: formats.Reading, keys: set[str], quotes: int):
        self.decode = decode
        self.keys = keys
        self.quotes = quotes  # of everything outside of the messages
        self.roles = reading.style.roles
        self.ready = False  # not before a good row of these keys was seen: the careful way has noted its columns
        self.sequences: dict[tuple[str, ...], tuple[list[int], list[tuple[int, int]]] | None] = {}

    @classmethod
    def of(cls, reading: formats.Reading, example: dict[str, Any]) -> QuickChat | None:
        """The quick way for rows with exactly the keys of `example`, if what they hold is simple."""
        column = reading.layout.fields["messages"]
        others = {*reading.layout.fields.values(), *formats.DECISIVE} - {column, reading.unjudged}
        if (
            column not in example
            or others & {key.strip().lower() for key in example}
            or set(formats.MEDIA_COLUMNS) & set(example)
            or len(example) > 30
        ):
            return None
        role, content = (msgspec.field(name=key) for key in (reading.style.role_key, reading.style.content_key))
        message = msgspec.defstruct(
            "Message", [("role", str, role), ("content", str, content)], gc=False, forbid_unknown_fields=True
        )
        fields: list[Any] = [("messages", list[message], msgspec.field(name=column))]
        quotes = 2
        for number, (key, value) in enumerate(example.items()):
            if key == column:
                continue
            if isinstance(value, str):
                kind, quotes = str, quotes + 4
            elif value is None or isinstance(value, int | float):
                kind, quotes = int | float | bool | None, quotes + 2
            else:
                return None
            fields.append((f"more{number}", kind, msgspec.field(name=key)))
        row = msgspec.defstruct("Row", fields, gc=False, forbid_unknown_fields=True)
        decode = msgspec.json.Decoder(row).decode
        return cls(decode, reading, set(example), quotes)

    def learn(self, row: dict[str, Any]) -> None:
        """A good row was seen the careful way."""
        if set(row) == self.keys:
            self.ready = True

    def sequence(self, messages: list[Any]) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Where the answers of a plain conversation are, and the questions before them; None when it is not plain."""
        written = tuple(message.role for message in messages)
        kinds = [self.roles.get(role) for role in written]
        plain = kinds[-1:] == ["assistant"] and None not in kinds and take_turns(kinds)
        plain = plain and not any(map(turns.is_call_role, written))
        answers = [place for place, kind in enumerate(kinds) if kind == "assistant"]
        pairs = [(place - 1, place) for place in answers if place and kinds[place - 1] == "user"]
        found = (answers, pairs) if plain else None
        if len(self.sequences) < 1_000:
            self.sequences[written] = found
        return found

"""How the rows of a file are read: by their keys and, where these alone do not tell, by their values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable
from typing import Any

import msgspec

from engine.read import formats
from engine.read.turns import has_assistant, pair_keys

# Names of columns that hold answers: rows with such a column are no prompts without answers.
_ANSWER = re.compile(r"(?i)\s*(response|completion|output|chosen|rejected|winner)([\s_\d]|$)|\s*answer_")
# Other names of columns that a layout need not have.
_ALIASES = {"system": ("system_prompt", "system_message")}


def detect(rows: Iterable[dict[str, Any] | list[Any]], named: Container[str] = ()) -> formats.Reading | None:
    """Return how the majority of `rows` is read, or None when most of them fit no layout. `named`: columns whose meaning a
    person has said.

    Keys count first. Only when that finds nothing are null values taken as absent, as an export that writes every
    column in every row needs it. Then values count, where keys alone do not tell. `prompts_only` is true when no
    conversation among `rows` has an assistant turn.
    """
    groups: dict[str | None, list[Any]] = {}
    for row in rows:
        layout = formats.own_layout(row) if isinstance(row, dict) else formats.BARE
        groups.setdefault(layout.name if layout else None, []).append(row)
    name = max(groups, key=lambda name: len(groups[name]), default=None)
    if name is None:
        return None
    layout, unjudged = formats.BY_NAME[name], None
    if layout.name == "prompt_only" and _mostly(map(_has_answer, groups[name])):
        return None  # they have answers, under names that do not tell which is which
    label = layout.fields.get("label")
    if label and label not in named and not _judges([row[label] for row in groups[name]]):
        unjudged = label
        layout = formats.own_layout(groups[name][0], label) or layout
    if "completion" in layout.fields and _mostly(_is_ranking(row, layout) for row in groups[name]):
        layout = formats.BY_NAME.get(f"{layout.name}_ranked", layout)
    plain = [formats.plain_row(row, layout) for row in groups[name]]
    turn_pairs = "messages" in layout.fields and _mostly(pair_keys(row.get(layout.target)) for row in plain)
    layout = _with_aliases(layout, groups[name])
    conversational, sharegpt = Counter(_shape(row, layout) for row in plain).most_common(1)[0][0]
    return formats.Reading(
        layout=layout,
        conversational=conversational,
        sharegpt=sharegpt and not turn_pairs,
        prompts_only=(
            layout.type == "language-modeling"
            and "messages" in layout.fields
            and not turn_pairs
            and not any(has_assistant(row.get(layout.target)) for row in plain)
        ),
        turn_pairs=turn_pairs,
        unjudged=unjudged,
    )


def _has_answer(row: dict[str, Any]) -> bool:
    return any(isinstance(value, str | list | dict) and value and _ANSWER.match(key) for key, value in row.items())


def _with_aliases(layout: formats.Layout, rows: list[Any]) -> formats.Layout:
    """A layout with the names that optional columns have in these rows."""
    fields = dict(layout.fields)
    for meaning, names in _ALIASES.items():
        if meaning in fields and not any(fields[meaning] in row for row in rows):
            fields[meaning] = next((name for name in names if any(name in row for row in rows)), fields[meaning])
    return layout if fields == layout.fields else msgspec.structs.replace(layout, fields=fields)


def _mostly(values: Iterable[object]) -> bool:
    answers = [bool(value) for value in values]
    return 2 * sum(answers) > len(answers)


def _judges(values: list[Any]) -> bool:
    """Whether the values of a column are judgements, well written or not, and not classes such as 0 to 3 or names."""
    values = [value for value in values if value is not None]
    if _mostly(isinstance(value, bool) for value in values):
        return True
    if any(isinstance(value, int | float) and value not in (-1, 0, 1) for value in values):
        return False
    return not values or _mostly(formats.meant_label(value) is not None or isinstance(value, bool) for value in values)


def _is_ranking(row: dict[str, Any], layout: formats.Layout) -> bool:
    """Whether a row has one question and a list of answers."""
    asked, told = row[layout.fields["prompt"]], row[layout.target]
    return isinstance(told, list) and len(told) > 1 and isinstance(asked, str) and all(isinstance(a, str) for a in told)


def _shape(row: dict[str, Any], layout: formats.Layout) -> tuple[bool, bool]:
    """Whether a row has messages where it could have texts, and whether these are of the style SHAREGPT."""
    values = [row.get(layout.target), row.get(layout.fields.get("prompt", ""))]
    chats = [value for value in values if isinstance(value, list | dict)]
    conversational = layout.conversational
    if conversational is None:
        conversational = bool(chats)
    return conversational, _is_sharegpt(chats, layout)


def _is_sharegpt(values: list[Any], layout: formats.Layout) -> bool:
    """True when the first message that tells is from/value; a layout of conversations that does not tell counts too."""
    for value in values:
        for message in value if isinstance(value, list) else [value]:
            if isinstance(message, dict):
                if "role" in message or "content" in message:
                    return False
                if "from" in message or "value" in message:
                    return True
    return "conversations" in layout.required

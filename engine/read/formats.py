"""The layouts a dataset can have, as one table, and how a file's layout is found from the keys of its rows.

A layout says which columns it needs and what each of them means (`fields`: meaning -> column), so that checking and
converting are written once per meaning, and a mapping made by a person is just one more layout. To add a layout, add
one entry to LAYOUTS; the more columns an entry requires, the earlier it wins over another that also fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

TYPES = (
    "language-modeling",
    "prompt-only",
    "prompt-completion",
    "preference",
    "unpaired-preference",
    "stepwise",
)


class Style(NamedTuple):
    """How messages are written: under which keys a role and a text stand, and the roles as they are written -> roles of
    a canonical row."""

    role_key: str
    content_key: str
    roles: dict[str, str]


OPENAI = Style(
    "role",
    "content",
    {
        "system": "system",
        "developer": "system",
        "user": "user",
        "assistant": "assistant",
        "tool": "tool",
        "function": "tool",
    },
)
SHAREGPT = Style(
    "from",
    "value",
    {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "function_call": "assistant",
        "observation": "tool",
        "tool": "tool",
    },
)


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """One way to write rows. `fields` maps a meaning (prompt, completion, label, ...) to this layout's column.

    `conversational`: False when its targets are texts, True when they are messages, None when either can be.
    """

    name: str
    type: str
    fields: dict[str, str]
    required: tuple[str, ...]  # columns
    conversational: bool | None = False

    @property
    def optional(self) -> tuple[str, ...]:
        return tuple(c for c in self.fields.values() if c not in self.required and "." not in c)

    @property
    def is_bare(self) -> bool:
        """Whether a row is a list of messages by itself."""
        return self.name == BARE.name

    @property
    def is_nested(self) -> bool:
        """Whether a column is a field inside a column: plain_row() brings it up."""
        return any("." in column for column in self.fields.values())

    @property
    def target(self) -> str:
        """The column that tells texts from messages."""
        for meaning in ("messages", "completion", "chosen", "steps", "text", "prompt"):
            if meaning in self.fields:
                return self.fields[meaning]
        raise AssertionError(f"layout {self.name} has no target")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How the rows of one file are read: its layout, and what the layout leaves open.

    `sharegpt`: messages are of the style SHAREGPT instead of OPENAI. `prompts_only`: no conversation of the file has an
    assistant turn, so they are prompts. `unpacked`: columns whose texts hold lists (literals.unpacked).
    """

    layout: Layout
    conversational: bool = False
    sharegpt: bool = False
    prompts_only: bool = False
    unpacked: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        if self.prompts_only:
            return f"prompt_only_{self.layout.fields['messages']}"
        return self.layout.name

    @property
    def type(self) -> str:
        return "prompt-only" if self.prompts_only else self.layout.type

    @property
    def style(self) -> Style:
        return SHAREGPT if self.sharegpt else OPENAI


def _layout(name: str, kind: str, required: str, optional: str = "", conversational: bool | None = False) -> Layout:
    """Read "meaning=column meaning ..." lists; a bare word is both meaning and column."""

    def pairs(text: str) -> dict[str, str]:
        return {meaning: column or meaning for meaning, _, column in (word.partition("=") for word in text.split())}

    needed = pairs(required)
    return Layout(
        name=name,
        type=kind,
        fields={**needed, **pairs(optional)},
        # A dotted column is a field inside a column: plain_row() brings it up.
        required=tuple(column.partition(".")[0] for column in needed.values()),
        conversational=conversational,
    )


# Among layouts that fit a row, the one with most required columns wins, then the earlier one.
LAYOUTS: tuple[Layout, ...] = (
    _layout("messages", "language-modeling", "messages", "tools", True),
    _layout("sharegpt", "language-modeling", "messages=conversations", "tools system", True),
    _layout("prompt_completion", "prompt-completion", "prompt completion", "system tools choices family", None),
    _layout("alpaca", "prompt-completion", "prompt=instruction completion=output", "input system history"),
    _layout(
        "instruction_response",
        "prompt-completion",
        "prompt=instruction completion=response",
        "input system history",
    ),
    _layout("question_answer", "prompt-completion", "prompt=question completion=answer", "system"),
    _layout("query_response", "prompt-completion", "prompt=query completion=response", "system history"),
    _layout("prompt_response", "prompt-completion", "prompt completion=response", "system"),
    _layout("input_output", "prompt-completion", "prompt=input completion=output", "system"),
    _layout("preference", "preference", "prompt chosen rejected", "system tools", None),
    _layout("sharegpt_ranking", "preference", "prompt=conversations chosen rejected", "system tools", True),
    _layout(
        "openai_preference",
        "preference",
        "prompt=input.messages chosen=preferred_output rejected=non_preferred_output",
        "tools=input.tools",
        True,
    ),
    _layout("alpaca_ranking", "preference", "prompt=instruction chosen rejected", "input system history"),
    _layout("question_ranking", "preference", "prompt=question chosen rejected", "system"),
    _layout(
        "chosen_response", "preference", "prompt chosen=chosen_response rejected=rejected_response", "system", None
    ),
    _layout(
        "instruction_chosen_response",
        "preference",
        "prompt=instruction chosen=chosen_response rejected=rejected_response",
        "input system",
    ),
    _layout(
        "question_chosen_response",
        "preference",
        "prompt=question chosen=chosen_response rejected=rejected_response",
        "system",
    ),
    _layout("response_jk", "preference", "prompt=question chosen=response_j rejected=response_k", "system"),
    _layout("prompt_response_jk", "preference", "prompt chosen=response_j rejected=response_k", "system"),
    _layout("messages_ranking", "preference", "chosen=chosen_messages rejected=rejected_messages", "tools", True),
    _layout("preference_implicit", "preference", "chosen rejected", "tools", None),
    _layout("unpaired", "unpaired-preference", "prompt completion label", "system tools", None),
    _layout("seed_kto", "unpaired-preference", "prompt completion=response label=is_good", "system"),
    _layout("messages_kto", "unpaired-preference", "messages label", "tools", True),
    _layout("sharegpt_kto", "unpaired-preference", "messages=conversations label", "tools system", True),
    _layout("stepwise", "stepwise", "prompt steps=completions step_labels=labels"),
    _layout("text", "language-modeling", "text"),
    _layout("prompt_only", "prompt-only", "prompt", "system tools", None),
    # Rows that are lists of messages by themselves; they have no keys to be known by.
    _layout("bare_messages", "language-modeling", "messages", "", True),
)
BARE = LAYOUTS[-1]
BY_NAME = {layout.name: layout for layout in LAYOUTS}

# Parts of a message's content that are text; images, sound and video are not trained on.
TEXT_PARTS = ("text", "input_text", "output_text")
# Columns that hold what is not text.
MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
IGNORE = "ignore"


def text_of(content: object) -> str:
    """The text of a message's content, which may be a list of text parts, or nothing."""
    if isinstance(content, list):
        return "".join(map(part_text, content))
    return content if isinstance(content, str) else ""


def part_text(part: dict[str, Any]) -> Any:
    """What stands where a part of a message's content has its text, whatever that is."""
    return part.get("text", part.get("value"))


def targets() -> list[str]:
    """What a column can be mapped to: any column of a known layout, or nothing."""
    known = {column for layout in LAYOUTS for column in layout.fields.values() if "." not in column}
    return [*sorted(known), IGNORE]


def renamed(row: dict[str, Any], mapping: dict[str, str]) -> dict[str, Any]:
    """The row under the names a mapping gives its columns; a column that is mapped wins over one that has the name."""
    taken = set(mapping.values())
    kept = {key: value for key, value in row.items() if key not in mapping and key not in taken}
    return kept | {to: row[key] for key, to in mapping.items() if key in row and to != IGNORE}


def mapped(reading: Reading, mapping: dict[str, str]) -> Reading:
    """The reading of renamed rows, turned back to the names the columns have in the file."""
    own = {to: key for key, to in mapping.items() if to != IGNORE}
    layout = reading.layout
    return msgspec.structs.replace(
        reading,
        layout=Layout(
            name=layout.name,
            type=layout.type,
            fields={meaning: own.get(column, column) for meaning, column in layout.fields.items()},
            required=tuple(own.get(column, column) for column in layout.required),
            conversational=layout.conversational,
        ),
    )


def plain_row(row: Any, layout: Layout) -> Any:
    """A row with what its layout keeps one level down brought up; as it is when that is not there."""
    if layout is BARE:
        return {"messages": row} if isinstance(row, list) else row
    if isinstance(row, dict):
        for column in layout.fields.values():
            outer, _, inner = column.partition(".")
            if inner:
                held = row.get(outer)
                if isinstance(held, dict):
                    row = {**row, column: held.get(inner)}
                elif inner == "messages":
                    row = {**row, column: held}  # the check says what it is instead
    return row


# The layouts that are named when a file has none of them: the plainest of each type.
_PLAINEST = ("messages", "prompt_completion", "text", "preference", "unpaired", "alpaca")


def known_layouts() -> str:
    """The plainest layouts by their columns, for the sentence about an unknown one."""
    return ", ".join("+".join(BY_NAME[name].required) for name in _PLAINEST)


def layout_of(keys: Iterable[str]) -> Layout | None:
    """Return the layout that the keys of one row fit best, or None."""
    present = set(keys)
    best: Layout | None = None
    for layout in LAYOUTS:
        if (
            layout is not BARE
            and present.issuperset(layout.required)
            and (best is None or len(layout.required) > len(best.required))
        ):
            best = layout
    return best


def detect(rows: Iterable[dict[str, Any] | list[Any]]) -> Reading | None:
    """Return how the majority of `rows` is read, or None when most of them fit no layout.

    Keys count first. Only when that finds nothing are null values taken as absent, as an export that writes every
    column in every row needs it. `prompts_only` is true when no conversation among `rows` has an assistant turn.
    """
    votes: Counter[str | None] = Counter()
    styles: dict[str | None, Counter[tuple[bool, bool]]] = {}
    answered: set[str | None] = set()
    for row in rows:
        layout = own_layout(row) if isinstance(row, dict) else BARE
        name = layout.name if layout else None
        votes[name] += 1
        if layout is None:
            continue
        target = plain_row(row, layout).get(layout.target)
        conversational = layout.conversational
        if conversational is None:
            conversational = isinstance(target, list | dict)
        shape = (conversational, _is_sharegpt(target, layout))
        styles.setdefault(name, Counter())[shape] += 1
        if "messages" in layout.fields and name not in answered and has_assistant(target):
            answered.add(name)
    if not votes:
        return None
    name = votes.most_common(1)[0][0]
    if name is None:
        return None
    layout = BY_NAME[name]
    conversational, sharegpt = styles[name].most_common(1)[0][0]
    prompts_only = layout.type == "language-modeling" and "messages" in layout.fields and name not in answered
    return Reading(layout=layout, conversational=conversational, sharegpt=sharegpt, prompts_only=prompts_only)


def own_layout(row: dict[str, Any]) -> Layout | None:
    """The layout of one row: by its non-null columns, or by all of them when those fit nothing."""
    return layout_of(key for key, value in row.items() if value is not None) or layout_of(row)


def is_message_list(row: object) -> bool:
    """True when a row is a list of messages by itself."""
    return (
        isinstance(row, list) and bool(row) and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in row)
    )


def has_assistant(messages: object) -> bool:
    """True when a list of messages, in either style, has a turn of the assistant."""
    if not isinstance(messages, list):
        return False
    for message in messages:
        if isinstance(message, dict):
            role = message.get("role", message.get("from"))
            if isinstance(role, str) and SHAREGPT.roles.get(role) == "assistant":
                return True
    return False


def _is_sharegpt(target: object, layout: Layout) -> bool:
    """True when the first message that tells is from/value; a layout of conversations that does not tell counts too."""
    for message in target if isinstance(target, list) else [target]:
        if isinstance(message, dict):
            if "role" in message or "content" in message:
                return False
            if "from" in message or "value" in message:
                return True
    return "conversations" in layout.required

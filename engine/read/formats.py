"""The layouts a dataset can have, as one table, and how a row's layout is found from its keys.

A layout says which columns it needs and what each of them means (`fields`: meaning -> column), so that checking and
converting are written once per meaning, and a mapping made by a person is just one more layout. To add a layout, add
one entry to LAYOUTS; the more columns an entry requires, the earlier it wins over another that also fits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.read.turns import OPENAI, SHAREGPT, Style, expanded

TYPES = (
    "language-modeling",
    "prompt-only",
    "prompt-completion",
    "preference",
    "unpaired-preference",
    "stepwise",
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
        for meaning in ("messages", "completion", "chosen", "ranking", "first", "steps", "text", "prompt"):
            if meaning in self.fields:
                return self.fields[meaning]
        raise AssertionError(f"layout {self.name} has no target")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How the rows of one file are read: its layout, and what the layout leaves open.

    `sharegpt`: messages are of the style SHAREGPT instead of OPENAI. `prompts_only`: no conversation of the file has an
    assistant turn, so they are prompts. `turn_pairs`: conversations are lists of question and answer (turns.expanded).
    `drop_nulls`: the container gives each object inside a column the keys of all others, with nulls. `unjudged`: a
    column whose name is a label's and whose values judge nothing. `unpacked`: columns whose texts hold lists
    (literals.unpacked).
    """

    layout: Layout
    conversational: bool = False
    sharegpt: bool = False
    prompts_only: bool = False
    turn_pairs: bool = False
    drop_nulls: bool = False
    unjudged: str | None = None
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
    """Read "meaning=column meaning ..." lists; a bare word is both meaning and column. Beside every prompt there may be a
    system text and tools, beside one that is text also what it is about."""

    def pairs(text: str) -> dict[str, str]:
        return {meaning: column or meaning for meaning, _, column in (word.partition("=") for word in text.split())}

    needed = pairs(required)
    common = "" if {"text", "steps"} & set(needed) else "system tools functions"
    if "prompt" in needed and conversational is not True and common:
        common += " context"
    return Layout(
        name=name,
        type=kind,
        fields={**pairs(common), **needed, **pairs(optional)},
        # A dotted column is a field inside a column: plain_row() brings it up.
        required=tuple(column.partition(".")[0] for column in needed.values()),
        conversational=conversational,
    )


_CHATS = (
    _layout("messages", "language-modeling", "messages", "", True),
    _layout("sharegpt", "language-modeling", "messages=conversations", "", True),
    _layout("conversation", "language-modeling", "messages=conversation", "", True),
)
_ANSWERS = (
    _layout("prompt_completion", "prompt-completion", "prompt completion", "choices family", None),
    _layout("alpaca", "prompt-completion", "prompt=instruction completion=output", "input history"),
    _layout("instruction_response", "prompt-completion", "prompt=instruction completion=response", "input history"),
    _layout("question_answer", "prompt-completion", "prompt=question completion=answer"),
    _layout("query_response", "prompt-completion", "prompt=query completion=response", "history"),
    _layout("prompt_response", "prompt-completion", "prompt completion=response"),
    _layout("question_response", "prompt-completion", "prompt=question completion=response"),
    _layout("input_output", "prompt-completion", "prompt=input completion=output"),
)
_PAIRS = (
    _layout("preference", "preference", "prompt chosen rejected", "", None),
    _layout("sharegpt_ranking", "preference", "prompt=conversations chosen rejected", "", True),
    _layout("messages_chosen_rejected", "preference", "prompt=messages chosen rejected", "", True),
    _layout(
        "openai_preference",
        "preference",
        "prompt=input.messages chosen=preferred_output rejected=non_preferred_output",
        "tools=input.tools functions=input.functions",
        True,
    ),
    _layout("alpaca_ranking", "preference", "prompt=instruction chosen rejected", "input history", None),
    _layout("question_ranking", "preference", "prompt=question chosen rejected", "", None),
    _layout("chosen_response", "preference", "prompt chosen=chosen_response rejected=rejected_response", "", None),
    _layout(
        "instruction_chosen_response",
        "preference",
        "prompt=instruction chosen=chosen_response rejected=rejected_response",
        "input",
        None,
    ),
    _layout(
        "question_chosen_response",
        "preference",
        "prompt=question chosen=chosen_response rejected=rejected_response",
        "",
        None,
    ),
    _layout("response_jk", "preference", "prompt=question chosen=response_j rejected=response_k"),
    _layout("prompt_response_jk", "preference", "prompt chosen=response_j rejected=response_k"),
    _layout("messages_ranking", "preference", "chosen=chosen_messages rejected=rejected_messages", "", True),
    _layout("messages_rejected_messages", "preference", "chosen=messages rejected=rejected_messages", "", True),
    _layout("preference_implicit", "preference", "chosen rejected", "", None),
)
# Two answers, and a column that says which is the better one.
_DUELS = (
    *(
        _layout(f"{asked}_{first}_{by}", "preference", f"prompt={asked} first={first} second={second} winner={by}")
        for asked in ("prompt", "question", "instruction")
        for first, second, by in (
            ("response_a", "response_b", "winner"),
            ("answer_a", "answer_b", "winner"),
            ("response_0", "response_1", "better_response_id"),
        )
    ),
    _layout("conversation_winner", "preference", "first=conversation_a second=conversation_b winner", "", True),
)

LABELS = ("label", "kto_tag")
WORSE = ("rejected_response", "rejected")


def _with(layout: Layout, name: str, kind: str, **more: str) -> Layout:
    """A layout that needs more columns than another."""
    return msgspec.structs.replace(
        layout,
        name=name,
        type=kind,
        fields={**layout.fields, **more},
        required=(*layout.required, *more.values()),
        conversational=layout.conversational,
    )


def _judged(layout: Layout, column: str) -> Layout:
    name = f"{layout.name}_{column}".replace("_label", "_kto")
    return _with(layout, "unpaired" if name == "prompt_completion_kto" else name, "unpaired-preference", label=column)


def _against(layout: Layout, column: str) -> Layout:
    """A layout of answers, and worse ones beside them in a column of their own."""
    name = f"{layout.name}_{column}"
    if "messages" in layout.fields:  # the better answer is its last message
        return _with(layout, name, "preference", rejected=column)
    fields = _renamed_answer(layout, "chosen")
    return _with(
        msgspec.structs.replace(layout, fields=fields, conversational=None), name, "preference", rejected=column
    )


def _renamed_answer(layout: Layout, meaning: str) -> dict[str, str]:
    """The fields of a layout whose answer has another meaning; choices are those of one answer."""
    return {meaning if own == "completion" else own: held for own, held in layout.fields.items() if own != "choices"}


def _ranked(layout: Layout) -> Layout:
    """A layout whose answers are lists: the best comes first, the worst last."""
    fields = _renamed_answer(layout, "ranking")
    return msgspec.structs.replace(
        layout, name=f"{layout.name}_ranked", type="preference", fields=fields, conversational=False
    )


# Among layouts that fit a row, the one with most required columns wins, then the earlier one.
LAYOUTS: tuple[Layout, ...] = (
    *_CHATS,
    *_ANSWERS,
    *_PAIRS,
    *_DUELS,
    *(_judged(layout, column) for layout in (*_ANSWERS, *_CHATS) for column in LABELS),
    _layout("seed_kto", "unpaired-preference", "prompt completion=response label=is_good"),
    *(_against(layout, column) for layout in (*_ANSWERS, *_CHATS) for column in WORSE),
    _layout("stepwise", "stepwise", "prompt steps=completions step_labels=labels"),
    _layout("text", "language-modeling", "text"),
    _layout("prompt_only", "prompt-only", "prompt", "", None),
    # Known by their values and not by their keys.
    *(_ranked(layout) for layout in _ANSWERS),
    # Rows that are lists of messages by themselves; they have no keys to be known by.
    Layout(
        name="bare_messages",
        type="language-modeling",
        fields={"messages": "messages"},
        required=("messages",),
        conversational=True,
    ),
)
BARE = LAYOUTS[-1]
BY_NAME = {layout.name: layout for layout in LAYOUTS}

# Columns that hold what is not text.
MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
# Columns that a layout may have no place for and that yet say how a row is meant: these are never passed over in silence.
DECISIVE = {
    "system", "system_prompt", "context", "input", "history", "tools", "functions", "label", "kto_tag", "is_good",
    "winner", "better_response_id", "chosen", "chosen_response", "rejected", "rejected_response", "rejected_responses",
    "rejected_messages", "parent_id", "parent_message_id", "weight", "loss", "loss_weight", "train", "training",
    "reasoning_content", "reasoning", "thinking",
}  # fmt: skip
IGNORE = "ignore"


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
            # A column that was given another meaning, or none, no longer has the one of its name.
            fields={
                meaning: own.get(column, column)
                for meaning, column in layout.fields.items()
                if column in own or column not in mapping
            },
            required=tuple(own.get(column, column) for column in layout.required),
            conversational=layout.conversational,
        ),
    )


def plain_row(row: Any, layout: Layout, turn_pairs: bool = False) -> Any:
    """A row with what its layout keeps one level down brought up, and with pairs of turns as turns; as it is when that is
    not there."""
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
        if turn_pairs:
            row = {**row, layout.target: expanded(row.get(layout.target))}
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


def own_layout(row: dict[str, Any], unjudged: str | None = None) -> Layout | None:
    """The layout of one row: by its non-null columns, or by all of them when those fit nothing."""
    keys = [key for key in row if key != unjudged]
    return layout_of(key for key in keys if row[key] is not None) or layout_of(keys)


LABEL_WORDS = {
    "true": "true", "yes": "true", "y": "true", "1": "true", "1.0": "true", "good": "true", "good answer": "true",
    "false": "false", "no": "false", "n": "false", "0": "false", "0.0": "false", "-1": "false", "bad": "false",
}  # fmt: skip


def meant_label(value: object) -> bool | None:
    """What a label that is not a boolean clearly stands for, such as "yes" or 1, or None."""
    if value is True or value is False or not isinstance(value, str | int | float):
        return None
    word = LABEL_WORDS.get(str(value).strip().lower())
    return None if word is None else word == "true"

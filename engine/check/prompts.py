"""Where the prompt of a row ends and its answers begin: what an answer repeats of its prompt, and what two answers share."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from engine.read import formats, turns

# How a turn of the assistant begins in a transcript.
ASSISTANT_MARK = "\n\nAssistant:"


# What the column of a pair's winner says of the first and of the second answer; it may also name the answer's column.
_WINNERS = {
    "model_a": 0, "response_a": 0, "answer_a": 0, "assistant_a": 0, "a": 0, "first": 0,
    "model_b": 1, "response_b": 1, "answer_b": 1, "assistant_b": 1, "b": 1, "second": 1,
}  # fmt: skip


class Side(NamedTuple):
    """One answer of a pair, and where it stands in its row."""

    value: Any
    where: str


def sides(row: dict[str, Any], fields: dict[str, str]) -> tuple[Side, Side] | None:
    """The better and the worse answer of a row of two, whichever way it tells them apart; None when it does not tell."""
    if "chosen" in fields:
        return Side(row[fields["chosen"]], fields["chosen"]), Side(row[fields["rejected"]], fields["rejected"])
    if "ranking" in fields:
        column, ranked = fields["ranking"], row[fields["ranking"]]
        if not isinstance(ranked, list) or len(ranked) < 2:
            return None
        return Side(ranked[0], f"{column}[0]"), Side(ranked[-1], f"{column}[{len(ranked) - 1}]")
    if "winner" in fields:
        winner = winner_of(row, fields)
        pair = [Side(row[fields[meaning]], fields[meaning]) for meaning in ("first", "second")]
        return None if winner is None else (pair[winner], pair[1 - winner])
    return None


def winner_of(row: dict[str, Any], fields: dict[str, str]) -> int | None:
    """Which of two answers won, 0 or 1; None for a tie, or when the row does not say."""
    said = str(row[fields["winner"]]).strip().lower()
    names = [fields[meaning].lower() for meaning in ("first", "second")]
    if said in names:
        return names.index(said)
    if names[0].endswith("_0") and said in ("0", "1", "0.0", "1.0"):
        return int(said[0])
    return _WINNERS.get(said)


def prompt_value(row: dict[str, Any], reading: formats.Reading) -> Any:
    """The prompt of a row: its column or, when this is a text that the answers repeat as messages, these messages: they
    may have a system turn that the text has not."""
    fields = reading.layout.fields
    prompt = row[fields["prompt"]]
    if not isinstance(prompt, str) or not reading.conversational:
        return prompt
    pair = sides(row, fields) or ((Side(row[fields["completion"]], ""),) if "completion" in fields else ())
    for side in pair:
        if isinstance(side.value, list) and (cut := repeated_prompt(prompt, side.value, reading)):
            return side.value[:cut]
    return prompt


def repeated_prompt(prompt: object, answer: list[Any], reading: formats.Reading) -> int:
    """How many messages at the start of an answer only repeat its prompt, which is text or a list of messages; before a
    text there may be system turns."""
    if isinstance(prompt, list):
        count = len(prompt)
        return count if count < len(answer) and answer[:count] == prompt else 0
    style = reading.style
    for index, message in enumerate(answer[:-1]):
        role = style.roles[message[style.role_key]]
        if role != "system":
            return index + 1 if role == "user" and turns.words_of(message, style) == prompt else 0
    return 0


def shared_messages(chosen: object, rejected: object) -> int:
    """How many whole messages two conversations share at their start."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return 0
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    return count


def shared_transcript(chosen: str, rejected: str) -> int | None:
    """Where the shared prompt of two "\\n\\nHuman: ... \\n\\nAssistant: ..." transcripts ends, or None without one.

    The cut is after the last shared assistant turn mark, so that no character of an answer falls to the prompt.
    """
    low, high = 0, min(len(chosen), len(rejected))
    while low < high:  # the length of the longest common beginning
        middle = (low + high + 1) // 2
        if chosen[low:middle] == rejected[low:middle]:
            low = middle
        else:
            high = middle - 1
    found = chosen.rfind(ASSISTANT_MARK, 0, low)
    return None if found < 0 else found + len(ASSISTANT_MARK)


def transcript(text: str, role: str = "assistant") -> list[tuple[str, str]]:
    """The turns (role, text) of what is told as "... \\n\\nHuman: ... \\n\\nAssistant: ..."; what stands before the first
    mark is of `role`."""
    pieces = re.split(r"\n\n(Human|Assistant):", text)
    turns_told = [(role, pieces[0])] if pieces[0] else []
    for mark, told in zip(pieces[1::2], pieces[2::2], strict=True):
        turns_told.append(("user" if mark == "Human" else "assistant", told))
    return turns_told

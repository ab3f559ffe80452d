"""Evaluation rows that are trained on too: as they are, or by what they ask."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

_Key = tuple[str, ...]
_ASIDE = ("system", "developer")


class _Answered(NamedTuple):
    """What stands before an answer, without system texts and with them, and the answer."""

    question: _Key = ()
    told: _Key = ()
    answer: _Key = ()


class Overlap(NamedTuple):
    """Which of some rows are trained on as they are, and of which others the question is, by their index."""

    exact: frozenset[int]
    asked: frozenset[int]


def between(trained: Iterable[dict[str, Any]], rows: list[dict[str, Any]]) -> Overlap:
    """Hold canonical rows against those that are trained on.

    Case and white space are no difference: a model that learned the one answers the other; nor is the system text where
    the answer is the same, while another answer to the same words under another system text is another question. In a
    conversation every turn of the assistant is learned, so each is an answer to what stands before it. It is told by the
    answer it ends with; where an earlier one is trained on as it is, what is measured on it is no longer unseen either.
    """
    whole: set[int] = set()  # hashes: of a million long rows the texts would not fit
    questions: set[int] = set()
    for row in trained:
        for one in _learned(row):
            whole.add(hash((one.question, one.answer)))
            if one.question:
                questions.add(hash(one.told))
    exact, asked = set(), set()
    for index, row in enumerate(rows):
        *earlier, last = _learned(row) or [_Answered()]  # of a conversation without an answer
        if hash((last.question, last.answer)) in whole:
            exact.add(index)
        elif hash(last.told) in questions or any(
            hash((one.question, one.answer)) in whole for one in earlier if _is_asked(one.question)
        ):
            asked.add(index)
    return Overlap(frozenset(exact), frozenset(asked))


def said_in(trained: Iterable[dict[str, Any]]) -> set[int]:
    """Return hashes of what rows that are trained on say or ask: their texts, and what people say in them."""
    said: set[int] = set()
    for row in trained:
        turns = row.get("messages") or row.get("prompt")
        texts = [row.get("text")] if isinstance(turns, str) or not turns else [one.get("content") for one in turns]
        said.update(hash(normal(text)) for text in texts if text)
    return said


def asked_by(said: set[int], questions: Iterable[str]) -> int:
    """Return how many of a benchmark's questions or texts are among what is said (said_in)."""
    return sum(hash(normal(question)) in said for question in questions)


def normal(text: str) -> str:
    """A text without what makes no difference: case, width, and any white space."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _learned(row: dict[str, Any]) -> list[_Answered]:
    """Return what a row teaches, answer by answer; of a text, the text alone."""
    if row.get("text") is not None:
        return [_Answered(answer=(normal(row["text"]),))]
    messages = row.get("messages")
    if messages:
        said = [_every([one]) for one in messages]  # once: a turn stands before every answer that comes after it
        kept = [() if one["role"] in _ASIDE else turn for one, turn in zip(messages, said, strict=True)]
        ends = [at for at, one in enumerate(messages) if one["role"] == "assistant"]
        before = [(tuple(chain(*kept[:at])), tuple(chain(*said[:at]))) for at in ends]
        return [_Answered(one or told, told, said[at]) for (one, told), at in zip(before, ends, strict=True)]
    prompt = row.get("prompt")
    if isinstance(prompt, str):  # steps, which nothing here trains on
        return [_Answered((normal(prompt),), (normal(prompt),))]
    sides = [_turns(row.get(name) or []) for name in ("completion", "chosen", "rejected")]
    label = () if row.get("label") is None else (str(row["label"]),)
    return [_Answered(_turns(prompt or []), _every(prompt or []), (*sum(sides, ()), *label))]


def _is_asked(question: _Key) -> bool:
    """Whether a person speaks in what stands before an answer: a greeting with which all conversations begin says
    nothing of them."""
    return any(turn.startswith('["user"') for turn in question)


def _turns(messages: list[dict[str, Any]]) -> _Key:
    """Return the turns of a conversation but for its system text, unless it says nothing else."""
    return _every([one for one in messages if one["role"] not in _ASIDE] or messages)


def _every(messages: list[dict[str, Any]]) -> _Key:
    return tuple(
        json.dumps([one["role"], *(normal(one.get(part) or "") for part in ("content", "tool_calls", "name"))])
        for one in messages
    )

"""Which tokens are trained: one function, used by training and by the preview of the mask.

A conversation is rendered once and masked by character offsets. Tokenising a prompt apart from its answer splits
differently at the seam, which was seen to cost a loss of 8 where it should be near 0 on a known answer.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from engine.models import templates
from engine.runs import failures
from engine.words import Problem

IGNORED = -100  # the label that cross-entropy passes over


class Encoded(NamedTuple):
    """Token ids and labels of one row; labels are -100 where nothing is trained. `cut` says the window was too short."""

    input_ids: list[int]
    labels: list[int]
    cut: bool

    @property
    def trained_tokens(self) -> int:
        # The first token has no predecessor, so it is never predicted.
        return sum(label != IGNORED for label in self.labels[1:])


def ensure_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the plain one; return whether that was needed."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = templates.PLAIN_TEMPLATE
    return True


def render(tokenizer: Any, messages: list[dict[str, Any]], tools: str | None = None, *, ask: bool = False) -> str:
    """Return the text of a conversation; with `ask` it ends where the assistant's answer begins."""
    return tokenizer.apply_chat_template(
        templates.for_template(messages),
        tools=json.loads(tools) if tools else None,
        tokenize=False,
        add_generation_prompt=ask,
    )


def trained_spans(
    tokenizer: Any, messages: list[dict[str, Any]], tools: str | None, *, only_last: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the rendered conversation and the character spans that are trained: every assistant turn (or only the
    last) with its end marker, and nothing else. Raises RunRefused when the template hides where an answer begins."""
    whole = render(tokenizer, messages, tools)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = []
    for index in turns[-1:] if only_last else turns:
        before = render(tokenizer, messages[:index], tools, ask=True)
        until = whole if index == len(messages) - 1 else render(tokenizer, messages[: index + 1], tools)
        if not (whole.startswith(before) and whole.startswith(until)):
            spans.append(_span_by_mark(tokenizer, messages, tools, index, whole))
            continue
        end = len(until)
        while end > len(before) and whole[end - 1] in "\n ":
            end -= 1  # white space after the end marker belongs to the next turn
        spans.append((len(before), max(end, len(before))))
    return whole, spans


def _span_by_mark(
    tokenizer: Any, messages: list[dict[str, Any]], tools: str | None, index: int, whole: str
) -> tuple[int, int]:
    """Return the span of one answer where the template shows earlier answers otherwise than the last, as those do that
    drop earlier reasoning: put a mark in its place, and what stands around the mark is not the answer."""
    mark = "tunebook0answer0mark"
    marked = [{**m, "content": mark} if i == index else m for i, m in enumerate(messages)]
    before, found, after = render(tokenizer, marked, tools).partition(mark)
    if not found or len(before) + len(after) > len(whole) or not (whole.startswith(before) and whole.endswith(after)):
        raise failures.RunRefused(Problem(rule="data-template", parameters={"turn": index}))
    end = len(whole) - len(after)
    # The mark that ends the turn is learned too, so that the model stops.
    closing = next((token for token in tokenizer.all_special_tokens if after.startswith(token)), "")
    return len(before), end + len(closing)


def conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a canonical row of messages, or of prompt and completion, as one conversation."""
    return row["messages"] if row.get("messages") else [*row["prompt"], *row["completion"]]


def encode(row: dict[str, Any], tokenizer: Any, max_length: int) -> Encoded:
    """Return the token ids and labels of one canonical row, cut to `max_length` tokens.

    `text` trains everything and ends in the end-of-text token. In `messages` every assistant turn is trained, in
    `prompt` + `completion` only what the completion adds.
    """
    if row.get("text") is not None:
        ids = tokenizer(row["text"], add_special_tokens=True)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
        return Encoded(ids[:max_length], list(ids[:max_length]), len(ids) > max_length)
    messages = conversation(row)
    whole, spans = trained_spans(tokenizer, messages, row.get("tools"), only_last=not row.get("messages"))
    # The template writes the special tokens itself.
    coded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    labels, position = [IGNORED] * len(ids), 0
    for start, end in spans:
        while position < len(ids) and offsets[position][0] < start:
            position += 1
        while position < len(ids) and offsets[position][0] < end:
            if offsets[position][1] > offsets[position][0]:
                labels[position] = ids[position]
            position += 1
    return Encoded(ids[:max_length], labels[:max_length], len(ids) > max_length)

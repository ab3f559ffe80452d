"""Which tokens of a canonical row are read and which are trained: one place for the check, the preview and the run.

A conversation is rendered once and masked by character offsets. Tokenising a prompt apart from its answer splits
differently at the seam, which was seen to cost a loss of 8 where it should be near 0 on a known answer.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any, NamedTuple

from engine.render.coder import Coded, Coder
from engine.render.template import Message, NotWritten
from engine.render.turns import Turn
from engine.words import Problem

IGNORED = -100  # the label that cross-entropy passes over


class Encoded(NamedTuple):
    """Token ids and labels of one row; labels are -100 where nothing is trained. `cut` says the window was too short;
    `dropped` counts what of the row the template leaves out."""

    input_ids: list[int]
    labels: list[int]
    cut: bool
    dropped: dict[str, int] | None = None

    @property
    def trained_tokens(self) -> int:
        # The first token has no predecessor, so it is never predicted.
        return sum(label != IGNORED for label in self.labels[1:])

    def within(self, max_length: int) -> Encoded:
        """The row as a window of so many tokens leaves it."""
        return self._replace(
            input_ids=self.input_ids[:max_length],
            labels=self.labels[:max_length],
            cut=self.cut or len(self.input_ids) > max_length,
        )

    @property
    def needed(self) -> int:
        """How many tokens the row needs so that nothing of what it teaches is cut."""
        return max((at + 1 for at, label in enumerate(self.labels) if label != IGNORED), default=0)


class Pair(NamedTuple):
    """One question with a better and a worse answer. `cut` says that the window was too short for one of them."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    cut: bool
    dropped: dict[str, int] | None = None

    @property
    def needed(self) -> int:
        """How many tokens the row needs."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    def within(self, max_length: int) -> Pair | None:
        """The row as a window leaves it; None when nothing of an answer fits."""
        asked = len(self.prompt_ids)
        if asked >= max_length:
            return None
        sides = (ids[: max_length - asked] for ids in (self.chosen_ids, self.rejected_ids))
        return Pair(self.prompt_ids, *sides, cut=self.needed > max_length, dropped=self.dropped)


class Marked(NamedTuple):
    """One question with an answer that a person called good (label true) or bad."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool
    cut: bool
    dropped: dict[str, int] | None = None

    @property
    def needed(self) -> int:
        """How many tokens the row needs."""
        return len(self.prompt_ids) + len(self.completion_ids)

    def within(self, max_length: int) -> Marked | None:
        """The row as a window leaves it; None when nothing of the answer fits."""
        asked = len(self.prompt_ids)
        if asked >= max_length:
            return None
        return self._replace(completion_ids=self.completion_ids[: max_length - asked], cut=self.needed > max_length)


def conversation(row: dict[str, Any]) -> list[Message]:
    """Return a canonical row of messages, or of prompt and completion, as one conversation."""
    return row["messages"] if row.get("messages") else [*row["prompt"], *row["completion"]]


def conversations(row: dict[str, Any]) -> list[list[Message]]:
    """The conversations of a canonical row of any type: both answers of a pair, else one."""
    if row.get("messages"):
        return [row["messages"]]
    prompt = row.get("prompt") or []
    if isinstance(prompt, str):  # steps
        answer = "".join(row.get("completions") or [])
        return [[{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]]
    answers = [row[name] for name in ("completion", "chosen", "rejected") if row.get(name)]
    return [[*prompt, *answer] for answer in answers] or [prompt]


def is_trained(turn: Turn, messages: list[Message], first: int) -> bool:
    """Whether an assistant turn is a target: not of the prompt, and not turned off."""
    return turn.index >= first and messages[turn.index].get("train") is not False


def encode(row: dict[str, Any], coder: Coder) -> Encoded:
    """Return the token ids and labels of one canonical row.

    `text` trains everything and ends in the end-of-text token. In `messages` every assistant turn is trained, in
    `prompt` + `completion` those of the completion, each with the mark that ends it, unless the row turns one off.
    Raises NotWritten when the base's template refuses the row.
    """
    if row.get("text") is not None:
        ids = coder.text_ids(row["text"])
        return Encoded(ids, list(ids), cut=False)
    _, coded, labels, dropped = _conversation(row, coder)
    return Encoded(coded.ids, labels, cut=False, dropped=dropped)


def _conversation(row: dict[str, Any], coder: Coder) -> tuple[str, Coded, list[int], dict[str, int] | None]:
    """A row of turns as text, its tokens, their labels, and what the template left out."""
    messages = conversation(row)
    written = coder.write(messages, row.get("tools"))
    first = 0 if row.get("messages") else len(row["prompt"])
    ids, offsets = coded = coder.code(written.text)
    labels, position = [IGNORED] * len(ids), 0
    for turn in written.turns:
        if not is_trained(turn, messages, first):
            continue
        while position < len(ids) and offsets[position][0] < turn.start:
            position += 1
        while position < len(ids) and offsets[position][0] < turn.end:
            if offsets[position][1] > offsets[position][0]:
                labels[position] = ids[position]
            position += 1
    return written.text, coded, labels, written.dropped or None


class _Answer(NamedTuple):
    """A question with its answer as text and as tokens, up to the end of the last turn, and at which token the answer
    begins."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    start: int
    dropped: dict[str, int]

    def piece(self, first: int, end: int) -> str:
        """The text of some of the tokens."""
        begin = self.offsets[first][0] if first < len(self.ids) else len(self.text)
        return self.text[begin : self.offsets[end - 1][1] if end > first else begin]


def _answer(prompt: list[Message], answer: list[Message], tools: str | None, coder: Coder) -> _Answer:
    """An answer of several turns counts whole, from its first token on, as in TRL."""
    written = coder.write([*prompt, *answer], tools)
    turns = [turn for turn in written.turns if turn.index >= len(prompt)]
    start, end = turns[0].start, turns[-1].end
    ids, offsets = coder.code(written.text)
    kept = [one for one, (at, _) in enumerate(offsets) if at < end]
    ids, offsets = [ids[one] for one in kept], [offsets[one] for one in kept]
    return _Answer(written.text[:end], ids, offsets, sum(to <= start for _, to in offsets), written.dropped)


def _both(row: dict[str, Any], coder: Coder) -> tuple[_Answer, _Answer, int]:
    """Both answers of a pair, and how many tokens they share as their question. Raises NotWritten where they are written
    alike."""
    tools = row.get("tools")
    chosen = _answer(row["prompt"], row["chosen"], tools, coder)
    rejected = _answer(row["prompt"], row["rejected"], tools, coder)
    if chosen.ids == rejected.ids:
        raise NotWritten(Problem(rule="pair-written-alike"))
    # Where a token reaches across the seam, the two may part before the answers begin.
    both = zip(chosen.ids[: chosen.start], rejected.ids[: rejected.start], strict=False)
    return chosen, rejected, sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], both))


def encode_pair(row: dict[str, Any], coder: Coder) -> Pair:
    """Return the token ids of one preference row. Raises NotWritten when the template refuses the row, or writes both
    answers alike."""
    chosen, rejected, shared = _both(row, coder)
    dropped = {**chosen.dropped, **rejected.dropped} or None
    return Pair(chosen.ids[:shared], chosen.ids[shared:], rejected.ids[shared:], cut=False, dropped=dropped)


def encode_marked(row: dict[str, Any], coder: Coder) -> Marked:
    """Return the token ids of one marked answer. Raises NotWritten when the template refuses the row."""
    found = _answer(row["prompt"], row["completion"], row.get("tools"), coder)
    ids, start = found.ids, found.start
    return Marked(ids[:start], ids[start:], row["label"], cut=False, dropped=found.dropped or None)


def encode_any(row: dict[str, Any], coder: Coder) -> Encoded | Pair | Marked:
    """Return a row as the objective of its type reads it; a question without an answer trains nothing. Raises
    NotWritten."""
    if row.get("chosen") is not None:
        return encode_pair(row, coder)
    if row.get("label") is not None:
        return encode_marked(row, coder)
    if row.get("text") is not None or row.get("messages") or row.get("completion"):
        return encode(row, coder)
    prompt = row.get("prompt") or []
    is_steps = isinstance(prompt, str)
    text = coder.write(conversations(row)[0]).text if is_steps else coder.ask(prompt, row.get("tools"))
    ids = coder.code(text).ids
    return Encoded(ids, [IGNORED] * len(ids), cut=False)


def texts(row: dict[str, Any], coder: Coder, max_length: int) -> list[str]:
    """Return a row as the texts that encode_any() reads of it within a window: what is only read and what is trained, in
    turn, up to the last trained token; of a pair the question and both answers. For who takes texts and writes no
    template. The texts part where tokens part, so that each comes to the same tokens by itself wherever the tokenizer
    allows it. Empty where nothing trained fits. Raises NotWritten."""
    if row.get("chosen") is not None:
        chosen, rejected, shared = _both(row, coder)
        if shared >= max_length:
            return []
        sides = (one.piece(shared, min(len(one.ids), max_length)) for one in (chosen, rejected))
        return [chosen.piece(0, shared), *sides]
    if row.get("label") is not None:
        found = _answer(row["prompt"], row["completion"], row.get("tools"), coder)
        last = min(len(found.ids), max_length)
        return [found.piece(0, found.start), found.piece(found.start, last)] if found.start < last else []
    if row.get("text") is not None:
        text = _marked_text(row["text"], coder)
        coded = coder.code(text)
        labels = list(coded.ids)
        # No token foretells the first: it is only read, where the others are the same without it.
        if coded.ids and coder.code(text[coded.offsets[0][1] :]).ids == coded.ids[1:]:
            labels[0] = IGNORED
    else:
        text, coded, labels, _ = _conversation(row, coder)
    found, begun = [""], 0
    for (begin, end), label in list(zip(coded.offsets, labels, strict=True))[:max_length]:
        if end > begin and (label != IGNORED) == bool(len(found) % 2):
            found[-1], begun = text[begun:begin], begin
            found.append("")
        if len(found) % 2 == 0:
            found[-1] = text[begun:end]
    return found[: len(found) // 2 * 2]


def _marked_text(text: str, coder: Coder) -> str:
    """A plain text with the marks of its beginning and end that Coder.text_ids() gives it."""
    ids, begin, end = coder.text_ids(text), coder.special.get("bos_token", ""), coder.special.get("eos_token", "")
    while end and text.endswith(end + end):
        text = text.removesuffix(end)
    if coder.starts_with_bos and not text.startswith(begin):
        text = begin + text
    return text + end if ids[-1:] == [coder.end] and not text.endswith(end) else text

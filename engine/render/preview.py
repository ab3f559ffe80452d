"""Rows token by token as a base reads them: what is trained, what is context, what ends turns, what is left out.

What is trained is decided by encode.py, as in the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from engine.render import encode, outcome, skipped
from engine.render.coder import Coder
from engine.render.encode import Marked, Pair
from engine.words import Text

SHOWN_ROWS, ODD_ROWS, SHOWN_TOKENS = 6, 3, 1_500
# How a token is shown: read only, trained, trained by nobody since its turn is turned off, beyond the window, or left out
# by a run whose base it surprised.
READ, TRAINED, KEPT_BACK, CUT, SURPRISING = range(5)


Coded = encode.Encoded | Pair | Marked


class Part(NamedTuple):
    """One text the model reads for a row: "chosen" and "rejected" for a pair, "good" or "bad", or "" for the only one.
    `pieces` are the texts of its first tokens, `kinds` and `marks` how each is shown and whether it is a mark of the base
    (of a beginning, a turn or an end); `tokens` counts all, `trained` those that are trained inside the window."""

    name: str
    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    marks: tuple[bool, ...]
    tokens: int
    trained: int
    is_cut: bool
    key: str = ""  # by which a run tells it from others (skipped.py); "" for what no run leaves tokens out of


class Row(NamedTuple):
    """One row; `dropped` says what of it the base's template leaves out."""

    line: int
    parts: tuple[Part, ...]
    dropped: tuple[Text, ...]


class Preview(NamedTuple):
    """Some rows token by token, and the tally, tokens and trained tokens of all that were looked at."""

    rows: tuple[Row, ...]
    tally: outcome.Tally
    tokens: int
    trained: int
    is_plain: bool  # the base has no chat template and gets ours


def look(rows: list[dict[str, Any]], coder: Coder, length: int) -> Preview:
    """Return the preview of canonical rows within a window of `length` tokens."""
    usual: list[Row] = []
    odd: list[Row] = []  # rows of which something is left out, kept back or cut
    tally, tokens, trained = outcome.Tally(), 0, 0
    step = max(1, len(rows) // SHOWN_ROWS)
    wanted = 0
    for number, row in enumerate(rows):
        coded = tally.take(row, coder)
        if coded is None:
            continue
        parts = _parts(coded, coder, row, length)
        tokens += sum(len(ids) for _, ids, _ in parts)
        trained += sum(kinds.count(TRAINED) for _, _, kinds in parts)
        is_odd = bool(coded.dropped) or any(KEPT_BACK in kinds or CUT in kinds for _, _, kinds in parts)
        if is_odd and len(odd) < ODD_ROWS:
            odd.append(_row(row, coded, parts, coder, length))
        elif number >= wanted and len(usual) < SHOWN_ROWS:  # the next one that can be read
            wanted += step
            usual.append(_row(row, coded, parts, coder, length))
    shown = sorted([*odd, *usual[: SHOWN_ROWS - len(odd)]], key=lambda one: one.line)
    return Preview(tuple(shown), tally, tokens, trained, coder.is_plain)


def _row(
    row: dict[str, Any], coded: Coded, parts: list[tuple[str, list[int], list[int]]], coder: Coder, length: int
) -> Row:  # fmt: skip
    dropped = tuple(outcome.told(what, count) for what, count in sorted((coded.dropped or {}).items()))
    key = skipped.key(coded.within(length)) if isinstance(coded, encode.Encoded) else ""
    return Row(row["line"], tuple(_shown(*part, coder)._replace(key=key) for part in parts), dropped)


def as_learned(found: Preview, places: Mapping[str, Sequence[int]]) -> Preview:
    """Return a preview with the tokens marked that a run left out, by the places that it keeps (skipped.places)."""

    def marked(part: Part) -> Part:
        out = {at for at in places.get(part.key, ()) if part.key}
        kinds = tuple(SURPRISING if at in out and kind == TRAINED else kind for at, kind in enumerate(part.kinds))
        return part._replace(kinds=kinds, trained=part.trained - len(out))

    return found._replace(rows=tuple(row._replace(parts=tuple(map(marked, row.parts))) for row in found.rows))


def _parts(coded: Coded, coder: Coder, row: dict[str, Any], length: int) -> list[tuple[str, list[int], list[int]]]:
    """What a row is read as: the name of each part, its token ids, and how each is shown."""
    if isinstance(coded, Pair):
        sides = [("chosen", coded.chosen_ids), ("rejected", coded.rejected_ids)]
        return [_answered(name, coded.prompt_ids, answer, length) for name, answer in sides]
    if isinstance(coded, Marked):
        return [_answered("good" if coded.label else "bad", coded.prompt_ids, coded.completion_ids, length)]
    back = _kept_back(row, coder)
    kinds = []
    for at, label in enumerate(coded.labels):
        # The first token has no predecessor, so it is never predicted.
        kind = TRAINED if at and label != encode.IGNORED else KEPT_BACK if at in back else READ
        kinds.append(CUT if at >= length else kind)
    return [("", coded.input_ids, kinds)]


def _answered(name: str, prompt: list[int], answer: list[int], length: int) -> tuple[str, list[int], list[int]]:
    ids, asked = [*prompt, *answer], len(prompt)
    return name, ids, [CUT if at >= length else TRAINED if at >= asked else READ for at in range(len(ids))]


def _kept_back(row: dict[str, Any], coder: Coder) -> set[int]:
    """The places of the tokens in turns of the assistant that the row turns off."""
    if row.get("text") is not None or not (row.get("messages") or row.get("completion")):
        return set()
    messages = encode.conversation(row)
    if all(message.get("train") is not False for message in messages):
        return set()
    written = coder.write(messages, row.get("tools"))
    spans = [(turn.start, turn.end) for turn in written.turns if messages[turn.index].get("train") is False]
    offsets = enumerate(coder.code(written.text).offsets)
    return {at for at, (begin, _) in offsets if any(start <= begin < end for start, end in spans)}


def _shown(name: str, ids: list[int], kinds: list[int], coder: Coder) -> Part:
    first = ids[:SHOWN_TOKENS]
    marks = {at for at, token in coder.tokenizer.get_added_tokens_decoder().items() if token.special}
    return Part(
        name=name,
        pieces=tuple(pieces(coder.tokenizer, first)),
        kinds=tuple(kinds[:SHOWN_TOKENS]),
        marks=tuple(one in marks for one in first),
        tokens=len(ids),
        trained=kinds.count(TRAINED),
        is_cut=CUT in kinds,
    )


def pieces(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Return the text of each token; a character that several tokens share stands at the last of them."""
    from tokenizers.decoders import DecodeStream

    stream, shown = DecodeStream(skip_special_tokens=False), []
    for one in ids:
        try:
            shown.append(stream.step(tokenizer, one) or "")
        except Exception:  # the library raises bare Exceptions: of bytes that are no text
            stream = DecodeStream(skip_special_tokens=False)
            shown.append(tokenizer.decode([one], skip_special_tokens=False))
    return shown

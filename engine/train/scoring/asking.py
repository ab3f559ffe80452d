"""What is asked, and what a model has answered of it so far.

Questions are asked in an order that is drawn beforehand (benchmarks/shares.py) and in pieces that are written as they
come, so that after a kill none is asked twice, a few of them are a fair sample of all, and the rest can be asked later.
What was answered lies with the run, and in evals/<key>/ for all that ask the same model the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine.benchmarks import shares
from engine.report import Item
from engine.report import items as report_items
from engine.workspace import Unreadable, decoded, write_atomically

# A kill or a stop loses no more than the piece in hand; the pieces are always cut the same way, so that figures after
# a kill are those of an unbroken run. Small ones where scoring has to end in time.
PIECE, SMALL_PIECE = 64, 16


class Question(NamedTuple):
    """One benchmark: what is asked and under which settings (both hashed into the key), and the function that scores a
    piece of it. `pace_by` is what a model reads, in characters, for the estimates of later runs.

    One of the harness's own tasks, which the harness reads by itself, is asked in one piece of about `questions`
    questions by `score_whole`, which keeps every answer as it comes. `is_written`: its answers are written, all of a batch
    at once, so that a few take about as long as many.
    """

    benchmark: str
    asked: list[Any]
    score: Callable[[Any, Any, list[Any]], list[Item]]
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed
    pace_by: int = 0
    questions: int = 0
    score_whole: Callable[[Any, Any, Any], list[Item]] | None = None
    is_written: bool = False

    @property
    def size(self) -> int:
        return self.questions or len(self.asked)

    @property
    def names(self) -> list[str]:
        """What the items of the questions are called."""
        return [one["item"] if isinstance(one, dict) else one[0] for one in self.asked]

    def order(self, seed: int) -> list[int]:
        """Return the places of the questions in the order in which they are asked. Rows of the run's own, trained on and
        held out, take turns."""
        docs = [one for one in self.asked if isinstance(one, dict)]
        together = [one.get("cluster") for one in docs] if len(docs) == len(self.asked) else []
        kinds = [one[1] for one in self.asked] if not docs else []
        return shares.order(self.names, seed, together=together, kinds=kinds)


class _Piece(msgspec.Struct):
    """One line of a part file: the items of a piece, the mark of what they belong to, and how many questions were asked
    with it."""

    key: str
    piece: int
    items: list[Item]
    asked: int = 0


def read_part(part: Path, mark: str) -> list[_Piece]:
    """Return the whole pieces of a part file from the first on; a line that was cut off by a kill is cut away."""
    pieces, good = [], 0
    data = part.read_bytes() if part.is_file() else b""
    for line in data.splitlines(keepends=True):
        try:
            piece = decoded(line, _Piece)
        except Unreadable:
            break
        if not line.endswith(b"\n") or piece.key != mark or piece.piece != len(pieces) or not piece.asked:
            break
        pieces.append(piece)
        good += len(line)
    if good < len(data):
        with part.open("rb+") as file:
            file.truncate(good)
    return pieces


class Answers:
    """What a model has answered of one question set. `target` is where the run keeps the items, `stored` the folder in
    evals/ that all runs share, None where nothing is shared."""

    def __init__(self, question: Question, key: str, target: Path, seed: int, stored: Path | None):
        self.question, self.target, self.key, self._stored = question, target, key, stored
        self._seed, self._mark = seed, f"{key}:{seed}"
        self.part = target.with_suffix(".part")
        self.new = 0
        self._pieces: list[_Piece] = []
        whole = None if stored is None else stored / "items.jsonl"
        self._whole = report_items.read_items(whole) if whole is not None and whole.is_file() else None
        self.is_stored = self._whole is not None
        if self._whole is None and question.score_whole is None:
            self._pieces = read_part(self.part, self._mark)
            self._go_on_with_what_is_stored()

    @property
    def _shared(self) -> Path | None:
        return None if self._stored is None else self._stored / f"asked-{self._seed}.jsonl"

    def _go_on_with_what_is_stored(self) -> None:
        if self._shared is None or not self._shared.is_file():
            return
        there = read_part(self._shared, self._mark)
        if there and there[-1].asked > self.done:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.part, self._shared.read_bytes())
            self._pieces = there

    @property
    def size(self) -> int:
        return self.question.size

    @property
    def done(self) -> int:
        """How many questions are answered, in the order in which they are asked."""
        if self._whole is not None:
            return self.size
        return self._pieces[-1].asked if self._pieces else 0

    @cached_property
    def _order(self) -> list[int]:
        return self.question.order(self._seed)

    def ask(
        self, model: Any, tokenizer: Any, stop: Callable[[], bool], *, upto: int | None = None, piece: int = PIECE,
        on_done: Callable[..., None] | None = None,
    ) -> bool:  # fmt: skip
        """Ask the first `upto` questions, all without it, as far as they are not answered; False when a stop came first.
        `on_done` hears how many are done, and, when an earlier attempt did them, False."""
        upto = self.size if upto is None else min(upto, self.size)
        if self._whole is not None or (self.done >= upto and self.question.score_whole is None):
            return True
        self.part.parent.mkdir(parents=True, exist_ok=True)
        was_training = model.training
        model.eval()
        try:
            if self.question.score_whole is not None:
                return self._ask_whole(model, tokenizer, stop, on_done)
            return self._ask_pieces(model, tokenizer, stop, upto, piece, on_done)
        finally:
            model.train(was_training)

    def _ask_pieces(
        self, model: Any, tokenizer: Any, stop: Callable[[], bool], upto: int, piece: int,
        on_done: Callable[..., None] | None,
    ) -> bool:  # fmt: skip
        with self.part.open("ab", buffering=0) as file:
            while (start := self.done) < upto:
                end = min(upto, (start // piece + 1) * piece)
                rows = [self.question.asked[place] for place in self._order[start:end]]
                items = [] if stop() else self.question.score(model, tokenizer, rows)
                if stop():
                    return False
                made = _Piece(self._mark, len(self._pieces), items, end)
                file.write(msgspec.json.encode(made) + b"\n")
                self._pieces.append(made)
                self.new += end - start
                if on_done is not None:
                    on_done(end)
        return True

    def _ask_whole(
        self, model: Any, tokenizer: Any, stop: Callable[[], bool], on_done: Callable[..., None] | None
    ) -> bool:  # fmt: skip
        """Ask one of the harness's tasks, going on with the answers that an earlier attempt left in the part file."""
        from engine.train.scoring import lm  # with the harness, which few runs ask

        assert self.question.score_whole is not None

        def on_share(share: float, fresh: bool) -> None:
            if on_done is not None:
                on_done(int(share * self.size), fresh)

        answered = lm.Answered(self.part, self.key, on_share, stop)
        before = len(answered)
        try:
            self._whole = self.question.score_whole(model, tokenizer, answered)
        except lm.Stopped:
            return False
        finally:
            answered.close()
        self.new = 0 if before else self.size
        return True

    def items(self, upto: int | None = None) -> list[Item]:
        """Return the items of the first `upto` questions, of all that are answered without it, in the order in which the
        benchmark has them."""
        found = self._whole if self._whole is not None else [item for piece in self._pieces for item in piece.items]
        if self.question.score_whole is not None:
            return found
        names = self.question.names
        places = {name: place for place, name in enumerate(names)}
        if upto is not None and upto < self.done:
            within = {names[place] for place in self._order[:upto]}
            found = [item for item in found if item.item in within]
        return sorted(found, key=lambda item: places.get(item.item, len(places)))

    def share(self) -> None:
        """Keep what is answered for whoever asks this model the same: all of it, or as far as it has come."""
        if self._stored is None or self.is_stored:
            return
        if self.done == self.size:
            report_items.write_items(self._stored / "items.jsonl", self.items())
            self._stored.joinpath(f"asked-{self._seed}.jsonl").unlink(missing_ok=True)
            self.is_stored = True
        elif self._shared is not None and self._pieces:
            there = read_part(self._shared, self._mark)
            if not there or there[-1].asked < self.done:
                write_atomically(self._shared, self.part.read_bytes())

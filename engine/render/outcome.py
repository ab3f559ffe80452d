"""What becomes of a row with a base: how many tokens it has, which of them teach, what is left out, or why it cannot be
read. The check with a base, the pages and the run all say this of the same rows in the same words."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from engine.render.coder import Coder
from engine.render.encode import IGNORED, Encoded, Marked, Pair, encode_any
from engine.render.template import NotWritten
from engine.words import Problem, Text, later

# Lines that are named of each kind; the rest are counted.
LINES_NAMED = 20


def told(what: str, count: int) -> Text:
    """What a template leaves out of rows, in words."""
    if what == "reasoning":
        return later("the reasoning of {n} answers", n=count)
    if what == "system":
        return later("system texts ({n})", n=count)
    if what == "result":
        return later("the results of {n} tool calls", n=count)
    if what == "tools":
        return later("descriptions of tools ({n})", n=count)
    return later("the words of {n} turns", n=count)


class Outcome(NamedTuple):
    """`tokens` of the row, of the longer side of a pair. `first`: how many stand before the first that is trained; a
    window of no more teaches nothing. `needed`: how many keep all that is trained. `problem`: why it cannot be read."""

    tokens: int = 0
    first: int = 0
    needed: int = 0
    trained: int = 0
    dropped: dict[str, int] | None = None
    problem: Problem | None = None


def of_row(row: dict[str, Any], coder: Coder) -> Outcome:
    """Say what becomes of one canonical row, of any type."""
    try:
        return of_coded(encode_any(row, coder))
    except NotWritten as refused:
        return Outcome(problem=refused.problem)


def of_coded(coded: Encoded | Pair | Marked) -> Outcome:
    """Say what becomes of a row that was encoded whole."""
    if isinstance(coded, Pair):
        trained = len(coded.chosen_ids) + len(coded.rejected_ids)
        return Outcome(coded.needed, len(coded.prompt_ids), coded.needed, trained, coded.dropped)
    if isinstance(coded, Marked):
        return Outcome(coded.needed, len(coded.prompt_ids), coded.needed, len(coded.completion_ids), coded.dropped)
    # The first token has no predecessor, so it is never predicted.
    first = next((at for at, label in enumerate(coded.labels) if at and label != IGNORED), len(coded.labels))
    return Outcome(len(coded.input_ids), first, coded.needed, coded.trained_tokens, coded.dropped)


def ids_of(coded: Encoded | Pair | Marked) -> list[int]:
    """The tokens of a row, of all its parts."""
    if isinstance(coded, Encoded):
        return coded.input_ids
    if isinstance(coded, Pair):
        return [*coded.prompt_ids, *coded.chosen_ids, *coded.rejected_ids]
    return [*coded.prompt_ids, *coded.completion_ids]


class Refusal(msgspec.Struct, frozen=True):
    """Rows that cannot be read for one reason: how many, and the lines of the first."""

    problem: Problem
    rows: int
    lines: tuple[int, ...]

    @property
    def note(self) -> Text:
        """The sentence of the run that leaves them out."""
        told = {"reason": self.problem.texts[0], "lines": named(self.lines, self.rows)}
        return later("{n} rows were left out: {reason} (lines {lines}).", n=self.rows, **told)


def named(lines: Iterable[int], count: int) -> str:
    """Line numbers as they are shown: the first of them, and that there are more."""
    shown = [str(line) for line in lines][:LINES_NAMED]
    return ", ".join(shown) + (", ..." if count > len(shown) else "")


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A tally as it is kept; `lines`, `first` and `needed` are the bytes of its arrays."""

    rows: int
    refused: tuple[Refusal, ...]
    dropped: dict[str, int]
    dropped_rows: dict[str, list[int]]
    lines: bytes
    first: bytes
    needed: bytes
    rowless: dict[str, list[int]] = {}


class Tally:
    """What becomes of many rows. add() each; the rest reads what was added.

    `embedded`: how many tokens the base has a row for, where its tokenizer has more; `rowless` then holds those that rows
    use and the lines they stand in.
    """

    def __init__(self, embedded: int | None = None) -> None:
        self.rows = 0
        self.embedded, self.rowless = embedded, dict[str, list[int]]()
        self.dropped: dict[str, int] = {}
        self.dropped_rows: dict[str, list[int]] = {}
        self._refused: dict[str, tuple[Problem, int, list[int]]] = {}
        self.lines, self.first, self.needed = array("i"), array("i"), array("i")  # of the rows that can be read

    @classmethod
    def of_stored(cls, stored: Stored) -> Tally:
        """The tally that stored() gave."""
        tally = cls()
        tally.rows, tally.dropped, tally.dropped_rows = stored.rows, stored.dropped, stored.dropped_rows
        tally.rowless = stored.rowless
        tally._refused = {str(at): (one.problem, one.rows, [*one.lines]) for at, one in enumerate(stored.refused)}
        for numbers, kept in ((tally.lines, stored.lines), (tally.first, stored.first), (tally.needed, stored.needed)):
            numbers.frombytes(kept)
        return tally

    def stored(self) -> Stored:
        """The tally as it is kept; no row is added to it afterwards."""
        return Stored(
            rows=self.rows,
            refused=tuple(self.refused),
            dropped=self.dropped,
            dropped_rows=self.dropped_rows,
            lines=self.lines.tobytes(),
            first=self.first.tobytes(),
            needed=self.needed.tobytes(),
            rowless=self.rowless,
        )

    def take(self, row: dict[str, Any], coder: Coder) -> Encoded | Pair | Marked | None:
        """Encode a canonical row whole and count what becomes of it; None where it cannot be read."""
        try:
            coded = encode_any(row, coder)
        except NotWritten as refused:
            self.add(row["line"], Outcome(problem=refused.problem))
            return None
        self.add(row["line"], of_coded(coded))
        if self.embedded is not None:
            for number in {one for one in ids_of(coded) if one >= self.embedded}:
                self.rowless.setdefault(coder.tokenizer.id_to_token(number), []).append(row["line"])
        return coded

    def add(self, line: int, one: Outcome) -> None:
        """Count the outcome of the row on a line."""
        self.rows += 1
        if one.problem is not None:
            key = one.problem.rule + repr(sorted(one.problem.parameters.items()))
            problem, count, lines = self._refused.get(key, (one.problem, 0, []))
            self._refused[key] = (problem, count + 1, [*lines, line] if len(lines) < LINES_NAMED else lines)
            return
        for what, count in (one.dropped or {}).items():
            self.dropped[what] = self.dropped.get(what, 0) + count
            self.dropped_rows.setdefault(what, []).append(line)
        self.lines.append(line)
        self.first.append(one.first)
        self.needed.append(one.needed)

    @property
    def refused(self) -> list[Refusal]:
        """The rows that cannot be read, by reason, the most frequent first."""
        found = (Refusal(problem, count, tuple(lines)) for problem, count, lines in self._refused.values())
        return sorted(found, key=lambda one: -one.rows)

    @property
    def rowless_problem(self) -> Problem:
        """What keeps a run from reading rows with tokens that the base has no row for."""
        lines = sorted({line for found in self.rowless.values() for line in found})
        told = {
            "tokens": ", ".join(list(self.rowless)[:LINES_NAMED]),
            "n": len(lines),
            "lines": named(lines, len(lines)),
        }
        return Problem(rule="rowless-tokens", where="dataset", parameters=told)

    @property
    def refused_rows(self) -> int:
        return sum(count for _, count, _ in self._refused.values())

    def lost(self, max_length: int) -> list[int]:
        """The lines of rows of which a window of so many tokens leaves nothing that is trained."""
        return [line for line, first in zip(self.lines, self.first, strict=True) if first >= max_length]

    def cut(self, max_length: int) -> list[int]:
        """The lines of rows of which such a window keeps a part of what is trained."""
        rows = zip(self.lines, self.first, self.needed, strict=True)
        return [line for line, first, needed in rows if first < max_length < needed]

    @property
    def untrained(self) -> list[int]:
        """The lines of rows that hold nothing to be trained, however long the window: every turn is turned off."""
        return [line for line, needed in zip(self.lines, self.needed, strict=True) if not needed]

    @property
    def dropped_notes(self) -> list[Text]:
        """Sentences about what the template leaves out of the rows."""
        return [
            later(
                "The base's chat template leaves out {what} (lines {lines}).",
                what=told(what, count),
                lines=named(self.dropped_rows[what], len(self.dropped_rows[what])),
            )
            for what, count in sorted(self.dropped.items())
        ]

    @property
    def keeps_all(self) -> int:
        """The shortest window that cuts nothing of what is trained."""
        return max(self.needed, default=0)


def base_warnings(coder: Coder) -> list[Problem]:
    """What is wrong with how a base's tokenizer and template go together, so that conversations are learned badly."""
    found = []
    if coder.end is None and not any(coder.tokenizer.token_to_id(mark) is not None for mark in coder.end_marks):
        found.append(Problem(rule="never-stops", severity="warning"))
    try:
        starts = coder.written_starts
    except NotWritten:
        return found  # no conversation can be written at all: each row says so
    if coder.starts_with_bos and not starts:
        bos = coder.special["bos_token"]
        found.append(Problem(rule="bos-not-written", severity="warning", parameters={"mark": bos}))
    if starts > 1:
        bos = coder.special["bos_token"]
        found.append(Problem(rule="bos-twice", severity="warning", parameters={"mark": bos, "times": starts}))
    return found


def base_notes(coder: Coder) -> list[Text]:
    """What is worth knowing of how answers end with a base."""
    end, last = coder.special.get("eos_token", ""), ", ".join(sorted(coder.end_marks))
    if coder.end is None or not last or end in coder.end_marks:
        return []
    return [
        later(
            "Answers end with {mark}, which is trained; the base's end-of-text token is {end}. Writing stops at either.",
            mark=last,
            end=end,
        )
    ]

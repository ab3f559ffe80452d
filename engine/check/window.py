"""What a base makes of the rows of a file: those its chat template refuses, and those a window of tokens cuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.check.canonical import canonical
from engine.check.report import DatasetError
from engine.check.totals import Totals
from engine.models import Base
from engine.read import formats
from engine.render import Coder, NoTokenizer, outcome
from engine.words import Text, later

# Rows are cut after so many tokens where nothing else is said: the default of the recipes.
MAX_LENGTH = 1024


class Window:
    """A sink that renders every good row as a run on `base` would, and counts what becomes of it within `max_length`
    tokens, or what the base reads where that is less. Raises DatasetError when its tokens cannot be counted here."""

    def __init__(self, base: Base, max_length: int | None = None):
        try:
            self.coder = Coder.of_folder(base.folder, base.ref)
        except NoTokenizer as error:
            raise DatasetError(error.problem) from None
        self.most = base.window_tokens or 1 << 30
        self.length = min(max_length or MAX_LENGTH, self.most)
        self.embedded = base.tokens.rows if base.tokens is not None and base.tokens.beyond else None

    def start(self, reading: formats.Reading) -> None:
        self.reading, self.tally = reading, outcome.Tally(self.embedded)

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        self.tally.take(canonical(row, self.reading, line), self.coder)

    def judge(self, totals: Totals, *, has_lines: bool) -> None:
        """Warn of what was found, the first rows of each kind by name; it is an error when nothing is left to train."""
        tally, length = self.tally, self.length
        for one in outcome.base_warnings(self.coder):
            totals.warn(one.rule, **one.parameters)  # pyright: ignore[reportArgumentType]
        for one in tally.refused:
            _warn(totals, "row-refused", one.lines, one.rows, has_lines, reason=one.problem.texts[0])
        lost = tally.lost(length)
        # A question without an answer trains nothing anyway.
        if self.reading.type != "prompt-only":
            for rule, lines in (("row-lost", lost), ("row-cut", tally.cut(length))):
                _warn(totals, rule, lines, len(lines), has_lines, length=length, remedy=self._remedy())
        for what, count in sorted(tally.dropped.items()):
            lines = tally.dropped_rows[what]
            named = outcome.named(lines, len(lines))
            totals.warn("row-dropped", what=outcome.told(what, count), lines=named)
        if tally.rowless:
            problem = tally.rowless_problem
            totals.error(problem.rule, **problem.parameters)  # pyright: ignore[reportArgumentType]
        elif tally.rows and tally.refused_rows == tally.rows:
            totals.error("nothing-to-train", reason=tally.refused[0].problem.texts[0])
        elif lost and tally.refused_rows + len(lost) == tally.rows:
            totals.error("nothing-to-train", reason=later("nothing of any answer fits {length} tokens", length=length))

    def _remedy(self) -> Text:
        needed = self.tally.keeps_all
        if needed > self.most:
            return later("shorten or split it: the base reads {n} tokens at most", n=self.most)
        return later("set train.max_length to {needed} to keep all rows whole, or shorten it", needed=needed)


def _warn(
    totals: Totals, rule: str, lines: Sequence[int], count: int, has_lines: bool, **parameters: str | int | Text
) -> None:
    """Name the first of these rows and count the others."""
    named = lines[: outcome.LINES_NAMED]
    for line in named:
        place = {"line": line} if has_lines else {"row": line}
        totals.warn(rule, **place, **parameters)  # pyright: ignore[reportArgumentType]
    if count > outcome.LINES_NAMED:
        totals.warnings[rule] += count - outcome.LINES_NAMED
    totals.rows_with[rule] += count - (0 if has_lines else len(named))  # what has a row is counted with it

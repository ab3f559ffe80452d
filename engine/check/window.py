"""The window of a base, and which rows are longer than it."""

from __future__ import annotations

from array import array
from typing import Any

from engine.check.records import OpenFile
from engine.check.report import DatasetError
from engine.check.rows import RowChecks
from engine.check.totals import Totals
from engine.models import Base
from engine.read import formats
from engine.render import Coder, NoTokenizer, outcome

# Rows that may be too long for a model are counted token by token when they are no more than this.
WINDOW_BYTES = 8 << 20


class Window:
    """The window of a base, and what counts the tokens of a row. Raises DatasetError when they cannot be counted."""

    def __init__(self, base: Base):
        try:
            self.coder = Coder.of_folder(base.folder, base.ref)
        except NoTokenizer as error:
            raise DatasetError(error.problem) from None
        self.tokens = base.window_tokens or 1 << 62
        # What a template adds to the shortest exchange. Each further turn brings more bytes of JSON than tokens.
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        added = outcome.of_row({"messages": turns}, self.coder).tokens
        self.least_bytes = max(0, self.tokens - (added or 64))


class _Canonical:
    """A sink that keeps the latest row in its canonical form."""

    def __init__(self, reading: formats.Reading):
        self.reading = reading
        self.row: dict[str, Any] | None = None

    def start(self, reading: formats.Reading) -> None:
        self.reading = reading

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        from engine.check.canonical import canonical

        self.row = canonical(row, self.reading)


def over_window(window: Window, file: OpenFile, reading: formats.Reading, totals: Totals) -> None:
    """Count the tokens of the rows that may be too long, or of a sample of them that is drawn by their bytes."""
    sample, average = totals.long_sample, totals.long_bytes / totals.long_rows
    is_exact = totals.long_rows <= len(sample) and totals.long_bytes <= WINDOW_BYTES
    if not is_exact:
        sample = sample[: max(50, int(WINDOW_BYTES / 4 / average))]
    chosen = array("q", sorted(row - 1 for _, row in sample))
    kept = _Canonical(reading)
    checks = RowChecks(reading, mapping=file.mapping, sink=kept, quick=False)
    counted = over = 0
    for row, (line, raw) in zip(chosen, file.records_at(chosen, totals.ranges), strict=True):
        kept.row = None
        checks.block([line], [raw], raw)
        checks.take()
        if kept.row is None:
            continue  # it has errors
        tokens = outcome.of_row(kept.row, window.coder).tokens
        counted += 1
        if tokens > window.tokens:
            over += 1
            if is_exact:
                place = line if file.has_lines else None
                totals.warn("over-window", row=row + 1, line=place, tokens=tokens, window=window.tokens)
    if over and not is_exact:
        share = 100 * over / counted * totals.long_rows / totals.rows
        totals.warn(
            "over-window-estimate",
            share=f"{share:.1f}",
            window=window.tokens,
            counted=f"{counted:,}",
            long=f"{totals.long_rows:,}",
        )

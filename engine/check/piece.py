"""What was found in one piece of a file, in whichever process: pieces joined in order give the verdict of the whole."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from engine.check.repeats import Hashes
from engine.words import Problem

COLUMNS_KEPT = 200
# A piece that is no range of bytes has so many rows.
GROUP_ROWS = 100_000


class Range(NamedTuple):
    """Where a piece lies that is a range of its file."""

    first_row: int
    rows: int
    lines_before: int
    start: int  # bytes
    end: int


class Lengths(msgspec.Struct):
    """How much longer chosen answers are than rejected ones: sums of whole numbers, so that pieces add up to the same."""

    pairs: int = 0
    longer: int = 0  # pairs whose chosen answer is the longer one
    total: int = 0  # of the differences
    squares: int = 0

    def add(self, chosen: int, rejected: int) -> None:
        difference = chosen - rejected
        self.pairs += 1
        self.longer += difference > 0
        self.total += difference
        self.squares += difference * difference

    def extend(self, more: Lengths) -> None:
        self.pairs += more.pairs
        self.longer += more.longer
        self.total += more.total
        self.squares += more.squares

    @property
    def effect(self) -> float:
        """The mean difference over its standard deviation."""
        mean = self.total / self.pairs if self.pairs else 0.0
        spread = (self.squares / self.pairs - mean * mean) ** 0.5 if self.pairs else 0.0
        return mean / spread if spread > 1e-9 else 0.0 if abs(mean) < 1e-9 else 9.0 if mean > 0 else -9.0


class Piece(msgspec.Struct, kw_only=True):
    """What was found in one piece of a file. Rows and lines are counted from the start of the piece."""

    rows: int = 0
    bad_rows: int = 0
    lines: int = 0  # line ends of the piece, where its lines are counted from its own start
    has_answers: bool = False  # a file of prompts has an answer: the rest of the piece was not read
    errors: dict[str, int] = {}
    warnings: dict[str, int] = {}
    rows_with: dict[str, int] = {}
    kept_errors: list[Problem] = []
    kept_warnings: list[Problem] = []
    columns: list[str] = []
    layout_columns: list[str] = []
    has_objects: bool = False
    good_labels: int = 0
    bad_labels: int = 0
    target_characters: int = 0
    label_changes: dict[str, int] = {}
    lengths: Lengths = msgspec.field(default_factory=Lengths)
    ends: bytes = b""
    exact: bytes = b""
    row_lines: bytes = b""
    judged: bytes = b""
    commas: int = 0  # records with a comma behind them
    first_comma: int = 0  # the line of the first of these

    def hashes(self, per_row: int) -> Hashes:
        hashes = Hashes(per_row)
        hashes.ends.frombytes(self.ends)
        hashes.exact.frombytes(self.exact)
        hashes.lines.frombytes(self.row_lines)
        hashes.judged.frombytes(self.judged)
        return hashes

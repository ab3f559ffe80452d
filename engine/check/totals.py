"""What the pieces of a file add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from engine.check.ledger import PROBLEMS_KEPT
from engine.check.piece import COLUMNS_KEPT, Lengths, Piece, Range
from engine.check.repeats import Repeats
from engine.check.report import in_file, problem_to_json
from engine.words import Problem, Text


class Totals:
    """What the pieces of a file add up to."""

    LABEL_CHANGES = 20

    def __init__(self, per_row: int, problems_path: Path | None):
        self.rows = self.bad_rows = self.lines = 0
        self.errors: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.rows_with: Counter[str] = Counter()
        self.kept_errors: list[Problem] = []
        self.kept_warnings: list[Problem] = []
        self.columns: dict[str, None] = {}
        self.layout_columns: dict[str, None] = {}
        self.has_objects = False
        self.labels = [0, 0]  # good, bad
        self.target_characters = 0
        self.label_changes: dict[str, int] = {}
        self.lengths = Lengths()
        self.repeats = Repeats(per_row)
        self.per_row = per_row
        self.commas = self.first_comma = 0
        self.ranges: list[Range] = []  # of the pieces so far, where these are ranges of the file
        self.path = problems_path
        self.file: BinaryIO | None = problems_path.open("wb") if problems_path else None

    def add(self, piece: Piece, every: Path | None = None, start: int = 0, end: int = 0) -> None:
        """Add the next piece of the file, which lies between the bytes `start` and `end` if it is a range of it; `every`
        has all its problems."""
        rows, lines = self.rows, self.lines
        if end:
            self.ranges.append(Range(rows, piece.rows, lines, start, end))
        self.repeats.extend(piece.hashes(self.per_row), lines)
        self.errors.update(piece.errors)
        self.warnings.update(piece.warnings)
        self.rows_with.update(piece.rows_with)
        for kept, more in ((self.kept_errors, piece.kept_errors), (self.kept_warnings, piece.kept_warnings)):
            kept += [_moved(problem, rows, lines) for problem in more[: PROBLEMS_KEPT - len(kept)]]
        for known, names in ((self.columns, piece.columns), (self.layout_columns, piece.layout_columns)):
            for name in names:
                if len(known) < COLUMNS_KEPT:
                    known[name] = None
        self.has_objects = self.has_objects or piece.has_objects
        self.labels[0] += piece.good_labels
        self.labels[1] += piece.bad_labels
        self.target_characters += piece.target_characters
        for change, count in piece.label_changes.items():
            self.label_changes[change] = self.label_changes.get(change, 0) + count
        self.lengths.extend(piece.lengths)
        if piece.commas and not self.commas:
            self.first_comma = lines + piece.first_comma
        self.commas += piece.commas
        self.rows += piece.rows
        self.bad_rows += piece.bad_rows
        self.lines += piece.lines
        if every is not None:
            for problem in _written(every, rows, lines):
                self._write(problem)
            every.unlink()

    def warn(
        self, rule: str, *, row: int | None = None, line: int | None = None, **parameters: str | int | Text
    ) -> None:
        """Note a warning about a row, counted from 1, or about the whole file."""
        self._note(Problem(rule=rule, severity="warning", row=row, line=line, parameters=dict(parameters)))

    def error(self, rule: str, **parameters: str | int | Text) -> None:
        self._note(Problem(rule=rule, parameters=dict(parameters)))

    def _note(self, problem: Problem) -> None:
        is_error = problem.severity == "error"
        (self.errors if is_error else self.warnings)[problem.rule] += 1
        self.rows_with[problem.rule] += problem.row is not None
        kept = self.kept_errors if is_error else self.kept_warnings
        if len(kept) < PROBLEMS_KEPT:
            kept.append(problem)
        self._write(problem)

    def _write(self, problem: Problem) -> None:
        if self.file is not None:
            self.file.write(msgspec.json.encode(problem_to_json(problem)) + b"\n")

    def count_more(self, rule: str, count: int) -> None:
        """Count rows with a warning that are not kept one by one."""
        if count > 0:
            self.warnings[rule] += count
            self.rows_with[rule] += count

    def first(self) -> tuple[Problem, ...]:
        """The first 1,000 problems: errors have precedence; in the order of the file, whole-file ones in front."""
        room = PROBLEMS_KEPT - len(self.kept_errors)
        chosen = self.kept_errors + sorted(self.kept_warnings, key=in_file)[:room]
        return tuple(sorted(chosen, key=in_file))

    def problems_file(self) -> str | None:
        """Finish the file of all problems; it is kept only when the report cannot hold them."""
        self.close()
        if self.path is None:
            return None
        if self.errors.total() + self.warnings.total() > PROBLEMS_KEPT:
            return str(self.path)
        self.path.unlink(missing_ok=True)
        return None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
        self.repeats.close()


def _written(path: Path, row_offset: int, line_offset: int) -> Iterator[Problem]:
    """The problems a piece has written, with the rows and lines they have in the whole file."""
    with path.open("rb") as file:
        for line in file:
            yield _moved(msgspec.json.decode(line, type=Problem), row_offset, line_offset)


def _moved(problem: Problem, row_offset: int, line_offset: int) -> Problem:
    """A problem of a piece, as one of the whole file."""
    if not row_offset and not line_offset:
        return problem
    return msgspec.structs.replace(
        problem,
        row=problem.row + row_offset if problem.row else problem.row,
        line=problem.line + line_offset if problem.line else problem.line,
    )

"""The ledger of a check: every problem counted, and the first of them kept."""

from __future__ import annotations

from collections import Counter
from typing import Any, BinaryIO

import msgspec

from engine.words import Problem, Text

PROBLEMS_KEPT = 1_000


class Ledger:
    """Counts every problem and keeps the first ones, errors and warnings apart so that neither hides the other."""

    def __init__(self, has_cells: bool = False):
        self.has_cells = has_cells
        self.every: BinaryIO | None = None  # all problems are written here, one JSON object a line
        self.pending: list[Problem] = []  # warnings of the current row: said only when the row is good
        self.line: int | None = None
        self.row: int | None = None
        self.clear()

    def clear(self) -> None:
        self.errors: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.rows_with: Counter[str] = Counter()  # rule -> in how many rows it is broken
        self._last: dict[str, int | None] = {}  # rule -> the row it was broken in last
        self.kept_errors: list[Problem] = []
        self.kept_warnings: list[Problem] = []

    def error(self, rule: str, where: str | None = None, **parameters: str | int | Text) -> None:
        if self.has_cells and rule == "null-field":  # an empty cell
            rule, parameters = "blank-field", {}
        self.errors[rule] += 1
        self._count_row(rule)
        if len(self.kept_errors) < PROBLEMS_KEPT or self.every:
            self._keep(self.kept_errors, self._problem(rule, "error", where, parameters))

    def warn(self, rule: str, where: str | None = None, **parameters: str | int | Text) -> None:
        self.pending.append(self._problem(rule, "warning", where, parameters))

    def settle(self, good: bool) -> None:
        """Count the warnings of a row that turned out good; forget those of a bad one."""
        if good:
            for problem in self.pending:
                self.warnings[problem.rule] += 1
                self._count_row(problem.rule)
                self._keep(self.kept_warnings, problem)
        self.pending.clear()

    def _count_row(self, rule: str) -> None:
        if self._last.get(rule, 0) != self.row:
            self._last[rule] = self.row
            self.rows_with[rule] += 1

    def _problem(self, rule: str, severity: str, where: str | None, parameters: dict[str, Any]) -> Problem:
        return Problem(rule=rule, severity=severity, where=where, line=self.line, row=self.row, parameters=parameters)

    def _keep(self, kept: list[Problem], problem: Problem) -> None:
        if len(kept) < PROBLEMS_KEPT:
            kept.append(problem)
        if self.every:
            self.every.write(msgspec.json.encode(problem) + b"\n")

"""Rows that ask what a row of the validation data asks: these would be tested on what was learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.read import formats
from engine.spec import split


class Questions:
    """A sink that keeps a hash of what each row asks instead of the row, with the line that asks it first."""

    def __init__(self) -> None:
        self.reading: formats.Reading | None = None
        self.asked: dict[int, int] = {}

    def start(self, reading: formats.Reading) -> None:
        self.reading = reading
        self.asked.clear()

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        assert self.reading is not None
        self.asked.setdefault(_question(row, self.reading), line)

    def same_as(self, reading: formats.Reading) -> Callable[[dict[str, Any]], int | None]:
        """What tells the line that asks the same as a row of another file, which is read as `reading` says."""
        return lambda row: self.asked.get(_question(row, reading))


def _question(row: dict[str, Any], reading: formats.Reading) -> int:
    """A hash of what a row asks, white space aside; rows that ask the same are never divided by a split either."""
    from engine.check.canonical import canonical

    asked = split.group_of(canonical(row, reading))  # JSON, where a line break is an escape
    return hash("".join(asked.replace("\\n", " ").split()))

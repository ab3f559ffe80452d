"""One row by itself, checked as a row of its file, while a person writes it anew."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec

from engine.check import SAMPLE_BYTES, SAMPLE_ROWS, check, opened
from engine.convert import canonical
from engine.fixes import as_line
from engine.read import faults, formats, lines
from engine.words import Problem

# What can only be judged over all rows of a file.
_OF_SEVERAL_ROWS = ("duplicate-row", "near-duplicate", "contradiction")


class _Kept:
    """A sink that keeps the row of one line, as it is trained."""

    def __init__(self, line: int):
        self.line = line
        self.row: dict[str, Any] | None = None

    def start(self, reading: formats.Reading) -> None:
        self.reading, self.row = reading, None

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        if line == self.line:
            self.row = canonical(row, self.reading)


def check_row(
    path: Path, raw: bytes, mapping: dict[str, str] | None = None
) -> tuple[tuple[Problem, ...], dict[str, Any] | None]:
    """Check `raw`, a record on one line, as a row of the file at `path`: its problems and, when good, its canonical row.

    The rows that decide the file's layout are put in front of it, so it is read as it would be there. What can only be
    seen over all rows, such as repetitions, is left to the check of the whole.
    """
    if not lines.parses(raw):
        rule, parameters = faults.explain(raw)
        return (Problem(rule=rule, parameters=dict(parameters)),), None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        # The row comes early, so that its problems are among the first, but does not decide what kind of file this is.
        with opened(path, mapping) as (reading, records), file.open("wb") as out:
            rows = written = place = 0
            for line, record in records:
                text = as_line(line, record)
                if not text.strip():
                    continue
                rows += 1
                written += out.write(text + b"\n")
                if not place:
                    place = rows + 1
                    out.write(raw + b"\n")
                if rows == SAMPLE_ROWS or written > SAMPLE_BYTES:
                    break
        kept = _Kept(place)
        report = check(file, mapping=mapping, sink=kept)
    found = [p for p in report.problems if p.row == place and p.rule not in _OF_SEVERAL_ROWS]
    if reading is not None and report.layout != reading.name and not found:
        wanted = {"found": str(report.layout), "wanted": reading.name}
        return (Problem(rule="other-layout", parameters=dict(wanted)),), None
    return tuple(msgspec.structs.replace(p, line=None, row=None) for p in found), kept.row

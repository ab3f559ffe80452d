"""One row of a stored file: found by its place or a text in it, its spot of trouble marked, checked while it is edited.

The file is read as a stream each time, so nothing grows with it; a text is looked for as it may be written in JSON.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine import looker
from engine.check import apart, canonical, check_file, opened
from engine.data.fixes import as_line
from engine.read import OnProgress, faults, formats, lines
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
            self.row = canonical.canonical(row, self.reading)


def check_row(
    path: Path, raw: bytes, mapping: dict[str, str] | None = None
) -> tuple[tuple[Problem, ...], dict[str, Any] | None]:
    """Check `raw`, a record on one line, as a row of the file at `path`: its problems and, when good, its canonical row.

    The rows that decide the file's layout are put in front of it, so it is read as it would be there. What can only be
    seen over all rows, such as repetitions, is left to the check of the whole. Raises DatasetError.
    """
    return apart.looked_at(_check_row, path, raw, mapping, at=path)


def _check_row(
    path: Path, raw: bytes, mapping: dict[str, str] | None
) -> tuple[tuple[Problem, ...], dict[str, Any] | None]:
    if not lines.parses(raw) and faults.mended(raw) is None:
        rule, parameters = faults.explain(raw)
        return (Problem(rule=rule, parameters=dict(parameters)),), None
    with tempfile.TemporaryDirectory() as folder:
        rows_path = Path(folder) / "rows"
        # The row comes early, so that its problems are among the first, but does not decide what kind of file this is.
        with opened(path, mapping) as file, rows_path.open("wb") as out:
            reading, place = file.reading, 0
            for line, record, _ in file.sample():
                text = as_line(line, record)
                if not text.strip():
                    continue
                out.write(text + b"\n")
                if not place:
                    place = 2
                    out.write(raw + b"\n")
        kept = _Kept(place)
        report = check_file(rows_path, mapping=mapping, sink=kept)
    found = [p for p in report.problems if p.row == place and p.rule not in _OF_SEVERAL_ROWS]
    if reading is not None and report.layout != reading.name and not found:
        wanted = {"found": str(report.layout), "wanted": reading.name}
        return (Problem(rule="other-layout", parameters=dict(wanted)),), None
    return tuple(msgspec.structs.replace(p, line=None, row=None) for p in found), kept.row


# A longer row is shown in part and edited elsewhere.
EDITABLE_CHARACTERS = 100_000


class Row(NamedTuple):
    """A record: its 1-based number, the line it starts on (None in Parquet), and its text as it stands in the file; for
    a table the JSON that its cells mean. `whole` is False when the text is cut or could not be read."""

    row: int
    line: int | None
    text: str
    whole: bool


class Page(NamedTuple):
    """Rows found, and the row to go on from, or None at the end."""

    rows: list[Row]
    next_row: int | None


def find(
    path: Path,
    mapping: dict[str, str],
    *,
    start: int = 1,
    count: int = 20,
    text: str = "",
    only: Collection[int] | None = None,
) -> Page:
    """The first `count` rows from row `start` on that hold `text` (in any case) and, with `only`, are among these. Raises
    DatasetError."""
    which = None if only is None else frozenset(only)
    return apart.looked_at(_find, path, mapping, start, count, text, which, at=path, progress=looker.patiently)


def _find(
    path: Path, mapping: dict[str, str], start: int, count: int, text: str, only: frozenset[int] | None,
    progress: OnProgress | None = None,
) -> Page:  # fmt: skip
    needles = _needles(text)
    found: list[Row] = []
    last = max(only, default=0) if only is not None else None
    with opened(path, mapping) as file:
        for row, (line, raw) in enumerate(file.records(), start=1):
            if last is not None and row > last:
                break
            if progress is not None and not row % 1000:
                progress(row, row)
            if row < start or (only is not None and row not in only) or (needles and not _holds(raw, needles)):
                continue
            if len(found) == count:
                return Page(found, row)
            found.append(_row(row, line, raw))
    return Page(found, None)


def _row(row: int, line: int | None, raw: bytes) -> Row:
    if isinstance(raw, lines.Unreadable):
        return Row(row, line, "", False)
    text = raw.decode("utf-8", "replace").strip("\r\n")
    return Row(row, line, text[:EDITABLE_CHARACTERS], len(text) <= EDITABLE_CHARACTERS)


def _needles(text: str) -> tuple[str, ...]:
    """A text as it may stand in a file: as it is, and with JSON's escapes, of letters outside ASCII too."""
    small = text.casefold()
    if not small:
        return ()
    forms = {small}
    for case in {text, small, text.lower(), text.upper()}:
        forms |= {json.dumps(case)[1:-1].casefold(), json.dumps(case, ensure_ascii=False)[1:-1].casefold()}
    return tuple(forms)


def _holds(raw: bytes, needles: tuple[str, ...]) -> bool:
    text = raw.decode("utf-8", "replace").casefold()
    return any(needle in text for needle in needles)


_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_SPACE = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder()


def spot(text: str, problem: Problem) -> tuple[int, int] | None:
    """The first and past-the-last character of what a problem of this row is about; None when no one spot is."""
    if not text:
        return None
    position = problem.parameters.get("position")
    if problem.rule == "encoding-row" and isinstance(position, int):
        return None if position > len(text) else (position - 1, position)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        at = min(error.pos, len(text) - 1)
        return at, len(text) if error.msg.startswith("Unterminated") else at + 1
    except (ValueError, RecursionError):
        return None
    if problem.rule == "nan":
        found = re.search(r"-?\b(NaN|Infinity)\b", text)
        return found.span() if found else None
    if not problem.where:
        return None
    parts: list[str | int] = [int(n) if n else name for n, name in _PART.findall(problem.where)]
    try:
        return _walk(text, parts) or _walk(text, [problem.where])
    except (ValueError, StopIteration, RecursionError):
        return None


def _walk(text: str, parts: list[Any]) -> tuple[int, int] | None:
    """The span of the value at a path, or of the longest part of the path that is there; None when nothing is."""
    at = _skip(text, 0)
    best: tuple[int, int] | None = None
    for part in parts:
        found = None
        for name, start, end in _members(text, at):
            if name == part:
                found = start, end  # the last of several counts, as for the parser
        if found is None:
            break
        best, at = found, found[0]
    return best


def _members(text: str, at: int) -> list[tuple[Any, int, int]]:
    """The members of the object or list that begins at `at`: name or index, and the span of the value."""
    if text[at : at + 1] not in ("{", "["):
        return []
    is_object = text[at] == "{"
    found: list[tuple[Any, int, int]] = []
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        name: Any = len(found)
        if is_object:
            name, at = _decoder.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # past the colon
        _, end = _decoder.raw_decode(text, at)
        found.append((name, at, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at

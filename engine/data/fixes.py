"""Safe repairs of a file. Each writes a new file beside the old one and changes nothing but what its name says.

What is offered for a file, and how much it would change, is in its Report (`offers`), so that a person sees the effect
before it is applied. Leaving rows out is the one repair that needs a check.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.check import DatasetError, Report, check_file, opened
from engine.read import OnProgress, faults, formats, lines
from engine.read import source as read_source
from engine.words import Problem, rules, t
from engine.workspace import read_lines


def repair(original: Path, fixes: tuple[str | Edit, ...], mapping: dict[str, str], progress: OnProgress | None) -> None:
    """Replace a file by its repaired one."""
    fixed = original.with_name("fixed")
    edits = [fix for fix in fixes if isinstance(fix, Edit)]
    if edits:
        write_edited(original, fixed, mapping, edits)
        os.replace(fixed, original)
    for fix in (fix for fix in fixes if isinstance(fix, str)):
        if fix == DROP_BAD_ROWS:
            _drop_bad_rows(original, mapping, progress)
        elif broken := _left_out(fix):
            _leave_out(original, broken, mapping, progress)
        else:
            apply(fix, original, fixed, mapping)
            os.replace(fixed, original)


def _drop_bad_rows(original: Path, mapping: dict[str, str], progress: OnProgress | None) -> None:
    """Replace the file by its good rows as JSON Lines."""
    kept_path = original.with_name("kept")
    with _KeptLines(kept_path) as kept:
        report = check_file(original, progress=progress, sink=kept, mapping=mapping)
    if not kept.rows:  # what is wrong with all of the file says more
        of_all = [one for one in report.problems if one.severity == "error" and not one.line and not one.row]
        raise DatasetError(of_all[0] if of_all else Problem(rule="nothing-to-keep"))
    os.replace(kept_path, original)


def _leave_out(original: Path, broken: tuple[str, ...], mapping: dict[str, str], progress: OnProgress | None) -> None:
    """Replace the file by its rows in which none of these rules is broken, as JSON Lines."""
    every, kept = original.with_name("every"), original.with_name("kept")
    report = check_file(original, progress=progress, problems_path=every, mapping=mapping)
    left_out = {row for rule, _, row in broken_rows(report, every) if rule in broken}
    every.unlink(missing_ok=True)
    if report.rows <= len(left_out):
        raise DatasetError(Problem(rule="nothing-to-keep"))
    with opened(original, mapping) as file, kept.open("wb") as out:
        for row, (line, raw) in enumerate(file.records(), start=1):
            if row not in left_out and (text := as_line(line, raw)):
                out.write(text + b"\n")
    os.replace(kept, original)


class _Broken(msgspec.Struct):
    """What the list of all problems has to say of one: its rule and its row, None for one of the whole file."""

    rule: str
    severity: str = "error"
    row: int | None = None


def broken_rows(report: Report, every: Path) -> list[tuple[str, str, int]]:
    """Return rule, severity and row of each problem of a row: of all of them where `every`, the list that a check has
    written, is there, else of those that the report holds."""
    found: Iterable[Problem | _Broken] = report.problems
    if report.problems_file and every.is_file():
        found = read_lines(every, _Broken)
    return [(one.rule, one.severity, one.row) for one in found if one.row and one.row <= report.rows]


class _KeptLines:
    """Writes the bytes of good rows one to a line; a row of an indented document is put on one line."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = 0

    def __enter__(self) -> _KeptLines:
        self.file = self.path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def start(self, reading: formats.Reading) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.rows = 0

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        # A line break cannot be part of a JSON string, so these stand between values and nothing is lost.
        self.file.write(raw.rstrip(b"\r").replace(b"\n", b" ").replace(b"\r", b" ") + b"\n")
        self.rows += 1


DROP_BAD_ROWS, CONVERT_LABELS, STRIP_BOM, AS_TEXT = "drop_bad_rows", "convert_labels", "strip_bom", "as_text"
DROP_REPEATS = "drop_repeats"
# Of what is only warned of, where leaving the row out loses nothing that could be learned from it: fix -> its rules.
LEFT_OUT = {
    DROP_REPEATS: ("duplicate-row", "near-duplicate"),
    "drop_placeholders": ("placeholder",),
    "drop_lost_letters": ("replacement-character",),
    "drop_questions_in_answers": ("prompt-in-answer",),
    "drop_personal_data": ("personal-data",),
}
# Others are named by their rule: every error of a row, and these.
LEAVE_OUT = "leave_out:"
_WARNINGS_LEFT_OUT = ("nearly-equal-pair", "unclosed-think", "cell-cut", "drive-letter")
# In the order in which they are applied, after all edits: what is repaired first need not be dropped.
FIXES = (AS_TEXT, STRIP_BOM, CONVERT_LABELS, *LEFT_OUT, DROP_BAD_ROWS)


def in_order(fixes: Iterable[str | Edit]) -> tuple[str | Edit, ...]:
    """Return the fixes as they are applied: the latest edit of each row, then each other one once."""
    kept = list(fixes)
    edits = {fix.row: fix for fix in kept if isinstance(fix, Edit)}
    named = {fix for fix in kept if isinstance(fix, str)}
    by_rule = sorted(fix for fix in named if fix.startswith(LEAVE_OUT) and _left_out(fix))
    known = [fix for fix in FIXES if fix in named]
    dropping = [fix for fix in known if fix == DROP_BAD_ROWS]  # the last: what is left of errors then
    return (*(edits[row] for row in sorted(edits)), *(fix for fix in known if fix not in dropping), *by_rule, *dropping)


def _left_out(fix: str) -> tuple[str, ...]:
    """Return the rules of which a fix leaves the rows out; none for another fix."""
    rule = fix.removeprefix(LEAVE_OUT)
    return LEFT_OUT.get(fix) or ((rule,) if rule != fix and rule in rules.rules() else ())


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """A row that a person wrote anew. `row` is the 1-based record of the file; a blank text deletes the row."""

    row: int
    text: str


def one_line(text: str) -> bytes:
    """A record's text on one line: a line break cannot be part of a JSON string, so it stands between values."""
    return " ".join(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").splitlines()).strip().encode()


def write_edited(source: Path, target: Path, mapping: dict[str, str], edits: Sequence[Edit]) -> None:
    """Write every record as JSON Lines, the edited ones as a person wrote them. Raises DatasetError for one that
    is no JSON, or is not there."""
    texts = {edit.row: one_line(edit.text) for edit in edits}
    for row, text in texts.items():
        # A row of brackets or zero bytes could make another kind of file of all the rest.
        if text and not lines.parses(text):
            raise DatasetError(Problem(rule="row-not-json", parameters={"row": row}))
    with opened(source, mapping) as file, target.open("wb") as out:
        for row, (line, raw) in enumerate(file.records(), start=1):
            text = texts.pop(row, None)
            if text is None:
                text = as_line(line, raw)
            if text:
                out.write(text + b"\n")
    if texts:
        raise DatasetError(Problem(rule="row-gone", parameters={"row": min(texts)}))


def as_line(line: int | None, raw: bytes) -> bytes:
    """A record on one line; one that could not be read stays an error."""
    if isinstance(raw, lines.Unreadable):
        return f"(line {line} could not be read)".encode()  # stays an error, and says where it was
    return raw.rstrip(b"\r").replace(b"\n", b" ").replace(b"\r", b" ")


def offers(report: Report) -> dict[str, str]:
    """The repairs that would change something: name -> what it does, in one sentence."""
    found: dict[str, str] = {}
    if report.errors.get("not-data") and report.plain_text:
        found[AS_TEXT] = t("Train on it as text: every paragraph becomes a row.")
    if report.label_changes:
        changes = ", ".join(
            t("{change} in 1 row", change=change) if n == 1 else t("{change} in {n} rows", change=change, n=f"{n:,}")
            for change, n in report.label_changes.items()
        )
        found[CONVERT_LABELS] = t("Convert the labels: {changes}.", changes=changes)
    if report.warnings.get("bom"):
        found[STRIP_BOM] = t("Remove the byte order mark: 3 bytes at the start, no text.")
    if repeats := sum(report.warnings.get(rule, 0) for rule in LEFT_OUT[DROP_REPEATS]):
        rows = {"repeats": f"{repeats:,}", "rest": f"{report.rows - repeats:,}"}
        found[DROP_REPEATS] = t("Leave out {repeats} rows that repeat an earlier one: {rest} rows stay.", **rows)
    if report.type and 0 < report.bad_rows < report.rows:
        found[DROP_BAD_ROWS] = t(
            "Leave out {bad} rows with errors: {good} rows stay.",
            bad=f"{report.bad_rows:,}",
            good=f"{report.rows - report.bad_rows:,}",
        )
    return found


def leaving_out(report: Report, rule: str) -> str | None:
    """Return the fix that leaves out the rows in which a rule was broken, where that is sensible and rows would stay."""
    rows = report.rows_with.get(rule) or report.warnings.get(rule, 0)
    if not report.type or not 0 < rows < report.rows:
        return None
    fix = next((name for name, broken in LEFT_OUT.items() if rule in broken), None)
    return fix or (f"{LEAVE_OUT}{rule}" if rule in report.errors or rule in _WARNINGS_LEFT_OUT else None)


def apply(fix: str, source: Path, target: Path, mapping: dict[str, str]) -> None:
    """Write `source` with one repair (any that needs no check) to `target`. Raises DatasetError."""
    {AS_TEXT: _as_text, STRIP_BOM: _strip_bom, CONVERT_LABELS: _convert_labels}[fix](source, target, mapping)


def _strip_bom(source: Path, target: Path, mapping: dict[str, str]) -> None:
    with source.open("rb") as file, target.open("wb") as out:
        out.write(file.read(len(read_source.BOM)).removeprefix(read_source.BOM))
        while chunk := file.read(lines.CHUNK_BYTES):
            out.write(chunk)


def _convert_labels(source: Path, target: Path, mapping: dict[str, str]) -> None:
    """Write every record as JSON Lines, labels that clearly mean true or false as these."""
    with opened(source, mapping) as file, target.open("wb") as out:
        fields = file.reading.layout.fields if file.reading else {}
        for line, raw in file.records():
            changed = _with_labels(raw, fields.get("label"), fields.get("step_labels"))
            out.write((changed or as_line(line, raw)) + b"\n")


def _with_labels(raw: bytes, label: str | None, step_labels: str | None) -> bytes | None:
    """The record with its labels converted, or None when none is."""
    row: Any = faults.decoded(raw)
    if not isinstance(row, dict):
        return None
    changed = False
    if label in row and (meant := formats.meant_label(row[label])) is not None:
        row[label], changed = meant, True
    if step_labels in row and isinstance(row[step_labels], list):
        marks = [meant if (meant := formats.meant_label(mark)) is not None else mark for mark in row[step_labels]]
        row[step_labels], changed = marks, changed or marks != row[step_labels]
    return msgspec.json.encode(row) if changed else None


def _as_text(source: Path, target: Path, mapping: dict[str, str]) -> None:
    """Write each paragraph, what stands between blank lines, as a row."""
    held: list[str] = []
    with source.open("rb") as file, target.open("wb") as out:

        def write() -> None:
            if text := "".join(held).strip("\r\n"):
                out.write(msgspec.json.encode({"text": text}) + b"\n")
            held.clear()

        for line in file:
            try:
                text = line.removeprefix(read_source.BOM).decode()
            except UnicodeDecodeError:
                raise DatasetError(Problem(rule="encoding", parameters={"found": t("something else")})) from None
            if text.strip():
                held.append(text)
            else:
                write()
        write()

"""check_file(): opens a file, has its pieces checked here or by several processes, and makes the Report.

The file is read once as a stream of bytes (after a look at its first rows, which decide the layout), so memory does not
grow with it beyond 16 bytes a row to find repetitions. What the file is called plays no part: its bytes decide.
Rows are parsed with msgspec, which refuses what json.loads lets through (NaN, half characters, UTF-16); only a line
that it refuses is looked at again, slowly, to say why.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from engine.check import pool as check_pool
from engine.check.file_rules import judge_file
from engine.check.overlap import Questions
from engine.check.piece import GROUP_ROWS, Piece
from engine.check.pool import Job, Pool, PoolBroken, check_range, workers_for
from engine.check.records import OpenFile, batches
from engine.check.report import DatasetError, Report, os_problem
from engine.check.row_rules import judgements
from engine.check.rows import HasAnswers, RowChecks, RowSink
from engine.check.totals import Totals
from engine.check.window import Window
from engine.models import Base
from engine.read import OnProgress, source, texts
from engine.read import lines as read_lines
from engine.words import Problem, language, later
from engine.workspace import open_regular

# JSON Lines are checked in pieces of about this size, each by whichever process is free.
PIECE_BYTES = 4 << 20
# Smaller files are checked before what the quick way needs is loaded.
QUICK_BYTES = 1 << 20


def check_file(
    path: Path | str,
    *,
    name: str | None = None,
    progress: OnProgress | None = None,
    sink: RowSink | None = None,
    problems_path: Path | None = None,
    mapping: dict[str, str] | None = None,
    base: Base | None = None,
    max_length: int | None = None,
    against: Path | None = None,
    processes: int | None = None,
    quick: bool | None = None,
    most_rows: int | None = None,
) -> Report:
    """Check the file at `path` and return its Report; `name` is what the report calls it.

    With a `base` whose tokenizer is on this machine, every good row is rendered as a run would and nothing is given to a
    `sink`: what its chat template refuses, and what `max_length` tokens cut, is named; with a file of validation
    data to hold it `against`, rows that ask what one of its rows asks.

    Large files of JSON Lines are checked by several processes, by default as many as there are cores. The Report is the
    same whatever their number. `quick=False` looks at every row the careful way, to test the quick one with.

    With `most_rows` reading stops at the first row beyond, in this process alone: the Report is then of the rows until
    there, so one of more than `most_rows` says that there are more.

    `mapping` says what columns mean that have names of their own: {"reply": "completion"}, or {"label": "ignore"}.

    `sink` is given every good row. All problems are written to `problems_path` as JSON Lines when there are more than
    the report holds. `progress` is called with the bytes done and the bytes in all. Raises DatasetError when the file
    cannot be read at all, or the base's tokens cannot be counted here.
    """
    path = Path(path)
    # A file's name may hold bytes that are no text.
    shown = os.fsencode(name or path.name).decode("utf-8", "replace")
    try:
        if path.is_dir():
            raise DatasetError(Problem(rule="file-is-folder", parameters={"path": texts.short(str(path), 200)}))
        with open_regular(path) as file:
            run = _Check(OpenFile(file, mapping), path, shown, progress, sink, problems_path, quick)
            run.processes, run.most_rows = processes or workers_for(run.file.size), most_rows
            if base is not None:
                run.sink = run.window = Window(base, max_length)
            if against is not None:
                run.questions = Questions()
                check_file(against, sink=run.questions)
                run.processes = 1
            return run.run()
    except OSError as error:
        raise DatasetError(os_problem(error, path)) from error


# Whole-file errors that come after the container is known.
_KNOWS_CONTAINER = (
    "gzip-bomb", "bad-gzip", "bad-parquet", "csv-header", "mapping-column", "mapping-unused", "columns-not-rows",
)  # fmt: skip


class _Check:
    """One check of one open file."""

    def __init__(
        self,
        file: OpenFile,
        path: Path,
        name: str,
        progress: OnProgress | None,
        sink: RowSink | None,
        problems_path: Path | None,
        quick: bool | None,
    ):
        self.file, self.path, self.name = file, path, name
        self.progress, self.sink, self.problems_path = progress, sink, problems_path
        self.quick = file.size >= QUICK_BYTES if quick is None else quick
        self.processes = 1
        self.most_rows: int | None = None
        self.window: Window | None = None
        self.questions: Questions | None = None  # of the validation data
        self.totals: Totals | None = None

    def run(self) -> Report:
        file = self.file
        try:
            file.begin()
            for pool_size in (self.processes, 1):
                with suppress(PoolBroken):
                    try:
                        return self._read(pool_size)
                    except HasAnswers:
                        assert file.reading is not None
                        file.reading = msgspec.structs.replace(file.reading, prompts_only=False)
                        return self._read(pool_size)
            raise AssertionError("a check in this process needs no pool")
        except source.NotRows as refused:
            return self._refusal(refused.problem)
        finally:
            if self.totals:
                self.totals.close()

    def _read(self, processes: int) -> Report:
        file = self.file
        if self.totals:
            self.totals.close()
        totals = self.totals = Totals(judgements(file.reading), self.problems_path)
        if self.sink and file.reading:
            self.sink.start(file.reading)
        with tempfile.TemporaryDirectory(prefix="tunebook-check-") as folder:
            every = folder if self.problems_path else None
            if file.is_plain and not self.sink and self.most_rows is None:
                self._read_ranges(totals, processes, every)
            else:
                self._read_stream(totals, every)
        if file.has_bom:
            totals.warn("bom", line=1)
        if not totals.rows:
            return self._refusal(Problem(rule="empty-file"))
        judge_file(file, totals, self.window)
        return self._report(totals)

    def _read_ranges(self, totals: Totals, processes: int, every: str | None) -> None:
        """Check JSON Lines in ranges of bytes, here and by other processes. Raises PoolBroken."""
        file, stream = self.file, self.file.source.file
        job = Job(
            path=os.fsencode(self.path),
            reading=file.reading,
            mapping=file.mapping,
            example=file.example,
            language=language(),
            problems_folder=every,
        )
        pool = Pool(job, processes - 1)
        checks = self._checks()

        def here(index: int, start: int, end: int) -> Piece:
            with self._every(checks, every, index):
                return check_range(checks, stream, start, end)

        try:
            ranges = read_lines.line_pieces(stream, len(source.BOM) if file.has_bom else 0, file.size, PIECE_BYTES)
            for index, (start, end, piece) in enumerate(pool.pieces(ranges, here)):
                if piece.has_answers:
                    raise HasAnswers
                totals.add(piece, check_pool.problems_path(every, index) if every else None, start, end)
                if self.progress:
                    self.progress(end, file.size)
        finally:
            pool.close()

    def _read_stream(self, totals: Totals, every: str | None) -> None:
        """Check the records of any container one after the other, and add up what was found after so many."""
        checks = self._checks()
        self.file.source.progress = self.progress
        most = None if self.most_rows is None else self.most_rows + 1
        groups = batches(itertools.islice(self.file.records(), most), read_lines.CHUNK_BYTES)
        index = 0
        while True:
            found = 0
            with self._every(checks, every, index) as written:
                for places, records in groups:
                    checks.block(places, records, b"\n".join(records))
                    found += len(records)
                    if found >= GROUP_ROWS:
                        break
            totals.add(checks.take(), written)
            index += 1
            if found < GROUP_ROWS:
                break
        self.file.source.progress = None

    def _checks(self) -> RowChecks:
        file, reading = self.file, self.file.reading
        return RowChecks(
            reading,
            mapping=file.mapping,
            has_cells=file.container == "csv",
            has_lines=file.has_lines,
            sink=self.sink,
            quick=self.quick,
            example=file.example,
            overlap=self.questions.same_as(reading) if self.questions and reading else None,
        )

    @staticmethod
    @contextmanager
    def _every(checks: RowChecks, folder: str | None, index: int) -> Iterator[Path | None]:
        """Let all problems of a piece be written to a file in `folder`, if there is one."""
        if folder is None:
            yield None
            return
        path = check_pool.problems_path(folder, index)
        with path.open("wb") as file:
            checks.ledger.every = file
            yield path

    def _report(self, totals: Totals) -> Report:
        reading = self.file.reading
        good, bad = totals.labels
        return Report(
            file=self.name,
            container=self.file.shown_container,
            layout=reading.name if reading else None,
            type=reading.type if reading else None,
            conversational=bool(reading and reading.conversational),
            rows=totals.rows,
            bad_rows=totals.bad_rows,
            errors=dict(sorted(totals.errors.items())),
            warnings=dict(sorted(totals.warnings.items())),
            rows_with={rule: count for rule, count in sorted(totals.rows_with.items()) if count},
            problems=self._with_lines(totals.first()),
            problems_file=totals.problems_file(),
            bytes=self.file.size,
            columns=tuple(totals.columns),
            label_counts={"true": good, "false": bad} if reading and "label" in reading.layout.fields else None,
            target_characters=totals.target_characters,
            sharegpt=bool(reading and reading.sharegpt),
            label_changes=dict(itertools.islice(totals.label_changes.items(), Totals.LABEL_CHANGES)),
        )

    def _with_lines(self, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """The problems of rows on one line have that line too, for programs; their sentences name the row."""
        line = self.file.one_line
        return tuple(msgspec.structs.replace(p, line=line) if line and p.row else p for p in problems)

    def _refusal(self, problem: Problem) -> Report:
        """The report of a file that has no rows to speak of."""
        return Report(
            file=self.name,
            container=self.file.shown_container if problem.rule in _KNOWS_CONTAINER else None,
            layout=None,
            type=None,
            conversational=False,
            rows=0,
            bad_rows=0,
            errors={problem.rule: 1},
            warnings={},
            problems=(problem,),
            bytes=self.file.size,
            plain_text=problem.parameters.get("found") == later("plain text") and not self.file.source.packed,
        )

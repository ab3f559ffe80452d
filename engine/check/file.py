"""check(): any uploaded file -> Report, which names every bad row by line with where, what and what to do.

The file is read once as a stream of bytes (after a look at its first rows, which decide the layout), so memory does not
grow with it beyond 16 bytes a row to find repetitions. What the file is called plays no part: its bytes decide.
Rows are parsed with msgspec, which refuses what json.loads lets through (NaN, half characters, UTF-16); only a line
that it refuses is looked at again, slowly, to say why.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from xxhash import xxh3_64_intdigest as hash64

from engine.check import pool as check_pool
from engine.check import window as check_window
from engine.check.ledger import PROBLEMS_KEPT
from engine.check.pool import Job, Pool, PoolBroken, check_range, workers_for
from engine.check.repeats import Hashes, Places, Repeats
from engine.check.report import DatasetError, Report, os_problem
from engine.check.rows import HasAnswers, Piece, RowChecks, RowSink, batches, judgements
from engine.check.rules import Lengths
from engine.check.totals import Totals
from engine.check.window import Window
from engine.models import Base
from engine.read import Progress, documents, faults, formats, source, tables, texts
from engine.read import lines as read_lines
from engine.spec import split
from engine.words import Problem, language, later

# The layout is decided on the first rows, up to whichever of these comes first.
SAMPLE_ROWS = 1_000
SAMPLE_BYTES = 8 << 20
# JSON Lines are checked in pieces of about this size, each by whichever process is free.
PIECE_BYTES = 4 << 20
# Other files are checked as one stream; what was found is added up after so many rows.
GROUP_ROWS = 100_000
# Smaller files are checked before what the quick way needs is loaded.
QUICK_BYTES = 1 << 20


def check_file(
    path: Path | str,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    sink: RowSink | None = None,
    problems_path: Path | None = None,
    mapping: dict[str, str] | None = None,
    base: Base | None = None,
    against: Path | None = None,
    processes: int | None = None,
    quick: bool | None = None,
) -> Report:
    """Check the file at `path` and return its Report; `name` is what the report calls it.

    With a `base` whose tokenizer is on this machine, rows longer than its window are named; with a file of validation
    data to hold it `against`, rows that ask what one of its rows asks.

    Large files of JSON Lines are checked by several processes, by default as many as there are cores. The Report is the
    same whatever their number. `quick=False` looks at every row the careful way, to test the quick one with.

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
        with path.open("rb") as file:
            run = _Check(
                file,
                shown,
                checked_mapping(mapping),
                path=path,
                progress=progress,
                sink=sink,
                problems_path=problems_path,
                processes=processes,
                quick=quick,
            )
            if base is not None:
                run.window = Window(base)
            if against is not None:
                run.asked = _questions(Path(against))
                run.processes = 1
            return run.run()
    except OSError as error:
        raise DatasetError(os_problem(error, path)) from error


@contextmanager
def opened(
    path: Path, mapping: dict[str, str] | None = None
) -> Iterator[tuple[formats.Reading | None, Iterator[tuple[int | None, bytes]]]]:
    """How the file at `path` is read, and its records with their lines. Raises DatasetError when it is no data."""
    with path.open("rb") as file:
        run = _Check(file, path.name, checked_mapping(mapping))
        try:
            yield run.begin(), run.records()
        except source.Refused as refused:
            raise DatasetError(refused.problem) from None


def checked_mapping(mapping: dict[str, str] | None) -> dict[str, str]:
    """Return a mapping that names known columns, each once. Raises DatasetError."""
    mapping = dict(mapping or {})
    known = formats.targets()
    for column, target in mapping.items():
        if target not in known:
            names = ", ".join(known)
            raise DatasetError(
                Problem(rule="mapping-target", parameters={"target": texts.short(target), "known": names})
            )
        if target != formats.IGNORE and list(mapping.values()).count(target) > 1:
            raise DatasetError(
                Problem(rule="mapping-twice", parameters={"target": target, "column": texts.short(column)})
            )
    return mapping


def _squeezed(raw: bytes) -> bytes:
    """A record without its white space, escaped line breaks included."""
    return raw.translate(None, b" \t\r\n").replace(b"\\n", b"")


# Whole-file errors that come after the container is known.
_KNOWS_CONTAINER = ("gzip-bomb", "bad-gzip", "bad-parquet", "csv-header", "mapping-column")


class _Canonical:
    """Keeps the canonical rows of a check, with their lines."""

    def __init__(self, reading: formats.Reading | None, kept: list[tuple[int, dict[str, Any]]]):
        self.reading, self.kept = reading, kept

    def start(self, reading: formats.Reading) -> None:
        self.reading = reading
        self.kept.clear()

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        from engine.check.canonical import canonical

        assert self.reading is not None
        self.kept.append((line, canonical(row, self.reading)))


class _Questions(_Canonical):
    """Keeps a hash of what each row asks instead of the row."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.asked: dict[int, int] = {}

    def start(self, reading: formats.Reading) -> None:
        self.reading = reading
        self.asked.clear()

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        assert self.reading is not None
        self.asked.setdefault(_question(row, self.reading), line)


def _question(row: dict[str, Any], reading: formats.Reading) -> int:
    """A hash of what a row asks, white space aside; rows that ask the same are never divided by a split either."""
    from engine.check.canonical import canonical

    asked = split.group_of(canonical(row, reading))  # JSON, where a line break is an escape
    return hash("".join(asked.replace("\\n", " ").split()))


def _questions(path: Path) -> dict[int, int]:
    """What the good rows of a validation file ask, with the line that asks it first."""
    sink = _Questions()
    check_file(path, sink=sink)
    return sink.asked


class _Check:
    """One check of one open file."""

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        mapping: dict[str, str],
        *,
        path: Path | None = None,
        progress: Progress | None = None,
        sink: RowSink | None = None,
        problems_path: Path | None = None,
        processes: int | None = None,
        quick: bool | None = None,
    ):
        self.size = os.fstat(file.fileno()).st_size
        self.mapping, self.name, self.path = mapping, name, path
        self.source = source.Source(file, self.size, None)
        self.progress, self.sink, self.problems_path = progress, sink, problems_path
        self.quick = self.size >= QUICK_BYTES if quick is None else quick
        self.processes = processes or workers_for(self.size)
        self.container: str | None = None
        self.separator = ","
        self.has_bom = False
        self.totals: Totals | None = None
        # Of pieces that are ranges of the file: first row, rows, lines before it, first byte, last byte.
        self.ranges: list[tuple[int, int, int, int, int]] = []
        self.example: dict[str, Any] | None = None  # a row as most are
        self.window: Window | None = None
        self.asked: dict[int, int] | None = None  # hash of a validation row's question -> its line

    def run(self) -> Report:
        try:
            reading = self.begin()
            for pool_size in (self.processes, 1):
                try:
                    return self._read(reading, pool_size)
                except HasAnswers:
                    assert reading is not None
                    reading = msgspec.structs.replace(reading, prompts_only=False)
                    return self._read(reading, pool_size)
                except PoolBroken:
                    continue
            raise AssertionError("a check in this process needs no pool")
        except source.Refused as refused:
            return self._refusal(refused.problem)
        finally:
            if self.totals:
                self.totals.close()

    def begin(self) -> formats.Reading | None:
        """Find the container, then how its rows are read."""
        self.container = self._container()
        return self._detect()

    def _container(self) -> str:
        head = b""
        for chunk in self.source.chunks():
            head += chunk
            # Leading blank lines may be long; what the file is shows in its first bytes that are not.
            if len(head.lstrip()) >= 65536 or len(head) >= SAMPLE_BYTES:
                break
        if self.source.packed and head.startswith(b"\x1f\x8b"):
            raise source.Refused(
                "not-data", found=later("a gzip archive inside another"), remedy=source.remedy_for("archive")
            )
        if head[257:262] == b"ustar":
            raise source.Refused("not-data", found=later("a tar archive"), remedy=source.remedy_for("archive"))
        self.has_bom = head.startswith(source.BOM)
        container = source.container_of(head, len(head) < 65536, tables.separator_of)
        if container == "parquet" and self.source.packed:
            raise source.Refused(
                "not-data", found=later("a Parquet file inside a gzip archive"), remedy=source.remedy_for("archive")
            )
        if container == "csv":
            self.separator = tables.separator_of(head, len(head) < 65536) or ","
        return container

    def records(self) -> Generator[tuple[int | None, bytes]]:
        if self.container == "parquet":
            return tables.parquet_records(self.source.file, self.size, self.source.progress)
        chunks = source.without_bom(self.source.chunks())
        if self.container == "csv":
            return tables.csv_records(chunks, self.separator)
        return documents.split_documents(chunks) if self.container == "json" else read_lines.split_lines(chunks)

    @property
    def has_lines(self) -> bool:
        return self.container != "parquet"

    def _detect(self) -> formats.Reading | None:
        met: dict[str, None] = {}
        shapes: Counter[tuple[str, ...]] = Counter()
        examples: dict[tuple[str, ...], dict[str, Any]] = {}

        def sample() -> Iterator[dict[str, Any] | list[Any]]:
            seen_bytes = 0
            for _, raw in self.records():
                seen_bytes += len(raw)
                row = faults.decoded(raw)
                if isinstance(row, dict):
                    met.update(dict.fromkeys(row))
                    shape = tuple(row)
                    shapes[shape] += 1
                    if len(examples) < 20:
                        examples.setdefault(shape, row)
                    yield formats.renamed(row, self.mapping) if self.mapping else row
                elif isinstance(row, list) and formats.is_message_list(row):
                    yield row
                if seen_bytes > SAMPLE_BYTES:
                    return

        reading = formats.detect(itertools.islice(sample(), SAMPLE_ROWS))
        if shapes:
            self.example = examples.get(shapes.most_common(1)[0][0])
        for column in self.mapping:
            if column not in met:
                found = texts.name_list(met, 20) or later("no fields")
                raise source.Refused("mapping-column", column=texts.short(column), found=found)
        return formats.mapped(reading, self.mapping) if reading and self.mapping else reading

    def _read(self, reading: formats.Reading | None, processes: int) -> Report:
        if self.totals:
            self.totals.close()
        totals = self.totals = Totals(judgements(reading), self.problems_path)
        self.ranges.clear()
        if self.sink and reading:
            self.sink.start(reading)
        with tempfile.TemporaryDirectory(prefix="tunebook-check-") as folder:
            every = folder if self.problems_path else None
            if self.container == "jsonl" and not self.source.packed and not self.sink:
                self._read_ranges(reading, totals, processes, every)
            else:
                self._read_stream(reading, totals, every)
        if self.has_bom:
            totals.warn("bom", line=1)
        return self._finish(reading, totals)

    def _read_ranges(self, reading: formats.Reading | None, totals: Totals, processes: int, every: str | None) -> None:
        """Check JSON Lines in ranges of bytes, here and by other processes. Raises PoolBroken."""
        file = self.source.file
        job = Job(
            path=os.fsencode(self.path or ""),
            reading=reading,
            mapping=self.mapping,
            example=self.example,
            long_bytes=self.window.least_bytes if self.window else None,
            language=language(),
            problems_folder=every,
        )
        pool = Pool(job, processes - 1)
        checks = self._checks(reading)

        def here(index: int, start: int, end: int) -> Piece:
            with self._every(checks, every, index):
                return check_range(checks, file, start, end)

        try:
            ranges = read_lines.line_pieces(file, len(source.BOM) if self.has_bom else 0, self.size, PIECE_BYTES)
            for index, (start, end, piece) in enumerate(pool.pieces(ranges, here)):
                self._add(totals, piece, check_pool.problems_path(every, index) if every else None, start, end)
                if self.progress:
                    self.progress(end, self.size)
        finally:
            pool.close()

    def _read_stream(self, reading: formats.Reading | None, totals: Totals, every: str | None) -> None:
        """Check the records of any container one after the other."""
        checks = self._checks(reading)
        self.source.progress = self.progress
        groups = batches(self.records(), read_lines.CHUNK_BYTES)
        index = 0
        while True:
            found = 0
            with self._every(checks, every, index) as written:
                for places, records in groups:
                    checks.block(places, records, b"\n".join(records))
                    found += len(records)
                    if found >= GROUP_ROWS:
                        break
            self._add(totals, checks.take(), written)
            index += 1
            if found < GROUP_ROWS:
                break
        self.source.progress = None

    def _checks(self, reading: formats.Reading | None) -> RowChecks:
        return RowChecks(
            reading,
            mapping=self.mapping,
            has_cells=self.container == "csv",
            has_lines=self.has_lines,
            sink=self.sink,
            long_bytes=self.window.least_bytes if self.window else None,
            quick=self.quick,
            example=self.example,
            overlap=self._overlap(reading),
        )

    def _overlap(self, reading: formats.Reading | None) -> Callable[[dict[str, Any]], int | None] | None:
        """What tells the line of the validation data that asks the same as a row."""
        asked = self.asked
        if asked is None or reading is None:
            return None
        return lambda row: asked.get(_question(row, reading))

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

    def _add(self, totals: Totals, piece: Piece, written: Path | None, start: int | None = None, end: int = 0) -> None:
        """Add what was found in a piece, which lies between `start` and `end` if it is a range of the file."""
        if piece.has_answers:
            raise HasAnswers
        if start is not None:
            self.ranges.append((totals.rows, piece.rows, totals.lines, start, end))
        totals.add(piece, written)

    def _finish(self, reading: formats.Reading | None, totals: Totals) -> Report:
        if not totals.rows:
            return self._refusal(Problem(rule="empty-file"))
        self._repetitions(totals)
        if reading is not None and totals.long_rows:
            self._over_window(reading, totals)
        label_counts = None
        if reading is None:
            if totals.has_objects:
                shown = texts.name_list(totals.columns, 20) or later("no fields")
                totals.error("unknown-layout", found=shown, known=formats.known_layouts())
        else:
            if "label" in reading.layout.fields:
                label_counts = {"true": totals.labels[0], "false": totals.labels[1]}
                if sum(totals.labels) > 1 and not all(totals.labels):
                    totals.warn("one-sided-labels", label="true" if totals.labels[0] else "false")
                self._balance(totals, label_counts)
            self._length_bias(totals)
            used = {*reading.layout.fields.values(), *reading.layout.required, *self.mapping}
            unused = [column for column in totals.layout_columns if column not in used]
            if unused:
                totals.warn("unused-columns", found=texts.name_list(unused, 12))
        return Report(
            file=self.name,
            container=self._shown_container,
            layout=reading.name if reading else None,
            type=reading.type if reading else None,
            conversational=bool(reading and reading.conversational),
            rows=totals.rows,
            bad_rows=totals.bad_rows,
            errors=dict(sorted(totals.errors.items())),
            warnings=dict(sorted(totals.warnings.items())),
            problems=totals.first(),
            problems_file=totals.problems_file(),
            bytes=self.size,
            columns=tuple(totals.columns),
            label_counts=label_counts,
            target_characters=totals.target_characters,
            sharegpt=bool(reading and reading.sharegpt),
            label_changes=dict(itertools.islice(totals.label_changes.items(), Totals.LABEL_CHANGES)),
        )

    def _repetitions(self, totals: Totals) -> None:
        """Warn of rows that repeat or contradict an earlier one."""
        limit = None if totals.path else PROBLEMS_KEPT
        same, near = totals.repeats.duplicates(limit)
        self._warn_places(totals, "duplicate-row", same)
        if near:
            self._warn_places(totals, "near-duplicate", self._near_repetitions(near, limit))
        against = totals.repeats.contradictions(limit)
        for row, line, first in against:
            totals.warn("contradiction", row=row + 1, line=line if self.has_lines else None, first=first)
        totals.warnings["contradiction"] += max(0, against.count - len(against))
        totals.warnings += Counter()  # drops what was found 0 times

    def _warn_places(self, totals: Totals, rule: str, places: Places) -> None:
        for row, line, first in places:
            shown = later("line {line}", line=first) if self.has_lines else later("row {row}", row=first)
            totals.warn(rule, row=row + 1, line=line if self.has_lines else None, first=shown)
        totals.warnings[rule] += max(0, places.count - len(places))

    def _near_repetitions(self, near: array[int], limit: int | None) -> Places:
        """Rows, of those given, that repeat one of them but for white space: these are read a second time."""
        found = Places(limit)
        with Repeats() as whole:
            part = Hashes()
            for line, raw in self._records_at(near):
                part.ends.append(hash64(_squeezed(raw)) or 1)
                part.exact.append(0)
                part.lines.append(line & 0xFFFFFFFF)
                if len(part.ends) >= GROUP_ROWS:
                    whole.extend(part, 0)
                    part = Hashes()
            whole.extend(part, 0)
            same, _ = whole.duplicates(limit)
        for place, line, first in same:
            found.add_one(near[place], line, first)
        found.count = same.count
        return found

    def _records_at(self, rows: array[int]) -> Iterator[tuple[int, bytes]]:
        """The records of these rows, which are counted from 0 and in order, with their lines."""
        position = 0
        for first_row, row_count, first_line, start, end in self.ranges or [(0, 1 << 62, 0, 0, 0)]:
            if position == len(rows):
                return
            if rows[position] >= first_row + row_count:
                continue  # none of them is in this part of the file
            records = (
                read_lines.split_lines(read_lines.range_chunks(self.source.file, start, end)) if end else self.records()
            )
            for row, (line, raw) in enumerate(records, start=first_row):
                if row == rows[position]:
                    yield (line or row + 1) + first_line, raw
                    position += 1
                    if position == len(rows):
                        return

    def _over_window(self, reading: formats.Reading, totals: Totals) -> None:
        """Count the tokens of the rows that may be too long, or of a sample of them that is drawn by their bytes."""
        assert self.window is not None
        sample, average = totals.long_sample, totals.long_bytes / totals.long_rows
        is_exact = totals.long_rows <= len(sample) and totals.long_bytes <= check_window.WINDOW_BYTES
        if not is_exact:
            sample = sample[: max(50, int(check_window.WINDOW_BYTES / 4 / average))]
        chosen = array("q", sorted(row - 1 for _, row in sample))
        canonical_rows: list[tuple[int, dict[str, Any]]] = []
        checks = RowChecks(reading, mapping=self.mapping, sink=_Canonical(reading, canonical_rows), quick=False)
        counted = over = 0
        for row, (line, raw) in zip(chosen, self._records_at(chosen), strict=True):
            canonical_rows.clear()
            checks.block([line], [raw], raw)
            checks.take()
            for _, one in canonical_rows:  # none when the row has errors
                [tokens] = self.window.coder.lengths([one])
                counted += 1
                if tokens is not None and tokens > self.window.tokens:
                    over += 1
                    if is_exact:
                        place = line if self.has_lines else None
                        totals.warn("over-window", row=row + 1, line=place, tokens=tokens, window=self.window.tokens)
        if over and not is_exact:
            share = 100 * over / counted * totals.long_rows / totals.rows
            totals.warn(
                "over-window-estimate",
                share=f"{share:.1f}",
                window=self.window.tokens,
                counted=f"{counted:,}",
                long=f"{totals.long_rows:,}",
            )

    @staticmethod
    def _balance(totals: Totals, counts: dict[str, int]) -> None:
        """Say which weight makes up for labels that are out of balance, as KTO wants it."""
        good, bad = counts["true"], counts["false"]
        # Weight times number of the good over the same of the bad should lie between 1 and 4/3.
        if good and bad and good + bad >= 20 and not bad <= good <= bad * 4 / 3:
            name = "undesirable" if good > bad else "desirable"
            weight = good * 0.75 / bad if good > bad else bad / good
            totals.warn("label-balance", good=good, bad=bad, name=name, weight=f"{weight:.2f}")

    @staticmethod
    def _length_bias(totals: Totals) -> None:
        lengths = totals.lengths
        if lengths.pairs >= Lengths.LEAST_PAIRS and abs(lengths.effect) >= Lengths.LARGE:
            which = later("longer") if lengths.effect > 0 else later("shorter")
            many = lengths.longer if lengths.effect > 0 else lengths.pairs - lengths.longer
            share = round(100 * many / lengths.pairs)
            totals.warn("length-bias", which=which, share=share, effect=f"{lengths.effect:+.2f}")

    def _refusal(self, problem: Problem) -> Report:
        """The report of a file that has no rows to speak of."""
        return Report(
            file=self.name,
            container=self._shown_container if problem.rule in _KNOWS_CONTAINER else None,
            layout=None,
            type=None,
            conversational=False,
            rows=0,
            bad_rows=0,
            errors={problem.rule: 1},
            warnings={},
            problems=(problem,),
            bytes=self.size,
            plain_text=problem.parameters.get("found") == later("plain text") and not self.source.packed,
        )

    @property
    def _shown_container(self) -> str | None:
        return f"{self.container}.gz" if self.container and self.source.packed else self.container

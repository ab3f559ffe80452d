"""An open file as records: what its bytes hold, how its rows are read, and all of its records or some of them again."""

from __future__ import annotations

import itertools
import os
from array import array
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from engine.check.columns import Columns
from engine.check.piece import Range
from engine.check.report import DatasetError
from engine.read import detection, documents, faults, formats, literals, source, tables, texts, turns
from engine.read import lines as read_lines
from engine.words import Problem, later

# The layout is decided on the first rows, up to whichever of these comes first.
SAMPLE_ROWS = 1_000
SAMPLE_BYTES = 8 << 20


@contextmanager
def opened(path: Path, mapping: dict[str, str] | None = None) -> Iterator[OpenFile]:
    """Open the file at `path` and find out how it is read. Raises DatasetError when it is no data."""
    with path.open("rb") as file:
        found = OpenFile(file, mapping)
        try:
            found.begin()
            yield found
        except source.NotRows as refused:
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


class OpenFile:
    """An open file. begin() finds its container, and then how its rows are read."""

    def __init__(self, file: BinaryIO, mapping: dict[str, str] | None):
        self.mapping = checked_mapping(mapping)
        self.size = os.fstat(file.fileno()).st_size
        self.source = source.Source(file, self.size, None)
        self.container: str | None = None
        self.separator = ","
        self.has_bom = self.has_lone_returns = False
        self.reading: formats.Reading | None = None  # of most of its first rows; None when these fit no layout
        self.example: dict[str, Any] | None = None  # a row as most are
        self.one_line: int | None = None  # the line that the records of a JSON array share, and that so says nothing

    def begin(self) -> None:
        """Find the container, then how its rows are read. Raises source.NotRows."""
        self.container = self._container()
        if self.container == "json":
            first = [line for line, _ in itertools.islice(self.records(), 2)]
            self.one_line = first[0] if len(first) == 2 and first[0] == first[1] else None
        self.reading = self._detect()

    @property
    def has_lines(self) -> bool:
        return self.container != "parquet" and self.one_line is None

    @property
    def is_plain(self) -> bool:
        """Whether its records are the lines of its bytes as they are, so that any range of these can be read alone."""
        return self.container == "jsonl" and not self.source.packed and not self.has_lone_returns

    @property
    def shown_container(self) -> str | None:
        return f"{self.container}.gz" if self.container and self.source.packed else self.container

    def records(self) -> Generator[tuple[int | None, bytes]]:
        """Yield all records, each with the line it starts on; a row of Parquet, or of an array on one line, has none."""
        if self.container == "parquet":
            return tables.parquet_records(self.source.file, self.size, self.source.progress)
        chunks = source.without_bom(self.source.chunks())
        if self.has_lone_returns:
            chunks = source.with_newlines(chunks)
        if self.container == "csv":
            return tables.csv_records(chunks, self.separator)
        if self.container == "json-seq":
            return read_lines.split_sequence(chunks, source.SEPARATOR)
        if self.container == "json":
            found = documents.split_documents(chunks)
            return ((None, raw) for _, raw in found) if self.one_line is not None else found
        return read_lines.split_lines(chunks)

    def records_at(self, rows: array[int], ranges: list[Range]) -> Iterator[tuple[int, bytes]]:
        """Yield the records of these rows, which are counted from 0 and in order, with their lines. With `ranges`, those
        of the file's pieces, only pieces that have one of them are read."""
        position = 0
        for first_row, row_count, first_line, start, end in ranges or [Range(0, 1 << 62, 0, 0, 0)]:
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

    def sample(self) -> Iterator[tuple[int | None, bytes, object]]:
        """Yield the records that decide the layout, each with its line and its value, None where it does not parse."""
        rows = seen_bytes = 0
        for line, raw in self.records():
            row = faults.decoded(raw)
            yield line, raw, row
            rows += isinstance(row, dict) or turns.is_message_list(row)
            seen_bytes += len(raw)
            if rows == SAMPLE_ROWS or seen_bytes > SAMPLE_BYTES:
                return

    def _container(self) -> str:
        head = b""
        for chunk in self.source.chunks():
            head += chunk
            # Leading blank lines may be long; what the file is shows in its first bytes that are not.
            if len(head.lstrip()) >= 65536 or len(head) >= SAMPLE_BYTES:
                break
        if self.source.packed and head.startswith(b"\x1f\x8b"):
            raise source.NotRows(
                "not-data", found=later("a gzip archive inside another"), remedy=source.remedy_for("archive")
            )
        if head[257:262] == b"ustar":
            raise source.NotRows("not-data", found=later("a tar archive"), remedy=source.remedy_for("archive"))
        self.has_bom = head.startswith(source.BOM)
        self.has_lone_returns = not head.startswith(b"PAR1") and source.has_lone_returns(head)
        if self.has_lone_returns:
            head = head.replace(b"\r", b"\n")
        container = source.container_of(head, len(head) < 65536, tables.separator_of)
        if container == "parquet" and self.source.packed:
            raise source.NotRows(
                "not-data", found=later("a Parquet file inside a gzip archive"), remedy=source.remedy_for("archive")
            )
        if container == "csv":
            self.separator = tables.separator_of(head, len(head) < 65536) or ","
        return container

    def _detect(self) -> formats.Reading | None:
        met: dict[str, None] = {}
        shapes: Counter[tuple[str, ...]] = Counter()
        examples: dict[tuple[str, ...], dict[str, Any]] = {}
        cells, columns = literals.Cells(), Columns()

        def rows() -> Iterator[dict[str, Any] | list[Any]]:
            for _, _, row in self.sample():
                columns.add(row, self.mapping)
                if isinstance(row, dict):
                    met.update(dict.fromkeys(row))
                    shape = tuple(row)
                    shapes[shape] += 1
                    if len(examples) < 20:
                        examples.setdefault(shape, row)
                    cells.add(row)
                    yield formats.renamed(row, self.mapping) if self.mapping else row
                elif isinstance(row, list) and turns.is_message_list(row):
                    yield row

        reading = detection.detect(rows(), self.mapping.values())
        if shapes:
            self.example = examples.get(shapes.most_common(1)[0][0])
        for column in self.mapping:
            if column not in met:
                found = texts.name_list(met, 20) or later("no fields")
                raise source.NotRows("mapping-column", column=texts.short(column), found=found)
        if self.container != "csv" and (problem := columns.problem()):
            raise problem
        if unpacked := cells.columns(self.mapping):
            reading = self._unpacked(unpacked)
        if reading is None:
            return None
        for column, target in self.mapping.items():
            if target != formats.IGNORE and target not in {*reading.layout.fields.values(), *reading.layout.required}:
                wanted = texts.name_list(reading.layout.fields.values(), 20)
                raise source.NotRows("mapping-unused", column=texts.short(column), target=target, known=wanted)
        reading = msgspec.structs.replace(reading, drop_nulls=self.container == "parquet")
        return formats.mapped(reading, self.mapping) if self.mapping else reading

    def _unpacked(self, columns: tuple[str, ...]) -> formats.Reading | None:
        """How the rows are read once the lists are read that these columns hold as text. A text that is a list of
        messages is no text to learn by heart, but a conversation."""
        rows = (literals.unpacked(row, columns) for _, _, row in self.sample() if isinstance(row, dict))
        if self.mapping:
            rows = (formats.renamed(row, self.mapping) for row in rows)
        reading = detection.detect(rows, self.mapping.values())
        if reading is not None and reading.layout.name == "text":
            column = next((c for c in columns if self.mapping.get(c, c) == "text"), None)
            if column is None:
                return reading
            self.mapping = {**self.mapping, column: "messages"}
            return self._unpacked(columns)
        used = set(self._own_names(reading)) if reading else set()
        kept = tuple(column for column in columns if column in used)
        return msgspec.structs.replace(reading, unpacked=kept) if reading else None

    def _own_names(self, reading: formats.Reading) -> list[str]:
        """The columns of a reading by the names they have in the file."""
        return list(formats.mapped(reading, self.mapping).layout.fields.values())


def batches(records: Iterator[tuple[int | None, bytes]], size: int) -> Iterator[tuple[list[int | None], list[bytes]]]:
    """Group single records into blocks of about `size` bytes."""
    places: list[int | None] = []
    lines: list[bytes] = []
    held = 0
    for place, raw in records:
        places.append(place)
        lines.append(raw)
        held += len(raw)
        if held >= size:
            yield places, lines
            places, lines, held = [], [], 0
    if lines:
        yield places, lines

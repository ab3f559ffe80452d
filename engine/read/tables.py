"""Rows of tables, CSV and Parquet, as the JSON records that the check reads: everything after them is written once."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

import msgspec

from engine.read import lines
from engine.read.faults import encoding_fault
from engine.read.formats import layout_of
from engine.read.lines import Unreadable
from engine.read.source import BOM, NotRows, OnProgress
from engine.read.texts import short
from engine.words import later

BATCH_ROWS = 256
COLUMNS_LIMIT = 2_000
_SEPARATORS = (",", "\t", ";")
# What Excel is told with the first line of a table: which separator it has.
_SEP_LINE = re.compile(r'\ufeff?"?sep=([^\w\s"]|\t)"?\r?', re.IGNORECASE)
_BROKEN = re.compile(r"[\udc80-\udcff]")  # a byte that is not UTF-8, as surrogateescape keeps it


def separator_of(head: bytes, is_whole: bool) -> str | None:
    """The separator when `head` is the start of a table with a header, else None.

    A header that names a known layout is enough: cells may hold line breaks and separators. Otherwise it must be made
    of short words, and most records must have as many cells as it has.
    """
    text = head.removeprefix(BOM).decode("utf-8", "replace").lstrip("\r\n")
    first, _, rest = text.partition("\n")
    told = _SEP_LINE.fullmatch(first)
    text = rest if told else text
    for separator in dict.fromkeys([told[1], *_SEPARATORS] if told else _SEPARATORS):
        records = []
        try:
            for record in csv.reader(text.split("\n"), delimiter=separator):
                if record:
                    records.append(record)
                if len(records) > 50:
                    break
        except csv.Error:
            pass
        if not is_whole and 1 < len(records) <= 50:
            records.pop()  # it may be cut
        if len(records) < 2:
            continue
        header = [cell.strip() for cell in records[0]]
        if layout_of(header) or (told and separator == told[1] and len(header) > 1):
            return separator
        words = all(cell == cell.lstrip() and len(cell) <= 40 and re.fullmatch(r"[\w .:/#-]*", cell)
                    for cell in map(str.rstrip, records[0]))  # fmt: skip
        same = sum(len(record) == len(header) for record in records[1:])
        if len(header) > 1 and any(header) and words and same * 3 >= (len(records) - 1) * 2:
            return separator
    return None


def csv_records(chunks: Iterator[bytes], separator: str) -> Generator[tuple[int, bytes]]:
    """Yield (line it starts on, JSON) of each record of a CSV file; an empty cell is a missing value, null.

    A first line that only tells the separator is passed over. Raises NotRows when the header cannot name columns.
    """
    csv.field_size_limit(lines.MAX_ROW_BYTES)
    encode = msgspec.json.Encoder().encode
    reader = csv.reader(_text_lines(chunks), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells, fault = None, short(str(error), 80)
        else:
            fault = ""
        if cells is not None and (not cells or (len(cells) == 1 and not cells[0].strip())):
            continue  # a blank line
        if header is None:
            if cells is None or not _SEP_LINE.fullmatch(separator.join(cells)):
                header = _header(cells)
            continue
        if cells is None:
            yield start, Unreadable("csv-broken", reason=fault)
        elif any(_BROKEN.search(cell) for cell in cells):
            broken = next(cell for cell in cells if _BROKEN.search(cell)).encode("utf-8", "surrogateescape")
            yield start, Unreadable("encoding-row", **encoding_fault(broken))
        elif len(cells) != len(header):
            yield start, Unreadable("csv-cells", found=len(cells), wanted=len(header))
        else:
            yield start, encode({name: cell or None for name, cell in zip(header, cells, strict=True)})


def _header(cells: list[str] | None) -> list[str]:
    """The names of the columns; one without a name, such as the row numbers pandas writes, is called by its place."""
    if cells is None or any(_BROKEN.search(cell) for cell in cells):
        raise NotRows("csv-header", reason=later("it cannot be read"))
    if len(cells) > COLUMNS_LIMIT:
        raise NotRows("csv-header", reason=later("it has more than {limit} columns", limit=COLUMNS_LIMIT))
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    for name in names:
        if names.count(name) > 1:
            raise NotRows("csv-header", reason=later("two columns are called {name}", name=short(name)))
    return names


def _text_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines with their ends, split on b"\\n" alone; bytes that are not UTF-8 are kept as lone surrogates."""
    held: list[bytes] = []
    for chunk in chunks:
        *pieces, last = chunk.split(b"\n")
        for piece in pieces:
            yield (b"".join([*held, piece]) + b"\n").decode("utf-8", "surrogateescape")
            held = []
        if last:
            held.append(last)
    if held:
        yield b"".join(held).decode("utf-8", "surrogateescape")


def parquet_records(file: BinaryIO, size: int, progress: OnProgress | None) -> Generator[tuple[None, bytes]]:
    """Yield (None, JSON) of each row of a Parquet file, a few hundred rows in memory at a time.

    Raises NotRows when the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    encode = msgspec.json.Encoder(enc_hook=str).encode
    try:
        file.seek(0)
        table = pq.ParquetFile(pa.PythonFile(file, mode="r"))
        names = table.schema_arrow.names
        if len(names) > COLUMNS_LIMIT or len(set(names)) < len(names):
            raise NotRows("bad-parquet", reason=later("too many columns, or two of one name"))
        has_bytes = any("binary" in str(kind) for kind in table.schema_arrow.types)
        done, total = 0, max(1, table.metadata.num_rows)
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                raw = encode(_with_texts(row) if has_bytes else row)
                yield (
                    None,
                    raw
                    if len(raw) <= lines.MAX_ROW_BYTES
                    else Unreadable("too-long", limit_mib=lines.MAX_ROW_BYTES >> 20),
                )
            done += batch.num_rows
            if progress:
                progress(int(size * min(1.0, done / total)), size)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise NotRows("bad-parquet", reason=short(str(error), 100) or type(error).__name__) from None


def _with_texts(value: Any) -> Any:
    """A value with text for bytes that are one: some writers do not mark which columns are text. Other bytes, as of a
    picture, stay what no rule takes for text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": value}
    if isinstance(value, dict):
        return {name: _with_texts(part) for name, part in value.items()}
    return [_with_texts(part) for part in value] if isinstance(value, list | tuple) else value

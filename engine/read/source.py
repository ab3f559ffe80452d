"""What the bytes of a file are, told from the bytes alone, and the file as a stream of them, unpacked where it is packed.

What a file is called plays no part. It is read as a stream, so memory does not grow with it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO

from engine.read.documents import WRAPPED
from engine.read.lines import CHUNK_BYTES, parses
from engine.words import Problem, Text, later

# Text compresses 3 to 30 times; exact repetitions reach a few hundred at most.
GZIP_TIMES_LIMIT = 400
GZIP_FREE_BYTES = 64 << 20

BOM = b"\xef\xbb\xbf"
SEPARATOR = b"\x1e"  # stands before each record of a JSON text sequence (RFC 7464)

OnProgress = Callable[[int, int], None]  # bytes read, bytes in all

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a sound, video or WebP file"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a spreadsheet (or another older office document)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
)
# What a zip archive is, by the names of its members or by its first one.
_OFFICE: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"PK\x03\x04.{26}xl/", re.DOTALL), "a spreadsheet (Excel)"),
    (re.compile(rb"mimetypeapplication/vnd\.oasis\.opendocument\.spreadsheet"), "a spreadsheet (OpenDocument)"),
    (re.compile(rb"PK\x03\x04.{26}Index/[\w/-]+\.iwa", re.DOTALL), "a spreadsheet (Numbers)"),
    (re.compile(rb"PK\x03\x04.{26}word/|mimetypeapplication/vnd\.oasis\.opendocument\.text", re.DOTALL),
     "a text document (Word or OpenDocument)"),
    (re.compile(rb"PK\x03\x04.{26}\[Content_Types\]\.xml", re.DOTALL), "a spreadsheet or another office document"),
)  # fmt: skip


class NotRows(Exception):
    """The file as a whole cannot be read as rows."""

    def __init__(self, rule: str, **parameters: str | int | Text):
        super().__init__(rule)
        self.problem = Problem(rule=rule, parameters=dict(parameters))


def container_of(head: bytes, is_whole: bool, is_table: Callable[[bytes, bool], object]) -> str:
    """Return what the first bytes of unpacked data hold.

    "jsonl", "json" (an array, or documents over several lines), "json-seq", "csv" or "parquet". Raises NotRows, which
    names what else the bytes are. `is_whole`: the head is the whole file. `is_table` tells a table by the same two
    arguments.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            if what == "a zip archive":
                what = next((name for pattern, name in _OFFICE if pattern.search(head)), what)
            raise NotRows("not-data", found=later(what), remedy=remedy_for(what))
    wide = wide_encoding(head)
    if wide:
        raise NotRows("encoding", found=wide)
    text = head.removeprefix(BOM).lstrip()
    if text[:1] == SEPARATOR:
        return "json-seq"
    if not text:
        if is_whole:
            raise NotRows("empty-file")
        return "jsonl"
    start = text[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        remedy = later("a web page was saved instead of the file; download the raw file")
        raise NotRows("not-data", found=later("a web page (HTML)"), remedy=remedy)
    if start.startswith(b"<?xml"):
        raise NotRows("not-data", found=later("an XML file"), remedy=remedy_for(""))
    if start.startswith(b"version https://git-lfs"):
        remedy = later('fetch the real file with "git lfs pull", or download it from the site')
        raise NotRows("not-data", found=later("a Git LFS pointer"), remedy=remedy)
    lines = [line.rstrip() for line in text[:65536].split(b"\n")]
    if len(text) > 65536 or not is_whole:
        # The last line may be cut; a single one, too long to be seen whole, is judged by its first byte.
        lines = lines[:-1] or lines
    lines = [line for line in lines if line]
    if b"\0" in head[:65536] and not any(map(parses, lines[:50])):  # among records it is an error of one of them
        raise NotRows("not-data", found=later("a binary file"), remedy=remedy_for(""))
    if text[:1] in (b"{", b"["):
        return _rows_or_document(lines)
    lines = [line.lstrip() for line in lines]
    if any(line[:1] in (b"{", b"[") and parses(line) for line in lines[:50]):
        return "jsonl"
    # A name in quotes, as the header of one column may be, parses as well.
    quoted = lines[0][:1] == b'"'
    if parses(lines[0]) and not (quoted and is_table(head, is_whole)):
        return "jsonl"
    if is_table(head, is_whole):
        return "csv"
    if sum(line[:1] == b"{" for line in lines[:50]) * 2 > len(lines[:50]):
        return "jsonl"
    try:
        head[: head.rfind(b"\n") + 1 or len(head)].decode()
    except UnicodeDecodeError as error:
        if is_whole or error.start < len(head) - 4:
            raise NotRows("encoding", found=guess_encoding(head[error.start - 40 : error.start + 40])) from None
    remedy = later("to train on it as text, write {example} on one line for each passage", example='{"text": "..."}')
    raise NotRows("not-data", found=later("plain text"), remedy=remedy)


def _rows_or_document(lines: list[bytes]) -> str:
    """Tell JSON Lines from an array or a document over several lines, both of which begin with a bracket.

    `lines` keep their indentation: the parts of an indented document have one, records of JSON Lines have none.
    """
    first = lines[0]
    if WRAPPED.match(b"\n".join(lines)) and (len(lines) == 1 or not parses(first)):
        return "json"
    if first[-1:] == b"," and parses(first[:-1]):  # a comma too many after a whole record
        return "jsonl"
    if len(lines) == 1:
        return "json" if first[:1] == b"[" else "jsonl"
    if parses(first):
        return "jsonl"
    # Either the first line of a document, or a broken first line among others that are records by themselves.
    goes_on = first in (b"{", b"[") or first[-1:] in (b",", b"[", b"{", b":")
    has_records = any(line[:1] == b"{" and parses(line) for line in lines[1:50])
    if first[:1] == b"[":
        return "jsonl" if has_records and not goes_on else "json"
    return "json" if goes_on and not has_records else "jsonl"


def remedy_for(what: str) -> Text:
    if "spreadsheet" in what:
        return later("save it as CSV (UTF-8) and upload that")
    if "text document" in what:
        return later("save it as plain text (UTF-8) and upload that")
    if "archive" in what:
        return later("unpack it and upload the data file inside")
    if "Arrow" in what:
        return later('convert it first, for example with pandas: read_feather("...").to_parquet("...")')
    return later("choose a file with one JSON object on each line")


def wide_encoding(head: bytes) -> str | None:
    """Name UTF-16 or UTF-32, with or without a byte order mark."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    start = head[:4096].rstrip(b"\0")  # what was not written to its end has a tail of zeros
    if len(start) >= 4:
        even, odd = start[::2].count(0), start[1::2].count(0)
        half = len(start) // 2
        if max(even, odd) > half * 0.4 and min(even, odd) < half * 0.05:
            return "UTF-16"
        # A character of four bytes has two that are zero, or three, always in the same places.
        zeros = sorted(start[place::4].count(0) for place in range(4))
        if zeros[2] > len(start) // 4 * 0.9 and zeros[0] < len(start) // 4 * 0.05:
            return "UTF-32"
    return None


def guess_encoding(piece: bytes) -> str:
    """Name the likely 8-bit or Chinese encoding of a few bytes around the first that is not UTF-8."""
    for encoding, shown in (("gb18030", "GB18030 (Chinese)"), ("shift_jis", "Shift-JIS")):
        try:
            text = piece.decode(encoding)
        except UnicodeDecodeError:
            continue
        if sum("一" <= character <= "鿿" for character in text) * 4 > len(text):
            return shown
    return "Windows-1252" if any(0x80 <= byte <= 0x9F for byte in piece) else "Latin-1"


class Source:
    """The bytes of a file in chunks, unpacked when gzip; reports progress."""

    def __init__(self, file: BinaryIO, size: int, progress: OnProgress | None):
        self.file, self.size, self.progress = file, size, progress
        file.seek(0)
        self.packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)

    def chunks(self) -> Iterator[bytes]:
        """Yield unpacked pieces. Raises NotRows for a damaged or bomb-like gzip file."""
        self.file.seek(0)
        done = unpacked = 0
        unpacker: Any = None
        while chunk := self.file.read(CHUNK_BYTES):
            done += len(chunk)
            if self.progress:
                self.progress(done, max(self.size, done))
            if not self.packed:
                yield chunk
                continue
            while chunk:
                # A gzip file may hold several members one after the other, each with an unpacker of its own.
                unpacker = unpacker or zlib.decompressobj(zlib.MAX_WBITS | 16)
                try:
                    piece = unpacker.decompress(chunk, CHUNK_BYTES)
                except zlib.error:
                    raise NotRows("bad-gzip") from None
                chunk = unpacker.unconsumed_tail
                if unpacker.eof:
                    chunk = unpacker.unused_data.lstrip(b"\0")
                    unpacker = None
                unpacked += len(piece)
                if unpacked > GZIP_FREE_BYTES and unpacked > GZIP_TIMES_LIMIT * done:
                    raise NotRows("gzip-bomb", times=GZIP_TIMES_LIMIT)
                if piece:
                    yield piece
        if unpacker is not None:
            piece = unpacker.flush()
            if piece:
                yield piece
            if not unpacker.eof:
                raise NotRows("bad-gzip")


def has_lone_returns(head: bytes) -> bool:
    """Whether the lines of a file end with CR alone, as on old Macs, by its first bytes."""
    head = head.rstrip()
    return b"\r" in head and b"\n" not in head


def with_newlines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks of a file whose lines end with CR alone, with LF in its place."""
    return (chunk.replace(b"\r", b"\n") for chunk in chunks)


def without_bom(chunks: Iterator[bytes]) -> Generator[bytes]:
    """Pass chunks on without a UTF-8 byte order mark at the start."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(BOM):
            yield head.removeprefix(BOM)
            yield from chunks
            return
    yield head

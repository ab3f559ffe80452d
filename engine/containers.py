"""What the bytes of a file are, and its records one after the other with the line each starts on.

What a file is called plays no part: its bytes decide. A file is read as a stream, so memory does not grow with it.
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO

import msgspec

from engine.texts import short
from engine.words import Problem, Text, later

CHUNK_BYTES = 1 << 18
MAX_ROW_BYTES = 64 << 20
# Text compresses 3 to 30 times; exact repetitions reach a few hundred at most.
GZIP_TIMES_LIMIT = 400
GZIP_FREE_BYTES = 64 << 20

Progress = Callable[[int, int], None]  # bytes read, bytes in all


# --- what the bytes are ------------------------------------------------------------------------------------------

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a sound, video or WebP file"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"PK\x05\x06", "an empty zip archive"),
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


class Refused(Exception):
    """The file as a whole cannot be read as rows."""

    def __init__(self, rule: str, **parameters: str | int | Text):
        super().__init__(rule)
        self.problem = Problem(rule=rule, parameters=dict(parameters))


class Unreadable(bytes):
    """Stands for a record that could not be read, and says why; as bytes it parses as nothing."""

    rule: str
    parameters: dict[str, str | int | Text]

    def __new__(cls, rule: str, **parameters: str | int | Text) -> Unreadable:
        made = super().__new__(cls, b"\0unreadable")
        made.rule, made.parameters = rule, parameters
        return made


def container_of(head: bytes, is_whole: bool, is_table: Callable[[bytes, bool], object]) -> str:
    """Return what the first bytes of unpacked data hold.

    "jsonl", "json" (an array, or documents over several lines), "csv" or "parquet". Raises Refused, which names what
    else the bytes are. `is_whole`: the head is the whole file. `is_table` tells a table by the same two arguments.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise Refused("not-data", found=later(what), remedy=remedy_for(what))
    wide = _wide_encoding(head)
    if wide:
        raise Refused("encoding", found=wide)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        if is_whole:
            raise Refused("empty-file")
        return "jsonl"
    start = text[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        remedy = later("a web page was saved instead of the file; download the raw file")
        raise Refused("not-data", found=later("a web page (HTML)"), remedy=remedy)
    if start.startswith(b"<?xml"):
        raise Refused("not-data", found=later("an XML file"), remedy=remedy_for(""))
    if start.startswith(b"version https://git-lfs"):
        remedy = later('fetch the real file with "git lfs pull", or download it from the site')
        raise Refused("not-data", found=later("a Git LFS pointer"), remedy=remedy)
    lines = [line.rstrip() for line in text[:65536].split(b"\n")]
    if len(text) > 65536 or not is_whole:
        # The last line may be cut; a single one, too long to be seen whole, is judged by its first byte.
        lines = lines[:-1] or lines
    lines = [line for line in lines if line]
    if b"\0" in head[:65536] and not any(map(parses, lines[:50])):  # among records it is an error of one of them
        raise Refused("not-data", found=later("a binary file"), remedy=remedy_for(""))
    if text[:1] in (b"{", b"["):
        return _rows_or_document(lines)
    lines = [line.lstrip() for line in lines]
    if any(line[:1] in (b"{", b"[") and parses(line) for line in lines[:50]) or parses(lines[0]):
        return "jsonl"
    if is_table(head, is_whole):
        return "csv"
    if sum(line[:1] == b"{" for line in lines[:50]) * 2 > len(lines[:50]):
        return "jsonl"
    try:
        head[: head.rfind(b"\n") + 1 or len(head)].decode()
    except UnicodeDecodeError as error:
        if is_whole or error.start < len(head) - 4:
            raise Refused("encoding", found=_guess_encoding(head[error.start - 40 : error.start + 40])) from None
    remedy = later("to train on it as text, write {example} on one line for each passage", example='{"text": "..."}')
    raise Refused("not-data", found=later("plain text"), remedy=remedy)


def _rows_or_document(lines: list[bytes]) -> str:
    """Tell JSON Lines from an array or a document over several lines, both of which begin with a bracket.

    `lines` keep their indentation: the parts of an indented document have one, records of JSON Lines have none.
    """
    first = lines[0]
    if _WRAPPED.match(b"\n".join(lines)) and (len(lines) == 1 or not parses(first)):
        return "json"
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


def parses(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def remedy_for(what: str) -> Text:
    if "archive" in what:
        return later("unpack it and upload the data file inside")
    if "Arrow" in what:
        return later('convert it first, for example with pandas: read_feather("...").to_parquet("...")')
    return later("choose a file with one JSON object on each line")


def _wide_encoding(head: bytes) -> str | None:
    """Name UTF-16 or UTF-32, with or without a byte order mark."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    start = head[:4096]
    if len(start) >= 4:
        even, odd = start[::2].count(0), start[1::2].count(0)
        half = len(start) // 2
        if max(even, odd) > half * 0.4 and min(even, odd) < half * 0.05:
            return "UTF-16"
        if start.count(0) > len(start) * 0.7 and any(byte in start for byte in b"{["):
            return "UTF-32"
    return None


def _guess_encoding(piece: bytes) -> str:
    """Name the likely 8-bit or Chinese encoding of a few bytes around the first that is not UTF-8."""
    for encoding, shown in (("gb18030", "GB18030 (Chinese)"), ("shift_jis", "Shift-JIS")):
        try:
            text = piece.decode(encoding)
        except UnicodeDecodeError:
            continue
        if sum("一" <= character <= "鿿" for character in text) * 4 > len(text):
            return shown
    return "Windows-1252" if any(0x80 <= byte <= 0x9F for byte in piece) else "Latin-1"


# --- records and their lines -------------------------------------------------------------------------------------


class Source:
    """The bytes of a file in chunks, unpacked when gzip; reports progress."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress | None):
        self.file, self.size, self.progress = file, size, progress
        file.seek(0)
        self.packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)

    def chunks(self) -> Iterator[bytes]:
        """Yield unpacked pieces. Raises Refused for a damaged or bomb-like gzip file."""
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
                    raise Refused("bad-gzip") from None
                chunk = unpacker.unconsumed_tail
                if unpacker.eof:
                    chunk = unpacker.unused_data.lstrip(b"\0")
                    unpacker = None
                unpacked += len(piece)
                if unpacked > GZIP_FREE_BYTES and unpacked > GZIP_TIMES_LIMIT * done:
                    raise Refused("gzip-bomb", times=GZIP_TIMES_LIMIT)
                if piece:
                    yield piece
        if unpacker is not None:
            piece = unpacker.flush()
            if piece:
                yield piece
            if not unpacker.eof:
                raise Refused("bad-gzip")


# A record that was longer than MAX_ROW_BYTES is handed on as this.
TOO_LONG = b"\0too long"


def line_blocks(chunks: Iterator[bytes]) -> Generator[tuple[int, list[bytes], bytes]]:
    """Yield (number of the first line, lines, the bytes they stand in) of whole lines; split on b"\\n" alone."""
    number = 1
    held: list[bytes] = []
    held_bytes = 0
    for chunk in chunks:
        end = chunk.rfind(b"\n")
        if end < 0:
            if held_bytes <= MAX_ROW_BYTES:
                held.append(chunk)
            held_bytes += len(chunk)
            continue
        block = chunk[:end]
        if held:
            start = chunk.index(b"\n")
            if held_bytes + start > MAX_ROW_BYTES:
                yield number, [TOO_LONG], b""
                number += 1
                block = chunk[start + 1 : end] if start < end else None
            else:
                block = b"".join([*held, block])
        if block is not None:
            lines = block.split(b"\n")
            yield number, lines, block
            number += len(lines)
        held, held_bytes = [chunk[end + 1 :]], len(chunk) - end - 1
    if held_bytes > MAX_ROW_BYTES:
        yield number, [TOO_LONG], b""
    elif held_bytes:
        block = b"".join(held)
        yield number, [block], block


def split_lines(chunks: Iterator[bytes]) -> Generator[tuple[int, bytes]]:
    """Yield (line number, line) of all lines that are not blank."""
    for first, lines, _ in line_blocks(chunks):
        for number, line in enumerate(lines, start=first):
            if line and not line.isspace():
                yield number, line


def line_pieces(file: BinaryIO, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut the bytes from `start` to `end` into ranges of about `size` bytes that end with a line."""
    while start < end:
        stop = min(start + size, end)
        file.seek(stop)
        while stop < end:
            found = file.readline(1 << 16)
            stop += len(found)
            if not found or found.endswith(b"\n"):
                break
        yield start, stop
        start = stop


def range_chunks(file: BinaryIO, start: int, end: int, size: int | None = None) -> Iterator[bytes]:
    """The bytes from `start` to `end` in chunks."""
    file.seek(start)
    while start < end and (chunk := file.read(min(size or CHUNK_BYTES, end - start))):
        start += len(chunk)
        yield chunk


_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\\n]')

# No loop here can match one text in two ways, so a failure costs one pass over it. (Possessive loops would say the same;
# Python 3.11 before .4 gets those around groups wrong, gh-101955.)
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MEMBER = rb"%b\s*:\s*(?:%b|[-+.0-9eE]+|true|false|null)\s*" % (_STRING, _STRING)
# One document whose rows stand in a list of it, beside what is said about all of them; names that no layout gives a row.
_WRAPPED = re.compile(
    rb"\s*\{\s*(?:%b,\s*)*"
    rb'"(?:data|dataset|examples|instances|items|records|rows|samples|train)"\s*:\s*(?=\[\s*(?:[\]{]|\Z))' % _MEMBER,
    re.DOTALL,
)
_WRAPPED_END = re.compile(rb"\s*(?:,\s*%b)*\}\s*" % _MEMBER, re.DOTALL)
_WRAPPER_BYTES = 65536  # as much as the container is judged by


def _without_wrapper(chunks: Iterator[bytes]) -> tuple[Iterator[bytes], bool]:
    """Return the chunks from the list on that holds the rows of a single document, its lines kept, and whether it is
    such a document. Any other is returned as it is."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _WRAPPER_BYTES:
            break
    found = _WRAPPED.match(head[:_WRAPPER_BYTES])
    if found:
        head = b"\n" * head.count(b"\n", 0, found.end()) + head[found.end() :]
    return itertools.chain([head], chunks), found is not None


def split_documents(chunks: Iterator[bytes]) -> Generator[tuple[int, bytes]]:
    """Yield (first line, bytes) of each element of a JSON array, or of each of several documents. Of a single document
    that holds the rows in a list, as {"data": [...]}, the elements of that list.

    Tracks brackets and strings only, so that a broken element costs itself and, as a line break cannot be part of a
    JSON string, at most its neighbours. Text outside of elements is handed on as a record, which then fails to parse.
    """
    buffer = b""
    position = 0  # next byte to look at
    start = 0  # where the current record starts
    line = 1  # line of `start`
    depth = 0  # brackets open inside the record
    inside = False  # within a string
    in_array: bool | None = None  # None before the first bracket
    ended = overlong = False
    chunks, wrapped = _without_wrapper(chunks)

    def record(end: int) -> tuple[int, bytes] | None:
        """The record from `start` to `end` without the white space around it; the next one starts at `position`."""
        nonlocal line, start, overlong
        raw = buffer[start:end]
        body = raw.lstrip()
        first = line + raw.count(b"\n", 0, len(raw) - len(body))
        line += raw.count(b"\n")
        start = position
        body = body.rstrip()
        if overlong or len(body) > MAX_ROW_BYTES:
            overlong = False
            body = TOO_LONG
        return (first, body) if body else None

    for chunk in chunks:
        if position - start > MAX_ROW_BYTES:
            # Too long to keep: only its lines and that it was too long are remembered.
            line += buffer.count(b"\n", start, position)
            start, overlong = position, True
        buffer = buffer[start:] + chunk
        position -= start
        start = 0
        while True:
            match = (_INSIDE if inside else _OUTSIDE).search(buffer, position)
            if match is None:
                position = len(buffer)
                break
            at = match.start()
            byte = buffer[at]
            if byte == 0x5C:  # a backslash: the byte after it is part of the string
                if at + 1 >= len(buffer):
                    position = at
                    break
                position = at + 2
                continue
            position = at + 1
            found: tuple[int, bytes] | None = None
            if byte == 0x22:
                inside = not inside
            elif byte == 0x0A:
                # A string that does not end: the record is broken. One that has its line to itself ends with it.
                inside = False
                if in_array and b"\n" not in buffer[start:at].lstrip():
                    depth = 0
                    found = record(position)
            elif byte in b"[{":
                if in_array is None and byte == 0x5B and not ended:
                    in_array = True
                    found = record(at)
                else:
                    in_array = bool(in_array)
                    depth += 1
            elif byte == 0x2C:
                if depth == 0 and in_array:
                    # An element that is missing between two commas is a record that does not parse.
                    found = record(at) or (line, b",")
            elif depth:
                depth -= 1
                if depth == 0 and not in_array:
                    found = record(position)
            elif in_array and byte == 0x5D:
                found = record(at)
                in_array, ended = False, True
            if found:
                yield found
            if wrapped and ended:
                yield from _after_the_list(line, buffer[position:], chunks)
                return
    position = len(buffer)
    found = record(position)
    if found:
        yield found
    if in_array and (found is None or depth == 0):
        yield line, b"["  # the closing bracket is missing


def _after_the_list(line: int, rest: bytes, chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield what follows the list of rows as a record, which then fails to parse, unless it just ends the document."""
    for chunk in chunks:
        rest += chunk
        if len(rest) > _WRAPPER_BYTES:
            break
    if not _WRAPPED_END.fullmatch(rest):
        yield line + rest.count(b"\n", 0, len(rest) - len(rest.lstrip())), rest.strip()[:_WRAPPER_BYTES] or b"{"


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


BOM = b"\xef\xbb\xbf"


def decoded(raw: bytes) -> object:
    """The value of a record, or None when it does not parse."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


# --- why a line is not JSON --------------------------------------------------------------------------------------


class _NotANumber(Exception):
    pass


def _refuse_constant(word: str) -> None:
    raise _NotANumber(word)


def explain(raw: bytes) -> tuple[str, dict[str, str | int | Text]]:
    """Return the rule and parameters that say why msgspec refused `raw`."""
    if isinstance(raw, Unreadable):
        return raw.rule, raw.parameters
    if raw is TOO_LONG:
        return "too-long", {"limit_mib": MAX_ROW_BYTES >> 20}
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        if re.match(rb"\xed[\xa0-\xbf]", raw[error.start : error.start + 2]):
            return "lone-surrogate", {}
        return "encoding-row", encoding_fault(raw)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except _NotANumber as found:
        return "nan", {"word": str(found)}
    except json.JSONDecodeError as error:
        return "not-json", _syntax(text, error)
    except RecursionError:
        return "too-deep", {}
    except ValueError:  # more digits than int() takes
        return "number-range", {}
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "lone-surrogate", {}
    except (RecursionError, ValueError):
        return "too-deep", {}
    return "number-range", {}


def encoding_fault(raw: bytes) -> dict[str, str | int | Text]:
    """Say which byte of `raw`, which is not UTF-8, is the first that is wrong, and what the encoding may be."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        at = error.start
    else:
        at = 0
    encoding = _wide_encoding(raw) or _guess_encoding(raw[max(0, at - 40) : at + 40])
    guess = later(" (it looks like {encoding})", encoding=encoding)
    return {"byte": f"0x{raw[at]:02x}", "position": at + 1, "guess": guess}


_STRINGS_AND_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{}]', re.DOTALL)


def _missing(text: str) -> str | Text:
    """What would close all that is open at the end of a record that breaks off."""
    closing: list[str] = []
    string = ""
    for match in _STRINGS_AND_BRACKETS.finditer(text):
        found = match[0]
        if found in ("{", "["):
            closing.append("}" if found == "{" else "]")
        elif found in ("}", "]"):
            del closing[-1:]
        elif not match[1]:  # a string without its second quote goes to the end
            string = '"'
    missing = string + "".join(reversed(closing))
    return short(missing, 12) or later("more")


def _syntax(text: str, error: json.JSONDecodeError) -> dict[str, str | int | Text]:
    """Say what is wrong with the syntax and what to do, from what the standard parser stumbled on."""
    position = error.pos
    here = text[position : position + 1]
    place = position + 1
    before = text[:position].rstrip()
    delete = later("or delete the row")
    if text.startswith("\ufeff"):
        reason, remedy = later("a byte order mark stands in front of it"), later("remove the first character")
    elif not here or error.msg.startswith("Unterminated string"):
        reason = later(
            "it breaks off after character {end}, where {missing} is missing", end=len(text), missing=_missing(text)
        )
        remedy = later("complete the record {delete}", delete=delete)
    elif error.msg.startswith("Extra data"):
        reason = later("more text follows the end of the record at character {place}", place=place)
        remedy = later("write one record on each line")
    elif here in "}]" and before.endswith(","):
        reason, remedy = later("a comma too many at character {place}", place=len(before)), later("remove the comma")
    elif here == "'":
        reason = later("single quotes at character {place}", place=place)
        remedy = later("write it with a JSON library, which uses double quotes")
    elif re.match(r"(?:True|False|None)\b", text[position:]):
        reason = later("a Python word at character {place}", place=place)
        remedy = later("write true, false or null")
    elif error.msg.startswith("Invalid control character"):
        reason = later("a raw line break, tab or control character inside a text at character {place}", place=place)
        remedy = later("write it as \\n or \\t")
    elif error.msg.startswith("Invalid \\"):
        reason = later("a backslash that escapes nothing at character {place}", place=place)
        remedy = later("write \\\\ for a backslash")
    else:
        reason = later('unexpected "{found}" at character {place}', found=short(text[position:], 12), place=place)
        remedy = later("correct it {delete}", delete=delete)
    return {"reason": reason, "remedy": remedy}

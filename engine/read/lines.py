"""The lines of a file with their numbers, in blocks and in pieces that several processes can share."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import BinaryIO

import msgspec

from engine.words import Text

CHUNK_BYTES = 1 << 18
MAX_ROW_BYTES = 64 << 20


class Unreadable(bytes):
    """Stands for a record that could not be read, and says why; as bytes it parses as nothing."""

    rule: str
    parameters: dict[str, str | int | Text]

    def __new__(cls, rule: str, **parameters: str | int | Text) -> Unreadable:
        made = super().__new__(cls, b"\0unreadable")
        made.rule, made.parameters = rule, parameters
        return made


# What is raised for a record that does not parse.
UNPARSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parses(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except UNPARSED:
        return False
    return True


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


def split_sequence(chunks: Iterator[bytes], separator: bytes) -> Generator[tuple[int, bytes]]:
    """Yield (first line, bytes) of each record of a JSON text sequence, where `separator`, one byte, stands before each
    (RFC 7464): a record that breaks off costs itself alone."""
    line, held, held_bytes, left_out = 1, list[bytes](), 0, 0  # lines of what is too long to be held

    def record() -> tuple[int, bytes] | None:
        raw = b"".join(held)
        body = raw.lstrip()
        if not body:
            return None
        first = line + raw.count(b"\n", 0, len(raw) - len(body))
        return first, body.rstrip() if held_bytes <= MAX_ROW_BYTES else TOO_LONG

    for chunk in chunks:
        for place, piece in enumerate(chunk.split(separator)):
            if place:
                if found := record():
                    yield found
                line += left_out + sum(part.count(b"\n") for part in held)
                held.clear()
                held_bytes = left_out = 0
            if held_bytes > MAX_ROW_BYTES:
                left_out += piece.count(b"\n")
                continue
            held.append(piece)
            held_bytes += len(piece)
    if found := record():
        yield found


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

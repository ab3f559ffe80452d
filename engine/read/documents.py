"""The rows of a JSON array, of a document that wraps one, or of several documents, each with the line it begins on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Iterator

from engine.read import lines
from engine.read.lines import TOO_LONG

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\\n]')

# No loop here can match one text in two ways, so a failure costs one pass over it. (Possessive loops would say the same;
# Python 3.11 before .4 gets those around groups wrong, gh-101955.)
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MEMBER = rb"%b\s*:\s*(?:%b|[-+.0-9eE]+|true|false|null)\s*" % (_STRING, _STRING)
# One document whose rows stand in a list of it, beside what is said about all of them; names that no layout gives a row.
WRAPPED = re.compile(
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
    found = WRAPPED.match(head[:_WRAPPER_BYTES])
    if found:
        head = b"\n" * head.count(b"\n", 0, found.end()) + head[found.end() :]
    return itertools.chain([head], chunks), found is not None


class _Cutter:
    """Cuts records off the bytes read so far, of which it keeps what is not yet cut off, and counts their lines."""

    def __init__(self) -> None:
        self.buffer = b""
        self.start = 0  # where the current record starts
        self.line = 1  # line of `start`
        self.overlong = False

    def read(self, chunk: bytes, position: int) -> int:
        """Put a chunk behind what is kept and return where `position`, up to which all was looked at, lies now."""
        if position - self.start > lines.MAX_ROW_BYTES:
            # Too long to keep: only its lines and that it was too long are remembered.
            self.line += self.buffer.count(b"\n", self.start, position)
            self.start, self.overlong = position, True
        self.buffer = self.buffer[self.start :] + chunk
        position -= self.start
        self.start = 0
        return position

    def record(self, end: int, following: int) -> tuple[int, bytes] | None:
        """The record up to `end` without the white space around it, if there is more; the next starts at `following`."""
        raw = self.buffer[self.start : end]
        body = raw.lstrip()
        first = self.line + raw.count(b"\n", 0, len(raw) - len(body))
        self.line += raw.count(b"\n")
        self.start = following
        body = body.rstrip()
        if self.overlong or len(body) > lines.MAX_ROW_BYTES:
            self.overlong = False
            body = TOO_LONG
        return (first, body) if body else None


def split_documents(chunks: Iterator[bytes]) -> Generator[tuple[int, bytes]]:
    """Yield (first line, bytes) of each element of a JSON array, or of each of several documents. Of a single document
    that holds the rows in a list, as {"data": [...]}, the elements of that list.

    Tracks brackets and strings only, so that a broken element costs itself and, as a line break cannot be part of a
    JSON string, at most its neighbours. Text outside of elements is handed on as a record, which then fails to parse.
    """
    position = depth = 0  # the next byte to look at, and how many brackets are open inside the record
    look = _OUTSIDE  # or _INSIDE, within a string
    in_array: bool | None = None  # None before the first bracket
    chunks, wrapped = _without_wrapper(chunks)
    cutter = _Cutter()
    for chunk in chunks:
        position = cutter.read(chunk, position)
        buffer = cutter.buffer
        while match := look.search(buffer, position):
            at = match.start()
            byte = buffer[at]
            if byte == 0x5C:  # a backslash: the byte after it is part of the string
                if at + 1 == len(buffer):
                    position = at
                    break
                position = at + 2
                continue
            position = at + 1
            found: tuple[int, bytes] | None = None
            if byte == 0x22:
                look = _OUTSIDE if look is _INSIDE else _INSIDE
            elif byte == 0x0A:
                # A string that does not end: the record is broken. One that has its line to itself ends with it.
                look = _OUTSIDE
                if in_array and b"\n" not in buffer[cutter.start : at].lstrip():
                    depth, found = 0, cutter.record(position, position)
            elif byte in b"[{":
                if in_array is None and byte == 0x5B:
                    in_array, found = True, cutter.record(at, position)
                else:
                    in_array, depth = bool(in_array), depth + 1
            elif byte == 0x2C:
                if depth == 0 and in_array:
                    # An element that is missing between two commas is a record that does not parse.
                    found = cutter.record(at, position) or (cutter.line, b",")
            elif depth:
                depth -= 1
                if depth == 0 and not in_array:
                    found = cutter.record(position, position)
            elif in_array and byte == 0x5D:
                in_array, found = False, cutter.record(at, position)
            if found:
                yield found
            if wrapped and in_array is False:  # the list has ended
                yield from _after_the_list(cutter.line, buffer[position:], chunks)
                return
        else:
            position = len(buffer)
    if found := cutter.record(len(cutter.buffer), len(cutter.buffer)):
        yield found
    if in_array and (found is None or depth == 0):
        yield cutter.line, b"["  # the closing bracket is missing


def _after_the_list(line: int, rest: bytes, chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield what follows the list of rows as a record, which then fails to parse, unless it just ends the document."""
    for chunk in chunks:
        rest += chunk
        if len(rest) > _WRAPPER_BYTES:
            break
    if not _WRAPPED_END.fullmatch(rest):
        yield line + rest.count(b"\n", 0, len(rest) - len(rest.lstrip())), rest.strip()[:_WRAPPER_BYTES] or b"{"

"""Which rows of a block may hold something worth a second look, found for all of its bytes at once with numpy.

A byte of a block is compared with one character at about 20 GB/s, so a few dozen comparisons cost less than one look at
each row in Python. Whatever could make content_rules or the search for doubled keys say something must be a hit here;
a hit more only costs time.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy

_QUOTE, _BACKSLASH = 0x22, 0x5C


class Scan:
    """Holds the arrays that are written anew for each block; not to be shared between threads."""

    def __init__(self) -> None:
        self._size = 0
        self._arrays: list[Any] = []
        self._words = numpy.empty(0, numpy.uint32)

    def _room(self, size: int) -> list[Any]:
        if size > self._size:
            self._size = size
            self._arrays = [numpy.empty(size, bool) for _ in range(3)]
            self._words = numpy.empty(size // 4 + 1, numpy.uint32)
        return [array[:size] for array in self._arrays]

    def look(self, records: list[bytes], block: bytes) -> tuple[list[bool], list[int], list[bool]]:
        """For each record, joined by one byte to the block: whether it is suspect, how many quotes it has that do not
        follow a backslash, and whether a text in it may begin with nothing to be seen."""
        if len(block) < 16:
            return [True] * len(records), [0] * len(records), [True] * len(records)
        codes = numpy.frombuffer(block, numpy.uint8)
        ends = numpy.array([len(record) for record in records], numpy.int64)
        suspect = numpy.zeros(len(records) + 1, bool)
        numpy.greater_equal(ends, _LONG_BYTES, out=suspect[:-1])
        ends += 1
        numpy.cumsum(ends, out=ends)
        ends -= 1

        def hit(places: Any) -> None:
            if len(places):
                suspect[numpy.searchsorted(ends, places)] = True

        first, second, both = self._room(len(codes))
        for character in b"<@":
            if character in block:
                hit(numpy.flatnonzero(numpy.equal(codes, character, out=first)))
        hit(_marks(block, first))
        hit(_long_numbers(block, codes, self._words, first))
        backslash = numpy.equal(codes, _BACKSLASH, out=second) if b"\\" in block else None
        if backslash is not None:
            hit(_drives(codes, backslash, first, both))
            if b"\\u" in block:
                hit(_escapes(codes, backslash, first, both))
        # Quotes, for the search for keys that stand twice.
        quote = numpy.equal(codes, _QUOTE, out=first)
        if backslash is not None:
            places = numpy.flatnonzero(numpy.logical_and(backslash[:-1], quote[1:], out=both[:-1]))
            hit(places[(places > 0) & backslash[places - 1]])
            quote[places + 1] = False
        places = numpy.flatnonzero(quote)
        counted = numpy.searchsorted(places, ends)
        counted[1:] -= counted[:-1].copy()
        # What stands behind a quote: white space, another quote, an escape, or what a character of no width begins with.
        blank = numpy.zeros(len(records) + 1, bool)
        if len(places) and places[-1] == len(codes) - 1:
            places = places[:-1]
        odd = _ODD[codes[places + 1]]
        if odd.any():
            blank[numpy.searchsorted(ends, places[odd])] = True
        return suspect[:-1].tolist(), counted.tolist(), blank[:-1].tolist()


def _marks(block: bytes, room: Any) -> list[int]:
    """Where the marks stand that consist of several characters."""
    evens = numpy.frombuffer(block, numpy.uint16, len(block) // 2)
    odds = numpy.frombuffer(block, numpy.uint16, (len(block) - 1) // 2, 1)
    rare = {character: character in block for character in _RARE}
    places: list[int] = []
    for pair, whole, offset, character in _MARKS:
        if not rare[character]:
            continue
        # Two bytes at once, from even places and from odd ones.
        for begin, halves in ((0, evens), (1, odds)):
            found = numpy.equal(halves, int.from_bytes(pair, sys.byteorder), out=room[: len(halves)])
            if found.any():
                places += [
                    place
                    for place in (2 * numpy.flatnonzero(found) + begin).tolist()
                    if place >= offset and block.startswith(whole, place - offset)
                ]
    return places


def _long_numbers(block: bytes, codes: Any, words: Any, room: Any) -> Any:
    """Where thirteen digits may stand.

    With single blanks or hyphens among them they fill two aligned words of four bytes wherever they begin. Few words
    are of such bytes alone (0x20 to 0x3f); these are looked at byte by byte.
    """
    quarters = numpy.frombuffer(block, numpy.uint32, len(block) // 4)
    like = words[: len(quarters)]
    numpy.bitwise_and(quarters, 0xE0E0E0E0, out=like)
    held = numpy.equal(like, 0x20202020, out=room[: len(quarters)])
    numpy.logical_and(held[:-1], held[1:], out=held[:-1])
    found = numpy.flatnonzero(held[:-1])
    kinds = _DIGITS[codes[found[:, None] * 4 + numpy.arange(8)]]
    return found[(kinds.min(axis=1) > 0) & (kinds.sum(axis=1) >= 12)] * 4


def _escapes(codes: Any, backslash: Any, room: Any, other_room: Any) -> Any:
    """Where escapes stand for a plain character, or for the mark of lost letters."""
    letter = numpy.equal(codes, 0x75, out=room)  # u
    places = numpy.flatnonzero(numpy.logical_and(backslash[:-6], letter[1:-5], out=other_room[:-6]))
    one, two, three = codes[places + 2], codes[places + 3], codes[places + 4]
    plain = (one == 0x30) & (two == 0x30) & (three - 0x32 < 6)  # 20 to 7f; bytes below wrap around
    lost = (one | 0x20 == 0x66) & (two | 0x20 == 0x66) & (three | 0x20 == 0x66)
    return places[plain | lost]


def _drives(codes: Any, backslash: Any, room: Any, other_room: Any) -> Any:
    """Where a drive letter and its colon stand before an escape."""
    colon = numpy.equal(codes, 0x3A, out=room)
    places = numpy.flatnonzero(numpy.logical_and(colon[:-1], backslash[1:], out=other_room[:-1]))
    places = places[places > 0]
    return places[_LETTERS[codes[places - 1]]]


_LETTERS = numpy.array([chr(byte) in "CDEFGHIJKLMNOPQRSTUVWXYZcde" for byte in range(256)])
# A record of fewer bytes has no text as long as a cell of Excel can be (content_rules.CELL_UNITS).
_LONG_BYTES = 32_767
# 2 for a digit, 1 for what may stand between two digits of a number.
_DIGITS = numpy.array(
    [2 if chr(byte).isdigit() and byte < 128 else chr(byte) in " -" for byte in range(256)], numpy.int8
)
_ODD = numpy.array([chr(byte) in ' "\\' or byte in b"\xc2\xcd\xd8\xe1\xe2\xe3\xef" for byte in range(256)])
# Two characters that rarely stand together, what is looked for around them, how far before them it begins, and which of
# its characters is the rarer one.
_MARKS = (
    (b"##", b"### ", 0, b"#"),
    (b"\xef\xbf", b"\xef\xbf\xbd", 0, b"\xef"),
    (b"{{", b"{{", 0, b"{"),
    (b"T]", b"INST]", 3, b"T"),
    (b"KI", b"AKIA", 1, b"K"),
    (b"Iz", b"AIza", 1, b"z"),
    (b"xo", b"xox", 0, b"x"),
    (b"k-", b"sk-", 1, b"-"),
    (b"-B", b"-----B", 4, b"-"),
    (b"f_", b"hf_", 1, b"_"),
    (b"p_", b"ghp_", 2, b"_"),
    (b"o_", b"gho_", 2, b"_"),
    (b"s_", b"ghs_", 2, b"_"),
    (b"t_", b"github_pat_", 9, b"_"),
)
_RARE = tuple({character for *_, character in _MARKS})

"""Rows that repeat or contradict an earlier one, found from hashes alone: 16 bytes a row, 24 for judged ones.

Two rows are the same when the hashes of their ends and of all their bytes agree (96 bits). Rows whose ends agree, white
space aside, but not the rest may differ in white space alone: they are few, and only these are read a second time.
Past SPILL_ROWS rows the hashes go to files in a temporary folder, so memory stops growing.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest as hash64

# Up to here a dict is quicker than loading numpy.
SMALL_ROWS = 100_000
SPILL_ROWS = 10_000_000
# Hashes are sorted in parts of about this size, so that sorting needs little memory beside them.
SORT_ROWS = 1 << 18
SPILL_PARTS = 64
# The end of a row, without the white space, backslashes and letters n that an escaped line break may consist of.
_END_BYTES, _END_KEPT = 140, 70
_WITHOUT = b" \t\r\n\\n"


class Hashes:
    """The hashes of some rows in their order. A row with errors has zeros, so that the place says which row it is."""

    __slots__ = ("ends", "exact", "judged", "lines", "per_row")

    def __init__(self, per_row: int = 0):
        self.per_row = per_row  # judgements of a row: 1 of an answer and its label or of a pair, else 0
        self.ends = array("Q")
        self.exact = array("I")
        self.lines = array("I")
        self.judged = array("q")  # the lowest bit is the label

    def add(self, rows: list[bytes], lines: Iterable[int]) -> None:
        """Add the hashes of the next rows, those with errors included: lists are made quicker in one go."""
        self.ends.extend([hash64(raw[-_END_BYTES:].translate(None, _WITHOUT)[-_END_KEPT:]) or 1 for raw in rows])
        self.exact.extend([hash64(raw.rstrip()) & 0xFFFFFFFF for raw in rows])
        self.lines.extend(lines)

    def drop(self, place: int) -> None:
        """Leave out the latest row, which has errors and so judges nothing."""
        self.ends[place] = self.exact[place] = 0
        self.judged.extend([0] * self.per_row)


class Repeats:
    """Collects the hashes of a whole file and finds what repeats. Use close() or a with statement."""

    def __init__(self, per_row: int = 0):
        self.hashes = Hashes(per_row)
        self.rows = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Repeats:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def extend(self, more: Hashes, line_offset: int) -> None:
        """Add the hashes of the next rows, whose lines are counted from `line_offset`."""
        held = self.hashes
        held.ends.extend(more.ends)
        held.exact.extend(more.exact)
        held.judged.extend(more.judged)
        if line_offset == 0:
            held.lines.extend(more.lines)
        else:
            import numpy

            moved = numpy.frombuffer(more.lines, numpy.uint32) + numpy.uint32(line_offset & 0xFFFFFFFF)
            held.lines.frombytes(moved.tobytes())
        self.rows += len(more.ends)
        if len(held.ends) >= SPILL_ROWS:
            self._spill()

    def duplicates(self, limit: int | None) -> tuple[Places, array[int]]:
        """The rows that repeat an earlier one byte for byte, with its line, and as row numbers in order those that
        may be near repetitions. Rows are counted from 0."""
        places = Places(limit)
        near = array("q")
        if self.rows <= SMALL_ROWS and self._folder is None:
            self._small_duplicates(places, near)
            return places, near
        import numpy

        for ends, exact, lines, rows in self._parts("rows"):
            good = ends != 0
            ends, exact, lines, rows = ends[good], exact[good], lines[good], rows[good]
            whole = ends * numpy.uint64(0x9E3779B97F4A7C15) + exact
            order = _standing_twice(whole)
            first = order[_first_of_group(whole[order])]
            repeated = first != order
            places.add(rows[order][repeated], lines[order][repeated], lines[first][repeated])
            # Of each sort of row the first; several of these with one end may be near repetitions.
            kept = numpy.ones(len(ends), bool)
            kept[order[repeated]] = False
            near.frombytes(rows[kept][_standing_twice(ends[kept])].astype(numpy.int64).tobytes())
        if near:
            numpy.frombuffer(near, numpy.int64).sort()
        return places, near

    def _small_duplicates(self, places: Places, near: array[int]) -> None:
        held = self.hashes
        first: dict[tuple[int, int], int] = {}
        by_end: dict[int, int] = {}
        alike: set[int] = set()
        for row, key in enumerate(zip(held.ends, held.exact, strict=True)):
            if key[0] == 0:
                continue
            met = first.setdefault(key, row)
            if met != row:
                places.add_one(row, held.lines[row], held.lines[met])
                continue
            other = by_end.setdefault(key[0], row)
            if other != row:
                alike |= {row, other}
        near.extend(sorted(alike))

    def contradictions(self, limit: int | None) -> Places:
        """The rows that judge an answer to a question the other way than the first row that has both, which is
        named by its number counted from 1."""
        places = Places(limit)
        per_row = self.hashes.per_row
        if not per_row:
            return places
        if self.rows <= SMALL_ROWS and self._folder is None:
            judged: dict[int, tuple[int, int]] = {}
            for place, value in enumerate(self.hashes.judged):
                if value:
                    label, row = judged.setdefault(value >> 1, (value & 1, place // per_row))
                    if label != value & 1 and row != place // per_row:
                        places.add_one(place // per_row, self.hashes.lines[place // per_row], row + 1)
            return places
        for values, lines, rows in self._parts("judged"):
            good = values != 0
            values, lines, rows = values[good], lines[good], rows[good]
            order = _standing_twice(values >> 1)
            first = _first_of_group(values[order] >> 1)
            label, row = values[order] & 1, rows[order]
            wrong = (label != label[first]) & (row != row[first])
            places.add(row[wrong], lines[order][wrong], row[first][wrong] + 1)
        return places

    # Parts that are sorted one at a time: rows with one hash are always in one part.

    def _parts(self, what: str) -> Iterator[tuple[Any, ...]]:
        if self._folder is not None:
            self._spill()
            for part in range(SPILL_PARTS):
                path = Path(self._folder.name) / f"{what}-{part}"
                if path.exists():
                    import numpy

                    kind = _record_types()[what]
                    records: Any = numpy.fromfile(path, kind)
                    yield tuple(records[name] for name in kind.names)
            return
        arrays, parts = self._arrays(what), 1
        while len(arrays[0]) > parts * SORT_ROWS:
            parts *= 2
        for part in range(parts):
            yield self._chosen(what, arrays, _of_part(arrays[0], what, part, parts), 0)

    def _arrays(self, what: str) -> list[Any]:
        import numpy

        held = self.hashes
        lines = numpy.frombuffer(held.lines, numpy.uint32)
        if what == "judged":
            return [numpy.frombuffer(held.judged, numpy.int64), lines]
        return [numpy.frombuffer(held.ends, numpy.uint64), numpy.frombuffer(held.exact, numpy.uint32), lines]

    def _chosen(self, what: str, arrays: list[Any], chosen: Any, before: int) -> tuple[Any, ...]:
        if what == "judged":
            rows = chosen // self.hashes.per_row
            return arrays[0][chosen], arrays[1][rows], rows + before
        return *(values[chosen] for values in arrays), chosen + before

    def _spill(self) -> None:
        """Append what is in memory to files, by hash."""
        import numpy

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tunebook-check-")
        before = self.rows - len(self.hashes.ends)
        for what, kind in _record_types().items():
            if what == "judged" and not self.hashes.per_row:
                continue
            arrays = self._arrays(what)
            for part in range(SPILL_PARTS):
                chosen = _of_part(arrays[0], what, part, SPILL_PARTS)
                records = numpy.empty(len(chosen), kind)
                for name, values in zip(kind.names, self._chosen(what, arrays, chosen, before), strict=True):
                    records[name] = values
                with (Path(self._folder.name) / f"{what}-{part}").open("ab") as file:
                    file.write(records.tobytes())
        self.hashes = Hashes(self.hashes.per_row)


def _of_part(hashes: Any, what: str, part: int, parts: int) -> Any:
    """Return the places of the hashes that belong to a part, looked for a block at a time: a mask over all of them would
    be as large as they are. The lowest bit of a judgement is its label."""
    import numpy

    found = [numpy.zeros(0, numpy.int64)]
    for start in range(0, len(hashes), SORT_ROWS):
        block = hashes[start : start + SORT_ROWS]
        key = block >> 1 if what == "judged" else block
        found.append(numpy.nonzero((key & key.dtype.type(parts - 1)) == part)[0] + start)
    return numpy.concatenate(found)


def _record_types() -> Any:
    import numpy

    place = [("line", numpy.uint32), ("row", numpy.int64)]
    return {
        "rows": numpy.dtype([("ends", numpy.uint64), ("exact", numpy.uint32), *place]),
        "judged": numpy.dtype([("judged", numpy.int64), *place]),
    }


def _standing_twice(values: Any) -> Any:
    """The places of the values that stand more than once, equal ones together and in their order. Most files have few:
    sorting the values alone is ten times as quick as sorting their places."""
    import numpy

    ordered = numpy.sort(values)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return numpy.zeros(0, numpy.int64)
    at = numpy.minimum(numpy.searchsorted(twice, values), len(twice) - 1)
    places = numpy.flatnonzero(twice[at] == values)
    return places[numpy.argsort(values[places], kind="stable")]


def _first_of_group(ordered: Any) -> Any:
    """For each place of sorted values the place where its run of equal values begins."""
    import numpy

    begins = numpy.arange(len(ordered))
    begins[1:][ordered[1:] == ordered[:-1]] = 0
    return numpy.maximum.accumulate(begins)


class Places:
    """Rows that were found: all are counted, the first `limit` in the order of the file are kept."""

    def __init__(self, limit: int | None):
        self.limit = limit
        self.count = 0
        self._kept = array("q")  # row, line and first of each, one after the other

    def add_one(self, row: int, line: int, first: int) -> None:
        self.count += 1
        self._kept.extend((row, line, first))

    def add(self, rows: Any, lines: Any, first: Any) -> None:
        import numpy

        self.count += len(rows)
        more = numpy.stack([rows.astype(numpy.int64), lines.astype(numpy.int64), first.astype(numpy.int64)], axis=1)
        self._kept.frombytes(more[numpy.argsort(more[:, 0], kind="stable")][: self.limit].tobytes())
        if self.limit and len(self._kept) > 60 * self.limit:
            self._kept = array("q", [number for found in self for number in found])

    def __len__(self) -> int:
        kept = len(self._kept) // 3
        return kept if self.limit is None else min(self.limit, kept)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield (row, its line, the first one like it), in the order of the file."""
        triples = zip(self._kept[::3], self._kept[1::3], self._kept[2::3], strict=True)
        return iter(sorted(triples)[: self.limit])

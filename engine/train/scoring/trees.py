"""How token sequences are laid out in rows, so that what several begin with is read once and little is padding.

Sequences that begin alike are the branches of one tree: each token stands in the row once, at its own position, and sees
only what lies before it in its own sequence. Several trees lie side by side in a row and see nothing of each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy

Tokens = tuple[int, ...]

# A tree takes a sequence in that shares so large a part of its tokens with the one before.
LEAST_SHARED = 0.2
# A row gets no wider than this by joining sequences, or than twice the longest: what attention costs grows with it.
MOST_WIDTH = 512
# What so many trees begin with, of so many tokens, is read once for all of them, where that spares so large a part.
HEADER_TOKENS, LEAST_TREES, LEAST_SPARED = 16, 4, 0.2


class Wanted(NamedTuple):
    """A sequence and the places of those tokens whose likelihood after all before them is asked for, rising, from 1 on."""

    tokens: Tokens
    targets: Sequence[int]

    @property
    def read(self) -> Tokens:
        """What a model reads of it: nothing from the last target on."""
        return self.tokens[: self.targets[-1]]


class Tree(NamedTuple):
    """Sequences by their number, in the order of their tokens, and how many tokens they are when each is read once."""

    members: list[int]
    size: int


class Family(NamedTuple):
    """Trees that all begin with `header`, which is read before them and is no part of them."""

    header: Tokens
    trees: list[Tree]


def families(wanted: Sequence[Wanted], *, share: bool = True, headers: bool = True) -> list[Family]:
    """Return all sequences in trees, those with a header of their own apart. Without `share` a tree holds nothing but
    sequences that are read alike."""
    reads = [one.read for one in wanted]
    order = sorted(range(len(reads)), key=reads.__getitem__)
    if not share:
        return [Family((), _plant(reads, order, 0, 1.0))]
    found: list[Family] = []
    rest: list[int] = []
    for header, run in itertools.groupby(order, key=lambda at: reads[at][:HEADER_TOKENS]):
        members = list(run)
        family = _family(wanted, reads, members) if headers and len(header) == HEADER_TOKENS else None
        if family is not None:
            found.append(family)
        else:
            rest += members
    return [*found, *([Family((), _plant(reads, rest, 0, LEAST_SHARED))] if rest else [])]


def _family(wanted: Sequence[Wanted], reads: list[Tokens], members: list[int]) -> Family | None:
    """Return what all of these begin with, before any target is predicted, and trees of what comes after it; None where
    that spares too little."""
    length = min(common(reads[members[0]], reads[members[-1]]), *(wanted[at].targets[0] - 1 for at in members))
    if length < HEADER_TOKENS:
        return None
    trees = _plant(reads, members, length, LEAST_SHARED)
    size = length + sum(tree.size for tree in trees)
    plain = sum(tree.size for tree in _plant(reads, members, 0, LEAST_SHARED))
    if len(trees) < LEAST_TREES or size > (1 - LEAST_SPARED) * plain:
        return None
    return Family(reads[members[0]][:length], trees)


def _plant(reads: list[Tokens], order: list[int], skip: int, least: float) -> list[Tree]:
    """Join neighbours in the order of their tokens, without the first `skip`, that share enough."""
    trees: list[Tree] = []
    longest = 0
    for at in order:
        length = len(reads[at]) - skip
        if trees:
            members, size = trees[-1]
            shared = common(reads[members[-1]], reads[at]) - skip
            grown = size + length - shared
            wide = max(MOST_WIDTH, 2 * max(longest, length))
            joins = shared >= least * length and grown <= wide if least < 1 else reads[members[-1]] == reads[at]
            if joins:
                trees[-1] = Tree([*members, at], grown)
                longest = max(longest, length)
                continue
        trees.append(Tree([at], length))
        longest = length
    return trees


def common(one: Tokens, other: Tokens) -> int:
    """Return with how many equal tokens two sequences begin."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return n
    return min(len(one), len(other))


def batches(trees: list[Tree], most_tokens: int, most_rows: int, *, fill: bool = True) -> Iterator[list[list[Tree]]]:
    """Yield batches of rows of trees, the longest first. A batch is as wide as its largest tree and holds at most so many
    tokens and rows; smaller trees `fill` what the large ones leave of a row."""
    left = sorted(trees, key=lambda tree: -tree.size)
    while left:
        width, least = left[0].size, left[-1].size
        most = max(1, min(most_rows, most_tokens // width))
        rows: list[list[Tree]] = []
        free: list[int] = []
        later: list[Tree] = []
        for n, tree in enumerate(left):
            at = next((at for at, room in enumerate(free) if room >= tree.size), None) if fill else None
            if at is not None:
                rows[at].append(tree)
                free[at] -= tree.size
            # what is much shorter would be read between wide gaps: it gets a batch of its own
            elif len(rows) < most and 2 * tree.size >= width:
                rows.append([tree])
                free.append(width - tree.size)
            elif not fill or max(free) < least:
                later += left[n:]
                break
            else:
                later.append(tree)
        yield rows
        left = later


class Layout(NamedTuple):
    """A batch as a model reads it: ids and positions, shape (rows, width); which token sees which, shape (rows, width,
    header + width); and what is asked, as (row, place in it, token, number of the sequence)."""

    ids: numpy.ndarray
    positions: numpy.ndarray
    seen: numpy.ndarray
    asked: list[tuple[int, int, int, int]]


def lay_out(rows: list[list[Tree]], wanted: Sequence[Wanted], header: int) -> Layout:
    """Lay rows of trees out, behind a header of so many tokens."""
    width = max(sum(tree.size for tree in row) for row in rows)
    ids = numpy.zeros((len(rows), width), dtype=numpy.int64)
    positions = numpy.zeros((len(rows), width), dtype=numpy.int64)
    seen = numpy.zeros((len(rows), width, header + width), dtype=bool)
    seen[:, :, :header] = True
    seen[:, range(width), range(header, header + width)] = True  # padding too sees something: itself
    asked = []
    for n, row in enumerate(rows):
        end = 0
        for tree in row:
            path: list[int] = []  # where the tokens of the sequence before stand in the row
            before: Tokens = ()
            for member in tree.members:
                read = wanted[member].read
                kept = max(0, common(before, read) - header) if path else 0
                start, end = end, end + len(read) - header - kept
                path = [*path[:kept], *range(start, end)]
                ids[n, start:end] = read[header + kept :]
                positions[n, start:end] = range(header + kept, len(read))
                seen[n, start:end, [header + at for at in path[:kept]]] = True
                seen[n, start:end, header + start : header + end] |= numpy.tri(end - start, dtype=bool)
                tokens = wanted[member].tokens
                asked += [(n, path[at - 1 - header], tokens[at], member) for at in wanted[member].targets]
                before = read
    return Layout(ids, positions, seen, asked)

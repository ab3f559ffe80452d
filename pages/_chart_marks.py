"""Where the marks of a chart's points stand, so that none lies upon another or on a point, not on a phone either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

# What a chart has for its points on a phone, across and upward, and what the letters of their marks take.
PLOT_PIXELS, LETTER_PIXELS, MARK_PIXELS, POINT_PIXELS = (280, 330), 8, 20, 12
MARKS_IN_A_ROW = 4


class Box(NamedTuple):
    """A part of the chart in pixels, from its lower left."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top


def together(places: Sequence[tuple[float, float]], texts: Sequence[str]) -> list[list[int]]:
    """Return the numbers of places in groups whose marks, a text each, stand together: no group lies upon another's
    marks or points."""
    groups = [[number] for number in range(len(places))]
    while True:
        boxes = [_box(group, places, texts) for group in groups]
        pairs = ((a, b) for b in range(len(groups)) for a in range(b) if boxes[a].meets(boxes[b]))
        found = next(pairs, None)
        if found is None:
            return [sorted(group, key=lambda number: places[number]) for group in groups]
        groups[found[0]] += groups.pop(found[1])


def each(
    group: Sequence[int], places: Sequence[tuple[float, float]], texts: Sequence[str]
) -> Iterator[tuple[int, Box]]:  # fmt: skip
    """Return the numbers of a group with where the mark of each stands."""
    all_of_them = _marks_of(group, places, texts)
    top = all_of_them.top
    for row in _rows(group):
        left = all_of_them.left
        for number in row:
            yield number, Box(left, top - MARK_PIXELS, left + _width(texts[number]), top)
            left += _width(texts[number])
        top -= MARK_PIXELS


def _width(text: str) -> float:
    return LETTER_PIXELS * len(text) + 12


def _rows(group: Sequence[int]) -> list[Sequence[int]]:
    return [group[start : start + MARKS_IN_A_ROW] for start in range(0, len(group), MARKS_IN_A_ROW)]


def _marks_of(group: Sequence[int], places: Sequence[tuple[float, float]], texts: Sequence[str]) -> Box:
    """Return where the marks of a group stand: above its points, inside of the chart."""
    width = max(sum(_width(texts[number]) for number in row) for row in _rows(group))
    height = MARK_PIXELS * len(_rows(group))
    middle = sum(places[number][0] for number in group) / len(group)
    left = min(max(0.0, middle - width / 2), PLOT_PIXELS[0] - width)
    bottom = min(max(places[number][1] for number in group) + POINT_PIXELS, PLOT_PIXELS[1] - height)
    return Box(left, bottom, left + width, bottom + height)


def _box(group: Sequence[int], places: Sequence[tuple[float, float]], texts: Sequence[str]) -> Box:
    """Return what a group takes of the chart, marks and points."""
    marks, half = _marks_of(group, places, texts), POINT_PIXELS / 2
    across, upward = zip(*(places[number] for number in group), strict=True)
    return Box(
        min(marks.left, min(across) - half), min(marks.bottom, min(upward) - half),
        max(marks.right, max(across) + half), max(marks.top, max(upward) + half),
    )  # fmt: skip

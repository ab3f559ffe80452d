"""Where the marks of a chart's points stand, so that none lies upon another or on a point, not on a phone either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# What a chart has for its points on a phone, across and upward, and what the letters of their marks take.
PLOT_PIXELS, LETTER_PIXELS, MARK_PIXELS, POINT_PIXELS = (280, 330), 8, 20, 12
# Marks are tried this far apart, up to so far from their point.
_STEP_PIXELS, _MOST_PIXELS = 11, 160


class Box(NamedTuple):
    """A part of the chart in pixels, from its lower left."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def meets(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top


def beside(places: Sequence[tuple[float, float]], texts: Sequence[str]) -> list[Box]:
    """Return where the mark of each place stands: as near as there is room, above it before elsewhere. Where many crowd so
    that there is none, above its place all the same."""
    taken = [_around(place, POINT_PIXELS, POINT_PIXELS) for place in places]
    found = []
    for place, text in zip(places, texts, strict=True):
        width = LETTER_PIXELS * len(text) + 12
        tried = [_around((place[0] + x, place[1] + y), width, MARK_PIXELS) for x, y in _OFFSETS]
        inside = [box for box in tried if box.left >= 0 and box.right <= PLOT_PIXELS[0]
                  and box.bottom >= 0 and box.top <= PLOT_PIXELS[1]]  # fmt: skip
        free = (box for box in inside if not any(box.meets(other) for other in taken))
        found.append(next(free, inside[0]))
        taken.append(found[-1])
    return found


def _around(middle: tuple[float, float], width: float, height: float) -> Box:
    return Box(middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2)


def _offsets() -> list[tuple[int, int]]:
    steps = range(-_MOST_PIXELS, _MOST_PIXELS + 1)
    grid = [(x, y) for x in steps[_MOST_PIXELS % _STEP_PIXELS :: _STEP_PIXELS]
            for y in steps[_MOST_PIXELS % _STEP_PIXELS :: _STEP_PIXELS]]  # fmt: skip
    return sorted(grid, key=lambda one: (math.hypot(*one), -one[1], abs(one[0]), one[0]))


_OFFSETS = _offsets()

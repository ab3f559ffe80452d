"""Looking at scores while more are coming in, without calling chance a drop: group-sequential bounds.

Whoever looks four times at 5 % finds something in 13 of 100 comparisons where there is nothing. The error is spent over
the looks instead (Lan and DeMets, Biometrika 70, 1983), as O'Brien and Fleming's bounds do: hardly any at the first look,
nearly all of it at the last. What was seen at a look that stopped is told by repeated confidence intervals and repeated
p-values (Jennison and Turnbull, Journal of the Royal Statistical Society B 51, 1989), which hold at every look, whatever
was the reason to stop. Bounds are found by integrating over the looks before (Armitage, McPherson and Rowe 1969).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from engine.report.statistics import ALPHA, LEAST_QUESTIONS

_NORMAL = NormalDist()
# The shares of the planned questions after which it is looked.
SHARES = (0.25, 0.5, 0.75, 1.0)
# Beyond so many standard errors nothing is left to integrate; steps of the grid.
_WIDEST, _STEPS = 8.0, 201


def looks(planned: int) -> tuple[int, ...]:
    """Return after how many of `planned` questions it is looked, the last time after all; a look at fewer than
    LEAST_QUESTIONS says nothing and is left out."""
    found = {math.ceil(share * planned) for share in SHARES}
    return tuple(sorted(n for n in found if n >= LEAST_QUESTIONS or n == planned))


def spent(share: float, alpha: float) -> float:
    """Return how much of `alpha` (both sides together) may be spent by a share of the questions, as O'Brien and Fleming
    would (Lan and DeMets 1983, equation 4, for each side)."""
    return 4 * (1 - _NORMAL.cdf(_NORMAL.inv_cdf(1 - alpha / 4) / math.sqrt(share)))


@lru_cache(maxsize=512)
def bounds(planned: tuple[int, ...], alpha: float = ALPHA, upto: int | None = None) -> tuple[float, ...]:
    """Return how many standard errors a change must lie from 0 at each look (looks()) to be told from chance, two-sided,
    the error of all looks together being `alpha`. One look has the usual 1.96 at 5 %. With `upto` the first so many."""
    shares = [n / planned[-1] for n in planned][:upto]
    grid: np.ndarray | None = None
    density = np.zeros(0)
    found: list[float] = []
    used = 0.0
    for number, share in enumerate(shares):
        step = math.sqrt(share - (shares[number - 1] if number else 0.0))
        least = max(0.0, spent(share, alpha) - used)
        used = max(used, spent(share, alpha))
        bound = _bound(grid, density, step, math.sqrt(share), least)
        found.append(bound)
        if number + 1 < len(shares):
            inner = np.linspace(-bound * math.sqrt(share), bound * math.sqrt(share), _STEPS)
            density, grid = _at(inner, grid, density, step), inner
    return tuple(found)


def _at(points: np.ndarray, grid: np.ndarray | None, density: np.ndarray, step: float) -> np.ndarray:
    """Return the density of the sum of scores at points, having crossed no bound before."""
    if grid is None:
        return np.exp(-0.5 * (points / step) ** 2) / (step * math.sqrt(2 * math.pi))
    apart = (points[:, None] - grid[None, :]) / step
    kernel = np.exp(-0.5 * apart**2) / (step * math.sqrt(2 * math.pi))
    return np.asarray(np.trapezoid(kernel * density[None, :], grid, axis=1))


def _beyond(edge: float, grid: np.ndarray | None, density: np.ndarray, step: float) -> float:
    """Return the chance of a sum beyond `edge` on either side, having crossed no bound before."""
    if grid is None:
        return 2 * (1 - _NORMAL.cdf(edge / step))
    from scipy.special import ndtr

    tails = ndtr((grid - edge) / step) + ndtr((-edge - grid) / step)
    return float(np.trapezoid(tails * density, grid))


def _bound(grid: np.ndarray | None, density: np.ndarray, step: float, scale: float, least: float) -> float:
    """Return the bound in standard errors (a sum of scores over `scale`) that leaves a chance of `least` beyond."""
    low, high = 0.0, _WIDEST
    while high - low > 1e-5:
        middle = (low + high) / 2
        if _beyond(middle * scale, grid, density, step) > least:
            low = middle
        else:
            high = middle
    return high


def bound_at(planned: Sequence[int], asked: int, alpha: float = ALPHA) -> float:
    """Return the bound after `asked` questions: that of the last look which was reached."""
    reached = sum(n <= asked for n in planned)
    return bounds(tuple(planned), alpha, reached)[-1] if reached else _WIDEST


def nominal(planned: Sequence[int], asked: int, alpha: float = ALPHA) -> float:
    """Return the two-sided p-value that a test by itself must fall below at a look, for `alpha` over all looks."""
    return 2 * (1 - _NORMAL.cdf(bound_at(planned, asked, alpha)))


def repeated(p: float, planned: Sequence[int], asked: int) -> float:
    """Return the repeated p-value of a test that gave `p` by itself: the smallest error over all looks at which it would
    have been told from chance here."""
    low, high = 1e-9, 1.0 - 1e-9
    if p >= nominal(planned, asked, high):
        return 1.0
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        if p <= nominal(planned, asked, round(middle, 12)):
            high = middle
        else:
            low = middle
    return high

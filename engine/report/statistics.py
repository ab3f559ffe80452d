"""The formulas behind the forgetting report: intervals, tests, power, seeds. Pure arithmetic on counts and arrays.

scipy.special is imported where it is used: it takes a tenth of a second, which no page should wait for.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

ALPHA = 0.05
Z95, Z90 = 1.959964, 1.644854  # normal quantiles for two-sided 95 and 90 %
# A set is said to show a drop when our own rule finds it in so many of 100 repetitions.
POWER = 0.85
# The smallest drop that matters: one point of accuracy (methods: Kalajdzievski and others report changes of that size).
MARGIN = 0.01
# Below so many questions one answer moves the score by more than 5 points, and nothing is said of it but how many there
# were. (The exact test wants six flips of one kind and none of the other before it speaks at all.)
LEAST_QUESTIONS = 20


def bonett_price(lost: ArrayLike, won: ArrayLike, n: int, z: float = Z95) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of Bonett and Price's adjusted Wald interval for paired proportions (Psychological Methods 17,
    2012), for counts or arrays of them: items that only the base, and only the tuned model, got right, of `n`."""
    b, c = (np.asarray(lost) + 1) / (n + 2), (np.asarray(won) + 1) / (n + 2)
    centre = c - b
    half = z * np.sqrt(np.maximum(0.0, (b + c - centre**2) / (n + 2)))
    return np.maximum(-1.0, centre - half), np.minimum(1.0, centre + half)


def paired_change(
    both: int, base_only: int, tuned_only: int, neither: int, z: float = Z95
) -> tuple[float, float, float]:
    """Return the change in accuracy on the same items and its interval, of 95 % where `z` is not another, which always
    holds the change. One is added to each kind of disagreement (bonett_price), so that no disagreement at all does not
    claim certainty."""
    n = both + base_only + tuned_only + neither
    change = (tuned_only - base_only) / n
    low, high = (float(end) for end in bonett_price(base_only, tuned_only, n, z))
    return change, min(low, change), max(high, change)


def mcnemar(lost: ArrayLike, won: ArrayLike) -> np.ndarray:
    """Return exact two-sided McNemar p-values, how often chance alone would split the disagreements so unevenly: twice the
    smaller tail of Binomial(lost + won, 1/2). Takes counts or arrays of them."""
    from scipy.special import bdtr

    b, c = np.asarray(lost, dtype=np.int64), np.asarray(won, dtype=np.int64)
    tail = bdtr(np.minimum(b, c).astype(float), b + c, 0.5)
    return np.where(b + c == 0, 1.0, np.minimum(1.0, 2 * tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several (Holm 1979): each is what it must be compared with 0.05 as."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def is_real_drop(
    lost: np.ndarray, won: np.ndarray, n: int, *, margin: float = MARGIN, alpha: float = ALPHA, z: float = Z95
) -> np.ndarray:
    """Return where the rule says "real drop": the interval lies below 0, the exact test agrees at `alpha`, and the drop
    is at least `margin`. `alpha` is smaller where several benchmarks are looked at (holm), or one several times, whose
    interval has another `z` too (sequential.py)."""
    b, c = np.asarray(lost), np.asarray(won)
    _, high = bonett_price(b, c, n, z)
    return (high < 0) & (mcnemar(b, c) <= alpha) & ((b - c) / n >= margin - 1e-12)


def power(n: int, noise: float, drop: float, *, margin: float = MARGIN, alpha: float = ALPHA) -> float:
    """Return the exact chance that is_real_drop finds a drop of `drop` among `n` items.

    `noise` is the share of items that flip each way with no drop at all. Lost and won items are then trinomial with
    shares noise + drop and noise. Won items are summed over; given them, lost ones are binomial, and the rule asks for
    at least so many of them, which is found by bisection.
    """
    from scipy.special import bdtrc, gammaln, xlog1py, xlogy

    p_won, p_lost = min(noise, 1.0), min(noise + drop, 1.0 - min(noise, 1.0))
    spread = 9 * math.sqrt(n * p_won * (1 - p_won)) + 12
    won = np.arange(max(0, int(n * p_won - spread)), min(n, int(n * p_won + spread)) + 1)
    low, high = won.copy(), np.full(len(won), n + 1)  # the rule is false at low = won, and taken as true beyond n
    while np.any(high - low > 1):
        middle = (low + high) // 2
        found = is_real_drop(middle, won, n, margin=margin, alpha=alpha) & (middle + won <= n)
        beyond = middle + won > n
        high, low = np.where(found | beyond, middle, high), np.where(found | beyond, low, middle)
    chance_won = np.exp(
        gammaln(n + 1) - gammaln(won + 1) - gammaln(n - won + 1) + xlogy(won, p_won) + xlog1py(n - won, -p_won)
    )
    given = min(1.0, p_lost / (1 - p_won)) if p_won < 1 else 0.0
    reach = np.where(high + won <= n, bdtrc(high - 1.0, np.maximum(0, n - won).astype(np.int64), given), 0.0)
    return float((chance_won * np.nan_to_num(reach)).sum())


def detectable_drop(
    n: int, noise: float, *, most: float = 1.0, margin: float = MARGIN, alpha: float = ALPHA, wanted: float = POWER
) -> float | None:
    """Return the smallest drop that is_real_drop finds with a chance of `wanted`; None when even a loss of `most` (all
    that the base had right) would be missed."""
    most = min(most, 1.0 - 2 * noise)
    if n < 2 or most <= 0 or power(n, noise, most, margin=margin, alpha=alpha) < wanted:
        return None
    low, high = 0.0, most
    while high - low > 1e-4:
        middle = (low + high) / 2
        if power(n, noise, middle, margin=margin, alpha=alpha) < wanted:
            low = middle
        else:
            high = middle
    return high


def share_interval(right: int, n: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share, `right` of `n` (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    low = float(betaincinv(right, n - right + 1, 0.025)) if right else 0.0
    high = float(betaincinv(right + 1, n - right, 0.975)) if right < n else 1.0
    return low, high


def bootstrap(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int | np.random.Generator = 0,
    resamples: int = 10_000,
) -> np.ndarray:
    """Return resampled ratios sum(values) / sum(weights) of paired differences (Efron and Tibshirani 1993, chapter 13).

    Items with the same entry of `clusters` share a passage and are drawn together: their errors are alike, and drawing
    them apart would claim too narrow an interval (Miller, arXiv 2411.00640).
    """
    totals, sizes = np.asarray(values, dtype=float), np.ones(len(values)) if weights is None else np.asarray(weights)
    if clusters is not None:
        names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
        where = np.array([names[name] for name in clusters])
        totals, sizes = np.bincount(where, totals, len(names)), np.bincount(where, sizes, len(names))
    generator, found = np.random.default_rng(seed), np.empty(resamples)
    for start in range(0, resamples, 500):  # in pieces: 10,000 x 500 indices at once would be 40 MB
        drawn = generator.integers(0, len(totals), size=(min(500, resamples - start), len(totals)))
        found[start : start + 500] = totals[drawn].sum(axis=1) / np.maximum(1e-300, sizes[drawn].sum(axis=1))
    return found


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean over seeds and its 95 % interval by Student's t; with one seed nothing is known of the others."""
    from scipy.special import stdtrit

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return mean(first) - mean(second) over seeds and its 95 % interval (Welch 1947: unequal spreads)."""
    from scipy.special import stdtrit

    change = float(np.mean(first) - np.mean(second))
    if len(first) < 2 or len(second) < 2:
        return change, -math.inf, math.inf
    a, b = (float(np.var(side, ddof=1)) / len(side) for side in (first, second))
    if a + b == 0:
        return change, change, change
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(a + b)
    return change, change - half, change + half


def bleu(stats: np.ndarray) -> np.ndarray:
    """Return corpus BLEU (0 to 100) from sums of sacrebleu's statistics: system length, reference length, four counts
    of matching n-grams, four of all. Any leading axes are kept, so that resamples are scored at once.

    Papineni and others 2002, with sacrebleu's "exp" smoothing: the k-th zero count stands for 1 / 2^k of a match.
    """
    stats = np.asarray(stats, dtype=float)
    system, reference, correct, total = stats[..., 0], stats[..., 1], stats[..., 2:6], stats[..., 6:10]
    zero = (correct == 0) & (total > 0)
    smoothed = np.where(zero, 1 / 2.0 ** np.cumsum(zero, axis=-1), correct)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = smoothed / total
        # without any 4-gram the score is 0, as without any match
        whole = (total > 0).all(axis=-1) & (correct.sum(axis=-1) > 0)
        brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(system, 1e-9)))
        score = 100 * brevity * np.exp(np.log(np.where(precision > 0, precision, 1.0)).mean(axis=-1))
    return np.where(whole & (system > 0), score, 0.0)

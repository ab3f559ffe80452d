"""What a run gained and lost: paired differences on the same items, with honest intervals. Pure arithmetic.

compare_* turn items into lines of figures; what these mean is said by verdicts.py. The formulas are in statistics.py.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from engine.report import sequential, statistics
from engine.report.items import (
    ALL,
    ANSWERS,
    BITS_PER_BYTE,
    BLEU,
    GAP,
    KL,
    MARGIN,
    REWARD,
    ROUGE_L,
    SEEN,
    UNSEEN,
    VALID,
    Item,
    Joined,
    KlItem,
    joined,
    read_items,
)
from engine.report.statistics import paired_change
from engine.workspace import Unreadable


class Comparison(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of a comparison. Accuracies are shares of 1; a loss is in nats per target token (lower is better), a gap
    in nats per answer, a margin and the reward of answers in the reward model's own unit (higher is better), BLEU 0 to
    100, ROUGE-L 0 to 1.

    `low` and `high` bound the change at 95 %; of fewer than LEAST_QUESTIONS there is no interval, which is infinite ends
    (null in JSON). `base_only_right` counts items that only the base got right (lost),
    `tuned_only_right` those that only the tuned model got right (learned); both null where no item is right or wrong.
    `looks`: after how many questions it was looked, where asking could end early, in JSON only then; the interval is wider
    (sequential.py), and holds whenever it ended.
    """

    run: str
    benchmark: str
    family: str
    n: int
    base: float
    tuned: float
    change: float
    low: float
    high: float
    base_only_right: int | None
    tuned_only_right: int | None
    looks: tuple[int, ...] = ()


def paired_loss(
    base: list[Item], tuned: list[Item], *, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float, float, float, float]:
    """Return loss per target token before and after, the change, and its 95 % interval from a percentile bootstrap
    over items (or over passages that several items share): drawn in pairs, losses weighted by tokens."""
    return _paired_ratio(base, tuned, [float(item.tokens or 0) for item in base], seed, resamples)


def paired_bits(base: list[Item], tuned: list[Item], *, seed: int = 0) -> tuple[float, float, float, float, float]:
    """Return bits per byte before and after, the change and its interval as in paired_loss. Unlike the loss per token
    it can be compared between models that split text differently."""
    return _paired_ratio(base, tuned, [math.log(2) * (item.size_bytes or 0) for item in base], seed, 10_000)


def _paired_ratio(
    base: list[Item], tuned: list[Item], weights: list[float], seed: int, resamples: int
) -> tuple[float, float, float, float, float]:
    sizes = np.array(weights)
    before = -np.array([item.loglikelihoods[0] for item in base])
    after = -np.array([item.loglikelihoods[0] for item in tuned])
    total = sizes.sum() or 1.0
    low = high = change = float((after - before).sum() / total)
    if len(base) > 1:
        ratios = statistics.bootstrap(after - before, sizes, _clusters(base), seed=seed, resamples=resamples)
        low, high = (float(x) for x in np.quantile(ratios, [0.025, 0.975]))
    return float(before.sum() / total), float(after.sum() / total), change, low, high


def _clusters(items: list[Item]) -> list[str] | None:
    """Return which passage each item belongs to; None when each stands for itself."""
    if not any(item.cluster for item in items):
        return None
    return [item.cluster or f"item {item.item}" for item in items]


def _interval(means: np.ndarray, change: float) -> tuple[float, float]:
    low, high = (float(x) for x in np.quantile(means, [0.025, 0.975]))
    return min(low, change), max(high, change)


def paired_bleu(base: list[Item], tuned: list[Item], *, seed: int = 0) -> tuple[float, float, float, float, float]:
    """Return corpus BLEU before and after, the change, and its interval by a paired bootstrap over items (Koehn 2004):
    the statistics of the drawn items are summed, and both corpora scored."""
    before, after = (np.array([item.bleu for item in items], dtype=float) for items in (base, tuned))
    generator, n = np.random.default_rng(seed), len(base)
    drawn = generator.integers(0, n, size=(2_000, n))
    moved = np.concatenate(
        [
            statistics.bleu(after[part].sum(axis=1)) - statistics.bleu(before[part].sum(axis=1))
            for part in np.array_split(drawn, 40)
        ]
    )
    scores = [float(statistics.bleu(side.sum(axis=0))) for side in (before, after)]
    return scores[0], scores[1], scores[1] - scores[0], *_interval(moved, scores[1] - scores[0])


def paired_rouge(base: list[Item], tuned: list[Item], *, seed: int = 0) -> tuple[float, float, float, float, float]:
    """Return the mean ROUGE-L F-measure before and after, the change and its interval by a bootstrap over items."""
    before, after = (np.array([item.rouge_l or 0.0 for item in items]) for items in (base, tuned))
    change = float((after - before).mean())
    means = statistics.bootstrap(after - before, None, _clusters(base), seed=seed)
    return float(before.mean()), float(after.mean()), change, *_interval(means, change)


def paired_gap(base: list[Item], tuned: list[Item], *, seed: int = 0) -> tuple[float, float, float, float, float]:
    """Return the gap between good and bad answers before and after, its change, and the 95 % interval of the change.

    The gap is the mean log-likelihood of good answers minus that of bad ones, in nats per answer. Good and bad answers
    belong to different questions, so the gap itself also holds how long and how common they are: only its change says
    something, and it is KTO's own reward over beta (arXiv 2402.01306, section 4.1). Each row is compared with itself;
    the interval is a percentile bootstrap over rows, good and bad ones drawn apart (two independent samples: Efron and
    Tibshirani 1993, chapter 8). Raises ValueError when there are only good or only bad answers.
    """
    good = np.array([item.gold == 0 for item in base])
    if good.all() or not good.any():
        raise ValueError("a gap needs good and bad answers")
    before = np.array([item.loglikelihoods[0] for item in base])
    after = np.array([item.loglikelihoods[0] for item in tuned])
    moved, generator = after - before, np.random.default_rng(seed)
    change = float(moved[good].mean() - moved[~good].mean())
    means = statistics.bootstrap(moved[good], seed=generator) - statistics.bootstrap(moved[~good], seed=generator)
    gaps = [float(side[good].mean() - side[~good].mean()) for side in (before, after)]
    return gaps[0], gaps[1], change, *_interval(means, change)


def paired_margin(base: list[Item], tuned: list[Item], *, seed: int = 0) -> tuple[float, float, float, float, float]:
    """Return how much more a reward model gives the chosen answer before and after, the change, and its 95 % interval
    from a percentile bootstrap over pairs."""
    before, after = (np.array([item.rewards[0] - item.rewards[1] for item in items]) for items in (base, tuned))
    change = float((after - before).mean())
    means = statistics.bootstrap(after - before, seed=seed)
    return float(before.mean()), float(after.mean()), change, *_interval(means, change)


def paired_answers(base: list[Item], tuned: list[Item], *, seed: int = 0) -> tuple[float, float, float, float, float]:
    """Return the mean reward of a model's answers before and after, the change, and its 95 % interval from a percentile
    bootstrap over questions."""
    before, after = (np.array([item.rewards[0] for item in items]) for items in (base, tuned))
    change = float((after - before).mean())
    means = statistics.bootstrap(after - before, seed=seed)
    return float(before.mean()), float(after.mean()), change, *_interval(means, change)


class ItemsDiffer(ValueError):
    """Two item files do not hold the same questions, so their difference means nothing."""


def _asked(item: Item) -> tuple[object, ...]:
    return item.prompt_sha, item.choices, item.gold, item.tokens, item.size_bytes, item.reference


def common(before: list[Item], after: list[Item]) -> tuple[list[Item], list[Item]]:
    """Return the items of two models that are the same question, asked alike, in the order of the first."""
    others = {item.item: item for item in after}
    kept = [item for item in before if item.item in others and _asked(item) == _asked(others[item.item])]
    return kept, [others[item.item] for item in kept]


def compare_items(
    run: str, benchmark: str, base: list[Item], tuned: list[Item], *, looks: tuple[int, ...] = ()
) -> list[Comparison]:
    """Compare two models on the same items: the whole benchmark first, then each family. `looks` as in Joined.

    Raises ItemsDiffer when the questions, or what was asked of them, are not the same, Unreadable where an answer is gone.
    """
    before = {item.item: item for item in base}
    after = {item.item: item for item in tuned}
    if before.keys() != after.keys() or any(_asked(before[k]) != _asked(after[k]) for k in before):
        raise ItemsDiffer(f"{benchmark}: base and tuned were not asked the same questions")
    families: dict[str, list[str]] = defaultdict(list)
    for key, item in before.items():
        families[item.family].append(key)
    if not families.keys() <= {SEEN, UNSEEN} or families.keys() == {UNSEEN}:
        # rows learned by heart and rows never met say different things: no sum of the two
        families.pop(ALL, None)
        families = {ALL: list(before), **(families if len(families) > 1 else {})}
    if benchmark == GAP:  # without both labels there is no gap
        families = {f: keys for f, keys in families.items() if len({before[k].gold for k in keys}) == 2}
    try:
        return [
            _compare(run, benchmark, family, [before[k] for k in keys], [after[k] for k in keys], looks)
            for family, keys in families.items()
            if keys
        ]
    except (LookupError, ArithmeticError, TypeError) as error:
        raise Unreadable(f"{benchmark}: an item lacks what it was asked for") from error


def _compare(
    run: str, benchmark: str, family: str, base: list[Item], tuned: list[Item], looks: tuple[int, ...]
) -> Comparison:
    n, figure = len(base), benchmark.rpartition(":")[2]
    paired = {
        GAP: paired_gap, MARGIN: paired_margin, BITS_PER_BYTE: paired_bits, BLEU: paired_bleu, ROUGE_L: paired_rouge,
        ANSWERS: paired_answers,
    }.get(figure)  # fmt: skip
    if paired is None and base[0].correct is None and figure != VALID:
        paired = paired_loss
    if paired is not None:
        before, after, change, low, high = paired(base, tuned)
        low, high = _known(n, low, high)
        return Comparison(
            run=run, benchmark=benchmark, family=family, n=n, base=before, tuned=after, change=change, low=low,
            high=high, base_only_right=None, tuned_only_right=None,
        )  # fmt: skip
    right = [[bool(i.valid if figure == VALID else i.correct) for i in items] for items in (base, tuned)]
    pairs = list(zip(*right, strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    z = sequential.bound_at(looks, n) if looks and family == ALL else statistics.Z95
    change, low, high = paired_change(pairs.count((True, True)), lost, won, pairs.count((False, False)), z)
    clusters = _clusters(base)
    if clusters is not None and len(set(clusters)) > 1:
        # Items of one passage err together: the wider of the two intervals.
        moved = np.array(right[1], dtype=float) - np.array(right[0], dtype=float)
        ends = np.quantile(statistics.bootstrap(moved, None, clusters), [0.025, 0.975])
        ends = change + (ends - change) * z / statistics.Z95
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    low, high = _known(n, low, high)
    return Comparison(
        run=run, benchmark=benchmark, family=family, n=n, base=sum(right[0]) / n, tuned=sum(right[1]) / n,
        change=change, low=low, high=high, base_only_right=lost, tuned_only_right=won,
        looks=looks if family == ALL else (),
    )  # fmt: skip


def _known(n: int, low: float, high: float) -> tuple[float, float]:
    """Return the ends of an interval, none where there are too few questions for any."""
    return (low, high) if n >= statistics.LEAST_QUESTIONS else (-math.inf, math.inf)


def _figures(benchmark: str, items: list[Item]) -> list[str]:
    """Return the further figures that the items of a benchmark give."""
    found = [REWARD] if benchmark == REWARD else []
    first = items[0]
    if first.size_bytes is not None and first.loglikelihoods:
        found.append(BITS_PER_BYTE)
    if all(item.bleu for item in items):
        found.append(BLEU)
    if all(item.rouge_l is not None for item in items):
        found.append(ROUGE_L)
    if all(item.valid is not None for item in items):
        found.append(VALID)
    return found


def compare_all(
    run: str, benchmark: str, base: list[Item], tuned: list[Item], *, looks: tuple[int, ...] = ()
) -> list[Comparison]:
    """Return every line that the items of one benchmark give: its own first, then its further figures, as
    `general-text:bits-per-byte`. Raises ItemsDiffer as compare_items does."""
    if not base:
        return []
    first = base[0]
    own = first.correct is not None or bool(first.loglikelihoods) or benchmark == ANSWERS
    rows = compare_items(run, benchmark, base, tuned, looks=looks) if own else []
    for figure in _figures(benchmark, base):
        if figure == REWARD:
            rows += compare_items(run, MARGIN, base, tuned)
            continue
        answered = {i.item for i in base if figure != VALID or i.valid is not None}
        rows += compare_items(
            run, f"{benchmark}:{figure}", [i for i in base if i.item in answered],
            [i for i in tuned if i.item in answered],
        )  # fmt: skip
    return rows


def compare_joined(run: str, found: Iterable[Joined]) -> list[Comparison]:
    """Return the comparison lines of what was asked. Raises ItemsDiffer as compare_items does."""
    return [row for one in found for row in compare_all(run, one.benchmark, one.base, one.tuned, looks=one.looks)]


def compare_run(run_dir: Path, model: str = "tuned") -> list[Comparison]:
    """Return the comparison lines of one run, from its items alone; with `model` those of a step on its way (at_step)."""
    rows = compare_joined(run_dir.name, joined(run_dir, model).values())
    return rows + (divergence(run_dir) if model == "tuned" else [])


def divergence(run_dir: Path) -> list[Comparison]:
    """Return KL(base || tuned) per token, as a change from 0; nothing when it was not measured."""
    path, families = run_dir / "items" / f"{KL}.jsonl", defaultdict(list)
    for item in read_items(path, KlItem) if os.path.lexists(path) else ():
        if item.tokens > 0:
            families[item.family].append(item)
    rows = []
    for family, items in families.items():
        values, sizes = np.array([i.kl_nats for i in items]), np.array([float(i.tokens) for i in items])
        mean = float(values.sum() / sizes.sum())
        low, high = _known(len(items), *_interval(statistics.bootstrap(values, sizes), mean))
        rows.append(
            Comparison(
                run=run_dir.name, benchmark=KL, family=family, n=len(items), base=0.0, tuned=mean, change=mean,
                low=low, high=high, base_only_right=None, tuned_only_right=None,
            )
        )  # fmt: skip
    return rows


def is_loss(row: Comparison) -> bool:
    """Whether the figures are plain numbers (a loss, a gap, a margin) and not shares of right answers."""
    return row.base_only_right is None


def too_few(row: Comparison) -> bool:
    """Whether so few questions were asked that nothing can be said."""
    return row.n < statistics.LEAST_QUESTIONS


def beyond_noise(row: Comparison) -> bool:
    """Whether the 95 % interval of the change leaves out 0."""
    return row.low > 0 or row.high < 0

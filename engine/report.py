"""What a run gained and what it lost: paired differences on the same items, with honest intervals. Pure arithmetic.

compare_* turn items into lines of figures, judge() says what they mean, point() and frontier() weigh runs against each
other. The formulas are in statistics.py. The items of a run lie in runs/<id>/items/<base|tuned>-<benchmark>.jsonl, one
line per question, with the model's choice and log-likelihoods, so that anyone can recompute every figure.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from engine import statistics
from engine.words import t

ALL = "all"  # the family that stands for the whole benchmark
SEEN, UNSEEN = "seen rows", "unseen rows"
# Fewer matched answers than this say less than the loss does.
LEAST_EXACT = 20
KL = "kl-to-base"
# A change of the loss that matters, in nats per token: what a point is to an accuracy (0.02: 2 % more perplexity).
MARGIN_NATS = 0.02
# Figures that come out of the same items as another benchmark's: its name, then one of these.
BITS_PER_BYTE, BLEU, ROUGE_L, VALID = "bits-per-byte", "bleu", "rouge-l", "valid"
# Marked answers have no right or wrong each; what is compared is a gap. A reward model's items also give its margin.
GAP, REWARD, MARGIN = "new-task-gap", "new-task-reward", "new-task-margin"
# PPO: what the reward model gives the answers to held-out questions.
ANSWERS = "new-task-answers"


class Item(msgspec.Struct, kw_only=True):
    """One question and what a model made of it.

    `prompt` is the question as a person reads it. With choices: `loglikelihoods` (nats) of each, `choice` the
    likeliest, `gold` the right one. With a text to be matched: `text` is what the model wrote. For a loss: one
    log-likelihood over `tokens` target tokens. For a marked answer: its log-likelihood, `choices` good and bad, `gold`
    what a person called it. For a reward model: `rewards` of each choice; for a judged answer: its `text` and
    reward. For running text: one log-likelihood over
    `tokens` tokens and `size_bytes` bytes of UTF-8. For a text to be compared with a `reference`: `bleu` holds
    sacrebleu's statistics (statistics.bleu) and `rouge_l` its F-measure; `valid` says whether it has the form asked
    for. Items of one `cluster` share a passage.
    """

    item: str
    family: str
    prompt_sha: str
    prompt: str | None = None
    choices: list[str] = []
    gold: int | None = None
    loglikelihoods: list[float] = []
    choice: int | None = None
    correct: bool | None = None
    tokens: int | None = None
    text: str | None = None
    rewards: list[float] = []
    size_bytes: int | None = None
    reference: str | None = None
    bleu: list[int] = []
    rouge_l: float | None = None
    valid: bool | None = None
    cluster: str | None = None


class Comparison(msgspec.Struct, kw_only=True):
    """One line of a comparison. Accuracies are shares of 1; a loss is in nats per target token (lower is better), a gap
    in nats per answer, a margin and the reward of answers in the reward model's own unit (higher is better), BLEU 0 to
    100, ROUGE-L 0 to 1.

    `low` and `high` bound the change at 95 %. `base_only_right` counts items that only the base got right (lost),
    `tuned_only_right` those that only the tuned model got right (learned); both null where no item is right or wrong.
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


def read_items(path: Path) -> list[Item]:
    """Read one items file."""
    decoder = msgspec.json.Decoder(Item)
    return [decoder.decode(line) for line in path.read_bytes().splitlines() if line]


def write_items(path: Path, items: list[Item]) -> None:
    """Write one items file, one item a line."""
    from engine.workspace import write_atomically

    write_atomically(path, b"".join(msgspec.json.encode(item) + b"\n" for item in items))


def benchmarks_of(run_dir: Path, model: str = "tuned") -> list[str]:
    """Return the benchmarks a run has items of, both before and after."""
    start = f"{model}-"
    names = [p.name.removeprefix(start).removesuffix(".jsonl") for p in (run_dir / "items").glob(f"{start}*.jsonl")]
    return sorted(n for n in names if (run_dir / "items" / f"base-{n}.jsonl").is_file())


def paired_change(both: int, base_only: int, tuned_only: int, neither: int) -> tuple[float, float, float]:
    """Return the change in accuracy on the same items and its 95 % interval.

    The interval is Bonett and Price's adjusted Wald interval for paired proportions (Psychological Methods 17, 2012):
    one is added to each kind of disagreement, so that no disagreement at all does not claim certainty.
    """
    n = both + base_only + tuned_only + neither
    lost, won = (base_only + 1) / (n + 2), (tuned_only + 1) / (n + 2)
    centre = won - lost
    half = 1.959964 * math.sqrt(max(0.0, (won + lost - centre**2) / (n + 2)))
    change = (tuned_only - base_only) / n
    return change, max(-1.0, min(centre - half, change)), min(1.0, max(centre + half, change))


def mcnemar(base_only: int, tuned_only: int) -> float:
    """Return the exact two-sided McNemar p-value: how often chance alone would split the disagreements so unevenly."""
    n, k = base_only + tuned_only, min(base_only, tuned_only)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


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


def compare_items(run: str, benchmark: str, base: list[Item], tuned: list[Item]) -> list[Comparison]:
    """Compare two models on the same items: the whole benchmark first, then each family.

    Raises ItemsDiffer when the questions, or what was asked of them, are not the same.
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
    return [
        _compare(run, benchmark, family, [before[k] for k in keys], [after[k] for k in keys])
        for family, keys in families.items()
        if keys
    ]


def _compare(run: str, benchmark: str, family: str, base: list[Item], tuned: list[Item]) -> Comparison:
    n, figure = len(base), benchmark.rpartition(":")[2]
    paired = {
        GAP: paired_gap, MARGIN: paired_margin, BITS_PER_BYTE: paired_bits, BLEU: paired_bleu, ROUGE_L: paired_rouge,
        ANSWERS: paired_answers,
    }.get(figure)  # fmt: skip
    if paired is None and base[0].correct is None and figure != VALID:
        paired = paired_loss
    if paired is not None:
        before, after, change, low, high = paired(base, tuned)
        return Comparison(
            run=run, benchmark=benchmark, family=family, n=n, base=before, tuned=after, change=change, low=low,
            high=high, base_only_right=None, tuned_only_right=None,
        )  # fmt: skip
    right = [[bool(i.valid if figure == VALID else i.correct) for i in items] for items in (base, tuned)]
    pairs = list(zip(*right, strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    change, low, high = paired_change(pairs.count((True, True)), lost, won, pairs.count((False, False)))
    clusters = _clusters(base)
    if clusters is not None and len(set(clusters)) > 1:
        # Items of one passage err together: the wider of the two intervals.
        moved = np.array(right[1], dtype=float) - np.array(right[0], dtype=float)
        ends = np.quantile(statistics.bootstrap(moved, None, clusters), [0.025, 0.975])
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return Comparison(
        run=run, benchmark=benchmark, family=family, n=n, base=sum(right[0]) / n, tuned=sum(right[1]) / n,
        change=change, low=low, high=high, base_only_right=lost, tuned_only_right=won,
    )  # fmt: skip


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


def compare_all(run: str, benchmark: str, base: list[Item], tuned: list[Item]) -> list[Comparison]:
    """Return every line that the items of one benchmark give: its own first, then its further figures, as
    `general-text:bits-per-byte`. Raises ItemsDiffer as compare_items does."""
    if not base:
        return []
    first = base[0]
    own = first.correct is not None or bool(first.loglikelihoods) or benchmark == ANSWERS
    rows = compare_items(run, benchmark, base, tuned) if own else []
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


def compare_run(run_dir: Path, model: str = "tuned") -> list[Comparison]:
    """Return the comparison lines of one run, from its items alone; with `model` those of a step on its way (at_step)."""
    rows = []
    for benchmark in benchmarks_of(run_dir, model):
        base = read_items(run_dir / "items" / f"base-{benchmark}.jsonl")
        tuned = read_items(run_dir / "items" / f"{model}-{benchmark}.jsonl")
        rows += compare_all(run_dir.name, benchmark, base, tuned)
    return rows + (_kl_rows(run_dir) if model == "tuned" else [])


def at_step(step: int) -> str:
    """Return what the model is called in items and events as it was after a step."""
    return f"at-{step}"


def step_of(name: str) -> int | None:
    """Return the step of an items file that was scored on the way, None for any other."""
    found = re.match(r"at-(\d+)-", name)
    return int(found[1]) if found else None


def way_points(steps: int, points: int) -> set[int]:
    """Return the steps after which a run is scored on its way: evenly spread, its end left out, which is scored anyway."""
    return {round(steps * n / (points + 1)) for n in range(1, points + 1)} - {0, steps}


def steps_scored(run_dir: Path) -> list[int]:
    """Return the steps of a run that were scored on its way, in order."""
    found = {step_of(path.name) for path in (run_dir / "items").glob("at-*-*.jsonl")}
    return sorted(step for step in found if step is not None)


class KlItem(msgspec.Struct, kw_only=True):
    """One line of items/kl-to-base.jsonl: how far the tuned model's next-token distribution has moved from the base's
    on one answer, KL(base || tuned) in nats summed over `tokens` tokens."""

    item: str
    family: str
    kl_nats: float
    tokens: int


def _kl_rows(run_dir: Path) -> list[Comparison]:
    """Return KL(base || tuned) per token, as a change from 0; nothing when it was not measured."""
    try:
        lines = (run_dir / "items" / f"{KL}.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    decoder, families = msgspec.json.Decoder(KlItem), defaultdict(list)
    for line in lines:
        item = decoder.decode(line)
        if item.tokens > 0:
            families[item.family].append(item)
    rows = []
    for family, items in families.items():
        values, sizes = np.array([i.kl_nats for i in items]), np.array([float(i.tokens) for i in items])
        mean = float(values.sum() / sizes.sum())
        low, high = _interval(statistics.bootstrap(values, sizes), mean)
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


def beyond_noise(row: Comparison) -> bool:
    """Whether the 95 % interval of the change leaves out 0."""
    return row.low > 0 or row.high < 0


def more_replay(share: float) -> float:
    """Return the next replay share to try: 10 % after none, then twice as much, at most half."""
    return min(0.5, max(0.1, 2 * share))


def _whole(rows: list[Comparison], benchmark: str, family: str = ALL) -> Comparison | None:
    return next((row for row in rows if row.benchmark == benchmark and row.family == family), None)


def _unseen(rows: list[Comparison], benchmark: str, least: int) -> Comparison | None:
    row = _whole(rows, benchmark, UNSEEN) or _whole(rows, benchmark)
    return row if row is not None and row.n >= least else None


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def headline(rows: list[Comparison]) -> str:
    """Return what a person wants to know first: what it learned, what it lost, and whether that is beyond noise."""
    return f"{_learned(rows)} {_lost(rows)}".strip()


def _learned(rows: list[Comparison]) -> str:
    for benchmark, say in (
        ("new-task-preference", _preferred),
        (GAP, _told_apart),
        (REWARD, _judged),
        (ANSWERS, _rewarded),
    ):
        found = _unseen(rows, benchmark, 1)
        if found is not None:
            return say(found)
    row = _whole(rows, "new-task-choices") or _unseen(rows, "new-task-exact", LEAST_EXACT)
    if row is not None:
        figures = {"base": _percent(row.base), "tuned": _percent(row.tuned), "n": row.n}
        if row.low > 0:
            return t("It learned the new task: {base} % → {tuned} % right on {n} held-out questions.", **figures)
        if row.high < 0:
            return t("It got worse at the new task: {base} % → {tuned} % right on {n} held-out questions.", **figures)
        return t(
            "No learning can be told from noise on the new task: {base} % → {tuned} % right on {n} questions.",
            **figures,
        )
    row = _unseen(rows, "new-task-loss", 1)
    if row is None:
        return t("The new task was not scored.")
    figures = {"base": f"{row.base:.2f}", "tuned": f"{row.tuned:.2f}", "n": row.n}
    if row.high < 0:
        return t("It learned from the rows: the loss on {n} held-out rows fell from {base} to {tuned}.", **figures)
    if row.low > 0:
        return t("It did not carry over: the loss on {n} held-out rows rose from {base} to {tuned}.", **figures)
    return t(
        "No learning can be told from noise: the loss on {n} held-out rows went from {base} to {tuned}.", **figures
    )


def _preferred(row: Comparison) -> str:
    figures = {"base": _percent(row.base), "tuned": _percent(row.tuned), "n": row.n}
    if row.low > 0:
        return t(
            "It learned the preference: the better answer is the likelier one in {base} % → {tuned} % of {n} held-out "
            "pairs.",
            **figures,
        )
    if row.high < 0:
        return t(
            "It moved away from the preference: the better answer is the likelier one in {base} % → {tuned} % of {n} "
            "held-out pairs.",
            **figures,
        )
    return t(
        "No learning can be told from noise: the better answer is the likelier one in {base} % → {tuned} % of {n} "
        "pairs.",
        **figures,
    )


def _told_apart(row: Comparison) -> str:
    figures = {"nats": f"{abs(row.change):.1f}", "n": row.n}
    if row.low > 0:
        return t(
            "It learned to tell good from bad: on {n} held-out answers, good ones gained {nats} nats over bad ones.",
            **figures,
        )
    if row.high < 0:
        return t(
            "It learned the wrong way round: on {n} held-out answers, good ones lost {nats} nats against bad ones.",
            **figures,
        )
    return t(
        "No learning can be told from noise: on {n} answers, good and bad ones moved {nats} nats apart or together.",
        **figures,
    )


def _judged(row: Comparison) -> str:
    figures = {"base": _percent(row.base), "tuned": _percent(row.tuned), "n": row.n}
    if row.low > 0:
        return t(
            "It learned to judge: {base} % → {tuned} % of {n} held-out pairs as the person did, where chance is 50 %.",
            **figures,
        )
    if row.high < 0:
        return t(
            "It judges worse than before: {base} % → {tuned} % of {n} held-out pairs as the person did.", **figures
        )
    return t(
        "No learning can be told from noise: it judges {base} % → {tuned} % of {n} pairs as the person did.", **figures
    )


def _rewarded(row: Comparison) -> str:
    figures = {"base": f"{row.base:+.2f}", "tuned": f"{row.tuned:+.2f}", "n": row.n}
    if row.low > 0:
        return t(
            "Its answers please the reward model more: {base} → {tuned} on average over {n} held-out questions.",
            **figures,
        )
    if row.high < 0:
        return t(
            "Its answers please the reward model less: {base} → {tuned} on average over {n} held-out questions.",
            **figures,
        )
    return t(
        "No learning can be told from noise: the reward of its answers went {base} → {tuned} over {n} questions.",
        **figures,
    )


def _lost(rows: list[Comparison]) -> str:
    row = _whole(rows, "toy-world")
    if row is None:
        return _lost_in_general(rows)
    figures = {
        "base": _percent(row.base),
        "tuned": _percent(row.tuned),
        "points": f"{abs(100 * row.change):.1f}",
        "worst": f"{max(0.0, -100 * row.low):.1f}",
    }
    if row.high < 0:
        return t(
            "It lost toy-world knowledge: {base} % → {tuned} %, {points} points less, which is beyond noise.", **figures
        )
    if row.low > 0:
        return t("Toy-world knowledge rose from {base} % to {tuned} %, beyond noise.", **figures)
    return t(
        "No loss of toy-world knowledge can be told from noise ({base} % → {tuned} %); "
        "it may have lost up to {worst} points.",
        **figures,
    )


def _lost_in_general(rows: list[Comparison]) -> str:
    """Say what was lost over all general benchmarks: the worst real drop, or what could have been lost unseen."""
    judged = judge(rows)
    real = [j for j in judged if j.verdict == "real drop"]
    if real:
        return min(real, key=lambda j: j.row.change if not is_loss(j.row) else -math.inf).sentence
    told = [j for j in judged if j.verdict != "at chance" and not is_loss(j.row)] or judged
    return max(told, key=lambda j: j.could_have_lost).sentence if told else ""


# --- verdicts ---------------------------------------------------------------------------------------------------------

Verdict = Literal["real drop", "no detectable change", "equivalent", "real gain", "at chance"]


class Judged(msgspec.Struct, kw_only=True):
    """What one general benchmark says about forgetting. Shares of 1, or nats per token and the like for losses.

    `could_have_lost` is the bad end of the 95 % interval, 0 or more. `detectable` is the smallest drop that the set
    would have shown in 85 of 100 cases, by the exact power of the rule used here; None where it cannot be said.
    `retention` is the accuracy above chance that was kept, 1 for all of it, with the interval of the change; the base's
    own score is taken as it is. `p_holm` is the p-value corrected for the number of benchmarks.
    """

    row: Comparison
    title: str
    verdict: Verdict
    sentence: str
    could_have_lost: float
    chance: float | None = None
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    retention: float | None = None
    retention_low: float | None = None
    retention_high: float | None = None


def chance_of(items: list[Item]) -> float:
    """Return the accuracy of guessing: the mean of one over the number of choices; 0 for texts to be matched."""
    shares = [1 / len(item.choices) for item in items if len(item.choices) > 1]
    return sum(shares) / len(items) if items else 0.0


def chances(run_dir: Path) -> dict[str, float]:
    """Return the chance level of each benchmark of a run, from its items."""
    return {n: chance_of(read_items(run_dir / "items" / f"base-{n}.jsonl")) for n in benchmarks_of(run_dir)}


def is_general(benchmark: str) -> bool:
    """Whether a benchmark asks for what the base knew before, and not for the new task."""
    return not benchmark.startswith("new-task") and benchmark != KL


def _lower_is_better(benchmark: str) -> bool:
    return benchmark.rpartition(":")[2] not in (GAP, MARGIN, BLEU, ROUGE_L)


def perplexity(nats_per_token: float) -> float:
    """Return the perplexity of a loss; between models it means something only where both split text alike."""
    return math.exp(min(700.0, nats_per_token))


def unit(row: Comparison) -> str:
    """Return what the figures of a line are counted in: "%" for shares of right answers (times 100), else a unit."""
    figure = row.benchmark.rpartition(":")[2]
    units = {GAP: "nats", MARGIN: "", ANSWERS: "", BLEU: "", ROUGE_L: "", BITS_PER_BYTE: "bits/byte"}
    return units.get(figure, "nats/token") if is_loss(row) else "%"


def title(benchmark: str, titles: Mapping[str, str] | None = None) -> str:
    """Return the name of a benchmark as a person reads it; `titles` adds a person's own."""
    from engine.benchmarks import library

    name, _, figure = benchmark.partition(":")
    words = {
        BITS_PER_BYTE: t("bits per byte"), BLEU: "BLEU", ROUGE_L: "ROUGE-L", VALID: t("answers of the right form"),
    }  # fmt: skip
    shown = t("toy-world knowledge") if name == "toy-world" else (titles or {}).get(name) or library.title(name)
    return t("{name}, {figure}", name=shown, figure=words[figure]) if figure in words else shown


def judge(
    rows: Sequence[Comparison],
    chance: Mapping[str, float] | None = None,
    *,
    margin: float = statistics.MARGIN,
    titles: Mapping[str, str] | None = None,
) -> list[Judged]:
    """Say for each general benchmark of one run whether it shows a real drop, no detectable change, or no change at all.

    A real drop: the 95 % interval lies below 0, the exact McNemar test agrees after Holm's correction over the
    benchmarks, and the drop is at least `margin` (0.02 nats per token for losses, whose p-value is the normal one of the
    bootstrap). Equivalent: the 90 % interval lies inside the margin (two one-sided tests; Schuirmann 1987). A base that
    is not better than guessing (exact binomial test) cannot show forgetting. `chance` and `titles` by benchmark
    (chances()).
    """
    chance = chance or {}
    general = [row for row in rows if is_general(row.benchmark) and row.family == ALL]
    known = [row for row in general if not _at_chance(row, chance.get(row.benchmark))]
    raw = [_p_value(row) for row in known]
    adjusted = dict(zip((row.benchmark for row in known), statistics.holm(raw), strict=True))
    several = len(known)
    return [
        _judge(row, title(n, titles), chance.get(n), adjusted.get(n), several, margin)
        for row in general
        for n in [row.benchmark]
    ]


def _at_chance(row: Comparison, chance: float | None) -> bool:
    """Whether the base does no better than guessing; where nothing can be guessed, whether it has nothing right."""
    if is_loss(row):
        return False
    right = round(row.base * row.n)
    return right == 0 or (
        chance is not None and chance > 0 and statistics.above_chance(right, row.n, chance) > statistics.ALPHA
    )


def _p_value(row: Comparison) -> float:
    if row.base_only_right is not None and row.tuned_only_right is not None:
        return mcnemar(row.base_only_right, row.tuned_only_right)
    spread = (row.high - row.low) / (2 * statistics.Z95)
    return math.erfc(abs(row.change) / spread / math.sqrt(2)) if spread > 0 else float(row.change == 0)


@lru_cache(maxsize=512)
def _detectable(n: int, noise: float, most: float, margin: float, alpha: float) -> float | None:
    return statistics.detectable_drop(n, noise, most=most, margin=margin, alpha=alpha)


def _judge(
    row: Comparison, name: str, chance: float | None, p_holm: float | None, several: int, margin: float
) -> Judged:
    p = _p_value(row)
    if p_holm is None:
        figures = {"name": name, "base": _percent(row.base), "chance": _percent(chance or 0.0), "n": row.n}
        sentence = t(
            "{name}: this base does not know this benchmark ({base} % of {n} right, {chance} % by guessing); "
            "it cannot show forgetting.",
            **figures,
        )
        return Judged(row=row, title=name, verdict="at chance", sentence=sentence, could_have_lost=0.0, chance=chance)
    if is_loss(row):
        return _judge_loss(row, name, p, p_holm)
    lost, won = row.base_only_right or 0, row.tuned_only_right or 0
    # What flips both ways is noise; one is added to each side as in the interval.
    noise = (min(lost, won) + 1) / (row.n + 2)
    detectable = _detectable(row.n, round(noise, 4), row.base, margin, statistics.ALPHA / max(1, several))
    low90, high90 = (float(x) for x in statistics.bonett_price(np.array(lost), np.array(won), row.n, statistics.Z90))
    verdict: Verdict = "no detectable change"
    if row.high < 0 and p_holm <= statistics.ALPHA and -row.change >= margin - 1e-12:
        verdict = "real drop"
    elif row.low > 0 and p_holm <= statistics.ALPHA:
        verdict = "real gain"
    elif -margin < low90 and high90 < margin:
        verdict = "equivalent"
    worst = min(row.base, max(0.0, -row.low))  # what it did not know it cannot lose
    figures = {
        "name": name, "n": row.n, "points": f"{100 * abs(row.change):.1f}", "low": f"{100 * row.low:+.1f}",
        "high": f"{100 * row.high:+.1f}", "worst": f"{100 * worst:.1f}", "margin": f"{100 * margin:g}",
        "least": f"{100 * (detectable or 0):.1f}",
    }  # fmt: skip
    if verdict == "real drop":
        sentence = t("{name}: a real drop of {points} points, between {low} and {high}.", **figures)
    elif verdict == "real gain":
        sentence = t("{name}: {points} points better, between {low} and {high}.", **figures)
    elif verdict == "equivalent":
        sentence = t("{name}: unchanged within {margin} points.", **figures)
    elif detectable is None:
        sentence = t(
            "{name}: it may have lost up to {worst} points; no detectable change, and {n} questions could not have "
            "shown any drop.",
            **figures,
        )
    else:
        sentence = t(
            "{name}: it may have lost up to {worst} points; no detectable change, and {n} questions could have missed "
            "one under {least} points.",
            **figures,
        )
    kept = [None, None, None]
    if chance is not None and row.base > chance:
        kept = [1 + change / (row.base - chance) for change in (row.change, row.low, row.high)]
    return Judged(
        row=row, title=name, verdict=verdict, sentence=sentence, could_have_lost=worst, chance=chance, p=p,
        p_holm=p_holm, detectable=detectable, retention=kept[0], retention_low=kept[1], retention_high=kept[2],
    )  # fmt: skip


def _judge_loss(row: Comparison, name: str, p: float, p_holm: float) -> Judged:
    """Judge a figure without right and wrong; a rise of a loss is a loss, a fall of BLEU too."""
    sign = 1 if _lower_is_better(row.benchmark) else -1
    figure = row.benchmark.rpartition(":")[2]
    # bits per byte are nats over bytes and log 2; a point of BLEU and of ROUGE-L are like one of accuracy
    margin = {BLEU: 1.0, ROUGE_L: 0.01, BITS_PER_BYTE: MARGIN_NATS}.get(figure, MARGIN_NATS)
    worse, ends = sign * row.change, sorted((sign * row.low, sign * row.high))
    half = (ends[1] - ends[0]) / 2
    inner = half * (1 - statistics.Z90 / statistics.Z95)  # a 90 % interval out of one of 95 %, as of a normal
    verdict: Verdict = "no detectable change"
    if ends[0] > 0 and p_holm <= statistics.ALPHA and worse >= margin:
        verdict = "real drop"
    elif ends[1] < 0 and p_holm <= statistics.ALPHA:
        verdict = "real gain"
    elif -margin < ends[0] + inner and ends[1] - inner < margin:
        verdict = "equivalent"
    worst = max(0.0, ends[1])
    detectable = max(margin, half / statistics.Z95 * (statistics.Z95 + 1.0364)) if half > 0 else None  # power 85 %
    figures = {
        "name": name, "change": f"{abs(row.change):.3g}", "low": f"{row.low:+.3g}", "high": f"{row.high:+.3g}",
        "worst": f"{worst:.3g}", "margin": f"{margin:g}", "least": f"{detectable or 0:.3g}", "base": f"{row.base:.3g}",
        "tuned": f"{row.tuned:.3g}",
    }  # fmt: skip
    sentence = {
        "real drop": t("{name}: worse by {change} ({base} → {tuned}), between {low} and {high}.", **figures),
        "real gain": t("{name}: better by {change} ({base} → {tuned}), between {low} and {high}.", **figures),
        "equivalent": t("{name}: unchanged within {margin} ({base} → {tuned}).", **figures),
    }.get(
        verdict,
        t(
            "{name}: it may have become worse by up to {worst}; no detectable change ({base} → {tuned}), and less than "
            "{least} could have been missed.",
            **figures,
        ),
    )
    return Judged(
        row=row, title=name, verdict=verdict, sentence=sentence, could_have_lost=worst, p=p, p_holm=p_holm,
        detectable=detectable,
    )  # fmt: skip


# --- runs against each other ------------------------------------------------------------------------------------------


class Point(msgspec.Struct, kw_only=True):
    """One run, or one recipe over several seeds, in the trade of gain against retention.

    `gain` is the change on the new task by `measure` (a benchmark; a loss counts as gained where it fell), `new_task`
    the tuned model's own score there. `change` is the mean change in accuracy over the general benchmarks that the base
    knows, `retention` the mean share kept above chance; None where nothing general was asked. Intervals are over items
    for one run and over seeds for several. `left_out` names benchmarks at chance. `step` is set for the points along one
    run, its end among them.
    """

    name: str
    runs: list[str]
    measure: str | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    new_task: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    retention: float | None = None
    retention_low: float | None = None
    retention_high: float | None = None
    left_out: list[str] = []
    on_frontier: bool = False
    step: int | None = None


_MEASURES = ("new-task-choices", "new-task-exact", "new-task-preference", REWARD, GAP, "new-task-loss")


def new_task(rows: Sequence[Comparison]) -> Comparison | None:
    """Return the line that says how much of the new task was learned, on rows that were held out where there are any."""
    for benchmark in _MEASURES:
        row = _unseen(list(rows), benchmark, LEAST_EXACT if benchmark == "new-task-exact" else 1)
        if row is not None:
            return row
    return None


def point(name: str, rows: Sequence[Comparison], chance: Mapping[str, float]) -> Point:
    """Return where one run stands, from its own lines."""
    found = Point(name=name, runs=sorted({row.run for row in rows}))
    gained = new_task(rows)
    if gained is not None:
        loss = gained.benchmark == "new-task-loss"
        found.measure, found.new_task = gained.benchmark, gained.tuned
        ends = (-gained.high, -gained.low) if loss else (gained.low, gained.high)
        found.gain, (found.gain_low, found.gain_high) = (-gained.change if loss else gained.change), ends
    judged = judge(rows, chance)
    found.left_out = [j.row.benchmark for j in judged if j.verdict == "at chance"]
    told = [j for j in judged if j.retention is not None]
    if told:
        # Different benchmarks share no items, so that their errors are independent and add up as squares.
        found.change, found.change_low, found.change_high = _mean([(j.row.change, j.row.low, j.row.high) for j in told])
        found.retention, found.retention_low, found.retention_high = _mean(
            [(j.retention or 0.0, j.retention_low or 0.0, j.retention_high or 0.0) for j in told]
        )
    return found


def _mean(figures: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    k = len(figures)
    mean = sum(value for value, _, _ in figures) / k
    below = math.sqrt(sum((value - low) ** 2 for value, low, _ in figures)) / k
    above = math.sqrt(sum((high - value) ** 2 for value, _, high in figures)) / k
    return mean, mean - below, mean + above


def over_seeds(name: str, points: Sequence[Point]) -> Point:
    """Return one point for a recipe that was run with several seeds: means, with intervals over the seeds. Noise of the
    items says nothing about the luck of a training, so that seeds are the unit; one seed keeps its own intervals."""
    if len(points) == 1:
        only = points[0]
        return msgspec.structs.replace(only, name=name)
    found = Point(name=name, runs=[run for one in points for run in one.runs])
    measures = {one.measure for one in points}
    if len(measures) == 1:
        found.measure = points[0].measure
        found.gain, found.gain_low, found.gain_high = _over(one.gain for one in points)
        found.new_task = _over(one.new_task for one in points)[0]
    found.change, found.change_low, found.change_high = _over(one.change for one in points)
    found.retention, found.retention_low, found.retention_high = _over(one.retention for one in points)
    found.left_out = sorted({benchmark for one in points for benchmark in one.left_out})
    return found


def _over(values: Iterable[float | None]) -> tuple[float | None, float | None, float | None]:
    known = list(values)
    if not known or any(value is None for value in known):
        return None, None, None
    return statistics.t_interval([value for value in known if value is not None])


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points, marked where no other has at least as much gain and as much retention, and more of one. Points
    without both, or whose gain is measured otherwise than most, are on no frontier."""
    names = [one.measure for one in points if one.gain is not None and one.retention is not None]
    usual = max(dict.fromkeys(names), key=names.count) if names else None

    def counts(one: Point) -> bool:
        return one.gain is not None and one.retention is not None and one.measure == usual

    def beats(other: Point, one: Point) -> bool:
        a, b = (other.gain or 0.0, other.retention or 0.0), (one.gain or 0.0, one.retention or 0.0)
        return a != b and a[0] >= b[0] and a[1] >= b[1]

    rivals = [one for one in points if counts(one)]
    return [
        msgspec.structs.replace(one, on_frontier=counts(one) and not any(beats(other, one) for other in rivals))
        for one in points
    ]


def pick(points: Sequence[Point], tolerance: float) -> Point | None:
    """Return the point to take when at most `tolerance` (0.01: one point) may be lost: by the bad end of its interval
    it stays within that, and it gains the most. None when no point is that safe."""
    safe = [one for one in points if one.gain is not None and -(_least(one)) <= tolerance + 1e-12]
    return max(safe, key=lambda one: (one.gain or 0.0, one.change or 0.0)) if safe else None


def _least(one: Point) -> float:
    return -math.inf if one.change_low is None else one.change_low


def weighted_score(one: Point, weight: float) -> float | None:
    """Return the guide's combined score (its rule M8): `weight` times the new task's score plus the rest times the
    retention. None when either is unknown, or when the new task is measured by a loss, which no weight can turn into
    points. Raises ValueError for a weight outside 0 to 1."""
    if not 0 <= weight <= 1:
        raise ValueError("a weight lies between 0 and 1")
    if one.new_task is None or one.retention is None or one.measure in (GAP, "new-task-loss", None):
        return None
    return weight * one.new_task + (1 - weight) * one.retention

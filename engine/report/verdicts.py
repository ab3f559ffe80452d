"""What a line of figures means: a real drop, no detectable change, no change at all, or a base that cannot show any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from engine.report import sequential, statistics
from engine.report.items import (
    ALL,
    ANSWERS,
    BITS_PER_BYTE,
    BLEU,
    GAP,
    KL,
    MARGIN,
    ROUGE_L,
    VALID,
    Item,
)
from engine.report.paired import Comparison, beyond_noise, is_loss, too_few
from engine.words import t

# A change of the loss that matters, in nats per token: what a point is to an accuracy (0.02: 2 % of perplexity; half of
# what a Llama of 3B lost on Wikipedia by learning mathematics, 0.041 with OFT, in peft's method comparison).
MARGIN_NATS = 0.02
# The changes that matter of other figures. A point of BLEU and of ROUGE-L are like one of accuracy; bits per byte are those
# nats at four bytes a token; 0.1 nats make an answer a tenth likelier; 0.04 of a reward make an answer be preferred in 51
# instead of 50 of 100 cases (Bradley and Terry: the logistic function of the difference).
MARGINS = {BLEU: 1.0, ROUGE_L: 0.01, BITS_PER_BYTE: 0.007, GAP: 0.1, MARGIN: 0.04, ANSWERS: 0.04}


def percent(value: float) -> str:
    return f"{100 * value:.0f}"


def apart(before: float, after: float, form: str = ".0f", scale: float = 1) -> tuple[str, str]:
    """Return two figures as texts in a form such as "+.2f", with as many digits more as tell them apart: what is said to
    have changed must not read alike."""
    sign, digits = form.split(".")[0], int(form.split(".")[1][:-1])
    texts = ("", "")
    for more in range(4):
        texts = tuple(format(scale * value, f"{sign}.{digits + more}f") for value in (before, after))
        if texts[0] != texts[1]:
            return texts[0], texts[1]
    return format(scale * before, form), format(scale * after, form)


Verdict = Literal[
    "real drop", "no detectable change", "equivalent", "real gain", "small change", "too few", "at chance"
]
Change = Literal["better", "worse", "small", "noise", "too few"]


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


def is_general(benchmark: str) -> bool:
    """Whether a benchmark asks for what the base knew before, and not for the new task."""
    return not benchmark.startswith("new-task") and benchmark != KL


def _lower_is_better(benchmark: str) -> bool:
    return benchmark.rpartition(":")[2] not in (GAP, MARGIN, ANSWERS, BLEU, ROUGE_L)


def matters(row: Comparison, margin: float = statistics.MARGIN) -> float:
    """Return the smallest change of a line that means anything, in its own unit; `margin` is that of accuracies."""
    return MARGINS.get(row.benchmark.rpartition(":")[2], MARGIN_NATS) if is_loss(row) else margin


def change_of(row: Comparison) -> Change:
    """Return what one line by itself says: better or worse beyond noise and by as much as matters, or neither."""
    if too_few(row):
        return "too few"
    if not beyond_noise(row):
        return "noise"
    if abs(row.change) < matters(row) - 1e-12:
        return "small"
    falls = is_loss(row) and _lower_is_better(row.benchmark)
    return "better" if (row.change < 0) == falls else "worse"


def flipped(row: Comparison) -> str:
    """Return how many questions were lost and how many won, which the change adds up and so hides (arXiv 2510.17776);
    nothing of figures without right and wrong."""
    if row.base_only_right is None or row.tuned_only_right is None:
        return ""
    return t("lost {lost}, won {won}", lost=row.base_only_right, won=row.tuned_only_right)


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
    bootstrap); a real gain likewise; less than that is a small change. Of fewer than LEAST_QUESTIONS nothing is said.
    Equivalent: the 90 % interval lies inside the margin (two one-sided tests; Schuirmann 1987). A base that
    is not clearly better than guessing (exact 95 % interval) cannot show a loss. Where it was looked several times, interval
    and test are those of sequential.py. `chance` and `titles` by benchmark (chances()).
    """
    chance = chance or {}
    general = [row for row in rows if is_general(row.benchmark) and row.family == ALL]
    known = [row for row in general if not too_few(row) and not _at_chance(row, chance.get(row.benchmark))]
    raw = [_p_value(row) for row in known]
    adjusted = dict(zip((row.benchmark for row in known), statistics.holm(raw), strict=True))
    several = len(known)
    return [
        _judge(row, title(n, titles), chance.get(n), adjusted.get(n), several, margin)
        for row in general
        for n in [row.benchmark]
    ]


def _at_chance(row: Comparison, chance: float | None) -> bool:
    """Whether the base does not clearly better than guessing: chance lies not below the 95 % interval of its share of right
    answers. Where nothing can be guessed, whether it has nothing right. Where items have different numbers of choices,
    their mean chance errs on the careful side."""
    if is_loss(row):
        return False
    right = round(row.base * row.n)
    return right == 0 or (chance is not None and chance > 0 and statistics.share_interval(right, row.n)[0] <= chance)


def looks(planned: int) -> tuple[int, ...]:
    """Return after how many of `planned` questions it is looked whether asking can end."""
    return sequential.looks(planned)


def _p_value(row: Comparison) -> float:
    if row.base_only_right is not None and row.tuned_only_right is not None:
        once = float(statistics.mcnemar(row.base_only_right, row.tuned_only_right))
        return sequential.repeated(once, row.looks, row.n) if row.looks else once
    spread = (row.high - row.low) / (2 * statistics.Z95)
    return math.erfc(abs(row.change) / spread / math.sqrt(2)) if spread > 0 else float(row.change == 0)


@lru_cache(maxsize=512)
def _detectable(n: int, noise: float, most: float, margin: float, alpha: float) -> float | None:
    return statistics.detectable_drop(n, noise, most=most, margin=margin, alpha=alpha)


def _judge(
    row: Comparison, name: str, chance: float | None, p_holm: float | None, several: int, margin: float
) -> Judged:
    if too_few(row):
        return _too_few(row, name, chance)
    p = _p_value(row)
    if p_holm is None:
        low, high = statistics.share_interval(round(row.base * row.n), row.n)
        figures = {
            "name": name, "base": percent(row.base), "chance": percent(chance or 0.0), "n": row.n, "low": percent(low),
            "high": percent(high),
        }  # fmt: skip
        sentence = t(
            "{name}: this base answers {base} % where chance is {chance} % ({n} questions, between {low} and {high} %): it "
            "cannot show a loss here.",
            **figures,
        )
        return Judged(row=row, title=name, verdict="at chance", sentence=sentence, could_have_lost=0.0, chance=chance)
    if is_loss(row):
        return _judge_loss(row, name, p, p_holm)
    lost, won = row.base_only_right or 0, row.tuned_only_right or 0
    # What flips both ways is noise; one is added to each side as in the interval.
    noise = (min(lost, won) + 1) / (row.n + 2)
    alpha, wider = statistics.ALPHA / max(1, several), 1.0
    if row.looks:
        wider = sequential.bound_at(row.looks, row.n) / statistics.Z95
        alpha = sequential.nominal(row.looks, row.n, alpha)
    detectable = _detectable(row.n, round(noise, 4), row.base, margin, alpha)
    low90, high90 = (float(x) for x in statistics.bonett_price(lost, won, row.n, wider * statistics.Z90))
    verdict: Verdict = "no detectable change"
    if row.high < 0 and p_holm <= statistics.ALPHA and -row.change >= margin - 1e-12:
        verdict = "real drop"
    elif row.low > 0 and p_holm <= statistics.ALPHA and row.change >= margin - 1e-12:
        verdict = "real gain"
    elif -margin < low90 and high90 < margin:
        verdict = "equivalent"
    elif beyond_noise(row) and abs(row.change) < margin - 1e-12:
        verdict = "small change"
    worst = min(row.base, max(0.0, -row.low))  # what it did not know it cannot lose
    sentence = _sentence(row, name, verdict, worst, margin, detectable)
    kept = [None, None, None]
    if chance is not None and row.base > chance:
        kept = [1 + change / (row.base - chance) for change in (row.change, row.low, row.high)]
    return Judged(
        row=row, title=name, verdict=verdict, sentence=sentence, could_have_lost=worst, chance=chance, p=p,
        p_holm=p_holm, detectable=detectable, retention=kept[0], retention_low=kept[1], retention_high=kept[2],
    )  # fmt: skip


def _sentence(
    row: Comparison, name: str, verdict: Verdict, worst: float, margin: float, detectable: float | None
) -> str:  # fmt: skip
    """Return in words what an accuracy says."""
    figures = {
        "name": name, "n": row.n, "points": f"{100 * abs(row.change):.1f}", "low": f"{100 * row.low:+.1f}",
        "high": f"{100 * row.high:+.1f}", "worst": f"{100 * worst:.1f}", "margin": f"{100 * margin:g}",
    }  # fmt: skip
    if verdict in ("real drop", "real gain"):
        ends = sorted((abs(row.low), abs(row.high)))  # beyond noise, so both on one side of 0
        figures |= {"low": f"{100 * ends[0]:.1f}", "high": f"{100 * ends[1]:.1f}"}
    if verdict == "real drop":
        return t("{name}: a real drop of {points} points, between {low} and {high}.", **figures)
    if verdict == "real gain":
        return t("{name}: {points} points better, between {low} and {high}.", **figures)
    if verdict == "equivalent":
        return t("{name}: unchanged within {margin} points.", **figures)
    if verdict == "small change":
        return t(
            "{name}: changed by {points} points, between {low} and {high}: beyond noise, and less than matters ({margin}).",
            **figures,
        )
    if detectable is None:
        return t(
            "{name}: it may have lost up to {worst} points; no detectable change, and {n} questions could not have "
            "shown any drop.",
            **figures,
        )
    return t("{name}: it may have lost up to {worst} points; no detectable change in {n} questions.", **figures)


def _too_few(row: Comparison, name: str, chance: float | None) -> Judged:
    figures = {"name": name, "n": row.n, "least": statistics.LEAST_QUESTIONS}
    sentence = t("{name}: too few to say: {n} questions were asked, and {least} are the least.", **figures)
    return Judged(row=row, title=name, verdict="too few", sentence=sentence, could_have_lost=0.0, chance=chance)


def _judge_loss(row: Comparison, name: str, p: float, p_holm: float) -> Judged:
    """Judge a figure without right and wrong; a rise of a loss is a loss, a fall of BLEU too."""
    sign = 1 if _lower_is_better(row.benchmark) else -1
    margin = matters(row)
    worse, ends = sign * row.change, sorted((sign * row.low, sign * row.high))
    half = (ends[1] - ends[0]) / 2
    inner = half * (1 - statistics.Z90 / statistics.Z95)  # a 90 % interval out of one of 95 %, as of a normal
    verdict: Verdict = "no detectable change"
    if ends[0] > 0 and p_holm <= statistics.ALPHA and worse >= margin:
        verdict = "real drop"
    elif ends[1] < 0 and p_holm <= statistics.ALPHA and -worse >= margin:
        verdict = "real gain"
    elif -margin < ends[0] + inner and ends[1] - inner < margin:
        verdict = "equivalent"
    elif beyond_noise(row) and abs(worse) < margin:
        verdict = "small change"
    worst = max(0.0, ends[1])
    detectable = max(margin, half / statistics.Z95 * (statistics.Z95 + 1.0364)) if half > 0 else None  # power 85 %
    base, tuned = apart(row.base, row.tuned, ".2f")
    figures = {
        "name": name, "change": f"{abs(row.change):.3g}", "low": f"{min(map(abs, ends)):.3g}",
        "high": f"{max(map(abs, ends)):.3g}", "worst": f"{worst:.3g}", "margin": f"{margin:g}", "base": base,
        "tuned": tuned,
    }  # fmt: skip
    sentence = {
        "real drop": t("{name}: worse by {change} ({base} → {tuned}), between {low} and {high}.", **figures),
        "real gain": t("{name}: better by {change} ({base} → {tuned}), between {low} and {high}.", **figures),
        "equivalent": t("{name}: unchanged within {margin} ({base} → {tuned}).", **figures),
        "small change": t(
            "{name}: changed by {change} ({base} → {tuned}): beyond noise, and less than matters ({margin}).", **figures
        ),
    }.get(
        verdict,
        t("{name}: it may have become worse by up to {worst}; no detectable change ({base} → {tuned}).", **figures),
    )
    return Judged(
        row=row, title=name, verdict=verdict, sentence=sentence, could_have_lost=worst, p=p, p_holm=p_holm,
        detectable=detectable,
    )  # fmt: skip

"""The one sentence a person wants first: what it learned, what it lost, and whether that is beyond noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.report.items import ALL, ANSWERS, GAP, REWARD, UNSEEN
from engine.report.paired import Comparison, is_loss
from engine.report.verdicts import judge, percent
from engine.words import t

# Fewer matched answers than this say less than the loss does.
LEAST_EXACT = 20


def _whole(rows: Sequence[Comparison], benchmark: str, family: str = ALL) -> Comparison | None:
    return next((row for row in rows if row.benchmark == benchmark and row.family == family), None)


def unseen(rows: Sequence[Comparison], benchmark: str, least: int) -> Comparison | None:
    row = _whole(rows, benchmark, UNSEEN) or _whole(rows, benchmark)
    return row if row is not None and row.n >= least else None


def headline(rows: Sequence[Comparison], *, moved: bool = True) -> str:
    """Return what a person wants to know first: what it learned, what it lost, and whether that is beyond noise.
    `moved` is False of a run that changed no weight: then its scores say nothing."""
    if not moved:
        return t("Nothing was learned: training changed no weight, so before and after are the same model.")
    return f"{_learned(rows)} {_lost(rows)}".strip()


def _learned(rows: Sequence[Comparison]) -> str:
    for benchmark, say in (
        ("new-task-preference", _preferred),
        (GAP, _told_apart),
        (REWARD, _judged),
        (ANSWERS, _rewarded),
    ):
        found = unseen(rows, benchmark, 1)
        if found is not None:
            return say(found)
    row = _whole(rows, "new-task-choices") or unseen(rows, "new-task-exact", LEAST_EXACT)
    if row is not None:
        figures = {"base": percent(row.base), "tuned": percent(row.tuned), "n": row.n}
        if row.low > 0:
            return t("It learned the new task: {base} % → {tuned} % right on {n} held-out questions.", **figures)
        if row.high < 0:
            return t("It got worse at the new task: {base} % → {tuned} % right on {n} held-out questions.", **figures)
        return t(
            "No learning can be told from noise on the new task: {base} % → {tuned} % right on {n} questions.",
            **figures,
        )
    row = unseen(rows, "new-task-loss", 1)
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
    figures = {"base": percent(row.base), "tuned": percent(row.tuned), "n": row.n}
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
    figures = {"base": percent(row.base), "tuned": percent(row.tuned), "n": row.n}
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


def _lost(rows: Sequence[Comparison]) -> str:
    row = _whole(rows, "toy-world")
    if row is None:
        return _lost_in_general(rows)
    figures = {
        "base": percent(row.base),
        "tuned": percent(row.tuned),
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


def _lost_in_general(rows: Sequence[Comparison]) -> str:
    """Say what was lost over all general benchmarks: the worst real drop, or what could have been lost unseen."""
    judged = judge(rows)
    real = [j for j in judged if j.verdict == "real drop"]
    if real:
        return min(real, key=lambda j: j.row.change if not is_loss(j.row) else -math.inf).sentence
    told = [j for j in judged if j.verdict != "at chance" and not is_loss(j.row)] or judged
    return max(told, key=lambda j: j.could_have_lost).sentence if told else ""

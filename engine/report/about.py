"""What has to be said beside the figures of a run, from its items alone: by what they were decided, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping

from engine.report import statistics
from engine.report.items import GRADED, PREFERENCE, SEEN, Check, Joined
from engine.words import Text, later, t


def lines(joined: Mapping[str, Joined]) -> list[str]:
    """Return the lines that apply, in order."""
    told = [_measured(name, one) for name, one in joined.items() if any(item.measure for item in one.tuned)]
    if PREFERENCE in joined and (line := moved(joined[PREFERENCE])):
        told.append(line)
    if GRADED in joined and (line := _unseen_by_grader(joined[GRADED])):
        told.append(line)
    return told


def bounded(check: Check) -> list[Text]:
    """Say what a check in bounded time asked, and where it ended early; nothing where it asked everything."""
    n, of = (sum(getattr(one, what) for one in check.sets.values()) for what in ("asked", "size"))
    if n == of:
        return []
    told = later(
        "A check in bounded time ({seconds} s, it took {took}): {n} of {of} questions were asked, base and tuned model the "
        "same, in an order drawn beforehand. “Ask everything” goes on from there.",
        seconds=f"{check.budget_s:g}", took=f"{check.spent_s:.0f}", n=n, of=of,
    )  # fmt: skip
    ended = {name: one for name, one in check.sets.items() if one.ended and one.asked < one.planned}
    return [
        told,
        *(
            later(
                "{name}: asking ended after {n} of {planned} questions, since the drop was beyond the bound of that look.",
                name=name, n=one.asked, planned=one.planned,
            )
            for name, one in ended.items()
        ),
    ]  # fmt: skip


def measures(joined: Joined) -> list[str]:
    """Return by which metric and filter of the harness the answers were judged, as "exact_match, strict-match"."""
    found = dict.fromkeys(item.measure for item in joined.tuned if item.measure)
    return [one.removesuffix(",none").replace(",", ", ") for one in found]


def _measured(name: str, joined: Joined) -> str:
    return t("{name}: right by {measures}.", name=name, measures="; ".join(measures(joined)))


def _unseen_by_grader(joined: Joined) -> str:
    """Say where a grader can show nothing: the base is right everywhere already, or no answer ever is."""
    kept = [item.item for item in joined.base if item.family != SEEN] or [item.item for item in joined.base]
    base, tuned = ({i.item: bool(i.correct) for i in side} for side in (joined.base, joined.tuned))
    if kept and all(base[name] for name in kept):
        return t("By its grader the base is right on all {n} rows already, so that no gain can be seen.", n=len(kept))
    if kept and not any(base[name] or tuned.get(name) for name in kept):
        return t(
            "By its grader no answer of either model is right, of {n}: it may ask for more than the rows do.",
            n=len(kept),
        )
    return ""


def moved(joined: Joined) -> str:
    """Say in how many pairs the better answer gained on the worse one, which is what DPO trains and its own accuracy
    counts (arXiv 2305.18290, equation 7: both answers relative to the reference, which is the base)."""
    base = {item.item: item for item in joined.base}
    pairs = [(base[item.item], item) for item in joined.tuned if item.item in base]
    pairs = [pair for pair in pairs if all(len(item.loglikelihoods) >= 2 for item in pair)]
    pairs = [pair for pair in pairs if pair[1].family != SEEN] or pairs
    if not pairs:
        return ""
    moved = [
        (after.loglikelihoods[0] - before.loglikelihoods[0]) - (after.loglikelihoods[1] - before.loglikelihoods[1])
        for before, after in pairs
    ]
    n, gained = len(pairs), sum(nats > 0 for nats in moved)
    if n < statistics.LEAST_QUESTIONS:
        return ""
    return t(
        "In {share} % of the {n} pairs the better answer gained on the worse one against the base: this is the accuracy "
        "that DPO shows in training. The figure above counts where the better answer is the likelier one outright, which "
        "a longer answer seldom is.",
        share=f"{100 * gained / n:.0f}", n=n,
    )  # fmt: skip

"""What a person wants first: a headline, what it learned, what it lost, each beyond noise or not, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from engine.report import statistics
from engine.report.blind import Wins
from engine.report.items import (
    ALL,
    ANSWERS,
    CHOICES,
    EXACT,
    GAP,
    GENERAL_TEXTS,
    GRADED,
    LOSS,
    PREFERENCE,
    REWARD,
    SEEN,
    UNSEEN,
)
from engine.report.paired import Comparison, is_loss
from engine.report.verdicts import Judged, apart, change_of, judge
from engine.words import joined, t

# What tells how much of the new task was learned, the best first: a grader, which was named to say it, then what only one
# objective asks, then right answers, chosen and in the same words. The loss says least, and nearly every run has it.
MEASURES = (GRADED, PREFERENCE, GAP, REWARD, ANSWERS, CHOICES, EXACT, LOSS)
# Fewer written answers than this say less than the loss does.
LEAST_WRITTEN = statistics.LEAST_QUESTIONS


def _whole(rows: Sequence[Comparison], benchmark: str, family: str = ALL) -> Comparison | None:
    return next((row for row in rows if row.benchmark == benchmark and row.family == family), None)


Action = Literal["again", "ask", "chat", "compare", "recover", "remedy", "use"]
# Trained here, tuned elsewhere, or a point on the way back to its base: only the first is trained again.
Origin = Literal["trained", "brought", "point"]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says first, alike on the page, the command line, in the HTML report and on the card: a headline, and
    a sentence each on what was gained, what was lost and what to do. `action` is what the last one comes to."""

    headline: str
    gained: str
    lost: str
    to_do: str
    action: Action


def summary(
    rows: Sequence[Comparison], *, moved: bool = True, chance: Mapping[str, float] | None = None,
    titles: Mapping[str, str] | None = None, blind: Wins | None = None, remedy: str = "", can_recover: bool = False,
    can_compare: bool = True, origin: Origin = "trained", there: str = "",
) -> Summary:  # fmt: skip
    """Return what a person wants to know first. `moved` is False of a run that changed no weight: then its scores say
    nothing. `chance` by benchmark: where the base only guesses, nothing can be lost; `titles`: of a person's own. `blind`:
    what a comparison with names hidden said; it counts where nothing scores the answers. `remedy` names the one that
    measurements of this machine support, and `there` the run that did it already; `can_recover`: part of the way back to
    the base can be gone; `can_compare`: there are held-out prompts to answer."""
    if not moved:
        same = t("Training changed no weight, so before and after are the same model.")
        to_do, action = t("There is nothing to use: train it again at a higher rate, or for more steps."), "again"
        if origin != "trained":
            to_do, action = t("There is nothing to use: it answers as its base does."), "chat"
        nothing = t("Nothing was learned.")
        return Summary(headline=nothing, gained=same, lost=t("So nothing was lost."), to_do=to_do, action=action)
    row, judged = asked(rows), judge(rows, chance, titles=titles)
    counts = blind if blind is not None and (row is None or row.benchmark == LOSS) else None
    learned = _how_learned(row, counts)
    lost = "none" if any(one.benchmark == REWARD for one in rows) else _how_lost(judged)
    # of fewer rows a comparison could not say more, and a reward model writes no answers
    can_compare = can_compare and lost != "none" and (row is None or change_of(row) != "too few")
    if origin == "trained":
        to_do, action = _to_do(learned, lost, remedy, there, can_recover, can_compare)
    else:
        to_do, action = _to_do_untrained(learned, lost, can_recover, can_compare, origin)
    gained = _learned(rows)
    told = [] if blind is None else [blind.sentence]
    return Summary(
        headline=joined(
            counts.sentence if counts is not None else _LEARNED[learned](),
            _LOST["most" if lost == "lost" and _is_most(judged) else lost](),
            *(_of_text(one) for one in judged if one.row.benchmark in GENERAL_TEXTS),
        ),
        gained=joined(gained, *(told if counts is None else [])),
        lost=_lost(rows, judged) or _not_asked(lost),
        to_do=to_do,
        action=action,
    )


_LEARNED: dict[str, Callable[[], str]] = {
    "better": lambda: t("It learned the task."),
    "worse": lambda: t("It got worse at the task."),
    "no": lambda: t("It learned nothing that matters."),
    "unknown": lambda: t("What it learned is not known."),
}
_LOST: dict[str, Callable[[], str]] = {
    "lost": lambda: t("It lost some of what it knew."),
    "most": lambda: t("It lost most of what it knew."),
    "kept": lambda: t("No loss was found."),
    "unknown": lambda: t("What it lost is not known."),
    "none": lambda: "",
}


def _how_learned(row: Comparison | None, counts: Wins | None) -> str:
    change = "too few" if row is None else change_of(row)
    if counts is not None and counts.verdict != "too few":
        change = counts.verdict
    return {"too few": "unknown", "small": "no", "noise": "no"}.get(change, change)


def _how_lost(judged: Sequence[Judged]) -> str:
    known = [one for one in judged if one.verdict not in ("at chance", "too few")]
    # of the toy world the sentence below goes by its own line
    if any(one.verdict == "real drop" or _is_toy_loss(one.row) for one in known):
        return "lost"
    return "kept" if known else "unknown"


def _is_most(judged: Sequence[Judged]) -> bool:
    """Whether less than half of what the base knew above chance is left, on average over what was asked: no gain in one
    makes up for what is gone of another."""
    left = [min(1.0, max(0.0, one.retention)) for one in judged if one.retention is not None]
    return bool(left) and sum(left) / len(left) < 0.5 - 1e-9


def _of_text(judged: Judged) -> str:
    """Say in a few words whether general text changed, which benchmarks do not tell; nothing where too little was read."""
    changes = {
        "real drop": t("worse"), "real gain": t("better"), "equivalent": t("unchanged"), "small change": t("hardly changed"),
        "no detectable change": t("no change found"),
    }  # fmt: skip
    change = changes.get(judged.verdict)
    return "" if change is None else t("{name}: {change}.", name=judged.title, change=change)


def _is_toy_loss(row: Comparison) -> bool:
    return row.benchmark == "toy-world" and change_of(row) == "worse"


def _not_asked(lost: str) -> str:
    if lost == "none":
        return t("A reward model writes no answers, so it is not asked about general knowledge.")
    return t("No general benchmark was asked, so what it forgot is not known yet.")


def _to_do(
    learned: str, lost: str, remedy: str, there: str, can_recover: bool, can_compare: bool
) -> tuple[str, Action]:  # fmt: skip
    """Return what to do in a sentence, and what that comes to. Nothing is offered that nothing speaks for."""
    if lost == "lost" and learned in ("no", "worse"):
        return t("Keep the base: this run lost something and gained nothing. Try a lower rate first."), "again"
    if lost == "lost" and remedy and there:
        return t("Look at {name}: it is this run with one thing changed. {remedy}", name=there, remedy=remedy), "remedy"
    if lost == "lost" and remedy:
        return t("Train it again with one thing changed. {remedy}", remedy=remedy), "remedy"
    if lost == "lost" and can_recover:
        return _recover(), "recover"
    if lost == "lost":
        return t("Train it again with one thing changed: a lower rate, or more general rows."), "again"
    if learned == "worse":
        return t("Keep the base: it got worse at the task. Look at the rows, and try a lower rate."), "again"
    if learned == "no":
        return t("It learned nothing to use: train it for longer or at a higher rate, or look at the rows."), "again"
    if learned == "unknown" and not can_compare:
        least = statistics.LEAST_QUESTIONS
        return t("Hold out at least {n} rows and train it again: of fewer nothing can be said.", n=least), "again"
    return _ready(learned, lost)


def _to_do_untrained(
    learned: str, lost: str, can_recover: bool, can_compare: bool, origin: Origin
) -> tuple[str, Action]:  # fmt: skip
    """The same of what was not trained here."""
    if origin == "point" and (lost == "lost" or learned in ("no", "worse")):
        return t("Take another point on the way back: each says what it gained and lost."), "recover"
    if learned in ("no", "worse"):
        return t("Keep the base: this model is not better at the task."), "chat"
    if lost == "lost" and can_recover:
        return _recover(), "recover"
    if lost == "lost":
        return t("Chat with it beside its base, and see whether what it gained is worth what it lost."), "chat"
    if learned == "unknown" and not can_compare:
        return t("Chat with it beside its base: no score says what it learned."), "chat"
    return _ready(learned, lost)


def _recover() -> str:
    return t("Recover: go part of the way back to the base, and see what returns and what stays learned.")


def _ready(learned: str, lost: str) -> tuple[str, Action]:
    """What to do where nothing speaks against a model."""
    if learned == "unknown":
        return t("Compare its answers with those of the base, names hidden: no score says what it learned."), "compare"
    if lost == "unknown":
        return t("Ask it general questions before you use it: nothing says yet what it forgot."), "ask"
    return t("Nothing to mend: use it."), "use"


def _learned(rows: Sequence[Comparison]) -> str:
    row = asked(rows)
    if row is None:
        return _by_heart(rows) or t("The new task was not scored.")
    if change_of(row) == "too few":
        figures = {"n": row.n, "least": statistics.LEAST_QUESTIONS}
        return t(
            "Too few to say what it learned: {n} held-out questions were asked, and {least} are the least.", **figures
        )
    says = {PREFERENCE: _preferred, GAP: _told_apart, REWARD: _judged, ANSWERS: _rewarded, LOSS: _of_loss}
    return says.get(row.benchmark, _answered)(row)


def asked(rows: Sequence[Comparison], measure: str | None = None) -> Comparison | None:
    """Return the line that says what was learned of the new task, on held-out rows: by a measure, or else the first of
    MEASURES that there is."""
    found = (_told_by(rows, one) for one in (MEASURES if measure is None else (measure,)))
    return next((row for row in found if row is not None), None)


def common_measure(runs: Iterable[Sequence[Comparison]]) -> str | None:
    """Return the measure by which runs are held against each other: the first that all of them have, or else that most
    have."""
    told = [[_told_by(rows, one) is not None for one in MEASURES] for rows in runs]
    counts = dict(zip(MEASURES, map(sum, zip(*told, strict=True)), strict=False))
    return max(counts, key=lambda one: counts[one]) if any(counts.values()) else None


def _told_by(rows: Sequence[Comparison], measure: str) -> Comparison | None:
    if measure == CHOICES:  # asked of held-out rows alone, so that their families are a person's own
        return _whole(rows, CHOICES)
    row = _whole(rows, measure, UNSEEN) or _whole(rows, measure)
    return row if row is not None and row.n >= (LEAST_WRITTEN if measure in (GRADED, EXACT) else 1) else None


def _by_heart(rows: Sequence[Comparison]) -> str:
    """Say that a run was asked about nothing but what it was trained on."""
    seen = [row for row in rows if row.family == SEEN and row.benchmark.startswith("new-task")]
    if not seen:
        return ""
    return t(
        "It was asked about nothing but rows it was trained on ({n}), so whether it learned more than these by heart is not "
        "known.",
        n=max(row.n for row in seen),
    )


def _percents(row: Comparison) -> dict[str, str | int]:
    base, tuned = apart(row.base, row.tuned, ".0f", 100)
    return {"base": base, "tuned": tuned, "n": row.n}


def _answered(row: Comparison) -> str:
    figures, change = _percents(row), change_of(row)
    if change == "better":
        return t("It learned the new task: {base} % → {tuned} % right on {n} held-out questions.", **figures)
    if change == "worse":
        return t("It got worse at the new task: {base} % → {tuned} % right on {n} held-out questions.", **figures)
    if change == "small":
        return t(
            "It learned less than matters on the new task: {base} % → {tuned} % right on {n} held-out questions.",
            **figures,
        )
    return t(
        "No learning can be told from noise on the new task: {base} % → {tuned} % right on {n} questions.", **figures
    )


def _of_loss(row: Comparison) -> str:
    base, tuned = apart(row.base, row.tuned, ".2f")
    figures, change = {"base": base, "tuned": tuned, "n": row.n}, change_of(row)
    if change == "better":
        return t("It learned from the rows: the loss on {n} held-out rows fell from {base} to {tuned}.", **figures)
    if change == "worse":
        return t("It did not carry over: the loss on {n} held-out rows rose from {base} to {tuned}.", **figures)
    if change == "small":
        return t(
            "It hardly changed: the loss on {n} held-out rows moved by less than matters (now {tuned}).", **figures
        )
    return t(
        "No learning can be told from noise: the loss on {n} held-out rows went from {base} to {tuned}.", **figures
    )


def _preferred(row: Comparison) -> str:
    figures, change = _percents(row), change_of(row)
    if change == "better":
        return t(
            "It learned the preference: the better answer is the likelier one in {base} % → {tuned} % of {n} held-out "
            "pairs.",
            **figures,
        )
    if change == "worse":
        return t(
            "It moved away from the preference: the better answer is the likelier one in {base} % → {tuned} % of {n} "
            "held-out pairs.",
            **figures,
        )
    if change == "small":
        return t(
            "It learned less than matters: the better answer is the likelier one in {base} % → {tuned} % of {n} held-out "
            "pairs.",
            **figures,
        )
    return t(
        "No learning can be told from noise: the better answer is the likelier one in {base} % → {tuned} % of {n} "
        "pairs.",
        **figures,
    )


def _told_apart(row: Comparison) -> str:
    moved = abs(row.change)
    times = t("over 1,000") if moved > math.log(1000) else f"{math.exp(moved):.3g}"
    figures, change = {"times": times, "n": row.n}, change_of(row)
    if change == "better":
        return t(
            "It learned to tell good from bad: on {n} held-out answers, good ones became {times} times as likely against "
            "bad ones.",
            **figures,
        )
    if change == "worse":
        return t(
            "It learned the wrong way round: on {n} held-out answers, bad ones became {times} times as likely against good "
            "ones.",
            **figures,
        )
    if change == "small":
        return t("It hardly changed: good and bad answers moved by less than matters, on {n} of them.", **figures)
    return t(
        "No learning can be told from noise: on {n} answers, good and bad ones hardly moved against each other.",
        **figures,
    )


def _judged(row: Comparison) -> str:
    figures, change = _percents(row), change_of(row)
    if change == "better":
        return t(
            "It learned to judge: {base} % → {tuned} % of {n} held-out pairs as the person did, where chance is 50 %.",
            **figures,
        )
    if change == "worse":
        return t(
            "It judges worse than before: {base} % → {tuned} % of {n} held-out pairs as the person did.", **figures
        )
    if change == "small":
        return t(
            "It learned less than matters: it judges {base} % → {tuned} % of {n} held-out pairs as the person did.",
            **figures,
        )
    return t(
        "No learning can be told from noise: it judges {base} % → {tuned} % of {n} pairs as the person did.", **figures
    )


def _rewarded(row: Comparison) -> str:
    base, tuned = apart(row.base, row.tuned, "+.2f")
    figures, change = {"base": base, "tuned": tuned, "n": row.n}, change_of(row)
    if change == "better":
        return t(
            "Its answers please the reward model more: {base} → {tuned} on average over {n} held-out questions.",
            **figures,
        )
    if change == "worse":
        return t(
            "Its answers please the reward model less: {base} → {tuned} on average over {n} held-out questions.",
            **figures,
        )
    if change == "small":
        return t("The reward of its answers moved by less than matters over {n} held-out questions.", **figures)
    return t(
        "No learning can be told from noise: the reward of its answers went {base} → {tuned} over {n} questions.",
        **figures,
    )


def _lost(rows: Sequence[Comparison], judged: Sequence[Judged]) -> str:
    """Say what was lost: of the toy world where it was asked and nothing else speaks louder, else of all benchmarks."""
    row = _whole(rows, "toy-world")
    guessed = [one.row.benchmark for one in judged if one.verdict == "at chance"]
    drops = [one for one in judged if one.verdict == "real drop"]
    change = change_of(row) if row is not None else ""
    # What a base only guesses it cannot lose; it can still learn it.
    if row is None or change in ("too few", "small") or (row.benchmark in guessed and change != "better"):
        return _lost_in_general(judged)
    if drops and change != "worse":
        return _lost_in_general(judged)
    base, tuned = apart(row.base, row.tuned, ".0f", 100)
    figures = {
        "base": base,
        "tuned": tuned,
        "points": f"{abs(100 * row.change):.1f}",
        "worst": f"{max(0.0, -100 * row.low):.1f}",
    }
    if change == "worse":
        told = t(
            "It lost toy-world knowledge: {base} % → {tuned} %, {points} points less, which is beyond noise.", **figures
        )
        return _and_others(told, [one for one in drops if one.row.benchmark != row.benchmark])
    if change == "better":
        return t("Toy-world knowledge rose from {base} % to {tuned} %, beyond noise.", **figures)
    return t(
        "No loss of toy-world knowledge can be told from noise ({base} % → {tuned} %); "
        "it may have lost up to {worst} points.",
        **figures,
    )


def _lost_in_general(judged: Sequence[Judged]) -> str:
    """Say what was lost over all general benchmarks: the worst real drop, points before nats, or what could have been
    lost unseen."""
    real = [j for j in judged if j.verdict == "real drop"]
    if real:
        worst = min(real, key=lambda j: j.row.change if not is_loss(j.row) else math.inf)
        own = worst.row.benchmark.partition(":")[0]  # a further figure of the same text is no further loss
        return _and_others(worst.sentence, [one for one in real if one.row.benchmark.partition(":")[0] != own])
    known = [j for j in judged if j.verdict not in ("at chance", "too few")] or judged
    told = [j for j in known if not is_loss(j.row)] or known
    return max(told, key=lambda j: j.could_have_lost).sentence if told else ""


def _and_others(told: str, others: Sequence[Judged]) -> str:
    """Name what else was lost, as far as a person reads it."""
    if not others:
        return told
    names = ", ".join(one.title for one in others[:3]) + (" …" if len(others) > 3 else "")
    return joined(told, t("Also lost: {names}.", names=names))

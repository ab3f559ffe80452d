"""What a sweep has shown: its configurations on the frontier, and four sentences of the guide held against it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from engine.forgetting import sweep_drive
from engine.forgetting.sweep_drive import load
from engine.forgetting.sweep_plan import Trial, label
from engine.report import frontier, headline, statistics
from engine.runs import scored, store
from engine.spec import RunSpec
from engine.words import t
from engine.workspace import Workspace


class Configuration(msgspec.Struct, kw_only=True):
    """One recipe with its settings: a point over its seeds, and one for each seed that is finished."""

    name: str
    recipe: str
    set: dict[str, Any]
    point: frontier.Point
    seeds: list[frontier.Point]
    spec: RunSpec


class Claim(msgspec.Struct, kw_only=True):
    """What the guide says about forgetting, by its rule, and what this sweep says to it."""

    rule: str
    claim: str
    verdict: Literal["confirmed", "partly confirmed", "not confirmed", "not tested"]
    sentence: str


class Result(msgspec.Struct, kw_only=True):
    """A sweep as far as it has come: its configurations, marked on the frontier, and the guide's claims."""

    id: str
    title: str
    status: str
    finished: int
    total: int
    configurations: list[Configuration]
    claims: list[Claim]


def result(workspace: Workspace, sweep_id: str) -> Result:
    """Return what a sweep has shown so far. Raises OSError or ValueError when it is no sweep."""
    made = load(workspace, sweep_id)
    groups: dict[str, list[Trial]] = {}
    for trial in made.trials:
        groups.setdefault(json.dumps([trial.recipe, trial.set], sort_keys=True, default=str), []).append(trial)
    runs = store.list_all(workspace)
    known = {
        one.run: scored.of(workspace, one.run, runs) for one in made.trials
        if one.run is not None and sweep_drive.status(workspace, one.run) == "finished"
    }  # fmt: skip
    measure = headline.common_measure(one.rows for one in known.values())
    found: list[Configuration] = []
    for trials in groups.values():
        ended = [one.run for one in trials if one.run in known]
        if not ended:
            continue
        points = [frontier.point(one, known[one].rows, known[one].chance, measure) for one in ended]
        first = trials[0]
        name = label(first.recipe, first.set)
        found.append(
            Configuration(
                name=name, recipe=first.recipe, set=first.set, point=frontier.over_seeds(name, points), seeds=points,
                spec=store.load_spec(workspace, ended[0]),
            )
        )  # fmt: skip
    marked = frontier.frontier([one.point for one in found])
    found = [msgspec.structs.replace(one, point=point) for one, point in zip(found, marked, strict=True)]
    return Result(
        id=sweep_id,
        title=made.title,
        status=store.status(workspace, sweep_id),
        finished=sweep_drive.finished(workspace, made),
        total=len(made.trials),
        configurations=found,
        claims=claims(found),
    )


def _changes(one: Configuration) -> list[float]:
    return [point.change for point in one.seeds if point.change is not None]


def _points(values: tuple[float, float, float]) -> str:
    """Return a mean and its interval in points of accuracy."""
    mean, low, high = (100 * value for value in values)
    return f"{mean:+.1f}" if math.isinf(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _is_full(one: Configuration) -> bool:
    return one.spec.adapter == "full" and one.spec.layers == "all"


def claims(found: Sequence[Configuration], tolerance: float = statistics.MARGIN) -> list[Claim]:
    """Hold four sentences of the guide against a sweep, with seeds as the unit: differences between configurations by
    Welch's interval at 95 %. A claim is confirmed when every comparison the sweep allows has its interval on that side,
    partly when one has and none the other way. One seed cannot tell, so that nothing is confirmed or refuted by it."""
    known = [one for one in found if _changes(one)]
    return [_adapters(known, tolerance), _mixing(known), _freezing(known), _low_rate(known)]


def _usual_rate(found: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations at the highest rate of their recipe: the others are there for the claim about rates."""
    highest: dict[str, float] = {}
    for one in found:
        rate = one.spec.train.learning_rate
        highest[one.recipe] = max(rate, highest.get(one.recipe, rate))
    return [one for one in found if one.spec.train.learning_rate == highest[one.recipe]]


def _pairs_with_full(found: Sequence[Configuration], wanted: Any) -> list[tuple[Configuration, Configuration]]:
    """Return each configuration that is wanted with full fine-tuning at the same replay; without replay where there is
    such a pair, since replay hides what the method itself does."""
    usual = _usual_rate(found)
    pairs = [
        (one, other)
        for one in usual
        for other in usual
        if wanted(one) and _is_full(other) and one.spec.train.replay_share == other.spec.train.replay_share
    ]
    least = min((one.spec.train.replay_share for one, _ in pairs), default=0.0)
    return [pair for pair in pairs if pair[0].spec.train.replay_share == least]


_Verdict = Literal["confirmed", "partly confirmed", "not confirmed", "not tested"]


def _have_seeds(*compared: Configuration) -> bool:
    """Whether each configuration was run with seeds enough for an interval."""
    return all(len(_changes(one)) > 1 for one in compared)


def _of_seeds(rule: str, claim: str, verdict: _Verdict, sentence: str, *, seeds: bool) -> Claim:
    """Return a claim with its verdict, or with none where some comparison has one seed only: frontier.seed_note, which
    stands above the claims, says why."""
    return Claim(rule=rule, claim=claim, verdict=verdict if seeds else "not tested", sentence=sentence)


def _verdict(better: list[bool], worse: list[bool]) -> Literal["confirmed", "partly confirmed", "not confirmed"]:
    if all(better):
        return "confirmed"
    return "partly confirmed" if any(better) and not any(worse) else "not confirmed"


def _adapters(found: Sequence[Configuration], tolerance: float) -> Claim:
    claim = t("LoRA and OFT naturally prevent forgetting")
    pairs = _pairs_with_full(found, lambda one: one.spec.adapter in ("lora", "oft"))
    if not pairs:
        return _untested("M1", claim)
    told, prevents, better, worse = [], [], [], []
    for one, full in pairs:
        own, than_full = statistics.t_interval(_changes(one)), statistics.welch(_changes(one), _changes(full))
        prevents.append(own[1] >= -tolerance)
        better.append(than_full[1] > 0)
        worse.append(than_full[2] < 0)
        told.append(
            t("{name} changed by {own} points, {than_full} against full fine-tuning", name=one.name, own=_points(own),
              than_full=_points(than_full))
        )  # fmt: skip
    verdict = _verdict(better, worse)
    if verdict == "confirmed" and not all(prevents):
        verdict = "partly confirmed"
    end = {
        "confirmed": t("none lost more than {points} points", points=f"{100 * tolerance:g}"),
        "partly confirmed": t("less is forgotten, but not nothing, or not by all of them"),
        "not confirmed": t("no difference can be told from the luck of the seed, or it goes the other way"),
    }[verdict]
    if not all(_have_seeds(*pair) for pair in pairs):
        return _of_seeds("M1", claim, verdict, "; ".join(told) + ".", seeds=False)
    return _of_seeds("M1", claim, verdict, f"{'; '.join(told)}: {end}.", seeds=True)


def _mixing(found: Sequence[Configuration]) -> Claim:
    claim = t("Mixing in general data prevents forgetting")
    told, better, worse, seeds = [], [], [], []
    usual = _usual_rate(found)
    for one in usual:
        for other in usual:
            same = one.recipe == other.recipe and one.spec.train.replay_share > other.spec.train.replay_share == 0
            if same:
                change = statistics.welch(_changes(one), _changes(other))
                better.append(change[1] > 0)
                worse.append(change[2] < 0)
                seeds.append(_have_seeds(one, other))
                told.append(
                    t("{recipe}: {share} % of general rows kept {change} points more", recipe=label(one.recipe, {}),
                      share=f"{100 * one.spec.train.replay_share:g}", change=_points(change))
                )  # fmt: skip
    if not told:
        return _untested("M4", claim)
    return _of_seeds("M4", claim, _verdict(better, worse), "; ".join(told) + ".", seeds=all(seeds))


def _freezing(found: Sequence[Configuration]) -> Claim:
    claim = t("Freezing the lower layers keeps general knowledge")
    frozen = [
        (one, full)
        for one, full in _pairs_with_full(found, lambda one: str(one.spec.layers).startswith("bottom_frozen"))
        if one.spec.adapter == "full"
    ]
    return _against_full("M2", claim, frozen)


def _low_rate(found: Sequence[Configuration]) -> Claim:
    claim = t("A low learning rate prevents forgetting")
    full = [one for one in found if _is_full(one)]
    pairs = [
        (low, high)
        for low in full
        for high in full
        if low.spec.train.learning_rate < high.spec.train.learning_rate
        and low.spec.train.replay_share == high.spec.train.replay_share
    ]
    return _against_full("M3", claim, pairs)


def _against_full(rule: str, claim: str, pairs: list[tuple[Configuration, Configuration]]) -> Claim:
    if not pairs:
        return _untested(rule, claim)
    told, better, worse = [], [], []
    for one, full in pairs:
        change = statistics.welch(_changes(one), _changes(full))
        better.append(change[1] > 0)
        worse.append(change[2] < 0)
        told.append(
            t("{name} kept {change} points more than {full}, with {gain} against {other} gained", name=one.name,
              change=_points(change), full=full.name, gain=_gain(one.point), other=_gain(full.point))
        )  # fmt: skip
    seeds = all(_have_seeds(*pair) for pair in pairs)
    return _of_seeds(rule, claim, _verdict(better, worse), "; ".join(told) + ".", seeds=seeds)


def _untested(rule: str, claim: str) -> Claim:
    return Claim(rule=rule, claim=claim, verdict="not tested", sentence=t("This sweep holds nothing to compare."))


def _gain(point: frontier.Point) -> str:
    if point.gain is None or point.gain_low is None or point.gain_high is None:
        return "–"
    if not frontier.in_points(point.measure):
        return f"{point.gain:+.2f}" + (
            "" if math.isinf(point.gain_low) else f" [{point.gain_low:+.2f}, {point.gain_high:+.2f}]"
        )
    return _points((point.gain, point.gain_low, point.gain_high))


def markdown(found: Result) -> str:
    """Return a sweep as a Markdown table, the best kept first, and the guide's claims below it."""
    lines = [
        f"| {t('configuration')} | {t('seeds')} | {t('gained, points')} | {t('general, points')} | "
        f"{t('kept, %')} | {t('frontier')} |",
        "|---|---|---|---|---|---|",
    ]
    order = sorted(
        found.configurations, key=lambda one: -(one.point.retention if one.point.retention is not None else -9)
    )
    for one in order:
        point, change, kept = one.point, "–", "–"
        if point.change is not None and point.change_low is not None and point.change_high is not None:
            change = _points((point.change, point.change_low, point.change_high))
        if point.retention is not None:
            kept = f"{100 * point.retention:.1f}"
        mark = t("yes") if point.on_frontier else ""
        lines.append(f"| {one.name} | {len(one.seeds)} | {_gain(point)} | {change} | {kept} | {mark} |")
    lines.append("")
    if note := frontier.seed_note([one.point for one in found.configurations]):
        lines += [note, ""]
    lines += [f"- {one.claim} ({one.rule}): **{_verdict_words(one.verdict)}**. {one.sentence}" for one in found.claims]
    return "\n".join(lines)


def _verdict_words(verdict: str) -> str:
    return {
        "confirmed": t("confirmed"),
        "partly confirmed": t("partly confirmed"),
        "not confirmed": t("not confirmed"),
        "not tested": t("not tested"),
    }[verdict]

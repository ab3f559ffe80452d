"""The Forgetting page's names, figures and tables: what its views share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd
import streamlit as st

from engine.forgetting import stages as of_stages
from engine.report import Comparison, blind, items, paired, statistics, verdicts
from engine.runs import Run, scored
from engine.words import t
from pages import _ui

# Streamlit puts the first, third and second colour of the reader's theme in place of these: blue, green, orange.
STRONG, GOOD, BAD = "#000001", "#000003", "#000002"
NEITHER = "#6c757d"  # 3 : 1 and more on both grounds


def name(benchmark: str, titled: dict[str, str]) -> str:
    """Return what a line of a comparison asks."""
    names = {
        items.CHOICES: t("new task, choice of answers"),
        items.EXACT: t("new task, same words"),
        items.GRADED: t("new task, right by its grader"),
        items.LOSS: t("loss per token (lower is better)"),
        items.PREFERENCE: t("better answer likelier than the worse one"),
        items.GAP: t("good answers above bad ones (higher is better)"),
        items.REWARD: t("pairs judged as the person did"),
        items.ANSWERS: t("reward of its answers (higher is better)"),
        items.MARGIN: t("reward of better minus worse answers (higher is better)"),
        items.KL: t("how far it moved from the base (KL per token)"),
        blind.TEXTS: t("answers to held-out prompts"),
    }
    base, _, _ = benchmark.partition(":")
    return names.get(benchmark) or verdicts.title(
        benchmark, {**titled, **{k: v for k, v in names.items() if k == base}}
    )


def alone(found: Sequence[scored.Alone], titled: dict[str, str]) -> None:
    """Show what a base made of questions that nothing else has been asked yet."""
    lines = [{t("Questions"): name(one.benchmark, titled), t("How many"): one.n, t("Base"): one.told} for one in found]
    st.dataframe(lines, hide_index=True)
    st.caption(_ui.plain(scored.alone_note()))


def family(value: str) -> str:
    words = {
        items.ALL: t("all questions"),
        items.SEEN: t("rows it was trained on"),
        items.UNSEEN: t("held-out rows"),
    }
    return words.get(value, value.replace("_", " "))


def verdict(value: str) -> str:
    """Return a verdict in the reader's language."""
    return {
        "real drop": t("real drop"),
        "real gain": t("real gain"),
        "equivalent": t("unchanged within 1 point"),
        "no detectable change": t("no detectable change"),
        "small change": t("less than matters"),
        "too few": t("too few to say"),
        "at chance": t("base does not know it"),
    }.get(value, value)


def is_share(row: Comparison) -> bool:
    return not paired.is_loss(row)


def number(row: Comparison, value: float, *, signed: bool = False) -> str:
    """Return a figure of a line: shares in per cent (changes in points), the others as they are."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if paired.is_loss(row):
        return f"{value:+.3f}" if signed else f"{value:.3f}"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f} %"


def interval(row: Comparison) -> str:
    """Return the interval of a change, or a dash where too few questions were asked for any."""
    if paired.too_few(row):
        return "–"
    return f"{number(row, row.low, signed=True)} … {number(row, row.high, signed=True)}"


def verdict_of(row: Comparison, judged: dict[str, verdicts.Judged]) -> str:
    """Return what a line says: the corrected verdict of a general benchmark, or whether the new task was learned."""
    if paired.too_few(row):
        return verdict("too few")
    if row.benchmark == items.KL:
        return t("how far it moved")
    if verdicts.is_general(row.benchmark):
        told = judged.get(row.benchmark)
        return verdict(told.verdict) if told is not None and row.family == items.ALL else beyond(row)
    words = {"better": t("learned"), "worse": t("got worse"), "small": verdict("small change")}
    return words.get(verdicts.change_of(row), t("no detectable change"))


def beyond(row: Comparison) -> str:
    return t("beyond noise") if paired.beyond_noise(row) else t("within noise")


def names(runs: Iterable[Run]) -> dict[str, str]:
    """Return what runs are called, by id; where two are called the same, the end of the id tells them apart."""
    found = {run.id: run.name for run in runs}
    often = Counter(found.values())
    return {run_id: f"{name} · {run_id[-6:]}" if often[name] > 1 else name for run_id, name in found.items()}


def short(rows: Sequence[Comparison], judged: Sequence[verdicts.Judged], titled: dict[str, str]) -> pd.DataFrame:
    """Return a comparison in four columns, which a phone shows whole."""
    about, found = {one.row.benchmark: one for one in judged}, []
    for row in rows:
        asked, change = name(row.benchmark, titled), number(row, row.change, signed=True)
        part = "" if row.family == items.ALL else f" ({family(row.family)})"
        told = verdict_of(row, about)
        found.append(
            {
                t("Questions"): asked + part,
                t("Base"): _unbroken(number(row, row.base)),
                t("Tuned"): _unbroken(number(row, row.tuned)),
                t("Verdict"): told if paired.too_few(row) else t("{verdict}, {change}", verdict=told, change=change),
            }
        )
    return pd.DataFrame(found)


def _unbroken(figure: str) -> str:
    return figure.replace(" ", "\u00a0")


def table(
    rows: Sequence[Comparison], judged: Sequence[verdicts.Judged], titled: dict[str, str], *, every: bool = False
) -> pd.DataFrame:
    """Return a comparison as a person reads it; with `every` figure: p-values, and what would have been seen."""
    about = {one.row.benchmark: one for one in judged}
    found = []
    for row in rows:
        told = about.get(row.benchmark) if row.family == items.ALL else None
        line = {
            t("Questions"): name(row.benchmark, titled),
            t("Part"): family(row.family),
            t("Base"): number(row, row.base),
            t("Tuned"): number(row, row.tuned),
            t("Change"): number(row, row.change, signed=True),
            t("95 % interval"): interval(row),
            t("Verdict"): verdict_of(row, about),
            t("Lost and won"): verdicts.flipped(row),
            t("How many"): row.n,
        }
        if every:
            lost, won = row.base_only_right, row.tuned_only_right
            line |= {
                t("p (exact McNemar)"): ""
                if lost is None or won is None
                else f"{float(statistics.mcnemar(lost, won)):.3g}",
                t("p after Holm"): "" if told is None or told.p_holm is None else f"{told.p_holm:.3g}",
                t("Would have shown a drop of"): ""
                if told is None or told.detectable is None
                else number(row, told.detectable),
                t("Kept above chance"): ""
                if told is None or told.retention is None
                else f"{100 * told.retention:.0f} %",
            }
        found.append(line)
    return pd.DataFrame(found)


def stages(line: of_stages.Line, titled: dict[str, str]) -> pd.DataFrame:
    """Return what each stage of a line did to each benchmark, and what has become of it since the first base."""
    return pd.DataFrame(
        [
            {
                t("Stage"): one.stage,
                t("Questions"): name(one.own.benchmark, titled),
                t("Before"): number(one.own, one.own.base),
                t("After"): number(one.own, one.own.tuned),
                t("Change"): _with_interval(one.own),
                t("Since the first base"): "" if one.since is None else _with_interval(one.since),
                t("How many"): one.own.n,
            }
            for one in line.changes
        ]
    )


def _with_interval(row: Comparison) -> str:
    low, high = number(row, row.low, signed=True), number(row, row.high, signed=True)
    return f"{number(row, row.change, signed=True)} [{low}, {high}]"


def changes(rows: Sequence[Comparison], titled: dict[str, str]) -> list[tuple[str, Comparison]]:
    """Return the lines of the chart of changes: accuracies that have an interval, with their labels."""
    return [
        (
            name(row.benchmark, titled)
            if row.family == items.ALL
            else t("{name}: {text}", name=name(row.benchmark, titled), text=family(row.family)),
            row,
        )
        for row in rows
        if is_share(row) and not paired.too_few(row)
    ]

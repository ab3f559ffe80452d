"""Single questions on the Forgetting page, base and tuned side by side, and how they were asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from engine.report import Item, items, questions
from engine.runs import ScoredRun
from engine.words import t
from pages import _forgetting_tables as tables
from pages import _ui

MOST_SHOWN = 1_000

Pair = tuple[Item, Item]


def show(scored: ScoredRun, titled: dict[str, str]) -> None:
    """Show single questions with both answers: the table, and one to be read in full."""
    asked = {b: one for b, one in scored.joined.items() if b not in (items.LOSS, items.GAP)}
    by_benchmark = {benchmark: found for benchmark, one in asked.items() if (found := questions.pairs(one))}
    by_benchmark = dict(sorted(by_benchmark.items(), key=lambda one: -_lost_and_won(one[1])[0]))
    if not by_benchmark:
        st.caption(t("These scores have no single answers."))
        return
    pairs, key = _chosen(by_benchmark, titled)
    if not pairs:
        st.caption(t("No question here did that."))
        return
    st.dataframe(_table(pairs), hide_index=True, alt=t("Single questions with the answers of base and tuned"))
    chosen = st.number_input(t("Read number"), 1, min(len(pairs), MOST_SHOWN), 1, key=f"read_{key}")
    _read(*pairs[int(chosen) - 1])


def _lost_and_won(pairs: Sequence[Pair]) -> tuple[int, int]:
    flips = [questions.flip(*pair) for pair in pairs]
    return flips.count("lost"), flips.count("won")


def _flip_words() -> dict[str, str]:
    return {"": t("all"), "lost": t("lost"), "won": t("won")}


def _chosen(by_benchmark: dict[str, list[Pair]], titled: dict[str, str]) -> tuple[list[Pair], str]:
    """Return the questions that are asked for, the lost ones first, and what tells this choice from others."""
    words = _flip_words()
    left, middle, right = st.columns(3)
    benchmark = left.selectbox(
        t("Questions"), list(by_benchmark), format_func=lambda b: _counted(b, by_benchmark[b], titled), key="questions"
    )
    pairs = by_benchmark[benchmark]
    families = sorted({after.family for _, after in pairs})
    family = middle.selectbox(
        t("Part"),
        [items.ALL, *families],
        format_func=tables.family,
        key=f"family_{benchmark}",
        disabled=len(families) < 2,
    )
    wanted = right.selectbox(t("Which flipped"), list(words), format_func=words.__getitem__, key="flipped")
    pairs = [
        pair
        for pair in pairs
        if (family == items.ALL or pair[1].family == family) and (not wanted or questions.flip(*pair) == wanted)
    ]
    pairs.sort(key=lambda pair: {"lost": 0, "won": 1}.get(questions.flip(*pair), 2))
    return pairs, f"{benchmark}_{family}_{wanted}"


def _counted(benchmark: str, pairs: Sequence[Pair], titled: dict[str, str]) -> str:
    """Return the name of a benchmark with how many of its questions were lost and won, where they are right or wrong."""
    if pairs[0][1].correct is None:
        return tables.name(benchmark, titled)
    lost, won = _lost_and_won(pairs)
    return t("{name}: lost {lost}, won {won} of {n}", name=tables.name(benchmark, titled), lost=lost, won=won,
             n=len(pairs))  # fmt: skip


def _table(pairs: Sequence[Pair]) -> pd.DataFrame:
    words = _flip_words()
    return pd.DataFrame(
        [
            {
                t("No."): number,
                t("Flipped"): words[flip] if (flip := questions.flip(before, after)) else "",
                t("Part"): tables.family(after.family),
                t("Question"): after.prompt or after.item,
                t("Right answer"): questions.right(after),
                t("Base said"): questions.said(before),
                t("Tuned said"): questions.said(after),
            }
            for number, (before, after) in enumerate(pairs[:MOST_SHOWN], start=1)
        ]
    )


def _read(before: Item, after: Item) -> None:
    """One question with both answers in full."""
    with st.container(border=True):
        st.text(after.prompt or after.item)
        if questions.right(after):
            st.text(t("Right: {answer}", answer=questions.right(after)))
        for column, title, item in zip(st.columns(2), (t("Base"), t("Tuned")), (before, after), strict=True):
            column.markdown(f"**{_ui.plain(title)}**")
            column.text(questions.said(item) or "–")
            if item.choices and len(item.loglikelihoods) == len(item.choices):
                column.dataframe(
                    pd.DataFrame(
                        {t("Choice"): item.choices, t("Likelihood (log; nearer 0 is likelier)"): item.loglikelihoods}
                    ),
                    hide_index=True,
                    alt=t("{model}: how likely each choice is", model=title),
                )


def settings(scored: ScoredRun, titled: dict[str, str]) -> None:
    """Show how each benchmark was asked."""
    told = scored.settings()
    if not told:
        st.caption(t("This run left no record of it."))
        return
    st.table(
        _ui.cells(pd.DataFrame([_asked(tables.name(name, titled), one) for name, one in told.items()])),
        hide_index=True, border="horizontal",
    )  # fmt: skip
    st.caption(t("Base and tuned are asked the same questions in the same words under the same settings."))


def _asked(name: str, settings: dict[str, Any]) -> dict[str, str]:
    """Return how a benchmark was asked, in words and in columns that a phone shows whole; what only tells scores apart
    for the machine is left out."""
    templates = {"chat": t("chat template"), "none": t("none")}
    chance, template = settings.get("chance"), settings.get("template")
    n = settings.get("questions", settings.get("items"))
    found = {
        t("Right by guessing"): f"{100 * chance:.0f} %" if isinstance(chance, float) and chance > 0 else None,
        t("Examples"): settings.get("shots"),
        t("Template"): None if template is None else templates.get(str(template), template),
        t("Window, tokens"): settings.get("window_tokens"),
    }
    how = "; ".join(
        t("{name}: {text}", name=key, text=_ui.show_value(one)) for key, one in found.items() if one is not None
    )
    return {t("Questions"): name, t("Asked"): "–" if n is None else str(n), t("How"): how or "–"}

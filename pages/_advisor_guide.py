"""The Advisor page's tables of the written guide: the rules that apply, with their verdicts, and all others."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine.advise import Advice, guide, tables
from engine.words import t
from pages import _ui

TABLES = ("rows", "memory", "alignment")


def _table_title(name: str) -> str:
    return {
        "rows": t("How many rows?"),
        "memory": t("How much GPU memory?"),
        "alignment": t("Ratings or comparisons of answers?"),
    }[name]


def show(advice: Advice) -> None:
    """The guide's three tables: the row that applies in the guide's words with its verdict, then the table whole."""
    st.subheader(t("What the guide says"))
    rules = guide.rules()
    for name in TABLES:
        st.markdown(f"**{_ui.plain(_table_title(name))}**")
        rows = {row.rule: row for row in advice.tables[name]}
        for row in rows.values():
            if row.fired:
                _fired(rules[row.rule], row)
        if not any(row.fired for row in rows.values()):
            st.caption(_ui.plain(next(iter(rows.values())).reason))
        fired = {row.rule for row in rows.values() if row.fired}
        st.table(_ui.cells(_frame([rules[rule] for rule in rows], fired), mark="→"), hide_index=True)


def _fired(rule: guide.Rule, row: tables.TableRow) -> None:
    """The row that applies, with everything said about it."""
    title = _ui.say(
        "{id} · “{phrase}” · {says}", id=rule.id, phrase=guide.without_marks(rule.phrase), says=t(rule.says)
    )
    verdict = _ui.say(
        "Verdict: {verdict}. {why} Tunebook uses: {value}. Source: {source}",
        verdict=_ui.verdict_words()[rule.verdict],
        why=t(rule.why),
        value=t(rule.value_used),
        source=t(rule.source),
    )
    with st.container(border=True):
        st.markdown(f":material/arrow_right: **{title}** {t('(applies here)')}")
        st.markdown(_ui.plain(row.reason))
        st.caption(verdict)


def _frame(rules: list[guide.Rule], marked: set[str]) -> pd.DataFrame:
    """Return rules as a table, the marked ones with an arrow."""
    words = _ui.verdict_words()
    return pd.DataFrame(
        {
            _ui.unbroken(t("Rule")): [f"→\u00a0{rule.id}" if rule.id in marked else rule.id for rule in rules],
            t("When"): [t(rule.when) for rule in rules],
            t("The guide's words"): [rule.spoken for rule in rules],
            t("In English"): [t(rule.says) for rule in rules],
            _ui.unbroken(t("Verdict")): [_ui.unbroken(words[rule.verdict]) for rule in rules],
            t("Tunebook uses"): [t(rule.value_used) for rule in rules],
        }
    )


def show_all(advice: Advice) -> None:
    """Every other table of the guide, the rules that speak for this advice highlighted."""
    with st.expander(t("Every table of the guide, with the rules that speak here")):
        marked = {*advice.fired, *advice.rules}
        st.caption(t("Highlighted: rules that apply here or speak for the advice."))
        for name, title in guide.tables().items():
            rules = [rule for rule in guide.rules().values() if rule.table == name]
            if rules:
                st.markdown(f"**{_ui.plain(t(title))}**")
                st.table(_ui.cells(_frame(rules, marked), mark="→"), hide_index=True)

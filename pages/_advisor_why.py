"""The Advisor page's fold: why this advice, what else there is, what each way takes, the plan, and the guide's tables."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine.advise import Advice, Case, alternatives, guide, handoff, tables
from engine.plan import drafts
from engine.words import t
from pages import _advisor_ways, _memory, _ui

TABLES = ("rows", "memory", "alignment")
# A run that was right, one that learned and lost, one that did not learn: told apart without colours.
MARKS = {(True, False): "●", (True, True): "◐", (False, False): "○", (False, True): "○"}


def evidence(advice: Advice) -> None:
    """What runs like the advised one came to here, a mark for each, and how often that was right."""
    marks = " ".join(MARKS[one.learned, one.lost] for one in advice.seen)
    st.caption(
        _ui.plain(f"{marks} {advice.evidence}".strip()),
        help=t("● learned, and no loss was found · ◐ learned, and lost something · ○ did not learn; the newest first")
        if advice.seen
        else None,
    )


def fold(case: Case, advice: Advice) -> None:
    """The fold, drawn when it is opened, one part at a time."""
    _ui.fold(t("Why?"), "why", lambda: _one_part(case, advice))


def _one_part(case: Case, advice: Advice) -> None:
    parts = {
        "reasons": t("Reasons"),
        "others": t("Other ways"),
        "takes": t("What each takes"),
        "stages": t("In stages"),
        "guide": t("The guide"),
    }
    part = st.radio(
        t("Part"), list(parts), format_func=lambda one: _ui.plain(parts[one]), key="why_part", horizontal=True,
        label_visibility="collapsed",
    )  # fmt: skip
    if part == "others":
        _others(case, advice)
    elif part == "takes":
        _advisor_ways.show(case, advice)
        if advice.advised is not None:
            _memory.values(case.plan(advice.advised))
    elif part == "stages":
        _stages(advice)
    elif part == "guide":
        _guide(advice)
    else:
        _reasons(advice)


def _reasons(advice: Advice) -> None:
    _ui.bullets(advice.reasons)
    if advice.doubts:
        st.markdown(f"**{t('What is less sure')}**")
        _ui.bullets(advice.doubts)
    rules = guide.rules()
    if advice.followed:
        st.markdown(f"**{t('Rules of the guide that speak for it')}**")
        for rule in advice.followed:
            _rule_link(rules[rule])
    if advice.overruled:
        st.markdown(f"**{t('Rules that apply and were not followed')}**")
        for one in advice.overruled:
            _rule_link(rules[one.rule])
            parts = {"why": one.why}
            st.caption(_ui.say("In part: {why}", **parts) if one.partly else _ui.plain(one.why))


def _rule_link(rule: guide.Rule) -> None:
    """A rule by its words, and the way to its place in the guide."""
    st.page_link(
        _ui.PAGES / "guide.py", label=_ui.plain(rule.words), icon=":material/menu_book:",
        query_params={**_ui.link_parameters(), "rule": rule.id},
    )  # fmt: skip


def _others(case: Case, advice: Advice) -> None:
    workspace = _ui.workspace()
    if advice.would_change:
        st.markdown(f"**{t('What would change this advice')}**")
        _ui.bullets(advice.would_change)
    road = {"prompt-only": "ppo", "preference": "dpo", "unpaired-preference": "kto"}.get(advice.facts.data_type or "")
    if road is not None and st.button(t("In stages: SFT, then preferences"), key="open_chain"):
        _ui.go("train", chain=road)
    if advice.runners_up:
        st.markdown(f"**{t('Runners-up')}**")
    for number, other in enumerate(advice.runners_up):
        # not columns: a button in a narrow one is cut
        place = st.container(horizontal=True, vertical_alignment="center")
        title = other.way.title
        place.markdown(
            _ui.say("**{name}**: {text}", name=title[0].upper() + title[1:], text=other.trade), width="stretch"
        )
        made = handoff.draft(advice, case, dataset=_ui.current("dataset"), way=other.way)
        if made is not None and place.button(t("Use this instead"), key=f"use_{number}", width="content"):
            _ui.go("train", draft=drafts.save(workspace, made))
    st.markdown(f"**{t('Ways that the guide only mentions')}**")
    for one in alternatives.mentioned():
        st.markdown(f"- **{_ui.plain(one.title)}**: {_ui.plain(one.verdict)}")


def _stages(advice: Advice) -> None:
    for number, stage in enumerate(advice.plan, 1):
        mark = ":material/check: " if stage.done else ":material/arrow_right: " if stage.now else ""
        here = t("(this step)") if stage.now else t("(done)") if stage.done else ""
        st.markdown(f"{mark}**{number:d}. {_ui.plain(stage.title)}** {here}  \n{_ui.plain(stage.text)}")
    if not advice.plan:
        st.caption(t("There is no plan while nothing can be trained."))


def _table_title(name: str) -> str:
    return {
        "rows": t("How many rows?"),
        "memory": t("How much GPU memory?"),
        "alignment": t("Ratings or comparisons of answers?"),
    }[name]


def _guide(advice: Advice) -> None:
    """The guide's three tables: the row that applies marked, with why, and the way to all of them."""
    rules = guide.rules()
    for name in TABLES:
        st.markdown(f"**{_ui.plain(_table_title(name))}**")
        rows = {row.rule: row for row in advice.tables[name]}
        fired = [row for row in rows.values() if row.fired]
        for row in fired or list(rows.values())[:1]:
            st.caption(_ui.plain(row.reason))
        st.table(_ui.cells(_frame([rules[rule] for rule in rows], fired), mark="→"), hide_index=True)
        for row in fired:
            _rule_link(rules[row.rule])
    st.page_link(
        _ui.PAGES / "guide.py", label=t("All rules, and what the sources say"), icon=":material/menu_book:",
        query_params=_ui.link_parameters(),
    )  # fmt: skip


def _frame(rules: list[guide.Rule], fired: list[tables.TableRow]) -> pd.DataFrame:
    """Return rules as a table, those that apply with an arrow."""
    words, marked = _ui.verdict_words(), {row.rule for row in fired}
    return pd.DataFrame(
        {
            t("When"): [f"→\u00a0{t(rule.when)}" if rule.id in marked else t(rule.when) for rule in rules],
            t("The guide says"): [rule.words for rule in rules],
            _ui.unbroken(t("Verdict")): [_ui.unbroken(words[rule.verdict]) for rule in rules],
            t("Tunebook uses"): [t(rule.value_used) for rule in rules],
        }
    )

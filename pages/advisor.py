"""Advisor: which recipe suits this data, machine and goal, by which rules of the guide, and what would change that."""

from __future__ import annotations

import streamlit as st

from engine.advise import Advice, Case, alternatives, for_data, handoff
from engine.plan import Plan, drafts, plans
from engine.words import t
from pages import _advisor_facts, _advisor_guide, _advisor_ways, _base, _forgetting_examples, _ui

_ui.heading(t("Advisor"), t("Which recipe suits your data, your machine and your goal, and why."))

workspace = _ui.workspace()


def _verdict(advice: Advice) -> None:
    """The verdict in one sentence, then the reasons."""
    st.subheader(_ui.say("Advice: {what}", what=advice.headline))
    _ui.problem_list(advice.problems)
    _ui.bullets(advice.reasons)
    for sentence in advice.stands_in:
        st.caption(_ui.plain(sentence))
    st.caption(
        _ui.say("Confidence: {level}. {reason}", level=_level(advice.confidence), reason=advice.confidence_reason)
    )


def _level(confidence: str) -> str:
    return {"high": t("high"), "medium": t("medium"), "low": t("low")}[confidence]


def _staged_plan(advice: Advice) -> None:
    if not advice.plan:
        return
    st.subheader(t("The plan"))
    for place, (number, stage) in zip(
        st.columns(len(advice.plan), border=True), enumerate(advice.plan, 1), strict=True
    ):
        mark = ":material/check: " if stage.done else ":material/arrow_right: " if stage.now else ""
        here = t("(this step)") if stage.now else t("(done)") if stage.done else ""
        place.markdown(f"{mark}**{number:d}. {_ui.plain(stage.title)}** {here}")
        place.markdown(_ui.plain(stage.text))
        if stage.rules:
            place.caption(_ui.say("Rules of the guide: {rules}", rules=", ".join(stage.rules)))


def _others(advice: Advice, case: Case) -> None:
    if advice.would_change:
        st.subheader(t("What would change this advice"))
        _ui.bullets(advice.would_change)
    road = {"prompt-only": "ppo", "preference": "dpo", "unpaired-preference": "kto"}.get(advice.facts.data_type or "")
    if road is not None and st.button(t("In stages: SFT, then preferences"), key="open_chain"):
        _ui.go("train", chain=road)
    if advice.runners_up:
        st.subheader(t("Runners-up"))
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
    if advice.overruled:
        st.subheader(t("Rules that apply and were not followed"))
        for rule in advice.overruled:
            parts = {"rule": rule.rule, "why": rule.why}
            if rule.partly:
                st.markdown("- " + _ui.say("{rule} was followed in part: {why}", **parts))
            else:
                st.markdown("- " + _ui.say("{rule} was not followed: {why}", **parts))
    with st.expander(t("Ways that the guide only mentions")):
        for one in alternatives.mentioned():
            st.markdown(f"- **{_ui.plain(one.title)}** ({_ui.plain(one.rule)}): {_ui.plain(one.verdict)}")


def _plan(case: Case, advice: Advice) -> Plan:
    """Return the plan that the base is held against: the advised one's, for the base and the machine that are here."""
    if advice.advised is not None and not case.stands_in:
        return case.plan(advice.advised)
    recipe, overrides = "lora", {}
    if advice.advised is not None and (made := handoff.draft(advice, case, dataset=None)) is not None:
        recipe, overrides = made.recipe, made.overrides
    return plans.make(workspace, recipe, base=case.own_base, dataset=dataset, overrides=overrides)


base = _base.select(workspace)
about_base = st.container()  # filled when there is a plan
dataset = _ui.current_dataset()
if dataset is None:
    _ui.empty(
        t("Without data the advice goes by machine and base alone. Bring a file, or take a sample."),
        "data",
        t("Go to Data"),
    )
said = _advisor_facts.ask(dataset, base)
if base.problems:
    st.warning(t("The base cannot be read, so its size is not known; the advice goes on without it."))
    _ui.problem_list(base.problems)
case, advice = for_data.for_data(workspace, base=base, data=dataset, said=said)
plan = _plan(case, advice)
with about_base:
    _base.panel(workspace, base, plan)
_verdict(advice)
made = handoff.draft(advice, case, dataset=_ui.current("dataset"))
if made is not None and st.button(t("Use this"), type="primary", icon=":material/arrow_forward:", key="use_this"):
    _ui.go("train", draft=drafts.save(workspace, made))
if not base.problems and _forgetting_examples.can_be_asked(workspace, plan.spec):
    with st.expander(t("Should you tune at all?"), expanded=True):
        _forgetting_examples.show(workspace, plan.spec)
_staged_plan(advice)
_advisor_ways.show(case, advice)
_others(advice, case)
_advisor_guide.show(advice)
_advisor_guide.show_all(advice)

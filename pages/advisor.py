"""Advisor: which recipe suits this data, machine and goal, in one sentence; what that takes, and why in a fold."""

from __future__ import annotations

import streamlit as st

from engine.advise import Advice, Case, for_data, handoff
from engine.models import Base
from engine.plan import Plan, drafts, plans
from engine.words import t
from pages import _advisor_facts, _advisor_why, _base, _forgetting_examples, _memory, _ui

_ui.heading(t("Advisor"))

workspace = _ui.workspace()


def _answer(advice: Advice, case: Case, base: Base) -> None:
    """The advice in one sentence, whose figures these are, what runs like it came to, and the memory it takes."""
    st.header(_ui.plain(advice.sentence), anchor=False)
    if base.problems:
        st.warning(t("The base cannot be read, so its size is not known; the advice goes on without it."))
        _ui.problem_list(base.problems)
    _ui.problem_list(advice.problems)
    if advice.stands_in:
        st.caption(_ui.plain(" ".join(advice.stands_in)))
    if advice.advised is None:
        _ui.bullets(advice.reasons)
        return
    plan = case.plan(advice.advised)
    minutes = advice.facts.time_budget_minutes
    if minutes is not None and plan.time is not None and plan.time.low_s > 60 * minutes:
        st.warning(
            _ui.say(
                "That is more than the {minutes} minutes you have: take fewer rows, one epoch, or a smaller base.",
                minutes=f"{minutes:g}",
            )
        )
    _advisor_why.evidence(advice)
    _memory.picture(plan)


def _plan(case: Case, advice: Advice) -> Plan:
    """Return the plan that the base here is held against: the advised one's, else one for the machine that is here."""
    if advice.advised is not None and case.base is case.own_base:
        return case.plan(advice.advised)
    recipe, overrides = "lora", {}
    if advice.advised is not None and (made := handoff.draft(advice, case, dataset=None)) is not None:
        recipe, overrides = made.recipe, made.overrides
    return plans.make(workspace, recipe, base=case.own_base, dataset=dataset, overrides=overrides)


named = _ui.current("base")
dataset = _ui.current_dataset()
card, model, data = _advisor_facts.chips(workspace, dataset)
said = _advisor_facts.card(card)
with model:
    base = _base.select(workspace)
    said |= _advisor_facts.model()
said |= _advisor_facts.data(data, workspace, dataset)
if _ui.current("base") != named:
    st.rerun()  # the chip above still names the one before
case, advice = for_data.for_data(workspace, base=base, data=dataset, said=said)
plan = _plan(case, advice)
with model:
    if case.base is case.own_base:
        _base.panel(workspace, base, plan)
_answer(advice, case, base)
with card:  # what is open lies over the answer
    st.markdown(f"**{_ui.plain(advice.sentence)}**")
made = handoff.draft(advice, case, dataset=_ui.current("dataset"))
if made is not None and st.button(t("Use this"), type="primary", icon=":material/arrow_forward:", key="use_this"):
    _ui.go("train", draft=drafts.save(workspace, made))
_advisor_why.fold(case, advice)
if not base.problems and _forgetting_examples.can_be_asked(workspace, plan.spec):
    with st.expander(t("Should you tune at all?")):
        _forgetting_examples.show(workspace, plan.spec)

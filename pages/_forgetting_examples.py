"""Asking the base first: what it makes of a new task without training, with worked examples in its context."""

from __future__ import annotations

import streamlit as st

from engine.forgetting import examples
from engine.runs import lifecycle, store
from engine.spec import RunSpec
from engine.words import t
from engine.workspace import Workspace
from pages import _failures, _forgetting_ask, _ui


def show(workspace: Workspace, planned: RunSpec) -> None:
    """Say what the base of a run, planned or made, can do already on its rows; or ask it, with the time that takes."""
    found = examples.asked(workspace, planned.base, planned.dataset)
    if any(run.status in store.LIVE for run, _ in found):
        _watch([run.id for run, _ in found if run.status in store.LIVE])
        return
    known = None
    try:
        known = examples.known(workspace, planned.base, planned.dataset)
    except (OSError, ValueError) as error:
        st.warning(_ui.say("What the base answered before cannot be read: {reason}", reason=error))
    if known is not None:
        st.markdown(_ui.plain(known.sentence))
        return
    made, problems = examples.build(workspace, planned.base, planned.dataset, quantize=planned.quantize)
    if made is None:
        _ui.problem_list(problems)
        return
    seconds = examples.seconds(workspace, planned.base, planned.dataset)
    label = t("Ask the base first")
    if seconds is not None:
        label = t("Ask the base first, about {time}", time=_ui.duration(max(1.0, seconds)))
    st.caption(
        _ui.say(
            "What does the base get right on the held-out rows already, as it is and with {n} rows as examples in its "
            "context? Nothing is trained.",
            n=examples.SHOTS,
        )
    )
    if st.button(_ui.plain(label), key="ask_base_first"):
        _forgetting_ask.start(workspace, made)


def can_be_asked(workspace: Workspace, planned: RunSpec) -> bool:
    """Whether rows of a run are of the kind that can be shown as examples: elsewhere nothing is offered."""
    return planned.objective == "sft" and examples.has_pairs(workspace, planned.dataset)


@_failures.fragment(run_every=2.0)
def _watch(run_ids: list[str]) -> None:
    workspace = _ui.workspace()
    going_on = [run for run in (store.line(workspace, run_id) for run_id in run_ids) if run.status in store.LIVE]
    if not going_on:
        st.rerun()
    for run in going_on:
        _forgetting_ask.progress(workspace, run)
        if st.button(t("Stop"), key=f"stop_first_{run.id}", disabled=run.status == "stopping"):
            lifecycle.stop(workspace, run.id)
            st.rerun()

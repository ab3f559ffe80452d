"""Forgetting: what a run learned and what it lost, on the same questions before and after; runs and sweeps compared."""

from __future__ import annotations

import streamlit as st

from engine.forgetting import evaluations, sweep_plan
from engine.report import items
from engine.runs import scored as runs_scored
from engine.runs import store
from engine.words import t
from pages import (
    _damaged,
    _failures,
    _forgetting_adopt,
    _forgetting_compare,
    _forgetting_run,
    _forgetting_sweeps,
    _forgetting_tables,
    _run_parts,
    _ui,
)

REFRESH_S = 2.0


@_failures.fragment(run_every=REFRESH_S)
def _going_on(run_id: str) -> None:
    """Show how far a run is that has not ended, and read the whole page again when it has: then its scores are there."""
    state = store.status(workspace, run_id)
    if state not in store.LIVE:
        st.rerun()
    found = _run_parts.followed(workspace, run_id)
    _run_parts.how_far(workspace, run_id, state, found.others, found.steps[-1] if found.steps else None)


_ui.heading(t("Forgetting"))

workspace = _ui.workspace()
_damaged.show(workspace, "questions")
runs = store.list_all(workspace)
known = runs[: _forgetting_compare.MOST_LISTED]
scored = [run for run in known if items.benchmarks_of(workspace.run_dir(run.id))]
evaluated = {run.id for run in known if run.recipe == evaluations.RECIPE.name}
told = {run.id for run in scored} | {one for one in evaluated if runs_scored.is_alone(workspace.run_dir(one))}
# What was asked of a run later stands with that run, whose page has both.
asked_of = {run.id: run.base.removeprefix("run:") for run in known if run.id in evaluated}
told -= {one for one, run_id in asked_of.items() if run_id in told}
wanted = _ui.current("run")
meant = asked_of[wanted] if wanted in asked_of and asked_of[wanted] in told else wanted
views = {"run": t("One run"), "compare": t("Runs against each other"), "sweep": t("Sweeps")}
is_sweep = any(run.id == wanted and run.recipe == sweep_plan.RECIPE.name for run in known)
if "forgetting_view" not in st.session_state:
    asked = st.query_params.get("view")
    st.session_state["forgetting_view"] = asked if asked in views else "sweep" if is_sweep else "run"
view = st.radio(
    t("What to look at"), list(views), format_func=lambda name: _ui.plain(views[name]),
    key="forgetting_view", horizontal=True, label_visibility="collapsed",
)  # fmt: skip
if view != "compare":
    for name in ("view", "runs"):
        st.query_params.pop(name, None)
going_on = _ui.known_run(wanted)
if going_on and store.status(workspace, going_on) not in store.LIVE:
    going_on = None
if going_on and view == "run" and not is_sweep:
    st.session_state["waited_for"] = going_on
    _going_on(going_on)
elif wanted == st.session_state.pop("waited_for", None) and meant in told:
    st.session_state["scored_run"] = meant
untrained = _ui.known_run(wanted)
if view == "sweep":
    _forgetting_sweeps.show(workspace)
elif view == "compare":
    _forgetting_compare.show(workspace, scored, meant, runs)
elif untrained and store.nothing_trained(workspace, untrained):
    text = t("This run ended before its first step: nothing was trained. Start it again, or delete it.")
    _ui.empty(text, "runs", t("Go to Runs"))
elif not told:
    st.write(t("What the model gained, and what it cost: the same questions, before and after."))
    text = t("No run has been scored yet. The scores come at the end of each run.")
    if _ui.known_run(wanted):
        _ui.empty(text, "runs", t("Go to Runs"))
    else:
        _ui.empty(text, "train", t("Start a run"))
    _forgetting_adopt.show(workspace)
else:
    names = _forgetting_tables.names(run for run in known if run.id in told)
    ids = list(names)
    if wanted and meant not in ids:
        strange = store.unreadable(workspace, wanted) if store.exists(workspace, wanted) else None
        if strange is not None:
            st.info(_ui.plain(strange.sentence))
        else:
            st.info(t("The run you were looking at has no scores yet; here is the newest that has."))
    run_id = st.selectbox(
        t("Run"), ids, index=ids.index(meant) if meant in ids else 0, format_func=lambda i: names[i], key="scored_run"
    )
    if run_id != meant and not going_on:  # what goes on stays in sight
        _ui.choose("run", run_id)
    others = _forgetting_compare.others(workspace, scored, run_id)
    _forgetting_run.show(workspace, run_id, runs, others)
    _forgetting_adopt.show(workspace)

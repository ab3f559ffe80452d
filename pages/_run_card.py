"""What a finished run came to, first on its page: gained, lost, what was set otherwise, and where it leads."""

from __future__ import annotations

import streamlit as st

from engine.benchmarks import library
from engine.export import artifacts
from engine.forgetting import recovery, summary
from engine.plan import drafts
from engine.report import items
from engine.runs import Run, store
from engine.runs import scored as runs_scored
from engine.spec import OBJECTIVES, RunSpec, settings
from engine.words import t
from engine.workspace import Workspace
from pages import _forgetting_recover, _forgetting_tables, _ui, _use

MOST_SETTINGS = 6


def show(here: Workspace, run: Run, runs: list[Run], spec: RunSpec) -> None:
    """Say what a finished run came to, with the headline of the Forgetting page. `runs` are all there are."""
    try:
        scored = runs_scored.of(here, run.id, runs)
        by_itself = [] if scored.rows else runs_scored.alone(scored.folder)
    except (OSError, ValueError) as error:
        st.error(_ui.say("The scores of this run cannot be compared: {reason}", reason=error))
        return
    if by_itself:
        _forgetting_tables.alone(by_itself, library.titles(here))
    if scored.rows:
        told = summary.of(scored, ())
        st.markdown(f"**{_ui.plain(told.headline)}**")
        lines = ((t("Gained"), told.gained), (t("Lost"), told.lost))
        st.markdown("  \n".join(_ui.say("**{name}**: {text}", name=title, text=text) for title, text in lines))
    _changed(here, run.id, spec)


def buttons(here: Workspace, run: Run, spec: RunSpec) -> None:
    """Lead from a finished run to what comes next: asking, comparing, exporting, recovering."""
    has_text = artifacts.made_by(here.run_dir(run.id)) is not None
    if (
        has_text
        and not OBJECTIVES[spec.objective].is_judge
        and st.button(t("Ask it"), icon=":material/chat:", key="ask_it")
    ):
        _ui.go("chat", run=run.id)
    if items.benchmarks_of(here.run_dir(run.id)) and st.button(
        t("Compare"), icon=":material/compare_arrows:", key="compare_it"
    ):
        st.session_state["forgetting_view"] = "compare"
        _ui.go("forgetting", run=run.id, view="compare")
    if has_text and st.button(t("Export"), icon=":material/download:", key="export_it"):
        _use.open_on(run.id)
    _recover(here, run.id, spec)


def _recover(here: Workspace, run_id: str, spec: RunSpec) -> None:
    """Lead to the way back toward the base, from a run that has one and from one that goes it."""
    if spec.recover is not None:
        if store.exists(here, spec.recover.run) and st.button(
            t("Look at the whole way"), icon=":material/undo:", key="to_way"
        ):
            _forgetting_recover.look(spec.recover.run)
    elif not recovery.problems(here, run_id) and st.button(
        t("Recover"), icon=":material/undo:", key="to_way", help=t("Go back toward the base, without training")
    ):
        _forgetting_recover.look(run_id)


def _changed(here: Workspace, run_id: str, spec: RunSpec) -> None:
    """Say which settings differ from those that the recipe gives on this base. They stay as they are: looked up once."""
    if spec.kind != "train":
        return
    kept = f"changed_{run_id}"
    if kept not in st.session_state:
        st.session_state[kept] = drafts.changed_settings(spec, here)
    changed = {path: value for path, value in st.session_state[kept].items() if path in settings.fields()}
    if not changed:
        st.caption(t("All settings are those of the recipe."))
        return
    fields = settings.fields()
    told = [
        t("{name}: {text}", name=t(fields[path].title), text=store.value_words(here, path, value))
        for path, value in changed.items()
    ]
    more = t(", and {n} more", n=len(told) - MOST_SETTINGS) if len(told) > MOST_SETTINGS else ""
    st.caption(_ui.say("Set otherwise than the recipe: {settings}", settings="; ".join(told[:MOST_SETTINGS]) + more))

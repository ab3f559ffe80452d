"""Bringing a model that was tuned elsewhere: two paths and a button on the Forgetting page."""

from __future__ import annotations

import secrets

import streamlit as st

from engine import limits
from engine.benchmarks import library
from engine.forgetting import adoption
from engine.words import t
from engine.workspace import Workspace
from pages import _ui

FOLDER_EXAMPLE = "~/outputs/checkpoint-300"


def show(workspace: Workspace) -> None:
    """Offer to make a run of a folder; in a demo, where nobody names folders, nothing."""
    if limits.on():
        return
    with st.expander(t("Bring a tuned model"), icon=":material/move_to_inbox:"):
        st.caption(
            t(
                "An adapter or a whole model that peft, Unsloth, LLaMA-Factory or Axolotl has trained is copied, scored "
                "against its base, and can be used like a run."
            )
        )
        path = st.text_input(t("Folder of the adapter or model"), key="adopt_path", placeholder=FOLDER_EXAMPLE)
        ref = st.text_input(
            t("Its base"),
            key="adopt_base",
            placeholder=t("as the adapter names it"),
            help=t("starter, a folder, a Hugging Face id, or run:<id>. A whole model does not name its base."),
        )
        if not path.strip():
            return
        found, problems = adoption.build(workspace, path, ref)
        if found is None:
            _ui.problem_list(problems)
            return
        asked = library.sets(toy=found.base.is_toy)["quick"]
        found, problems = adoption.build(
            workspace, path, ref, benchmarks=asked.benchmarks, limit=asked.limit
        )  # with questions that take a minute; more can be asked of the run
        _ui.problem_list(problems)
        if found is None:
            return
        for note in found.notes:
            st.caption(_ui.plain(note))
        size = f"{found.size_bytes / 1e6:,.1f}"
        st.caption(_ui.say("{size} MB, on {base}.", size=size, base=found.base.title))
        if st.button(t("Bring it"), type="primary", key="adopt_start"):
            _start(workspace, found)


def _start(workspace: Workspace, found: adoption.Adoption) -> None:
    click, bar = st.session_state.setdefault("adopt_click", secrets.token_hex(8)), st.empty()

    def on_share(share: float) -> None:
        bar.progress(share, _ui.say("Reading the folder ..."))

    try:
        run_id = adoption.start(workspace, found, click_id=click, on_share=on_share)
    except limits.OverLimit as refused:
        _ui.problem_list(refused.problems)
    else:
        del st.session_state["adopt_click"]
        _ui.choose("run", run_id)
        _ui.go("runs")

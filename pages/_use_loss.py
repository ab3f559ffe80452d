"""Use it, as one file: what the file lost against the model it was made of, beside its download."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from engine.export import gguf
from engine.quantised import lost, said
from engine.words import joined, t
from engine.workspace import Workspace
from pages import _ui


def show(here: Workspace, run_id: str, kind: str, size: str, *, busy: bool, ask: Callable[[], None]) -> None:
    """Say in one line what a file lost, and what has to be known of that; where that was not measured, its size, and
    offer it: `ask` starts a job, and `busy` says that one is under way."""
    found = lost.read(gguf.file_of(here, run_id, kind))
    if found is None:
        st.caption(_ui.plain(joined(size, t("What it lost against the model was not measured yet."))))
    else:
        st.markdown(f"**{_ui.plain(said.sentence(found))}**")
        st.caption(_ui.plain(joined(*said.notes(found))))
    if (found is None or found.lost.failure is not None) and st.button(
        t("Measure what it lost"), disabled=busy, key="ask_file"
    ):
        ask()

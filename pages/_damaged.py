"""What of the home cannot be read, on the page it belongs to: each with its place, the reason, and a way to delete it."""

from __future__ import annotations

import streamlit as st

from engine import damaged, limits
from engine.words import t
from engine.workspace import Workspace
from pages import _ui


def show(workspace: Workspace, *kinds: damaged.Kind) -> None:
    """List what of these kinds cannot be read; nothing where all can."""
    found = damaged.find(workspace, *kinds)
    if not found:
        return
    words = {
        "data": t("Data"),
        "chain": t("Chain"),
        "draft": t("Draft"),
        "model": t("Model"),
        "questions": t("Questions"),
    }
    with st.expander(_ui.say("Cannot be read ({n})", n=len(found)), icon=_ui.STATUS_ICONS["broken"]):
        for one in found:
            place = one.place.relative_to(workspace.root) if limits.on() else one.place
            st.markdown(f"**{_ui.plain(words[one.kind])}** {_ui.plain(place)}")
            left, right = st.columns([5, 1], vertical_alignment="center")
            left.caption(_ui.plain(one.problem.sentence))
            with right.popover(t("Delete")):
                st.write(t("It cannot be undone."))
                if st.button(t("Delete for good"), type="primary", key=f"delete_damaged_{one.kind}_{one.place.name}"):
                    damaged.delete(one)
                    st.rerun()

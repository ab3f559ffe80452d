"""What of the home cannot be read, on the page it belongs to: each with its place, the reason, and a way to delete it."""

from __future__ import annotations

from functools import partial

import streamlit as st

from engine import damaged, limits
from engine.data import datasets
from engine.runs import store
from engine.words import t
from engine.workspace import Workspace
from pages import _delete, _ui


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
            st.caption(_ui.plain(one.problem.sentence))
            runs = datasets.users(workspace, one.place.name) if one.kind == "data" else []
            _delete.offer(
                f"damaged_{one.kind}_{one.place.name}",
                f"{words[one.kind]} {one.place.name}",
                t("This deletes what is left of it."),
                partial(damaged.delete, one),
                size=_delete.size_of(one.place),
                depends=[
                    t(
                        "the run {name} uses it, and can be neither resumed nor repeated then",
                        name=store.name(workspace, run),
                    )
                    for run in runs
                ],
            )

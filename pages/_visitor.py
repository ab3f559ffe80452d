"""Who is here, in a hosted demo: the session's own workspace, and the question before somebody else's is opened."""

from __future__ import annotations

import streamlit as st

from engine import guard, limits, visitors
from engine.words import t
from engine.workspace import Workspace


def _mark() -> str | None:
    """Return this browser's mark, or None where it keeps no cookie. It is never shown, kept or written into a page."""
    return guard.mark_of(st.context.cookies.get(guard.MARK))


def workspace() -> Workspace:
    """Return the workspace of this session, which only asked() and ask() may have taken from the address. One that was
    deleted when its time was over is followed by a new one, under a number that no old link names."""
    visitor = st.session_state.get("visitor")
    is_there = visitor is not None and visitors.workspace_of(visitor) is not None
    if visitor is None or (st.session_state.get("has_stored") and not is_there):
        visitor, is_there = visitors.draw(), False
    st.session_state["visitor"], st.session_state["has_stored"] = visitor, is_there
    if st.query_params.get("visitor") != visitor:
        st.query_params["visitor"] = visitor
    found = visitors.place(visitor)
    if is_there and not visitors.knows(found, _mark()):
        visitors.remember(found, _mark())
    return found


def asked() -> str | None:
    """Return the number of a workspace that the address names and this browser was never in: nothing of it is shown before
    somebody has said that they want that. One it was in is entered."""
    named = st.query_params.get("visitor")
    found = visitors.workspace_of(named) if limits.on() and "visitor" not in st.session_state else None
    if found is None:
        return None
    if not visitors.knows(found, _mark()):
        return named
    st.session_state["visitor"] = named
    return None


def ask(visitor: str) -> None:
    """Ask whether a workspace is to be opened."""
    st.title(t("Open this workspace?"))
    st.write(
        t(
            "The address leads to a workspace that this browser is not known to have been in. It may be somebody else's, or "
            "your own, from another browser or from before the cookies of this one were deleted. Whoever has the address "
            "sees and can change all that is in it, you and whoever gave it to you."
        )
    )
    if _mark() is None:
        st.caption(t("This browser keeps no cookie of this page: the question comes each time."))
    with st.container(horizontal=True):
        own = st.button(t("Start one of my own"), type="primary", icon=":material/add:", key="own_workspace")
        opened = st.button(t("Open it"), key="open_workspace")
    if own:
        _begin()
    if opened:
        _open(visitor)


def _begin() -> None:
    st.session_state["visitor"] = visitors.draw()
    language = st.query_params.get("lang")
    st.query_params.from_dict({"lang": language} if language else {})  # the rest names what is in the other
    st.rerun()


def _open(visitor: str) -> None:
    found = visitors.workspace_of(visitor)
    if found is not None:  # else it was deleted meanwhile
        st.session_state["visitor"] = visitor
        visitors.remember(found, _mark(), came_by_link=True)
    st.rerun()

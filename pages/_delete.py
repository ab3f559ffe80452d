"""One way to delete anything: what is lost and what it takes on disk stand above one button, which does it for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

from engine.estimate import memory
from engine.words import t
from engine.workspace import disk_bytes
from pages import _failures, _ui

# So many of what depends on something are named.
MOST_NAMED = 6


def offer(
    name: str,
    title: str,
    what: str,
    delete: Callable[[], None],
    *,
    size: str = "",
    depends: Sequence[str] = (),
    stays: str = "",
) -> None:
    """Offer to delete something. `name` is its kind and id, of which the keys are made, `title` what a person calls it.

    `what` is lost, a sentence, and its `size` on disk stand above the button that calls `delete`. What `depends` on it is
    named, a line each, and asks for a tick first. `stays` is why it cannot be deleted now: it is said instead of the button.
    What `delete` raises is said in its place; that it is done, by said() on the page that comes.
    """
    with st.popover(t("Delete"), icon=":material/delete:", key=f"deleting_{name}"):
        st.write(_ui.plain(what))
        st.caption(_ui.say("It frees {size}. It cannot be undone.", size=size) if size else t("It cannot be undone."))
        if depends:
            st.write(t("What would be lost with it:"))
            _ui.bullets(depends[:MOST_NAMED])
            if len(depends) > MOST_NAMED:
                st.caption(_ui.say("and {n} more", n=len(depends) - MOST_NAMED))
        if stays:
            st.info(_ui.plain(stays))
            return
        known = not depends or st.checkbox(t("Delete it all the same"), key=f"delete_anyway_{name}")
        if st.button(
            t("Delete for good"), type="primary", icon=":material/delete:", key=f"delete_{name}", disabled=not known
        ):
            with _failures.said():
                delete()
                st.session_state["deleted"] = title
                st.rerun()


def said() -> None:
    """Say, once, what was deleted: where it stood there is nothing left to say it."""
    title = st.session_state.pop("deleted", None)
    if title is not None:
        st.toast(_ui.say("Deleted: {name}", name=title), icon=":material/delete:")


def size_of(*places: Path) -> str:
    """Return in words what files or folders take on disk, without what links in them lead to."""
    return memory.size_words(sum(map(disk_bytes, places)))

"""Jobs that a page begins by itself, one at a time for each purpose, and follows while a person goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from engine import limits
from engine.data import jobs
from engine.words import t
from pages import _failures, _ui

POLL_S = 0.5


def begin(purpose: str, wanted: str, call: jobs.Call) -> bool:
    """Start the job of a purpose for what is `wanted`, unless it was; one for other data goes on by itself. For what only
    an address has named it starts with a click: returns whether it was started."""
    if st.session_state.get(purpose, ("", ""))[0] == wanted:
        return True
    needed = ("dataset", "base") if call.base else ("dataset",)
    if _ui.only_named(*needed):
        st.caption(
            t("The address names this data or this base, and nobody has chosen it here: reading it takes a click.")
        )
        if not st.button(t("Start reading"), key=f"{purpose}_go"):
            return False
        for name in needed:
            _ui.choose(name, _ui.current(name))
    try:
        st.session_state[purpose] = wanted, str(jobs.start(call))
    except (limits.OverLimit, OSError) as error:
        st.session_state[purpose] = wanted, ""
        st.error(_ui.plain(_failures.sentence(error)))
    return True


@_failures.fragment(run_every=POLL_S)
def watch(purpose: str, said: Callable[[int], str], again_key: str) -> None:
    """Follow the job of a purpose by itself, and read the whole page again once it has done its work; the rest as in
    followed()."""
    result = followed(purpose, said, again_key)
    if result is None:
        return
    if result.problem is None:
        st.rerun()
    st.error(_ui.plain(result.problem.sentence))


def followed(purpose: str, said: Callable[[int], str], again_key: str) -> jobs.Result | None:
    """Show how far the job of a purpose is, as `said` of a percentage, and return its result once it is there. After one
    that failed there is a button to try again."""
    wanted, job = st.session_state.get(purpose, ("", ""))
    if not job:  # it has failed, and was said
        if wanted and st.button(t("Try again"), key=again_key):
            del st.session_state[purpose]
            st.rerun()
        return None
    folder = Path(job)
    result = jobs.result(folder)
    if result is None:
        now = jobs.progress(folder)
        st.progress(now.share, text=_ui.plain(_ui.with_time_left(said(int(100 * now.share)), now)))
        return None
    jobs.forget(folder)
    if result.problem is None:
        del st.session_state[purpose]
    else:
        st.session_state[purpose] = wanted, ""
    return result

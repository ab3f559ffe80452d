"""Serve it: an address at which other programs ask a run; a part of "Use it" on the page of a run."""

from __future__ import annotations

import streamlit as st

from engine.serve import lines, programs, serving
from engine.words import t
from engine.workspace import Workspace
from pages import _failures, _ui

REFRESH_S = 1.0
# What they are called is the same in every language.
PYTHON, CURL, OLLAMA = "Python", "curl", "Ollama"


def show(here: Workspace, run_id: str) -> None:
    """Offer to serve a run, or say how it is asked and let it be ended."""
    try:
        serving.check(here, run_id)
    except serving.NotServed as error:
        st.caption(_ui.plain(error))
        return
    one = serving.now(here, run_id)
    if one is not None and one.failure is not None:
        st.error(_ui.plain(one.failure))
        if st.button(t("Put this note away"), key="serve_forget"):
            serving.stop(here, run_id)
            st.rerun()
    if one is None or one.failure is not None:
        _offer(here, run_id)
    elif one.is_ready:
        _lines(here, one)
    else:
        _follow(here, run_id)
    if one is not None and one.failure is None and st.button(t("Stop serving it"), key="serve_stop"):
        serving.stop(here, run_id)
        st.rerun()


def _offer(here: Workspace, run_id: str) -> None:
    st.write(
        t(
            "An address on this machine that any program for OpenAI's API can ask, answered by this model alone. "
            "It goes on when this page is closed, until you stop it."
        )
    )
    found = programs.choices(here, run_id)
    try:
        first = serving.chosen(here, run_id, None)
    except serving.NotServed as error:
        st.info(_ui.plain(error))
        return
    if len(found) > 1:
        first = st.selectbox(t("What answers"), found, format_func=lambda one: one.title, key="serve_with")
    else:
        st.caption(_ui.say("It is answered with {what}.", what=first.title))
    if st.button(t("Serve it"), type="primary", key="serve"):
        try:
            serving.start(here, run_id, quantization=first.quantization or first.program)
        except serving.NotServed as error:
            st.error(_ui.plain(error))
        else:
            st.rerun()


@_failures.fragment(run_every=REFRESH_S)
def _follow(here: Workspace, run_id: str) -> None:
    one = serving.now(here, run_id)
    if one is None or one.failure is not None or one.is_ready:
        st.rerun()
        return
    share = serving.merging(here, run_id) or 0.0
    st.progress(share, text=_ui.plain(serving.phase_words().get(one.phase, one.phase)))


def _lines(here: Workspace, one: serving.Serving) -> None:
    st.success(_ui.say("It is served at {address}", address=one.address))
    st.caption(t("Its key, which each request must bring:"))
    st.code(one.key, language=None)
    in_python, by_curl, in_ollama = st.tabs([_ui.plain(PYTHON), _ui.plain(CURL), _ui.plain(OLLAMA)])
    in_python.code(lines.python(one), language="python", wrap_lines=True)
    by_curl.code(lines.curl(one), language="bash", wrap_lines=True)
    if (ollama := lines.ollama(here, one)) is not None:
        in_ollama.code(ollama, language="bash", wrap_lines=True)
    else:
        in_ollama.caption(t('Ollama takes a GGUF file: make one under "GGUF, Ollama" first.'))
    st.caption(t("The same from the command line:"))
    st.code(f"tunebook serve {one.run}\ntunebook serve --stop {one.run}", language="bash")

"""What fails on a page is said in words, whichever action or part it is: the page is shown all the same, without a trace."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import streamlit as st

from engine import limits
from engine.check import DatasetError, os_problem
from engine.models import hub_client
from engine.render import NoTokenizer
from engine.words import joined, set_language, t
from pages import _ui

# What a home that is full, read-only or damaged, a lost file or a number beyond measure raises. Anything else is a mistake
# of ours, and is shown as one.
ERRORS = (OSError, ValueError, RecursionError, MemoryError, DatasetError, NoTokenizer, hub_client.HubError)
_KEPT = "failed_action"
_log = logging.getLogger(__name__)


def sentence(error: BaseException) -> str:
    """Return what went wrong and what to do about it."""
    one = getattr(error, "problem", None)
    problems = getattr(error, "problems", ()) if one is None else (one,)
    if problems:
        return joined(*(problem.sentence for problem in problems))
    if isinstance(error, OSError):
        path = str(error.filename or "")
        return os_problem(error, Path(path).name if limits.on() else path or t("a file")).sentence
    return t("This could not be done: {reason}. Nothing else has changed.", reason=str(error) or type(error).__name__)


def run(page: Callable[[], Any]) -> None:
    """Run a page. An action that fails is said above the page, which is drawn anew as it was; so is what keeps a page from
    being drawn, in the place where it ends."""
    before = st.session_state.pop(_KEPT, None)
    if before is not None:
        st.error(_ui.plain(before), icon=":material/error:")
    try:
        with suppress(_ui.PageEnds):
            page()
    except ERRORS as error:
        said = _noted(error)
        if before is None:
            st.session_state[_KEPT] = said
            st.rerun()
        if said != before:
            st.error(_ui.plain(said), icon=":material/error:")


@contextmanager
def said() -> Iterator[None]:
    """Say what fails inside, in its place; what comes after it is shown."""
    try:
        yield
    except ERRORS as error:
        st.error(_ui.plain(_noted(error)), icon=":material/error:")


def fragment(*, run_every: float | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return st.fragment for a function that says something: a fragment runs again without the frame, in a thread of
    its own, which would begin in English, and nobody else would say what fails there."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def speaking(*arguments: Any, **named: Any) -> Any:
            set_language(st.session_state.get("language"))
            with said():
                return function(*arguments, **named)

        return st.fragment(speaking, run_every=run_every)

    return wrap


def kept(action: Callable[..., None]) -> Callable[..., None]:
    """Return an action for on_click and on_change, which run before the page, that is said above it where it fails."""

    @functools.wraps(action)
    def tried(*arguments: Any, **named: Any) -> None:
        try:
            action(*arguments, **named)
        except ERRORS as error:
            st.session_state[_KEPT] = _noted(error)

    return tried


def _noted(error: BaseException) -> str:
    """Return what is said of an error; its trace goes to the server's log."""
    _log.log(logging.WARNING, "a page met this", exc_info=error)
    return sentence(error)

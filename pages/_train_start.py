"""The Train page's last word: what keeps the run from starting, what should be looked at, and Start, always in view."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import streamlit as st

from engine import limits
from engine.plan import Plan, tries
from engine.runs import lifecycle, store
from engine.spec import RunSpec, schema, settings
from engine.words import Problem, t
from pages import _problems, _train_settings, _ui

# The second click of a double click comes with the same specification a moment later and must not start a second run.
DOUBLE_CLICK_S = 5.0
SHOWN = 3  # so many lines stand above Start; the page is to be seen behind it


def bar(
    plan: Plan, problems: list[Problem], overrides: dict[str, Any], name: str, *, at_base: list[Problem]
) -> None:  # fmt: skip
    """Show it below the page, whatever part of that is in view. What is said `at_base`, the field, is not said again."""
    with st.bottom:
        lines = [*(one for one in problems if one not in at_base), *plan.warnings]
        _lines(lines[:SHOWN], plan, overrides)
        if rest := lines[SHOWN:]:
            with st.expander(_ui.say("{n} more", n=len(rest))):
                _lines(rest, plan, overrides)
        _start(plan, problems, name, at_base)


def _lines(lines: list[Problem], plan: Plan, overrides: dict[str, Any]) -> None:
    """One line each; a warning has a button that puts its setting right."""
    for one in lines:
        said = _problems.in_titles(one, only_what=one.severity == "warning")
        if one.severity != "warning":
            st.markdown(":red[**:material/error:**] " + _ui.plain(said))
            continue
        path = str(one.where)
        usual = settings.value_words(path, plan.put_right[path])
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(":orange[**:material/warning:**] " + _ui.plain(said), width="content")
            label = t("Set {title} to {value}", title=t(settings.fields()[path].title), value=usual)
            if st.button(_ui.plain(label), key=f"put_right_{path}"):
                overrides[path] = plan.put_right[path]
                _train_settings.new_form()
                st.rerun()


def _start(plan: Plan, problems: list[Problem], name: str, at_base: list[Problem]) -> None:
    """The button; before a long run on a large file the first button is a try on few rows."""
    waiting = sum(run.status in store.LIVE for run in store.list_all(plan.workspace)[:50])
    tried = tries.of(plan) if not problems and tries.comes_first(plan) else None
    with st.container(horizontal=True, vertical_alignment="center"):
        if tried is None:
            if st.button(
                t("Start"), type="primary", icon=":material/play_arrow:", disabled=bool(problems), key="start"
            ):
                _started(plan, plan.spec, name)
        else:
            minutes = max(1, round(tried.time.likely_s / 60)) if tried.time is not None else "?"
            label = t("Try {n} rows first (about {minutes} minutes), then all", n=f"{tries.ROWS:,}", minutes=minutes)
            about = t("A short run shows mistakes in the data as well as a long one. Its page leads on to all rows.")
            if st.button(_ui.plain(label), type="primary", icon=":material/science:", key="try_first", help=about):
                _started(plan, tried.spec, name)
            if st.button(t("Start with all rows"), icon=":material/play_arrow:", key="start"):
                _started(plan, plan.spec, name)
        if at_base:
            st.caption(t("This run cannot start yet: see the model above."), width="content")
        elif problems:
            st.caption(t("This run cannot start yet."), width="content")
        elif waiting:
            said = _ui.say("Runs going on or waiting: {n}. This one waits its turn.", n=waiting)
            st.caption(said, width="content")


def _started(plan: Plan, run_spec: RunSpec, name: str) -> None:
    """Start a run, once for the two clicks of a double click, and follow it."""
    click = hashlib.sha256(schema.encode(run_spec) + name.encode()).hexdigest()[:16]
    started = st.session_state.get("started", {})
    if time.monotonic() - started.get(click, (0.0, ""))[0] > DOUBLE_CLICK_S:
        started.pop(click, None)
    token, run_id = st.session_state.setdefault("click_token", secrets.token_hex(8)), started.get(click, (0, ""))[1]
    try:
        run_id = run_id or lifecycle.start(plan.workspace, run_spec, name=name or None, click_id=f"{click}-{token}")
    except limits.OverLimit as refused:
        st.error(t("This run cannot start yet:"))
        _ui.problem_list(refused.problems)
    else:
        st.session_state["started"] = {**started, click: (time.monotonic(), run_id)}
        st.session_state["click_token"] = secrets.token_hex(8)
        _ui.choose("run", run_id)
        _ui.go("runs")

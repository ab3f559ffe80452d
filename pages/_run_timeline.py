"""A run's way on its page: its parts with counts and times, the clock, and the panels of its figures."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from contextlib import suppress

import pandas as pd
import streamlit as st

from engine import events
from engine.check import DatasetError
from engine.estimate import phases
from engine.plan import plans
from engine.render import NoTokenizer
from engine.runs import store
from engine.spec import objectives
from engine.words import t
from engine.workspace import Workspace
from pages import _charts, _run_parts, _ui

HEIGHT = 240
# Rows of the table beside the charts; a reader of the screen goes through them one by one.
MOST_ROWS = 40
_LIST = "display:flex;flex-wrap:wrap;gap:.4rem;list-style:none;margin:0;padding:0;font-size:.875rem"
_PART = "margin:0;padding:.25rem .6rem;border-radius:.5rem;border:1px solid rgba(128,128,128,.45)"
_NOW = "margin:0;padding:.25rem .6rem;border-radius:.5rem;border:2px solid currentColor;font-weight:600"
_MARKS = {"done": "✓", "now": "▶", "to come": "○", "ended": "■"}


def _expected(here: Workspace, run_id: str) -> dict[str, float]:
    """Return the seconds that each phase of a run is expected to take, as Train said; worked out once in a session."""
    kept = f"expected_{run_id}"
    if kept not in st.session_state:
        found: dict[str, float] = {}
        with suppress(DatasetError, NoTokenizer, OSError, ValueError):
            spec = store.load_spec(here, run_id)
            lasts = plans.of_spec(here, spec).time if spec.kind == "train" else None
            found = {line.phase: line.likely_s for line in lasts.lines} if lasts is not None else {}
            found["training"] = found.get("training", 0.0) + found.pop("samples", 0.0) + found.pop("on the way", 0.0)
        st.session_state[kept] = {phase: seconds for phase, seconds in found.items() if seconds >= 0.5}
    return st.session_state[kept]


def road(here: Workspace, run_id: str, state: str) -> list[phases.Stage]:
    """Return a run's way, part by part, as far as its events tell."""
    found, live = _run_parts.followed(here, run_id).all, state in store.LIVE
    if not found:
        return []
    expected = _expected(here, run_id) if live else {}
    until_s = time.monotonic() if live else found[-1].monotonic_s
    return phases.road(found, live=live, until_s=until_s, expected=expected)


def show(stages: Sequence[phases.Stage]) -> None:
    """Show the parts in a row that wraps, each with its count and its time, and what they come to."""
    if not stages:
        return
    parts = "".join(_part(one) for one in stages)
    st.html(f'<ol aria-label="{html.escape(t("What the run goes through"))}" style="{_LIST}">{parts}</ol>')
    taken_s, left = sum(one.took_s for one in stages), [one.left_s for one in stages if one.state in ("now", "to come")]
    said = t("{time} so far", time=_ui.duration(taken_s)) if left else t("{time} in all", time=_ui.duration(taken_s))
    told = [one for one in left if one is not None]
    if told and len(told) == len(left):
        said = t("{time} so far, about {left} left", time=_ui.duration(taken_s), left=_ui.duration(sum(told)))
    st.caption(_ui.plain(said))


def _part(one: phases.Stage) -> str:
    words = []
    if one.state == "now" and one.total:
        words.append(t("{done} of {total}", done=f"{one.done:,}", total=f"{one.total:,}"))
    if one.took_s >= 0.5:
        words.append(_ui.duration(one.took_s))
    if one.left_s is not None:
        left = _ui.duration(max(1.0, one.left_s))
        words.append(t("about {time}", time=left) if one.state == "to come" else t("about {time} left", time=left))
    share = min(100.0, 100 * one.done / one.total) if one.state == "now" and one.total else 0.0
    wash = (
        f";background:linear-gradient(90deg,rgba(66,99,235,.22) {share:.0f}%,transparent {share:.0f}%)" if share else ""
    )
    style, current = (_NOW, ' aria-current="step"') if one.state == "now" else (_PART, "")
    said = html.escape(" · ".join([one.name, *words]))
    return f'<li style="{style}{wash}"{current}><span aria-hidden="true">{_MARKS[one.state]}</span> {said}</li>'


def panels(run_id: str, objective: objectives.Objective, found: _run_parts.Followed) -> None:
    """Show how it learns in panels, how it works in a fold, and both as a table in another."""
    steps, evals = found.steps, found.evals
    if not steps:
        return
    watched = next((event for event in reversed(found.others) if isinstance(event, events.Watched)), None)
    first, others = _charts.first(objective, steps, evals, watched), _charts.others(steps)
    _grid(run_id, first)
    _ui.fold(t("Rate, gradients, speed and memory"), f"works_{run_id}", lambda: _grid(run_id, others))
    _ui.fold(t("The same as a table"), f"values_{run_id}", lambda: _values([*first, *others]))


def _values(shown: Sequence[_charts.Panel]) -> None:
    st.table(_ui.cells(pd.DataFrame(_charts.rows(shown, MOST_ROWS)).set_index(t("step"))))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _grid(run_id: str, shown: Sequence[_charts.Panel]) -> None:
    for start in range(0, len(shown), 2):
        pair = shown[start : start + 2]
        for column, panel in zip(st.columns(min(2, len(shown))), pair, strict=False):
            with column:
                now = [(line.name, line.points[-1][1]) for line in panel.lines]
                told = [_number(value) if len(now) == 1 else f"{name} {_number(value)}" for name, value in now]
                hint = f" ({panel.hint})" if panel.hint else ""
                text = f"**{_ui.plain(panel.title)}**{_ui.plain(hint)}  \n{_ui.plain(' · '.join(told))}"
                st.markdown(text, help=_ui.plain(panel.about) if panel.about else None)
                if not panel.is_line:
                    st.caption(t("Too few values for a line."))
                    continue
                alt = t("{name} over the steps", name=panel.title)
                st.echarts_chart(panel.chart, height=HEIGHT, key=f"{panel.key}_{run_id}", alt=alt)

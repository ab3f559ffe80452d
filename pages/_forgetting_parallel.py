"""The configurations of a sweep as lines through their settings and what they came to; on a phone a table instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.forgetting import claims, sweep_plan
from engine.report import frontier
from engine.spec import settings
from engine.words import t
from pages import _theme, _ui

# Read on both grounds: from orange, what was lost, to teal, what was kept.
BAD_END, GOOD_END = "#d9622b", "#149e8f"


def show(found: Sequence[claims.Configuration]) -> None:
    """Draw a line for each configuration that was scored, where there are two or more; nothing else."""
    known = [one for one in found if one.point.gain is not None and one.point.change is not None]
    if len(known) < 2:
        return
    st.markdown(f"**{_ui.plain(t('Settings and what they came to'))}**")
    columns = axes(known)
    with st.container(key="wide_parallel"):
        drawn = _ui.figure(figure(columns, len(known)))
        st.plotly_chart(
            drawn,
            key="parallel",
            config=_theme.STILL,
            alt=t("Settings, gain and loss of each configuration"),
        )
        with st.expander(t("Its values in a table")):
            _values(columns)
    with st.container(key="narrow_parallel"):  # a hundred lines of a finger's width are no picture
        _values(columns)


def _values(columns: Mapping[str, Sequence[Any]]) -> None:
    st.table(_ui.cells(pd.DataFrame(columns)), hide_index=True, border="horizontal")


def axes(found: Sequence[claims.Configuration]) -> dict[str, list[Any]]:
    """Return each axis by its title: the recipe and the settings that differ, then what was gained and lost, in points
    where they are told so."""
    paths = list(dict.fromkeys(path for one in found for path in one.set))
    columns: dict[str, list[Any]] = {t("Recipe"): [sweep_plan.label(one.recipe, {}) for one in found]}
    for path in paths:
        values = [one.set.get(path) for one in found]
        if len(set(map(str, values))) > 1:
            title = t(settings.fields()[path].title) if path in settings.fields() else path
            columns[title] = ["–" if value is None else settings.value_words(path, value) for value in values]
    if len(set(columns[t("Recipe")])) < 2:
        del columns[t("Recipe")]
    in_points = frontier.in_points(found[0].point.measure)
    columns[t("Gained, points") if in_points else t("Gained")] = [
        round((100 if in_points else 1) * (one.point.gain or 0.0), 1 if in_points else 3) for one in found
    ]
    columns[t("Lost, points")] = [
        round(-100 * (one.point.change or 0.0), 1) + 0.0 for one in found
    ]  # there is one zero
    return columns


def figure(columns: Mapping[str, Sequence[Any]], lines: int) -> go.Figure:
    """Draw a line for each configuration through its values, coloured by what it lost: its last axis."""
    lost = list(columns.values())[-1]
    drawn = go.Figure(
        go.Parcoords(
            line={"color": list(lost), "colorscale": [[0, GOOD_END], [1, BAD_END]]},
            dimensions=[_axis(title, values) for title, values in columns.items()],
            labelfont={"size": 13, "color": _theme.of("textColor")}, tickfont={"size": 12, "color": _theme.of("textColor")},
            labelside="bottom", rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
        )
    )  # fmt: skip
    drawn.update_layout(height=240 + 8 * min(lines, 20), margin={"l": 70, "r": 50, "t": 16, "b": 40})
    return drawn


def _axis(title: str, values: Sequence[Any]) -> dict[str, Any]:
    """Return one axis; of words each has its place, numbers in words by their size."""
    if not any(isinstance(value, str) for value in values):
        return {"label": title, "values": list(values)}
    places = sorted(set(map(str, values)), key=_order)
    ticks = list(range(len(places)))
    return {
        "label": title,
        "values": [places.index(str(value)) for value in values],
        "tickvals": ticks,
        "ticktext": places,
    }


def _order(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value

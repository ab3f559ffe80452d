"""The Forgetting page's trade of gain against what was kept: the chart, its two sliders, and the table behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.report import frontier, items, statistics, verdicts
from engine.words import t
from pages import _ui
from pages._forgetting_tables import STRONG
from pages._forgetting_tables import name as name_of

GREY = "#8b93a5"
PICKED = "#e8590c"
# About what is left for the points of the frontier between its title and its axis, and the height of a name there.
PLOT_PIXELS, LINE_PIXELS = 330, 17


def figure_with(value: float | None, low: float | None, high: float | None, scale: float, *, signed: bool) -> str:
    """Return a value with its interval, or a dash."""
    if value is None:
        return "–"
    form = "{:+.1f}" if signed and scale == 100 else "{:.1f}" if scale == 100 else "{:+.3f}"
    if low is None or high is None or math.isinf(low) or math.isinf(high):
        return form.format(scale * value)
    return f"{form.format(scale * value)} [{form.format(scale * low)} … {form.format(scale * high)}]"


def frontier_figure(points: Sequence[frontier.Point], picked: frontier.Point | None) -> go.Figure:
    """Draw gain against retention: the frontier joined by a line, dominated points grey, the picked one ringed."""
    known = [one for one in points if one.gain is not None and one.retention is not None]
    measure = known[0].measure if known else None
    scale = 100 if frontier.in_points(measure) else 1
    paths = _paths(known)
    figure = go.Figure()
    best = sorted((one for one in known if one.on_frontier), key=lambda one: one.gain or 0.0)
    _line(figure, best, scale, {"dash": "dot", "color": STRONG})
    for path in paths.values():
        _line(figure, path, scale, {"width": 1.5, "color": GREY})
    _markers(figure, known, scale)
    if picked is not None and picked.gain is not None and picked.retention is not None:
        figure.add_scatter(
            x=[scale * picked.gain],
            y=[100 * picked.retention],
            mode="markers",
            name=t("to pick"),
            marker={"size": 20, "color": PICKED, "symbol": "circle-open", "line": {"width": 3}},
            hoverinfo="skip",
        )
    across, upward = _ranges(known, scale)
    named = [
        (scale * (one.gain or 0.0), 100 * (one.retention or 0.0), name)
        for one in known
        if (name := _label(one, paths, len(known)))
    ]
    _names(figure, named, across, upward)
    figure.update_xaxes(range=across)
    figure.update_yaxes(range=upward)
    in_nats = t("gained on the new task, reward") if measure == items.ANSWERS else t("gained on the new task, nats")
    figure.update_layout(
        xaxis_title=t("gained on the new task, points") if scale == 100 else in_nats,
        yaxis_title=t("general knowledge kept, %"),
        height=440,
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        legend={"orientation": "h", "y": 1.12},
    )
    return figure


def _paths(known: Sequence[frontier.Point]) -> dict[str, list[frontier.Point]]:
    """Return the points along each run, in the order of its steps."""
    paths: dict[str, list[frontier.Point]] = {}
    for one in known:
        if one.step is not None:
            paths.setdefault(one.runs[0], []).append(one)
    for path in paths.values():
        path.sort(key=lambda one: one.step or 0)
    return paths


def _line(figure: go.Figure, points: Sequence[frontier.Point], scale: float, line: dict[str, Any]) -> None:
    figure.add_scatter(
        x=[scale * (one.gain or 0) for one in points],
        y=[100 * (one.retention or 0) for one in points],
        mode="lines",
        line=line,
        hoverinfo="skip",
        showlegend=False,
    )


def _markers(figure: go.Figure, known: Sequence[frontier.Point], scale: float) -> None:
    """Draw the points with their bars, those that are beaten first. A path's beaten points would hide it behind their
    bars; the table has them."""
    groups = ((False, GREY, t("beaten by another"), "circle-open"), (True, STRONG, t("on the frontier"), "circle"))
    for on_frontier, colour, legend, symbol in groups:
        some = [one for one in known if one.on_frontier == on_frontier]
        if not some:
            continue
        nothing = (None, None, None)
        gains = [(one.gain, one.gain_low, one.gain_high) if _barred(one) else nothing for one in some]
        kept = [(one.retention, one.retention_low, one.retention_high) if _barred(one) else nothing for one in some]
        figure.add_scatter(
            x=[scale * (one.gain or 0) for one in some],
            y=[100 * (one.retention or 0) for one in some],
            mode="markers",
            name=legend,
            marker={"size": 11, "color": colour, "symbol": symbol},
            error_x=_bars(gains, scale, colour),
            error_y=_bars(kept, 100, colour),
            customdata=[one.name for one in some],
            hovertemplate="%{customdata}<br>%{x:+.2f} / %{y:.1f} %<extra></extra>",
        )


def _ranges(known: Sequence[frontier.Point], scale: float) -> tuple[list[float], list[float]]:
    """Return what both axes span, with room for the names beside the outermost points."""
    ends = [scale * (one.gain or 0.0) for one in known] or [0.0]
    room = 0.3 * (max(ends) - min(ends)) or 5.0 * scale / 100
    ends += [scale * end for one in known for end in (one.gain_low, one.gain_high) if end and not math.isinf(end)]
    kept = [100 * (one.retention or 0.0) for one in known] or [0.0]
    kept += [
        100 * end
        for one in known
        if _barred(one)
        for end in (one.retention_low, one.retention_high)
        if end is not None and not math.isinf(end)
    ]
    spare = 0.08 * (max(kept) - min(kept)) or 5.0
    return [min(ends) - room, max(ends) + room], [min(kept) - spare, max(kept) + spare]


def _names(
    figure: go.Figure, named: Sequence[tuple[float, float, str]], across: list[float], upward: list[float]
) -> None:
    """Write each name beside its point, on the side with more room, so that none lies over another."""
    (left, right), (bottom, top) = across, upward
    for side in (1, -1):
        some = [one for one in named if (one[0] < (left + right) / 2 + 0.1 * (right - left)) == (side > 0)]
        some.sort(key=lambda one: -one[1])
        heights = [(top - y) / (top - bottom) * PLOT_PIXELS for _, y, _ in some]
        for (x, y, name), height, place in zip(some, heights, apart(heights, LINE_PIXELS), strict=True):
            figure.add_annotation(
                x=x, y=y, text=name, ax=40 * side, ay=place - height,
                xanchor="left" if side > 0 else "right", showarrow=True, arrowhead=0, arrowwidth=1, arrowcolor=GREY,
                standoff=7,
            )  # fmt: skip


def apart(places: Sequence[float], least: float) -> list[float]:
    """Return ascending places moved as little as can be, in least squares, so that neighbours are `least` apart: isotonic
    regression by pooling adjacent violators (Barlow and others, 1972), on what is left after the distance is taken off."""
    pools: list[tuple[float, int]] = []
    for number, place in enumerate(places):
        pool = (place - number * least, 1)
        while pools and pools[-1][0] > pool[0]:
            value, count = pools.pop()
            pool = ((value * count + pool[0] * pool[1]) / (count + pool[1]), count + pool[1])
        pools.append(pool)
    values = [value for value, count in pools for _ in range(count)]
    return [value + number * least for number, value in enumerate(values)]


def _barred(one: frontier.Point) -> bool:
    return one.on_frontier or one.step is None


def _label(one: frontier.Point, paths: dict[str, list[frontier.Point]], points: int) -> str:
    """Return what stands beside a point. Of a path the ends are named, and what is on the frontier; where it is the only
    one its steps say enough."""
    path = paths.get(one.runs[0], []) if one.step is not None else []
    if path and len(path) == points:
        return t("step {step}", step=one.step) if one.on_frontier or one in (path[0], path[-1]) else ""
    if path and not one.on_frontier and one is not path[-1]:
        return ""
    return one.name if len(one.name) <= 40 else one.name[:39] + "…"


def _bars(
    values: list[tuple[float | None, float | None, float | None]], scale: float, colour: str
) -> dict[str, object]:
    """Return error bars; an interval without bounds (one seed of several) has none."""

    def reach(end: float | None, value: float | None) -> float | None:
        return None if end is None or value is None or math.isinf(end) else scale * abs(end - value)

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(high, value) for value, _, high in values],
        "arrayminus": [reach(low, value) for value, low, _ in values],
        "color": colour,
        "thickness": 1,
    }


def points_table(points: Sequence[frontier.Point], weight: float | None) -> pd.DataFrame:
    """Return the table behind the frontier, what is on it first."""
    order = sorted(points, key=lambda one: (not one.on_frontier, -(one.gain if one.gain is not None else -math.inf)))
    found = []
    for one in order:
        score = frontier.weighted_score(one, weight) if weight is not None else None
        found.append(
            {
                t("Run"): one.name,
                **({t("Seeds"): len(one.runs)} if any(len(other.runs) > 1 for other in order) else {}),
                t("Frontier"): t("yes") if one.on_frontier else "",
                t("Gained"): figure_with(
                    one.gain, one.gain_low, one.gain_high, 100 if frontier.in_points(one.measure) else 1, signed=True
                ),
                t("General, points"): figure_with(one.change, one.change_low, one.change_high, 100, signed=True),
                t("Kept above chance, %"): figure_with(
                    one.retention, one.retention_low, one.retention_high, 100, signed=False
                ),
                t("Weighted score"): "–" if score is None else f"{100 * score:.1f}",
            }
        )
    return pd.DataFrame(found)


def _left_out(points: Sequence[frontier.Point]) -> None:
    """Say what is not on the chart or in its figures, and why."""
    missing = [one.name for one in points if one.gain is None or one.retention is None]
    if missing:
        st.caption(
            _ui.say(
                "Not on the chart, since the new task or general knowledge was not scored, or not as in the others: "
                "{names}.",
                names=", ".join(missing),
            )
        )
    at_chance = sorted({benchmark for one in points for benchmark in one.left_out})
    if at_chance:
        st.caption(
            _ui.say(
                "Left out, since the base does not know them: {names}.", names=", ".join(map(verdicts.title, at_chance))
            )
        )
    few = sorted({benchmark for one in points for benchmark in one.too_few})
    if few:
        st.caption(
            _ui.say(
                "Too few questions to say anything (fewer than {least}): {names}.",
                least=statistics.LEAST_QUESTIONS,
                names=", ".join(name_of(one, {}) for one in few),
            )
        )


def trade(points: Sequence[frontier.Point], key: str) -> frontier.Point | None:
    """Show the frontier with its two sliders and the table behind it; returns the point to pick."""
    left, right = st.columns(2)
    tolerance = left.slider(
        t("I accept losing at most (points)"), 0.0, 20.0, 1.0, 0.5, key=f"tolerance_{key}",
        help=t("Counted at the bad end of the interval, so that luck does not decide."),
    )  # fmt: skip
    weight = right.slider(
        t("Weight of the new task in the score (%)"), 0, 100, 50, 5, key=f"weight_{key}",
        help=t("The guide's weighted mean (M8): this share of the new task's score, the rest of what was kept."),
    )  # fmt: skip
    picked = frontier.pick(points, tolerance / 100)

    if picked is not None:
        st.success(
            _ui.say(
                "Pick {name}: it gained the most among those that lost at most {points} points even at the bad end.",
                name=picked.name,
                points=f"{tolerance:g}",
            )
        )
    else:
        least = max((one.change_low for one in points if one.change_low is not None), default=None)
        st.warning(
            t("None is that safe. The safest may have lost {points} points.", points=f"{-100 * least:.1f}")
            if least is not None and not math.isinf(least)
            else t("None is that safe: with so little measured, each may have lost any amount.")
        )
    if note := frontier.seed_note(points):
        st.caption(_ui.plain(note))
    if any(one.gain is not None and one.retention is not None for one in points):
        st.plotly_chart(
            _ui.figure(frontier_figure(points, picked)),
            key=f"frontier_{key}",
            alt=t("Gain on the new task against what was kept"),
        )
    st.dataframe(
        points_table(points, weight / 100), hide_index=True, alt=t("Runs with their gain, what was kept and the score")
    )
    _left_out(points)
    st.caption(
        _ui.say(
            "Score: {new} % of the new task's score and {kept} % of what was kept; none where the new task is a loss "
            "or a reward. Bars: 95 % over the questions of one run, or over the seeds of several. Points along a run are "
            "joined by a line.",
            new=weight,
            kept=100 - weight,
        )
    )
    return picked

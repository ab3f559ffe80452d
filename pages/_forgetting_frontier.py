"""The Forgetting page's trade of gain against what was kept: the answer, the chart with its marks, the list beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.report import frontier, items, statistics, verdicts
from engine.words import t
from pages import _chart_marks, _theme, _ui
from pages import _forgetting_tables as tables
from pages._forgetting_tables import NEITHER, STRONG

# Streamlit puts the ground of the reader's theme in place of it.
GROUND = "#000038"
# The shapes of what is on the frontier and what is not, on the chart and in the list.
ON, OFF = ("circle", "●"), ("square", "■")
# What may be lost, in points, until somebody says otherwise.
USUAL_TOLERANCE = 1.0


class Trade(NamedTuple):
    """A point of the chart and the letter or step that stands for it there; a step on the way may have none. Where other
    pictures beside it show the same run, its `colour` there."""

    point: frontier.Point
    mark: str
    colour: str | None = None


def letter(number: int) -> str:
    """Return the letter of a point, from 0 on: A to Z, then AA. Numbers stand in names of runs and for steps."""
    before = "" if number < 26 else letter(number // 26 - 1)
    return before + chr(ord("A") + number % 26)


def numbered(points: Sequence[frontier.Point]) -> list[Trade]:
    """Return points with marks: the step of those along a run, else a letter."""
    return [Trade(one, letter(number) if one.step is None else str(one.step)) for number, one in enumerate(points)]


class _Kept(NamedTuple):
    """What was kept of a point, with its ends: a share, or the rise of the loss on general text."""

    value: float | None
    low: float | None
    high: float | None


def _kept(one: frontier.Point, in_text: bool) -> _Kept:
    if in_text:
        return _Kept(one.text_loss, one.text_loss_low, one.text_loss_high)
    return _Kept(one.retention, one.retention_low, one.retention_high)


def _known(points: Sequence[frontier.Point]) -> list[frontier.Point]:
    """Return the points that have a place on the chart."""
    in_text = frontier.by_text(points)
    return [one for one in points if one.gain is not None and _kept(one, in_text).value is not None]


def figure_with(value: float | None, low: float | None, high: float | None, scale: float) -> str:
    """Return a value with its interval, or a dash."""
    if value is None:
        return "–"
    form = "{:z.1f}" if scale == 100 else "{:z.3f}"
    if low is None or high is None or math.isinf(low) or math.isinf(high):
        return form.format(scale * value)
    return f"{form.format(scale * value)} [{form.format(scale * low)} … {form.format(scale * high)}]"


def _lost(one: frontier.Point) -> str:
    """Return how many points of general knowledge were lost, with the interval."""
    value, low, high = (None if end is None else -end for end in (one.change, one.change_high, one.change_low))
    return figure_with(value, low, high, 100)


class _Chart(NamedTuple):
    """The scales of a chart: of the gain, of what was kept, and by which of two figures that is told."""

    gain: float
    kept: float
    in_text: bool

    def x(self, one: frontier.Point) -> float:
        return self.gain * (one.gain or 0.0)

    def y(self, one: frontier.Point) -> float:
        return self.kept * (_kept(one, self.in_text).value or 0.0)


def frontier_figure(trades: Sequence[Trade], picked: frontier.Point | None) -> go.Figure:
    """Draw gain against what was kept: the frontier joined by a line, each point by its mark, the picked one ringed. Up is
    better: a loss on general text falls upward."""
    known = _known([one.point for one in trades])
    drawn = [one for one in trades if one.point in known]
    measure, in_text = (known[0].measure if known else None), frontier.by_text(known)
    chart = _Chart(100 if frontier.in_points(measure) else 1, 1 if in_text else 100, in_text)
    figure = go.Figure()
    best = sorted((one for one in known if one.on_frontier), key=lambda one: one.gain or 0.0)
    _line(figure, best, chart, {"dash": "dot", "color": NEITHER})
    for path in _paths(drawn).values():
        _line(figure, [one.point for one in path], chart, {"width": 1.5, "color": path[0].colour or NEITHER})
    _points(figure, drawn, chart)
    across, upward = _ranges(known, chart)
    if picked is not None and picked in known:
        figure.add_scatter(
            x=[chart.x(picked)], y=[chart.y(picked)], mode="markers", name=t("to pick"), hoverinfo="skip",
            marker={"size": 24, "color": _theme.of("textColor"), "symbol": "circle-open", "line": {"width": 3}},
        )  # fmt: skip
    _marks(figure, [one for one in drawn if one.mark], chart, across, upward)
    figure.update_xaxes(range=across, title=_gain_title(measure))
    kept = t("loss on general text, change (up is better)") if in_text else t("general knowledge kept above chance, %")
    figure.update_yaxes(range=upward, title=kept)
    legend = {"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0}
    figure.update_layout(height=440, margin={"l": 8, "r": 8, "t": 12, "b": 8}, legend=legend, dragmode=False)
    return figure


def _gain_title(measure: str | None) -> str:
    if frontier.in_points(measure):
        return t("gained on the new task, points")
    if measure == items.LOSS:
        return t("fall of the loss on the new task")
    return t("gained on the new task, reward") if measure == items.ANSWERS else t("gained on the new task")


def _paths(drawn: Sequence[Trade]) -> dict[str, list[Trade]]:
    """Return the points along each run, in the order of its steps."""
    paths: dict[str, list[Trade]] = {}
    for one in drawn:
        if one.point.step is not None:
            paths.setdefault(one.point.runs[0], []).append(one)
    for path in paths.values():
        path.sort(key=lambda one: one.point.step or 0)
    return paths


def _line(figure: go.Figure, points: Sequence[frontier.Point], chart: _Chart, line: dict[str, Any]) -> None:
    figure.add_scatter(
        x=list(map(chart.x, points)),
        y=list(map(chart.y, points)),
        mode="lines",
        line=line,
        hoverinfo="skip",
        showlegend=False,
    )


def _points(figure: go.Figure, drawn: Sequence[Trade], chart: _Chart) -> None:
    """Draw the points with their bars, those that are beaten first. A path's beaten points would hide it behind their
    bars; the table has them."""
    groups = ((False, NEITHER, t("beaten by another"), OFF), (True, STRONG, t("on the frontier"), ON))
    for on_frontier, usual, legend, (symbol, _) in groups:
        of_colour: dict[str, list[frontier.Point]] = {}
        for one in drawn:
            if one.point.on_frontier == on_frontier:
                of_colour.setdefault(one.colour or usual, []).append(one.point)
        for colour, some in of_colour.items():
            nothing = (None, None, None)
            gains = [(one.gain, one.gain_low, one.gain_high) if _barred(one) else nothing for one in some]
            kept = [_kept(one, chart.in_text) if _barred(one) else nothing for one in some]
            figure.add_scatter(
                x=list(map(chart.x, some)),
                y=list(map(chart.y, some)),
                mode="markers",
                showlegend=False,
                marker={"size": _chart_marks.POINT_PIXELS, "color": colour, "symbol": symbol},
                error_x=_bars(gains, chart.gain, colour),
                error_y=_bars(kept, chart.kept, colour),
                customdata=[one.name for one in some],
                hovertemplate="%{customdata}<br>%{x:+.2f} / %{y:.3g}<extra></extra>",
            )
        if of_colour:  # the shape alone is explained: the colours are those of runs
            colour = NEITHER if any(one.colour for one in drawn) else usual
            marker = {"size": _chart_marks.POINT_PIXELS, "color": colour, "symbol": symbol}
            figure.add_scatter(x=[None], y=[None], mode="markers", name=legend, marker=marker)


def _marks(
    figure: go.Figure, marked: Sequence[Trade], chart: _Chart, across: Sequence[float], upward: Sequence[float]
) -> None:  # fmt: skip
    """Write the mark of each point beside it, over all bars, with a line to it."""
    places = [
        (
            _chart_marks.PLOT_PIXELS[0] * (chart.x(one.point) - across[0]) / (across[1] - across[0]),
            _chart_marks.PLOT_PIXELS[1] * (chart.y(one.point) - upward[0]) / (upward[1] - upward[0]),
        )
        for one in marked
    ]
    for one, place, box in zip(marked, places, _chart_marks.beside(places, [one.mark for one in marked]), strict=True):
        across_of, upward_of = box.middle
        figure.add_annotation(
            x=chart.x(one.point), y=chart.y(one.point), text=one.mark, font={"size": 12, "weight": 600},
            ax=across_of - place[0], ay=place[1] - upward_of, xanchor="center", yanchor="middle",
            showarrow=True, arrowhead=0, arrowwidth=1, arrowcolor=_colour(one),
            width=box.right - box.left - 4, height=box.top - box.bottom - 4,
            bgcolor=GROUND, bordercolor=_colour(one), borderwidth=2, borderpad=0,
        )  # fmt: skip


def _colour(one: Trade) -> str:
    return one.colour or (STRONG if one.point.on_frontier else NEITHER)


def _ranges(known: Sequence[frontier.Point], chart: _Chart) -> tuple[list[float], list[float]]:
    """Return what both axes span, with room for the marks of the outermost points."""
    gains = list(map(chart.x, known)) or [0.0]
    gains += [chart.gain * end for one in known for end in (one.gain_low, one.gain_high) if end and not math.isinf(end)]
    kept = list(map(chart.y, known)) or [0.0]
    kept += [
        chart.kept * end
        for one in known
        if _barred(one)
        for end in _kept(one, chart.in_text)[1:]
        if end is not None and not math.isinf(end)
    ]
    room = 0.08 * (max(gains) - min(gains)) or 0.05 * chart.gain
    spare = 0.08 * (max(kept) - min(kept)) or 0.05 * chart.kept
    upward = [min(kept) - spare, max(kept) + spare]
    return [min(gains) - room, max(gains) + room], upward[::-1] if chart.in_text else upward


def _barred(one: frontier.Point) -> bool:
    return one.on_frontier or one.step is None


def _bars(
    values: Sequence[tuple[float | None, float | None, float | None]], scale: float, colour: str
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
                    one.gain, one.gain_low, one.gain_high, 100 if frontier.in_points(one.measure) else 1
                ),
                t("Lost, points"): _lost(one),
                t("Kept above chance, %"): figure_with(one.retention, one.retention_low, one.retention_high, 100),
                t("Weighted score"): "–" if score is None else f"{100 * score:.1f}",
            }
        )
    return pd.DataFrame(found)


def _left_out(points: Sequence[frontier.Point]) -> None:
    """Say what is not on the chart or in its figures, and why."""
    known = _known(points)
    missing = [one.name for one in points if one not in known]
    if len(missing) == len(points):
        st.caption(t("No chart: what they gained or lost was not scored, or not alike."))
    elif missing:
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
                names=", ".join(tables.name(one, {}) for one in few),
            )
        )


def trade(
    trades: Sequence[Trade], key: str, picks: Callable[[frontier.Point], None] | None = None
) -> frontier.Point | None:  # fmt: skip
    """Show which point to take, the frontier and the list of its marks, and returns that point. `picks` adds what can be
    done with it, beside the answer."""
    points, answer, tolerance = [one.point for one in trades], st.container(), 0.0
    in_text = frontier.by_text(points)
    if not in_text:
        tolerance = st.slider(
            t("I accept losing at most (points)"), 0.0, 20.0, USUAL_TOLERANCE, 0.5, key=f"tolerance_{key}",
            help=t("Counted at the bad end of the interval, so that luck does not decide."),
        )  # fmt: skip
    picked = None if in_text else frontier.pick(points, tolerance / 100)
    with answer:
        if in_text:
            _answer_by_text(trades)
        else:
            _answer(trades, picked, tolerance)
        if note := frontier.seed_note(points, picked):
            st.caption(_ui.plain(note))
        if picked is not None and picks is not None:
            picks(picked)
    if _known(points):
        st.plotly_chart(
            _ui.figure(frontier_figure(trades, picked)), key=f"frontier_{key}",
            config=_theme.STILL,
            alt=t("Gain on the new task against what was kept"),
        )  # fmt: skip
        if not in_text:
            st.caption(t("Above chance: what guessing gets right is taken off, so it is no share of right answers."))
    st.table(_ui.cells(numbers_table(trades)), hide_index=True, border="horizontal")
    _left_out(points)
    if st.toggle(t("Every figure, with a score for both"), key=f"every_{key}"):
        _every(points, key)
    return picked


def _named(trades: Sequence[Trade], point: frontier.Point) -> str:
    """Return the name of a point with its mark on the chart; the name of a step has it."""
    mark = next(one.mark for one in trades if one.point is point)
    return t("{value} ({marks})", value=point.name, marks=mark) if mark and point.step is None else point.name


def _answer(trades: Sequence[Trade], picked: frontier.Point | None, tolerance: float) -> None:
    """Say which to take, and what one seed cannot tell."""
    points = [one.point for one in trades]
    if picked is not None:
        st.success(
            _ui.say(
                "Pick {name}: it gained the most among those that lost at most {points} points even at the bad end.",
                name=_named(trades, picked),
                points=f"{tolerance:g}",
            )
        )
    else:
        least = max((one.change_low for one in points if one.change_low is not None), default=None)
        st.warning(
            _ui.say(
                "Each of them may have lost more than {points} ({limit}). The safest may have lost {least}.",
                points=t("1 point") if tolerance == 1 else t("{n} points", n=f"{tolerance:g}"),
                least=f"{-100 * least:.1f}",
                limit=t("the page's own limit: set yours below") if tolerance == USUAL_TOLERANCE else t("your limit"),
            )
            if least is not None and not math.isinf(least)
            else t("So little was measured that each may have lost any amount.")
        )  # fmt: skip


def _answer_by_text(trades: Sequence[Trade]) -> None:
    """Name the ends of the frontier, where nothing says what was lost in points."""
    known = _known([one.point for one in trades])
    best = sorted((one for one in known if one.on_frontier), key=lambda one: one.gain or 0.0)
    if not best:
        return
    if len(best) == 1 and not _is_clear(best[0], known):
        st.info(
            _ui.say(
                "{name} gained the most here and kept general text best, but not beyond noise: another may be as good.",
                name=_named(trades, best[0]),
            )
        )
    elif len(best) == 1:
        st.success(_ui.say("{name} gained the most, and kept general text best.", name=_named(trades, best[0])))
    else:
        st.info(
            _ui.say(
                "{most} gained the most; {least} kept general text best.",
                most=_named(trades, best[-1]),
                least=_named(trades, best[0]),
            )
        )
    st.caption(t("What was kept is told by the loss on general text alone."))


def _is_clear(best: frontier.Point, known: Sequence[frontier.Point]) -> bool:
    """Whether a point gained more than every other beyond the intervals of both."""
    others = [one.gain_high for one in known if one is not best]
    low = best.gain_low
    return low is not None and all(high is not None and high < low for high in others)


def numbers_table(trades: Sequence[Trade]) -> pd.DataFrame:
    """Return what each mark of the chart stands for, in four columns that a phone shows whole."""
    points = [one.point for one in trades]
    known, in_text, found = _known(points), frontier.by_text(points), []
    title = t("Lost: loss on general text") if in_text else t("Lost, points")
    gained = t("Loss fell by") if any(one.measure == items.LOSS for one in known) else t("Gained")
    for one in (trade for trade in trades if trade.mark):
        point = one.point
        scale = 100 if frontier.in_points(point.measure) else 1
        shape = (ON if point.on_frontier else OFF)[1] if point in known else ""
        found.append(
            {
                t("Mark"): f"{shape} {one.mark}".strip(),
                t("Run"): point.name,
                gained: figure_with(point.gain, point.gain_low, point.gain_high, scale),
                title: figure_with(*_kept(point, True), 1) if in_text else _lost(point),
            }
        )
    return pd.DataFrame(found)


def _every(points: Sequence[frontier.Point], key: str) -> None:
    """All figures, with the weighted score."""
    weight = st.slider(
        t("Weight of the new task in the score (%)"), 0, 100, 50, 5, key=f"weight_{key}",
        help=t("The guide's weighted mean: this share of the new task's score, the rest of what was kept."),
    )  # fmt: skip
    st.dataframe(
        points_table(points, weight / 100), hide_index=True, alt=t("Runs with their gain, what was kept and the score")
    )
    st.caption(
        _ui.say(
            "Score: {new} % of the new task's score and {kept} % of what was kept; none where the new task is a loss "
            "or a reward. Bars: 95 % over the questions of one run, or over the seeds of several. Points along a run are "
            "joined by a line.",
            new=weight,
            kept=100 - weight,
        )
    )

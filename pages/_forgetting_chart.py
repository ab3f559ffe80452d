"""The chart of a run on the Forgetting page: what was gained beside what was lost, each line with its verdict in words, in
a shape and in colour. Words stand above their line, so that neither a bar nor a narrow screen cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from engine.forgetting import examples
from engine.report import Comparison, headline, items, paired, verdicts
from engine.words import t
from pages import _forgetting_tables as tables
from pages import _theme
from pages._forgetting_tables import BAD, GOOD, NEITHER

# A change without interval and toolbar is still to be told from others by shape alone.
_LOOKS = {
    "better": ("▲", "triangle-up", GOOD),
    "worse": ("▼", "triangle-down", BAD),
    "neither": ("●", "circle", NEITHER),
}
_SAYS = {"real gain": "better", "real drop": "worse"}
LINE_PIXELS, MOST_LETTERS = 46, 40


class Panel(NamedTuple):
    """One half of the chart with its heading, which is text of the page and breaks where it must, and what it shows in
    words, for whoever hears the page."""

    title: str
    figure: go.Figure
    told: str


class _Line(NamedTuple):
    text: str
    value: float
    look: str
    low: float = 0.0
    high: float = 0.0


def panels(
    rows: Sequence[Comparison], judged: Sequence[verdicts.Judged], titled: dict[str, str],
    known: examples.Beside | None = None,
) -> list[Panel]:  # fmt: skip
    """Return the new task before and after, and the change of what the base knew in points; where nothing of that is a share
    of right answers, the loss on general text before and after. `known`: what the base makes of the new task after worked
    examples."""
    task = headline.asked(rows)
    found = [] if task is None else [_gained(task, known, titled)]
    return found + _lost(judged)


def _gained(task: Comparison, known: examples.Beside | None, titled: dict[str, str]) -> Panel:
    between = []
    if known is not None:
        between = [(t("Base, {n} examples in its context", n=known.shots), known.row.base)]
    title = t("Gained: {text}", text=tables.name(task.benchmark, titled))
    lines = _before_and_after(task, verdicts.change_of(task), tables.verdict_of(task, {}), between)
    return Panel(title, _bars(task, lines), _told(title, lines))


def _lost(judged: Sequence[verdicts.Judged]) -> list[Panel]:
    told = [one for one in judged if not paired.too_few(one.row)]
    shares = [one for one in told if tables.is_share(one.row)]
    known = [one for one in shares if one.verdict != "at chance"]
    losses = [one for one in told if one.row.benchmark in items.GENERAL_TEXTS]
    if not known and losses:
        one = losses[0]
        title = t("What it knew: {name}, loss (lower is better)", name=one.title)
        lines = _before_and_after(one.row, _SAYS.get(one.verdict, ""), tables.verdict(one.verdict))
        return [Panel(title, _bars(one.row, lines), _told(title, lines))]
    shown = sorted(known or shares, key=lambda one: one.row.change)
    lines = [
        _Line(
            t("{name}: {verdict}, {change}", name=_cut(one.title), verdict=tables.verdict(one.verdict),
              change=tables.number(one.row, one.row.change, signed=True)),
            100 * one.row.change, _SAYS.get(one.verdict, "neither"), 100 * one.row.low, 100 * one.row.high,
        )
        for one in shown
    ]  # fmt: skip
    title = t("What it knew: change in points")
    return [Panel(title, _changes(lines), _told(title, lines))] if lines else []


def _told(title: str, lines: Sequence[_Line]) -> str:
    return f"{title}. {'; '.join(one.text for one in lines)}"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"


def _before_and_after(
    row: Comparison, change: str, verdict: str, between: Sequence[tuple[str, float]] = ()
) -> list[_Line]:  # fmt: skip
    """Return a line each for base and tuned model, and what stands between them."""
    scale = 100 if tables.is_share(row) else 1
    told = [(t("Base"), row.base), *between]
    lines = [
        _Line(t("{name}: {text}", name=name, text=tables.number(row, value)), scale * value, "neither")
        for name, value in told
    ]
    after = t("Tuned: {figure}, {verdict}", figure=tables.number(row, row.tuned), verdict=verdict)
    return [*lines, _Line(after, scale * row.tuned, change if change in _LOOKS else "neither")]


def _bars(row: Comparison, lines: Sequence[_Line]) -> go.Figure:
    """Draw a bar for each line; of a share of right answers against all of them."""
    values = [one.value for one in lines]
    figure = _with_words(lines)
    figure.add_bar(
        x=values, y=_places(lines), width=0.34, orientation="h", hoverinfo="skip",
        marker={"color": [_LOOKS[one.look][2] for one in lines]},
    )  # fmt: skip
    ends = [0.0, 100.0] if tables.is_share(row) else [min(0.0, *values), max(0.0, *values)]
    figure.update_xaxes(range=ends if ends[0] < ends[1] else [0, 1], visible=False)
    return figure


def _changes(lines: Sequence[_Line]) -> go.Figure:
    """Draw the change of each benchmark with its interval against no change."""
    figure, places = _with_words(lines), _places(lines)
    for place in places:
        figure.add_shape(
            type="line", x0=0, x1=0, y0=place - 0.26, y1=place + 0.2, line={"color": NEITHER, "dash": "dot"}
        )
    figure.add_scatter(
        x=[one.value for one in lines], y=places, mode="markers",
        marker={"size": 13, "symbol": [_LOOKS[one.look][1] for one in lines],
                "color": [_LOOKS[one.look][2] for one in lines]},
        error_x={
            "type": "data", "symmetric": False, "color": NEITHER, "array": [one.high - one.value for one in lines],
            "arrayminus": [one.value - one.low for one in lines],
        },
        customdata=[f"{one.low:+.1f} … {one.high:+.1f}" for one in lines],
        hovertemplate="%{x:+.1f} [%{customdata}]<extra></extra>",
    )  # fmt: skip
    ends = [0.0, *(end for one in lines for end in (one.low, one.high))]
    room = 0.08 * (max(ends) - min(ends)) or 1.0
    figure.update_xaxes(range=[min(ends) - room, max(ends) + room], showgrid=False, zeroline=False, nticks=6)
    figure.update_layout(height=_height(lines) + 30)
    return figure


def _height(lines: Sequence[_Line]) -> int:
    return LINE_PIXELS * len(lines) + 12


def _places(lines: Sequence[_Line]) -> list[float]:
    return [-float(number) for number in range(len(lines))]


def _with_words(lines: Sequence[_Line]) -> go.Figure:
    """Return a figure with the words of each line above its place."""
    figure = go.Figure()
    for one, place in zip(lines, _places(lines), strict=True):
        figure.add_annotation(
            xref="paper", x=0, xanchor="left", y=place + 0.18, yanchor="bottom", showarrow=False,
            text=f"{_LOOKS[one.look][0]} {one.text}", font={"size": 14, "color": _theme.of("textColor")},
        )  # fmt: skip
    figure.update_yaxes(range=[0.55 - len(lines), 0.65], visible=False)
    layout: dict[str, Any] = {"height": _height(lines), "showlegend": False, "dragmode": False}
    figure.update_layout(margin={"l": 4, "r": 12, "t": 4, "b": 4}, **layout)
    return figure

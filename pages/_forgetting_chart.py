"""The chart of a run on the Forgetting page: what was gained beside what was lost, each with its verdict in colour."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.forgetting import examples
from engine.report import Comparison, headline, paired, verdicts
from engine.words import t
from pages import _forgetting_tables as tables

# Okabe and Ito's green and vermilion, told apart by colour-blind readers too; grey where nothing can be told.
GOOD, BAD, NEITHER = "#009E73", "#D55E00", "#6c757d"
_COLOURS = {"better": GOOD, "worse": BAD, "real gain": GOOD, "real drop": BAD}


class _Panel(NamedTuple):
    title: str
    share: float  # of the width
    height: int  # of its lines, in pixels
    trace: Any
    axis: dict[str, Any]
    left: int = 0  # the width of its longest name, in Latin letters


def figure(
    rows: Sequence[Comparison], judged: Sequence[verdicts.Judged], titled: dict[str, str],
    known: examples.Beside | None = None,
) -> go.Figure | None:  # fmt: skip
    """Draw the new task before and after, and the change of each general benchmark in points; None where there is
    neither. `known`: what the base makes of the new task after worked examples."""
    task, general = headline.asked(rows), [one for one in judged if tables.is_share(one.row)]
    general = [one for one in general if not paired.too_few(one.row)]
    panels = [] if task is None else [_gained(task, known, titled)]
    panels += [_lost(general)] if general else []
    if not panels:
        return None
    made = make_subplots(
        1, len(panels), horizontal_spacing=_room(panels[-1].left), column_widths=[panel.share for panel in panels],
        subplot_titles=[panel.title for panel in panels],
    )  # fmt: skip
    for column, panel in enumerate(panels, 1):
        made.add_trace(panel.trace, 1, column)
        made.update_xaxes(row=1, col=column, **panel.axis)
    made.update_yaxes(automargin=True)
    made.update_layout(
        height=95 + max(panel.height for panel in panels), margin={"l": 8, "r": 8, "t": 36, "b": 8},
        showlegend=False, bargap=0.35,
    )  # fmt: skip
    return made


def _room(letters: int) -> float:
    """Return the share of the width that names beside a panel need: a letter takes 5.5 of the page's 800 pixels."""
    return min(0.5, 0.04 + letters * 5.5 / 800)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _gained(task: Comparison, known: examples.Beside | None, titled: dict[str, str]) -> _Panel:
    """A bar each for base and tuned model, and between them the base after examples, where it was asked."""
    bars = [(t("Base"), task.base, NEITHER)]
    if known is not None:
        bars.append((t("Base, {n} examples in its context", n=known.shots), known.row.base, NEITHER))
    bars.append((t("Tuned"), task.tuned, _COLOURS.get(verdicts.change_of(task), NEITHER)))
    scale = 100 if tables.is_share(task) else 1
    names, values, colours = zip(*reversed(bars), strict=True)
    trace = go.Bar(
        x=[scale * value for value in values], y=names, orientation="h", marker={"color": colours},
        text=[tables.number(task, value) for value in values], textposition="outside", cliponaxis=False,
        hovertemplate="%{y}: %{text}<extra></extra>",
    )  # fmt: skip
    axis = {"range": [0, 118], "tickvals": [0, 50, 100], "ticksuffix": " %"} if scale == 100 else {}
    title = t("Gained: {text}", text=tables.name(task.benchmark, titled))
    return _Panel(title, 0.4, 28 * len(bars), trace, axis)


def _lost(general: Sequence[verdicts.Judged]) -> _Panel:
    """The change of each benchmark of what the base knew, with its interval."""
    shown = sorted(general, key=lambda one: -one.row.change)
    names = [f"{one.title}: {tables.verdict(one.verdict)}" for one in shown]
    trace = go.Scatter(
        x=[100 * one.row.change for one in shown],
        y=names,
        mode="markers",
        marker={"size": 10, "color": [_COLOURS.get(one.verdict, NEITHER) for one in shown]},
        error_x={
            "type": "data", "symmetric": False, "color": NEITHER,
            "array": [100 * (one.row.high - one.row.change) for one in shown],
            "arrayminus": [100 * (one.row.change - one.row.low) for one in shown],
        },
        hovertemplate="%{y}: %{x:+.1f}<extra></extra>",
    )  # fmt: skip
    ends = [0.0, *(100 * end for one in shown for end in (one.row.low, one.row.high))]
    room = 0.08 * (max(ends) - min(ends)) or 1.0
    axis = {"range": [min(ends) - room, max(ends) + room], "zeroline": True, "zerolinewidth": 2}
    return _Panel(t("What it knew: change in points"), 0.6, 28 * len(shown), trace, axis, max(map(_width, names)))

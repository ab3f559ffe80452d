"""The Advisor page's chart and table of what each way takes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.advise import Advice, Alternative, Case
from engine.estimate import duration, memory
from engine.words import t
from pages import _ui


def _bars(found: Sequence[Alternative], memory_bytes: float, names: list[str]) -> go.Figure:
    """Return a bar of parts for each way, its range as a line across, and where the memory of the machine ends."""
    figure, words = go.Figure(), memory.part_words()
    for part in memory.PARTS:
        sizes = [(one.memory.parts or {}).get(part, 0) / 2**30 for one in found]
        if any(sizes):
            figure.add_bar(x=sizes, y=names, name=words[part], orientation="h",
                           hovertemplate=f"%{{y}}, {words[part]}: %{{x:.2f}} GiB<extra></extra>")  # fmt: skip
    totals = [one.memory.total_bytes / 2**30 for one in found]
    figure.add_scatter(
        x=totals, y=names, mode="markers", marker={"size": 1, "color": "gray"}, showlegend=False,
        error_x={
            "type": "data", "symmetric": False, "color": "gray", "thickness": 2, "width": 6,
            "array": [one.memory.high_bytes / 2**30 - total for one, total in zip(found, totals, strict=True)],
            "arrayminus": [total - one.memory.low_bytes / 2**30 for one, total in zip(found, totals, strict=True)],
        },
        hovertemplate=[
            f"{name}: {memory.size_words(one.memory.low_bytes)} – {memory.size_words(one.memory.high_bytes)}<extra></extra>"
            for one, name in zip(found, names, strict=True)
        ],
    )  # fmt: skip
    figure.add_vline(
        x=memory_bytes / 2**30, line_dash="dot", line_color="gray",
        annotation={"text": t("all there is"), "y": 1, "yanchor": "bottom", "xanchor": "center"},
    )  # fmt: skip
    most = max([memory_bytes / 2**30, *(one.memory.high_bytes / 2**30 for one in found)])
    figure.update_layout(
        barmode="stack",
        height=150 + 38 * len(found),
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        legend={"orientation": "h", "traceorder": "normal", "yanchor": "top", "y": -0.2},
    )
    figure.update_xaxes(range=[0, 1.08 * most], ticksuffix=" GiB", nticks=6)
    figure.update_yaxes(autorange="reversed")
    return figure


def _between(low: str, high: str) -> str:
    """Return a range that a narrow column breaks at the dash alone."""
    return " – ".join(end.replace(" ", "\u00a0") for end in (low, high))


def show(case: Case, advice: Advice) -> None:
    """Every way the data can feed, side by side: memory against the machine's, time, and what one trades."""
    found = advice.alternatives
    if not found:
        return
    st.subheader(t("What each way takes"))
    chosen = advice.advised.title if advice.advised is not None else ""
    titles = [one.title[0].upper() + one.title[1:] for one in found]
    names = [f"✓ {title}" if one.title == chosen else title for title, one in zip(titles, found, strict=True)]
    if all(one.memory.parts for one in found):
        st.plotly_chart(
            _ui.figure(_bars(found, case.target.memory_bytes, names)),
            key="ways",
            alt=t("The memory of each way, part by part, beside all there is"),
        )
        st.caption(
            t(
                "The line across a bar's end is the range. Where many rows at a time do not fit, fewer are taken. Train "
                "shows the same figures for the run."
            )
        )
    else:
        st.info(t("The memory of each way is not known: name the size of the base under Plan."))
    table = pd.DataFrame(
        {
            t("Way"): names,
            _ui.unbroken(t("Fits")): [memory.room_words()[one.room] for one in found],
            t("Memory"): [_memory_words(one) for one in found],
            t("Time"): [_time_words(one) for one in found],
            t("What one trades"): [one.trade for one in found],
        }
    )
    st.table(_ui.cells(table, mark="✓"), hide_index=True)
    _time_caption(advice)


def _memory_words(one: Alternative) -> str:
    if not one.memory.parts:
        return "?"
    return _between(memory.size_words(one.memory.low_bytes), memory.size_words(one.memory.high_bytes))


def _time_words(one: Alternative) -> str:
    """Return how long it takes, and whether that was measured: rows of one table must not be taken for alike."""
    if one.time is None:
        return "?"
    basis = {"measured": t("measured"), "scaled": t("scaled"), "assumed": t("assumed")}[one.time.basis]
    return f"{_between(duration.duration_words(one.time.low_s), duration.duration_words(one.time.high_s))} ({basis})"


def _time_caption(advice: Advice) -> None:
    chosen = advice.advised.title if advice.advised is not None else ""
    timed = next((one.time for one in advice.alternatives if one.time and one.title == chosen), None)
    if timed is None:
        return
    st.caption(_ui.say("{name}: {text}", name=chosen, text=timed.sentence))
    minutes = advice.facts.time_budget_minutes
    if minutes is not None and timed.low_s > 60 * minutes:
        st.warning(
            _ui.say(
                "That is more than the {minutes} minutes you have: take fewer rows, one epoch, or a smaller base.",
                minutes=f"{minutes:g}",
            )
        )

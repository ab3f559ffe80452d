"""The one picture of memory: what a run needs, by parts, beside all there is. Train, the advisor and the picker show it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.estimate import cards, memory
from engine.plan import Plan
from engine.words import t
from pages import _theme, _ui

GIB = 2**30
# What a person tells apart, in the order of the theme's colours.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("weights",),
    ("gradients", "optimizer"),
    ("activations", "logits", "adapter", "rollout"),
    ("reference", "reward", "value"),
    ("fixed", "blocks", "measured"),
)
# The part of the range above the sum: it is seen on both grounds.
FAINT = "rgba(128, 128, 128, 0.3)"
# Of several bars none is drawn further than so many times what there is: else the ones that fit cannot be told apart.
MOST_TIMES = 2.0

# Of the place of a bar, in which its title stands above it.
WIDTH = 0.5


class Bar(NamedTuple):
    """One bar, and what stands above it."""

    found: memory.Estimate
    title: str = ""


def show(plan: Plan, key: str = "memory") -> None:
    """Say how a plan fits, draw it, and fold its parts."""
    picture(plan, key)
    if plan.memory.parts is not None:
        with st.expander(t("Memory, part by part")):
            values(plan)


def picture(plan: Plan, key: str = "memory") -> None:
    """Say how a plan fits, and draw it."""
    found, memory_bytes = plan.memory, plan.target.memory_bytes
    st.markdown(_ui.say("**{name}**: {text}", name=t("Memory"), text=memory.verdict(found, memory_bytes)))
    if held := cards.held_words(plan.target.held):
        st.caption(_ui.plain(held))
    if found.parts is None:
        return
    draw([Bar(found)], memory_bytes, key=key, alt=t("The memory the run needs, part by part, beside all there is"))


def values(plan: Plan) -> None:
    """The values of the picture, and what they stand on."""
    found = plan.memory
    if found.parts is None:
        return
    st.table(_ui.cells(_table(found, plan.target.memory_bytes)), hide_index=True)
    if found.runs:
        st.caption(_ui.say("Corrected by {n} finished runs of this kind on this machine.", n=found.runs))
    else:
        st.caption(
            t(
                "An estimate from the base's shape, for rows as long as the longest here. No run of this kind has "
                "finished on this machine yet; the first one corrects it."
            )
        )
    st.caption(t("Before the first step the longest batch is tried once, so that running out shows at once."))


def draw(bars: list[Bar], memory_bytes: float, *, key: str, alt: str) -> None:
    """Draw bars of memory below each other, by the same scale."""
    st.plotly_chart(_ui.figure(figure(bars, memory_bytes)), key=key, alt=alt, config=_theme.STILL)


def figure(bars: list[Bar], memory_bytes: float) -> go.Figure:
    """Return the bars, the rest of each range in gray, and across each a line where the memory ends."""
    most = max(memory_bytes, *(one.found.high_bytes for one in bars))
    if len(bars) > 1:
        most = min(most, MOST_TIMES * memory_bytes)
    unit_bytes, unit = _unit(most)
    places, drawn, text = list(range(len(bars))), go.Figure(), _theme.of("textColor")
    for name, parts, colour in zip(_group_words(), GROUPS, _theme.of("chartCategoricalColors"), strict=True):
        sizes = [_size(one.found, parts) / unit_bytes for one in bars]
        drawn.add_bar(
            x=sizes, y=places, name=name, orientation="h", width=WIDTH, showlegend=any(sizes), marker={"color": colour},
            hovertemplate=f"{name}: %{{x:,.2f}} {unit}<extra></extra>",
        )  # fmt: skip
    rest = [(one.found.high_bytes - one.found.total_bytes) / unit_bytes for one in bars]
    name = t("perhaps more")
    drawn.add_bar(x=rest, y=places, name=name, orientation="h", width=WIDTH, marker={"color": FAINT}, hoverinfo="name")
    for place, bar in enumerate(bars):  # across each bar alone: no title is struck through
        x, top = memory_bytes / unit_bytes, WIDTH / 2 if bar.title else 0.34
        drawn.add_shape(type="line", x0=x, x1=x, y0=place - top, y1=place + 0.34, line={"color": text, "width": 3})
    drawn.update_layout(
        barmode="stack", height=110 + 62 * len(bars), margin={"l": 12, "r": 12, "t": 30, "b": 12},
        legend={"orientation": "h", "traceorder": "normal", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        annotations=[_end(memory_bytes, most, unit_bytes, unit), *_titles(bars)],
        font={"color": text, "size": 13},
    )  # fmt: skip
    drawn.update_xaxes(range=[0, 1.02 * most / unit_bytes], ticksuffix=f"\u00a0{unit}", nticks=5)
    drawn.update_yaxes(range=[len(bars) - 0.5, -0.8 if bars[0].title else -0.5], visible=False)
    return drawn


def _end(memory_bytes: float, most: float, unit_bytes: int, unit: str) -> dict[str, Any]:
    """Return what stands above the line, turned to the side that has room for it."""
    size = memory_bytes / unit_bytes
    text = t("all there is: {size}", size=f"{size:,.{1 if size < 100 else 0}f} {unit}")
    side = "right" if memory_bytes > most / 2 else "left"
    return {"text": text, "x": size, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": side, "showarrow": False}


def _titles(bars: list[Bar]) -> list[dict[str, Any]]:
    place = {"x": 0, "xref": "paper", "xanchor": "left", "yanchor": "bottom", "showarrow": False}
    return [{"text": one.title, "y": number - WIDTH / 2, **place} for number, one in enumerate(bars) if one.title]


def _group_words() -> list[str]:
    """Return what each group is called, in the order of GROUPS."""
    return [
        t("The model"),
        t("Gradients and optimizer"),
        t("Rows being read"),
        t("Other models beside it"),
        t("Libraries and device"),
    ]


def _size(found: memory.Estimate, parts: Iterable[str]) -> int:
    return sum((found.parts or {}).get(part, 0) for part in parts)


def _unit(most_bytes: float) -> tuple[int, str]:
    """Return the one unit of a figure."""
    return (GIB, "GiB") if most_bytes >= GIB else (2**20, "MiB")


def _table(found: memory.Estimate, memory_bytes: float) -> pd.DataFrame:
    """Return the figure's values, all in its unit."""
    unit_bytes, unit = _unit(max(memory_bytes, found.high_bytes))
    words = memory.part_words()
    rows = [(words[name], size) for name, size in (found.parts or {}).items()]
    rows += [(t("Together"), found.total_bytes), (t("At least"), found.low_bytes), (t("At most"), found.high_bytes)]
    rows.append((t("All there is"), round(memory_bytes)))
    return pd.DataFrame(
        {t("Part"): [name for name, _ in rows], unit: [f"{size / unit_bytes:,.2f}" for _, size in rows]}
    )

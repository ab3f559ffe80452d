"""The Advisor page's chart and table of what each way takes."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine.advise import Advice, Alternative, Case
from engine.estimate import duration, memory
from engine.words import t
from pages import _memory, _ui


def _between(low: str, high: str) -> str:
    """Return a range that a narrow column breaks at the dash alone."""
    return " – ".join(end.replace(" ", "\u00a0") for end in (low, high))


def _bar_title(name: str, one: Alternative, memory_bytes: float) -> str:
    """Return what stands above a bar: a bar that goes on beyond the edge is read here."""
    return f"{name} · {_memory_words(one, memory_bytes)} · {memory.room_words()[one.room]}"


def show(case: Case, advice: Advice) -> None:
    """Every way the data can feed, side by side: memory against the machine's, time, and what one trades."""
    found = advice.alternatives
    if not found:
        return
    chosen = advice.advised.title if advice.advised is not None else ""
    titles = [one.title[0].upper() + one.title[1:] for one in found]
    names = [f"✓ {title}" if one.title == chosen else title for title, one in zip(titles, found, strict=True)]
    if all(one.memory.parts for one in found):
        _memory.draw(
            [
                _memory.Bar(one.memory, _bar_title(name, one, case.target.memory_bytes))
                for name, one in zip(names, found, strict=True)
            ],
            case.target.memory_bytes,
            key="ways",
            alt=t("The memory of each way, part by part, beside all there is"),
        )
        st.caption(
            t("Where many rows at a time do not fit, fewer are taken. Train shows the same figures for the run.")
        )
    else:
        st.info(t("The memory of each way is not known: name the size of the base under Model."))
    kinds = {one.time.stands_on for one in found if one.time}
    table = pd.DataFrame(
        {
            t("Way"): names,
            _ui.unbroken(t("Fits")): [memory.room_words()[one.room] for one in found],
            t("Memory"): [_memory_words(one, case.target.memory_bytes) for one in found],
            t("Time"): [_time_words(one, with_basis=len(kinds) > 1) for one in found],
            t("What one trades"): [one.trade for one in found],
        }
    )
    with st.container(key="ways_table"):
        st.table(_ui.cells(table, mark="✓"), hide_index=True)
    if len(kinds) > 1:
        st.caption(t("Times that stand on different things are not to be held against each other."))
    elif kinds:
        st.caption(_ui.say("Times: {basis}.", basis=kinds.pop()))


def _memory_words(one: Alternative, memory_bytes: float) -> str:
    if not one.memory.parts:
        return t("not known")
    return _between(*memory.range_words(one.memory, memory_bytes))


def _time_words(one: Alternative, *, with_basis: bool) -> str:
    """Return how long it takes, and whether that was measured: rows of one table must not be taken for alike."""
    if one.time is None:
        return t("not known")
    between = _between(duration.duration_words(one.time.low_s), duration.duration_words(one.time.high_s))
    return f"{between} ({one.time.stands_on})" if with_basis else between

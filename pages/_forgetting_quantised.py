"""One run on the Forgetting page: what its quantised files lost on the way out."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine.quantised import lost, said
from engine.report import items
from engine.runs import ScoredRun
from engine.words import t
from pages import _forgetting_tables as tables
from pages import _ui


def fold(scored: ScoredRun, titled: dict[str, str]) -> None:
    """Show each file's loss in a sentence and by benchmark; nothing where none was measured."""
    found = lost.every(scored.folder)
    if not found:
        return
    with st.expander(t("What its quantised files lost")):
        _ui.bullets(said.spoken(found))
        if any(one.rows for one in found):
            st.dataframe(
                table(found, titled), hide_index=True, alt=t("What each file lost, by the questions that were asked")
            )


def table(found: list[lost.Found], titled: dict[str, str]) -> pd.DataFrame:
    """Return what files lost, by benchmark, as a person reads it."""
    lines = [
        {
            t("File"): one.name,
            t("Questions"): tables.name(row.benchmark, titled),
            t("Part"): tables.family(row.family),
            t("Merged model"): tables.number(row, row.base),
            t("File, quantised"): tables.number(row, row.tuned),
            t("Change"): tables.number(row, row.change, signed=True),
            t("95 % interval"): tables.interval(row),
            t("How many"): row.n,
        }
        for one in found
        for row in one.rows
        if row.family in (items.ALL, items.SEEN, items.UNSEEN)
    ]
    return pd.DataFrame(lines)

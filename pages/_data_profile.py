"""What a data set holds, in numbers and charts; how it is divided for training."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.check import DatasetError
from engine.data import Dataset, datasets, profile
from engine.models import Base, bases
from engine.words import t
from engine.workspace import Workspace
from pages import _data_rows, _theme, _ui

BARS = 30
HELD_OUT_SHOWN = 10


def base_of(workspace: Workspace) -> Base:
    """The base that is chosen, or the starter; said above what it decides."""
    base = bases.describe(_ui.current("base") or "starter", workspace)
    st.caption(_ui.say("Tokens as {base} reads them; the base is chosen on the Train page.", base=base.title))
    return base


def _colour() -> str:
    return _theme.of("chartCategoricalColors")[0]


def _bars(counts: Mapping[str, int], name: str, title: str, key: str) -> None:
    """A bar chart of counts, and the same numbers as a table."""
    figure = go.Figure(go.Bar(x=list(counts), y=list(counts.values()), width=0.5, marker={"color": _colour()}))
    figure.update_layout(height=260, margin={"l": 10, "r": 10, "t": 36, "b": 10}, title=title)
    figure.update_xaxes(type="category")
    st.plotly_chart(_ui.figure(figure), key=key, alt=title)
    with st.expander(_ui.say("The numbers: {what}", what=title)):
        table = pd.DataFrame({name: list(counts), t("Count"): list(counts.values())})
        st.dataframe(table, hide_index=True, alt=title)


def show(workspace: Workspace, dataset: Dataset) -> None:
    """Rows, turns, roles, characters, labels and token lengths, each as a chart with its table."""
    base = base_of(workspace)
    try:
        with st.spinner(t("Counting ...")):
            found = profile.describe(workspace, dataset.id, base)
    except DatasetError as error:
        st.error(_ui.plain(error.problem.sentence))
        return
    if found.problem is not None:
        st.warning(_ui.plain(found.problem.sentence))
    if found.tokens:
        _lengths(found)
    turns = {str(turn): rows for turn, rows in found.turns.items()}
    marks = {"true": t("good"), "false": t("bad")}
    labels = {marks[label]: count for label, count in found.labels.items()}
    charts = [
        (found.characters, t("Role"), t("Characters by role"), "characters"),
        (found.roles, t("Role"), t("Messages by role"), "roles"),
        (turns, t("Messages"), t("Rows by number of messages"), "turns"),
        (labels, t("Label"), t("Answers by label"), "labels"),
    ]
    columns = st.columns(2)
    for number, (counts, name, title, key) in enumerate(one for one in charts if one[0]):
        with columns[number % 2]:
            _bars(counts, name, title, f"{key}_{dataset.id}")


def _lengths(found: profile.Statistics) -> None:
    a, b, c, d = st.columns(4)
    a.metric(t("Tokens, median row"), f"{found.quantile(0.5):,}")
    b.metric(t("95 % of rows within"), f"{found.quantile(0.95):,}")
    c.metric(t("Longest row seen"), f"{max(found.tokens):,}")
    window = found.window_tokens
    if window:
        over = f"{100 * found.over(window):.2g} %"
        d.metric(t("Over the window"), over, help=t("The base reads {n} tokens at once.", n=f"{window:,}"))
    if found.is_sample:
        n = f"{len(found.tokens) + found.refused:,}"
        st.caption(t("Token lengths are estimated from {n} rows drawn at random.", n=n))
    if found.plain_template:
        st.caption(t("The base has no chat template; questions and answers are marked with plain headings."))
    if found.refused:
        st.warning(t("The base's chat template cannot write {n} of these rows.", n=f"{found.refused:,}"))
    longest = max(found.tokens)
    width = max(1, -(-longest // BARS))
    counts = [0] * (longest // width + 1)
    for length in found.tokens:
        counts[length // width] += 1
    edges = [f"{i * width:,}-{(i + 1) * width - 1:,}" for i in range(len(counts))]
    figure = go.Figure(
        go.Bar(x=[(i + 0.5) * width for i in range(len(counts))], y=counts, width=width, customdata=edges,
               marker={"color": _colour()}, hovertemplate="%{customdata}: %{y}<extra></extra>")
    )  # fmt: skip
    if window and window <= longest * 1.2:
        figure.add_vline(x=window, line_dash="dash", line_color=_theme.of("textColor"), annotation_text=t("window"))
    title = t("Rows by length in tokens")
    figure.update_layout(height=280, margin={"l": 10, "r": 10, "t": 36, "b": 10}, title=title, bargap=0.05)
    st.plotly_chart(_ui.figure(figure), key="lengths", alt=title)
    with st.expander(t("The numbers: {what}", what=title)):
        table = pd.DataFrame({t("Tokens"): edges, t("Rows"): counts})
        st.dataframe(table[table[t("Rows")] > 0], hide_index=True, alt=title)


def division(workspace: Workspace, dataset: Dataset) -> None:
    """How a run divides the rows into trained and held-out ones, or which other data it is scored on."""
    _validation(workspace, dataset)
    if dataset.eval_id:
        return
    base = bases.describe(_ui.current("base") or "starter", workspace)
    try:
        with st.spinner(t("Counting ...")):
            found = profile.describe(workspace, dataset.id, base).split
    except DatasetError as error:
        st.error(_ui.plain(error.problem.sentence))
        return
    if found is None:
        st.write(
            t(
                "10 % of the rows, at most 500, are held out of training by a seeded draw; rows with the same question "
                "stay together."
            )
        )
        return
    out = len(found.held_out)
    total = found.train_rows + out
    a, b, c = st.columns(3)
    a.metric(t("Rows trained on"), f"{found.train_rows:,}")
    b.metric(t("Rows held out"), f"{out:,}")
    c.metric(t("Different questions"), f"{found.groups:,}")
    st.caption(
        _ui.say(
            "Drawn with seed {seed}. Rows with the same question stay on one side. "
            'Share and seed are settings of the Train page ("Held-out share", "Split seed").',
            seed=found.seed,
        )
    )
    if found.groups < total:
        again = total - found.groups
        many = t("{n} rows repeat the question of another row.", n=f"{again:,}")
        st.caption(t("1 row repeats the question of another row.") if again == 1 else many)
    if not out:
        st.warning(t("Nothing is held out: every row asks the same question."))
        return
    st.write(t("The first rows that are held out:"))
    rows = [row for at in found.held_out[:HELD_OUT_SHOWN] for row in datasets.preview(workspace, dataset.id, at, 1)]
    st.dataframe(_data_rows.table(rows), hide_index=True, alt=t("Rows that are held out"))


def _validation(workspace: Workspace, dataset: Dataset) -> None:
    """Let a person say which other data the runs on this one are scored on."""
    known = {
        one.id: one.name
        for one in datasets.list_all(workspace)
        if one.id != dataset.id and one.trainable and one.report.type == dataset.report.type
    }
    if dataset.eval_id and dataset.eval_id not in known:
        known[dataset.eval_id] = _name(workspace, dataset.eval_id)
    options = ["", *known]
    chosen = st.selectbox(
        t("Rows to validate on"),
        options,
        index=options.index(dataset.eval_id or ""),
        format_func=lambda one: known.get(one) or t("a part of these rows, held out"),
        help=t("To use a file of its own, bring it here first like any other data, then choose it."),
        key=f"validation_{dataset.id}_{dataset.eval_id}",
    )
    if chosen != (dataset.eval_id or ""):
        try:
            datasets.attach(workspace, dataset.id, chosen or None)
        except DatasetError as error:
            st.error(_ui.plain(error.problem.sentence))
        else:
            st.rerun()
    if dataset.eval_id:
        st.caption(t("Runs on this data are scored on those rows before and after."))


def _name(workspace: Workspace, dataset_id: str) -> str:
    try:
        return datasets.load(workspace, dataset_id).name
    except DatasetError:
        return t("data that is gone")

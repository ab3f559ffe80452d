"""Several runs laid over each other on the Forgetting page: their losses, and the settings that differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine import events
from engine.runs import store
from engine.spec import settings
from engine.words import t
from engine.workspace import Workspace
from pages import _charts, _forgetting_frontier, _theme, _ui

# Streamlit puts the colours of the reader's theme in place of these; with the dashes 15 lines can be told apart.
_COLOURS, _DASHES = ("#000001", "#000002", "#000003", "#000004", "#000005"), ("solid", "dash", "dot")
MOST_COLUMNS = 3
MOST_LINES = len(_COLOURS) * len(_DASHES)


class Mark(NamedTuple):
    """What stands for a run in every picture and table: a letter, with the seed's number among runs that differ in nothing
    else, which share the letter, the colour and the dash."""

    text: str
    letter: str
    colour: str
    dash: str


Lines = list[tuple[Mark, list[list[float]]]]


def marked(groups: Iterable[Sequence[str]]) -> dict[str, Mark]:
    """Return the mark of each run, of groups of runs that differ in their seed alone."""
    found = {}
    for number, group in enumerate(groups):
        letter = _forgetting_frontier.letter(number)
        look = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
        for seed, run in enumerate(group, 1):
            found[run] = Mark(letter if len(group) < 2 else f"{letter}{seed}", letter, *look)
    return found


def short(marks: Sequence[Mark], of: Iterable[Mark]) -> str:
    """Return some marks `of` all in a few letters: those of all seeds of a letter as the letter."""
    every = list(of)
    told = []
    for one in marks:
        seeds = {other for other in every if other.letter == one.letter}
        told.append(one.letter if seeds <= set(marks) else one.text)
    return ", ".join(dict.fromkeys(told))


def show(workspace: Workspace, marks: Mapping[str, Mark]) -> None:
    """Show the losses of runs, by id with the mark each has on the page, and the settings in which they differ."""
    shown = [(title, lines) for title, lines in losses(workspace, marks) if lines]
    places = [column for _ in shown[::2] for column in st.columns(2)]
    for number, (column, (title, lines)) in enumerate(zip(places, shown, strict=False)):
        with column:
            st.markdown(f"**{_ui.plain(title)}**")
            st.plotly_chart(_ui.figure(drawn(lines)), key=f"losses_{number}", config=_theme.STILL, alt=title)
    if shown:
        with st.expander(t("The losses in a table")):
            st.table(_ui.cells(figures(shown)), hide_index=True, border="horizontal")
    st.markdown(f"**{_ui.plain(t('Settings that differ'))}**")
    different = differing(workspace, list(marks))
    if not different:
        st.caption(t("These runs have the same settings throughout."))
        return
    if len({store.load_spec(workspace, run_id).dataset.id for run_id in marks}) > 1:
        st.caption(t("Their data differ: losses on other rows cannot be compared."))
    st.table(_ui.cells(settings_table(different, list(marks.values()))), hide_index=True, border="horizontal")


def losses(workspace: Workspace, marks: Mapping[str, Mark]) -> list[tuple[str, Lines]]:
    """Return by title for each run its loss on trained and on held-out rows over the steps, and that on general text where
    it was watched."""
    trained, held_out, general = Lines(), Lines(), Lines()
    for run_id, mark in marks.items():
        found, _ = events.read(workspace.run_dir(run_id))
        steps = [[e.step, e.loss] for e in found if isinstance(e, events.Step) and e.loss is not None]
        evals = [e for e in found if isinstance(e, events.Eval)]
        watched = [[0, e.general_loss] for e in found if isinstance(e, events.Watched)][:1]
        watched += [[e.step, e.metrics["general_loss"]] for e in evals if "general_loss" in e.metrics]
        trained += [(mark, _charts.thinned(steps))] if steps else []
        held_out += [(mark, [[e.step, e.loss] for e in evals])] if len(evals) > 1 else []
        general += [(mark, watched)] if len(watched) > 1 else []
    return [
        (t("Loss on trained rows"), trained),
        (t("Loss on held-out rows"), held_out),
        (t("Loss on watched general text"), general),
    ]


def drawn(lines: Lines) -> go.Figure:
    """Draw lines over the steps, each by its mark."""
    figure = go.Figure()
    for mark, points in lines:
        steps, values = zip(*points, strict=True)
        figure.add_scatter(
            x=steps, y=values, mode="lines", name=mark.text, line={"color": mark.colour, "dash": mark.dash, "width": 1.8},
            hovertemplate="%{y:.4g}",
        )  # fmt: skip
    figure.update_xaxes(title=t("step"))
    figure.update_layout(
        height=300, margin={"l": 8, "r": 8, "t": 8, "b": 8}, hovermode="x unified", showlegend=True, dragmode=False,
        legend={"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0},
    )  # fmt: skip
    return figure


def figures(shown: Sequence[tuple[str, Lines]]) -> pd.DataFrame:
    """Return what the lines of the pictures begin with, come down to and end with, by their mark."""
    marks = dict.fromkeys(mark for _, lines in shown for mark, _ in lines)
    table: dict[str, list[str]] = {t("Mark"): [mark.text for mark in marks]}
    for title, lines in shown:
        values = {mark: [value for _, value in points] for mark, points in lines}
        table[title] = [_course(values[mark]) if mark in values else "–" for mark in marks]
    return pd.DataFrame(table)


def _course(values: Sequence[float]) -> str:
    first, lowest, last = (f"{value:.3f}" for value in (values[0], min(values), values[-1]))
    return t("{first} → {last}, lowest {lowest}", first=first, last=last, lowest=lowest)


def differing(workspace: Workspace, run_ids: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the settings in which runs differ, each by its title with every run's value in words."""
    titles = {"recipe.name": t("Recipe"), "base.ref": t("Base"), "dataset.id": t("Data")}
    found = []
    for path, values in store.differences(workspace, list(run_ids)):
        title = titles.get(path) or t(settings.fields()[path].title)
        found.append((title, [store.value_words(workspace, path, value) for value in values]))
    return found


def settings_table(different: Sequence[tuple[str, list[str]]], marks: Sequence[Mark]) -> pd.DataFrame:
    """Return what runs have set otherwise: a column for each of a few; of more, which a phone would cut, each value with the
    runs that have it."""
    if len(marks) <= MOST_COLUMNS:
        texts = [mark.text for mark in marks]
        return pd.DataFrame(
            [{t("Setting"): title, **dict(zip(texts, values, strict=True))} for title, values in different]
        )
    found = []
    for title, values in different:
        having: dict[str, list[Mark]] = {}
        for mark, value in zip(marks, values, strict=True):
            having.setdefault(value, []).append(mark)
        told = [t("{value} ({marks})", value=value, marks=short(some, marks)) for value, some in having.items()]
        found.append({t("Setting"): title, t("Values"): "; ".join(told)})
    return pd.DataFrame(found)

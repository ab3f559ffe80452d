"""The list of all runs: what each is of and came to, filters, an order, a colour for any setting; a sweep is one row."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import pandas as pd
import streamlit as st
from pandas.io.formats.style import Styler

from engine.forgetting import sweep_drive, sweep_plan
from engine.runs import Run, store
from engine.runs import scored as runs_scored
from engine.serve import serving
from engine.spec import RunSpec, schema, settings
from engine.words import t
from engine.workspace import Workspace
from pages import _failures, _run_list, _run_phone, _ui

REFRESH_S = 2.0
# What an opening of the list may take for runs whose figures were never worked out; the others follow as it stays open.
MOST_WORK_S = 0.3
HEIGHT = 460
# What the column of names has room for, and how much of that the end of a name takes.
NAME_WIDTH, NAME_LETTERS, NAME_END = 340, 48, 12
# What a button reads as a picture, and what is shown of it when it is part of a name.
_ICON, _NO_ICON = ":material/", ":\u2060material/"
# Washes that read on light and on dark alike; more values than these share them.
_WASHES = ("59,91,219", "194,65,12", "15,118,110", "147,51,234", "161,98,7", "190,24,93", "77,124,15", "71,85,105")


class Row(NamedTuple):
    """One run as it is listed. `otherwise` is what it has set otherwise than the one before it that is called alike, and
    `mark` stands before the name of a sweep, closed or open, and of its runs."""

    run: Run
    of: Any
    summary: store.Summary
    brief: runs_scored.Brief | None
    otherwise: str = ""
    mark: str = ""

    @property
    def seconds(self) -> float | None:
        return sum(self.brief.seconds.values()) if self.brief is not None and self.brief.seconds else None


class State(NamedTuple):
    """What the list is shown anew for: how many runs there are, whether one goes on, whether figures are missing."""

    count: int
    live: bool
    lack: bool

    @property
    def changes(self) -> bool:
        return self.live or self.lack


def show(workspace: Workspace, runs: list[Run]) -> None:
    """Show all runs; while one of them goes on, or figures are missing, the list is read again by itself."""
    state = _state_of(runs, runs_scored.kept_briefs(workspace, runs))
    _failures.fragment(run_every=REFRESH_S if state.changes else None)(_show)(workspace, state)


def _state_of(runs: list[Run], briefs: Mapping[str, runs_scored.Brief]) -> State:
    live = {run.id for run in runs if run.status in store.LIVE}
    lack = any(run.id not in briefs and run.id not in live and not run.note for run in runs)
    return State(len(runs), bool(live), lack)


def _show(workspace: Workspace, was: State) -> None:
    runs = store.list_every(workspace)
    _run_phone.look({run.id for run in runs})
    before = runs_scored.kept_briefs(workspace, runs)
    if was.changes and _state_of(runs, before) != was:  # it is shown anew by itself no longer, or there is another run
        st.rerun()
    briefs = _briefs(workspace, runs)
    wanted = _ui.current("run")
    rows = _ordered(_filtered(_rows(workspace, runs, briefs, runs)))
    rows = _folded(workspace, rows, wanted)
    if not rows:
        st.info(t("No run fits what is looked for."))
        return
    colour = st.session_state.get("runs_colour")
    specs = _specs(workspace, rows) if colour in settings.fields() else {}
    served = serving.all_now(workspace)
    frame = _frame(rows, served, colour, specs)
    marked = _listed(frame, _heading(colour), rows, t("All runs"))
    if not marked and len(rows) > 1:
        _run_list.compare(_alike(workspace, rows), marked=False)


def _rows(
    workspace: Workspace, shown: list[Run], briefs: Mapping[str, runs_scored.Brief], runs: list[Run]
) -> list[Row]:
    """Return the rows of the runs that are shown; `runs` are all there are."""
    otherwise = _run_list.otherwise(workspace, runs)
    return [
        Row(run, store.made_of(workspace, run), store.summary(workspace, run.id), briefs.get(run.id),
            otherwise.get(run.id, ""))
        for run in shown
    ]  # fmt: skip


def _alike(workspace: Workspace, rows: Sequence[Row]) -> list[str]:
    """Return those of the listed runs that can be held against each other, since they learned from the same rows on the same
    base: of the first of the list that has such another. Empty where none has."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.brief is not None and row.brief.gained is not None:
            groups.setdefault((row.run.dataset, row.run.base), []).append(row.run.id)
    for group in groups.values():
        trained = [one for one in group if store.load_spec(workspace, one).kind == "train"]
        if len(trained) > 1:
            return trained
    return []


def _listed(frame: pd.DataFrame, coloured: str, rows: Sequence[Row], alt: str) -> list[str]:
    """Show runs as a table, and for a narrow screen as a list of names with what each came to; the style shows one. Returns
    those that are marked."""
    with st.container(key="wide_runs"):
        marked = _table(_styled(frame, coloured), [row.run.id for row in rows], alt)
    found = [
        (row.run.id, row.mark + row.run.name, _lines(frame.iloc[number], row, coloured))
        for number, row in enumerate(rows)
    ]
    _run_phone.show(found, alt)
    return marked


def _lines(cells: Any, row: Row, coloured: str) -> list[str]:
    """Return what stands below a name where a table has no room: state, gained and lost; then what was asked to be seen."""
    changes = [
        f"{title} {cells[title].words}" for title in (t("Gained"), t("Lost")) if isinstance(cells[title], Figure)
    ]
    lines = [" · ".join([cells[t("Status")], *changes])]
    if coloured and coloured != t("Status"):
        value = cells[coloured]
        told = value.words if isinstance(value, Figure) else value or t("none")
        lines.append(t("{name}: {text}", name=coloured, text=told))
    return lines + ([row.otherwise] if row.otherwise else [])


def _table(frame: Styler, ids: Sequence[str], alt: str) -> list[str]:
    """Show runs, each name a button that opens its run, and each row to be marked, which the keyboard does with Shift and
    Space: one to be opened, several to be compared. What was clicked is looked up in these very rows, which may be others
    when they are shown anew."""
    key = f"open_{hash(tuple(ids))}"
    clicked = st.session_state.get(key)
    picked = st.dataframe(
        frame, hide_index=True, height=min(HEIGHT, 38 + 35 * len(ids)), row_height=35, placeholder="",
        column_config=_columns(key), alt=alt, key=f"{key}_table", on_select="rerun", selection_mode="multi-row",
    )  # fmt: skip
    if clicked and clicked["row"] < len(ids):
        _run_list.look(str(ids[clicked["row"]]))
    marked = [str(ids[row]) for row in (picked.selection.rows if picked else []) if row < len(ids)]
    if len(marked) == 1 and st.button(t("Open it"), icon=":material/arrow_forward:", key=f"{key}_one"):
        _run_list.look(marked[0])
    if len(marked) > 1:
        _run_list.compare(marked, marked=True)
    return marked


def _briefs(workspace: Workspace, runs: list[Run]) -> dict[str, runs_scored.Brief]:
    """Return the figures of runs that have ended; of those that were never worked out as many as there is time for."""
    found, began_s = runs_scored.kept_briefs(workspace, runs), time.monotonic()
    for run in runs:
        if run.id in found or run.status in store.LIVE or run.note:
            continue
        if time.monotonic() - began_s > MOST_WORK_S:
            break
        found[run.id] = runs_scored.brief(workspace, run.id, runs)
    return found


def _filtered(rows: list[Row]) -> list[Row]:
    """Offer to look for runs, and return those that fit. Of few runs there is nothing to look for."""
    if len(rows) < 4:
        return rows
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            t("Find"), key="runs_find", placeholder=t("name, data, base, recipe"), icon=":material/search:"
        ).casefold()
        with st.popover(t("Filter"), icon=":material/filter_list:"):
            kept = [
                _one_of(t("Status"), "status", {row.run.status: _ui.status_word(row.run.status) for row in rows}),
                _one_of(t("Data"), "data", {row.of.data: row.of.data for row in rows if row.of.data}),
                _one_of(t("Base"), "base", {row.of.base: row.of.base for row in rows if row.of.base}),
                _one_of(t("Recipe"), "recipe", {row.of.recipe: row.of.recipe for row in rows}),
            ]
            pinned = st.toggle(t("Only pinned ones"), key="pinned_alone") if any(row.run.pin for row in rows) else False
        with st.popover(t("Order and colour"), icon=":material/palette:"):
            st.selectbox(t("Order"), list(_orders()), format_func=lambda one: _orders()[one], key="runs_order")
            st.selectbox(
                t("Colour by"), [None, *_coloured()], format_func=lambda one: t("nothing") if one is None else _heading(one),
                key="runs_colour",
            )  # fmt: skip
    return [
        row for row in rows
        if all(not some or value in some for some, value in
               zip(kept, (row.run.status, row.of.data, row.of.base, row.of.recipe), strict=True))
        and text in " ".join((row.run.name, row.of.data, row.of.base, row.of.recipe, row.run.pin)).casefold()
        and (row.run.pin or not pinned)
    ]  # fmt: skip


def _one_of(label: str, key: str, words: Mapping[str, str]) -> list[str]:
    name = f"runs_{key}"
    return st.multiselect(
        _ui.plain(label), sorted(words), format_func=lambda one: words[one], key=name, placeholder=t("all")
    )


def _orders() -> dict[str, str]:
    return {
        "newest": t("newest first"), "gained": t("most gained"), "lost": t("least lost"), "loss": t("lowest loss"),
        "minutes": t("shortest"), "name": t("by name"),
    }  # fmt: skip


def _ordered(rows: list[Row]) -> list[Row]:
    last = float("inf")

    def fallen(change: runs_scored.Change | None) -> float:
        return last if change is None else -change.points

    keys: dict[str, Callable[[Row], Any]] = {
        "gained": lambda row: fallen(row.brief.gained if row.brief is not None else None),
        "lost": lambda row: fallen(row.brief.lost if row.brief is not None else None),
        "loss": lambda row: last if row.summary.eval_loss is None else row.summary.eval_loss,
        "minutes": lambda row: last if row.seconds is None else row.seconds,
        "name": lambda row: row.run.name.casefold(),
    }
    key = keys.get(st.session_state.get("runs_order", "newest"))
    return sorted(rows, key=key) if key is not None else rows


def _folded(workspace: Workspace, rows: list[Row], wanted: str | None) -> list[Row]:
    """Return the rows with the runs of each sweep behind it, and with what scored the way back from a run behind that:
    shown below it where it, or one of them, was opened last."""
    inside, there = dict[str, str](), {row.run.id for row in rows}
    for row in rows:
        if (origin := None if row.run.note else _scored_the_way_of(str(workspace.root), row.run.id)) in there:
            inside[row.run.id] = origin
        if row.run.recipe == sweep_plan.RECIPE.name:
            inside |= dict.fromkeys(trials(workspace, row.run.id), row.run.id)
    opened = inside.get(wanted or "", wanted)
    found = []
    for row in rows:
        if row.run.id in inside:
            continue
        own = [one for one in rows if inside.get(one.run.id) == row.run.id]
        found.append(row._replace(mark="▾ " if row.run.id == opened else "▸ ") if own else row)
        if row.run.id == opened:
            found += [one._replace(mark="↳ ") for one in own]
    return found


@lru_cache(maxsize=4096)  # it never changes
def _scored_the_way_of(root: str, run_id: str) -> str | None:
    """Return the run whose way back this one scored; None of every other."""
    asked = store.load_spec(Workspace(root), run_id).recover
    return asked.run if asked is not None and asked.at is None else None


def trials(workspace: Workspace, sweep_id: str) -> list[str]:
    """Return the runs of a sweep that were started."""
    with suppress(OSError, ValueError):
        return [trial.run for trial in sweep_drive.load(workspace, sweep_id).trials if trial.run is not None]
    return []


def children(workspace: Workspace, sweep: Run, runs: list[Run]) -> None:
    """Show the runs of a sweep on its page, each with what it came to; a click opens one."""
    own = set(trials(workspace, sweep.id))
    _run_phone.look(own)
    found = [run for run in runs if run.id in own]
    if not found:
        return
    briefs = _briefs(workspace, found)
    rows = _rows(workspace, found, briefs, runs)
    st.markdown(f"**{_ui.plain(t('Its runs ({n})', n=len(rows)))}**")
    _listed(_frame(rows, {}, None, {}), "", rows, t("The runs of this sweep"))


def _specs(workspace: Workspace, rows: Sequence[Row]) -> dict[str, RunSpec]:
    return {row.run.id: store.load_spec(workspace, row.run.id) for row in rows if not row.run.note}


def _coloured() -> list[str]:
    return ["status", "data", "base", "recipe", *settings.fields()]


def _heading(colour: str | None) -> str:
    own = {"status": t("Status"), "data": t("Data"), "base": t("Base"), "recipe": t("Recipe")}
    return own.get(colour or "") or (t(settings.fields()[colour].title) if colour in settings.fields() else "")


class Figure(float):
    """A number that a click on its heading sorts as one, and that is shown in `words`."""

    words: str

    def __new__(cls, value: float, words: str) -> Figure:
        made = super().__new__(cls, value)
        made.words = words
        return made


def _frame(
    rows: Sequence[Row], served: Mapping[str, Any], colour: str | None, specs: Mapping[str, RunSpec]
) -> pd.DataFrame:
    pinned = any(row.run.pin for row in rows)
    losses = [row.summary.eval_loss if row.summary.eval_loss is not None else row.summary.loss for row in rows]
    table: dict[str, list[Any]] = {
        t("Run"): [shortened(row.mark + row.run.name).replace(_ICON, _NO_ICON) for row in rows],
        **({t("Pinned"): [row.run.pin for row in rows]} if pinned else {}),
        t("Status"): [_state(row, served) for row in rows],
        t("Gained"): [_change(row.brief.gained if row.brief is not None else None) for row in rows],
        t("Lost"): [_change(row.brief.lost if row.brief is not None else None, is_lost=True) for row in rows],
        t("Loss"): losses,
        t("Minutes"): [None if row.seconds is None else row.seconds / 60 for row in rows],
        **({t("Set otherwise"): [row.otherwise for row in rows]} if any(row.otherwise for row in rows) else {}),
        t("Data"): [row.of.data for row in rows],
        t("Base"): [row.of.base for row in rows],
        t("Recipe"): [row.of.recipe for row in rows],
        t("Started"): [Figure(round(row.run.created), _ui.ago(row.run.created)) for row in rows],
    }
    if specs and colour:
        values = [schema.value_at(specs[row.run.id], colour) if row.run.id in specs else None for row in rows]
        table = {t("Run"): table[t("Run")], _heading(colour): _setting(colour, values), **table}
    return pd.DataFrame(
        {
            name: pd.Series(column, dtype=object if any(isinstance(one, Figure) for one in column) else None)
            for name, column in table.items()
        }
    )


def shortened(name: str) -> str:
    """Return a name as its column has room for it, without its middle: its end tells runs apart that are called alike.
    A Chinese character takes the room of two letters."""
    if _letters(name) <= NAME_LETTERS:
        return name
    start, end = name[:-NAME_END], name[-NAME_END:]
    while _letters(start) + _letters(end) >= NAME_LETTERS:
        start = start[:-1]
    return f"{start.rstrip()}…{end.lstrip()}"


def _letters(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _setting(path: str, values: Sequence[Any]) -> list[Any]:
    """Return one setting's values for a column: where all are numbers, they sort as such."""
    words = ["" if value is None else settings.value_words(path, value) for value in values]
    if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in values):
        return words
    return [None if value is None else Figure(value, told) for value, told in zip(values, words, strict=True)]


def _state(row: Row, served: Mapping[str, Any]) -> str:
    if row.run.id in served:
        return t("served")
    word = _ui.status_word(row.run.status)
    return f"{word} {100 * row.run.progress:.0f} %" if row.run.status == "running" else word


def _change(change: runs_scored.Change | None, *, is_lost: bool = False) -> Figure | None:
    """Return in a few words how much was gained, or how much of what it knew was lost: "none" where that rose. One that is
    not beyond noise, or too small to matter, says so."""
    if change is None or change.verdict == "too few":
        return None
    sign, is_share = -1 if is_lost else 1, change.unit == "%"
    amount = sign * change.better
    rounded = (round(100 * amount) if is_share else round(amount, 2)) + 0.0  # there is one zero
    if is_lost and rounded < 0:
        return Figure(round(sign * change.points, 1), t("none"))
    if change.unit == "nats/token":
        rises = (amount > 0) == is_lost
        told = t("loss {n} higher", n=f"{abs(rounded):.2f}") if rises else t("loss {n} lower", n=f"{abs(rounded):.2f}")
    else:
        told = t("{n} points", n=f"{rounded:.0f}") if is_share else f"{rounded:.2f}"
    sure = change.verdict in ("better", "worse")
    return Figure(round(sign * change.points, 1), told if sure else t("{change}, unsure", change=told))


def _styled(frame: pd.DataFrame, column: str) -> Styler:
    """Return the table with its figures in words, and the cells of one column coloured by their value."""
    shown = frame.style
    if column in frame:
        values = {value: index for index, value in enumerate(dict.fromkeys(frame[column]))}
        shown = shown.map(
            lambda value: f"background-color: rgba({_WASHES[values[value] % len(_WASHES)]}, 0.28)", subset=[column]
        )
    shown.format(lambda value: value.words if isinstance(value, Figure) else value, na_rep="")
    return shown


def _columns(key: str) -> dict[str, Any]:
    config = st.column_config
    return {
        t("Run"): config.ButtonColumn(width=NAME_WIDTH, type="tertiary", alignment="left", key=key),
        t("Loss"): config.NumberColumn(
            format="%.3f", help=t("On held-out rows; where there are none, on trained ones.")
        ),
        t("Minutes"): config.NumberColumn(format="%.1f", help=t("Without waiting.")),
        t("Gained"): config.NumberColumn(
            width=110, alignment="left", help=t("On held-out rows of its own data, against the base.")
        ),
        t("Lost"): config.NumberColumn(
            width=130, alignment="left", help=t("What it knew before: the benchmark that fell most.")
        ),
        t("Started"): config.NumberColumn(alignment="left"),
        t("Set otherwise"): config.TextColumn(
            width=200, help=t("Than the run before it of the same data, recipe and base.")
        ),
    }

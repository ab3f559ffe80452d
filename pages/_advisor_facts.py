"""The Advisor page's three chips: the card, the model and the data that the advice is for, each opened to be changed."""

from __future__ import annotations

from typing import Any

import streamlit as st

from engine import machine
from engine.advise import Facts
from engine.advise import facts as advise_facts
from engine.data import Dataset, datasets
from engine.estimate import memory
from engine.models import bases
from engine.words import t
from engine.workspace import Workspace
from pages import _data_bring, _data_problems, _failures, _ui

# What is asked most: GB of memory of cards, and billions of parameters. 0 GB: no card.
CARDS_GB = (0, 8, 12, 16, 24, 48, 80)
SIZES = (0.5, 1.0, 3.0, 7.0, 14.0, 32.0, 70.0)


def _data_words() -> dict[str, str]:
    """Return what rows can be, by the kind that a report names; no recipe learns from marked steps."""
    return {name: word for name, word in _data_problems.kinds().items() if name != "stepwise"}


def chips(workspace: Workspace, dataset: Dataset | None) -> tuple[Any, Any, Any]:
    """Show what the advice is for, and return the three places where it is changed."""
    row = st.container(horizontal=True)
    return (
        row.popover(_ui.plain(_card_words()), icon=":material/memory:", key="chip_card"),
        row.popover(_ui.plain(_model_words(workspace)), icon=":material/neurology:", key="chip_model"),
        row.popover(_ui.plain(_rows_words(dataset)), icon=":material/table_rows:", key="chip_data"),
    )


def _planned(name: str, key: str) -> float | None:
    """Return a number that is planned with, before its field is drawn; the field passes over what is beyond its limits."""
    least, most = advise_facts.LIMITS[name]
    try:
        value = float(st.session_state.get(key, st.query_params.get(key)) or "nan")
    except ValueError:
        return None
    return value if (0 if name == "gpu_memory_gib" else least / 1e9) <= value <= most else None


def _card_words() -> str:
    planned, found = st.session_state.get("plan_gpu_gb", st.query_params.get("plan_gpu_gb")), machine.facts()
    size = 0.0 if str(planned) == "0" else _planned("gpu_memory_gib", "plan_gpu_gb")
    if size:
        return t("Card: {gb} GB, planned", gb=f"{size:g}")
    if found.gpus and size is None:
        gb = machine.marketed_gb(found.gpus[0].memory_mib / 1024)
        return t("Card: {name}, {gb} GB", name=found.gpus[0].name, gb=gb)
    return t("No card: {size} of memory", size=memory.size_words(found.memory_mib * 2**20))


def _model_words(workspace: Workspace) -> str:
    planned = _planned("base_parameters", "plan_billions")
    if planned is not None:
        return t("Model: {size}, planned", size=f"{planned:g}B")
    return t("Model: {name}", name=bases.describe(_ui.current("base") or "starter", workspace).title)


def _rows_words(dataset: Dataset | None) -> str:
    planned = _planned("rows", "plan_rows")
    if planned is not None:
        return t("Data: {rows} rows, planned", rows=f"{planned:,.0f}")
    if dataset is None:
        return t("Data: none yet")
    return t("Data: {name}, {rows}", name=dataset.name, rows=_data_bring.rows_words(dataset.good_rows))


# --- the three places ------------------------------------------------------------------------------------------------
def card(place: Any) -> dict[str, Any]:
    """Ask for the card to plan for, which may be another than this machine's, and for the size of another base: facts by
    name."""
    words = {gb: t("{gb} GB", gb=gb) if gb else t("No card") for gb in CARDS_GB}
    with place:
        planned = st.number_input(
            t("Memory of the card, in GB"), *_limits("gpu_memory_gib"), value=None, step=1, key="plan_gpu_gb",
            bind="query-params", placeholder=t("as on this machine"),
        )  # fmt: skip
        # beside it, so that a card and a size are one place and one press of Tab
        size = st.number_input(
            t("Size of the model, in billions of parameters"), 0.01, advise_facts.LIMITS["base_parameters"][1] / 1e9,
            value=None, key="plan_billions", bind="query-params", placeholder=t("as the model chosen"),
        )  # fmt: skip
        _presets(words, t("This machine"), t("Card to plan for"), "plan_gpu_gb")
    said = {} if planned is None else {"gpu_memory_gib": planned or None}
    return said | ({"base_parameters": size * 1e9} if size else {})


def model() -> dict[str, Any]:
    """Offer the usual sizes of another base, below the list of those that are here, and ask what it was: facts by name."""
    words = {size: f"{size:g}B" for size in SIZES}
    _presets(words, t("the one above"), t("Or only a size"), "plan_billions")
    tuned = st.checkbox(
        t("The base was fine-tuned before, and that should stay"), key="plan_tuned", bind="query-params"
    )
    return {"base_is_tuned": True} if tuned else {}


def data(place: Any, workspace: Workspace, dataset: Dataset | None) -> dict[str, Any]:
    """Ask for the rows, and for what only the person knows: facts by name."""
    with place:
        _dataset(workspace, dataset)
        rows = st.number_input(
            t("Rows"), *_limits("rows"), value=None, step=1, key="plan_rows", bind="query-params",
            placeholder=str(dataset.good_rows) if dataset is not None else t("not known"),
        )  # fmt: skip
        of_file = dataset.report.kind if dataset is not None else None
        kind = _choice(t("Kind of rows"), _data_words(), "plan_data", of_file)
        goal = _choice(t("What should the model learn?"), advise_facts.goal_words(), "goal")
        report = dataset.report if dataset is not None else None
        by_file = Facts(rows=report.rows, data_type=report.type) if report is not None else Facts()
        judged = _choice(
            t("Have people judged answers of a model?"), advise_facts.alignment_words(), "judged",
            advise_facts.alignment(by_file),
        )  # fmt: skip
        tolerances = {
            "low": t("As little as possible"),
            "medium": t("Some, if it learns the task"),
            "high": t("It does not matter"),
        }
        tolerance = _choice(t("How much may it forget?"), tolerances, "plan_forget")
        minutes = st.number_input(
            t("Time you have, in minutes"), 1, _limits("time_budget_minutes")[1], value=None, step=1, key="plan_minutes",
            bind="query-params",
        )  # fmt: skip
        good = bad = None
        if (kind or (report.type if report is not None else None)) == "unpaired-preference":
            good, bad = (
                st.number_input(_ui.plain(label), *_limits(name), value=None, step=1, key=key, bind="query-params")
                for label, name, key in (
                    (t("Rows marked good"), "good_rows", "plan_good"),
                    (t("Rows marked bad"), "bad_rows", "plan_bad"),
                )
            )
        judge = st.checkbox(t("I have a reward model"), key="plan_judge", bind="query-params")
    said: dict[str, Any] = {
        "rows": rows, **_of_kind(kind), "goal": goal, "alignment_data": judged, "forgetting_tolerance": tolerance,
        "time_budget_minutes": minutes, "good_rows": good, "bad_rows": bad,
    }  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    return said | ({"has_reward_model": True} if judge else {})


def _dataset(workspace: Workspace, dataset: Dataset | None) -> None:
    """Choose among the data that is here, or go and bring some."""
    here = {one.id: one.name for one in datasets.list_all(workspace) if one.report.trainable}
    if here:
        chosen = st.selectbox(
            t("Data"), list(here), index=list(here).index(dataset.id) if dataset and dataset.id in here else None,
            format_func=here.__getitem__, placeholder=t("none yet"), key="advisor_data",
        )  # fmt: skip
        if chosen is not None and (dataset is None or chosen != dataset.id):
            _ui.choose("dataset", chosen)
            st.rerun()
    if st.button(t("Bring a file, or take a sample"), key="empty_state"):
        _ui.go("data")


# --- fields ----------------------------------------------------------------------------------------------------------
def _presets(words: dict[Any, str], none: str, label: str, key: str) -> None:
    """Offer the usual numbers of a field with one click each, and `none` of them."""
    told = st.session_state.get(key, st.query_params.get(key))
    try:
        now = None if told in (None, "") else float(told)
    except ValueError:
        now = None
    picked, asked = f"{key}_preset", ["", *words]
    st.session_state[picked] = "" if now is None else now if now in words else None

    @_failures.kept
    def taken() -> None:
        st.session_state[key] = st.session_state[picked] if st.session_state[picked] != "" else None

    st.radio(
        _ui.plain(label), asked, format_func=lambda one: _ui.plain(none if one == "" else words[one]), key=picked,
        on_change=taken, horizontal=True,
    )  # fmt: skip


def _choice(label: str, words: dict[str, str], key: str, known: str | None = None) -> str | None:
    """Ask for one of a few; the answer stands in the URL. What the file says is shown until somebody says otherwise."""
    options, given = list(words), st.query_params.get(key)
    shown = st.selectbox(
        _ui.plain(label),
        options,
        index=options.index(given) if given in words else None,
        format_func=words.__getitem__,
        placeholder=words[known] if known in words else t("Not sure yet"),
        key=key,
    )
    # by hand: a bound selectbox writes its label, which is another one in another language
    if shown:
        st.query_params[key] = shown
    elif key in st.query_params:
        del st.query_params[key]
    return shown


def _limits(name: str) -> tuple[int, int]:
    """Return the lowest and the highest whole number of a fact."""
    least, most = advise_facts.LIMITS[name]
    return int(least), int(most)


def _of_kind(kind: str | None) -> dict[str, Any]:
    """Return the facts that a kind of rows stands for."""
    if kind in ("texts", "conversations"):
        return {"data_type": "language-modeling", "conversational": kind == "conversations"}
    return {"data_type": kind}

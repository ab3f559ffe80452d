"""The Advisor page's questions: what is known of data, machine and base, what only the person knows, and plans."""

from __future__ import annotations

from typing import Any

import streamlit as st

from engine import machine
from engine.advise import Facts
from engine.advise import facts as advise_facts
from engine.check import kind_of
from engine.data import Dataset
from engine.models import Base
from engine.words import t
from pages import _ui


def _data_words() -> dict[str, str]:
    """Return what rows can be, by the kind that a report names."""
    return {
        "prompt-completion": t("Questions with answers"),
        "conversations": t("Conversations"),
        "texts": t("Plain texts"),
        "preference": t("Pairs: a better and a worse answer"),
        "unpaired-preference": t("Single answers marked good or bad"),
        "prompt-only": t("Questions alone"),
    }


def ask(dataset: Dataset | None, base: Base) -> dict[str, Any]:
    """Show what file and machine say, ask what only the person knows, and return that: facts by name."""
    report = dataset.report if dataset is not None else None
    found = machine.facts()
    with st.container(border=True):
        st.markdown(f"**{t('What is known')}**")
        lines = st.container()
        left, right = st.columns(2)
        goal = _choice(left, t("What should the model learn?"), advise_facts.goal_words(), "goal")
        by_file = Facts(rows=report.rows, data_type=report.type) if report is not None else Facts()
        judged = advise_facts.alignment_words()
        known = advise_facts.alignment(by_file)
        alignment = _choice(right, t("Have people judged answers of a model?"), judged, "judged", known)
    memory_gb = machine.marketed_gb(found.gpus[0].memory_mib / 1024) if found.gpus else None
    said = _plan(dataset, memory_gb, base)
    with lines:
        _ui.bullets([_data_line(dataset, said), _card_line(said), _base_line(base, said)])
    return said | {name: value for name, value in (("goal", goal), ("alignment_data", alignment)) if value}


def _data_line(dataset: Dataset | None, said: dict[str, Any]) -> str:
    if said.get("rows") or said.get("data_type") or dataset is None:
        rows, kind = said.get("rows"), _data_words().get(_kind_said(said) or "")
        if rows and kind:
            return t("As planned below: {rows} rows. {kind}", rows=f"{rows:,}", kind=kind)
        if rows:
            return t("As planned below: {rows} rows.", rows=f"{rows:,}")
        return (
            t("As planned below: {kind}", kind=kind)
            if kind
            else t("No data yet: say below what it will be, or bring a file.")
        )
    kind = _data_words().get(dataset.report.kind or "", dataset.report.kind or "?")
    return t("{name}: {rows} rows. {kind}", name=dataset.name, rows=f"{dataset.good_rows:,}", kind=kind)


def _kind_said(said: dict[str, Any]) -> str | None:
    return kind_of(said.get("data_type"), said.get("conversational", False))


def _card_line(said: dict[str, Any]) -> str:
    gpus = machine.facts().gpus
    if said.get("gpu_memory_gib"):
        return t("GPU: {gb} GB, as planned below", gb=said["gpu_memory_gib"])
    if gpus and "gpu_memory_gib" not in said:
        size = machine.marketed_gb(gpus[0].memory_mib / 1024)
        return t("GPU: {name}, sold as {gb} GB", name=gpus[0].name, gb=size)
    return t("No GPU: training runs on the processor, and no rule about GPU memory applies.")


def _base_line(base: Base, said: dict[str, Any]) -> str:
    if said.get("base_parameters"):
        return t("Base: {size}B, as planned below", size=f"{said['base_parameters'] / 1e9:g}")
    return t("Base: {name}", name=base.title)


def _choice(place: Any, label: str, words: dict[str, str], key: str, known: str | None = None) -> str | None:
    """Ask for one of a few; the answer stands in the URL. What the file says is shown until somebody says otherwise."""
    options, given = list(words), st.query_params.get(key)
    shown = place.selectbox(
        _ui.plain(label),
        options,
        index=options.index(given) if given in words else None,
        format_func=words.__getitem__,
        placeholder=words[known] if known else t("Not sure yet"),
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


def _plan(dataset: Dataset | None, memory_gb: int | None, base: Base) -> dict[str, Any]:
    """Let somebody on a laptop plan for another machine; an empty field means what was found, and is left out of what
    is returned. All of it stands in the URL, so that a scenario can be sent to somebody."""
    rows, parameters = dataset.good_rows if dataset is not None else None, base.parameters
    most = advise_facts.LIMITS["base_parameters"][1]
    with st.expander(t("Plan for more rows, another machine or another base"), expanded=dataset is None):
        st.caption(
            t("Leave a field empty to go by what was found. The address of this page holds what you enter: share it.")
        )
        left, middle, right = st.columns(3)
        other_rows = left.number_input(
            t("Rows"), *_limits("rows"), value=None, step=1, key="plan_rows", bind="query-params",
            placeholder=str(rows) if rows is not None else "",
        )  # fmt: skip
        other_memory = middle.number_input(
            t("GPU memory in GB (0: no GPU)"), *_limits("gpu_memory_gib"), value=None, step=1, key="plan_gpu_gb",
            bind="query-params",
            placeholder=str(memory_gb or 0),
        )  # fmt: skip
        other_size = right.number_input(
            t("Size of the base in billions"), 0.01, most / 1e9, value=None, key="plan_billions", bind="query-params",
            placeholder=f"{parameters / 1e9:.3g}" if parameters else "",
        )  # fmt: skip
        kind = _choice(left, t("Kind of rows"), _data_words(), "plan_data")
        tolerances = {
            "low": t("As little as possible"),
            "medium": t("Some, if it learns the task"),
            "high": t("It does not matter"),
        }
        tolerance = _choice(middle, t("How much may it forget?"), tolerances, "plan_forget")
        minutes = right.number_input(
            t("Time you have, in minutes"),
            1,
            _limits("time_budget_minutes")[1],
            value=None,
            step=1,
            key="plan_minutes",
            bind="query-params",
        )
        good = bad = None
        if (kind or (dataset.report.type if dataset else None)) == "unpaired-preference":
            good = left.number_input(
                t("Rows marked good"), *_limits("good_rows"), value=None, step=1, key="plan_good", bind="query-params"
            )
            bad = middle.number_input(
                t("Rows marked bad"), *_limits("bad_rows"), value=None, step=1, key="plan_bad", bind="query-params"
            )
        tuned = left.checkbox(
            t("The base was fine-tuned before, and that should stay"), key="plan_tuned", bind="query-params"
        )
        judge = middle.checkbox(t("I have a reward model"), key="plan_judge", bind="query-params")
    said: dict[str, Any] = {
        "rows": other_rows, **_of_kind(kind), "forgetting_tolerance": tolerance, "time_budget_minutes": minutes,
        "good_rows": good, "bad_rows": bad, "base_parameters": other_size * 1e9 if other_size else None,
    }  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    if other_memory is not None:
        said["gpu_memory_gib"] = other_memory or None
    return said | {name: True for name, ticked in (("base_is_tuned", tuned), ("has_reward_model", judge)) if ticked}

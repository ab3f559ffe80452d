"""The Train page's last fold: the name of the run, a chain of stages, taking it along, and what stands behind it."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import streamlit as st

from engine import machine
from engine.estimate import cards, machine_choices
from engine.plan import Plan, drafts, take_along
from engine.spec import schema
from engine.words import t
from pages import _train_chain, _ui


def show(plan: Plan, overrides: dict[str, Any], *, opened: bool) -> str:
    """Show it, and return the name that the run is to have."""
    st.session_state["run_name"] = st.session_state.get("run_name", "")  # else it is dropped with its field
    if opened:
        st.session_state["more_fold"] = True
    title = t("Name, stages, take it along, specification")
    _ui.fold(title, "more_fold", lambda: _more(plan, overrides), icon=":material/more_horiz:")
    return st.session_state["run_name"].strip()


def _more(plan: Plan, overrides: dict[str, Any]) -> None:
    st.text_input(t("Name of the run"), placeholder=t("optional"), key="run_name")
    if st.button(t("In stages: SFT, then preferences"), icon=":material/linear_scale:", key="open_chain"):
        st.query_params["chain"] = _train_chain.opened(plan.workspace)
        st.rerun()
    _take_along(plan, overrides)
    _ui.fold(t("What each device can do"), "devices_fold", _devices)
    _ui.fold(t("The whole specification (spec.json)"), "spec_fold", lambda: _specification(plan))


def _specification(plan: Plan) -> None:
    st.code(schema.encode(plan.spec).decode(), language="json")


def _take_along(plan: Plan, overrides: dict[str, Any]) -> None:
    """One file of what is chosen here and of the rows, for another Tunebook. It is made when it is asked for."""
    dataset, recipe_name = plan.dataset, plan.spec.recipe.name
    if dataset is not None and dataset.size_bytes is None:
        st.caption(t("The file that was brought is gone, so it cannot be taken along."))
        return
    if dataset is not None and take_along.is_too_large(plan.workspace, dataset):
        st.caption(t("The data is too large to be taken along through a browser."))
        return
    chosen = drafts.Draft(
        recipe=recipe_name, base=plan.base.ref, dataset=dataset.id if dataset is not None else None,
        overrides=dict(overrides), came_from=t("Taken along from another Tunebook"),
    )  # fmt: skip

    def file() -> bytes:
        out = io.BytesIO()
        take_along.pack(plan.workspace, chosen, out)
        return out.getvalue()

    # A page that is shown anew by the click drops, now and then, the answer that says where the file lies (streamlit 1.67,
    # runtime/app_session.py: a new run of the script empties what is yet to be sent), and the button stays grey.
    st.download_button(
        t("Take this along"), _ui.spoken(file), f"tunebook-{recipe_name}.zip", "application/zip", key="take_along",
        icon=":material/luggage:", on_click="ignore",
    )  # fmt: skip
    about = t('Data and settings as one file: another Tunebook opens it on Data, or with "tunebook open".')
    st.caption(_ui.plain(about))


def _devices() -> None:
    """What each kind of device can do, and which one runs take here, and why."""
    facts = machine.facts()
    st.markdown(_ui.plain(cards.device_reason(facts)))
    _ui.bullets(cards.more(facts))
    st.caption(
        t("AMD's cards are not used yet. On Windows, Tunebook runs in Linux under WSL2, which sees NVIDIA's cards.")
    )
    here, yes, no, names = facts.device.partition(":")[0], t("yes"), t("no"), machine_choices.device_words()
    table = pd.DataFrame(
        {
            t("Device"): [("→ " if one.name == here else "") + names[one.name] for one in machine_choices.ABILITIES],
            t("Number format"): [t("bf16 from compute capability 8.0 on, else fp16") if one.bf16 else "fp32"
                                 for one in machine_choices.ABILITIES],
            t("4-bit and 8-bit bases"): [yes if one.quantized else no for one in machine_choices.ABILITIES],
            "Unsloth": [
                (yes if machine_choices.installed("unsloth") else t("yes, not installed")) if one.unsloth else no
                for one in machine_choices.ABILITIES
            ],
        }
    )  # fmt: skip
    st.table(_ui.cells(table), hide_index=True)

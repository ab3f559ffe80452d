"""The ways to bring data: a file, a sample, the hub, what is stored here, and a mix of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import streamlit as st

from engine import limits, starter
from engine.check import DatasetError
from engine.data import Dataset, datasets, hub_data, jobs, mix
from engine.estimate import memory
from engine.models import hub_client
from engine.words import language, t
from engine.workspace import Workspace
from pages import _data_upload, _failures, _ui

# Of what is stored so much is listed at a time.
MOST_LISTED = 50


def show(workspace: Workspace) -> None:
    """Ask where the rows are, and show what that way needs."""
    ways = {
        "upload": (t("Upload a file"), _data_upload.widget),
        "sample": (t("Try a sample"), _samples),
        "path": (t("A file on this machine"), _path),
        "hub": (t("The Hugging Face hub"), _hub),
        "stored": (t("Data from before"), _stored_before),
        "mix": (t("A mix of stored data"), _mix),
    }
    if limits.on():
        ways = {name: way for name, way in ways.items() if name in ("upload", "sample", "stored")}
    way = st.radio(
        t("Where are your rows?"),
        list(ways),
        format_func=lambda name: _ui.plain(ways[name][0]),
        horizontal=True,
        key="way",
    )
    ways[way][1](workspace)


def rows_words(rows: int) -> str:
    """Return a count of rows in words."""
    return t("1 row") if rows == 1 else t("{n} rows", n=f"{rows:,}")


def _open(dataset_id: str) -> None:
    """Go on with data that was chosen: the page begins anew with what became of it."""
    _ui.choose("dataset", dataset_id)
    st.rerun()


def _samples(workspace: Workspace) -> None:
    st.caption(t("Small files that come with Tunebook, made for the starter model."))
    columns: list[Any] = []
    for sample in starter.SAMPLES:
        columns = columns or list(st.columns(3))  # a row of cards, which are as high as the highest of them
        # what is said above, the button at the foot: the buttons of a row stand side by side
        with columns.pop(0).container(border=True, height="stretch", vertical_alignment="distribute"):
            with st.container():
                st.markdown(f"**{_ui.plain(t(sample.title))}**")
                st.caption(_ui.plain(t(sample.description)))
            if st.button(_ui.say("Use {name}", name=t(sample.title)), key=f"sample_{sample.name}"):
                try:
                    made = datasets.add_sample(workspace, sample)
                except DatasetError as error:
                    st.error(_ui.plain(error.problem.sentence))
                else:
                    _open(made.id)


def _path(workspace: Workspace) -> None:
    with st.form("path_form", border=False):
        typed = st.text_input(t("Path"), placeholder="/home/me/rows.jsonl", key="path")
        if st.form_submit_button(t("Check this file"), key="check_path") and typed.strip():
            source = Path(os.path.expanduser(typed.strip()))
            _data_upload.store(workspace, source, source.name or "data")


def _hub(workspace: Workspace) -> None:
    """A data set of the hub: its configs and splits are listed first, then one is fetched and checked like any file."""
    with st.form("hub_data_form", border=False):
        typed = st.text_input(t("Data set on the hub"), placeholder=_ui.ID_EXAMPLE, key="hub_data")
        if st.form_submit_button(t("Show its parts"), key="list_hub_data") and typed.strip():
            token = st.session_state.get("kept_token")
            try:
                st.session_state["hub_parts"] = typed.strip(), hub_data.data_parts(typed.strip(), token=token)
            except hub_client.HubError as error:
                st.session_state.pop("hub_parts", None)
                st.error(_ui.plain(error.problem.sentence))
    name, parts = st.session_state.get("hub_parts", ("", ()))
    if not parts:
        return
    part = st.selectbox(
        t("Config and split"),
        parts,
        format_func=lambda one: (
            f"{one.config} · {one.split} · {memory.size_words(sum(file.size for file in one.files))}"
        ),
        key="hub_part",
    )
    if st.button(t("Fetch and check"), type="primary", key="fetch_hub_data"):
        ref = f"hf:{name}:{part.config}:{part.split}"
        call = jobs.Call(workspace=str(workspace.root), data=ref, language=language())
        with _failures.said():
            _data_upload.watch(jobs.start(call, token=st.session_state.get("kept_token")))


def _mix(workspace: Workspace) -> None:
    """Several stored data sets by weight."""
    known = {one.id: one for one in datasets.list_all(workspace) if one.trainable}
    chosen = st.multiselect(
        t("Data to mix"),
        list(known),
        format_func=lambda i: f"{known[i].name} · {rows_words(known[i].report.rows)}",
        key="mix_parts",
        placeholder=t("Choose two or more"),
    )
    if len(chosen) < 2:
        st.caption(t("Choose two or more. Rows are taken in the proportion of the weights, none of them twice."))
        return
    weights = [
        st.number_input(_ui.say("Weight of {name}", name=known[i].name), 0.01, mix.MOST_WEIGHT, 1.0, key=f"weight_{i}")
        for i in chosen
    ]
    taken = mix.counts([known[i].good_rows for i in chosen], weights)
    _ui.bullets(
        t("{n} of {total} rows of {name}", n=n, total=known[i].good_rows, name=known[i].name)
        for i, n in zip(chosen, taken, strict=True)
    )
    if st.button(t("Mix and check"), type="primary", key="make_mix"):
        name = " + ".join(known[i].name for i in chosen)[:100]
        try:
            with st.spinner(t("Checking ...")):
                made = mix.add(workspace, list(zip(chosen, weights, strict=True)), name)
        except DatasetError as error:
            st.error(_ui.plain(error.problem.sentence))
        else:
            _open(made.id)


def _stored_before(workspace: Workspace) -> None:
    """What is stored here; of data that was mended the latest state alone, from which "Undo" leads to the ones before."""
    known = datasets.list_all(workspace)
    mended = {one.parent for one in known if one.fixes} - {_ui.current("dataset")}
    listed = [one for one in known if one.id not in mended]
    if not listed:
        st.caption(t("Nothing yet. What you upload is kept here, untouched."))
    for one in listed[:MOST_LISTED]:
        with st.container(horizontal=True, vertical_alignment="center"):
            # not columns: on a phone these stand one below the other
            with st.container(width="stretch"):
                st.markdown(f"**{_ui.plain(one.name)}** · {_ui.plain(' · '.join(_facts(one)))}")
            if st.button(t("Open"), key=f"open_{one.id}"):
                _open(one.id)


def _facts(one: Dataset) -> list[str]:
    facts = [rows_words(one.report.rows), _ui.ago(one.created)]
    if one.report.errors:
        facts.insert(1, t("{n} with errors", n=f"{one.report.bad_rows:,}") if one.report.bad_rows else t("no data"))
    return facts

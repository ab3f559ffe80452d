"""Data: bring a file, see every bad row named, mend what can be mended, go on to the advisor."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from engine import limits, starter
from engine.check import DatasetError
from engine.data import Dataset, datasets, hub_data, jobs, mix
from engine.models import bases, hub_client
from engine.read import formats
from engine.words import language, t
from pages import _damaged, _data_grader, _data_mask, _data_profile, _data_rows, _data_upload, _failures, _ready, _ui

# Larger files are left where they are: a download lies in memory while it is sent.
DOWNLOAD_BYTES = 500 << 20

_ui.heading(
    t("Data"), t("Bring the rows your model should learn from. Every row is checked, and every bad one is named.")
)

workspace = _ui.workspace()


def _upload() -> None:
    _data_upload.widget(workspace)


def _samples() -> None:
    st.caption(t("Small files that come with Tunebook, made for the starter model."))
    columns = st.columns(3)
    for number, sample in enumerate(starter.SAMPLES):
        with columns[number % 3].container(border=True):
            st.markdown(f"**{_ui.plain(t(sample.title))}**")
            st.caption(_ui.plain(t(sample.description)))
            if st.button(t("Use this sample"), key=f"sample_{sample.name}"):
                try:
                    _ui.choose("dataset", datasets.add_sample(workspace, sample).id)
                except DatasetError as error:
                    st.error(_ui.plain(error.problem.sentence))


def _path() -> None:
    with st.form("path_form", border=False):
        typed = st.text_input(t("Path"), placeholder="/home/me/rows.jsonl", key="path")
        if st.form_submit_button(t("Check this file"), key="check_path") and typed.strip():
            source = Path(os.path.expanduser(typed.strip()))
            _data_upload.store(workspace, source, source.name or "data")


def _hub() -> None:
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
        format_func=lambda one: f"{one.config} · {one.split} · {sum(file.size for file in one.files) / 1e6:,.1f} MB",
        key="hub_part",
    )
    if st.button(t("Fetch and check"), type="primary", key="fetch_hub_data"):
        ref = f"hf:{name}:{part.config}:{part.split}"
        call = jobs.Call(workspace=str(workspace.root), data=ref, language=language())
        with _failures.said():
            _data_upload.watch(jobs.start(call, token=st.session_state.get("kept_token")))


def _mix() -> None:
    """Several stored data sets by weight."""
    known = {one.id: one for one in datasets.list_all(workspace) if one.trainable}
    chosen = st.multiselect(
        t("Data to mix"),
        list(known),
        format_func=lambda i: f"{known[i].name} · {t('{n} rows', n=known[i].report.rows)}",
        key="mix_parts",
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
            _ui.choose("dataset", made.id)


def _stored_before() -> None:
    known = datasets.list_all(workspace)
    if not known:
        st.caption(t("Nothing yet. What you upload is kept here, untouched."))
    for one in known[:50]:
        left, middle, right = st.columns([5, 3, 2], vertical_alignment="center")
        left.markdown(f"**{_ui.plain(one.name)}**")
        facts = [t("{n} rows", n=f"{one.report.rows:,}"), _ui.ago(one.created)]
        if one.report.errors:
            facts.insert(1, t("{n} with errors", n=f"{one.report.bad_rows:,}") if one.report.bad_rows else t("no data"))
        middle.caption(_ui.plain(" · ".join(facts)))
        if right.button(t("Open"), key=f"open_{one.id}"):
            _ui.choose("dataset", one.id)


ways = {
    "upload": (t("Upload a file"), _upload),
    "sample": (t("Try a sample"), _samples),
    "path": (t("A file on this machine"), _path),
    "hub": (t("The Hugging Face hub"), _hub),
    "stored": (t("Data from before"), _stored_before),
    "mix": (t("A mix of stored data"), _mix),
}
if limits.on():
    ways = {name: way for name, way in ways.items() if name in ("upload", "sample", "stored")}
way = st.radio(
    t("Where are your rows?"), list(ways), format_func=lambda name: _ui.plain(ways[name][0]), horizontal=True, key="way"
)
ways[way][1]()
_data_upload.problem()
_data_upload.busy()
_damaged.show(workspace, "data")


def _metrics(dataset: Dataset) -> None:
    report = dataset.report
    a, b, c = st.columns([1, 1, 2])
    a.metric(t("Rows"), f"{report.rows:,}")
    b.metric(t("Rows with errors"), f"{report.bad_rows:,}")
    c.markdown(_ui.say("Kind: {kind}  \nLayout: {layout}", kind=report.kind, layout=report.layout))
    if report.label_counts and report.bad_rows:  # else the sentence above has them
        good, bad = report.label_counts.get("true", 0), report.label_counts.get("false", 0)
        st.caption(
            _ui.say("Of the rows without errors, {good} are marked good and {bad} marked bad.", good=good, bad=bad)
        )
    if report.kind == "texts":
        st.caption(t("Plain texts: every token is trained."))
    elif report.kind in ("conversations", "prompt-completion"):
        st.caption(t("Only the answers are trained; questions and system messages are read, not learned."))
    for note in report.notes:
        st.caption(_ui.plain(note))


def _map(dataset: Dataset) -> None:
    """Let a person say what the columns of an unknown layout are."""
    columns = list(dataset.report.columns)
    if "unknown-layout" not in dataset.report.errors or not columns:
        return
    st.write(t("Say what the columns are, and the rows are checked again."))
    _data_rows.columns_sample(dataset)
    kinds = {
        "prompt_completion": t("Questions with answers"),
        "text": t("Texts"),
        "messages": t("Conversations"),
        "preference": t("Better and worse answers"),
        "unpaired": t("Answers marked good or bad"),
    }
    kind = st.selectbox(t("What the rows are"), list(kinds), format_func=lambda name: kinds[name], key="map_kind")
    with st.form("map_form"):
        layout = formats.BY_NAME[kind]
        wanted = layout.required
        chosen = {
            name: st.selectbox(_ui.say("Column for {name}", name=name), columns, index=None, key=f"map_{kind}_{name}")
            for name in wanted
        }
        if st.form_submit_button(t("Read it like this"), type="primary", key="map_submit"):
            mapping = {column: name for name, column in chosen.items() if column}
            if len(mapping) < len(wanted):
                st.error(t("Choose another column for each field."))
            else:
                # Columns that would make another layout of it; what belongs beside it (a system text) is read.
                beside = {*mapping, *layout.optional}
                others = {c: formats.IGNORE for c in columns if c in formats.targets() and c not in beside}
                _data_upload.change(workspace, dataset, mapping={**mapping, **others})


def _look(dataset: Dataset) -> None:
    """Rows, numbers, what is trained, how it is divided: only the one that is chosen is worked out."""
    report = dataset.report
    if not report.rows:
        return
    views = {"rows": t("Row by row")}
    if dataset.good_rows and report.type and dataset.has_rows:
        views |= {"numbers": t("Numbers"), "mask": t("What is trained"), "division": t("Training and validation")}
    look = st.radio(
        t("Look at"),
        list(views),
        format_func=lambda name: _ui.plain(views[name]),
        horizontal=True,
        key=f"look_{dataset.id}",
    )
    if look == "numbers":
        _data_profile.show(workspace, dataset)
    elif look == "mask":
        _data_mask.show(workspace, dataset)
    elif look == "division":
        _data_profile.division(workspace, dataset)
    else:
        _data_rows.browse(workspace, dataset)


def _manage(dataset: Dataset) -> None:
    with st.expander(t("Rename, download or delete")):
        new_name = st.text_input(t("Name"), dataset.name, key=f"name_{dataset.id}")
        if st.button(t("Rename"), key="rename_dataset") and new_name != dataset.name:
            try:
                datasets.rename(workspace, dataset.id, new_name)
            except DatasetError as error:
                st.error(_ui.plain(error.problem.sentence))
            else:
                st.rerun()
        original, size = dataset.folder / "original", dataset.size_bytes
        if size is None:
            st.caption(t("The file that was brought is gone, so it cannot be downloaded, mended or checked again."))
        elif size <= DOWNLOAD_BYTES:
            ending = {"csv": "csv", "parquet": "parquet", "json": "json"}
            container = (dataset.report.container or "jsonl").removesuffix(".gz")
            packed = ".gz" if (dataset.report.container or "").endswith(".gz") else ""
            st.download_button(
                t("Download the repaired file") if dataset.fixes else t("Download the file"),
                original.read_bytes,
                file_name=f"{'fixed' if dataset.fixes else 'data'}.{ending.get(container, 'jsonl')}{packed}",
                key="download_fixed",
            )
        else:
            st.caption(_ui.say("The file lies at {path}.", path=original))
        sure = st.checkbox(t("Delete this data for good"), key=f"sure_{dataset.id}")
        if st.button(t("Delete"), disabled=not sure, key="delete_dataset"):
            try:
                datasets.delete(workspace, dataset.id)
            except DatasetError as error:
                st.error(_ui.plain(error.problem.sentence))
            else:
                _ui.choose("dataset", None)
                st.rerun()


dataset = _ui.current_dataset()
st.divider()
if dataset is None:
    if _ui.current("dataset"):
        st.warning(t("The data this link names is not stored here. Upload it again, or choose other data."))
    if datasets.list_all(workspace):
        st.info(t("Nothing is chosen yet. Upload a file above, or open what is here under “Data from before”."))
    else:
        st.info(
            t('No data yet. Upload a file above, or try the sample "New facts" to see the whole path in two minutes.')
        )
else:
    st.subheader(_ui.plain(dataset.name))
    report = dataset.report
    if dataset.size_bytes is None:
        place = "original" if limits.on() else dataset.folder / "original"
        st.warning(_ui.say("The file that was brought is gone: {place}. What was checked is here still.", place=place))
    if report.trainable:
        st.success(_ui.plain(report.sentence), icon=":material/check_circle:")
        _data_upload.rows_made(workspace, dataset)
    else:
        st.error(_ui.plain(report.sentence), icon=":material/error:")
    _data_upload.check_again(workspace, dataset)
    if report.type is not None:
        _metrics(dataset)
    _map(dataset)
    _data_rows.repairs(workspace, dataset)
    _data_rows.problems(workspace, dataset)
    if dataset.eval_id:
        st.caption(t("Scored before and after with the questions that belong to this data."))
    if report.trainable:
        _data_grader.show(workspace, dataset)
        _ready.show(_ready.usual_plan(workspace, dataset, bases.describe(_ui.current("base") or "starter", workspace)))
    _look(dataset)
    _manage(dataset)
    if report.type == "stepwise" and not report.errors:
        reason = t("No recipe trains on step labels yet.")
    elif report.whole_file_problem:
        reason = t("This file cannot be trained on as it is; what can be done is said above.")
    else:
        reason = None if report.trainable else t("First mend or leave out the rows with errors.")
    _ui.next_step("advisor", t("Next: ask the advisor"), reason=reason)

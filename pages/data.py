"""Data: bring a file, see what is wrong with it, mend it, go on to the advisor."""

from __future__ import annotations

import streamlit as st

from engine import limits
from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.estimate import memory
from engine.models import bases
from engine.read import formats
from engine.runs import store
from engine.words import joined, t
from pages import (
    _damaged,
    _data_bring,
    _data_closer,
    _data_grader,
    _data_mask,
    _data_problems,
    _data_profile,
    _data_rows,
    _data_upload,
    _delete,
    _ready,
    _ui,
)

# Larger files are left where they are: a download lies in memory while it is sent.
DOWNLOAD_BYTES = 500 << 20

workspace = _ui.workspace()


def _verdict(dataset: Dataset) -> None:
    """The answer: what it is, whether it can be trained on, and the one step that leads on."""
    report = dataset.report
    st.header(_ui.plain(dataset.name))
    if dataset.size_bytes is None:
        place = "original" if limits.on() else dataset.folder / "original"
        st.warning(_ui.say("The file that was brought is gone: {place}. What was checked is here still.", place=place))
    if report.trainable:
        st.success(_ui.plain(report.sentence), icon=":material/check_circle:")
    else:
        st.error(_ui.plain(report.sentence), icon=":material/error:")
    _undo(dataset)
    if report.trainable:
        _data_upload.rows_made(workspace, dataset)
        if st.button(t("Next: ask the advisor"), type="primary", icon=":material/arrow_forward:", key="next_step"):
            _ui.go("advisor")
    _data_upload.check_again(workspace, dataset)
    _what_it_teaches(dataset)


def _undo(dataset: Dataset) -> None:
    """What of the rows was mended, and the way back to how they were before."""
    if not (dataset.parent and (dataset.fixes or dataset.mapping)):
        return
    try:
        before = datasets.load(workspace, dataset.parent)
    except DatasetError:
        return  # it was deleted meanwhile
    rows, left = before.report.rows, dataset.report.rows
    if before.report.type is None:
        told = t("Read in another way than before.")
    elif left < rows:
        out = rows - left
        told = (
            t("Mended: 1 row was left out, {left} stay.", left=f"{left:,}")
            if out == 1
            else t("Mended: {out} rows were left out, {left} stay.", out=f"{out:,}", left=f"{left:,}")
        )
    else:
        told = t("Mended: rows were written anew.")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(_ui.plain(told), width="content")
        if st.button(t("Undo"), icon=":material/undo:", key="undo", help=t("Back to the rows as they were before.")):
            _ui.choose("dataset", before.id)
            st.rerun()


def _what_it_teaches(dataset: Dataset) -> None:
    """What the rows are, in a line, and what of them is learned."""
    report = dataset.report
    told = []
    if report.kind == "texts":
        told.append(t("All of a text is learned."))
    elif report.kind in ("conversations", "prompt-completion"):
        told.append(t("Only the answers are trained; questions and system messages are read, not learned."))
    if report.label_counts and report.bad_rows:  # else the sentence above has them
        good, bad = report.label_counts.get("true", 0), report.label_counts.get("false", 0)
        told.append(t("Of the rows without errors, {good} are marked good and {bad} marked bad.", good=good, bad=bad))
    if dataset.eval_id:
        told.append(t("Scored before and after with the questions that belong to this data."))
    title = _data_problems.kinds().get(report.kind or "")
    if title is not None:
        st.caption(f"**{_ui.plain(title)}** {_ui.plain(joined(*told))}")
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
        "text": t("Plain texts"),
        "messages": t("Conversations"),
        "preference": t("Pairs: a better and a worse answer"),
        "unpaired": t("Single answers marked good or bad"),
    }
    kind = st.selectbox(t("What the rows are"), list(kinds), format_func=lambda name: kinds[name], key="map_kind")
    with st.form("map_form"):
        layout = formats.BY_NAME[kind]
        wanted = layout.required
        chosen = {
            name: st.selectbox(
                _ui.say("Column for {name}", name=name),
                columns,
                index=None,
                key=f"map_{kind}_{name}",
                placeholder=t("Choose one"),
            )
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


def _change(dataset: Dataset) -> None:
    _rename(dataset)
    with st.container(horizontal=True, vertical_alignment="center"):
        _download(dataset)
        _remove(dataset)


def _manage(dataset: Dataset) -> None:
    # who uses it is looked up in all runs and data
    _ui.fold(t("Rename, download or delete"), f"manage_{dataset.id}", lambda: _change(dataset))
    with st.expander(t("How the file was read")):
        report = dataset.report
        facts = {
            t("File"): report.file,
            t("Container"): report.container,
            t("Layout"): report.layout,
            t("Kind"): _kind(report.kind or ""),
            t("Columns"): ", ".join(report.columns),
            t("Size"): memory.size_words(report.bytes),
            t("Id"): dataset.id,
        }
        _ui.bullets(t("{name}: {text}", name=name, text=value) for name, value in facts.items() if value)


def _kind(name: str) -> str:
    words = _data_problems.kinds().get(name)
    return name if words is None else t("{words} ({name})", words=words, name=name)


def _rename(dataset: Dataset) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        new_name = st.text_input(t("Name"), dataset.name, key=f"name_{dataset.id}")
        renamed = st.button(t("Rename"), key="rename_dataset")
    if renamed and new_name != dataset.name:
        try:
            datasets.rename(workspace, dataset.id, new_name)
        except DatasetError as error:
            st.error(_ui.plain(error.problem.sentence))
        else:
            st.rerun()


def _download(dataset: Dataset) -> None:
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


def _remove(dataset: Dataset) -> None:
    def delete() -> None:
        datasets.delete(workspace, dataset.id)
        _ui.choose("dataset", None)

    runs = [store.name(workspace, run_id) for run_id in datasets.users(workspace, dataset.id)]
    named = ", ".join(runs[: _delete.MOST_NAMED]) + (" …" if len(runs) > _delete.MOST_NAMED else "")
    scored = [one.name for one in datasets.list_all(workspace) if one.eval_id == dataset.id]
    going, staying = datasets.states(workspace, dataset.id)
    what = t("This deletes “{name}”: the file that was brought and all that was made of it.", name=dataset.name)
    if len(going) > 1:
        what = t(
            "This deletes “{name}”: the file that was brought and all that was made of it, {n} states of the rows in all.",
            name=dataset.name,
            n=len(going),
        )
    if staying:
        kept = ", ".join(f"“{one.name}”" for one in staying)
        what = joined(what, t("What runs or other data need stays: {names}.", names=kept))
    _delete.offer(
        f"data_{dataset.id}",
        dataset.name,
        what,
        delete,
        size=_delete.size_of(*(one.folder for one in going)),
        depends=[
            t("“{name}” is scored on these rows: other ones are to be chosen for it then", name=name) for name in scored
        ],
        stays=t("Runs use it: {names}. Delete these first.", names=named) if runs else "",
    )


def _nothing_chosen() -> None:
    if datasets.list_all(workspace):
        st.caption(t("Nothing is chosen yet. Upload a file above, or open what is here under “Data from before”."))
    elif not globals().get("below_the_card"):  # the card of the first page says it
        st.caption(t("No data yet. Upload a file above, or take a sample."))


def _page() -> None:
    _ui.heading(t("Data"))
    dataset = _ui.current_dataset()
    if dataset is None:
        st.write(t("Bring the rows your model should learn from. Every row is checked, and every bad one is named."))
        if _ui.current("dataset"):
            st.warning(t("The data this link names is not stored here. Upload it again, or choose other data."))
        _data_bring.show(workspace)
    else:
        # a name of its own for each data set: what was open to bring it is closed once it is here
        with st.expander(t("Bring other data"), icon=":material/add:", key=f"bring_{dataset.id}"):
            _data_bring.show(workspace)
    _data_upload.problem()
    _data_upload.busy()
    _damaged.show(workspace, "data")
    if dataset is None:
        _nothing_chosen()
        return
    _verdict(dataset)
    _map(dataset)
    _data_problems.repairs(workspace, dataset)
    _data_problems.show(workspace, dataset)
    if dataset.trainable:
        _ready.show(_ready.usual_plan(workspace, dataset, bases.describe(_ui.current("base") or "starter", workspace)))
    _look(dataset)
    _data_closer.show(workspace, dataset)
    if dataset.trainable:
        _data_grader.show(workspace, dataset)
    _manage(dataset)


_page()

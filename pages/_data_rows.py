"""The rows of a data set on the Data page: any row found, and one written anew where it is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from engine.check import DatasetError
from engine.data import Dataset, datasets, fixes, jobs, one_row
from engine.words import Problem, t
from engine.workspace import Workspace
from pages import _data_upload, _ui

AROUND_SPOT = 70
PREVIEW_ROWS = 10
SEARCH_BLOCK_ROWS = 5_000
SEARCHED_CHARACTERS = 200
# What is written anew waits in the session until it is applied, and is gone through at every click.
MOST_EDITED_CHARACTERS = 2_000_000


@st.cache_data(max_entries=50, show_spinner=False)
def _rows(original: str, mapping: dict[str, str], numbers: tuple[int, ...]) -> dict[int, one_row.Row]:
    found = one_row.find(Path(original), mapping, count=len(numbers), only=set(numbers)).rows
    return {row.row: row for row in found}


def by_number(dataset: Dataset, numbers: tuple[int, ...]) -> dict[int, one_row.Row]:
    """Rows of a stored file by number. An id names bytes, so what was read once stays true."""
    return _rows(_original(dataset), dataset.mapping, numbers)


@st.cache_data(max_entries=50, show_spinner=False)
def _found(original: str, mapping: dict[str, str], start: int, text: str, only: tuple[int, ...] | None) -> Any:
    return one_row.find(Path(original), mapping, start=start, count=PREVIEW_ROWS, text=text, only=only)


@st.cache_data(max_entries=200, show_spinner=False)
def _checked(original: str, mapping: dict[str, str], text: str) -> tuple[tuple[Problem, ...], dict[str, Any] | None]:
    return one_row.check_row(Path(original), fixes.one_line(text), mapping)


def _original(dataset: Dataset) -> str:
    return str(dataset.folder / "original")


# --- one row ------------------------------------------------------------------------------------------------------


def one(
    workspace: Workspace,
    dataset: Dataset,
    row: one_row.Row,
    where: str,
    *,
    told: str = "",
    problem: Problem | None = None,
    spot: tuple[int, int] | None = None,
) -> None:
    """A row with what is `told` of it, the spot of its problem marked, and a button that opens it for editing; `where`
    says which of the places it is shown in, for one may be shown twice. A row that waits to be applied shows no fault."""
    place = place_words(row.row, row.line)
    changed = edits(dataset).get(row.row)
    text = row.text if changed is None else changed
    if changed is not None:
        state = t("written anew, not yet applied") if changed else t("to be deleted, not yet applied")
        said = f":green[{_ui.say('{place}: {what}', place=place, what=state)}]"
        spot = None
    else:
        said = f"**{_ui.plain(told or place)}**"
        spot = one_row.spot(text, problem) if problem is not None else spot
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.container(width="stretch"):
            st.markdown(f"{said} {excerpt(text, spot)}")
        if row.whole and st.button(t("Edit"), key=f"edit_{where}", width="content", help=_ui.plain(place)):
            _open(dataset, row.row, where)
    _editor(workspace, dataset, row, where)


def place_words(row: int, line: int | None) -> str:
    """Where a row stands, in words: by the line of its file, where that has lines."""
    return t("line {line}", line=f"{line:,}") if line else t("row {row}", row=f"{row:,}")


def excerpt(text: str, where: tuple[int, int] | None) -> str:
    """The part of a row around the spot, the spot marked, as text."""
    if where is None:
        start = " ".join(text[: 8 * AROUND_SPOT].split())  # an indented row has more blanks than words
        return _ui.plain(start[: 2 * AROUND_SPOT]) + ("…" if len(text) > 2 * AROUND_SPOT else "")
    start, end = where
    marked = text[start : min(end, start + AROUND_SPOT)]
    begin, stop = max(0, start - AROUND_SPOT), min(len(text), end + AROUND_SPOT)
    before = ("…" if begin else "") + text[begin:start]
    after = text[start + len(marked) : stop] + ("…" if stop < len(text) else "")
    # A space at the edge of a Markdown mark would undo it, and an invisible spot is none.
    spot = _ui.plain(marked.strip()) or "␣"
    return f"{_ui.plain(before)}:red-background[**{spot}**]{_ui.plain(after)}"


def _open(dataset: Dataset, row: int | None, place: str = "") -> None:
    """Open a row for editing where it is shown, or close the one that is open."""
    st.session_state[f"open_row_{dataset.id}"] = (row, place)
    st.rerun()


def _editor(workspace: Workspace, dataset: Dataset, row: one_row.Row, where: str) -> None:
    """The row, where it was opened: its text as it stands in the file, checked when it is saved."""
    if st.session_state.get(f"open_row_{dataset.id}") != (row.row, where):
        return
    number, kept = row.row, edits(dataset)
    with st.form(f"edit_form_{dataset.id}_{number}"):
        text = st.text_area(
            t("Row {row} as it stands in the file", row=f"{number:,}"),
            kept.get(number) or row.text,
            height=160,
            key=f"edit_text_{dataset.id}_{number}",
        )
        with st.container(horizontal=True):
            saved = st.form_submit_button(t("Save"), type="primary", key="save_edit")
            removed = st.form_submit_button(t("Delete this row"), key="delete_row")
            closed = st.form_submit_button(t("Close"), key="close_edit")
    if closed or (saved and text == row.text):
        _open(dataset, None)
    if removed:
        _keep(workspace, dataset, number, "")
    if not saved:
        return
    room = MOST_EDITED_CHARACTERS - sum(len(other) for at, other in kept.items() if at != number)
    if len(text) > min(room, one_row.EDITABLE_CHARACTERS):
        st.error(t("This is too long to be kept here: apply the other changes first, or change it in the file itself."))
        return
    faults = [one for one in _checked(_original(dataset), dataset.mapping, text)[0] if one.severity == "error"]
    if not faults:
        _keep(workspace, dataset, number, text)
    st.error("  \n".join(_ui.plain(fault.sentence) for fault in faults))
    spot = next((found for fault in faults if (found := one_row.spot(text, fault))), None)
    if spot:
        st.caption(excerpt(text, spot))


# --- rows written anew --------------------------------------------------------------------------------------------


def edits(dataset: Dataset) -> dict[int, str]:
    """Rows that were written anew and wait to be applied: row -> text, blank for a row to be deleted."""
    return st.session_state.setdefault(f"edits_{dataset.id}", {})


def as_fixes(written: dict[int, str]) -> tuple[fixes.Edit, ...]:
    """Return rows that were written anew as the fixes that apply them."""
    return tuple(fixes.Edit(row=row, text=text) for row, text in written.items())


def _keep(workspace: Workspace, dataset: Dataset, number: int, text: str) -> None:
    """Take a row as it was written: at once, or in a large file, which takes long to be checked anew, with the others."""
    edits(dataset)[number] = text
    st.session_state[f"open_row_{dataset.id}"] = (None, "")
    if (dataset.size_bytes or 0) <= jobs.SMALL_BYTES:
        _data_upload.change(workspace, dataset, fixes=as_fixes(edits(dataset)))
    st.rerun()


def pending(workspace: Workspace, dataset: Dataset, written: dict[int, str]) -> None:
    """What was written anew and waits, with what it will change."""
    with st.container(border=True):
        rows = ", ".join(f"{row:,}" for row in sorted(written)[:12]) + (" …" if len(written) > 12 else "")
        st.markdown(_ui.say("**Not yet applied:** changes of rows {rows}", rows=rows))
        bad = {p.row for p in dataset.report.problems if p.severity == "error" and p.row}
        st.caption(
            _ui.say(
                "Written anew: {changed}. Deleted: {deleted}. Rows with errors: {before} now, {after} then.",
                changed=sum(bool(text) for text in written.values()),
                deleted=sum(not text for text in written.values()),
                before=f"{dataset.report.bad_rows:,}",
                after=f"{dataset.report.bad_rows - len(bad & written.keys()):,}",
            )
        )
        buttons = st.container(horizontal=True)
        if buttons.button(t("Apply the changes"), type="primary", key="apply_edits"):
            _data_upload.change(workspace, dataset, fixes=as_fixes(written))
        if buttons.button(t("Discard"), key="discard_edits"):
            st.session_state[f"edits_{dataset.id}"] = {}
            st.rerun()


# --- any row ------------------------------------------------------------------------------------------------------


def browse(workspace: Workspace, dataset: Dataset) -> None:
    """Any row, by page or by a text in it: as it is trained, or as it stands in the file, where it can be edited."""
    report = dataset.report
    if not report.rows:
        return
    bad = _bad_rows(dataset) if report.bad_rows else ()
    views = {}
    if dataset.good_rows and report.type and dataset.has_rows:
        views["trained"] = t("As they are trained")
    views["written"] = t("As they stand in the file")
    if bad:
        views["bad"] = t("Only those with errors")
    left, middle, right = st.columns([2, 1, 2])
    if st.session_state.get(f"view_{dataset.id}") not in views:  # kept from the state before, in which it was one
        st.session_state.pop(f"view_{dataset.id}", None)
    view = left.selectbox(t("Show the rows"), list(views), format_func=views.__getitem__, key=f"view_{dataset.id}")
    last = dataset.good_rows if view == "trained" else report.rows
    from_key = f"from_{dataset.id}"
    if from_key in st.session_state:
        st.session_state[from_key] = min(st.session_state[from_key], max(1, last))
    first = int(middle.number_input(t("From row"), 1, max(1, last), 1, PREVIEW_ROWS, key=from_key))
    searched = right.text_input(t("Search for a text"), key=f"search_{dataset.id}")[:SEARCHED_CHARACTERS]
    if view == "trained":
        _trained(workspace, dataset, bad, first, searched)
        return
    with st.spinner(t("Searching ...")):
        page = _found(_original(dataset), dataset.mapping, first, searched, bad if view == "bad" else None)
    for row in page.rows:
        _one_of(workspace, dataset, row, searched)
    if page.next_row:
        st.caption(t("More from row {row} on.", row=f"{page.next_row:,}"))
    elif not page.rows:
        st.caption(t("Nothing found from there on."))
    else:
        st.caption(t("No more from there on."))


def _one_of(workspace: Workspace, dataset: Dataset, row: one_row.Row, searched: str) -> None:
    at = row.text.lower().find(searched.lower()) if searched else -1
    one(workspace, dataset, row, f"row_{row.row}", spot=(at, at + len(searched)) if at >= 0 else None)


@st.cache_data(max_entries=20, show_spinner=False)
def _listed_rows(_dataset: Dataset, every: str, changed: int) -> tuple[int, ...]:
    """The rows with errors of a file of problems, which a check of today may have replaced at the time `changed`."""
    found = fixes.broken_rows(_dataset.report, Path(every))
    return tuple(sorted({row for _, severity, row in found if severity == "error"}))


def _bad_rows(dataset: Dataset) -> tuple[int, ...]:
    """The rows with errors: all of them, from the file of problems where the report holds only the first."""
    every = dataset.folder / (dataset.report.problems_file or "problems.jsonl")
    changed = every.stat().st_mtime_ns if every.exists() else 0
    return _listed_rows(dataset, str(every), changed)


def _trained(workspace: Workspace, dataset: Dataset, bad: tuple[int, ...], first: int, searched: str) -> None:
    """The good rows from the first-th on as training reads them, and one of these for editing as it stands in the file."""
    found: list[tuple[int, dict[str, Any]]] = []
    small, at = searched.casefold(), first - 1
    block_rows = SEARCH_BLOCK_ROWS if searched else PREVIEW_ROWS
    while at < dataset.good_rows and len(found) < PREVIEW_ROWS:
        block = enumerate(datasets.preview(workspace, dataset.id, at, block_rows), start=at + 1)
        found += [one for one in block if not small or small in json.dumps(one[1], ensure_ascii=False).casefold()]
        at += block_rows
    if not (found := found[:PREVIEW_ROWS]):
        st.caption(t("Nothing found from there on."))
        return
    shown = table([row for _, row in found])
    lines = {_in_the_file(number, bad): row.get("line") for number, row in found}
    is_known = len(bad) == dataset.report.bad_rows  # else the list of all problems is gone
    if is_known and [*lines] != [*lines.values()]:
        shown.insert(0, t("Row"), [*lines])
    narrow = {name: st.column_config.NumberColumn(width="small", alignment="left") for name in (t("Row"), t("Line"))}
    with st.container(key="wide_rows"):
        st.dataframe(shown, hide_index=True, alt=t("Rows of the data"), column_config=narrow)
    with st.container(key="narrow_rows"):
        st.markdown(below_each_other(shown))
    if is_known and dataset.size_bytes is not None:
        _edit_one(workspace, dataset, lines)


def _edit_one(workspace: Workspace, dataset: Dataset, lines: dict[int, int | None]) -> None:
    """Offer to write one of these rows anew, each with its line."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        number = st.selectbox(
            t("Row to edit"), list(lines), key=f"row_to_edit_{dataset.id}", width=160,
            format_func=lambda row: place_words(row, lines.get(row)),
        )  # fmt: skip
        if st.button(t("Edit"), key="edit_trained", help=_ui.plain(place_words(number, lines[number]))):
            _open(dataset, number, "trained")
    if st.session_state.get(f"open_row_{dataset.id}") != (number, "trained"):
        return
    for row in by_number(dataset, (number,)).values():
        if row.whole:
            _editor(workspace, dataset, row, "trained")
        else:
            st.caption(t("This row is too long to be edited here: change it in the file itself."))


def _in_the_file(number: int, bad: tuple[int, ...]) -> int:
    """The row of the file that is the number-th good one; `bad` are the others, in order."""
    row = number
    for one in bad:
        if one > row:
            break
        row += 1
    return row


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Canonical rows as a table of texts, each with its line where the file has lines."""

    def shown(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "\n".join(f"{m.get('role')}: {m.get('content') or m.get('tool_calls') or ''}" for m in value)[:600]
        return json.dumps(value, ensure_ascii=False)[:600] if isinstance(value, list) else str(value)[:600]

    made = pd.DataFrame([{k: shown(v) for k, v in row.items() if v is not None and k != "line"} for row in rows])
    lines = [row.get("line") for row in rows]
    if all(lines):
        made.insert(0, t("Line"), lines)
    return made


def below_each_other(rows: pd.DataFrame) -> str:
    """Return Markdown of rows for a narrow screen: the fields of each below each other, those that it has."""
    known = rows.astype(object).where(rows.notna(), "").to_dict("records")
    return "\n\n---\n\n".join(
        "  \n".join(_ui.say("**{name}**: {text}", name=name, text=value) for name, value in row.items() if value != "")
        for row in known
    )


def columns_sample(dataset: Dataset) -> None:
    """The first rows of a file of an unknown layout, so that a person sees what its columns hold."""
    try:
        rows = _rows(_original(dataset), {}, (1, 2, 3)).values()
    except DatasetError:
        return
    parsed = []
    for row in rows:
        try:
            value = json.loads(row.text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            parsed.append(
                {_shown(k): _shown(json.dumps(v, ensure_ascii=False)[:200]) for k, v in list(value.items())[:50]}
            )
    if parsed:
        st.dataframe(pd.DataFrame(parsed), hide_index=True, alt=t("The first rows of the file"))


def _shown(text: str) -> str:
    """Half a character is a text that JSON can hold and a table cannot."""
    return text.encode("utf-8", "backslashreplace").decode()

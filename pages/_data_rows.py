"""The rows of a data set on the Data page: what is wrong with which, repairs, any row found, and one edited in place."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import streamlit as st

from engine.check import DatasetError, groups
from engine.data import Dataset, datasets, fixes, one_row
from engine.read import lines
from engine.words import Problem, t
from engine.workspace import Workspace, read_lines
from pages import _data_upload, _ui

# More lines of one rule than this tell a person nothing new; the file with all of them can be downloaded.
LINES_PER_RULE = 20
SHOWN_SPOTS = 4
AROUND_SPOT = 70
PREVIEW_ROWS = 10
SEARCH_BLOCK_ROWS = 5_000
SEARCHED_CHARACTERS = 200
# What is written anew waits in the session until it is applied, and is gone through at every click.
MOST_EDITED_CHARACTERS = 2_000_000


@st.cache_data(max_entries=50, show_spinner=False)
def _rows(original: str, mapping: dict[str, str], numbers: tuple[int, ...]) -> dict[int, one_row.Row]:
    """Rows of a stored file by number. An id names bytes, so what was read once stays true."""
    found = one_row.find(_path(original), mapping, count=len(numbers), only=set(numbers)).rows
    return {row.row: row for row in found}


@st.cache_data(max_entries=50, show_spinner=False)
def _found(original: str, mapping: dict[str, str], start: int, text: str, only: tuple[int, ...] | None) -> Any:
    return one_row.find(_path(original), mapping, start=start, count=PREVIEW_ROWS, text=text, only=only)


def _path(original: str) -> Any:
    from pathlib import Path

    return Path(original)


def _original(dataset: Dataset) -> str:
    return str(dataset.folder / "original")


# --- problems -----------------------------------------------------------------------------------------------------


def problems(workspace: Workspace, dataset: Dataset) -> None:
    """Every rule that is broken, with its count, the first lines with the spot marked, and all lines as a download."""
    found = groups.grouped(dataset.report)
    wanted = tuple(sorted({p.row for group in found for p in group.problems[:SHOWN_SPOTS] if p.row}))
    texts = _rows(_original(dataset), dataset.mapping, wanted) if wanted else {}
    for group in found:
        _one_rule(workspace, dataset, group, texts)
    _download_problems(dataset)


def _one_rule(workspace: Workspace, dataset: Dataset, group: groups.Group, texts: dict[int, one_row.Row]) -> None:
    is_error = group.severity == "error"
    icon = ":material/error:" if is_error else ":material/warning:"
    label = t("{n} × {what}", n=f"{group.count:,}", what=group.heading)
    with st.expander(_ui.plain(label), expanded=is_error, icon=icon):
        _what_to_do(workspace, dataset, group)
        shown = group.problems[:SHOWN_SPOTS]
        for number, problem in enumerate(shown):
            row = texts.get(problem.row or 0)
            place = f"{group.severity}_{group.rule}_{number}"
            with st.container(horizontal=True):
                alike = group.count > 1 and problem.message == group.heading  # the heading and the line below it say it
                st.markdown(_ui.plain(groups.places([problem]) if alike else problem.sentence))
                if row and row.whole and st.button(t("Edit"), key=f"edit_{place}", width="content"):
                    _open(dataset, row.row, place)
            if row and row.text:
                st.caption(_excerpt(row.text, one_row.spot(row.text, problem)))
            if row:
                _editor(dataset, row, place)
        rest = group.problems[SHOWN_SPOTS:]
        if group.count <= LINES_PER_RULE:
            _ui.problem_list(rest)
            return
        if rest:
            st.caption(_ui.say("The same in {places}.", places=groups.places(rest)))
        if more := group.count - len(group.problems):
            st.caption(t("and {n} more; the download below has the lines.", n=f"{more:,}"))


def _what_to_do(workspace: Workspace, dataset: Dataset, group: groups.Group) -> None:
    """Say what to do about a group, with a button that leaves its rows out where that is sensible."""
    fix = f"{group.problems[0].fix}." if len({problem.fix for problem in group.problems}) == 1 else ""
    if fix:
        st.caption(_ui.say("Rule {rule}. What to do: {fix}", rule=group.rule, fix=fix))
    else:
        st.caption(_ui.say("Rule {rule}. What to do stands with each.", rule=group.rule))
    leaving = fixes.leaving_out(dataset.report, group.rule) if group.severity == "warning" else None
    if leaving in fixes.offers(dataset.report):
        return  # it stands above
    if leaving and st.button(t("Leave these rows out"), key=f"leave_out_{group.rule}"):
        changed = tuple(fixes.Edit(row=row, text=text) for row, text in _edits(dataset).items())
        _data_upload.change(workspace, dataset, fixes=(*changed, leaving))


def _excerpt(text: str, where: tuple[int, int] | None) -> str:
    """The part of a row around the spot, the spot marked, as text."""
    if where is None:
        return _ui.plain(text[: 2 * AROUND_SPOT]) + ("…" if len(text) > 2 * AROUND_SPOT else "")
    start, end = where
    marked = text[start : min(end, start + AROUND_SPOT)]
    begin, stop = max(0, start - AROUND_SPOT), min(len(text), end + AROUND_SPOT)
    before = ("…" if begin else "") + text[begin:start]
    after = text[start + len(marked) : stop] + ("…" if stop < len(text) else "")
    # A space at the edge of a Markdown mark would undo it, and an invisible spot is none.
    spot = _ui.plain(marked.strip()) or "␣"
    return f"{_ui.plain(before)}:red-background[**{spot}**]{_ui.plain(after)}"


def _download_problems(dataset: Dataset) -> None:
    report = dataset.report
    if not report.problem_count:
        return
    full = dataset.folder / (report.problems_file or "problems.jsonl")

    def content() -> bytes:
        if report.problems_file:
            with suppress(OSError):  # it is gone: the first problems stand in the report
                return full.read_bytes()
        return json.dumps(report.to_json()["problems"], ensure_ascii=False, indent=1).encode()

    name = "problems.jsonl" if report.problems_file else "problems.json"
    st.download_button(t("Download the list of problems"), content, file_name=name, key="problems_download")


# --- repairs ------------------------------------------------------------------------------------------------------


def repairs(workspace: Workspace, dataset: Dataset) -> None:
    """Offer the safe repairs and apply edited rows; each says what it does before it is done."""
    labels = {
        fixes.AS_TEXT: t("Make rows of the paragraphs"),
        fixes.STRIP_BOM: t("Remove the mark"),
        fixes.CONVERT_LABELS: t("Convert the labels"),
        fixes.DROP_REPEATS: t("Leave out repeats"),
        fixes.DROP_BAD_ROWS: t("Leave out the bad rows"),
    }
    report = dataset.report
    offers = fixes.offers(report)
    edits = _edits(dataset)
    if offers or edits:
        st.write(t("What can be repaired. The file you brought stays as it is; the repaired one is stored beside it."))
    if edits:
        _pending(workspace, dataset, edits)
    for fix, effect in offers.items():
        left, right = st.columns([5, 3], vertical_alignment="center")
        if edits and fix == fixes.DROP_BAD_ROWS:
            effect = t("Apply the changes, and leave out the rows that have errors even then.")
        left.markdown(_ui.plain(effect))
        wanted = fixes.DROP_BAD_ROWS if fixes.DROP_BAD_ROWS in offers else next(iter(offers))
        kind = "primary" if fix == wanted and not edits and report.errors else "secondary"
        if right.button(_ui.plain(labels.get(fix, t("Repair"))), type=kind, key=fix):
            changed = tuple(fixes.Edit(row=row, text=text) for row, text in edits.items())
            _data_upload.change(workspace, dataset, fixes=(*changed, fix))


def _edits(dataset: Dataset) -> dict[int, str]:
    """Rows that were written anew and wait to be applied: row -> text, blank for a row to be deleted."""
    return st.session_state.setdefault(f"edits_{dataset.id}", {})


def _pending(workspace: Workspace, dataset: Dataset, edits: dict[int, str]) -> None:
    with st.container(border=True):
        rows = ", ".join(f"{row:,}" for row in sorted(edits)[:12]) + (" …" if len(edits) > 12 else "")
        st.markdown(_ui.say("**{n} changed, not yet applied:** rows {rows}", n=len(edits), rows=rows))
        bad = {p.row for p in dataset.report.problems if p.severity == "error" and p.row}
        still = {row for row, text in edits.items() if text and _is_bad(dataset, text)}
        after = dataset.report.bad_rows - len(bad & edits.keys()) + len(still)
        st.caption(
            _ui.say(
                "Effect: {deleted} rows deleted, {changed} written anew; {before} rows with errors become {after}.",
                deleted=sum(not text for text in edits.values()),
                changed=sum(bool(text) for text in edits.values()),
                before=f"{dataset.report.bad_rows:,}",
                after=f"{after:,}",
            )
        )
        buttons = st.container(horizontal=True)
        if buttons.button(t("Apply the changes"), type="primary", key="apply_edits"):
            changed = tuple(fixes.Edit(row=row, text=text) for row, text in edits.items())
            _data_upload.change(workspace, dataset, fixes=changed)
        if buttons.button(t("Forget them"), key="forget_edits"):
            st.session_state[f"edits_{dataset.id}"] = {}
            st.rerun()


def _is_bad(dataset: Dataset, text: str) -> bool:
    found, _ = _checked(_original(dataset), dataset.mapping, text)
    return any(problem.severity == "error" for problem in found)


@st.cache_data(max_entries=200, show_spinner=False)
def _checked(original: str, mapping: dict[str, str], text: str) -> tuple[tuple[Problem, ...], dict[str, Any] | None]:
    return one_row.check_row(_path(original), fixes.one_line(text), mapping)


# --- one row ------------------------------------------------------------------------------------------------------


def _open(dataset: Dataset, row: int | None, place: str = "") -> None:
    """Open a row for editing where it is shown, or close the one that is open."""
    st.session_state[f"open_row_{dataset.id}"] = (row, place)
    st.rerun()


def _editor(dataset: Dataset, row: one_row.Row, where: str) -> None:
    """The row, where it was opened: its text as it stands in the file, checked when a person asks."""
    if st.session_state.get(f"open_row_{dataset.id}") != (row.row, where):
        return
    number = row.row
    with st.container(border=True):
        place = t("Row {row}, line {line}", row=f"{row.row:,}", line=f"{row.line:,}") if row.line else ""
        st.markdown(f"**{_ui.plain(place or t('Row {row}', row=f'{row.row:,}'))}**")
        edits = _edits(dataset)
        with st.form(f"edit_form_{dataset.id}_{number}", border=False):
            text = st.text_area(
                t("The row as it stands in the file"),
                edits.get(number) or row.text,
                height=160,
                key=f"edit_text_{dataset.id}_{number}",
            )
            st.form_submit_button(t("Check this row"), key="check_edit")
        room = MOST_EDITED_CHARACTERS - sum(len(kept) for other, kept in edits.items() if other != number)
        if len(text) > min(room, one_row.EDITABLE_CHARACTERS):
            st.error(
                t("This is too long to be kept here: apply the other changes first, or change it in the file itself.")
            )
            if st.button(t("Close"), key="close_edit"):
                _open(dataset, None)
            return
        before, _ = _checked(_original(dataset), dataset.mapping, row.text)
        after, trained = _checked(_original(dataset), dataset.mapping, text)
        if text != row.text:
            st.caption(_ui.say("Before: {what}", what=_short(before)))
        if any(problem.severity == "error" for problem in after):
            st.error("  \n".join(_ui.plain(problem.sentence) for problem in after))
            spot = next((s for problem in after if (s := one_row.spot(text, problem))), None)
            if spot:
                st.caption(_excerpt(text, spot))
        else:
            st.success(t("No errors: this row can be trained on."))
            _ui.problem_list(after)
            if trained:
                shown = {name: value for name, value in trained.items() if name != "line"}
                st.dataframe(table([shown]), hide_index=True, alt=t("The row as it is trained"))
        buttons = st.container(horizontal=True)
        same = text == row.text or not lines.parses(fixes.one_line(text))
        if buttons.button(t("Keep this change"), type="primary", disabled=same, key="keep_edit"):
            edits[number] = text
            _open(dataset, None)
        if buttons.button(t("Delete this row"), key="delete_row"):
            edits[number] = ""
            _open(dataset, None)
        if buttons.button(t("Close"), key="close_edit"):
            _open(dataset, None)


def _short(found: Iterable[Problem]) -> str:
    return "; ".join(problem.message for problem in found) or t("no errors")


# --- any row ------------------------------------------------------------------------------------------------------


def browse(workspace: Workspace, dataset: Dataset) -> None:
    """Any row, by page or by a text in it: as it is trained, or as it stands in the file, where it can be edited."""
    report = dataset.report
    if not report.rows:
        return
    bad = _bad_rows(dataset)
    views = {}
    if dataset.good_rows and report.type and dataset.has_rows:
        views["trained"] = t("As they are trained")
    views["written"] = t("As they stand in the file")
    if bad:
        views["bad"] = t("Only those with errors")
    left, middle, right = st.columns([2, 1, 2])
    view = left.selectbox(t("Show the rows"), list(views), format_func=views.__getitem__, key=f"view_{dataset.id}")
    last = dataset.good_rows if view == "trained" else report.rows
    first = int(middle.number_input(t("From row"), 1, max(1, last), 1, PREVIEW_ROWS, key=f"from_{dataset.id}"))
    searched = right.text_input(t("Search for a text"), key=f"search_{dataset.id}")[:SEARCHED_CHARACTERS]
    if view == "trained":
        _trained(workspace, dataset, first, searched)
        return
    with st.spinner(t("Searching ...")):
        page = _found(_original(dataset), dataset.mapping, first, searched, bad if view == "bad" else None)
    for row in page.rows:
        changed = t(" (changed)") if row.row in _edits(dataset) else ""
        place = t("line {line}: ", line=f"{row.line:,}") if row.line else t("row {row}: ", row=f"{row.row:,}")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{_ui.plain((place + changed).strip())}** {_excerpt(row.text, _hit(row.text, searched))}")
            if row.whole and st.button(t("Edit"), key=f"edit_row_{row.row}", width="content"):
                _open(dataset, row.row, "row")
        _editor(dataset, row, "row")
    if page.next_row:
        st.caption(t("More from row {row} on.", row=f"{page.next_row:,}"))
    elif not page.rows:
        st.caption(t("Nothing found from there on."))
    else:
        st.caption(t("No more from there on."))


def _hit(text: str, searched: str) -> tuple[int, int] | None:
    at = text.lower().find(searched.lower()) if searched else -1
    return (at, at + len(searched)) if at >= 0 else None


class _Listed(msgspec.Struct):
    """What is looked for in a line of a file of problems."""

    severity: str
    row: int | None


@st.cache_data(max_entries=20, show_spinner=False)
def _listed_rows(path: str, changed: int) -> tuple[int, ...]:
    """The rows with errors of a file of problems, which a check of today may have replaced at the time `changed`."""
    found = read_lines(Path(path), _Listed)
    return tuple(one.row for one in found if one.severity == "error" and one.row)


def _bad_rows(dataset: Dataset) -> tuple[int, ...]:
    """The rows with errors: all of them, from the file of problems where the report holds only the first."""
    full = dataset.folder / (dataset.report.problems_file or "")
    first = {problem.row for problem in dataset.report.problems if problem.severity == "error" and problem.row}
    if dataset.report.problems_file and full.exists():
        first |= set(_listed_rows(str(full), full.stat().st_mtime_ns))
    return tuple(row for row in sorted(first) if 0 < row <= dataset.report.rows)


def _trained(workspace: Workspace, dataset: Dataset, first: int, searched: str) -> None:
    rows: list[dict[str, Any]] = []
    if not searched:
        rows = datasets.preview(workspace, dataset.id, first - 1, PREVIEW_ROWS)
    small, at = searched.casefold(), first - 1
    while searched and at < dataset.good_rows and len(rows) < PREVIEW_ROWS:
        block = datasets.preview(workspace, dataset.id, at, SEARCH_BLOCK_ROWS)
        rows += [row for row in block if small in json.dumps(row, ensure_ascii=False).casefold()]
        at += SEARCH_BLOCK_ROWS
    if not rows:
        st.caption(t("Nothing found from there on."))
        return
    st.dataframe(table(rows[:PREVIEW_ROWS]), hide_index=True, alt=t("Rows of the data"))


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Canonical rows as a table of texts."""

    def shown(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "\n".join(f"{m.get('role')}: {m.get('content') or m.get('tool_calls') or ''}" for m in value)[:600]
        return json.dumps(value, ensure_ascii=False)[:600] if isinstance(value, list) else str(value)[:600]

    return pd.DataFrame([{k: shown(v) for k, v in row.items() if v is not None} for row in rows])


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

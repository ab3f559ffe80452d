"""What is wrong with the rows of a data set: each rule with its count, its places, and one click that mends all of them."""

from __future__ import annotations

import json
from contextlib import suppress

import streamlit as st

from engine.check import groups
from engine.data import Dataset, fixes, one_row
from engine.words import Problem, t
from engine.workspace import Workspace
from pages import _data_rows, _data_upload, _ui

# More lines of one rule than this tell a person nothing new: the first few stand for all, and the file with all of them
# can be downloaded.
LINES_PER_RULE = 20
SHOWN_SPOTS = 4
# So many groups of errors stand open.
MOST_OPEN = 2
# The fixes that make a file one that can be trained on; and rule -> the fix that mends what is wrong in its place.
REPAIRS = (fixes.AS_TEXT, fixes.CONVERT_LABELS, fixes.DROP_BAD_ROWS)
MENDED_BY = {"label-not-boolean": fixes.CONVERT_LABELS, "bom": fixes.STRIP_BOM}


def kinds() -> dict[str, str]:
    """Return what each kind of rows is called."""
    return {
        "prompt-completion": t("Questions with answers"),
        "conversations": t("Conversations"),
        "texts": t("Plain texts"),
        "preference": t("Pairs: a better and a worse answer"),
        "unpaired-preference": t("Single answers marked good or bad"),
        "prompt-only": t("Questions alone"),
        "stepwise": t("Answers with a mark for each step"),
    }


def repairs(workspace: Workspace, dataset: Dataset) -> None:
    """What makes the file one that can be trained on, a button each, and the rows that wait to be applied."""
    report = dataset.report
    if edits := _data_rows.edits(dataset):
        _data_rows.pending(workspace, dataset, edits)
    bad = f"{report.bad_rows:,}"
    labels = {
        fixes.AS_TEXT: t("Make rows of the paragraphs"),
        fixes.CONVERT_LABELS: t("Fix all labels"),
        fixes.DROP_BAD_ROWS: t("Leave out the row with errors") if report.bad_rows == 1 else t(
            "Leave out all {n} rows with errors", n=bad
        ),
    }  # fmt: skip
    offers = {fix: effect for fix, effect in fixes.offers(report).items() if fix in REPAIRS}
    for number, (fix, effect) in enumerate(offers.items()):
        if fix == fixes.DROP_BAD_ROWS:
            effect = _stay(report.rows - report.bad_rows)
        if edits and fix == fixes.DROP_BAD_ROWS:
            effect = t("Apply the changes, and leave out the rows that have errors even then.")
        with st.container(horizontal=True, vertical_alignment="center"):
            is_first = number == 0 and not edits and bool(report.errors)
            if st.button(_ui.plain(labels[fix]), type="primary" if is_first else "secondary", key=fix):
                _apply(workspace, dataset, fix)
            st.caption(_ui.plain(effect), width="content")
    if offers:
        st.caption(t("The file you brought stays as it is; the mended one is stored beside it, and can be undone."))


def _stay(rows: int) -> str:
    return t("1 row stays.") if rows == 1 else t("{rest} rows stay.", rest=f"{rows:,}")


def _apply(workspace: Workspace, dataset: Dataset, fix: str) -> None:
    """Mend the rows, those that were written anew first."""
    _data_upload.change(workspace, dataset, fixes=(*_data_rows.as_fixes(_data_rows.edits(dataset)), fix))


def show(workspace: Workspace, dataset: Dataset) -> None:
    """Every rule that is broken, with its count, the first lines with the spot marked, and all lines as a download."""
    found = groups.grouped(dataset.report)
    wanted = tuple(sorted({p.row for group in found for p in _listed(group) if p.row}))
    texts = _data_rows.by_number(dataset, wanted) if wanted else {}
    offered = {*REPAIRS} & {*fixes.offers(dataset.report)}  # a button each stands above, or in another group
    for number, group in enumerate(found):
        is_error = group.severity == "error"
        icon = ":material/error:" if is_error else ":material/warning:"
        with st.expander(_ui.plain(_title(group)), expanded=is_error and number < MOST_OPEN, icon=icon):
            _what_to_do(workspace, dataset, group, offered)
            _places(workspace, dataset, group, texts)
    _download(dataset)


def _title(group: groups.Group) -> str:
    """A group as a heading: with a capital, but where it begins with a name of the file's."""
    words = group.problems[0].words if group.problems and not group.rows else None
    is_name = words is not None and not words[0][:1].islower()
    return group.title if is_name else group.title[:1].upper() + group.title[1:]


def _listed(group: groups.Group) -> tuple[Problem, ...]:
    """The problems of a group that get a line of their own."""
    return group.problems if group.count <= LINES_PER_RULE else group.problems[:SHOWN_SPOTS]


def _fix_of_all(group: groups.Group) -> str:
    """What to do about each row of a group, where that is the same for all."""
    fixes_told = {problem.fix for problem in group.problems}
    return fixes_told.pop() if len(fixes_told) == 1 else ""


def _what_to_do(workspace: Workspace, dataset: Dataset, group: groups.Group, offered: set[str]) -> None:
    """Say what to do about a group, with a button that does it for all its rows where that can be."""
    if fix := _fix_of_all(group):
        st.caption(_ui.say("What to do: {fix}.", fix=fix))
    report, offers = dataset.report, fixes.offers(dataset.report)
    mends, leaves = MENDED_BY.get(group.rule), fixes.leaving_out(report, group.rule)
    if group.severity == "error" and group.rows == report.bad_rows:
        leaves = None  # the button above leaves out the same rows
    rows = sum(report.rows_with.get(rule, 0) for rule in fixes.LEFT_OUT.get(leaves or "", ())) or group.rows
    one, many = t("Leave out this row"), t("Leave out all {n}", n=f"{rows:,}")
    actions = []
    if mends in offers:
        label = t("Fix it") if group.count == 1 else t("Fix all {n}", n=f"{group.count:,}")
        actions.append((mends, label, offers[mends]))
    if leaves is not None:
        actions.append((leaves, one if rows == 1 else many, _stay(report.rows - rows)))
    for name, label, effect in actions:
        if name in offered:
            continue
        offered.add(name)
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button(_ui.plain(label), key=name):
                _apply(workspace, dataset, name)
            st.caption(_ui.plain(effect), width="content")


def _places(workspace: Workspace, dataset: Dataset, group: groups.Group, texts: dict[int, one_row.Row]) -> None:
    """The first rows of a group, each with its spot and a way to write it anew, and where the others are."""
    is_said = bool(_fix_of_all(group))  # what to do stands above, once
    for number, problem in enumerate(_listed(group)):
        row = texts.get(problem.row or 0)
        told, place = problem.sentence, groups.places([problem])
        if problem.message == group.heading and is_said:
            told = place  # the title says the rest
        elif is_said:
            told = (
                t("{place}: {what}", place=place, what=problem.message)
                if place and group.rows != 1
                else problem.message
            )
        if row is None and told:
            st.markdown(_ui.plain(told))
        elif row is not None:
            _data_rows.one(
                workspace, dataset, row, f"{group.severity}_{group.rule}_{number}", told=told, problem=problem
            )
    if rest := group.problems[len(_listed(group)) :]:
        st.caption(_ui.say("The same in {places}", places=groups.places(rest)))
    if more := group.count - len(group.problems):
        st.caption(t("and {n} more; the download below has the lines.", n=f"{more:,}"))


def _download(dataset: Dataset) -> None:
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
    st.download_button(
        t("Download the list of problems"),
        _ui.spoken(content),
        file_name=name,
        key="problems_download",
        type="tertiary",
    )

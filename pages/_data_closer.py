"""A closer look at the rows together, in one fold: nearly alike, what they are about, longest, oddest, their languages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from engine.data import Dataset, jobs, one_row, profile
from engine.words import language, t
from engine.workspace import Workspace
from pages import _data_rows, _data_upload, _jobs, _ui

if TYPE_CHECKING:
    from collections.abc import Iterable

_JOB = "closer_job"
# So many examples of each are shown.
MOST_SHOWN = 5
# A language of fewer of the rows is worth a look at them.
FEW = 0.1


def show(workspace: Workspace, dataset: Dataset) -> None:
    """What a closer look has found; it is taken, by a job, when the fold is opened for the first time."""
    if not (dataset.good_rows and dataset.report.type and dataset.has_rows and dataset.size_bytes is not None):
        return
    key, icon = f"closer_{dataset.id}", ":material/search:"
    _ui.fold(t("Look closer"), key, lambda: _look(workspace, dataset), icon=icon)


def _look(workspace: Workspace, dataset: Dataset) -> None:
    found = profile.closer_look(workspace, dataset.id)
    if found is not None:
        _findings(workspace, dataset, found)
        return
    st.write(t("Looks for rows that are nearly alike, what they are about, the longest, the oddest, the languages."))
    call = jobs.Call(workspace=str(workspace.root), dataset=dataset.id, closer=True, language=language())
    if _jobs.begin(_JOB, dataset.id, call):
        _jobs.watch(_JOB, _looking, "closer_again")


def _looking(percent: int) -> str:
    return t("Looking at the rows together: {percent} %", percent=percent)


def _findings(workspace: Workspace, dataset: Dataset, found: Any) -> None:
    seen, rows = f"{found.seen:,}", f"{found.rows:,}"
    if found.seen < found.rows:
        st.caption(_ui.say("Looked at {seen} of {rows} rows, spread over the file.", seen=seen, rows=rows))
    else:
        st.caption(_ui.say("Looked at all rows without errors: {rows}.", rows=rows))
    languages = [one for one in found.languages if one.rows < FEW * found.seen]
    places = [pair.place for pair in found.alike[:MOST_SHOWN]] + [group.typical for group in found.groups]
    places += [place for place, _ in found.longest] + [odd.place for odd in found.odd]
    places += [place for one in languages for place in one.first[:MOST_SHOWN]]
    texts = _data_rows.by_number(dataset, tuple(sorted({place.row for place in places})))
    shown = _Rows(workspace, dataset, texts)
    tabs = st.tabs(
        [
            t("Nearly alike ({n})", n=f"{len(found.alike):,}"),
            t("What they are about ({n})", n=len(found.groups)),
            t("Longest"),
            t("Oddest ({n})", n=len(found.odd)),
            t("Languages ({n})", n=len(found.languages)),
        ]
    )
    with tabs[0]:
        _alike(workspace, dataset, found, shown)
    with tabs[1]:
        _groups(found, shown)
    with tabs[2]:
        shown.each(
            "long",
            ((place, t("{place}: {n} characters", place=_words(place), n=f"{n:,}")) for place, n in found.longest),
        )
    with tabs[3]:
        _odd(found, shown)
    with tabs[4]:
        _languages(found, languages, shown)


class _Rows:
    """The rows that findings are about, each to be opened where it is named."""

    def __init__(self, workspace: Workspace, dataset: Dataset, texts: dict[int, one_row.Row]):
        self.workspace, self.dataset, self.texts = workspace, dataset, texts

    def each(self, what: str, told: Iterable[tuple[Any, str]]) -> None:
        for place, words in told:
            row = self.texts.get(place.row)
            if row is not None:
                _data_rows.one(self.workspace, self.dataset, row, f"{what}_{row.row}", told=words)


def _words(place: Any) -> str:
    """Where a row is, in words."""
    return _data_rows.place_words(place.row, place.line)


def _alike(workspace: Workspace, dataset: Dataset, found: Any, shown: _Rows) -> None:
    count = len(found.alike)
    if not count:
        st.write(t("No row is nearly like an earlier one."))
        return
    st.write(
        t("1 row uses nearly the same words as an earlier one.") if count == 1
        else t("{n} rows use nearly the same words as an earlier one.", n=f"{count:,}")
    )  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="center"):
        label = t("Leave out this row") if count == 1 else t("Leave out all {n}", n=f"{count:,}")
        if dataset.report.rows > count and st.button(label, key="leave_out_alike"):
            written = {**_data_rows.edits(dataset), **{pair.place.row: "" for pair in found.alike}}
            _data_upload.change(workspace, dataset, fixes=_data_rows.as_fixes(written))
        st.caption(
            _ui.say("{rest} rows stay, of rows that are alike the first.", rest=f"{dataset.report.rows - count:,}")
        )
    shown.each(
        "alike",
        (
            (
                pair.place,
                t(
                    "{place}, {percent} % like {first}:",
                    place=_words(pair.place),
                    first=_words(pair.first),
                    percent=f"{100 * pair.share:.0f}",
                ),
            )
            for pair in found.alike[:MOST_SHOWN]
        ),
    )


def _groups(found: Any, shown: _Rows) -> None:
    if not found.groups:
        st.write(t("The rows fall into no clear groups: there are few of them, or each is about something else."))
        return
    st.caption(
        t("Grouped by the words they use, each group with the words that set it apart and the row most like it.")
    )
    shown.each(
        "group",
        (
            (
                group.typical,
                t(
                    "{n} rows ({words}), such as {place}:",
                    n=f"{group.rows:,}",
                    words=", ".join(group.words) or "…",
                    place=_words(group.typical),
                ),
            )
            for group in found.groups
        ),
    )


def _odd(found: Any, shown: _Rows) -> None:
    if not found.odd:
        st.write(t("No row stands out from the others."))
        return
    whys = {
        "short": t("much shorter than the others"),
        "marks": t("far more marks and signs than the others"),
        "words": t("full of words that no other row has"),
    }
    shown.each(
        "odd",
        (
            (odd.place, t("{place}: {what}", place=_words(odd.place), what=whys.get(odd.why, odd.why)))
            for odd in found.odd
        ),
    )


def _language_words() -> dict[str, str]:
    return {
        "en": t("English"), "de": t("German"), "fr": t("French"), "es": t("Spanish"), "it": t("Italian"),
        "pt": t("Portuguese"), "nl": t("Dutch"), "zh": t("Chinese"), "ja": t("Japanese"), "ko": t("Korean"),
        "th": t("Thai"), "el": t("Greek"), "he": t("Hebrew"), "cyrillic": t("Cyrillic letters"),
        "arabic": t("Arabic letters"), "devanagari": t("Devanagari letters"),
        "latin": t("Latin letters, language not told"), "none": t("hardly any words"),
    }  # fmt: skip


def _languages(found: Any, few: list[Any], shown: _Rows) -> None:
    words = _language_words()
    st.write(
        _ui.plain(
            " · ".join(
                t("{language}: {n}", language=words.get(one.language, one.language), n=f"{one.rows:,}")
                for one in found.languages
            )
        )
    )
    st.caption(t("A guess: by the letters, and where several languages share them, by the commonest words."))
    for one in few:
        name = words.get(one.language, one.language)
        shown.each(
            f"language_{one.language}",
            (
                (place, t("{place}: {what}", place=_words(place), what=name))
                for place in one.first[: MOST_SHOWN if one.rows <= MOST_SHOWN else 3]
            ),
        )

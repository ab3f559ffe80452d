"""The Forgetting page's report to take along: figures as CSV and JSON, and one HTML file with everything."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine.forgetting import examples, stages, summary
from engine.models import bases
from engine.quantised import lost, said
from engine.report import files, questions, verdicts
from engine.runs import ScoredRun
from engine.words import t
from pages import _forgetting_tables as tables
from pages import _ui

FLIPS_IN_REPORT = 100


def downloads(scored: ScoredRun, judged: list[verdicts.Judged], titled: dict[str, str]) -> None:
    """Offer the figures and the report as files."""
    found = files.records(scored.rows, judged, titled)

    kinds = (
        (t("Figures (CSV)"), files.as_csv(found), "csv", "text/csv"),
        (t("Figures (JSON)"), files.as_json(found), "json", "application/json"),
        (t("Report (HTML)"), _ui.spoken(lambda: as_html(scored, judged, titled)), "html", "text/html"),
    )
    with st.container(horizontal=True):
        for label, data, ending, mime in kinds:
            st.download_button(
                _ui.plain(label), data, file_name=f"{scored.run_id}-forgetting.{ending}", mime=mime, on_click="ignore",
                icon=":material/download:", key=f"download_{ending}",
            )  # fmt: skip


def _texts(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    return [str(name) for name in frame.columns], [[str(value) for value in row] for row in frame.to_numpy().tolist()]


def _flipped(scored: ScoredRun, titled: dict[str, str]) -> list[files.Table]:
    """Return the questions that were lost, and apart from them those that were won, with both answers."""
    names = [t("Questions"), t("Question"), t("Right answer"), t("Base said"), t("Tuned said")]
    titles = {
        "lost": t("Lost: right before and wrong after, at most {n} of each benchmark", n=FLIPS_IN_REPORT),
        "won": t("Won: wrong before and right after, at most {n} of each benchmark", n=FLIPS_IN_REPORT),
    }
    found = []
    for which, title in titles.items():
        rows = [
            [tables.name(benchmark, titled), after.prompt or after.item, questions.right(after), questions.said(before),
             questions.said(after)]
            for benchmark, joined in scored.joined.items()
            for before, after in questions.flips(joined, which)[:FLIPS_IN_REPORT]
        ]  # fmt: skip
        found += [files.Table(title=title, header=names, rows=rows)] if rows else []
    return found


def as_html(scored: ScoredRun, judged: list[verdicts.Judged], titled: dict[str, str]) -> bytes:
    rows, run_id, run_spec = scored.rows, scored.run_id, scored.spec
    found, beside = summary.of(scored), examples.beside(scored)
    base = bases.describe(run_spec.base.ref, scored.workspace)
    note = base.rounding_note
    header, cells = _texts(tables.table(rows, judged, titled, every=True))
    told = [files.Table(title=t("Every figure"), header=header, rows=cells)]
    line = stages.of(scored)
    if line is not None and line.changes:
        header, cells = _texts(tables.stages(line, titled))
        told.insert(0, files.Table(title=t("Stage by stage"), header=header, rows=cells))
    told += _flipped(scored, titled)
    return files.as_html(
        heading=t("Forgetting: {name}", name=scored.name),
        sentence=found.headline,
        about=[
            t("Gained: {text}", text=found.gained),
            t("Lost: {text}", text=found.lost),
            t("What to do: {text}", text=found.to_do),
            *([beside.sentence] if beside is not None else []),
            t("Run {id}: {recipe} on {base}", id=run_id, recipe=run_spec.recipe.name, base=base.title),
            *([note] if note else []),
            *(one.sentence for one in judged),
            *(map(str, line.notes) if line is not None else ()),
            *scored.about,
            *said.spoken(lost.every(scored.folder)),
        ],
        changes=[
            files.Interval(label=label, value=100 * row.change, low=100 * row.low, high=100 * row.high)
            for label, row in tables.changes(rows, titled)
        ],
        tables=told,
    )

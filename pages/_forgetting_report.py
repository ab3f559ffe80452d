"""The Forgetting page's report to take along: figures as CSV and JSON, and one HTML file with everything."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine.forgetting import examples, stages, summary
from engine.models import bases
from engine.quantised import lost, said
from engine.report import files, items, questions, verdicts
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


def _part(title: str, frame: pd.DataFrame) -> files.Part:
    rows = [[str(value) for value in row] for row in frame.to_numpy().tolist()]
    return files.Part(title=title, header=[str(name) for name in frame.columns], rows=rows)


def _flipped(scored: ScoredRun, titled: dict[str, str]) -> list[files.Part]:
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
        found += [files.Part(title=title, header=names, rows=rows)] if rows else []
    return found


def as_html(scored: ScoredRun, judged: list[verdicts.Judged], titled: dict[str, str]) -> bytes:
    rows, run_spec = scored.rows, scored.spec
    found, beside, line = summary.of(scored), examples.beside(scored), stages.of(scored)
    base = bases.describe(run_spec.base.ref, scored.workspace)
    whole = [row for row in rows if row.family in (items.ALL, items.SEEN, items.UNSEEN)]
    about = [
        t("Run {id}: {recipe} on {base}", id=scored.run_id, recipe=run_spec.recipe.name, base=base.title),
        *([base.rounding_note] if base.rounding_note else []),
        *([beside.sentence] if beside is not None else []),
        *(one.sentence for one in judged),
        *(map(str, line.notes) if line is not None else ()),
        *scored.about,
        *said.spoken(lost.every(scored.folder)),
    ]
    folds = [files.Part(title=t("What each figure says"), lines=about)]
    if line is not None and line.changes:
        folds.append(_part(t("Stage by stage"), tables.stages(line, titled)))
    folds.append(_part(t("Every figure"), tables.table(rows, judged, titled, every=True)))
    return files.as_html(
        heading=t("Forgetting: {name}", name=scored.name),
        sentence=found.headline,
        about=[
            t("Gained: {text}", text=found.gained),
            t("Lost: {text}", text=found.lost),
            t("What to do: {text}", text=found.to_do),
        ],
        first=_part(
            t("Before and after"), tables.short([row for row in whole if row.benchmark != items.KL], judged, titled)
        ),
        changes=[
            files.Interval(label=label, value=100 * row.change, low=100 * row.low, high=100 * row.high)
            for label, row in tables.changes(whole, titled)
        ],
        folds=folds + _flipped(scored, titled),
    )

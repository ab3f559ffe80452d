"""What a report says first of a run: the sentences of engine/report, with what this home knows of remedies and choices."""

from __future__ import annotations

from contextlib import suppress

from engine.benchmarks import library
from engine.forgetting import evaluations, recovery, remedies
from engine.report import blind, headline
from engine.runs import ScoredRun, store


def of(run: ScoredRun) -> headline.Summary:
    """Return the headline, what was gained, lost and what to do. Raises as store.load_spec does."""
    best, wins = None, None
    if run.spec.kind == "train" and any(one.verdict == "real drop" for one in run.judged()):
        best = remedies.best(remedies.of(run.spec, run.workspace))
    with suppress(OSError, ValueError):  # choices that cannot be read: the comparison itself says so
        wins = blind.result(run.folder, run.joined)
    return headline.summary(
        run.rows, moved=run.moved, chance=run.chance, titles=library.titles(run.workspace), blind=wins,
        can_recover=can_recover(run), can_compare=blind.has_texts(run.joined) or evaluations.has_prompts(run),
        remedy="" if best is None else f"{best.title}. {best.measured}", origin=_origin(run),
    )  # fmt: skip


def _origin(run: ScoredRun) -> headline.Origin:
    """Return where what a run holds comes from: a point whose way is gone is like a model from elsewhere."""
    if run.spec.recover is not None and store.exists(run.workspace, run.spec.recover.run):
        return "point"
    return "trained" if run.spec.kind == "train" else "brought"


def can_recover(run: ScoredRun) -> bool:
    """Whether the way from what a run made back to its base can be gone."""
    return not recovery.problems(run.workspace, run.run_id)

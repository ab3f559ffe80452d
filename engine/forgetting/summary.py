"""What a report says first of a run: the sentences of engine/report, with what this home knows of remedies and choices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from engine.benchmarks import library
from engine.forgetting import evaluations, recovery, remedies
from engine.report import about, blind, headline, items, verdicts
from engine.report.paired import is_loss
from engine.runs import ScoredRun, store
from engine.words import joined


def of(run: ScoredRun, ways: Sequence[remedies.Remedy] | None = None) -> headline.Summary:
    """Return the headline, what was gained, lost and what to do. `ways`: what is left to be tried, where that was asked
    already. Raises as store.load_spec does."""
    best, wins = remedies.best(to_try(run) if ways is None else ways), None
    with suppress(OSError, ValueError):  # choices that cannot be read: the comparison itself says so
        wins = blind.result(run.folder, run.joined)
    found = headline.summary(
        run.rows, moved=run.moved, chance=run.chance, titles=library.titles(run.workspace), blind=wins,
        can_recover=can_recover(run), can_compare=blind.has_texts(run.joined) or evaluations.has_prompts(run),
        remedy="" if best is None else f"{best.title}. {best.measured}", origin=_origin(run),
        there="" if best is None or best.there is None else best.there.name,
    )  # fmt: skip
    row = headline.asked(run.rows)
    if row is None or row.benchmark != items.PREFERENCE or verdicts.change_of(row) == "better":
        return found
    # Training showed another figure than this one, which did not move: both are said where it would look like nothing.
    gained = joined(found.gained, about.moved(run.joined[items.PREFERENCE])).strip()
    return msgspec.structs.replace(found, gained=gained)


def _origin(run: ScoredRun) -> headline.Origin:
    """Return where what a run holds comes from: a point whose way is gone is like a model from elsewhere."""
    if run.spec.recover is not None and store.exists(run.workspace, run.spec.recover.run):
        return "point"
    return "trained" if run.spec.kind == "train" else "brought"


def to_try(run: ScoredRun) -> list[remedies.Remedy]:
    """Return what a run that lost something leaves to be tried; nothing for any other. It reads many runs. Raises as of
    does."""
    drops = [one.row for one in run.judged() if one.verdict == "real drop"]
    if run.spec.kind != "train" or not drops:
        return []
    lost = max((-100 * row.change for row in drops if not is_loss(row)), default=None)
    runs = store.list_all(run.workspace)
    return [
        msgspec.structs.replace(one, there=remedies.done(run, one, runs))
        for one in remedies.of(run.spec, run.workspace, lost)
    ]


def can_recover(run: ScoredRun) -> bool:
    """Whether the way from what a run made back to its base can be gone."""
    return not recovery.problems(run.workspace, run.run_id)

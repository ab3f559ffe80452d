"""A run made from a run, stage by stage: what each cost against the model it began with, and since the first base.

The first base was asked by the first run of the line. Its answers and those of a later stage are held together question by
question; where the two were not asked the same, only what both were asked is compared, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.models import bases
from engine.report import Comparison, items, paired, verdicts
from engine.runs import scored, store
from engine.runs.scored import ScoredRun
from engine.runs.store import Run
from engine.spec import OBJECTIVES
from engine.words import Text, later

# How a benchmark was asked: of others than these, the questions themselves tell.
_ASKED_UNDER = ("shots", "template")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage did to one benchmark: `own` against the model the stage began with, `since` from the first base to the
    end of the stage, on the questions that both were asked; None where there are none. `note` says what is left out."""

    stage: str
    own: Comparison
    since: Comparison | None
    note: Text | None = None


@dataclass(frozen=True, eq=False)
class Line:
    """The runs that lead to a run, each made from the one before. `first` is the base that the first of them began with;
    `gone` the run before them that is not there any more, or cannot be read."""

    runs: tuple[ScoredRun, ...]
    first: str
    gone: str | None
    changes: tuple[Change, ...]

    @property
    def notes(self) -> list[Text]:
        """What a reader of the changes must know, once each."""
        found = [one.note for one in self.changes if one.note is not None]
        if self.gone is not None:
            text = later("An earlier stage ({run}) was deleted or cannot be read: the first base here is what it had made.",
                         run=self.gone)  # fmt: skip
            found.insert(0, text)
        return list({str(note): note for note in found}.values())


def of(run: ScoredRun, runs: Sequence[Run] | None = None) -> Line | None:
    """Return the line that leads to a run; None where it was made from a base itself. `runs` are all runs of the workspace,
    where they were listed already. Raises OSError and ValueError as scored.of does, for the run's own answers."""
    if run.spec.kind != "train" or not run.spec.base.ref.startswith("run:"):
        return None
    found, gone = _before(run, runs)
    first = found[0]
    changes = [change for place, one in enumerate(found) for change in _changes(one, first, place)]
    base = bases.short(first.spec.base.ref, run.workspace)
    return Line(tuple(found), Path(base).name if base.startswith("/") else base, gone, tuple(changes))


def _before(run: ScoredRun, runs: Sequence[Run] | None) -> tuple[list[ScoredRun], str | None]:
    """Return the line from its first run on, and the ref of the one before it that could not be read."""
    workspace, found = run.workspace, [run]
    listed = store.list_all(workspace) if runs is None else runs
    while (ref := found[0].spec.base.ref).startswith("run:"):
        name = ref.removeprefix("run:")
        if name in [one.run_id for one in found]:
            return found, ref
        try:
            earlier = scored.of(workspace, name, listed)
            _ = earlier.spec
        except (OSError, ValueError):
            return found, ref
        found.insert(0, earlier)
    return found, None


def title(run: ScoredRun, place: int) -> str:
    """Return what a stage is called: its place, what it optimised, and its run."""
    return f"{place + 1}. {OBJECTIVES[run.spec.objective].title} ({run.name})"


def _changes(run: ScoredRun, first: ScoredRun, place: int) -> list[Change]:
    """Return what a stage did to each benchmark of what the first base knew; new tasks differ from stage to stage."""
    found = []
    for own in run.rows:
        if own.family == items.ALL and verdicts.is_general(own.benchmark) and own.benchmark in run.joined:
            since, note = (own, None) if run is first else _since(first, run, own.benchmark)
            found.append(Change(stage=title(run, place), own=own, since=since, note=note))
    return found


def _since(first: ScoredRun, run: ScoredRun, benchmark: str) -> tuple[Comparison | None, Text | None]:
    """Compare the first base with the end of a stage on what both were asked."""
    name = {"name": verdicts.title(benchmark)}
    known = first.joined.get(benchmark)
    if known is None:
        return None, later("The first base was not asked {name}.", **name)
    under, now = first.settings().get(benchmark, {}), run.settings().get(benchmark, {})
    if any(under.get(one) != now.get(one) for one in _ASKED_UNDER):
        return None, later("The first base was asked {name} with other examples or another template.", **name)
    asked = known.base, run.joined[benchmark].tuned
    before, after = paired.common(*asked)
    if not before:
        return None, later("Of {name}, the first base and a later stage were asked no question in common.", **name)
    rows = paired.compare_items(run.run_id, benchmark, before, after)
    whole = next(row for row in rows if row.family == items.ALL)
    if all(len(one) == len(before) for one in asked):
        return whole, None
    return whole, later(
        "Of {name}, {n} questions were asked both of the first base and of a later stage; its change is over these.",
        n=len(before), **name,
    )  # fmt: skip

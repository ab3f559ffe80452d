"""How a run divides its rows: which it trains on, which it holds out, and which it only seems to hold out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from engine.benchmarks import library
from engine.check import DatasetError
from engine.data import datasets, lengths, overlap
from engine.spec import OBJECTIVES, RunSpec, schema, split, tolerances
from engine.words import Text, later
from engine.workspace import Workspace

Row = dict[str, Any]


class Counts(NamedTuple):
    """How many rows a run trains on, holds out unseen, and only seems to hold out, since they are trained on too:
    `exact` of `seen` as they are, the others by their question. `given` is how many different rows the evaluation data
    has, of which `unseen` and `seen` were drawn; 0 for a share that was split off. `repeated` rows were held out once
    more, and are left out."""

    train: int
    unseen: int
    seen: int = 0
    exact: int = 0
    given: int = 0
    repeated: int = 0

    def notes(self, run_spec: RunSpec) -> list[Text]:
        """What has to be said of the rows held out before anything is read off them."""
        told = [*self._scored(run_spec)]
        if self.repeated:
            told.append(
                later("Repeats among the rows to be scored: {n}. Each such row is scored once.", n=self.repeated)
            )
        if self.seen and self.given:
            told.append(
                later(
                    "{seen} of {n} evaluation rows are trained on too: {exact} as they are, {asked} by their question. They "
                    "count as seen rows.",
                    seen=self.seen, n=self.unseen + self.seen, exact=self.exact, asked=self.seen - self.exact,
                )
            )  # fmt: skip
        elif self.seen:
            told.append(
                later(
                    "{seen} of {n} held-out rows have a question or a text that is trained on too. They count as seen rows.",
                    seen=self.seen, n=self.unseen + self.seen,
                )
            )  # fmt: skip
        if self.seen and not self.unseen:
            told.append(
                later(
                    "No evaluation row is unseen, so nothing will say whether what is learned carries over to others."
                )
                if self.given
                else later(
                    "No held-out row is unseen, so nothing will say whether what is learned carries over to others."
                )
            )
        return told

    def _scored(self, run_spec: RunSpec) -> Iterator[Text]:
        """Say how many of the rows are scored, and whether the held-out loss is over more of them."""
        limit, drawn = run_spec.evaluate.limit, self.unseen + self.seen
        scored = min(self.unseen, limit) + min(self.seen, limit) if limit else drawn
        counted = {"n": scored, "total": self.given or drawn}
        if scored < drawn and self.given:
            yield later("{n} of {total} evaluation rows are scored, as many as “Most questions” says.", **counted)
        elif scored < drawn:
            yield later("{n} of {total} held-out rows are scored, as many as “Most questions” says.", **counted)
        elif 0 < scored < self.given:
            yield later("{n} of {total} evaluation rows are scored, drawn by the split seed.", **counted)
        if (
            0 < limit < self.unseen
            and not tolerances.chooses(run_spec.train)
            and OBJECTIVES[run_spec.objective].loss_falls
        ):
            yield later("The held-out loss on the chart is over all {n} that are unseen.", n=self.unseen)


class Divided(NamedTuple):
    """The canonical rows behind Counts."""

    train: list[Row]
    unseen: list[Row]
    seen: list[Row]
    counts: Counts


def general_data(run_spec: RunSpec) -> str | None:
    """Return the data set whose rows are mixed in as general ones, where there is one."""
    return run_spec.train.replay_data if run_spec.train.replay_share else None


def divide(chosen: schema.DatasetRef, general: str | None, read: Callable[[str], list[Row]]) -> Divided:
    """Return how a run divides its rows. `general` is the data set mixed in, which is trained on too; `read` gives the
    canonical rows of a stored data set."""
    stored: dict[str, list[Row]] = {}

    def kept(dataset_id: str) -> list[Row]:
        stored[dataset_id] = read(dataset_id)
        return stored[dataset_id]

    train, drawn = split.divide(chosen, kept)
    every = stored[chosen.eval_id] if chosen.eval_id else drawn
    given = len(split.distinct(every))
    drawn = split.distinct(drawn)
    # a share has no group in common with the rest, but questions that differ in case, or of which one continues another
    found = overlap.between([*train, *(read(general) if general else [])] if drawn else [], drawn)
    met = found.exact | found.asked
    unseen = [row for index, row in enumerate(drawn) if index not in met]
    seen = [row for index, row in enumerate(drawn) if index in met]
    counts = Counts(
        len(train), len(unseen), len(seen), len(found.exact), given if chosen.eval_id else 0, len(every) - given
    )
    return Divided(train, unseen, seen, counts)


def benchmark_notes(run_spec: RunSpec, workspace: Workspace, trained: list[Row]) -> list[Text]:
    """Say which benchmarks ask what the rows teach: their scores are of what was learned, not of what was kept."""
    told, said = [], overlap.said_in(trained) if run_spec.evaluate.benchmarks else set()
    for name in run_spec.evaluate.benchmarks:
        benchmark = library.find(name, workspace)
        docs = library.docs(benchmark, run_spec.evaluate.limit) if benchmark is not None else []
        questions = [one for doc in docs if (one := doc.get("question") or doc.get("text"))]
        n = overlap.asked_by(said, questions)
        if benchmark is not None and n:
            told.append(
                later(
                    "{n} of {total} questions of {name} stand in the rows that are trained on: what is learned there is not "
                    "told from what was kept.", n=n, total=len(docs), name=benchmark.title,
                )
            )  # fmt: skip
    return told


def evaluation(run_spec: RunSpec, workspace: Workspace) -> Counts | None:
    """Return how a run that holds rows out divides them; None where it holds out none, and for data too large to be read
    while somebody waits (lengths.py): the run's log says it then."""
    chosen, general = run_spec.dataset, general_data(run_spec)
    if not chosen.id or not (chosen.eval_id or chosen.eval_share):
        return None
    with suppress(DatasetError, OSError, ValueError):
        named = [one for one in (chosen.id, chosen.eval_id, general) if one]
        read = [datasets.load(workspace, one) for one in named]
        if all(one.has_rows and one.good_rows <= lengths.MOST_ROWS_READ for one in read):
            changed = [datasets.rows_path(workspace, one.id).stat().st_mtime_ns for one in read]
            return _counted(str(workspace.root), chosen, general, tuple(changed))
    return None


def split_rows(run_spec: RunSpec, dataset: datasets.Dataset, workspace: Workspace) -> tuple[int, int]:
    """Return how many rows a run trains on and holds out: as it divides them. Of a data set too large to be read while
    somebody waits (lengths.py) about so many: off by less than one group."""
    chosen = run_spec.dataset
    with suppress(DatasetError, OSError, ValueError):
        read = [dataset, *([datasets.load(workspace, chosen.eval_id)] if chosen.eval_id else [])]
        if all(one.has_rows and one.good_rows <= lengths.MOST_ROWS_READ for one in read):
            changed = [datasets.rows_path(workspace, one.id).stat().st_mtime_ns for one in read]
            counts = _counted(str(workspace.root), chosen, None, tuple(changed))
            return counts.train, counts.unseen + counts.seen
    if not run_spec.dataset.eval_id:
        return of_rows(run_spec, dataset.good_rows)
    rows = min(dataset.good_rows, run_spec.dataset.most_rows or dataset.good_rows)
    try:
        return rows, min(split.MOST_HELD_OUT, datasets.load(workspace, run_spec.dataset.eval_id).good_rows)
    except (DatasetError, OSError, ValueError):
        return rows, 0


def of_rows(run_spec: RunSpec, rows: int) -> tuple[int, int]:
    """Return how many of so many rows train, and about how many are held out of them."""
    held_out = split.most_held_out(rows, run_spec.dataset.eval_share) if rows > 1 else 0
    return max(1, min(rows - held_out, run_spec.dataset.most_rows or rows)), held_out


@lru_cache(maxsize=64)  # a page asks at every click
def _counted(root: str, chosen: schema.DatasetRef, general: str | None, _changed: tuple[int, ...]) -> Counts:
    workspace = Workspace(root)
    return divide(chosen, general, lambda dataset_id: datasets.read_rows(workspace, dataset_id)).counts

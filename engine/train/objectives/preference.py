"""Rows of pairs (chosen over rejected) and of marked answers (good or bad), as token ids.

The ids are ours (engine/render/encode.py), not TRL's: its tokenising adds a second beginning-of-text token to text that
a chat template has rendered, and splits a prompt apart from its answer.
"""

from __future__ import annotations

from typing import Any

from engine.render import Marked, Pair
from engine.runs import failures
from engine.spec import OBJECTIVES, RunSpec
from engine.train import rows
from engine.train.run import Run
from engine.words import Problem, later
from engine.workspace import Workspace


class TokenIdsAlready:
    """Keeps a trainer of TRL 1.12 from rendering and tokenising the rows: ours are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def fitting(coded: list[Pair | Marked], length: int, *, whole: bool) -> list[Pair | Marked]:
    """Return the rows as a window leaves them, without those of which nothing is left; with `whole` only uncut ones: a
    reward is read at the end of an answer, which has to be there."""
    fit = (row.within(length) for row in coded)
    return [row for row in fit if row is not None and not (row.cut and whole)]


def prepare(run: Run) -> None:
    """Read, split and encode. Raises RunRefused when no row is left, or of marked answers only good or only bad ones."""
    run.rows = encoded_rows(run.spec, run.workspace, run.tokenizer)


def encoded_rows(spec: RunSpec, workspace: Workspace, tokenizer: Any) -> rows.Rows:
    """Return the rows of a spec as its objective reads them."""
    objective, length = OBJECTIVES[spec.objective], spec.train.max_length
    parts = rows.divided(spec, workspace)
    train, unseen = (rows.read(part, tokenizer) for part in (parts.train, parts.unseen))

    kept = fitting(train.coded, length, whole=objective.is_judge)
    if not kept:
        raise rows.nothing_trained(train.tally, length)
    notes = [*train.notes, *rows.fit_notes(train.tally, length)]
    if objective.weighs_labels:
        good = sum(row.label for row in kept if isinstance(row, Marked))
        if good in (0, len(kept)):
            raise failures.RunRefused(Problem(rule="kto-one-label", parameters={"label": "true" if good else "false"}))
        counts = {"good": good, "bad": len(kept) - good, "out": len(unseen.rows)}
        notes.append(later("Training on {good} good and {bad} bad answers; {out} rows are held out.", **counts))
    else:
        notes.append(later("Training on {rows} pairs; {out} are held out.", rows=len(kept), out=len(unseen.rows)))
    choosing, unseen, chosen_by = rows.apart(spec, unseen)
    scored = rows.to_score(train.rows, unseen.rows, rows.readable(parts.seen, tokenizer), spec)
    watched = rows.prompts(unseen.rows or train.rows, tokenizer)
    about = [*rows.about_scores(spec, workspace, parts), *chosen_by]
    return rows.Rows(kept, [], fitting(choosing.coded, length, whole=objective.is_judge), scored, watched, notes, about)

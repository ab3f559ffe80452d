"""What runs like the advised one came to here: which learned their task, and lost nothing that was found."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from engine.advise.case import Case
from engine.advise.ways import Way
from engine.report import headline, verdicts
from engine.runs import scored, store
from engine.spec import RunSpec, ranges
from engine.words import t
from engine.workspace import Workspace

# The newest so many are asked: a page is opened in a second.
MOST_RUNS = 12


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One finished run of the same kind on the same base, by its own report."""

    run: str
    name: str
    learned: bool
    lost: bool

    @property
    def is_right(self) -> bool:
        return self.learned and not self.lost


def of(case: Case, way: Way | None) -> tuple[Seen, ...]:
    """Return what finished runs of a way with usual settings came to on the base it is planned for, newest first."""
    if way is None or not case.base.ref:
        return ()
    planned, runs, found = case.plan(way).spec, store.list_all(case.workspace), []
    for run in runs:
        if run.status != "finished" or len(found) == MOST_RUNS:
            continue
        try:
            made = store.load_spec(case.workspace, run.id)
            # one that broke by a setting that no way has says nothing of the way
            if not _is_alike(made, planned) or not ranges.is_usual(made, case.base.parameters):
                continue
            asked = tuple(one.id for one in runs if one.base == f"run:{run.id}" and one.status == "finished")
            came_to = _came_to(str(case.workspace.root), run.id, asked)
        except (OSError, ValueError):
            continue  # its own page says why it cannot be read
        if came_to is not None:
            learned, lost = came_to
            found.append(Seen(run=run.id, name=run.name, learned=learned, lost=lost))
    return tuple(found)


def _is_alike(made: RunSpec, planned: RunSpec) -> bool:
    """Whether a run trained the same weights of the same base by the same objective, on whatever rows."""
    return made.kind == "train" and all(
        getattr(made, name) == getattr(planned, name) for name in ("objective", "adapter", "quantize", "layers")
    ) and made.base.ref == planned.base.ref  # fmt: skip


@lru_cache(maxsize=256)  # what a finished run came to changes with an evaluation of it alone
def _came_to(root: str, run_id: str, _evaluations: tuple[str, ...]) -> tuple[bool, bool] | None:
    """Return whether it learned its task and whether a loss was found; None where its task was not scored."""
    run = scored.of(Workspace(root), run_id)
    row = headline.asked(run.rows)
    if row is None:
        return None
    return verdicts.change_of(row) == "better", any(one.verdict == "real drop" for one in run.judged())


def sentence(seen: tuple[Seen, ...]) -> str:
    """Return how many such runs were right here: a count, and no word without one."""
    if not seen:
        return t("No run like this has been scored here yet.")
    return t(
        "{right} of {n} runs like this here learned their task without a loss that was found.",
        right=sum(one.is_right for one in seen),
        n=len(seen),
    )

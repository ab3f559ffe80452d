"""What a model was found to make of questions by itself, before anything is there to compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engine.report import items, paired, statistics
from engine.words import t


class Score(NamedTuple):
    """One benchmark: a share of right answers, 0 to 1, with its exact 95 % interval; or a loss in nats per token, which has
    none here."""

    benchmark: str
    n: int
    value: float
    low: float | None
    high: float | None

    @property
    def told(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def is_alone(run_dir: Path) -> bool:
    """Whether a run has answers of a base and of nothing else."""
    return not items.benchmarks_of(run_dir) and any((run_dir / "items").glob("base-*.jsonl"))


def scores(run_dir: Path) -> list[Score]:
    """Return what a run has of its base alone, benchmark by benchmark. Raises OSError, Unreadable for broken items."""
    compared, found = items.benchmarks_of(run_dir), []
    for path in sorted((run_dir / "items").glob("base-*.jsonl")):
        name = path.stem.removeprefix("base-")
        asked = [] if name in compared else items.read_items(path)
        rows = paired.compare_all(run_dir.name, name, asked, asked)
        if rows:
            row, ends = rows[0], (None, None)
            if not paired.is_loss(row):
                ends = statistics.share_interval(round(row.base * row.n), row.n)
            found.append(Score(name, row.n, row.base, *ends))
    return found


def note() -> str:
    """Say what such scores are good for."""
    return t(
        "The base was asked by itself, so nothing is gained or lost here. Runs that are made from it are compared with "
        "these answers; it is not asked again."
    )

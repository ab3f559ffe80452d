"""What was asked of a run: its own questions and those of later evaluations of it, base and tuned joined once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine import events
from engine.estimate import phases
from engine.report import Comparison, about, headline, items, paired, statistics, verdicts
from engine.runs import store
from engine.runs.store import Run
from engine.spec import RunSpec
from engine.words import t
from engine.workspace import Workspace, find_struct, write_atomically

# From this way of scoring on, answers through Unsloth are right (engine/train/scoring/keys.py, SCORING).
SOUND_THROUGH_UNSLOTH = 4


@dataclass(eq=False, frozen=True)
class ScoredRun:
    """A run as page, command line and exports see it. `evaluations`: those that ask it more, in any state, newest first.
    `joined` holds each benchmark's questions with both answers, `rows` what these show and `chance` what guessing gives:
    the run's own, or the newest finished evaluation's where that has asked more questions of a benchmark."""

    workspace: Workspace
    run_id: str
    evaluations: tuple[Run, ...]
    joined: Mapping[str, items.Joined]
    rows: Sequence[Comparison]
    chance: Mapping[str, float]

    @cached_property
    def spec(self) -> RunSpec:
        """What was run. Raises as store.load_spec does."""
        return store.load_spec(self.workspace, self.run_id)

    @cached_property
    def name(self) -> str:
        return store.name(self.workspace, self.run_id)

    @cached_property
    def moved(self) -> bool:
        """Whether training has changed any weight."""
        return store.summary(self.workspace, self.run_id).moved

    @cached_property
    def left_to_ask(self) -> int:
        """How many questions the run's own check in bounded time has left that no evaluation has asked since."""
        check = items.read_check(self.folder)
        if check is None or any(map(self._asked_everything, self.evaluations)):
            return 0
        return sum(one.size - one.asked for one in check.sets.values())

    def _asked_everything(self, evaluation: Run) -> bool:
        """Whether an evaluation asked all that the run's own check would have: the data's rows, no fewer of them."""
        if evaluation.status != "finished" or not evaluation.dataset:
            return False
        asked, own = store.load_spec(self.workspace, evaluation.id).evaluate, self.spec.evaluate
        return (asked.benchmarks, asked.limit) == (own.benchmarks, own.limit)

    @property
    def folder(self) -> Path:
        return self.workspace.run_dir(self.run_id)

    def judged(self, titles: Mapping[str, str] | None = None) -> list[verdicts.Judged]:
        """Return what each general benchmark says about forgetting; `titles` adds names of a person's own benchmarks."""
        return verdicts.judge(self.rows, self.chance, titles=titles)

    @property
    def about(self) -> list[str]:
        """Return what has to be said beside these figures: what of the rows was asked, and what was met before."""
        told: dict[str, None] = {}
        for holder in _holders(self.run_id, self.evaluations):
            seen = events.read(self.workspace.run_dir(holder))[0]
            for event in seen:
                if isinstance(event, events.Log) and event.level == "scores":
                    told[str(event.text)] = None
            asked = _settings(self.workspace, holder).values()
            by_unsloth = any(isinstance(event, events.Started) and event.backend == "unsloth" for event in seen)
            if by_unsloth and any(one.get("scoring", 0) < SOUND_THROUGH_UNSLOTH for one in asked):
                told[t(
                    "An earlier version scored this run through Unsloth, where scores could be wrong. An evaluation of it "
                    "asks both models once more."
                )] = None  # fmt: skip
        check = items.read_check(self.folder) if self.left_to_ask else None
        return [*told, *(map(str, about.bounded(check)) if check is not None else ()), *about.lines(self.joined)]

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return what each benchmark was asked under: shots, template, window, questions, chance."""
        found: dict[str, dict[str, Any]] = {}
        for holder in _holders(self.run_id, self.evaluations):
            for benchmark, settings in _settings(self.workspace, holder).items():
                found.setdefault(benchmark, settings)
        return found


def of(workspace: Workspace, run_id: str, runs: Sequence[Run] | None = None) -> ScoredRun:
    """Return a run with all that was asked of it. `runs` are all runs of the workspace, where they were listed already.

    Raises OSError and ValueError (paired.ItemsDiffer, msgspec's) for items that are broken.
    """
    asked = tuple(_evaluations(workspace, run_id, store.list_all(workspace) if runs is None else runs))
    holders = _holders(run_id, asked)
    found = _answers(str(workspace.root), holders, _stamp(workspace, holders))
    return ScoredRun(workspace, run_id, asked, found.joined, found.rows, found.chance)


class Change(msgspec.Struct, frozen=True):
    """What one line of a report comes to: how far it moved, in what unit (verdicts.unit), and the verdict on that."""

    change: float
    unit: str
    verdict: str

    @property
    def better(self) -> float:
        """How far it moved for the better; below 0 for the worse."""
        return -self.change if self.unit in ("nats/token", "bits/byte") else self.change

    @property
    def points(self) -> float:
        """The same in points; of another unit, one point is what matters as much as one does (engine/report/verdicts)."""
        return self.better / _POINT.get(self.unit, verdicts.MARGINS[verdicts.MARGIN])


class Brief(msgspec.Struct, kw_only=True):
    """A run that has ended, in the figures of a list: what it gained of the new task, the most that it lost of what it knew,
    and its seconds by phase. `stamp` says by which files."""

    stamp: str
    gained: Change | None = None
    lost: Change | None = None
    seconds: dict[str, float] = {}


_POINT = {
    "%": 0.01, "nats/token": verdicts.MARGIN_NATS, "bits/byte": verdicts.MARGINS[verdicts.BITS_PER_BYTE],
    "nats": verdicts.MARGINS[verdicts.GAP],
}  # fmt: skip
BRIEF = "brief.json"
# Rules of these figures that change make those that are kept anew.
_BRIEF_VERSION = 1
_unwritten: dict[Path, Brief] = {}


def kept_briefs(workspace: Workspace, runs: Sequence[Run]) -> dict[str, Brief]:
    """Return the figures of the runs that have ended, as far as they were worked out before: a small file each."""
    found, asking = {}, _asking(runs)
    for run in runs:
        if run.status not in store.LIVE and not run.note:
            folder = workspace.run_dir(run.id)
            one = find_struct(folder / BRIEF, Brief) or _unwritten.get(folder)
            if one is not None and one.stamp == _brief_stamp(folder, asking[f"run:{run.id}"]):
                found[run.id] = one
    return found


def brief(workspace: Workspace, run_id: str, runs: Sequence[Run]) -> Brief:
    """Work out a run's figures and keep them with it. `runs` are all runs there are. What cannot be read has no figures."""
    folder = workspace.run_dir(run_id)
    found, seen = Brief(stamp=_brief_stamp(folder, _asking(runs)[f"run:{run_id}"])), events.read(folder)[0]
    if seen:
        spent, _ = phases.took(seen, seen[-1].monotonic_s, None)
        found.seconds = {phase: round(seconds, 1) for phase, seconds in spent.items()}
    with suppress(OSError, ValueError):
        run = of(workspace, run_id, runs)
        row = headline.asked(run.rows)
        found.gained = _change(row) if row is not None else None
        known = [_change(one.row) for one in run.judged() if one.verdict not in ("at chance", "too few")]
        # Points, nats and bits cannot be held against each other.
        alike = next(
            (some for unit in ("%", "nats/token") if (some := [one for one in known if one.unit == unit])), known
        )
        found.lost = min(alike, key=lambda one: one.better, default=None)
    try:
        write_atomically(folder / BRIEF, msgspec.json.encode(found))
    except OSError:  # a home that is full or read-only
        _unwritten[folder] = found
    return found


def _change(row: Comparison) -> Change:
    return Change(row.change, verdicts.unit(row), verdicts.change_of(row))


def _asking(runs: Sequence[Run]) -> Counter[str]:
    """Return how many finished runs stand on each base: an evaluation of a run is one of them."""
    return Counter(run.base for run in runs if run.status == "finished")


def _brief_stamp(folder: Path, asking: int) -> str:
    """Return what changes when a run goes on or is asked more."""
    try:
        asked_ns = (folder / "items").stat().st_mtime_ns  # files are renamed into it
    except OSError:
        asked_ns = 0
    return f"{_BRIEF_VERSION}-{asked_ns}-{asking}-{events.size(folder)}"


def _evaluations(workspace: Workspace, run_id: str, runs: Sequence[Run]) -> list[Run]:
    """Return the evaluations that compare a run with the base it was made from, newest first."""
    asking = [run for run in runs if run.base == f"run:{run_id}"]
    if not asking:
        return []
    try:
        base = store.load_spec(workspace, run_id).base
    except (OSError, ValueError):
        return []
    specs = [(run, store.load_spec(workspace, run.id)) for run in asking]
    return [run for run, spec in specs if spec.kind == "evaluate" and spec.evaluate.against in (base.ref, base.pinned)]


def _holders(run_id: str, evaluations: Sequence[Run]) -> tuple[str, ...]:
    return (run_id, *(run.id for run in evaluations if run.status == "finished"))


def _settings(workspace: Workspace, run_id: str) -> dict[str, dict[str, Any]]:
    return find_struct(workspace.run_dir(run_id) / "items" / "settings.json", dict[str, dict[str, Any]]) or {}


class _Answers(NamedTuple):
    joined: dict[str, items.Joined]
    rows: tuple[Comparison, ...]
    chance: dict[str, float]


def _stamp(workspace: Workspace, holders: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when an items file does."""
    files = [path for one in holders for path in sorted((workspace.run_dir(one) / "items").glob("*.jsonl"))]
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)


@lru_cache(maxsize=8)  # a page asks at every click, and its intervals take thousands of draws
def _answers(root: str, holders: tuple[str, ...], _changed: tuple[tuple[str, int, int], ...]) -> _Answers:
    workspace = Workspace(root)
    run_id, *later = holders
    joined = items.joined(workspace.run_dir(run_id))
    own = list(joined)
    for other in later:
        for name, one in items.joined(workspace.run_dir(other)).items():
            if name not in joined or len(one.tuned) > len(joined[name].tuned):
                joined[name] = one
    rows = paired.compare_joined(run_id, [joined[name] for name in own]) + paired.divergence(workspace.run_dir(run_id))
    rows += paired.compare_joined(run_id, [one for name, one in joined.items() if name not in own])
    return _Answers(joined, tuple(rows), {name: verdicts.chance_of(one.base) for name, one in joined.items()})


class Alone(NamedTuple):
    """One benchmark as a base answered it by itself: a share of right answers, 0 to 1, with its exact 95 % interval; or a
    loss in nats per token, which has none here."""

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


def alone(run_dir: Path) -> list[Alone]:
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
            found.append(Alone(name, row.n, row.base, *ends))
    return found


def alone_note() -> str:
    """Say what such scores are good for."""
    return t(
        "The base was asked by itself, so nothing is gained or lost here. Runs that are made from it are compared with "
        "these answers; it is not asked again."
    )

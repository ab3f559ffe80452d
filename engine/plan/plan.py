"""Plan: every figure of a run to come, from one place: rows, steps, memory, time, and what the machine decides."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from engine import looker
from engine.benchmarks import library, speeds
from engine.check import DatasetError
from engine.data import Dataset, datasets, division, lengths, readiness
from engine.estimate import duration, load, machine_choices, measured, memory, precision
from engine.models import Base
from engine.plan import bounded_scoring
from engine.plan import steps as planned_steps
from engine.plan.targets import Target
from engine.render import NoTokenizer
from engine.runs import store
from engine.spec import OBJECTIVES, RunSpec, counts, ranges, recipes, settings
from engine.words import Problem, Text, later
from engine.workspace import Workspace

# Tokens of a row when no data is there to count: a question with a short answer, some 200 words; for the toy a row such as
# those of its samples, which have 17 to 35.
USUAL_ROW_TOKENS, TOY_ROW_TOKENS = 300.0, 30.0
# Of English text.
CHARACTERS_A_TOKEN = 4
# Of a question of the harness, which is fetched when it is asked: four choices, each read after some 300 characters.
HARNESS_CHARACTERS = 4 * 300
# Which run is going on is asked again after so long: a page makes a dozen plans at each click.
LOAD_KEPT_S = 10.0


@dataclass(eq=False)
class Plan:
    """What is to be run, and what follows from it, each figure worked out when it is first asked for and then kept. Made
    by plans.py, and not changed afterwards.

    `recipe` is None in the plan of a spec that was stored; `overrides` is what was changed of it. `rows_planned`: how many
    rows there will be, where that is not how many the data has. `look`: what finds the problems of a plan (checks.py),
    and `wrong` those found in making it.
    """

    workspace: Workspace
    spec: RunSpec
    base: Base
    dataset: Dataset | None
    target: Target
    recipe: recipes.Recipe | None = None
    rows_planned: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    wrong: tuple[Problem, ...] = ()
    look: Callable[[Plan], list[Problem]] | None = None

    @cached_property
    def problems(self) -> list[Problem]:
        """Everything that keeps the run from starting, all at once."""
        return [*self.wrong, *(self.look(self) if self.look is not None else ())]

    @cached_property
    def warnings(self) -> list[Problem]:
        """What does not keep the run from starting, and should be looked at before: a setting that lies outside of what is
        known to work. `put_right` mends them."""
        return [_outside(one, value) for one, value in self._outside]

    @property
    def put_right(self) -> dict[str, Any]:
        """The settings that the warnings speak of, each with the value that is usual."""
        return {one.path: one.usual for one, _ in self._outside}

    @cached_property
    def _outside(self) -> list[tuple[ranges.Range, float]]:
        return ranges.outside(self.spec, self.recipe, self.base.parameters) if self.recipe is not None else []

    # --- rows ---

    @cached_property
    def _lengths(self) -> lengths.Lengths | None:
        return lengths.of(self.dataset, self.base, self.workspace) if self.dataset is not None else None

    @cached_property
    def _division(self) -> tuple[int, int] | None:
        if self.rows_planned:
            return division.of_rows(self.spec, self.rows_planned)
        return division.split_rows(self.spec, self.dataset, self.workspace) if self.dataset is not None else None

    @property
    def rows(self) -> int | None:
        """How many rows train; None when it is not known."""
        return self._division[0] if self._division is not None else None

    @property
    def window(self) -> readiness.Window:
        """The tokens that a row may have in this run."""
        objective = OBJECTIVES[self.spec.objective]
        answer = self.spec.objective_args.answer_tokens if objective.needs_judge else 0
        return readiness.Window(self.spec.train.max_length, answer, objective.is_judge, self.base.window_tokens)

    @property
    def row_readiness(self) -> readiness.Readiness | None:
        """What the base makes of every row; None while that is not known, or cannot be, without its tokenizer here."""
        return None if isinstance(self._rows_read, Problem) else self._rows_read

    @property
    def row_reader_problem(self) -> Problem | None:
        """Why the base cannot read a row at all, where that ended whoever tried."""
        found = self._rows_read
        return found if isinstance(found, Problem) and found.rule in looker.RULES else None

    @cached_property
    def _rows_read(self) -> readiness.Readiness | Problem | None:
        if self.dataset is None or not self.dataset.trainable:
            return None
        try:
            return readiness.of(self.workspace, self.dataset, self.base)
        except NoTokenizer as error:
            return error.problem
        except (DatasetError, OSError):
            return None

    @property
    def row_warnings(self) -> list[Text]:
        """What of the rows this run would leave out or cut, and what is wrong with how the base reads them."""
        return self.row_readiness.warnings(self.window) if self.row_readiness is not None else []

    @cached_property
    def evaluation(self) -> division.Counts | None:
        """How the run divides its rows; None where it holds out none, or while that is not known."""
        return division.evaluation(self.spec, self.workspace)

    @property
    def evaluation_notes(self) -> list[Text]:
        """What has to be said of the rows held out: which of them are scored, and how many of those are trained on."""
        return self.evaluation.notes(self.spec) if self.evaluation is not None else []

    @property
    def steps(self) -> int | None:
        """How many optimizer steps that makes."""
        return counts.optimizer_steps(self.spec.train, self.rows) if self.rows is not None else None

    @property
    def step_notes(self) -> list[Text]:
        """How many that are, and why, in words; and what is asked afterwards where not everything is."""
        if not self.rows:
            return []
        steps = planned_steps.notes(self.spec.train, self.rows)
        if kept := self.kept_bytes:
            steps.append(
                later(
                    "What the base says of the rows is kept on the disk while the run goes on: at most {size}.",
                    size=memory.size_words(kept),
                )
            )
        return [*steps, *bounded_scoring.notes(self.spec, self._questions)]

    @property
    def kept_bytes(self) -> int:
        """The most that is kept of what the base says of the rows, for a run that is held to it while its weights move: as
        if each token of each row were an answer's, and no row the same as another. 0 where nothing is kept or known."""
        train = self.spec.train
        if not self.rows or self._lengths is None:
            return 0
        general = math.ceil(train.epochs) * counts.replayed_rows(train, self.rows) * (self._longest_general or 0)
        return memory.kept_on_disk_bytes(self._asked, self.rows * min(self._lengths.mean, train.max_length) + general)

    @property
    def rows_per_step(self) -> int:
        return self.spec.train.batch_size * self.spec.train.accumulation

    # --- memory ---

    @cached_property
    def _asked(self) -> memory.Setup:
        """What decides the memory, with no row counted as longer than the data's longest."""
        setup = memory.setup_of(self.spec)
        longest = self._lengths.longest if self._lengths is not None else None
        general = self._longest_general
        return setup if longest is None or general is None else memory.with_longest(setup, max(longest, general))

    @cached_property
    def _longest_general(self) -> int | None:
        """How long the general rows are that are mixed in; 0 without any, None when it is not known."""
        train = self.spec.train
        if not (OBJECTIVES[self.spec.objective].replays and train.replay_share):
            return 0
        if not train.replay_data:
            return counts.MOST_WORLD_TOKENS if self.base.is_toy else counts.MOST_WRITTEN_TOKENS
        try:
            found = lengths.of(datasets.load(self.workspace, train.replay_data), self.base, self.workspace)
        except (DatasetError, OSError, ValueError):
            return None
        return found.longest if found is not None else None

    @cached_property
    def chosen(self) -> machine_choices.Chosen:
        """What the machine decides where the spec leaves it open, each with its reason."""
        here = self.target.is_here and self.target.device.name == "cpu"
        known = precision.on_processor(self.workspace, self.spec, self.base.shape) if here else None
        return machine_choices.choose(self.spec, self.target.device, self.base.shape, self._asked, known)

    @cached_property
    def setup(self) -> memory.Setup:
        """What decides the memory, with what is left open as the machine decides it."""
        return self.chosen.setup(self._asked, self.target.device.name)

    @cached_property
    def memory(self) -> memory.Estimate:
        """The memory it needs, by part, corrected by what finished runs of its kind took here."""
        return self._memory(self.setup)

    def _memory(self, setup: memory.Setup) -> memory.Estimate:
        found = memory.estimate(self.base.shape, setup, device=self.target.name)
        return found.calibrated(measured.memory(self._known, self.base.shape, setup, device=self.target.name))

    @property
    def room(self) -> memory.Room:
        """How it fits the machine."""
        return memory.room(self.memory, self.target.memory_bytes)

    @property
    def fits(self) -> bool | None:
        """Whether it fits, though it may be tightly; None when its base is too little known to say."""
        return None if self.room == "unknown" else self.room in memory.FITTING

    @cached_property
    def smaller(self) -> dict[str, Any] | None:
        """The mildest change of settings by which it fits, the rows of a step kept as many; None when nothing helps or too
        little is known of its base."""
        if self.base.shape is None:
            return None

        def fits(setup: memory.Setup) -> bool:
            return memory.room(self._memory(setup), self.target.memory_bytes) in memory.FITTING

        change = memory.smaller_settings(self.setup, fits)
        if change and "train.batch_size" in change:
            change["train.accumulation"] = max(1, self.rows_per_step // change["train.batch_size"])
        return change

    # --- scoring ---

    @property
    def _questions(self) -> dict[str, int]:
        """How many questions there are of each set: of the run's rows by the loss alone."""
        rows = bounded_scoring.rows_scored(*self._division, self.spec.evaluate.limit) if self._division else 0
        return {**bounded_scoring.general(self.spec, self.workspace).questions, **({"new-task": rows} if rows else {})}

    @property
    def scoring_outlasts_training(self) -> bool:
        """Whether asking base and tuned model everything would compute more than the training does; False where that is
        not known."""
        if self._division is None or self.base.shape is None or self._lengths is None:
            return False
        trained, held_out = self._division
        row_tokens = min(self._lengths.mean, self.spec.train.max_length)
        asked = bounded_scoring.rows_scored(trained, held_out, self.spec.evaluate.limit) * row_tokens
        asked += bounded_scoring.general(self.spec, self.workspace).tokens
        try:
            once = duration.token_flops(self.base.shape, self.setup, row_tokens)
        except ValueError:
            return False
        taken = counts.optimizer_steps(self.spec.train, trained) * self.rows_per_step * row_tokens * once
        return 2 * asked * duration.forward_flops(self.base.shape, row_tokens) > taken

    # --- time ---

    @cached_property
    def _known(self) -> list[measured.Measurement]:
        return measured.read(self.workspace) if self.target.is_here else []

    @cached_property
    def job(self) -> measured.Job | None:
        """What is to be done, as the estimate of time counts it; None when the rows are not known."""
        if self._division is None or (self.dataset is not None and self._lengths is None):
            return None
        spec, (trained, held_out) = self.spec, self._division
        usual = TOY_ROW_TOKENS if self.base.is_toy else USUAL_ROW_TOKENS
        mean = self._lengths.mean if self._lengths is not None else usual
        alike = [one for one in self._known if one.dataset == spec.dataset.id and one.shape == self.base.shape]
        judges = OBJECTIVES[spec.objective].is_judge
        steps = counts.optimizer_steps(spec.train, trained)
        return measured.Job(
            steps=steps,
            rows_per_step=self.rows_per_step,
            # its rows were counted when they were trained on
            row_tokens=alike[0].row_tokens if alike else min(mean, spec.train.max_length),
            held_out=held_out,
            evaluations=counts.evaluations(spec.train, steps) + len(counts.early_looks(spec.train, steps)),
            along=spec.evaluate.along,
            threads=spec.train.threads,
            dataset=spec.dataset.id,
            base=spec.base.pinned,
            trained=trained,
            replay_rows=self._replay_rows(trained),
            replay_budget_s=spec.train.replay_budget_s,
            benchmarks=() if judges else tuple(spec.evaluate.benchmarks),
            limit=spec.evaluate.limit,
            general_tokens=0.0 if judges else self._general_characters / CHARACTERS_A_TOKEN,
            scoring_budget_s=spec.evaluate.budget_s,
        )

    def _replay_rows(self, trained: int) -> int:
        """How many rows the base writes before it is trained; the toy's are of its own world, which are there."""
        train = self.spec.train
        if (
            not (OBJECTIVES[self.spec.objective].replays and train.replay_share)
            or train.replay_data
            or self.base.is_toy
        ):
            return 0
        return math.ceil(train.epochs) * counts.replayed_rows(train, trained)

    @property
    def _general_characters(self) -> int:
        """How many characters a model reads for all general questions."""
        evaluate = self.spec.evaluate
        return sum(_characters(str(self.workspace.root), name, evaluate.limit) for name in evaluate.benchmarks)

    @cached_property
    def time(self) -> duration.Time | None:
        """How long the whole run takes, beside what else the processor does now; None when the base's shape or the rows are
        not known."""
        if self.job is None:
            return None
        evaluate, general_s = self.spec.evaluate, None
        if self.target.is_here and self.job.benchmarks:
            names = list(self.job.benchmarks)
            general_s = speeds.seconds(
                self.workspace, self.target.name, self.base.ref, self.base.parameters, names, evaluate.limit
            )
        found = duration.estimate(
            self.base.shape, self.setup, self.job, device=self.target.name, known=self._known, card=self.target.card,
            memory_gib=self.target.memory_gib, general_s=general_s,
        )  # fmt: skip
        if found is None or not self.target.is_here or self.target.name != "cpu":
            return found
        own = _own_threads(str(self.workspace.root), int(clock.monotonic() // LOAD_KEPT_S))
        return load.beside_others(found, load.times_longer(self.spec.train.threads, own))


def _outside(known: ranges.Range, value: float) -> Problem:
    """Say that a setting lies outside of what is known to work."""
    if known.path == "train.learning_rate":
        rule = "rate-too-high" if value > known.high else "rate-too-low"
    else:
        rule = "setting-outside"
    between = later("{low} to {high}", low=f"{known.low:g}", high=f"{known.high:g}")
    told = {
        "title": later(settings.fields()[known.path].title), "value": f"{value:g}", "usual": f"{known.usual:g}",
        "known": f"{known.low:g}" if known.low == known.high else between,
    }  # fmt: skip
    return Problem(rule=rule, severity="warning", where=known.path, parameters=told)


@lru_cache(maxsize=4)
def _own_threads(root: str, _moment: int) -> int:
    """How many threads the run has that is going on: the next one waits for its end."""
    workspace, found = Workspace(root), 0
    for run in store.list_all(workspace):
        if run.status in ("running", "stopping"):
            with suppress(OSError, ValueError):  # deleted just now
                found += store.load_spec(workspace, run.id).train.threads
    return found


@lru_cache(maxsize=64)
def _characters(root: str, name: str, limit: int) -> int:
    """How many characters a model reads for a benchmark; kept, since a page asks at every click."""
    one = library.find(name, Workspace(root))
    if one is None:
        return 0
    if one.kind == "harness":
        each = HARNESS_CHARACTERS + speeds.WRITTEN_CHARACTERS * one.most_tokens
        return each * min(one.size, limit or one.size)
    return speeds.characters(library.docs(one, limit))

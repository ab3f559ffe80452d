"""Case: what is to be advised on, with a plan of every way to train, so that advice and run go by the same figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec

from engine import limits, machine
from engine.advise import ways
from engine.advise.facts import TOY_PARAMETERS, Facts, billions, checked
from engine.advise.ways import Way
from engine.data import Dataset
from engine.estimate import memory
from engine.models import Base, shapes, shortlist
from engine.plan import Plan, plans, targets
from engine.spec import OBJECTIVES, settings
from engine.words import Problem, t
from engine.workspace import Workspace

# Below this size no shape is usual, and none takes more than one of this size.
LEAST_USUAL_PARAMETERS, MOST_USUAL_PARAMETERS = 1e8, 1e12
# Rows are not made shorter than this to make a run fit: answers of usual length must have room.
LEAST_ROW_TOKENS = 256
# Where nobody has said how many rows there will be, the time is that of so many.
ASSUMED_ROWS = 1000


@dataclass(eq=False)
class Case:
    """Facts, and what plans are made of: `base` as it is planned for, `dataset` where its rows are of the kind that is
    asked about, `judge` the reward model of this workspace for PPO. `own_base` is what is there, `starts_with` what
    "Use this" starts with. Made by `of`."""

    facts: Facts
    workspace: Workspace
    base: Base
    own_base: Base
    dataset: Dataset | None = None
    judge: str | None = None
    problems: tuple[Problem, ...] = ()
    _plans: dict[Any, Plan] = field(default_factory=dict, init=False)
    _moves: dict[Any, Way] = field(default_factory=dict, init=False)

    @cached_property
    def ways(self) -> list[Way]:
        """Every way the data can feed and a recipe trains, the best first, whether it fits or not. Where more rows at a
        time do not fit, as many as do."""
        found = [self._moved(way) for way in ways.ranked(self.facts)]
        return found if any(map(self.fits, found)) else [self._shortened(way) for way in found]

    @cached_property
    def best(self) -> Way | None:
        """The first way that fits."""
        found = next((moved for way in ways.ranked(self.facts) if self.fits(moved := self._moved(way))), None)
        return found or next(filter(self.fits, self.ways), None)

    @cached_property
    def target(self) -> targets.Target:
        """The machine that is planned for."""
        return targets.of_memory(self.facts.gpu_memory_gib)

    @property
    def machine_words(self) -> str:
        """The machine that is planned for, as a sentence names it."""
        if self.target.is_here:
            return t("this machine")
        return t("a card of {gb} GB", gb=machine.marketed_gb(self.facts.gpu_memory_gib or 0))

    @property
    def assumed_rows(self) -> str:
        """The rows that a time stands on while there is no data to count, as a sentence names them; "" where there is."""
        if self.dataset is not None:
            return ""
        rows = f"{self.facts.rows or ASSUMED_ROWS:,}"
        if self.base.is_toy:
            return t("{rows} rows as short as those of the samples", rows=rows)
        return t("{rows} rows of about 200 words", rows=rows)

    @property
    def starts_with(self) -> Base:
        """The base of the run that is advised: the own one, or a named one of the size that is asked about."""
        return self.base if self.base.ref else self.own_base

    @property
    def is_toy(self) -> bool:
        """Whether the base is a toy: numbers for real models make no sense on it."""
        return self.base.is_toy or (self.facts.base_parameters or math.inf) < TOY_PARAMETERS

    def with_facts(self, **changes: Any) -> Case:
        """Return the case with some facts changed, all else as it is."""
        facts = msgspec.structs.replace(self.facts, **changes)
        base = self.base if facts.base_parameters == self.facts.base_parameters else base_for(self.own_base, facts)
        return replace(self, facts=facts, base=base)

    # --- each way ---

    def plan(self, way: Way) -> Plan:
        """Return the plan of the run that this way starts."""
        if way.key not in self._plans:
            self._plans[way.key] = self._plan(way)
        return self._plans[way.key]

    def fits(self, way: Way) -> bool:
        """Whether a way fits the machine, though it may be tightly. Where nothing is known of the base the guide's rule
        for the card stands: 4 bits on 8 GB (C4)."""
        fits = self.plan(way).fits
        if fits is not None:
            return fits
        gib = self.facts.gpu_memory_gib
        return gib is None or way.quantize == "4bit" or machine.marketed_gb(gib) > 8

    def need(self, way: Way) -> str:
        """Return the memory of a way in words, as a range."""
        low, high = memory.range_words(self.plan(way).memory, self.target.memory_bytes)
        return t("{low} to {high}", low=low, high=high)

    @property
    def is_sized(self) -> bool:
        """Whether enough is known of the base to work out what a way needs."""
        return self.base.shape is not None

    def overrides(self, way: Way) -> dict[str, Any]:
        """Return what the run of a way has otherwise than its recipe: the recipes know the defaults for a base of each
        size, so only what the facts moved. A toy keeps its recipe's own settings."""
        recipe = ways.recipe_for(way)
        given = {path: getattr(way, path) for path in ("adapter", "quantize")}
        found: dict[str, Any] = {path: value for path, value in given.items() if value != getattr(recipe, path)}
        for setting in way.settings:
            default = recipe.default(setting.path, self.facts.base_parameters)
            usual = default.value if default is not None else None
            # A recipe's numbers are for its own adapter: DPO's rate is ten times too high where every weight moves.
            moved = setting.reason or way.adapter != recipe.adapter
            if setting.path == "train.replay_share":
                # general rows to mix in come with the starter alone
                if self.starts_with.kind == "starter" and setting.value > (usual or 0):
                    found[setting.path] = setting.value
            elif moved and not self.is_toy and setting.path in settings.fields() and usual != setting.value:
                found[setting.path] = setting.value
        if self.judge and OBJECTIVES[way.objective].needs_judge:
            found["objective_args.reward_model"] = self.judge
        return found

    def _plan(self, way: Way) -> Plan:
        rows = self.facts.rows
        planned = rows if self.dataset is None or rows != self.dataset.good_rows else None
        if self.dataset is None and rows is None:
            planned = ASSUMED_ROWS
        return plans.make(
            self.workspace,
            ways.recipe_for(way).name,
            base=self.base,
            dataset=self.dataset,
            overrides=self.overrides(way),
            target=self.target,
            rows_planned=planned,
        )

    def _moved(self, way: Way) -> Way:
        """Return a way with as many rows at a time as fit, its rows a step kept as many. Worked out once: the plan that is
        kept is of what came of it."""
        if way.key in self._moves:
            return self._moves[way.key]
        asked, plan = way.key, self.plan(way)
        rows, per_step = plan.spec.train.batch_size, plan.rows_per_step
        least = OBJECTIVES[way.objective].least_batch
        while plan.room in ("tight", "risky", "none") and rows // 2 >= least:
            rows //= 2
            way = way.with_batch(rows, max(1, per_step // rows))
            self._plans[way.key] = plan = self._plan(way)
        self._moves[asked] = way
        return way

    def _shortened(self, way: Way) -> Way:
        """Return a way with rows as long as fit, where that helps; else as it is."""
        tokens, shorter = self.plan(way).spec.train.max_length, way
        while tokens // 2 >= LEAST_ROW_TOKENS:
            tokens //= 2
            shorter = shorter.with_length(tokens)
            self._plans[way.key] = self._plan(shorter)
            if self.fits(shorter):
                return shorter
        self._plans[way.key] = self._plan(way)
        return way

    # --- whose figures ---

    @property
    def stands_in(self) -> list[str]:
        """Return whose figures these are, where they are not those of the base and the machine that are here."""
        said = []
        if self.base is not self.own_base and self.facts.base_parameters is not None:
            size = billions(self.facts.base_parameters)
            if self.base.ref:
                told = {"name": self.base.ref, "real": billions(self.base.parameters or 0), "size": size}
                text = t("The figures are those of {name} ({real}), which stands for a base of {size}.", **told)
            elif self.facts.base_parameters == self.own_base.parameters:
                text = t(
                    "The base's architecture is not known: the figures are those of a usual model of {size}.", size=size
                )
            elif self.own_base.ref:
                text = t(
                    "The figures are those of a usual model of {size}; the short list has none of about that size, so Train "
                    "opens with {name}: choose one there.", size=size, name=self.own_base.title,
                )  # fmt: skip
            else:
                text = t("The figures are those of a usual model of {size}.", size=size)
            said.append(text)
        if self.dataset is None and self.facts.rows is None:
            said.append(t("No data yet: how many rows there are, and how long they are, is assumed."))
        return said


def of(
    facts: Facts,
    workspace: Workspace,
    *,
    base: Base | None = None,
    dataset: Dataset | None = None,
    judge: str | None = None,
) -> Case:
    """Return the case of some facts, those that cannot be set to "not known"."""
    facts, problems = checked(facts)
    own = base or Base(ref="", kind="hub", title="")
    return Case(facts, workspace, base_for(own, facts), own, dataset, judge, tuple(problems))


def base_for(own: Base, facts: Facts) -> Base:
    """Return the base to plan with: the own one when it has the size that is asked about and its shape is known, else an
    open one of about that size from the short list, else a usual model of that size; below 100 million parameters one of
    100 million, than which none takes more."""
    parameters = facts.base_parameters
    if parameters is None or (parameters == own.parameters and own.shape is not None):
        return own
    is_another = parameters != own.parameters if own.parameters is not None else not own.ref
    known = shortlist.of_size(parameters) if is_another and not limits.on() else None
    if known is not None:
        return known.base
    shape = shapes.typical_shape(min(max(parameters, LEAST_USUAL_PARAMETERS), MOST_USUAL_PARAMETERS))
    if shape is None:
        return own
    return Base(
        ref="", kind="hub", title=billions(parameters), parameters=round(parameters), shape=shape,
        layers=shape.layers, hidden=shape.hidden,
    )  # fmt: skip

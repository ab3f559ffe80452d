"""The guide's road in stages, each on the run before: SFT and then preferences (DPO or KTO), or SFT, a reward model and PPO
(Ouyang and others, arXiv 2203.02155, figure 2).

Every stage is an ordinary run. A chain is a file that says which data each stage takes and which run fills it, so that it
outlives browser and server; how far it is, is read from these runs. No run is taken into a chain that was not started by
it, unless somebody says so.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from filelock import FileLock

from engine import starter
from engine.data import Dataset, datasets, mix
from engine.models import alike as models_alike
from engine.models import bases
from engine.plan import drafts, judges, plans
from engine.plan.plan import Plan
from engine.runs import Run, lifecycle, store
from engine.spec import OBJECTIVES
from engine.words import Problem, t
from engine.workspace import BadId, Workspace, find_struct, one_line, write_atomically

ROADS = {"dpo": ("sft", "dpo"), "kto": ("sft", "kto"), "ppo": ("sft", "reward", "ppo")}
STAGES = ("sft", "dpo", "kto", "reward", "ppo")
RECIPES = {"sft": "lora", "dpo": "dpo", "kto": "kto", "reward": "reward", "ppo": "ppo"}
SAMPLES = {
    "sft": "mixed-answers", "dpo": "preference-pairs", "kto": "good-bad", "reward": "preference-pairs",
    "ppo": "ppo-prompts",
}  # fmt: skip
# The option of `tunebook chain` that names a stage's data.
OPTIONS = {"sft": "--sft-data", "dpo": "--preference-data", "kto": "--preference-data", "reward": "--preference-data",
           "ppo": "--prompts"}  # fmt: skip
# What else a stage's rows can be taken from.
SERVES = {"sft": mix.ANSWERS_FROM, "ppo": mix.QUESTIONS_FROM}
# States of a stage beside those of its run: nothing yet, its run was deleted, or stands on another run than the stage
# before it now has.
EMPTY, DELETED, REPLACED = "empty", "deleted", "replaced"


class Written(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """chains/<id>.json. `stages` in order; `data`, `settings` and `runs` by stage; `tries` counts the runs of a stage."""

    schema: Literal[1] = 1
    name: str
    created: float
    base: str
    stages: list[str]
    data: dict[str, str]
    settings: dict[str, dict[str, Any]] = {}
    runs: dict[str, str] = {}
    tries: dict[str, int] = {}


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: `state` is that of its run, or one of this file's; `run` its run's id, kept when that was deleted."""

    name: str
    title: str
    purpose: str
    data: str
    run: str | None
    state: str

    @property
    def filled(self) -> bool:
        """Whether the next stage can stand on it."""
        return self.state == "finished"

    @property
    def says(self) -> str:
        """What its state means and what can be done."""
        return {
            EMPTY: t("Not started."),
            DELETED: t("Its run was deleted: start this stage anew. What stood on it cannot go on without it."),
            REPLACED: t("Its run stands on an earlier run of the stage before: start this stage anew."),
            "finished": t("Done."),
            "failed": t("It failed. Look at why; then let it go on, or start this stage anew."),
            "stopped": t("It was stopped. Let it go on, or start this stage anew."),
            "interrupted": t("Its process is gone. Let it go on, or start this stage anew."),
            store.LATER: t("A later version of Tunebook has made its run: go on there, or start this stage anew."),
            store.BROKEN: t("Its specification cannot be read: start this stage anew."),
        }.get(self.state, t("On its way."))


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain as far as it has come. `next` is the stage to start now: None when all are done, or one is on its way
    (`going`). `alike` says whether policy and judge read text alike; None while that is not known."""

    id: str
    name: str
    base: str
    stages: tuple[Stage, ...]
    next: Stage | None
    going: Stage | None
    alike: bool | None = None

    def stage(self, name: str) -> Stage:
        """Return the stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def done(self) -> bool:
        return all(stage.filled for stage in self.stages)


class CannotGoOn(ValueError):
    """The next stage cannot start; `problems` say why."""

    def __init__(self, *problems: Problem):
        super().__init__("; ".join(problem.sentence for problem in problems))
        self.problems = problems


def words(name: str) -> tuple[str, str, str]:
    """Return what a stage is called, what it is for and what rows it reads."""
    pairs = t("pairs of a better and a worse answer")
    return {
        "sft": (
            t("SFT: learn to answer"),
            t("The model must be able to write good answers at all before it can prefer them."),
            t("questions with answers"),
        ),
        "dpo": (t("DPO: prefer the better answer"), t("Learned from pairs, held to the model of the stage before."), pairs),
        "kto": (
            t("KTO: prefer good answers"),
            t("Learned from single answers marked good or bad, held to the model of the stage before."),
            t("answers marked good or bad"),
        ),
        "reward": (
            t("Reward model: learn to judge"),
            t("A judge that scores answers, made from the model of the stage before, so that both read text alike."),
            pairs,
        ),
        "ppo": (
            t("PPO: answer as the judge likes"),
            t("The model of SFT answers, the judge scores, and beta holds the model to its start."),
            t("questions alone"),
        ),
    }[name]  # fmt: skip


# --- data --------------------------------------------------------------------------------------------------------


def fitting(workspace: Workspace, name: str) -> list[Dataset]:
    """Return the stored data a stage can take, newest first: what it reads, then what its rows can be taken from."""
    known = [one for one in datasets.list_all(workspace) if one.trainable and not one.name.endswith("(evaluation)")]
    read = [one for one in known if one.report.type in OBJECTIVES[name].data_types]
    return [*read, *(one for one in known if one.report.type in SERVES.get(name, ()) and one not in read)]


def is_taken_from(name: str, data: Dataset) -> bool:
    """Whether a stage's rows would be made of this data, not read from it."""
    return data.report.type not in OBJECTIVES[name].data_types and data.report.type in SERVES.get(name, ())


def sample_id(workspace: Workspace, name: str) -> str:
    """Store the sample of a stage and return its id."""
    return datasets.add_sample(workspace, starter.sample(SAMPLES[name])).id


def _data_problem(rule: str, stage: str, **parameters: str) -> Problem:
    told: dict[str, Any] = {"stage": label(stage), "option": OPTIONS[stage], **parameters}
    return Problem(rule=rule, where=stage, parameters=told)


def _serving(workspace: Workspace, name: str, given: Mapping[str, str], base: str, settings: Mapping[str, Any]) -> str:
    """Return the data of a stage, made of what was given where that is of another kind. Raises CannotGoOn, DatasetError."""
    data = datasets.load(workspace, given[name])
    if not is_taken_from(name, data):
        if data.report.type not in OBJECTIVES[name].data_types:
            kinds = " or ".join(OBJECTIVES[name].data_types)
            kind = data.report.type or "unknown"
            raise CannotGoOn(_data_problem("chain-data-type", name, type=kind, wanted=kinds))
        return data.id
    if name != "sft":
        return mix.questions(workspace, data).id
    # What the later stage on the same rows holds out, this one must not have seen.
    later = next((one for one, source in given.items() if one != name and source == data.id), None)
    share, seed = 0.0, 0
    if later is not None:
        planned = plans.make(
            workspace, RECIPES[later], base=base, dataset=data, overrides=dict(settings.get(later, {}))
        ).spec.dataset
        share, seed = planned.eval_share, planned.split_seed
    return mix.answers(workspace, data, share=share, seed=seed).id


# --- the file ----------------------------------------------------------------------------------------------------


def begin(
    workspace: Workspace,
    road: str,
    data: Mapping[str, str],
    *,
    base: str = "starter",
    settings: Mapping[str, dict[str, Any]] | None = None,
    name: str = "",
    chain_id: str | None = None,
) -> str:
    """Write down a chain and return its id, a new one unless it is given; nothing is started. `data` names a data set for
    each stage; without one for SFT the base is taken as it is.

    Raises CannotGoOn for data that a stage cannot read, DatasetError, plans.CannotPlan."""
    if chain_id is not None and _read(workspace, chain_id) is not None:
        return chain_id
    stages = [one for one in ROADS[road] if one in data or one != "sft"]
    missing = [one for one in stages if one not in data]
    if missing:
        raise CannotGoOn(*(_data_problem("chain-data-none", one) for one in missing))
    given = {one: data[one] for one in stages}
    served = {one: _serving(workspace, one, given, base, settings or {}) for one in stages}
    described = bases.describe(base, workspace)
    made = Written(
        name=one_line(name) or t("{stages} on {base}", stages=" → ".join(map(label, stages)), base=described.title),
        created=time.time(), base=described.ref, stages=stages, data=served, settings=dict(settings or {}),
    )  # fmt: skip
    chain_id = chain_id or secrets.token_hex(8)
    _write(workspace, chain_id, made)
    return chain_id


def label(name: str) -> str:
    """Return the short name of a stage."""
    return OBJECTIVES[name].title


def _write(workspace: Workspace, chain_id: str, made: Written) -> None:
    write_atomically(workspace.chain_path(chain_id), msgspec.json.format(msgspec.json.encode(made), indent=1))


def _read(workspace: Workspace, chain_id: str) -> Written | None:
    made = find_struct(workspace.chain_path(chain_id), Written)
    return made if made is not None and made.stages and set(made.stages) <= {*STAGES} & {*made.data} else None


def list_all(workspace: Workspace) -> list[Chain]:
    """Return all chains, newest first; those that cannot be read are listed by unreadable()."""
    paths = sorted(workspace.chains_dir.glob("*.json"), key=lambda path: path.name)
    made = [(one.created, path.stem) for path in paths if (one := _read(workspace, path.stem)) is not None]
    return [chain for _, name in sorted(made, reverse=True) if (chain := look(workspace, name)) is not None]


def unreadable(workspace: Workspace) -> dict[Path, Problem]:
    """Return the files of chains that cannot be read, each with the reason."""
    paths = sorted(workspace.chains_dir.glob("*.json"))
    return {path: Problem(rule="chain-damaged") for path in paths if look(workspace, path.stem) is None}


def of_run(workspace: Workspace, run_id: str) -> Chain | None:
    """Return the chain that a run is a stage of, or None."""
    for path in workspace.chains_dir.glob("*.json"):
        made = _read(workspace, path.stem)
        if made is not None and run_id in made.runs.values():
            return look(workspace, path.stem)
    return None


def forget(workspace: Workspace, chain_id: str) -> None:
    """Take a chain away; its runs stay."""
    workspace.chain_path(chain_id).unlink(missing_ok=True)


# --- how far it is -----------------------------------------------------------------------------------------------


def look(workspace: Workspace, chain_id: str) -> Chain | None:
    """Return a chain as far as it has come, by its file and its runs; None where there is none that can be read."""
    try:
        made = _read(workspace, chain_id)
    except BadId:
        made = None
    if made is None:
        return None
    stages = []
    for name in made.stages:
        title, purpose, _ = words(name)
        state = _state(workspace, made, name)
        stages.append(
            Stage(name=name, title=title, purpose=purpose, data=made.data[name], run=made.runs.get(name), state=state)
        )
    first = next((one for one in stages if not one.filled), None)
    going = first if first is not None and first.state in store.LIVE else None
    alike = None
    if "reward" in made.runs and (folder := judges.made_by(workspace, f"run:{made.runs['reward']}")) is not None:
        alike = models_alike.reads_alike(bases.describe(_policy(made), workspace), folder)
    return Chain(
        id=chain_id, name=made.name, base=made.base, stages=tuple(stages), going=going,
        next=None if going is not None else first, alike=alike,
    )  # fmt: skip


def _policy(made: Written) -> str:
    """Return what the stages after SFT stand on: its run, or the base where it is left out."""
    return f"run:{made.runs['sft']}" if "sft" in made.runs else made.base


def _ref(base: str, workspace: Workspace) -> str:
    """Return how a spec names a base, however it was typed."""
    return base if base == "starter" or base.startswith("run:") else bases.describe(base, workspace).spec_ref


def _state(workspace: Workspace, made: Written, name: str) -> str:
    run_id = made.runs.get(name)
    if run_id is None:
        return EMPTY
    if not store.exists(workspace, run_id):
        return DELETED
    line = store.line(workspace, run_id)
    if line.note:
        return line.status
    told = store.load_spec(workspace, run_id)
    stands = name == "sft" or told.base.ref == _ref(_policy(made), workspace)
    judged = name != "ppo" or told.objective_args.reward_model == f"run:{made.runs.get('reward')}"
    return line.status if stands and judged else REPLACED


# --- going on ----------------------------------------------------------------------------------------------------


def _overrides(made: Written, name: str) -> dict[str, Any]:
    judge = {"objective_args.reward_model": f"run:{made.runs.get('reward')}"} if name == "ppo" else {}
    return {**judge, **made.settings.get(name, {})}


def plan(workspace: Workspace, chain_id: str) -> Plan:
    """Return the plan of a chain's next stage. Raises CannotGoOn when there is none, and plans.CannotPlan."""
    made, stage = _next(workspace, chain_id)
    base = made.base if stage.name == "sft" else _policy(made)
    overrides = _overrides(made, stage.name)
    return plans.make(workspace, RECIPES[stage.name], base=base, dataset=stage.data, overrides=overrides)


def _next(workspace: Workspace, chain_id: str) -> tuple[Written, Stage]:
    found, made = look(workspace, chain_id), _read(workspace, chain_id)
    if found is None or made is None:
        raise CannotGoOn(Problem(rule="chain-missing", parameters={"id": chain_id[:80]}))
    if found.next is None:
        raise CannotGoOn(Problem(rule="chain-going" if found.going else "chain-done", parameters={"id": chain_id}))
    return made, found.next


def start_next(workspace: Workspace, chain_id: str) -> str:
    """Start the next stage of a chain, anew where an earlier run of it has failed, was stopped or deleted, and return its
    run; that of a stage on its way where there is one, as after a double click.

    Raises CannotGoOn, plans.CannotPlan, OSError, limits.OverLimit."""
    workspace.chains_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(workspace.chains_dir / ".lock"):
        found = look(workspace, chain_id)
        if found is not None and found.going is not None and found.going.run is not None:
            return found.going.run
        made, stage = _next(workspace, chain_id)
        planned = plan(workspace, chain_id)
        if planned.problems:
            raise CannotGoOn(*planned.problems)
        tries = made.tries.get(stage.name, 0)
        name = f"{made.name}: {label(stage.name)}"
        # Killed between the start and the note of it, the next attempt finds the same run by its click.
        click = f"chain-{chain_id}-{stage.name}-{tries}"
        run_id = lifecycle.start(workspace, planned.spec, name=name, click_id=click)
        made.runs[stage.name], made.tries[stage.name] = run_id, tries + 1
        _write(workspace, chain_id, made)
    return run_id


def usable(workspace: Workspace, chain_id: str) -> list[Run]:
    """Return the finished runs that the next stage could be filled with, newest first: of its objective and base (and for
    PPO its judge), those on its own data first. None is taken unless take() says so."""
    made, stage = _next(workspace, chain_id)
    base = bases.describe(made.base if stage.name == "sft" else _policy(made), workspace).spec_ref
    judge = _overrides(made, stage.name).get("objective_args.reward_model")
    found = []
    for run in store.list_all(workspace):
        if run.status != "finished" or run.base != base:
            continue
        told = store.load_spec(workspace, run.id)
        judged = told.objective_args.reward_model == judge or not OBJECTIVES[stage.name].needs_judge
        if told.kind == "train" and told.objective == stage.name and judged:
            found.append(run)
    return sorted(found, key=lambda run: run.dataset != stage.data)


def take(workspace: Workspace, chain_id: str, run_id: str) -> None:
    """Fill the next stage of a chain with a run that is there already. Raises CannotGoOn for one that does not fit."""
    made, stage = _next(workspace, chain_id)
    if run_id not in {run.id for run in usable(workspace, chain_id)}:
        raise CannotGoOn(Problem(rule="chain-unfit", parameters={"run": run_id[:80]}))
    made.runs[stage.name] = run_id
    _write(workspace, chain_id, made)


def draft(workspace: Workspace, chain_id: str) -> drafts.Draft:
    """Return the draft of the next stage, to be set up by hand: its run can then be taken into the chain."""
    made, stage = _next(workspace, chain_id)
    return drafts.Draft(
        recipe=RECIPES[stage.name], base=made.base if stage.name == "sft" else _policy(made), dataset=stage.data,
        overrides=_overrides(made, stage.name), reasons=[stage.purpose], rules=["H2", "L2"], came_from=made.name,
    )  # fmt: skip

"""The chain of Ouyang and others, arXiv 2203.02155, figure 2: SFT, then a reward model, then PPO, each on the run before.

Every stage is an ordinary run; what the chain adds is which run fills a stage, what the next one is told, and whether
policy and judge read text alike. Read from files alone, so that a page or the command line finds it again at any time.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine import starter
from engine.data import datasets
from engine.models import alike as models_alike
from engine.models import bases
from engine.plan import drafts, judges, plans
from engine.plan.plan import Plan
from engine.runs import Run, store
from engine.spec import OBJECTIVES
from engine.words import t
from engine.workspace import Workspace

STAGES = ("sft", "reward", "ppo")
RECIPES = {"sft": "lora", "reward": "reward", "ppo": "ppo"}
SAMPLES = {"sft": "mixed-answers", "reward": "preference-pairs", "ppo": "ppo-prompts"}


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: `filled` is the finished run that stands in it, `going` one that is on its way, `candidates` all finished
    runs that could stand there, newest first; `data` the newest stored data set of its kind."""

    name: str
    title: str
    purpose: str
    needs: str
    filled: str | None
    going: str | None
    candidates: tuple[str, ...]
    data: str | None


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is the stage to start now, None when all are filled or one is under way. `alike` says whether policy and
    judge read text the same way; None while one of them is missing or the files do not say."""

    stages: tuple[Link, ...]
    base: str
    next: str | None
    alike: bool | None

    def stage(self, name: str) -> Link:
        """Return the stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def policy(self) -> str:
        """What the reward model is made from and PPO starts with: the run of SFT, or the base where that is skipped."""
        filled = self.stage("sft").filled
        return self.base if filled is None else f"run:{filled}"


def _words(name: str) -> tuple[str, str, str]:
    return {
        "sft": (
            t("1. SFT: learn to answer"),
            t("The model must be able to write good answers at all, at least now and then: PPO only makes likelier what "
              "it tries by itself."),
            t("questions with answers"),
        ),
        "reward": (
            t("2. Reward model: learn to judge"),
            t("A judge that gives each answer a score, made from the model of stage 1, so that both read text alike."),
            t("pairs of a better and a worse answer"),
        ),
        "ppo": (
            t("3. PPO: answer as the judge likes"),
            t("The model of stage 1 answers, the judge of stage 2 scores, and beta holds the model to its start."),
            t("questions alone"),
        ),
    }[name]  # fmt: skip


def look(workspace: Workspace, *, base: str = "starter", skip_sft: bool = False, sft: str | None = None) -> Chain:
    """Return the chain on a base as far as it has come. `sft` names the run of stage 1 where it is not the newest;
    `skip_sft` starts from the base as it is."""
    listed = [(run, store.load_spec(workspace, run.id)) for run in store.list_all(workspace)]
    stored = datasets.list_all(workspace)

    def candidates(objective: str, on: str) -> list[Run]:
        return [
            run for run, told in listed if told.adopted is None and told.objective == objective and told.base.ref == on
        ]

    def stage(name: str, found: list[Run], chosen: str | None = None) -> Link:
        title, purpose, needs = _words(name)
        finished = [run.id for run in found if run.status == "finished"]
        filled = chosen if chosen in finished else next(iter(finished), None)
        going = next((run.id for run in found if run.status in store.LIVE), None)
        fitting = [d for kind in OBJECTIVES[name].data_types for d in stored if d.report.type == kind]
        data = next((d.id for d in fitting if d.report.trainable and not d.name.endswith("(evaluation)")), None)
        return Link(
            name=name, title=title, purpose=purpose, needs=needs, filled=filled, going=None if filled else going,
            candidates=tuple(finished), data=data,
        )  # fmt: skip

    first = stage("sft", [] if skip_sft else candidates("sft", base), sft)
    policy = base if first.filled is None else f"run:{first.filled}"
    ready = skip_sft or first.filled is not None
    second = stage("reward", candidates("reward", policy) if ready else [])
    judge = f"run:{second.filled}" if second.filled else None
    answered = [
        run for run, told in listed
        if told.objective == "ppo" and told.base.ref == policy and told.objective_args.reward_model == judge
    ]  # fmt: skip
    third = stage("ppo", answered if judge else [])
    alike = None
    if judge is not None:
        folder = judges.made_by(workspace, judge)
        alike = models_alike.reads_alike(bases.describe(policy, workspace), folder) if folder is not None else None
    stages = (first, second, third)
    # A stage that was skipped is filled by the base.
    open_stages = [one for one in stages if one.filled is None and not (skip_sft and one is first)]
    waiting = None if not open_stages or open_stages[0].going else open_stages[0].name
    return Chain(stages=stages, base=base, next=waiting, alike=alike)


def draft(chain: Chain, name: str, *, dataset: str | None) -> drafts.Draft:
    """Return the draft that starts a stage: its base is the run before it, and PPO is told its judge."""
    overrides: dict[str, Any] = {}
    reasons = [chain.stage(name).purpose]
    if name == "ppo":
        judge = f"run:{chain.stage('reward').filled}"
        overrides["objective_args.reward_model"] = judge
        reasons.append(t("Judged by {judge}.", judge=judge))
    base = chain.base if name == "sft" else chain.policy
    return drafts.Draft(
        recipe=RECIPES[name], base=base, dataset=dataset, overrides=overrides, reasons=reasons, rules=["H2", "L2"],
        came_from=t("The chain of SFT, reward model and PPO"),
    )  # fmt: skip


def sample_id(workspace: Workspace, name: str) -> str:
    """Store the sample of a stage and return its id."""
    return datasets.add_sample(workspace, starter.sample(SAMPLES[name])).id


def plan(
    workspace: Workspace, name: str, policy: str, dataset: str, judge: str | None, overrides: dict[str, Any]
) -> Plan:
    """Return the plan of a stage. Raises plans.CannotPlan."""
    if name == "ppo" and judge is not None:
        overrides = {"objective_args.reward_model": judge, **overrides}
    return plans.make(workspace, RECIPES[name], base=policy, dataset=dataset, overrides=overrides)

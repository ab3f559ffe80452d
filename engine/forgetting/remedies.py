"""What can be done about forgetting: the same run with one thing changed, the effect to expect, and who says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from engine.forgetting import measured
from engine.plan import drafts
from engine.report import items
from engine.runs import Run, ScoredRun, store
from engine.spec import OBJECTIVES, RunSpec, counts, objectives, schema
from engine.words import joined, t
from engine.workspace import Workspace


def more_replay(share: float) -> float:
    """Return the next replay share to try: 10 % after none, then twice as much, at most half."""
    return min(0.5, max(0.1, 2 * share))


# A sweep of the guide's claims tries the same step: a quarter of the rate.
LOWER_RATE = 0.25
# What another recipe takes over from a run: what it is asked, on which rows, and how long it may take.
_KEPT = ("evaluate.", "dataset.", "train.seed", "train.max_steps", "train.threads", "train.max_length")


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """One change: `recipe` where it is another recipe, `changes` by dotted path; `short` names it after "with"; `effect` is
    what was seen elsewhere and `source` where. `measured` says what it did here or on the starter, in `points` of general
    accuracy; None: nobody has measured that. `here`: it was measured in runs of this home. `there` is the run that did it
    already, where that was looked for."""

    name: str
    title: str
    short: str
    effect: str
    source: str
    recipe: str | None = None
    changes: dict[str, Any] = {}
    measured: str = ""
    points: float | None = None
    here: bool = False
    there: Run | None = None


# Less than a point is no real drop either (engine/report/verdicts.py).
LEAST_POINTS = 1.0


def of(run_spec: RunSpec, workspace: Workspace | None = None, lost: float | None = None) -> list[Remedy]:
    """Return what a run leaves to be tried, ordered by what was measured: what helped most first, then what nobody has
    measured. What was measured and did not help is none. Runs of `workspace` count before those on the starter
    (measured.py). `lost`: the most points this run lost of a benchmark; more than that no remedy gives back."""
    ways = (_replay, _held, _beta, _rank, _rate, _oft, _freeze)
    found, effects = [], measured.effects(run_spec, workspace)
    for way in ways:
        if (remedy := way(run_spec)) is None:
            continue
        effect = effects.get(remedy.name)
        if effect is None:
            found.append(msgspec.structs.replace(remedy, measured=t("Not measured here, nor on the starter.")))
        elif effect.points >= LEAST_POINTS:
            told = {"measured": effect.sentence, "points": effect.points, "here": effect.here}
            if lost is not None and effect.points > lost:
                most = t("This run lost {lost} points, so no more than that can come back.", lost=f"{lost:.1f}")
                told["measured"] = joined(effect.sentence, most)
            found.append(msgspec.structs.replace(remedy, **told))
    return sorted(found, key=lambda one: math.inf if one.points is None else -one.points)


def best(found: Sequence[Remedy]) -> Remedy | None:
    """Return the remedy that runs of this home support best; None where none of them says anything."""
    return next((one for one in found if one.here), None)


def _replay(run_spec: RunSpec) -> Remedy | None:
    if not OBJECTIVES[run_spec.objective].replays or run_spec.train.replay_share >= 0.5:
        return None
    share = more_replay(run_spec.train.replay_share)
    return Remedy(
        name="replay",
        title=t("More replay: {share} %", share=f"{100 * share:g}"),
        short=t("more replay ({share} %)", share=f"{100 * share:g}"),
        effect=t("Elsewhere, with 1 % of general rows the general loss stayed almost where it was."),
        source="arXiv 2502.06042",
        changes={"train.replay_share": share},
    )


def _held(run_spec: RunSpec) -> Remedy | None:
    """Held to the base instead of general rows: together they were not measured."""
    trains_alone = run_spec.machine.backend != "unsloth" and counts.processes(run_spec) == 1
    if run_spec.objective != "sft" or run_spec.objective_args.keep != "plain" or not trains_alone:
        return None
    return Remedy(
        name="kl",
        title=t("Held to what the base says, without general rows"),
        short=t("the base's answers to hold it"),
        effect=t(
            "On the starter the new facts were chosen as often; with an adapter they were said less exactly, by far so with "
            "OFT."
        ),
        source="arXiv 2605.29498",
        changes={"objective_args.keep": "kl", "train.replay_share": 0.0},
    )


def _beta(run_spec: RunSpec) -> Remedy | None:
    usual_beta = OBJECTIVES[run_spec.objective].usual_beta
    if usual_beta is None:
        return None
    beta = min(objectives.MOST_BETA, 2 * (run_spec.objective_args.beta or usual_beta))
    return Remedy(
        name="beta",
        title=t("A higher beta: {beta}", beta=f"{beta:g}"),
        short=t("a higher beta ({beta})", beta=f"{beta:g}"),
        effect=t("Beta holds the model to its base: how far it moves predicts how much it forgets."),
        source="arXiv 2509.04259",
        changes={"objective_args.beta": beta},
    )


def _rank(run_spec: RunSpec) -> Remedy | None:
    if run_spec.adapter != "lora" or run_spec.adapter_args.rank <= 1:
        return None
    rank, alpha = run_spec.adapter_args.rank // 2, max(1, run_spec.adapter_args.alpha // 2)
    return Remedy(
        name="rank",
        title=t("A lower rank: {rank}", rank=rank),
        short=t("a lower rank ({rank})", rank=rank),
        effect=t(
            "General accuracy after 16 epochs of code, from about 65 %: 61 % at rank 16, 51 % at rank 64, 41 % with "
            "all weights. It also learned less."
        ),
        source="arXiv 2405.09673, table S6",
        changes={"adapter_args.rank": rank, "adapter_args.alpha": alpha},
    )


def _rate(run_spec: RunSpec) -> Remedy:
    rate = LOWER_RATE * run_spec.train.learning_rate
    return Remedy(
        name="rate",
        title=t("A lower rate: {rate}", rate=f"{rate:g}"),
        short=t("a lower rate ({rate})", rate=f"{rate:g}"),
        effect=t("A lower rate forgets less, and takes more steps to learn as much."),
        source="arXiv 2605.26097",
        changes={"train.learning_rate": rate},
    )


def _oft(run_spec: RunSpec) -> Remedy | None:
    if run_spec.objective != "sft" or run_spec.adapter == "oft":
        return None
    return Remedy(
        name="oft",
        title=t("OFT: turn the weights, never stretch them"),
        short=t("OFT"),
        effect=t(
            "A Llama of 3B that learned mathematics: the loss on Wikipedia rose by 0.041 nats with OFT, 0.050 with "
            "LoRA of rank 32. One benchmark, so measure it."
        ),
        source=t("peft's method comparison on MetaMathQA"),
        recipe="qoft" if run_spec.quantize == "4bit" else "oft",
    )


def _freeze(run_spec: RunSpec) -> Remedy | None:
    if run_spec.objective != "sft" or str(run_spec.layers).startswith("bottom_frozen"):
        return None
    return Remedy(
        name="freeze",
        title=t("Freeze the lower half of the layers"),
        short=t("the lower half of the layers frozen"),
        effect=t("Below 3B parameters, freezing the lower 25 to 50 % did as well as full fine-tuning or better."),
        source="Appl. Sci. 15(19), 10434",
        recipe="freeze-bottom",
    )


def done(run: ScoredRun, remedy: Remedy, runs: Sequence[Run]) -> Run | None:
    """Return the newest finished run that is this one with a remedy already, and was scored: to train it again would only
    repeat that. `runs` are all there are, newest first."""
    differ = ("recipe",) if remedy.recipe else tuple(remedy.changes)
    wanted = (run.spec.dataset.id, run.spec.base.ref, remedy.recipe or run.spec.recipe.name)
    for other in runs:
        if other.status != "finished" or (other.dataset, other.base, other.recipe) != wanted:
            continue
        with suppress(OSError, ValueError):  # deleted just now
            there = store.load_spec(run.workspace, other.id)
            is_changed = all(schema.value_at(there, path) == value for path, value in remedy.changes.items())
            is_it = is_changed and measured.without(there, differ) == measured.without(run.spec, differ)
            if is_it and items.benchmarks_of(run.workspace.run_dir(other.id)):
                return other
    return None


def draft(run: ScoredRun, remedy: Remedy) -> drafts.Draft:
    """Return the draft of the same run with a remedy: same base, rows, questions and seed."""
    came_from = t("{name}, with {change}", name=run.name, change=remedy.short)
    if remedy.recipe is None:
        made = drafts.of_spec(run.workspace, run.spec, came_from=came_from, changes=remedy.changes)
    else:
        changed = drafts.changed_settings(run.spec, run.workspace)
        made = drafts.Draft(
            recipe=remedy.recipe,
            base=drafts.base_of(run.spec),
            dataset=run.spec.dataset.id,
            overrides={path: value for path, value in changed.items() if path.startswith(_KEPT)},
            came_from=came_from,
        )
    return msgspec.structs.replace(made, reasons=[f"{remedy.effect} ({remedy.source})"])

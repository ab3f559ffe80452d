"""All problems of a spec before it starts, at once. Pure reading: nothing is loaded, nothing is changed."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import msgspec

from engine import machine
from engine.benchmarks import library, shipped
from engine.check import DatasetError
from engine.data import datasets
from engine.estimate import cards, machine_choices, memory
from engine.models import alike, bases, shapes
from engine.plan import from_recipe, grading, judges
from engine.plan.plan import Plan
from engine.runs import admission, store
from engine.spec import OBJECTIVES, counts, objectives, schema, tolerances
from engine.words import Problem, Text, later
from engine.workspace import read_object

# What each tracker is called where it is imported from; transformers writes to tensorboard through either.
TRACKERS = {
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
# What an adapter may also sit on: output layers and embeddings.
OTHER_MODULES = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe")
# Kinds of adapters that put tokens of their own before a text: there is nothing to merge.
ADDS_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
# Room for events, logs and items beside the weights.
SPARE_BYTES = 100 * 2**20
# Full fine-tuning writes fp32 weights (4 bytes) and keeps two checkpoints of weights and two Adam moments (12 each).
FULL_BYTES_PER_PARAMETER = 28


class _Checks:
    """The problems of one plan, as they are found."""

    def __init__(self, plan: Plan):
        self.plan, self.spec, self.base, self.workspace = plan, plan.spec, plan.base, plan.workspace
        self.objective = OBJECTIVES[plan.spec.objective]
        self.found: list[Problem] = []

    def fault(self, rule: str, where: str, **parameters: str | int | float | bool | Text | None) -> None:
        self.found.append(Problem(rule=rule, where=where, parameters=parameters))


def problems(plan: Plan) -> list[Problem]:
    """Return everything that would make this run fail or mean nothing. `plan` is one of a recipe."""
    checks = _Checks(plan)
    checks.found += plan.base.problems
    checks.found += (one for one in admission.problems(plan.spec, plan.workspace) if one not in checks.found)
    if plan.target.is_here and (unseen := cards.unseen(machine.facts())) is not None:
        checks.found.append(unseen)
    checks.found += grading.problems(plan.spec, plan.workspace)
    checks.found += machine_choices.problems(plan.spec, plan.target.device, plan.base.shape)
    for check in (
        _check_devices, _check_names, _check_sizes, _check_targets, _check_kinds, _check_earlier,
        _check_objective_args, _check_keep, _check_judge, _check_replay, _check_held_out, _check_data, _check_rows,
        _check_memory, _check_merge, _check_disk,
    ):  # fmt: skip
        check(checks)
    return checks.found


def _check_names(checks: _Checks) -> None:
    """What is named must be there: benchmarks, and the tracker's library."""
    spec = checks.spec
    known = [shipped.HELD_OUT, *(one.name for one in library.available(checks.workspace))]
    for name in spec.evaluate.benchmarks:
        if name not in known:
            checks.found.append(library.unknown(name, known))
    tracker = TRACKERS.get(spec.train.report_to, ())
    if tracker and not any(importlib.util.find_spec(module) for module in tracker):
        checks.fault("tracker-missing", "train.report_to", name=spec.train.report_to, package=tracker[-1])


def _check_sizes(checks: _Checks) -> None:
    """Layers, ranks, blocks and rows must be within what the base has."""
    spec, base, args = checks.spec, checks.base, checks.spec.adapter_args
    try:
        counts.layer_indices(spec.layers, base.layers or 10**6)
    except ValueError as error:
        checks.fault("setting-value", "layers", value=str(spec.layers)[:60], reason=str(error))
    if spec.adapter == "lora" and base.hidden and args.rank > base.hidden:
        checks.fault("rank-too-large", "adapter_args.rank", rank=args.rank, hidden=base.hidden)
    if spec.adapter == "oft" and base.hidden and args.block_size > base.hidden:
        checks.fault("block-too-large", "adapter_args.block_size", size=args.block_size, hidden=base.hidden)
    if base.window_tokens and spec.train.max_length > base.window_tokens:
        checks.fault("window-too-long", "train.max_length", length=spec.train.max_length, window=base.window_tokens)


def _check_kinds(checks: _Checks) -> None:
    """What does not go together: bits, layers and general rows with what is trained; a judge where text is wanted."""
    spec, objective = checks.spec, checks.objective
    stored = checks.base.stored
    if stored is not None and stored.is_trainable:
        if spec.adapter == "full" or objective.is_judge:
            checks.fault("model-stored-whole", "base", bits=stored.bits)
            return
        if spec.quantize != stored.setting:
            checks.fault("model-stored-bits", "quantize", bits=stored.bits, asked=spec.quantize.removesuffix("bit"))
    if spec.adapter == "full" and spec.quantize != "none":
        checks.fault("quantize-full", "quantize", bits=spec.quantize.removesuffix("bit"))
    if spec.train.replay_share and not objective.replays:
        checks.fault("replay-sft-only", "train.replay_share")
    if objective.is_judge and (spec.quantize != "none" or spec.layers != "all"):
        checks.fault("reward-plain", "quantize" if spec.quantize != "none" else "layers")
    if checks.base.scores_only:
        checks.fault("base-reward", "base", ref=checks.base.ref)


def _check_earlier(checks: _Checks) -> None:
    """An adapter can be trained on where there is one, by what trains an adapter, and with the settings it was made with."""
    spec, base, where = checks.spec, checks.base, from_recipe.CONTINUE
    if base.kind != "run" or base.problems or base.folder is None:
        if spec.adapter_args.continues and not base.problems:
            checks.fault("continue-no-adapter", where, ref=base.ref[:80])
        return
    kind = str(read_object(base.folder / "adapter_config.json").get("peft_type") or "")
    if kind in ADDS_TOKENS:
        checks.fault("merge-adds-tokens", "base", ref=base.ref[:80], kind=kind)
    elif not spec.adapter_args.continues:
        return
    elif (earlier := from_recipe.earlier_adapter(base, checks.workspace)) is None:
        checks.fault("continue-no-adapter", where, ref=base.ref[:80])
    elif checks.objective.is_judge:
        checks.fault("continue-judge", where)
    elif spec.adapter == "full":
        checks.fault("continue-full", where)
    elif other := from_recipe.contradicted(spec, checks.plan.overrides, earlier):
        name, path = checks.plan.recipe.name if checks.plan.recipe is not None else spec.objective, other[0]
        asked, taken = (schema.value_at(one, path) for one in (spec, earlier))
        checks.fault("continue-recipe", where, recipe=name, setting=path, value=asked, taken=taken)
    else:
        for path in from_recipe.changed(checks.plan.overrides, spec):
            asked, taken = (str(one)[:60] for one in (checks.plan.overrides[path], schema.value_at(spec, path)))
            checks.fault("continue-setting", path, value=asked, taken=taken)


def _check_targets(checks: _Checks) -> None:
    """An adapter needs linear layers to sit on, and of those that were named at least one: GPT-2 has c_attn where others
    have q_proj. Layers can be frozen where they are told apart."""
    targets, shape = checks.spec.adapter_args.target_modules, checks.base.shape
    counted = shape.counted if shape is not None and not shape.is_estimated else None
    if shape is not None and counted is not None:
        if checks.spec.adapter != "full" and targets == "all-linear" and not counted.per_rank:
            checks.fault("targets-none", "adapter", kind=shape.layout)
        if checks.spec.layers != "all" and not counted.in_layers:
            checks.fault("layers-unknown", "layers", kind=shape.layout)
    if checks.spec.adapter == "full" or targets == "all-linear" or shape is None:
        return
    if targets == shapes.FEED_FORWARD:
        if not shape.feed_forward:
            known = ", ".join(dict.fromkeys(one.name for one in shape.linears))
            checks.fault("targets-no-feed-forward", "adapter_args.target_modules", known=known)
        return
    if shape.is_estimated:
        return
    linear = list(dict.fromkeys(one.name for one in shape.linears))
    named = {name.strip() for name in targets.split(",")}
    if not named & {*linear, *OTHER_MODULES} and not any("." in name for name in named):
        checks.fault("targets-unknown", "adapter_args.target_modules", names=targets[:80], known=", ".join(linear))


def _check_devices(checks: _Checks) -> None:
    """Several devices share the rows of a step. What compares rows of a batch with each other, or turns weights as it
    goes, is not shared: nobody has checked that it would learn the same."""
    spec, devices, facts = checks.spec, checks.spec.machine.devices, machine.facts()
    if (processes := counts.processes(spec)) == 1:
        return
    several = "machine.devices" if devices > 1 else "machine.nodes"
    shared = tuple(one.name for one in OBJECTIVES.values() if one.shares_devices)
    kinds = (("objective", spec.objective, shared), ("adapter", spec.adapter, ("full", "lora")),
             ("machine.backend", spec.machine.backend, ("auto", "plain")))  # fmt: skip
    for where, value, sound in kinds:
        if value not in sound:
            checks.fault("devices-kind", several, setting=where, value=value, sound=", ".join(sound))
    # a process computes on one slice of a card, and slices do not speak to each other (NVIDIA's MIG User Guide)
    most = (1 if facts.gpus[0].is_slice else len(facts.gpus)) if facts.gpus else facts.cores
    if devices > most:
        checks.fault("devices-missing", "machine.devices", devices=devices, most=most)
    try:
        counts.share_of_step(spec)
    except ValueError:
        checks.fault(
            "devices-share", several,
            devices=processes, batch=spec.train.batch_size, passes=spec.train.accumulation,
        )  # fmt: skip


def _check_objective_args(checks: _Checks) -> None:
    args, objective = checks.spec.objective_args, checks.objective
    least, most = objectives.LEAST_BETA, objectives.MOST_BETA
    if objective.has_reference and args.beta and not least <= args.beta <= most:
        checks.fault("beta-range", "objective_args.beta", beta=args.beta, least=least, most=most)
    if objective.weighs_labels and args.weights is not None and (len(args.weights) != 2 or min(args.weights) <= 0):
        checks.fault("kto-weights", "objective_args.weights")
    batch = checks.spec.train.batch_size
    if batch < objective.least_batch:
        checks.fault("kto-batch", "train.batch_size", size=batch, least=objective.least_batch)


def _check_keep(checks: _Checks) -> None:
    """What keeps more while training weighs the tokens of answers that are learned one by one, on one device."""
    keep, where, shape = checks.spec.objective_args.keep, "objective_args.keep", checks.base.shape
    if keep == "plain":
        return
    if checks.spec.objective != "sft":
        checks.fault("keep-sft-only", where, keep=keep, objective=checks.objective.label)
    if counts.processes(checks.spec) > 1:
        checks.fault("keep-devices", where, keep=keep)
    if keep != "skip_surprising" and shape is not None and shape.counted is not None and shape.counted.experts:
        checks.fault("keep-experts", where, keep=keep)


def _check_judge(checks: _Checks) -> None:
    """Refuse a PPO run whose reward model is missing, weak, or reads text otherwise than the base does."""
    if not checks.objective.needs_judge:
        return
    train, args, workspace = checks.spec.train, checks.spec.objective_args, checks.workspace
    where, fault = "objective_args.reward_model", checks.fault
    if args.answer_tokens >= train.max_length:
        fault("ppo-window", "objective_args.answer_tokens", tokens=args.answer_tokens, length=train.max_length)
    if train.early_stopping or train.keep_best:
        fault("ppo-no-loss", "train.early_stopping" if train.early_stopping else "train.keep_best")
    if args.reward_model is None:
        there = judges.fitting(workspace, checks.base, args.least_reward_accuracy)
        if there:
            names = "; ".join(f"{ref} ({judges.title(workspace, ref)})" for ref in there[:5])
            fault("ppo-judge-choose", where, judges=names)
        else:
            fault("ppo-no-reward", where, least=_percent(args.least_reward_accuracy))
        return
    ref, folder = args.reward_model[:80], judges.made_by(workspace, args.reward_model)
    try:
        told = store.load_spec(workspace, args.reward_model.removeprefix("run:")) if folder is not None else None
    except store.UnreadableSpec as error:
        fault(error.problem.rule, where, **error.problem.parameters)
        return
    except (OSError, ValueError):
        told = None
    if folder is None or told is None:
        fault("ppo-reward-missing", where, ref=ref)
        return
    if not OBJECTIVES[told.objective].is_judge:
        fault("ppo-not-reward", where, ref=ref, objective=told.objective)
        return
    for problem in bases.describe(args.reward_model, workspace).problems:
        fault(problem.rule, where, **problem.parameters)
    judged = judges.accuracy(folder.parent)
    if judged is None:
        fault("ppo-reward-unknown", where, ref=ref)
    elif judged.tuned < args.least_reward_accuracy:
        found, least = _percent(judged.tuned), _percent(args.least_reward_accuracy)
        fault("ppo-reward-weak", where, ref=ref, found=found, n=judged.n, least=least)
    if alike.reads_alike(checks.base, folder) is False:
        fault("ppo-tokenizer", where, ref=ref)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _check_replay(checks: _Checks) -> None:
    """A named data set of general rows must be one that can be learned from, and another one than the run's own."""
    spec, name, where = checks.spec, checks.spec.train.replay_data, "train.replay_data"
    if name is None or not spec.train.replay_share:
        return
    if name in (spec.dataset.id, spec.dataset.eval_id):
        checks.fault("replay-same", where)
        return
    try:
        report = datasets.load(checks.workspace, name).report
    except (DatasetError, OSError, ValueError):
        checks.fault("replay-data", where, id=name[:80], reason=later("there is no such data set"))
        return
    if report.type not in replay_types():
        checks.fault(
            "replay-data", where, id=name[:80], reason=later("it has {type}", type=objectives.rows_words(report.type))
        )
    elif not report.trainable:
        reason = later("{n} of its rows are bad", n=report.bad_rows)
        checks.fault("replay-data", where, id=name[:80], reason=reason)


def replay_types() -> tuple[str, ...]:
    """Return the types of rows that can be mixed in as general ones."""
    return tuple(kind for one in OBJECTIVES.values() if one.replays for kind in one.data_types)


def _check_held_out(checks: _Checks) -> None:
    """To keep the best weights, or to stop early, there must be rows to tell them by."""
    dataset, train = checks.spec.dataset, checks.spec.train
    if not tolerances.chooses(train):
        return
    if train.tolerance != "off" and not checks.objective.is_scored_on_its_way:
        checks.fault("tolerance-objective", "train.tolerance", objective=checks.objective.title)
    counts = checks.plan.evaluation
    # one half chooses, the other is reported
    if not (dataset.eval_share or dataset.eval_id) or (counts is not None and counts.unseen < 2):
        asked = (path for path in ("early_stopping", "keep_best") if getattr(train, path))
        checks.fault("needs-held-out", f"train.{next(asked, 'tolerance')}")
    elif train.early_stopping:
        _check_patience(checks)


def _check_patience(checks: _Checks) -> None:
    """A run can stop early only where a loss was measured, then so many others that are no lower, and some of the run is
    left after that."""
    train, steps = checks.spec.train, checks.plan.steps
    measured = counts.evaluations(train, steps) if steps else train.evaluations
    most, needed = measured - 2, train.early_stopping + 2
    if train.early_stopping <= most or not checks.objective.loss_falls:
        return
    remedies = []
    if most >= 1:
        remedies.append(later("set train.early_stopping to {most} or less", most=most))
    if needed <= 100 and (not steps or needed <= steps):
        remedies.append(later("set train.evaluations to {needed} or more", needed=_evaluations(train, steps, needed)))
    remedies.append(later("turn it off and set train.keep_best, which keeps the best weights without stopping"))
    remedy = remedies[0] if len(remedies) == 1 else later("{one}; or {other}", one=remedies[0], other=remedies[1])
    checks.fault(
        "patience-idle", "train.early_stopping",
        patience=train.early_stopping, measured=measured, needed=needed, remedy=remedy,
    )  # fmt: skip


def _evaluations(train: schema.Train, steps: int | None, needed: int) -> int:
    """The least setting by which the loss is measured so often: a run of few steps cannot be cut into any number."""
    if not steps:
        return needed
    for number in range(needed, 100):
        if counts.evaluations(msgspec.structs.replace(train, evaluations=number), steps) >= needed:
            return number
    return 100


def _check_memory(checks: _Checks) -> None:
    """Refuse only what cannot fit: when even the low end of the estimate is above the device's memory, and the base is
    known well enough to say so."""
    plan = checks.plan
    if plan.room != "none" or (plan.base.shape is not None and plan.base.shape.is_estimated):
        return
    change = plan.smaller
    remedy = later("choose a smaller base; no setting makes this one fit") if change is None else remedy_words(change)
    weights_bytes = (plan.memory.parts or {}).get("weights", 0)
    if plan.target.device.name == "cuda" and weights_bytes > plan.target.memory_bytes:
        checks.fault(
            "memory-base", "base",
            need=memory.size_words(weights_bytes), have=memory.size_words(plan.target.memory_bytes), remedy=remedy,
            recipe=plan.spec.recipe.name,
        )  # fmt: skip
        return
    low, high = memory.range_words(plan.memory, plan.target.memory_bytes)
    checks.fault(
        "memory-too-small", "train.batch_size", low=low, high=high, remedy=remedy,
        device=plan.target.name, have=memory.size_words(plan.target.memory_bytes),
    )  # fmt: skip


def _check_merge(checks: _Checks) -> None:
    """An adapter that is merged before the training is merged into whole numbers, also where what comes out is held in
    fewer bits: for a moment the device holds all of them (engine/train/load.py)."""
    spec, base, device = checks.spec, checks.base, checks.plan.target.device
    if spec.quantize == "none" or spec.adapter_args.continues or base.adapter_of is None or not base.parameters:
        return
    need = base.parameters * (2 if device.name == "cuda" else 4)
    if need > device.memory_bytes:
        checks.fault(
            "merge-memory",
            "base",
            ref=base.ref[:80],
            need=memory.size_words(need),
            have=memory.size_words(device.memory_bytes),
        )


def remedy_words(change: dict[str, Any]) -> Text:
    """Return a change of settings that makes a run fit, as something to do."""
    names = ", ".join(f"{path} = {_shown(value)}" for path, value in change.items() if path != "adapter")
    if "adapter" in change:
        return later("choose the recipe lora, which fits with: {settings}", settings=names or later("these settings"))
    return later("this would fit: {settings}", settings=names)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_disk(checks: _Checks) -> None:
    """There must be room for what a run writes."""
    base, root = checks.base, checks.workspace.root
    if not base.weights_bytes or not base.parameters:
        return
    made = FULL_BYTES_PER_PARAMETER * base.parameters if checks.spec.adapter == "full" else base.weights_bytes // 10
    needed = SPARE_BYTES + made + checks.plan.kept_bytes
    place = next((one for one in (root, root.parent) if one.exists()), "/")
    free = shutil.disk_usage(place).free
    if free < needed:
        checks.fault("disk-too-small", "base", free=free // 2**20, needed=needed // 2**20)


def _check_rows(checks: _Checks) -> None:
    """With this base and window some row must be left to train on."""
    if checks.plan.row_reader_problem is not None:
        checks.found.append(msgspec.structs.replace(checks.plan.row_reader_problem, where="base"))
    found = checks.plan.row_readiness
    if found is None or any(
        one.where in ("dataset", "train.max_length", "objective_args.answer_tokens") for one in checks.found
    ):
        return  # not known yet, or no question any more
    problem = found.stops(checks.plan.window)
    if problem is not None:
        where = "train.max_length" if problem.rule == "data-nothing-trained" else "dataset"
        checks.found.append(msgspec.structs.replace(problem, where=where))


def _check_data(checks: _Checks) -> None:
    """The rows must be of a kind that the objective reads, all good, and enough."""
    plan, dataset, recipe = checks.plan, checks.plan.dataset, checks.plan.recipe
    if dataset is None or recipe is None:
        return
    report, fault = dataset.report, checks.fault
    wanted = recipe.data_types if plan.spec.objective == recipe.objective else checks.objective.data_types
    if report.type not in wanted:
        fault("data-type", "dataset", type=objectives.rows_words(report.type), wanted=objectives.rows_words(*wanted))
    elif not report.trainable:
        fault("data-bad-rows", "dataset", bad=report.bad_rows, rows=report.rows)
    elif report.rows < 2:
        fault("data-too-few", "dataset", rows=report.rows)
    elif checks.objective.weighs_labels and report.label_counts and not all(report.label_counts.values()):
        fault("kto-one-label", "dataset", label="true" if report.label_counts["true"] else "false")
    if plan.spec.dataset.eval_id:
        try:
            evaluation = datasets.load(checks.workspace, plan.spec.dataset.eval_id).report
        except (DatasetError, OSError, ValueError):
            fault("dataset-missing", "dataset.eval_id", id=plan.spec.dataset.eval_id[:80])
        else:
            if not evaluation.trainable or evaluation.type not in wanted:
                fault("data-eval", "dataset.eval_id")

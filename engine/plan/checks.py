"""All problems of a spec before it starts, at once. Pure reading: nothing is loaded, nothing is changed."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import msgspec

from engine import machine
from engine.benchmarks import library, shipped
from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.estimate import choices, memory
from engine.models import Base, alike, bases
from engine.plan import judges
from engine.plan.takes import device, memory_of, remedy_words, setup_here
from engine.runs import store
from engine.spec import RunSpec, objectives, recipes
from engine.spec import counts as spec_counts
from engine.words import Problem, Text, later
from engine.workspace import Workspace

# What each tracker is called where it is imported from; transformers writes to tensorboard through either.
TRACKERS = {
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
# What an adapter may also sit on: output layers and embeddings.
OTHER_MODULES = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe")
# Room for events, logs and items beside the weights.
SPARE_BYTES = 100 * 2**20
# Full fine-tuning writes fp32 weights (4 bytes) and keeps two checkpoints of weights and two Adam moments (12 each).
FULL_BYTES_PER_PARAMETER = 28


def problems(
    run_spec: RunSpec, recipe: recipes.Recipe, base: Base, dataset: Dataset | None, workspace: Workspace
) -> list[Problem]:
    """Return everything that would make this run fail or mean nothing."""
    found: list[Problem] = []

    def fault(rule: str, where: str, **parameters: str | int | float | bool | Text | None) -> None:
        found.append(Problem(rule=rule, where=where, parameters=parameters))

    for where, value, built in (
        ("objective", run_spec.objective, objectives.OBJECTIVES),
        ("adapter", run_spec.adapter, objectives.ADAPTERS),
        ("quantize", run_spec.quantize, objectives.QUANTIZE),
    ):
        if value not in built:
            fault("not-built", where, value=value, built=", ".join(built))
    found += choices.problems(run_spec, device(), base.shape)
    _check_devices(run_spec, fault)
    known = [shipped.HELD_OUT, *(one.name for one in library.available(workspace))]
    for name in run_spec.evaluate.benchmarks:
        if name not in known:
            fault("benchmark-unknown", "evaluate.benchmarks", name=name[:80], names=", ".join(known))
    tracker = TRACKERS.get(run_spec.train.report_to, ())
    if tracker and not any(importlib.util.find_spec(module) for module in tracker):
        fault("tracker-missing", "train.report_to", name=run_spec.train.report_to, package=tracker[-1])
    try:
        spec_counts.layer_indices(run_spec.layers, base.layers or 10**6)
    except ValueError as error:
        fault("setting-value", "layers", value=str(run_spec.layers)[:60], reason=str(error))
    if run_spec.adapter == "lora" and base.hidden and run_spec.adapter_args.rank > base.hidden:
        fault("rank-too-large", "adapter_args.rank", rank=run_spec.adapter_args.rank, hidden=base.hidden)
    if run_spec.adapter == "oft" and base.hidden and run_spec.adapter_args.block_size > base.hidden:
        fault("block-too-large", "adapter_args.block_size", size=run_spec.adapter_args.block_size, hidden=base.hidden)
    if run_spec.adapter == "full" and run_spec.quantize != "none":
        fault("quantize-full", "quantize", bits=run_spec.quantize.removesuffix("bit"))
    if base.window_tokens and run_spec.train.max_length > base.window_tokens:
        fault("window-too-long", "train.max_length", length=run_spec.train.max_length, window=base.window_tokens)
    _check_targets(run_spec, base, fault)
    if run_spec.train.replay_share and run_spec.objective in ("dpo", "kto", "reward", "ppo"):
        fault("replay-sft-only", "train.replay_share")
    if run_spec.objective == "reward" and (run_spec.quantize != "none" or run_spec.layers != "all"):
        fault("reward-plain", "quantize" if run_spec.quantize != "none" else "layers")
    if base.scores_only:
        fault("base-reward", "base", ref=base.ref)
    _check_objective_args(run_spec, fault)
    if run_spec.objective == "ppo":
        _check_judge(run_spec, base, workspace, fault)
    _check_replay(run_spec, workspace, fault)
    held_out = run_spec.dataset.eval_share or run_spec.dataset.eval_id
    if not held_out and (run_spec.train.early_stopping or run_spec.train.keep_best):
        fault("needs-held-out", "train.early_stopping" if run_spec.train.early_stopping else "train.keep_best")
    if dataset is not None:
        _check_data(run_spec, recipe, dataset, workspace, fault)
    _check_memory(run_spec, base, dataset, workspace, fault)
    if base.weights_bytes and base.parameters:
        root = workspace.root if workspace.root.exists() else workspace.root.parent
        full = FULL_BYTES_PER_PARAMETER * base.parameters
        needed = SPARE_BYTES + (full if run_spec.adapter == "full" else base.weights_bytes // 10)
        free = shutil.disk_usage(root if root.exists() else "/").free
        if free < needed:
            fault("disk-too-small", "base", free=free // 2**20, needed=needed // 2**20)
    return found


def _check_targets(run_spec: RunSpec, base: Base, fault: Any) -> None:
    """An adapter needs at least one of the modules that were named: GPT-2 has c_attn where others have q_proj."""
    targets = run_spec.adapter_args.target_modules
    if run_spec.adapter == "full" or targets == "all-linear" or base.shape is None:
        return
    linear = list(dict.fromkeys(one.name for one in base.shape.linears))
    named = {name.strip() for name in targets.split(",")}
    if not named & {*linear, *OTHER_MODULES} and not any("." in name for name in named):
        fault("targets-unknown", "adapter_args.target_modules", names=targets[:80], known=", ".join(linear))


def _check_devices(run_spec: RunSpec, fault: Any) -> None:
    """Several devices share the rows of a step. What compares rows of a batch with each other, or turns weights as it
    goes, is not shared: nobody has checked that it would learn the same."""
    devices, facts = run_spec.machine.devices, machine.facts()
    if devices == 1:
        return
    kinds = (("objective", run_spec.objective, ("sft",)), ("adapter", run_spec.adapter, ("full", "lora")),
             ("quantize", run_spec.quantize, ("none",)),
             ("machine.backend", run_spec.machine.backend, ("auto", "plain")))  # fmt: skip
    for where, value, sound in kinds:
        if value not in sound:
            fault("devices-kind", "machine.devices", setting=where, value=value, sound=", ".join(sound))
    most = len(facts.gpus) or facts.cores
    if devices > most:
        fault("devices-missing", "machine.devices", devices=devices, most=most)
    try:
        spec_counts.share_of_step(run_spec)
    except ValueError:
        fault(
            "devices-share", "machine.devices",
            devices=devices, batch=run_spec.train.batch_size, passes=run_spec.train.accumulation,
        )  # fmt: skip


def _check_objective_args(run_spec: RunSpec, fault: Any) -> None:
    args = run_spec.objective_args
    if (
        run_spec.objective in ("dpo", "kto", "ppo")
        and args.beta
        and not objectives.LEAST_BETA <= args.beta <= objectives.MOST_BETA
    ):
        fault(
            "beta-range", "objective_args.beta", beta=args.beta, least=objectives.LEAST_BETA, most=objectives.MOST_BETA
        )
    if run_spec.objective == "kto":
        if args.weights is not None and (len(args.weights) != 2 or min(args.weights) <= 0):
            fault("kto-weights", "objective_args.weights")
        if run_spec.train.batch_size < objectives.LEAST_KTO_BATCH:
            fault("kto-batch", "train.batch_size", size=run_spec.train.batch_size, least=objectives.LEAST_KTO_BATCH)


def _check_judge(run_spec: RunSpec, base: Base, workspace: Workspace, fault: Any) -> None:
    """Refuse a PPO run whose reward model is missing, weak, or reads text otherwise than the base does."""
    args, where = run_spec.objective_args, "objective_args.reward_model"
    if args.answer_tokens >= run_spec.train.max_length:
        fault("ppo-window", "objective_args.answer_tokens", tokens=args.answer_tokens, length=run_spec.train.max_length)
    if run_spec.train.early_stopping or run_spec.train.keep_best:
        fault("ppo-no-loss", "train.early_stopping" if run_spec.train.early_stopping else "train.keep_best")
    if args.reward_model is None:
        fault("ppo-no-reward", where, least=_percent(args.least_reward_accuracy))
        return
    ref, folder = args.reward_model[:80], judges.made_by(workspace, args.reward_model)
    try:
        told = store.load_spec(workspace, args.reward_model.removeprefix("run:")) if folder is not None else None
    except (OSError, ValueError, msgspec.MsgspecError):
        told = None
    if folder is None or told is None:
        fault("ppo-reward-missing", where, ref=ref)
        return
    if told.objective != "reward":
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
    if alike.reads_alike(base, folder) is False:
        fault("ppo-tokenizer", where, ref=ref)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _check_replay(run_spec: RunSpec, workspace: Workspace, fault: Any) -> None:
    """A named data set of general rows must be one that SFT can read, and another one than the run's own."""
    name = run_spec.train.replay_data
    if name is None or not run_spec.train.replay_share:
        return
    if name in (run_spec.dataset.id, run_spec.dataset.eval_id):
        fault("replay-same", "train.replay_data")
        return
    try:
        report = datasets.load(workspace, name).report
    except (DatasetError, OSError, ValueError):
        fault("replay-data", "train.replay_data", id=name[:80], reason=later("there is no such data set"))
        return
    if report.type not in objectives.OBJECTIVE_DATA["sft"]:
        fault(
            "replay-data",
            "train.replay_data",
            id=name[:80],
            reason=later("it is {type}", type=report.type or "unknown"),
        )
    elif not report.trainable:
        fault(
            "replay-data", "train.replay_data", id=name[:80], reason=later("{n} of its rows are bad", n=report.bad_rows)
        )


def _check_memory(run_spec: RunSpec, base: Base, dataset: Dataset | None, workspace: Workspace, fault: Any) -> None:
    """Refuse only what cannot fit: when even the low end of the estimate is above the device's memory."""
    found, facts = memory_of(run_spec, base, dataset, workspace), machine.facts()
    if base.shape is None or found.parts is None or found.low_bytes <= facts.device_memory_bytes:
        return
    setup = setup_here(run_spec, base, dataset, workspace)
    change = memory.smaller_settings(base.shape, setup, device=facts.device, memory_bytes=facts.device_memory_bytes)
    remedy = later("choose a smaller base; no setting makes this one fit")
    remedy = remedy if change is None else remedy_words(change)
    fault(
        "memory-too-small",
        "train.batch_size",
        low=memory.size_words(found.low_bytes),
        high=memory.size_words(found.high_bytes),
        device=facts.device,
        have=memory.size_words(facts.device_memory_bytes),
        remedy=remedy,
    )


def _check_data(run_spec: RunSpec, recipe: recipes.Recipe, dataset: Dataset, workspace: Workspace, fault: Any) -> None:
    report, wanted = dataset.report, recipe.data_types
    if run_spec.objective != recipe.objective:
        wanted = objectives.OBJECTIVE_DATA.get(run_spec.objective, wanted)
    if report.type not in wanted:
        fault("data-type", "dataset", type=report.type or "unknown", wanted=" or ".join(wanted))
    elif not report.trainable:
        fault("data-bad-rows", "dataset", bad=report.bad_rows, rows=report.rows)
    elif report.rows < 2:
        fault("data-too-few", "dataset", rows=report.rows)
    elif run_spec.objective == "kto" and report.label_counts and not all(report.label_counts.values()):
        fault("kto-one-label", "dataset", label="true" if report.label_counts["true"] else "false")
    if run_spec.dataset.eval_id:
        try:
            evaluation = datasets.load(workspace, run_spec.dataset.eval_id).report
        except (DatasetError, OSError, ValueError):
            fault("dataset-missing", "dataset.eval_id", id=run_spec.dataset.eval_id[:80])
        else:
            if not evaluation.trainable or evaluation.type not in wanted:
                fault("data-eval", "dataset.eval_id")

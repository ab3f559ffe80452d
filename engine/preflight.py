"""All problems of a spec before it starts, at once. Pure reading: nothing is loaded, nothing is changed."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from typing import Any

import msgspec

from engine import advisor, bases, calibration, choices, datasets, fit, judges, lengths, machine, starter, timing
from engine.bases import Base
from engine.benchmarks import library, shipped
from engine.events import Failed
from engine.runs import admission, store
from engine.spec import RunSpec, recipes, schema, split
from engine.spec import counts as spec_counts
from engine.words import Problem, Text, later, t
from engine.workspace import Workspace

# What this version can train. The other values of the spec are there for recipes still to come.
OBJECTIVES = ("sft", "dpo", "kto", "reward", "ppo")
# What an objective that is not the recipe's own reads: `--set objective=dpo` turns any recipe into one for pairs.
OBJECTIVE_DATA = {
    "sft": ["prompt-completion", "language-modeling"],
    "dpo": ["preference"],
    "kto": ["unpaired-preference"],
    "reward": ["preference"],
    "ppo": ["prompt-only"],
}
ADAPTERS = ("full", "lora", "oft")
QUANTIZE = ("none", "8bit", "4bit")
# What each tracker is called where it is imported from; transformers writes to tensorboard through either.
TRACKERS = {
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
# Below, preferences hardly hold the model to its reference; above, they hardly move it. The guide's 0.5 to 1.0 is inside.
LEAST_BETA, MOST_BETA, USUAL_BETA = 0.001, 1.0, 0.1
# PPOConfig of TRL 1.12 (kl_coef); arXiv 2203.02155, appendix C.4, takes 0.02.
USUAL_PPO_BETA = 0.05
# KTO compares the answers of a batch with each other (kto_trainer.py of TRL 1.12 refuses 1).
LEAST_KTO_BATCH = 4
# What an adapter may also sit on: output layers and embeddings.
OTHER_MODULES = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe")
# Room for events, logs and items beside the weights.
SPARE_BYTES = 100 * 2**20
# Full fine-tuning writes fp32 weights (4 bytes) and keeps two checkpoints of weights and two Adam moments (12 each).
FULL_BYTES_PER_PARAMETER = 28


def defaults_for(base: Base, dataset: datasets.Dataset | None) -> dict[str, Any]:
    """Return the settings that follow from the base and the data: the benchmark the base can be asked, and the
    evaluation data that belongs to the data set."""
    found: dict[str, Any] = {}
    if base.is_toy:
        found["evaluate.benchmarks"] = [starter.BENCHMARK_NAME]
    else:
        quick = library.sets(toy=False)["quick"]
        found["evaluate.benchmarks"], found["evaluate.limit"] = list(quick.benchmarks), quick.limit
    if dataset is not None and dataset.eval_id:
        found["dataset.eval_id"] = dataset.eval_id
    if base.window_tokens:
        found["train.max_length"] = base.window_tokens
    return found


def build(
    workspace: Workspace,
    recipe_name: str,
    *,
    base_ref: str,
    dataset_id: str | None,
    overrides: dict[str, Any],
) -> tuple[RunSpec | None, list[Problem]]:
    """Resolve a recipe on a base and a data set and return the spec with everything that keeps it from starting.

    The spec is None only when there is no such recipe. Both the command line and the Train page come through here.
    """
    try:
        recipe = recipes.recipes().get(recipe_name)
    except recipes.RecipeError as error:
        return None, [Problem(rule="recipe-broken", where="recipe", parameters={"reason": str(error)})]
    if recipe is None:
        names = ", ".join(recipes.recipes())
        problem = Problem(rule="recipe-unknown", where="recipe", parameters={"name": recipe_name[:80], "names": names})
        return None, [problem]
    base = bases.describe(base_ref, workspace)
    dataset, found = _dataset(workspace, dataset_id)
    settings = defaults_for(base, dataset)
    if "train.max_length" in settings:
        default = recipe.default("train.max_length", base.parameters)
        usual = schema.Train().max_length if default is None else default.value
        settings["train.max_length"] = min(usual, settings["train.max_length"])
    run_spec, wrong = recipes.resolve(
        recipe,
        base=base.spec_ref,
        revision=base.revision if base.kind == "hub" else None,
        parameters=base.parameters,
        dataset_id=dataset_id or "",
        overrides={**settings, **overrides},
    )
    run_spec = resolve_objective(run_spec, dataset, base, workspace)
    found += base.problems
    found += (one for one in admission.problems(run_spec, workspace) if one not in found)
    return run_spec, [*wrong, *found, *problems(run_spec, recipe, base, dataset, workspace)]


def resolve_objective(run_spec: RunSpec, dataset: datasets.Dataset | None, base: Base, workspace: Workspace) -> RunSpec:
    """Fill in what follows from the objective: beta, KTO's weights from the counts of good and bad rows, PPO's reward
    model, and no questions for a reward model, which writes no answers."""
    args, evaluate = run_spec.objective_args, run_spec.evaluate
    if run_spec.objective in ("dpo", "kto") and args.beta is None:
        args = msgspec.structs.replace(args, beta=USUAL_BETA)
    if run_spec.objective == "ppo":
        beta = USUAL_PPO_BETA if args.beta is None else args.beta
        judge = args.reward_model or judges.newest(workspace, base, args.least_reward_accuracy)
        args = msgspec.structs.replace(args, beta=beta, reward_model=judge)
    counts = (dataset.report.label_counts if dataset is not None else None) or {}
    if run_spec.objective == "kto" and args.weights is None and counts.get("true") and counts.get("false"):
        args = msgspec.structs.replace(args, weights=list(spec_counts.kto_weights(counts["true"], counts["false"])))
    if run_spec.objective == "reward":
        evaluate = msgspec.structs.replace(evaluate, benchmarks=[])
    return msgspec.structs.replace(run_spec, objective_args=args, evaluate=evaluate)


def _dataset(workspace: Workspace, dataset_id: str | None) -> tuple[datasets.Dataset | None, list[Problem]]:
    if not dataset_id:
        return None, [Problem(rule="dataset-none", where="dataset")]
    try:
        return datasets.load(workspace, dataset_id), []
    except (datasets.DatasetError, OSError, ValueError):
        return None, [Problem(rule="dataset-missing", where="dataset", parameters={"id": dataset_id[:80]})]


def problems(
    run_spec: RunSpec, recipe: recipes.Recipe, base: Base, dataset: datasets.Dataset | None, workspace: Workspace
) -> list[Problem]:
    """Return everything that would make this run fail or mean nothing."""
    found: list[Problem] = []

    def say(rule: str, where: str, **parameters: str | int | float | bool | Text | None) -> None:
        found.append(Problem(rule=rule, where=where, parameters=parameters))

    for where, value, built in (
        ("objective", run_spec.objective, OBJECTIVES),
        ("adapter", run_spec.adapter, ADAPTERS),
        ("quantize", run_spec.quantize, QUANTIZE),
    ):
        if value not in built:
            say("not-built", where, value=value, built=", ".join(built))
    found += choices.problems(run_spec, device(), base.shape)
    _check_devices(run_spec, say)
    known = [shipped.HELD_OUT, *(one.name for one in library.available(workspace))]
    for name in run_spec.evaluate.benchmarks:
        if name not in known:
            say("benchmark-unknown", "evaluate.benchmarks", name=name[:80], names=", ".join(known))
    tracker = TRACKERS.get(run_spec.train.report_to, ())
    if tracker and not any(importlib.util.find_spec(module) for module in tracker):
        say("tracker-missing", "train.report_to", name=run_spec.train.report_to, package=tracker[-1])
    try:
        spec_counts.layer_indices(run_spec.layers, base.layers or 10**6)
    except ValueError as error:
        say("setting-value", "layers", value=str(run_spec.layers)[:60], reason=str(error))
    if run_spec.adapter == "lora" and base.hidden and run_spec.adapter_args.rank > base.hidden:
        say("rank-too-large", "adapter_args.rank", rank=run_spec.adapter_args.rank, hidden=base.hidden)
    if run_spec.adapter == "oft" and base.hidden and run_spec.adapter_args.block_size > base.hidden:
        say("block-too-large", "adapter_args.block_size", size=run_spec.adapter_args.block_size, hidden=base.hidden)
    if run_spec.adapter == "full" and run_spec.quantize != "none":
        say("quantize-full", "quantize", bits=run_spec.quantize.removesuffix("bit"))
    if base.window_tokens and run_spec.train.max_length > base.window_tokens:
        say("window-too-long", "train.max_length", length=run_spec.train.max_length, window=base.window_tokens)
    _check_targets(run_spec, base, say)
    if run_spec.train.replay_share and run_spec.objective in ("dpo", "kto", "reward", "ppo"):
        say("replay-sft-only", "train.replay_share")
    if run_spec.objective == "reward" and (run_spec.quantize != "none" or run_spec.layers != "all"):
        say("reward-plain", "quantize" if run_spec.quantize != "none" else "layers")
    if base.scores_only:
        say("base-reward", "base", ref=base.ref)
    _check_objective_args(run_spec, say)
    if run_spec.objective == "ppo":
        _check_judge(run_spec, base, workspace, say)
    _check_replay(run_spec, workspace, say)
    held_out = run_spec.dataset.eval_share or run_spec.dataset.eval_id
    if not held_out and (run_spec.train.early_stopping or run_spec.train.keep_best):
        say("needs-held-out", "train.early_stopping" if run_spec.train.early_stopping else "train.keep_best")
    if dataset is not None:
        _check_data(run_spec, recipe, dataset, workspace, say)
    _check_memory(run_spec, base, dataset, workspace, say)
    if base.weights_bytes and base.parameters:
        root = workspace.root if workspace.root.exists() else workspace.root.parent
        full = FULL_BYTES_PER_PARAMETER * base.parameters
        needed = SPARE_BYTES + (full if run_spec.adapter == "full" else base.weights_bytes // 10)
        free = shutil.disk_usage(root if root.exists() else "/").free
        if free < needed:
            say("disk-too-small", "base", free=free // 2**20, needed=needed // 2**20)
    return found


def _check_targets(run_spec: RunSpec, base: Base, say: Any) -> None:
    """An adapter needs at least one of the modules that were named: GPT-2 has c_attn where others have q_proj."""
    targets = run_spec.adapter_args.target_modules
    if run_spec.adapter == "full" or targets == "all-linear" or base.shape is None:
        return
    linear = list(dict.fromkeys(one.name for one in base.shape.linears))
    named = {name.strip() for name in targets.split(",")}
    if not named & {*linear, *OTHER_MODULES} and not any("." in name for name in named):
        say("targets-unknown", "adapter_args.target_modules", names=targets[:80], known=", ".join(linear))


def _check_devices(run_spec: RunSpec, say: Any) -> None:
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
            say("devices-kind", "machine.devices", setting=where, value=value, sound=", ".join(sound))
    most = len(facts.gpus) or facts.cores
    if devices > most:
        say("devices-missing", "machine.devices", devices=devices, most=most)
    try:
        spec_counts.share_of_step(run_spec)
    except ValueError:
        say(
            "devices-share", "machine.devices",
            devices=devices, batch=run_spec.train.batch_size, passes=run_spec.train.accumulation,
        )  # fmt: skip


def _check_objective_args(run_spec: RunSpec, say: Any) -> None:
    args = run_spec.objective_args
    if run_spec.objective in ("dpo", "kto", "ppo") and args.beta and not LEAST_BETA <= args.beta <= MOST_BETA:
        say("beta-range", "objective_args.beta", beta=args.beta, least=LEAST_BETA, most=MOST_BETA)
    if run_spec.objective == "kto":
        if args.weights is not None and (len(args.weights) != 2 or min(args.weights) <= 0):
            say("kto-weights", "objective_args.weights")
        if run_spec.train.batch_size < LEAST_KTO_BATCH:
            say("kto-batch", "train.batch_size", size=run_spec.train.batch_size, least=LEAST_KTO_BATCH)


def _check_judge(run_spec: RunSpec, base: Base, workspace: Workspace, say: Any) -> None:
    """Refuse a PPO run whose reward model is missing, weak, or reads text otherwise than the base does."""
    args, where = run_spec.objective_args, "objective_args.reward_model"
    if args.answer_tokens >= run_spec.train.max_length:
        say("ppo-window", "objective_args.answer_tokens", tokens=args.answer_tokens, length=run_spec.train.max_length)
    if run_spec.train.early_stopping or run_spec.train.keep_best:
        say("ppo-no-loss", "train.early_stopping" if run_spec.train.early_stopping else "train.keep_best")
    if args.reward_model is None:
        say("ppo-no-reward", where, least=_percent(args.least_reward_accuracy))
        return
    ref, folder = args.reward_model[:80], judges.made_by(workspace, args.reward_model)
    try:
        told = store.load_spec(workspace, args.reward_model.removeprefix("run:")) if folder is not None else None
    except (OSError, ValueError, msgspec.MsgspecError):
        told = None
    if folder is None or told is None:
        say("ppo-reward-missing", where, ref=ref)
        return
    if told.objective != "reward":
        say("ppo-not-reward", where, ref=ref, objective=told.objective)
        return
    for problem in bases.describe(args.reward_model, workspace).problems:
        say(problem.rule, where, **problem.parameters)
    judged = judges.accuracy(folder.parent)
    if judged is None:
        say("ppo-reward-unknown", where, ref=ref)
    elif judged.tuned < args.least_reward_accuracy:
        found, least = _percent(judged.tuned), _percent(args.least_reward_accuracy)
        say("ppo-reward-weak", where, ref=ref, found=found, n=judged.n, least=least)
    if judges.reads_alike(base, folder) is False:
        say("ppo-tokenizer", where, ref=ref)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _check_replay(run_spec: RunSpec, workspace: Workspace, say: Any) -> None:
    """A named data set of general rows must be one that SFT can read, and another one than the run's own."""
    name = run_spec.train.replay_data
    if name is None or not run_spec.train.replay_share:
        return
    if name in (run_spec.dataset.id, run_spec.dataset.eval_id):
        say("replay-same", "train.replay_data")
        return
    try:
        report = datasets.load(workspace, name).report
    except (datasets.DatasetError, OSError, ValueError):
        say("replay-data", "train.replay_data", id=name[:80], reason=later("there is no such data set"))
        return
    if report.type not in OBJECTIVE_DATA["sft"]:
        say(
            "replay-data",
            "train.replay_data",
            id=name[:80],
            reason=later("it is {type}", type=report.type or "unknown"),
        )
    elif not report.trainable:
        say(
            "replay-data", "train.replay_data", id=name[:80], reason=later("{n} of its rows are bad", n=report.bad_rows)
        )


def device() -> choices.Device:
    """Return this machine as engine/choices.py sees it, by what the driver says; the child asks torch instead."""
    facts = machine.facts()
    return choices.Device(
        name=facts.device.partition(":")[0],
        memory_bytes=facts.device_memory_bytes,
        bf16=bool(facts.gpus) and facts.gpus[0].capability >= 8,
        unsloth=choices.installed("unsloth"),
        flash_attention=choices.installed("flash_attn"),
    )


def chosen(
    run_spec: RunSpec,
    base: Base,
    dataset: datasets.Dataset | None,
    workspace: Workspace | None,
    on: choices.Device | None = None,
) -> choices.Chosen:
    """Return what follows from the machine where the spec leaves it open, each with its reason."""
    setup = _shortened(fit.setup_of(run_spec), base, dataset, workspace)
    return choices.choose(run_spec, on or device(), base.shape, setup)


def memory(
    run_spec: RunSpec, base: Base, dataset: datasets.Dataset | None = None, workspace: Workspace | None = None
) -> fit.Estimate:
    """Return the estimated memory of a run on the device of this machine; with the data, for rows as long as its own;
    corrected by what finished runs of its kind took here, where a workspace is given."""
    where, setup = machine.facts().device, _setup(run_spec, base, dataset, workspace)
    found = fit.estimate(base.shape, setup, device=where)
    if workspace is None:
        return found
    return found.calibrated(calibration.memory(calibration.read(workspace), base.shape, setup, device=where))


def _setup(run_spec: RunSpec, base: Base, dataset: datasets.Dataset | None, workspace: Workspace | None) -> fit.Setup:
    """Return what decides the memory, with what is left open as this machine decides it."""
    setup = _shortened(fit.setup_of(run_spec), base, dataset, workspace)
    made = choices.choose(run_spec, device(), base.shape, setup)
    return msgspec.structs.replace(setup, gradient_checkpointing=made.gradient_checkpointing, optimizer=made.optimizer)


def _shortened(
    setup: fit.Setup, base: Base, dataset: datasets.Dataset | None, workspace: Workspace | None
) -> fit.Setup:
    """Return the setup with no row counted as longer than the data's longest."""
    found = lengths.of(dataset, base, workspace) if dataset is not None and workspace is not None else None
    if found is None or found.longest is None:
        return setup
    return fit.with_longest(setup, found.longest)


def duration(run_spec: RunSpec, base: Base, dataset: datasets.Dataset, workspace: Workspace) -> timing.Time | None:
    """Return how long a run takes on this machine, or None when the base's shape or the rows are not known."""
    found = lengths.of(dataset, base, workspace)
    if found is None:
        return None
    trained, held_out = split_rows(run_spec, dataset, workspace)
    device, card, memory_gib = timing.here()
    job = timing.Job(
        steps=steps(run_spec, trained),
        rows_per_step=run_spec.train.batch_size * run_spec.train.accumulation,
        row_tokens=min(found.mean, run_spec.train.max_length),
        held_out=held_out,
        evaluations=run_spec.train.evaluations,
        along=run_spec.evaluate.along,
        threads=run_spec.train.threads,
        dataset=run_spec.dataset.id,
    )
    known = calibration.read(workspace)
    alike = [one for one in known if one.dataset == job.dataset and one.shape == base.shape]
    if alike:  # its rows were counted when they were trained on
        job = msgspec.structs.replace(job, row_tokens=alike[0].row_tokens)
    return timing.estimate(
        base.shape, _setup(run_spec, base, dataset, workspace), job, device=device, known=known, card=card,
        memory_gib=memory_gib,
    )  # fmt: skip


def split_rows(run_spec: RunSpec, dataset: datasets.Dataset, workspace: Workspace) -> tuple[int, int]:
    """Return how many rows a run trains on, and about how many it holds out."""
    rows, most = dataset.good_rows, run_spec.dataset.most_rows or dataset.good_rows
    if not run_spec.dataset.eval_id:
        held_out = min(split.MOST_HELD_OUT, round(rows * run_spec.dataset.eval_share))
        return max(1, min(rows - held_out, most)), held_out
    rows = min(rows, most)
    try:
        return rows, datasets.load(workspace, run_spec.dataset.eval_id).good_rows
    except (datasets.DatasetError, OSError, ValueError):
        return rows, 0


def fits(
    base: Base, gpu_memory_gib: float | None, parameters: float | None = None
) -> Callable[[advisor.Choice], bool] | None:
    """Return the advisor's test of memory: each choice by its parts, against a card of this size, or without one against
    the main memory of this machine. By the shape of the base, or of a usual model of so many parameters; None when there
    is nothing to go by."""
    found = _to_plan_with(base, gpu_memory_gib, parameters)
    if found is None:
        return None
    shape, device, memory_bytes = found
    return lambda choice: fit.fits_choice(shape, choice, device=device, memory_bytes=memory_bytes)


def tight(
    base: Base, gpu_memory_gib: float | None, parameters: float | None = None
) -> Callable[[advisor.Choice], bool] | None:
    """Return the test whether the upper end of a choice's memory is more than there is; see `fits`."""
    found = _to_plan_with(base, gpu_memory_gib, parameters)
    if found is None:
        return None
    shape, device, memory_bytes = found
    return lambda choice: fit.estimate(shape, fit.setup_of_choice(choice), device=device).high_bytes > memory_bytes


def _to_plan_with(
    base: Base, gpu_memory_gib: float | None, parameters: float | None
) -> tuple[fit.Shape, str, float] | None:
    """Return shape, device and memory that a choice is held against."""
    shape = shape_for(base, parameters)
    if shape is None or (gpu_memory_gib is not None and not (math.isfinite(gpu_memory_gib) and gpu_memory_gib > 0)):
        return None
    if gpu_memory_gib is None:
        return shape, "cpu", float(2**20 * machine.facts().memory_mib)
    return shape, "cuda:0", 2**30 * gpu_memory_gib


def need(
    base: Base, gpu_memory_gib: float | None, parameters: float | None = None
) -> Callable[[advisor.Choice], str] | None:
    """Return what says a choice's memory in words, by the same shape as `fits`; None when there is nothing to go by."""
    shape = shape_for(base, parameters)
    if shape is None:
        return None
    device = "cpu" if gpu_memory_gib is None else "cuda:0"

    def words(choice: advisor.Choice) -> str:
        found = fit.estimate(shape, fit.setup_of_choice(choice), device=device)
        return t("{low} to {high}", low=fit.size_words(found.low_bytes), high=fit.size_words(found.high_bytes))

    return words


def shape_for(base: Base | None, parameters: float | None) -> fit.Shape | None:
    """Return the shape to plan with: the base's own when that has so many parameters (or none are named), else a usual
    one."""
    own = base.shape if base is not None and (parameters is None or parameters == base.parameters) else None
    if own is not None or parameters is None:
        return own
    return fit.typical_shape(parameters) if math.isfinite(parameters) else None


def _check_memory(
    run_spec: RunSpec, base: Base, dataset: datasets.Dataset | None, workspace: Workspace, say: Any
) -> None:
    """Refuse only what cannot fit: when even the low end of the estimate is above the device's memory."""
    found, facts = memory(run_spec, base, dataset, workspace), machine.facts()
    if base.shape is None or found.parts is None or found.low_bytes <= facts.device_memory_bytes:
        return
    setup = _setup(run_spec, base, dataset, workspace)
    change = fit.smaller_settings(base.shape, setup, device=facts.device, memory_bytes=facts.device_memory_bytes)
    remedy = later("choose a smaller base; no setting makes this one fit")
    remedy = remedy if change is None else remedy_words(change)
    say(
        "memory-too-small",
        "train.batch_size",
        low=fit.size_words(found.low_bytes),
        high=fit.size_words(found.high_bytes),
        device=facts.device,
        have=fit.size_words(facts.device_memory_bytes),
        remedy=remedy,
    )


def remedy_words(change: dict[str, Any]) -> Text:
    """Return a change of settings that makes a run fit, as something to do."""
    names = ", ".join(f"{path} = {_shown(value)}" for path, value in change.items() if path != "adapter")
    if "adapter" in change:
        return later("choose the recipe lora, which fits with: {settings}", settings=names or later("these settings"))
    return later("this would fit: {settings}", settings=names)


def that_would_fit(run_spec: RunSpec, workspace: Workspace) -> dict[str, Any] | None:
    """Return the mildest change of settings by which a run that ran out of memory should fit, the rows of a step kept
    as many; None when nothing helps or too little is known of its base."""
    base, facts = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision), machine.facts()
    if base.shape is None:
        return None
    try:
        dataset = datasets.load(workspace, run_spec.dataset.id)
    except (datasets.DatasetError, OSError, ValueError):
        dataset = None
    setup = _setup(run_spec, base, dataset, workspace)
    change = fit.smaller_settings(base.shape, setup, device=facts.device, memory_bytes=facts.device_memory_bytes)
    if change and "train.batch_size" in change:
        rows = run_spec.train.batch_size * run_spec.train.accumulation
        change["train.accumulation"] = max(1, rows // change["train.batch_size"])
    return change


def with_remedy(failure: Failed, run_spec: RunSpec, workspace: Workspace) -> Failed:
    """Return the failure of a run that ran out of memory with the settings that would fit in it."""
    change = that_would_fit(run_spec, workspace) if failure.kind == "oom" else None
    if change:
        failure.fix = remedy_words(change)
    return failure


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_data(
    run_spec: RunSpec, recipe: recipes.Recipe, dataset: datasets.Dataset, workspace: Workspace, say: Any
) -> None:
    report, wanted = dataset.report, recipe.data_types
    if run_spec.objective != recipe.objective:
        wanted = OBJECTIVE_DATA.get(run_spec.objective, wanted)
    if report.type not in wanted:
        say("data-type", "dataset", type=report.type or "unknown", wanted=" or ".join(wanted))
    elif not report.trainable:
        say("data-bad-rows", "dataset", bad=report.bad_rows, rows=report.rows)
    elif report.rows < 2:
        say("data-too-few", "dataset", rows=report.rows)
    elif run_spec.objective == "kto" and report.label_counts and not all(report.label_counts.values()):
        say("kto-one-label", "dataset", label="true" if report.label_counts["true"] else "false")
    if run_spec.dataset.eval_id:
        try:
            evaluation = datasets.load(workspace, run_spec.dataset.eval_id).report
        except (datasets.DatasetError, OSError, ValueError):
            say("dataset-missing", "dataset.eval_id", id=run_spec.dataset.eval_id[:80])
        else:
            if not evaluation.trainable or evaluation.type not in wanted:
                say("data-eval", "dataset.eval_id")


def steps(run_spec: RunSpec, rows: int) -> int:
    """Return how many optimizer steps a run takes whose data has so many rows to train on."""
    return spec_counts.optimizer_steps(run_spec.train, rows)

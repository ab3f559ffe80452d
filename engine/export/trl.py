"""A run's recipe as a plain TRL script, TRL 1.12 (SFTConfig and its like). What the script says stands in trl.py.jinja."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from engine.export import divided, portable_recipe, scripts
from engine.export.portable_recipe import EVALUATE, GENERAL, TRAIN, PortableRecipe
from engine.render import template
from engine.spec import OBJECTIVES

TITLE = "TRL"
# Of DPOConfig and DPOTrainer, and so on.
_METHODS = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward"}


def files(recipe: PortableRecipe) -> dict[str, str]:
    """Return the script and what divides a model over cards, under the names of their files."""
    return {"train.py": script(recipe), **divided.files(recipe)}


def script(recipe: PortableRecipe, *, by_unsloth: bool = False) -> str:
    """Return the script, plain or by Unsloth. Raises NotExportable."""
    run_spec, train = recipe.spec, recipe.spec.train
    if run_spec.objective not in _METHODS:
        raise portable_recipe.no_objective(recipe, TITLE)
    kto, replays = OBJECTIVES[run_spec.objective].weighs_labels, portable_recipe.carries_replay(recipe)
    values = {
        "run_id": recipe.run_id,
        "base": recipe.base,
        "revision": portable_recipe.revision(recipe),
        "method": _METHODS[run_spec.objective],
        "quantized": run_spec.quantize != "none",
        "plain_template": template.PLAIN_TEMPLATE,
        "differences": _differences(recipe, by_unsloth=by_unsloth),
        "by_unsloth": by_unsloth,
        "shuffles": replays or kto,
        "replays": replays,
        "passes": math.ceil(train.epochs),
        "train_file": TRAIN,
        "evaluate_file": EVALUATE,
        "general_file": GENERAL,
        "fsdp2_file": divided.FSDP2,
        "deepspeed_file": divided.DEEPSPEED,
        "warmup": train.warmup if train.warmup < 1 else int(train.warmup),
        "kto_weights": run_spec.objective_args.weights or [1.0, 1.0],
        "beta": run_spec.objective_args.beta or OBJECTIVES[run_spec.objective].usual_beta,
        "evaluates": recipe.evaluates,
        "computes_twice": recipe.computes_twice,
        "evaluation_batch_size": train.batch_size,
        "evaluation_share": 1 / train.evaluations if train.evaluations > 1 else 0.999999,
        "keeps_best": portable_recipe.keeps_best(recipe),
        "patience": train.early_stopping if recipe.evaluates else 0,
        **_trained_weights(recipe, by_unsloth=by_unsloth),
    }
    spec = msgspec.to_builtins(run_spec)
    return scripts.fill("trl.py.jinja", spec=spec, train=spec["train"], **values)


def _trained_weights(recipe: PortableRecipe, *, by_unsloth: bool) -> dict[str, Any]:
    """Which layers train, and which modules of them get an adapter: a list, or what the script finds out by itself."""
    run_spec, targets = recipe.spec, portable_recipe.target_modules(recipe)
    some_layers = run_spec.layers != "all"
    layers, top_share = None, 0.0
    if isinstance(run_spec.layers, list):
        layers = sorted(set(run_spec.layers))
    elif some_layers:
        kind, _, share = run_spec.layers.partition(":")
        # 1 - 0.9 is a little less than 0.1
        top_share = float(f"{float(share) if kind == 'top' else 1 - float(share):g}")
    # Unsloth wants them by name
    finds_targets = (some_layers or by_unsloth) and targets is None and run_spec.adapter != "full"
    return {
        "some_layers": some_layers,
        "finds_layers": finds_targets or (some_layers and run_spec.adapter == "full"),
        "layers": layers,
        "top_share": top_share,
        "target_modules": targets or "all-linear",
        "finds_targets": finds_targets,
        "gpt2": recipe.conv1d,
        # to turn GPT-2's layers, or to find them
        "imports_conv1d": recipe.conv1d
        and (run_spec.adapter == "oft" or (run_spec.adapter == "lora" and finds_targets)),
    }


def _differences(recipe: PortableRecipe, *, by_unsloth: bool) -> list[str]:
    """What the script does otherwise than the run."""
    run_spec, train = recipe.spec, recipe.spec.train
    found = portable_recipe.common_differences(recipe)
    found += portable_recipe.keeps_less(recipe)
    if run_spec.objective in ("dpo", "kto"):
        found.append("TRL cuts and marks the rows itself: an answer may be a token longer or shorter than in the run")
    if run_spec.adapter == "oft":
        found.append("plain peft rotates the inputs: the same numbers, more slowly")
    if train.replay_share and not portable_recipe.carries_replay(recipe):
        found.append(
            f"train.replay_share = {train.replay_share:g}: the general rows the base wrote itself are left out"
        )
    if train.gradient_checkpointing is None:
        how = (
            "on, which saves memory and takes longer"
            if recipe.computes_twice
            else "off, and saves memory when it is on"
        )
        found.append(f"train.gradient_checkpointing was left open; it is {how}")
    if by_unsloth:
        found.append(
            "how rows share a batch is left to Unsloth, whose kernels compute in another order than the run did"
        )
        found.append("not run so far: on a card; on a processor Unsloth takes no kernels of its own")
    return found

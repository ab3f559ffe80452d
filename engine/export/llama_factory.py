"""A run's recipe for LLaMA-Factory 0.9.5 (src/llamafactory/hparams, data/README.md)."""

from __future__ import annotations

import json
from typing import Any

from engine.export import portable_recipe
from engine.export.portable_recipe import EVALUATE, TRAIN, PortableRecipe, cannot
from engine.spec import OBJECTIVES
from engine.words import t

TITLE = "LLaMA-Factory"
# What it was tried with: on the processor, all recipes of the starter (tests/export/test_llama_factory.py).
_TRIED = "LLaMA-Factory 0.9.5 on transformers 5.6.0"
# By layout of a base: what its output layer is called, the embedding that takes its place where the two are one, and its
# last norm. That is left out where its name is also part of every layer's norms, which would train too.
_HEADS = {"gpt2": ("lm_head", "wte", "ln_f"), "gpt_neox": ("embed_out", "embed_in", "final_layer_norm")}
_USUAL_HEAD = ("lm_head", "embed_tokens", None)


def files(recipe: PortableRecipe) -> dict[str, str]:
    """Return the settings and what the rows are, under the names of their files. Raises NotExportable."""
    settings = {
        **_model(recipe),
        **_trained_weights(recipe),
        **_objective(recipe),
        **_data(recipe),
        **_trainer(recipe),
    }
    how = [
        "llamafactory-cli train train.yaml",
        "llamafactory-cli train train.yaml bf16=true   # on a card that computes in bf16",
        "FORCE_TORCHRUN=1 llamafactory-cli train train.yaml bf16=true   # several cards",
    ]
    head = portable_recipe.head(recipe, "LLaMA-Factory's settings", how, _differences(recipe))
    head += ["", *_about(recipe)]
    info = {"tunebook_train": _dataset_entry(recipe, TRAIN)}
    if recipe.evaluates:
        info["tunebook_eval"] = _dataset_entry(recipe, EVALUATE)
    return {
        "train.yaml": portable_recipe.as_yaml(head, settings),
        "dataset_info.json": json.dumps(info, indent=2) + "\n",
    }


def _about(recipe: PortableRecipe) -> list[str]:
    """How the rows lie there, and what of it was run."""
    untried = ["a card, several cards"]
    if recipe.spec.train.report_to != "none":
        untried.append(f"report_to: {recipe.spec.train.report_to}")
    length = recipe.spec.train.max_length
    return [
        f"The rows are written as the base reads them, marks of its chat template and all, and cut to {length} tokens: a",
        "`user` text is only read, an `assistant` text is trained to its last token. So `template: empty`, which adds",
        "nothing. To chat with what was trained there, leave `template` out: it takes the base's own.",
        "",
        f"Tried with {_TRIED}, on a processor. Not tried: {', '.join(untried)}.",
    ]


def _differences(recipe: PortableRecipe) -> list[str]:
    run_spec = recipe.spec
    found = [*portable_recipe.common_differences(recipe), *recipe.found]
    found += portable_recipe.keeps_less(recipe, carried=("entropy",))
    if run_spec.objective_args.keep == "entropy":
        found.append("use_eaft_loss divides by 3 where the run divides by ln 20")
    found += portable_recipe.differences_by_settings(recipe)
    found.append("without bf16=true, which starts on a card alone, the weights that train are held in 32 bits")
    if run_spec.adapter != "full" or run_spec.layers != "all":
        found.append(
            "frozen weights compute in the bits of the base's files: SmolLM2 135M began at a loss of 3.2428 in its 16 bits, "
            "and at 3.2416 in 32"
        )
    if OBJECTIVES[run_spec.objective].is_judge:
        found.append("rewards are not kept around 0 (the run adds 0.01 times their squared sum)")
        found.append("its head starts from other random weights, and is kept as a value head that only it loads")
        if portable_recipe.keeps_best(recipe):
            found.append("its stage rm ends with the last weights: it can't take the best ones up again")
    if run_spec.adapter == "oft":
        found.append("OFT: rotations are approximated by a series there (peft's use_cayley_neumann), and exact here")
    if run_spec.layers != "all":
        found += _other_weights(recipe)
    return found


def _other_weights(recipe: PortableRecipe) -> list[str]:
    """What trains there in place of the layers that the run chose."""
    run_spec, shape = recipe.spec, recipe.shape
    if run_spec.adapter != "full":
        return [] if _layers_named(recipe) else [f"layers = {run_spec.layers}: the adapter sits on all layers there"]
    if not run_spec.train_head:
        return []
    if shape is None or shape.counted is not None:
        return ["the output layer and the norm before it stay frozen there: what they are called is not known here"]
    if shape.layout in _HEADS:
        return []
    layers = len(portable_recipe.chosen_layers(recipe, TITLE) or ())
    there = layers * shape.layer_parameters + shape.head_parameters
    here = there + shape.final_norm_parameters
    return [
        f"the last norm stays frozen there, whose name stands in every layer: {there:,} weights train, and {here:,} in the "
        "run"
    ]


def _model(recipe: PortableRecipe) -> dict[str, Any]:
    run_spec, revision = recipe.spec, portable_recipe.revision(recipe)
    settings: dict[str, Any] = {"model_name_or_path": recipe.base}
    if revision:
        settings["model_revision"] = revision
    if run_spec.quantize != "none":
        settings |= {"quantization_bit": int(run_spec.quantize.removesuffix("bit")), "quantization_method": "bnb"}
        if run_spec.quantize == "4bit":
            settings["double_quantization"] = True
    stage = {"sft": "sft", "dpo": "dpo", "kto": "kto", "reward": "rm"}
    if run_spec.objective not in stage:
        raise portable_recipe.no_objective(recipe, TITLE)
    return {**settings, "stage": stage[run_spec.objective], "do_train": True}


def _trained_weights(recipe: PortableRecipe) -> dict[str, Any]:
    run_spec, args = recipe.spec, recipe.spec.adapter_args
    chosen = portable_recipe.chosen_layers(recipe, TITLE)
    targets = ",".join(_layers_named(recipe) or portable_recipe.target_modules(recipe) or _every_linear(recipe))
    if run_spec.adapter == "lora":
        return {
            "finetuning_type": "lora", "lora_rank": args.rank, "lora_alpha": args.alpha, "lora_dropout": args.dropout,
            "lora_target": targets,
        }  # fmt: skip
    if run_spec.adapter == "oft":
        if recipe.conv1d:
            reason = t("peft's OFT cannot turn the layers of GPT-2 as they are")
            raise cannot(TITLE, reason, t("take the TRL script instead"))
        return {"finetuning_type": "oft", "oft_block_size": args.block_size, "oft_target": targets}
    if chosen is None:
        return {"finetuning_type": "full"}
    return {"finetuning_type": "freeze", "freeze_trainable_layers": _counted(chosen, recipe.depth), **_head(recipe)}


def _counted(chosen: list[int], depth: int | None) -> int:
    """The layers as a count: of the last ones, or below 0 of the first. Raises NotExportable."""
    count, first = len(chosen), chosen[0]
    if depth is not None and chosen == list(range(depth - count, depth)):
        return count
    if chosen == list(range(count)) and not first:
        return -count
    raise cannot(TITLE, t("it can train the last or the first layers only"), t("take the TRL script instead"))


def _head(recipe: PortableRecipe) -> dict[str, Any]:
    """What trains beside the chosen layers: the output layer, and the norm before it where its name is its own."""
    shape = recipe.shape
    if not recipe.spec.train_head or shape is None or shape.counted is not None:
        return {}
    own, embedding, norm = _HEADS.get(shape.layout, _USUAL_HEAD)
    return {"freeze_extra_modules": ",".join(filter(None, (embedding if shape.tied else own, norm)))}


def _every_linear(recipe: PortableRecipe) -> list[str]:
    """All linear layers: by name where "all" means others there, which looks for classes that are called linear and knows
    an output layer as lm_head alone: none of GPT-2's, and one too many of GPT-NeoX's."""
    if recipe.shape is not None and recipe.shape.layout in _HEADS:
        return list(dict.fromkeys(one.name for one in recipe.shape.linears))
    return ["all"]


def _layers_named(recipe: PortableRecipe) -> list[str]:
    """The modules of the chosen layers by their full names, where these are known; none where all layers get an adapter."""
    chosen, shape = portable_recipe.chosen_layers(recipe, TITLE), recipe.shape
    if chosen is None or shape is None or shape.counted is not None or shape.layout in _HEADS:
        return []
    inside, every = {one.name for one in shape.feed_forward}, [one.name for one in shape.linears]
    wanted = portable_recipe.target_modules(recipe) or every
    if not set(wanted) <= set(every):
        return []
    return [f"layers.{at}.{'mlp' if name in inside else 'self_attn'}.{name}" for at in chosen for name in wanted]


def _objective(recipe: PortableRecipe) -> dict[str, Any]:
    objective, args = recipe.spec.objective, recipe.spec.objective_args
    settings: dict[str, Any] = {}
    if args.keep == "entropy":
        settings |= {"use_eaft_loss": True, "eaft_alpha": 1.0}
    if OBJECTIVES[objective].has_reference:
        settings["pref_beta"] = args.beta or OBJECTIVES[objective].usual_beta
    if OBJECTIVES[objective].weighs_labels:
        good, bad = args.weights or (1.0, 1.0)
        settings |= {"kto_chosen_weight": good, "kto_rejected_weight": bad}
    return settings


def _data(recipe: PortableRecipe) -> dict[str, Any]:
    settings: dict[str, Any] = {"dataset_dir": ".", "dataset": "tunebook_train"}
    if recipe.evaluates:
        settings["eval_dataset"] = "tunebook_eval"
    return {**settings, "template": "empty", "cutoff_len": recipe.spec.train.max_length}


def _dataset_entry(recipe: PortableRecipe, file: str) -> dict[str, Any]:
    columns, ranking = {"messages": "messages"}, {}
    if recipe.kind == "preference":
        columns |= {"chosen": "chosen", "rejected": "rejected"}
        ranking = {"ranking": True}
    if recipe.kind == "marked":
        columns["kto_tag"] = "label"
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    return {"file_name": file, "formatting": "sharegpt", **ranking, "columns": columns, "tags": tags}


def _trainer(recipe: PortableRecipe) -> dict[str, Any]:
    """What LLaMA-Factory hands on to transformers' trainer."""
    train = recipe.spec.train
    settings: dict[str, Any] = {
        "output_dir": "out", "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulation, "learning_rate": train.learning_rate,
        "num_train_epochs": train.epochs,
    }  # fmt: skip
    if train.max_steps:
        settings["max_steps"] = train.max_steps
    settings |= {"lr_scheduler_type": portable_recipe.schedule(recipe), **portable_recipe.warmup(recipe)}
    settings |= {
        "weight_decay": train.weight_decay, "max_grad_norm": train.max_grad_norm, "seed": train.seed,
        "gradient_checkpointing": recipe.computes_twice,
        "optim": portable_recipe.optimizer(recipe), "logging_steps": 1, "save_total_limit": 2,
        "report_to": train.report_to,
    }  # fmt: skip
    if recipe.evaluates:
        share = round(1 / train.evaluations, 4)
        settings |= {"eval_strategy": "steps", "eval_steps": share, "save_strategy": "steps", "save_steps": share}
    if portable_recipe.keeps_best(recipe):
        is_judge = OBJECTIVES[recipe.spec.objective].is_judge  # its stage rm refuses to take the best up again
        settings |= {
            "load_best_model_at_end": not is_judge, "metric_for_best_model": "eval_loss", "greater_is_better": False,
        }  # fmt: skip
    if train.early_stopping and recipe.evaluates:
        settings["early_stopping_steps"] = train.early_stopping
    return settings

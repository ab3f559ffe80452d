"""A run's recipe for LLaMA-Factory 0.9.5 (src/llamafactory/hparams, data/README.md)."""

from __future__ import annotations

import json
from typing import Any

from engine.export import portable_recipe
from engine.export.portable_recipe import EVALUATE, TRAIN, PortableRecipe, cannot
from engine.spec import OBJECTIVES
from engine.words import t

TITLE = "LLaMA-Factory"
# LLaMA-Factory's own names of chat templates (src/llamafactory/data/template.py), by the start of a base's hub id.
_TEMPLATES = {
    "Qwen/Qwen3": "qwen3_nothink", "Qwen/Qwen2": "qwen", "meta-llama/Llama-3": "llama3", "meta-llama/Meta-Llama-3": "llama3",
    "meta-llama/Llama-2": "llama2", "mistralai/Mistral": "mistral", "google/gemma-2": "gemma", "google/gemma-3": "gemma3",
    "microsoft/Phi-4": "phi4", "HuggingFaceTB/SmolLM2": "smollm2", "deepseek-ai/DeepSeek-R1": "deepseekr1",
}  # fmt: skip


def files(recipe: PortableRecipe) -> dict[str, str]:
    """Return the settings and what the rows are, under the names of their files. Raises NotExportable."""
    settings = {
        **_model(recipe),
        **_trained_weights(recipe),
        **_objective(recipe),
        **_data(recipe),
        **_trainer(recipe),
    }
    how = ["llamafactory-cli train train.yaml", "FORCE_TORCHRUN=1 llamafactory-cli train train.yaml   # several cards"]
    head = portable_recipe.head(recipe, "LLaMA-Factory's settings", how, _differences(recipe))
    info = {"tunebook_train": _dataset_entry(recipe, TRAIN)}
    if recipe.evaluates:
        info["tunebook_eval"] = _dataset_entry(recipe, EVALUATE)
    return {
        "train.yaml": portable_recipe.as_yaml(head, settings),
        "dataset_info.json": json.dumps(info, indent=2) + "\n",
    }


def _differences(recipe: PortableRecipe) -> list[str]:
    run_spec, found = recipe.spec, portable_recipe.yaml_differences(recipe)
    found += portable_recipe.keeps_less(recipe, carried=("entropy",))
    if run_spec.objective_args.keep == "entropy":
        found.append("use_eaft_loss needs a version after January 2026; it divides by 3 where the run divides by ln 20")
    if run_spec.adapter == "oft":
        found.append(
            "OFT: rotations may be approximated by a series there (peft's use_cayley_neumann), and are exact here"
        )
    if run_spec.adapter == "full" and run_spec.layers != "all" and run_spec.train_head:
        found.append(
            "the output layer stays frozen; where it is not the embedding, add freeze_extra_modules: lm_head,norm"
        )
    if run_spec.adapter != "full" and run_spec.layers != "all":
        found.append(f"layers = {run_spec.layers}: the adapter sits on all layers there")
    if _template(recipe) is None and recipe.kind != "text":
        found.append(
            "the name of its chat template is not known here: `template: default` writes other marks around turns than the "
            "run; put in the base's own (data/template.py there)"
        )
    return found


def _model(recipe: PortableRecipe) -> dict[str, Any]:
    run_spec, revision = recipe.spec, portable_recipe.revision(recipe)
    settings: dict[str, Any] = {"model_name_or_path": recipe.base}
    if revision:
        settings["model_revision"] = revision
    if run_spec.quantize != "none":
        settings |= {"quantization_bit": int(run_spec.quantize.removesuffix("bit")), "quantization_method": "bnb"}
        if run_spec.quantize == "4bit":
            settings["double_quantization"] = True
    stage = {"sft": "pt" if recipe.kind == "text" else "sft", "dpo": "dpo", "kto": "kto", "reward": "rm"}
    if run_spec.objective not in stage:
        raise portable_recipe.no_objective(recipe, TITLE)
    return {**settings, "stage": stage[run_spec.objective], "do_train": True}


def _trained_weights(recipe: PortableRecipe) -> dict[str, Any]:
    run_spec, args = recipe.spec, recipe.spec.adapter_args
    chosen = portable_recipe.chosen_layers(recipe, TITLE)
    targets = ",".join(portable_recipe.target_modules(recipe) or ["all"])
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
    depth = recipe.depth or 0
    if chosen != list(range(depth - len(chosen), depth)):
        raise cannot(TITLE, t("it can train the last layers only"), t("take the TRL script instead"))
    return {"finetuning_type": "freeze", "freeze_trainable_layers": len(chosen)}


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


def _template(recipe: PortableRecipe) -> str | None:
    """LLaMA-Factory's name of the base's chat template, where it is known."""
    return next((name for start, name in _TEMPLATES.items() if recipe.base.startswith(start)), None)


def _data(recipe: PortableRecipe) -> dict[str, Any]:
    settings: dict[str, Any] = {"dataset_dir": ".", "dataset": "tunebook_train"}
    if recipe.evaluates:
        settings["eval_dataset"] = "tunebook_eval"
    settings |= {"template": _template(recipe) or "default", "cutoff_len": recipe.spec.train.max_length}
    if recipe.kind == "prompt":
        settings["mask_history"] = True  # only the last answer is learned
    return settings


def _dataset_entry(recipe: PortableRecipe, file: str) -> dict[str, Any]:
    if recipe.kind == "text":
        return {"file_name": file, "columns": {"prompt": "text"}}
    columns = {"messages": "messages"}
    if recipe.kind == "preference":
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    if recipe.kind == "marked":
        columns["kto_tag"] = "label"
    if recipe.tools:
        columns["tools"] = "tools"
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    ranking = {"ranking": True} if recipe.kind == "preference" else {}
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
    settings |= {"lr_scheduler_type": portable_recipe.schedule(recipe)}
    settings |= {"warmup_ratio": train.warmup} if train.warmup < 1 else {"warmup_steps": int(train.warmup)}
    settings |= {
        "weight_decay": train.weight_decay, "max_grad_norm": train.max_grad_norm, "seed": train.seed,
        "bf16": True, "gradient_checkpointing": recipe.computes_twice,
        "optim": portable_recipe.optimizer(recipe), "logging_steps": 1, "save_total_limit": 2,
        "report_to": train.report_to,
    }  # fmt: skip
    if recipe.evaluates:
        share = round(1 / train.evaluations, 4)
        settings |= {"eval_strategy": "steps", "eval_steps": share, "save_strategy": "steps", "save_steps": share}
    if portable_recipe.keeps_best(recipe):
        settings |= {
            "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False,
        }  # fmt: skip
    if train.early_stopping and recipe.evaluates:
        settings["early_stopping_steps"] = train.early_stopping
    return settings

"""A run's recipe for Axolotl (src/axolotl/utils/schemas, September 2026)."""

from __future__ import annotations

from typing import Any

from engine.export import portable_recipe
from engine.export.portable_recipe import EVALUATE, TRAIN, PortableRecipe, cannot
from engine.spec import OBJECTIVES
from engine.words import t

TITLE = "Axolotl"


def files(recipe: PortableRecipe) -> dict[str, str]:
    """Return the settings, under the name of their file. Raises NotExportable."""
    if recipe.spec.adapter == "oft":
        raise cannot(TITLE, t("it has LoRA and full training, no OFT"), t("take the TRL script or LLaMA-Factory"))
    if recipe.spec.objective not in ("sft", "dpo"):
        reason = t("its data formats for this do not go by the base's chat template")
        raise cannot(TITLE, reason, t("take the TRL script or LLaMA-Factory"))
    settings: dict[str, Any] = {"base_model": recipe.base}
    revision = portable_recipe.revision(recipe)
    if revision:
        settings["revision_of_model"] = revision
    settings |= _trained_weights(recipe)
    if recipe.spec.objective == "dpo":
        settings |= {
            "rl": "dpo",
            "rl_beta": recipe.spec.objective_args.beta or OBJECTIVES[recipe.spec.objective].usual_beta,
        }
    settings["datasets"] = [_data(recipe, TRAIN)]
    if recipe.evaluates:
        settings["test_datasets"] = [{**_data(recipe, EVALUATE), "split": "train"}]
    if recipe.kind != "text":
        settings["chat_template"] = "tokenizer_default"
    settings |= _trainer(recipe)
    how = ["axolotl train train.yaml", "accelerate launch -m axolotl.cli.train train.yaml   # the same, several cards"]
    head = portable_recipe.head(recipe, "Axolotl's settings", how, _differences(recipe))
    return {"train.yaml": portable_recipe.as_yaml(head, settings)}


def _differences(recipe: PortableRecipe) -> list[str]:
    found, report_to = portable_recipe.yaml_differences(recipe), recipe.spec.train.report_to
    found += portable_recipe.keeps_less(recipe)
    if recipe.spec.adapter == "full" and recipe.spec.layers != "all" and recipe.spec.train_head:
        found.append("where the output layer is the embedding, it stays frozen there and trains in the run")
    if report_to not in ("none", "tensorboard"):
        found.append(f"train.report_to = {report_to}: set its own keys ({report_to}_project and the like)")
    return found


def _trained_weights(recipe: PortableRecipe) -> dict[str, Any]:
    run_spec, args = recipe.spec, recipe.spec.adapter_args
    chosen = portable_recipe.chosen_layers(recipe, TITLE)
    settings: dict[str, Any] = {}
    if run_spec.adapter == "lora":
        settings["adapter"] = "qlora" if run_spec.quantize == "4bit" else "lora"
        if run_spec.quantize != "none":
            settings[f"load_in_{run_spec.quantize}"] = True
        settings |= {"lora_r": args.rank, "lora_alpha": args.alpha, "lora_dropout": args.dropout}
        targets = portable_recipe.target_modules(recipe)
        settings |= {"lora_target_linear": True} if targets is None else {"lora_target_modules": targets}
        if chosen is not None:
            settings["peft_layers_to_transform"] = chosen
    elif chosen is not None:
        numbers = "|".join(map(str, chosen))
        settings["unfrozen_parameters"] = [rf"^.*\.(?:layers|h|blocks)\.(?:{numbers})\."]
        if run_spec.train_head:
            last_norm = r"^transformer\.ln_f\." if recipe.conv1d else r"^model\.norm\."
            settings["unfrozen_parameters"] += [r"^lm_head\.", last_norm]
    return settings


def _data(recipe: PortableRecipe, file: str) -> dict[str, Any]:
    where = {"path": file, "ds_type": "json"}
    if recipe.kind == "text":
        return {**where, "type": "completion", "field": "text"}
    if recipe.kind == "preference":
        return {**where, "type": "chat_template.default", "field_messages": "messages", "field_chosen": "chosen",
                "field_rejected": "rejected"}  # fmt: skip
    taught = (
        {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
        if recipe.kind == "messages"
        else {"roles_to_train": [], "message_field_training": "train", "train_on_eos": "turn"}
    )
    return {**where, "type": "chat_template", "field_messages": "messages", **taught}


def _trainer(recipe: PortableRecipe) -> dict[str, Any]:
    """What Axolotl hands on to transformers' trainer."""
    train = recipe.spec.train
    settings: dict[str, Any] = {
        "sequence_len": train.max_length, "sample_packing": False, "micro_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulation, "num_epochs": train.epochs,
    }  # fmt: skip
    if train.max_steps:
        settings["max_steps"] = train.max_steps
    settings |= {
        "optimizer": portable_recipe.optimizer(recipe), "learning_rate": train.learning_rate,
        "lr_scheduler": portable_recipe.schedule(recipe),
    }  # fmt: skip
    settings |= {"warmup_ratio": train.warmup} if train.warmup < 1 else {"warmup_steps": int(train.warmup)}
    settings |= {
        "weight_decay": train.weight_decay, "max_grad_norm": train.max_grad_norm, "seed": train.seed, "bf16": "auto",
        "gradient_checkpointing": recipe.computes_twice, "logging_steps": 1, "output_dir": "out",
    }  # fmt: skip
    if recipe.evaluates:
        share = round(1 / train.evaluations, 4)
        settings |= {"eval_strategy": "steps", "eval_steps": share, "save_steps": share, "save_total_limit": 2}
        if portable_recipe.keeps_best(recipe):
            settings["load_best_model_at_end"] = True
        if train.early_stopping:
            settings["early_stopping_patience"] = train.early_stopping
    if train.report_to == "tensorboard":
        settings["use_tensorboard"] = True
    return settings

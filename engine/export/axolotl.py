"""A run's recipe for Axolotl, as 0.19 reads it (its sources, and runs on a processor)."""

from __future__ import annotations

from typing import Any

from engine.export import portable_recipe
from engine.export.portable_recipe import EVALUATE, TRAIN, PortableRecipe, cannot
from engine.spec import OBJECTIVES
from engine.words import t

TITLE = "Axolotl"
# What the embedding of tokens is called, which is also the output layer of a base that ties them; and the output layer.
_EMBEDDING, _HEAD = "embed_tokens|wte|embed_in|word_embeddings|tok_embeddings", "lm_head|embed_out"
# A layer's number in the name of a weight. In its patterns a dot is one, but before a plus (its utils/freeze.py).
_LAYER = r".+.(?:layers|h|blocks).(?:{numbers})."
# A plain text as the one turn of a conversation: its own `completion` cuts what is longer into pieces, each a row.
_TEXT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
# These start on cards alone, and are on unless they are off.
_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
# Its loader hands these objectives' rows to TRL as they lie, and TRL goes by the base's chat template.
_BY_TRL = ("dpo", "kto")


def files(recipe: PortableRecipe) -> dict[str, str]:
    """Return the settings, under the name of their file. Raises NotExportable."""
    if recipe.spec.adapter == "oft":
        raise cannot(TITLE, t("it has LoRA and full training, no OFT"), t("take the TRL script or LLaMA-Factory"))
    if recipe.spec.objective not in ("sft", *_BY_TRL):
        reason = t("its reward training takes one question and one answer, no conversation")
        raise cannot(TITLE, reason, t("take the TRL script or LLaMA-Factory"))
    settings: dict[str, Any] = {"base_model": recipe.base}
    revision = portable_recipe.revision(recipe)
    if revision:
        settings["revision_of_model"] = revision
    settings |= _trained_weights(recipe)
    settings |= _objective(recipe)
    settings["datasets"] = [_data(recipe, TRAIN)]
    if recipe.evaluates:
        settings["test_datasets"] = [{**_data(recipe, EVALUATE), "split": "train"}]
    settings |= _writing(recipe)
    settings |= _trainer(recipe)
    how = [
        "export AXOLOTL_DO_NOT_TRACK=1   # or it reports each run to its makers",
        "axolotl train train.yaml",
        "accelerate launch -m axolotl.cli.train train.yaml   # the same, several cards",
    ]
    head = portable_recipe.head(recipe, "Axolotl's settings", how, _differences(recipe))
    return {"train.yaml": portable_recipe.as_yaml(head, settings)}


def _objective(recipe: PortableRecipe) -> dict[str, Any]:
    run_spec, args = recipe.spec, recipe.spec.objective_args
    if run_spec.objective == "sft":
        return {}
    settings = {"rl": run_spec.objective, "rl_beta": args.beta or OBJECTIVES[run_spec.objective].usual_beta}
    if run_spec.objective == "kto":
        good, bad = args.weights or [1.0, 1.0]
        settings |= {"kto_desirable_weight": good, "kto_undesirable_weight": bad}
    return settings | {"skip_prepare_dataset": True}


def _differences(recipe: PortableRecipe) -> list[str]:
    found, report_to = portable_recipe.common_differences(recipe), recipe.spec.train.report_to
    found += portable_recipe.keeps_less(recipe)
    found += portable_recipe.differences_by_settings(recipe)
    found += _read_otherwise(recipe)
    if recipe.spec.adapter == "lora":
        found.append("its own kernels for LoRA are off, since they start on cards alone; on one they may be turned on")
    if recipe.spec.layers != "all" and recipe.spec.train_head and recipe.shape is None:
        found.append("where the output layer is the embedding, it stays frozen there and trains in the run")
    if report_to not in ("none", "tensorboard"):
        found.append(f"train.report_to = {report_to}: set its own keys ({report_to}_project and the like)")
    return [*found, *_not_run(recipe)]


def _not_run(recipe: PortableRecipe) -> list[str]:
    """What of these settings nobody has run."""
    untried = ["on a card"]
    if recipe.spec.quantize != "none":
        untried.append(f"a base in {recipe.spec.quantize.removesuffix('bit')} bits")
    if recipe.conv1d:
        untried.append("a base of GPT-2's kind")
    if recipe.tools:
        untried.append("rows with tool calls")
    return [f"not run with Axolotl so far: {', '.join(untried)}"]


def _read_otherwise(recipe: PortableRecipe) -> list[str]:
    """Which tokens it reads or learns otherwise than the run."""
    writing = recipe.writing
    if recipe.spec.objective in _BY_TRL:
        return ["TRL cuts and marks the rows itself: an answer may be a token longer or shorter than in the run"]
    if writing is None:
        return [
            "the files of its base are not here, so what ends its answers is not known: where that is no end-of-text token, "
            "name it as eot_tokens, or it is not learned"
        ]  # fmt: skip
    if recipe.kind == "text":
        return []
    found = []
    if writing.mark and writing.mark != writing.end and writing.mark not in writing.template:
        found.append(
            f"{writing.mark!r}, which ends an answer, is not learned: it looks for the mark in the template's text"
        )
    found.append(
        "a token that begins in the template's text and ends in an answer is learned there, and not in the run: with some "
        "tokenizers the line break before an answer that begins with one"
    )
    return found


def _writing(recipe: PortableRecipe) -> dict[str, Any]:
    """By which template conversations are written, and what ends an answer."""
    writing = recipe.writing
    if recipe.kind == "text":
        begins = "{{ bos_token }}" if writing is not None and writing.starts_with_bos else ""
        return {"chat_template": "jinja", "chat_template_jinja": begins + _TEXT_TEMPLATE, "train_on_inputs": True}
    settings: dict[str, Any] = {"chat_template": "tokenizer_default"}
    if writing is not None and writing.is_plain:
        settings = {"chat_template": "jinja", "chat_template_jinja": writing.template}
    if writing is not None and writing.mark and writing.mark != writing.end:
        settings["eot_tokens"] = [writing.mark]
    return settings


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
        settings |= dict.fromkeys(_KERNELS, False)
    elif chosen is not None:
        layer = "^" + _LAYER.format(numbers="|".join(map(str, chosen)))
        settings["unfrozen_parameters"] = [layer]
        if run_spec.train_head:
            head = _EMBEDDING if recipe.shape is not None and recipe.shape.tied else _HEAD
            outside = "^(?!" + _LAYER.format(numbers="[0-9]+") + ")"
            settings["unfrozen_parameters"] += [f"{outside}(?:.+.)?(?:{head}).", f"{outside}.+(?:norm|ln_f)"]
    return settings


def _data(recipe: PortableRecipe, file: str) -> dict[str, Any]:
    where = {"path": file, "ds_type": "json"}
    if recipe.spec.objective in _BY_TRL:
        return where
    taught = (
        {"roles_to_train": [], "message_field_training": "train"}
        if recipe.kind == "prompt"
        else {"roles_to_train": ["assistant"]}
    )
    return {**where, "type": "chat_template", "field_messages": "messages", **taught, "train_on_eos": "turn"}


def _trainer(recipe: PortableRecipe) -> dict[str, Any]:
    """What Axolotl hands on to transformers' trainer."""
    train = recipe.spec.train
    settings: dict[str, Any] = {
        "sequence_len": train.max_length, "excess_length_strategy": "truncate", "sample_packing": False,
        "micro_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulation, "num_epochs": train.epochs,
    }  # fmt: skip
    if train.max_steps:
        settings["max_steps"] = train.max_steps
    settings |= {
        "optimizer": portable_recipe.optimizer(recipe), "learning_rate": train.learning_rate,
        "lr_scheduler": portable_recipe.schedule(recipe),
    }  # fmt: skip
    settings |= {
        **portable_recipe.warmup(recipe),
        "weight_decay": train.weight_decay, "max_grad_norm": train.max_grad_norm, "seed": train.seed, "bf16": "auto",
        "fp16": False,  # or that is what it takes on a processor
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

"""A run's recipe as a plain TRL script, TRL 1.12 (SFTConfig and its like)."""

from __future__ import annotations

import json
import math
from typing import Any

from engine.export import portable_recipe
from engine.export.artifacts import STRAIGHTEN_IMPORT, STRAIGHTEN_LINES
from engine.export.portable_recipe import (
    EVALUATE,
    GENERAL,
    TRAIN,
    Recipe,
    carries_replay,
    common_differences,
    keeps_best,
)
from engine.models import templates
from engine.spec import OBJECTIVES

_DEPENDENCIES = ["trl==1.12.*", "transformers>=5.15,<=5.17.0", "peft==0.21.*", "datasets>=4.8,<5", "torch>=2.11,<2.14",
                 "accelerate>=1.15,<2"]  # fmt: skip
_TRAINERS = {
    "sft": ("SFTConfig", "SFTTrainer"), "dpo": ("DPOConfig", "DPOTrainer"), "kto": ("KTOConfig", "KTOTrainer"),
    "reward": ("RewardConfig", "RewardTrainer"),
}  # fmt: skip

# As engine/train/tokenize.py: rendered once, masked by character offsets, every answer with its end marker.
_ENCODE = '''

def render(messages, tools=None, ask=False):
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=ask)


def encode(row):
    """Token ids of a row, and labels that are -100 where nothing is learned: answers are, with the mark that ends them."""
    if "text" in row:
        ids = tokenizer(row["text"])["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
        return {"input_ids": ids[:MAX_LENGTH], "labels": ids[:MAX_LENGTH]}
    messages = row.get("messages") or row["prompt"] + row["completion"]
    tools = json.loads(row["tools"]) if row.get("tools") else None
    whole = render(messages, tools)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = []
    for i in answers if row.get("messages") else answers[-1:]:
        before, until = render(messages[:i], tools, ask=True), render(messages[: i + 1], tools)
        if not (whole.startswith(before) and whole.startswith(until)):
            raise SystemExit("This chat template changes earlier turns, so this script cannot tell answers from questions.")
        spans.append((len(before), max(len(before), len(until.rstrip("\\n ")))))
    coded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if b > a and any(start <= a < end for start, end in spans) else -100
        for token, (a, b) in zip(coded["input_ids"], coded["offset_mapping"])
    ]
    return {"input_ids": coded["input_ids"][:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}


def encoded(rows):
    return [row for row in map(encode, rows) if any(label != -100 for label in row["labels"][1:])]

'''


def trl(recipe: Recipe) -> dict[str, str]:
    run_spec, train = recipe.spec, recipe.spec.train
    config, trainer = _TRAINERS[run_spec.objective]
    lost = common_differences(recipe)
    if run_spec.objective != "sft":
        lost.append("TRL cuts and marks the rows itself: an answer may be a token longer or shorter than in the run")
    if run_spec.adapter == "oft":
        lost.append("plain peft rotates the inputs: the same numbers, more slowly")
    if train.replay_share and not carries_replay(recipe):
        lost.append(f"train.replay_share = {train.replay_share:g}: the general rows the base wrote itself are left out")
    if train.gradient_checkpointing is None:
        lost.append("train.gradient_checkpointing was left open; it is off here, and saves memory when it is on")
    dependencies = [*_DEPENDENCIES, *(["bitsandbytes>=0.50,<1"] if run_spec.quantize != "none" else [])]
    how = [
        "python train.py                                        # or: uv run train.py",
        "accelerate launch --num_processes 2 train.py           # several cards: as many times the rows a step",
        "hf upload NAME/rows . --repo-type dataset --private    # on rented cards: the folder first, then",
        "hf jobs uv run --flavor a10g-small --secrets HF_TOKEN --env DATA=NAME/rows train.py",
    ]
    lines = ["# /// script", '# requires-python = ">=3.11"', f"# dependencies = {json.dumps(dependencies)}", "# ///"]
    # The head is text for people; a quote in a name must not end it.
    head = "\n".join(portable_recipe.head(recipe, "The recipe", how, lost)).replace("\\", "\\\\").replace('"""', "'''")
    lines += [f'"""{head}\n"""', ""]
    adapters = {"lora": "LoraConfig", "oft": "OFTConfig"}
    peft = [] if run_spec.adapter == "full" else [adapters[run_spec.adapter], "get_peft_model"]
    kind = "AutoModelForSequenceClassification" if run_spec.objective == "reward" else "AutoModelForCausalLM"
    replay = carries_replay(recipe)
    shuffles = replay or run_spec.objective == "kto"
    shown = sorted(
        [kind, "AutoTokenizer", "set_seed"]
        + (["BitsAndBytesConfig"] if run_spec.quantize != "none" else [])
        + (["EarlyStoppingCallback"] if train.early_stopping and recipe.evaluates else []),
        key=lambda name: (name.islower(), name),
    )
    by_layer = run_spec.layers != "all"
    lines += [
        "import json",
        "import os",
        *(["import random"] if shuffles else []),
        *(["import re"] if by_layer else []),
    ]
    lines += ["from pathlib import Path", "", "import torch", "from datasets import Dataset"]
    lines += [f"from peft import {', '.join(peft)}"] if peft else []
    lines += [f"from transformers import {', '.join(shown)}"]
    lines += [STRAIGHTEN_IMPORT.rstrip()] if _needs_conv1d(recipe) else []
    lines += [f"from trl import {config}, {trainer}", ""]
    lines += [
        "HERE = Path(__file__).resolve().parent",
        f"BASE = {recipe.base!r}",
        f"MAX_LENGTH = {train.max_length}",
        f"SEED = {train.seed}",
        "",
        'DATA = os.environ.get("DATA")  # a data set of the hub that holds this folder',
        "if DATA:",
        "    from huggingface_hub import snapshot_download",
        "",
        '    HERE = Path(snapshot_download(DATA, repo_type="dataset"))',
        "if (HERE / BASE).is_dir():",
        "    BASE = str(HERE / BASE)",
        "",
        "",
        "def read(name):",
        '    with open(HERE / name, encoding="utf-8") as file:',
        "        return [json.loads(line) for line in file]",
        "",
        "",
    ]
    revision = f", revision={portable_recipe.revision(recipe)!r}" if portable_recipe.revision(recipe) else ""
    lines += [
        "cuda = torch.cuda.is_available()",
        "bf16 = cuda and torch.cuda.is_bf16_supported()",
        f"tokenizer = AutoTokenizer.from_pretrained(BASE{revision})",
        "if tokenizer.pad_token is None:",
        "    tokenizer.pad_token = tokenizer.eos_token",
        "if not tokenizer.chat_template:",
        f"    tokenizer.chat_template = {templates.PLAIN_TEMPLATE!r}",
    ]
    dtype = "torch.float32" if run_spec.adapter == "full" else "torch.bfloat16 if bf16 else torch.float32"
    lines.append(f"dtype = {dtype}")
    more = ""
    if run_spec.quantize == "4bit":
        lines += [
            "bits = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype',
            ")",
        ]
    elif run_spec.quantize == "8bit":
        lines.append("bits = BitsAndBytesConfig(load_in_8bit=True)")
    if run_spec.quantize != "none":
        more = ', quantization_config=bits, device_map={"": "cuda" if cuda else "cpu"}'
    if run_spec.objective == "reward":
        lines.append("set_seed(SEED)  # for the new head")
        more += ", num_labels=1, pad_token_id=tokenizer.pad_token_id"
    lines += [f"model = {kind}.from_pretrained(BASE{revision}, dtype=dtype{more})"]
    if run_spec.quantize == "4bit":
        lines += [
            "for module in model.modules():",
            '    if hasattr(module, "support_avx512bf16_for_cpu"):  # or bitsandbytes 0.50 spoils gradients on processors',
            "        module.support_avx512bf16_for_cpu = False",
        ]
    lines += ["set_seed(SEED)", *_trl_adapter(recipe)]
    if run_spec.objective == "sft":
        lines += [*_ENCODE.rstrip("\n").split("\n"), "", ""]
    lines += _trl_rows(recipe, replay=replay)
    lines += _trl_arguments(recipe, config, replay=replay)
    stop = (
        [f"    callbacks=[EarlyStoppingCallback({train.early_stopping})],"] if "EarlyStoppingCallback" in shown else []
    )
    lines += [
        f"trainer = {trainer}(",
        "    model=model,",
        "    args=args,",
        "    processing_class=tokenizer,",
        "    train_dataset=Dataset.from_list(rows),",
        *(["    eval_dataset=Dataset.from_list(held_out) if held_out else None,"] if recipe.evaluates else []),
        *stop,
        ")",
    ]
    if run_spec.quantize != "none":
        lines += [
            "for parameter in model.parameters():  # TRL makes them 16 bits, where small steps are lost",
            "    if parameter.requires_grad:",
            "        parameter.data = parameter.data.float()",
        ]
    lines += ["trainer.train()", 'trainer.save_model("out/final")', "trainer.save_state()"]
    return {"train.py": "\n".join(lines).replace("\n\n\n\n", "\n\n\n") + "\n"}


def _trl_layers(layers: str | list[int]) -> list[str]:
    if isinstance(layers, list):
        return [f"layers = {sorted(set(layers))}"]
    kind, _, share = layers.partition(":")
    part = float(share) if kind == "top" else 1 - float(share)
    return [
        "depth = model.config.get_text_config().num_hidden_layers",
        f"layers = list(range(depth - max(1, round(depth * {part:g})), depth))",
    ]


def _needs_conv1d(recipe: Recipe) -> bool:
    """Whether the script has to know GPT-2's layers: to turn them, or to name those of chosen layers."""
    by_name = (
        recipe.spec.adapter == "lora" and recipe.spec.layers != "all" and portable_recipe.target_modules(recipe) is None
    )
    return recipe.conv1d and (recipe.spec.adapter == "oft" or by_name)


def _trl_adapter(recipe: Recipe) -> list[str]:
    run_spec, args = recipe.spec, recipe.spec.adapter_args
    some = run_spec.layers != "all"
    lines = _trl_layers(run_spec.layers) if some else []
    if run_spec.adapter == "oft" and recipe.conv1d:
        lines += STRAIGHTEN_LINES.format(model="model").rstrip().split("\n")
    layer = r'r"\.(?:layers|h|blocks)\.(\d+)\."'
    if run_spec.adapter == "full":
        if not some:
            return [*lines, "model.requires_grad_(True)"]
        head = (
            ["head = {id(p) for p in model.get_output_embeddings().parameters()}"]
            if run_spec.train_head
            else ["head = set()"]
        )
        norm = '("norm" in name or "ln_f" in name)' if recipe.conv1d else '"norm" in name'
        last = f" or (found is None and {norm} and {run_spec.train_head})"
        return [
            *lines,
            *head,
            "for name, parameter in model.named_parameters():",
            f'    found = re.search({layer}, f".{{name}}")',
            "    inside = found is not None and int(found.group(1)) in layers",
            f"    parameter.requires_grad = inside or id(parameter) in head{last}",
        ]
    targets = repr(portable_recipe.target_modules(recipe) or "all-linear")
    linear = "(torch.nn.Linear, Conv1D)" if _needs_conv1d(recipe) else "torch.nn.Linear"
    if some and portable_recipe.target_modules(recipe) is None:
        lines += [
            "targets = sorted(",
            '    {n.rpartition(".")[2] for n, m in model.named_modules()',
            f'     if isinstance(m, {linear}) and re.search({layer}, f".{{n}}")}}',
            ")",
        ]
        targets = "targets"
    task = "SEQ_CLS" if run_spec.objective == "reward" else "CAUSAL_LM"
    if run_spec.adapter == "lora":
        own = [f"r={args.rank}", f"lora_alpha={args.alpha}", f"lora_dropout={args.dropout!r}"]
        name = "LoraConfig"
    else:
        own, name = [f"oft_block_size={args.block_size}", "use_cayley_neumann=False"], "OFTConfig"
    chosen = ["layers_to_transform=layers"] if some else []
    settings = [*own, f"target_modules={targets}", *chosen, f'task_type="{task}"']
    return [*lines, f"model = get_peft_model(model, {name}({', '.join(settings)}))"]


def _trl_rows(recipe: Recipe, *, replay: bool) -> list[str]:
    run_spec, train = recipe.spec, recipe.spec.train
    read = "encoded(read({!r}))" if run_spec.objective == "sft" else "read({!r})"
    lines = [f"rows = {read.format(TRAIN)}"]
    if recipe.evaluates:
        lines.append(f"held_out = {read.format(EVALUATE)}")
    if run_spec.objective == "kto":
        lines.append("random.Random(SEED).shuffle(rows)  # TRL's sampler for KTO does not shuffle")
    if replay:
        lines += [
            "# All epochs as one pass, each shuffled with general rows of its own, so none is learned by heart.",
            f"per_epoch = round(len(rows) * {train.replay_share!r} / (1 - {train.replay_share!r}))",
            f"general = encoded(read({GENERAL!r}))",
            "dice, laid = random.Random(SEED), []",
            f"for epoch_number in range({math.ceil(train.epochs)}):",
            "    start = epoch_number * per_epoch",
            "    epoch = [*rows, *(general[i % len(general)] for i in range(start, start + per_epoch))]",
            "    dice.shuffle(epoch)",
            "    laid += epoch",
            f"rows = laid[: max(1, round({train.epochs!r} * (len(rows) + per_epoch)))]",
        ]
    return lines


def _trl_arguments(recipe: Recipe, config: str, *, replay: bool) -> list[str]:
    run_spec, train = recipe.spec, recipe.spec.train
    batch = train.batch_size
    settings: dict[str, Any] = {
        "output_dir": "out",
        "max_steps": train.max_steps or -1,
        "num_train_epochs": 1 if replay else train.epochs,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup if train.warmup < 1 else int(train.warmup),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch if run_spec.objective == "kto" else max(8, batch),
        "gradient_accumulation_steps": train.accumulation,
        "gradient_checkpointing": bool(train.gradient_checkpointing),
        "seed": train.seed,
        "data_seed": train.seed,
        "logging_steps": 1,
        "report_to": train.report_to,
    }
    if train.optimizer == "adamw_8bit":
        settings["optim"] = "adamw_bnb_8bit"
    if train.padding_free and run_spec.objective == "sft":
        settings["padding_free"] = True
    if replay:
        settings["train_sampling_strategy"] = "sequential"
    if run_spec.objective == "kto":
        good, bad = run_spec.objective_args.weights or (1.0, 1.0)
        settings |= {
            "train_sampling_strategy": "sequential", "desirable_weight": good, "undesirable_weight": bad,
        }  # fmt: skip
    if run_spec.objective in ("dpo", "kto"):
        settings["beta"] = run_spec.objective_args.beta or OBJECTIVES[run_spec.objective].usual_beta
        settings["precompute_ref_log_probs"] = run_spec.adapter == "full"
    if run_spec.objective == "reward":
        settings["center_rewards_coefficient"] = 0.01
    if recipe.evaluates:
        share = 1 / train.evaluations
        settings |= {"eval_steps": share if share < 1 else 0.999999, "save_steps": share if share < 1 else 0.999999}
        settings |= {"save_total_limit": 2, "load_best_model_at_end": keeps_best(recipe)}
        settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    lines = [f"args = {config}("]
    lines += [f"    {name}={value!r}," for name, value in settings.items()]
    lines += ["    max_length=MAX_LENGTH,", "    bf16=bf16,", "    use_cpu=not cuda,"]
    if recipe.evaluates:
        lines.append('    eval_strategy="steps" if held_out else "no",')
    return [*lines, ")"]

"""Take a run's recipe to other trainers: a plain TRL script, LLaMA-Factory's and Axolotl's YAML, each with its rows.

What a trainer cannot say stands in the head of its file. Keys are those of TRL 1.12 (SFTConfig and its like),
LLaMA-Factory 0.9.5 (src/llamafactory/hparams, data/README.md) and Axolotl (src/axolotl/utils/schemas, September 2026).
"""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engine.check import DatasetError
from engine.data import datasets
from engine.export import STRAIGHTEN_IMPORT, STRAIGHTEN_LINES, NotExportable, because, is_conv1d
from engine.models import bases, templates
from engine.runs import store
from engine.spec import RunSpec, counts, objectives, split
from engine.words import Problem, t
from engine.workspace import Workspace

TOOLS = {"trl": "TRL", "llama-factory": "LLaMA-Factory", "axolotl": "Axolotl"}
TRAIN, EVALUATE, GENERAL = "train.jsonl", "eval.jsonl", "general.jsonl"

# LLaMA-Factory's own names of chat templates (src/llamafactory/data/template.py), by the start of a base's hub id.
_TEMPLATES = {
    "Qwen/Qwen3": "qwen3_nothink", "Qwen/Qwen2": "qwen", "meta-llama/Llama-3": "llama3", "meta-llama/Meta-Llama-3": "llama3",
    "meta-llama/Llama-2": "llama2", "mistralai/Mistral": "mistral", "google/gemma-2": "gemma", "google/gemma-3": "gemma3",
    "microsoft/Phi-4": "phi4", "HuggingFaceTB/SmolLM2": "smollm2", "deepseek-ai/DeepSeek-R1": "deepseekr1",
}  # fmt: skip


class Recipe(NamedTuple):
    """What other trainers need of a run: its spec, its base as they find it, how its rows are laid out, and how many
    layers the base has (None: not known here)."""

    spec: RunSpec
    run_id: str
    base: str
    kind: str  # messages, prompt, text, preference, marked or question
    depth: int | None
    tools: bool = False
    general: str = "own"  # where replayed rows come from: data, the starter's world, or the base's own answers
    conv1d: bool = False  # GPT-2's layers

    @property
    def evaluates(self) -> bool:
        return self.spec.dataset.eval_id is not None or self.spec.dataset.eval_share > 0


def _cannot(tool: str, reason: str, remedy: str) -> NotExportable:
    problem = Problem(rule="elsewhere", parameters={"tool": TOOLS[tool], "reason": reason, "remedy": remedy})
    return because(problem)


def recipe_of(workspace: Workspace, run_id: str) -> Recipe:
    """Return a run as other trainers need it. Raises NotExportable when its data is gone."""
    run_spec = store.load_spec(workspace, run_id)
    base = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision)
    first = _first_row(workspace, run_spec.dataset.id)
    if run_spec.objective in ("dpo", "reward"):
        kind = "preference"
    elif run_spec.objective == "kto":
        kind = "marked"
    elif run_spec.objective == "ppo":
        kind = "question"
    else:
        kind = next((name for name in ("messages", "prompt") if first.get(name)), "text")
    named = "base" if base.kind in ("starter", "run") else base.ref
    general = "data" if run_spec.train.replay_data else "world" if base.is_toy else "own"
    return Recipe(run_spec, run_id, named, kind, base.layers, bool(first.get("tools")), general, is_conv1d(base))


def _first_row(workspace: Workspace, dataset_id: str) -> dict[str, Any]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(datasets.rows_path(workspace, dataset_id)) as file:
            return next(file.iter_batches(batch_size=1)).to_pylist()[0]
    except (DatasetError, OSError, ValueError, StopIteration) as error:
        raise because(Problem(rule="dataset-missing", parameters={"id": dataset_id[:80]})) from error


def _rows(workspace: Workspace, dataset_id: str) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_table(datasets.rows_path(workspace, dataset_id)).to_pylist()
    except (DatasetError, OSError, ValueError) as error:
        raise because(Problem(rule="dataset-missing", parameters={"id": dataset_id[:80]})) from error
    return found


def _row(row: dict[str, Any], kind: str, tool: str) -> dict[str, Any] | None:
    """Return a canonical row as a trainer reads it; None where it cannot."""
    if kind == "text" or row.get("text") is not None:
        return {"text": row["text"]}
    parts = {
        name: templates.for_template(row[name])
        for name in ("prompt", "completion", "chosen", "rejected", "messages")
        if row.get(name)
    }
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    if kind == "messages":
        return {"messages": parts.get("messages", []), **tools}
    if kind == "question":
        return {"prompt" if tool == "trl" else "messages": parts["prompt"], **tools}
    if kind == "marked":
        if tool == "trl":
            return {"prompt": parts["prompt"], "completion": parts["completion"], "label": row["label"]}
        return {"messages": parts["prompt"] + parts["completion"], "label": row["label"]}
    if kind == "preference":
        if tool == "trl":
            return {name: parts[name] for name in ("prompt", "chosen", "rejected")}
        if len(parts["chosen"]) != 1 or len(parts["rejected"]) != 1:
            return None
        return {"messages": parts["prompt"], "chosen": parts["chosen"][0], "rejected": parts["rejected"][0]}
    if tool == "trl":
        return {"prompt": parts["prompt"], "completion": parts["completion"], **tools}
    turns = parts["prompt"] + parts["completion"]
    if tool == "axolotl":  # only the last answer is learned
        turns = [{**m, "train": i == len(turns) - 1 and m["role"] == "assistant"} for i, m in enumerate(turns)]
    return {"messages": turns, **tools}


def write(workspace: Workspace, run_id: str, tool: str, target: Path) -> list[Path]:
    """Write a run's recipe for `tool` (a name of TOOLS) with its rows into `target`, which must be new or empty, and
    return the files. Raises NotExportable when the tool cannot do what the run did; nothing is left then."""
    recipe = recipe_of(workspace, run_id)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise because(Problem(rule="export-in-the-way", parameters={"folder": str(target)}))
    texts = files(recipe, tool)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        train, out = split.divide(recipe.spec.dataset, lambda dataset_id: _rows(workspace, dataset_id))
        _write_rows(partial / TRAIN, [_row(row, recipe.kind, tool) for row in train])
        if recipe.evaluates:
            _write_rows(partial / EVALUATE, [_row(row, recipe.kind, tool) for row in out])
        if tool == "trl" and _mixes(recipe):
            _write_rows(partial / GENERAL, _general(workspace, recipe, len(train)))
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        base = bases.describe(recipe.spec.base.ref, workspace)
        if base.kind == "starter" and base.folder is not None:
            shutil.copytree(base.folder, partial / "base")
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return sorted(path for path in target.iterdir())


def _write_rows(path: Path, rows: list[dict[str, Any] | None]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            if row is not None:
                file.write(json.dumps(row) + "\n")


def _mixes(recipe: Recipe) -> bool:
    """Whether the run's general rows can be carried; what a base wrote itself cannot."""
    return recipe.spec.objective == "sft" and recipe.spec.train.replay_share > 0 and recipe.general != "own"


def _general(workspace: Workspace, recipe: Recipe, rows: int) -> list[dict[str, Any] | None]:
    """The general rows, in the order in which the run drew them (engine/train/rows.py)."""
    from engine.starter import world

    train = recipe.spec.train
    if train.replay_data:
        found = _rows(workspace, train.replay_data)
        random.Random(train.seed).shuffle(found)  # noqa: S311 - an order, not a secret
        kinds = [next((name for name in ("messages", "prompt") if row.get(name)), "text") for row in found]
        return [_row(row, kind, "trl") for row, kind in zip(found, kinds, strict=True)]
    count = counts.replayed_rows(train, rows) * math.ceil(train.epochs)
    return [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "completion": [{"role": "assistant", "content": pair["completion"]}],
        }
        for pair in world.replay_rows(count, train.seed)
    ]


def files(recipe: Recipe, tool: str) -> dict[str, str]:
    """Return the files of a recipe for a tool but for its rows: name -> text. Raises NotExportable when it cannot be
    done there."""
    if recipe.spec.objective == "ppo":
        return _ppo(recipe, tool)
    return {"trl": _trl, "llama-factory": _llama_factory, "axolotl": _axolotl}[tool](recipe)


def others() -> list[str]:
    """Return what two more tools would need, which have no file of settings that can be written from outside."""
    return [
        t(
            "H2O LLM Studio: wants a table with one question and one answer column (CSV or Parquet) and is set up on its "
            "own page; take train.jsonl of the LLaMA-Factory export into such a table. It has no OFT and no training of "
            "single layers."
        ),
        t(
            "AutoTrain: wants the rows as a data set on the hub with one text column, already written in the base's chat "
            "template; `autotrain llm --help` names its settings. It has no OFT, no replay and no training of single layers."
        ),
    ]


# --- what cannot be said there -----------------------------------------------------------------------------------


def _always(recipe: Recipe) -> list[str]:
    found = ["the scores before and after (gained and forgotten): only Tunebook makes them"]
    if recipe.spec.base.ref.startswith("run:"):
        run_id = recipe.spec.base.ref.removeprefix("run:")
        found.append(
            f"its base is what another run made: make it with `tunebook export {run_id} --what merged --to base`, beside "
            "this file"
        )
    return found


def _revision(recipe: Recipe) -> str | None:
    return recipe.spec.base.revision if recipe.base == recipe.spec.base.ref else None


def _head(recipe: Recipe, what: str, how: list[str], lost: list[str]) -> list[str]:
    return [
        f"{what} of the Tunebook run {recipe.run_id} (recipe {recipe.spec.recipe.name}).",
        "",
        "Run it:",
        *[f"    {line}" for line in how],
        "",
        "Not the same as in the run:",
        *[f"  - {line}" for line in lost],
    ]


def _commented(lines: list[str]) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _targets(recipe: Recipe) -> list[str] | None:
    """The modules that get an adapter; None for all linear ones."""
    names = recipe.spec.adapter_args.target_modules
    return None if names == "all-linear" else [name.strip() for name in names.split(",")]


# --- TRL -----------------------------------------------------------------------------------------------------------

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


def _trl(recipe: Recipe) -> dict[str, str]:
    run_spec, train = recipe.spec, recipe.spec.train
    config, trainer = _TRAINERS[run_spec.objective]
    lost = _always(recipe)
    if run_spec.objective != "sft":
        lost.append("TRL cuts and marks the rows itself: an answer may be a token longer or shorter than in the run")
    if run_spec.adapter == "oft":
        lost.append("plain peft rotates the inputs: the same numbers, more slowly")
    if train.replay_share and not _mixes(recipe):
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
    head = "\n".join(_head(recipe, "The recipe", how, lost)).replace("\\", "\\\\").replace('"""', "'''")
    lines += [f'"""{head}\n"""', ""]
    adapters = {"lora": "LoraConfig", "oft": "OFTConfig"}
    peft = [] if run_spec.adapter == "full" else [adapters[run_spec.adapter], "get_peft_model"]
    kind = "AutoModelForSequenceClassification" if run_spec.objective == "reward" else "AutoModelForCausalLM"
    replay = _mixes(recipe)
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
    revision = f", revision={_revision(recipe)!r}" if _revision(recipe) else ""
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
    by_name = recipe.spec.adapter == "lora" and recipe.spec.layers != "all" and _targets(recipe) is None
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
    targets = repr(_targets(recipe) or "all-linear")
    linear = "(torch.nn.Linear, Conv1D)" if _needs_conv1d(recipe) else "torch.nn.Linear"
    if some and _targets(recipe) is None:
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
        settings["beta"] = run_spec.objective_args.beta or objectives.USUAL_BETA
        settings["precompute_ref_log_probs"] = run_spec.adapter == "full"
    if run_spec.objective == "reward":
        settings["center_rewards_coefficient"] = 0.01
    if recipe.evaluates:
        share = 1 / train.evaluations
        settings |= {"eval_steps": share if share < 1 else 0.999999, "save_steps": share if share < 1 else 0.999999}
        settings |= {"save_total_limit": 2, "load_best_model_at_end": _keeps_best(recipe)}
        settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    lines = [f"args = {config}("]
    lines += [f"    {name}={value!r}," for name, value in settings.items()]
    lines += ["    max_length=MAX_LENGTH,", "    bf16=bf16,", "    use_cpu=not cuda,"]
    if recipe.evaluates:
        lines.append('    eval_strategy="steps" if held_out else "no",')
    return [*lines, ")"]


# --- PPO -----------------------------------------------------------------------------------------------------------

_NO_PPO = {
    "trl": "TRL 1.12's PPOTrainer hears no stop, goes on from no checkpoint and drops questions at the end of a pass; the "
    "run's own loop around it is no script",
    "llama-factory": "its stage ppo wants a reward model with a value head that was trained there",
    "axolotl": "it has no PPO",
}


def _ppo(recipe: Recipe, tool: str) -> dict[str, str]:
    """A file that says why PPO cannot be expressed there, with all that the run was told; the questions lie beside it."""
    run_spec, args = recipe.spec, recipe.spec.objective_args
    told = {
        "base": run_spec.base.pinned, "reward_model": args.reward_model or "", "beta": args.beta,
        "answer_tokens": args.answer_tokens, "temperature": args.temperature, "ppo_epochs": args.ppo_epochs,
        "missing_end_penalty": args.missing_end_penalty, "adapter": run_spec.adapter,
        "learning_rate": run_spec.train.learning_rate, "batch_size": run_spec.train.batch_size,
        "accumulation": run_spec.train.accumulation, "epochs": run_spec.train.epochs, "seed": run_spec.train.seed,
    }  # fmt: skip
    lost = [f"PPO cannot be expressed here: {_NO_PPO[tool]}", *_always(recipe)]
    head = [
        *_head(recipe, f"No recipe for {TOOLS[tool]}: what was asked", [f"tunebook show {recipe.run_id}"], lost),
        "",
    ]
    head += ["What the run was told:", *[f"    {name}: {value}" for name, value in told.items()]]
    if tool == "trl":
        return {"train.py": _commented(head) + f"\nraise SystemExit({lost[0]!r})\n"}
    return {"train.yaml": _commented(head)}


# --- LLaMA-Factory and Axolotl -------------------------------------------------------------------------------------


def _yaml(head: list[str], settings: dict[str, Any]) -> str:
    return _commented(head) + "\n" + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def _lost(recipe: Recipe) -> list[str]:
    """What neither of the two can say."""
    found, train = _always(recipe), recipe.spec.train
    if train.replay_share:
        found.append(f"train.replay_share = {train.replay_share:g}: the general rows of each epoch are left out")
    if recipe.kind == "preference":
        found.append("pairs whose answers are more than one message are left out")
    found.append("rows come in another order, and an answer may be marked a token longer or shorter")
    if recipe.tools:
        found.append("tool calls are written as OpenAI does; check that its template shows them")
    if recipe.spec.objective == "reward":
        found.append("rewards are not kept around 0 (the run adds 0.01 times their squared sum)")
    if recipe.base == "base" and not recipe.spec.base.ref.startswith("run:"):
        found.append("the base is Tunebook's starter, a toy of a million weights that lies in base/")
    return found


def _chosen_layers(recipe: Recipe, tool: str) -> list[int] | None:
    if recipe.spec.layers == "all":
        return None
    if recipe.depth is None and not isinstance(recipe.spec.layers, list):
        raise _cannot(tool, t("the number of layers of the base is not known here"), t("take the TRL script instead"))
    return counts.layer_indices(recipe.spec.layers, recipe.depth or 10**6)


def _llama_factory(recipe: Recipe) -> dict[str, str]:
    run_spec, train, args = recipe.spec, recipe.spec.train, recipe.spec.adapter_args
    chosen, lost = _chosen_layers(recipe, "llama-factory"), _lost(recipe)
    stage = {"sft": "pt" if recipe.kind == "text" else "sft", "dpo": "dpo", "kto": "kto", "reward": "rm"}[
        run_spec.objective
    ]
    settings: dict[str, Any] = {"model_name_or_path": recipe.base}
    if _revision(recipe):
        settings["model_revision"] = _revision(recipe)
    if run_spec.quantize != "none":
        settings |= {"quantization_bit": int(run_spec.quantize.removesuffix("bit")), "quantization_method": "bnb"}
        if run_spec.quantize == "4bit":
            settings["double_quantization"] = True
    settings |= {"stage": stage, "do_train": True}
    targets = ",".join(_targets(recipe) or ["all"])
    if run_spec.adapter == "lora":
        settings |= {
            "finetuning_type": "lora", "lora_rank": args.rank, "lora_alpha": args.alpha, "lora_dropout": args.dropout,
            "lora_target": targets,
        }  # fmt: skip
    elif run_spec.adapter == "oft" and recipe.conv1d:
        reason = t("peft's OFT cannot turn the layers of GPT-2 as they are")
        raise _cannot("llama-factory", reason, t("take the TRL script instead"))
    elif run_spec.adapter == "oft":
        settings |= {"finetuning_type": "oft", "oft_block_size": args.block_size, "oft_target": targets}
        lost.append(
            "OFT: rotations may be approximated by a series there (peft's use_cayley_neumann), and are exact here"
        )
    elif chosen is None:
        settings["finetuning_type"] = "full"
    else:
        depth = recipe.depth or 0
        if chosen != list(range(depth - len(chosen), depth)):
            raise _cannot("llama-factory", t("it can train the last layers only"), t("take the TRL script instead"))
        settings |= {"finetuning_type": "freeze", "freeze_trainable_layers": len(chosen)}
        if run_spec.train_head:
            lost.append(
                "the output layer stays frozen; where it is not the embedding, add freeze_extra_modules: lm_head,norm"
            )
    if chosen is not None and run_spec.adapter != "full":
        lost.append(f"layers = {run_spec.layers}: the adapter sits on all layers there")
    if run_spec.objective in ("dpo", "kto"):
        settings["pref_beta"] = run_spec.objective_args.beta or objectives.USUAL_BETA
    if run_spec.objective == "kto":
        good, bad = run_spec.objective_args.weights or (1.0, 1.0)
        settings |= {"kto_chosen_weight": good, "kto_rejected_weight": bad}
    template = next((name for start, name in _TEMPLATES.items() if recipe.base.startswith(start)), None)
    if template is None and recipe.kind != "text":
        lost.append(
            "the name of its chat template is not known here: `template: default` writes other marks around turns than the "
            "run; put in the base's own (data/template.py there)"
        )
    settings |= {"dataset_dir": ".", "dataset": "tunebook_train"}
    if recipe.evaluates:
        settings["eval_dataset"] = "tunebook_eval"
    settings |= {"template": template or "default", "cutoff_len": train.max_length}
    if recipe.kind == "prompt":
        settings["mask_history"] = True  # only the last answer is learned
    settings |= _trainer_settings(recipe)
    if _keeps_best(recipe):
        settings |= {
            "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False,
        }  # fmt: skip
    if train.early_stopping and recipe.evaluates:
        settings["early_stopping_steps"] = train.early_stopping
    how = ["llamafactory-cli train train.yaml", "FORCE_TORCHRUN=1 llamafactory-cli train train.yaml   # several cards"]
    head = _head(recipe, "LLaMA-Factory's settings", how, lost)
    info = {"tunebook_train": _dataset_entry(recipe, TRAIN)}
    if recipe.evaluates:
        info["tunebook_eval"] = _dataset_entry(recipe, EVALUATE)
    return {"train.yaml": _yaml(head, settings), "dataset_info.json": json.dumps(info, indent=2) + "\n"}


def _keeps_best(recipe: Recipe) -> bool:
    return recipe.evaluates and (recipe.spec.train.keep_best or recipe.spec.train.early_stopping > 0)


def _optimizer(recipe: Recipe) -> str:
    return "adamw_bnb_8bit" if recipe.spec.train.optimizer == "adamw_8bit" else "adamw_torch_fused"


def _trainer_settings(recipe: Recipe) -> dict[str, Any]:
    """What LLaMA-Factory hands on to transformers' trainer."""
    train = recipe.spec.train
    settings: dict[str, Any] = {
        "output_dir": "out", "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulation, "learning_rate": train.learning_rate,
        "num_train_epochs": train.epochs,
    }  # fmt: skip
    if train.max_steps:
        settings["max_steps"] = train.max_steps
    settings |= {"lr_scheduler_type": train.schedule}
    settings |= {"warmup_ratio": train.warmup} if train.warmup < 1 else {"warmup_steps": int(train.warmup)}
    settings |= {
        "weight_decay": train.weight_decay, "max_grad_norm": train.max_grad_norm, "seed": train.seed,
        "bf16": True, "gradient_checkpointing": bool(train.gradient_checkpointing),
        "optim": _optimizer(recipe), "logging_steps": 1, "save_total_limit": 2, "report_to": train.report_to,
    }  # fmt: skip
    if recipe.evaluates:
        share = round(1 / train.evaluations, 4)
        settings |= {"eval_strategy": "steps", "eval_steps": share, "save_strategy": "steps", "save_steps": share}
    return settings


def _dataset_entry(recipe: Recipe, file: str) -> dict[str, Any]:
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


def _axolotl(recipe: Recipe) -> dict[str, str]:
    run_spec, train, args = recipe.spec, recipe.spec.train, recipe.spec.adapter_args
    if run_spec.adapter == "oft":
        raise _cannot("axolotl", t("it has LoRA and full training, no OFT"), t("take the TRL script or LLaMA-Factory"))
    if run_spec.objective in ("kto", "reward"):
        reason = t("its data formats for this do not go by the base's chat template")
        raise _cannot("axolotl", reason, t("take the TRL script or LLaMA-Factory"))
    chosen, lost = _chosen_layers(recipe, "axolotl"), _lost(recipe)
    settings: dict[str, Any] = {"base_model": recipe.base}
    if _revision(recipe):
        settings["revision_of_model"] = _revision(recipe)
    if run_spec.adapter == "lora":
        settings["adapter"] = "qlora" if run_spec.quantize == "4bit" else "lora"
        if run_spec.quantize != "none":
            settings[f"load_in_{run_spec.quantize}"] = True
        settings |= {"lora_r": args.rank, "lora_alpha": args.alpha, "lora_dropout": args.dropout}
        targets = _targets(recipe)
        settings |= {"lora_target_linear": True} if targets is None else {"lora_target_modules": targets}
        if chosen is not None:
            settings["peft_layers_to_transform"] = chosen
    elif chosen is not None:
        numbers = "|".join(map(str, chosen))
        settings["unfrozen_parameters"] = [rf"^.*\.(?:layers|h|blocks)\.(?:{numbers})\."]
        if run_spec.train_head:
            last_norm = r"^transformer\.ln_f\." if recipe.conv1d else r"^model\.norm\."
            settings["unfrozen_parameters"] += [r"^lm_head\.", last_norm]
            lost.append("where the output layer is the embedding, it stays frozen there and trains in the run")
    if run_spec.objective == "dpo":
        settings |= {"rl": "dpo", "rl_beta": run_spec.objective_args.beta or objectives.USUAL_BETA}
    settings["datasets"] = [_axolotl_data(recipe, TRAIN)]
    if recipe.evaluates:
        settings["test_datasets"] = [{**_axolotl_data(recipe, EVALUATE), "split": "train"}]
    if recipe.kind != "text":
        settings["chat_template"] = "tokenizer_default"
    settings |= {
        "sequence_len": train.max_length, "sample_packing": False, "micro_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulation, "num_epochs": train.epochs,
    }  # fmt: skip
    if train.max_steps:
        settings["max_steps"] = train.max_steps
    settings |= {"optimizer": _optimizer(recipe), "learning_rate": train.learning_rate, "lr_scheduler": train.schedule}
    settings |= {"warmup_ratio": train.warmup} if train.warmup < 1 else {"warmup_steps": int(train.warmup)}
    settings |= {
        "weight_decay": train.weight_decay, "max_grad_norm": train.max_grad_norm, "seed": train.seed, "bf16": "auto",
        "gradient_checkpointing": bool(train.gradient_checkpointing), "logging_steps": 1, "output_dir": "out",
    }  # fmt: skip
    if recipe.evaluates:
        share = round(1 / train.evaluations, 4)
        settings |= {"eval_strategy": "steps", "eval_steps": share, "save_steps": share, "save_total_limit": 2}
        if _keeps_best(recipe):
            settings["load_best_model_at_end"] = True
        if train.early_stopping:
            settings["early_stopping_patience"] = train.early_stopping
    if train.report_to == "tensorboard":
        settings["use_tensorboard"] = True
    elif train.report_to != "none":
        lost.append(f"train.report_to = {train.report_to}: set its own keys ({train.report_to}_project and the like)")
    how = ["axolotl train train.yaml", "accelerate launch -m axolotl.cli.train train.yaml   # the same, several cards"]
    return {"train.yaml": _yaml(_head(recipe, "Axolotl's settings", how, lost), settings)}


def _axolotl_data(recipe: Recipe, file: str) -> dict[str, Any]:
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

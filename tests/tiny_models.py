"""Random models of a few thousand weights in the shapes people bring: a Llama with a tied head, a Qwen2 that has biases
and pads with its end token, a GPT-2 built of Conv1D without a chat template or a padding token; and runs on them, one
after another in one process, through the same code as the child's; "hub:qwen2" is fetched from a hub of our own first,
"4bit:llama" is stored in 4 bits (DRESSED has more), and "run:0" is what the first of these runs has made.
For tests alone.

    python -m tests.tiny_models HOME '[["llama", "lora", {"train.max_steps": 2}], ["hub:gpt2", "kto", {}], ...]'
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine import events, starter
from engine.data import datasets
from engine.models import cache, hub
from engine.runs import failures, store
from engine.spec import schema
from engine.words import t
from engine.workspace import Workspace, new_run_id
from tests.helpers import planned
from tests.hub import Hub, Repository

SHAPES = ("llama", "qwen2", "gpt2")
ROWS = [{"prompt": f"What is {i} plus one?", "completion": f"It is {i + 1}."} for i in range(16)]
# Nothing can be learned from these but by heart: the held-out loss falls with the form of the answer, then rises.
CODES = [{"prompt": f"What is the code of door {i}?", "completion": str(i * 7919 % 9973)} for i in range(40)]
SHORT: dict[str, Any] = {
    "train.max_steps": 2, "train.batch_size": 4, "train.accumulation": 1, "train.max_length": 64, "train.threads": 1,
    "train.evaluations": 1, "dataset.eval_share": 0.25,
}  # fmt: skip


def make(folder: Path, shape: str) -> Path:
    """Write a random model of one shape with the starter's tokens and return its folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR, trust_remote_code=False)
    if shape == "gpt2":
        tokenizer.chat_template = None
    if shape != "llama":
        tokenizer.pad_token = tokenizer.eos_token if shape == "qwen2" else None
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    deep: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    if shape == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **deep, tie_word_embeddings=True))
    elif shape == "qwen2":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**size, **deep, tie_word_embeddings=False))
    else:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**size, n_embd=64, n_layer=2, n_head=4, n_positions=256)
        )
    target = folder / shape
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def in_4_bits(folder: Path) -> None:
    """Store a model in 4 bits."""
    import torch
    import transformers

    bits = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=bits, dtype=torch.float32, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)


def in_bf16(folder: Path) -> None:
    """Store a model in bf16, as most bases are."""
    _changed(folder, lambda held: held.update({name: one.bfloat16() for name, one in held.items()}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))


def with_adapter(folder: Path) -> None:
    """Put an adapter beside a model that would change all it says."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(str(folder))


def _changed(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def without_numbers(folder: Path) -> None:
    """Let a model hold NaN in one place."""
    _changed(folder, lambda held: held["model.layers.1.mlp.down_proj.weight"][3, :2].fill_(float("nan")))


def without_part(folder: Path) -> None:
    """Take a tensor out of a model."""
    _changed(folder, lambda held: held.pop("model.layers.1.mlp.down_proj.weight"))


DRESSED = {"4bit": in_4_bits, "bf16": in_bf16, "adapter": with_adapter, "nan": without_numbers, "part": without_part}


def train(workspace: Workspace, base: str, recipe: str, data: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train in this process and return exit status and run folder, or the rules of what keeps it from starting."""
    from engine.train.__main__ import run

    overrides = {**SHORT, **settings}
    made, problems = planned(workspace, recipe, base=base, dataset=data, overrides=overrides)
    if made is None or problems:
        return {"refused": [problem.rule for problem in problems]}
    run_dir = workspace.run_dir(new_run_id(random_bytes=8))
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(made))
    log = events.EventLog(run_dir)
    try:
        status = run(run_dir, log)
    except failures.RunRefused as refused:
        return {"refused": [refused.problem.rule], "run": str(run_dir)}
    finally:
        log.close()
    store.write_summary(run_dir)
    return {"status": status, "run": str(run_dir), "unsloth": "unsloth" in sys.modules}


def merge(run_dir: Path) -> dict[str, Any]:
    """Merge what a run has made and return how it compares, and the names of all its weights; the names are those of the
    base where the base's architecture reads them."""
    from safetensors import safe_open

    from engine.train import export

    parity = export.write(run_dir, run_dir / "merged", "auto", lambda _: None)
    with safe_open(run_dir / "merged" / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict
    return {"parity": msgspec.to_builtins(parity), "shapes": shapes}


def fetched(folder: Path, shape: str) -> str:
    """Serve a model of one shape from a hub of our own, fetch it into the hub's cache below `folder` as a person does,
    and return its id."""
    from huggingface_hub import constants

    os.environ["HF_HUB_CACHE"] = str(folder / "cache")
    os.environ.pop("HF_HUB_OFFLINE", None)
    constants.HF_HUB_OFFLINE = False  # read when the library was imported
    name = f"tiny/{shape}"
    if name not in cache.cached():
        files = {path.name: path.read_bytes() for path in make(folder / "made", shape).iterdir()}
        server = Hub()
        server.models[name] = Repository(files)
        os.environ["HF_ENDPOINT"] = server.url
        hub.fetch(name)
        server.close()
    return name


def main() -> None:
    home = Path(sys.argv[1])
    workspace = Workspace(home)
    home.mkdir(parents=True, exist_ok=True)
    rows = home / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = datasets.add(workspace, rows, t("rows")).id
    codes = home / "codes.jsonl"
    codes.write_text("".join(json.dumps(row) + "\n" for row in CODES))
    results = []
    for base, recipe, settings in json.loads(sys.argv[2]):
        if base.startswith("hub:"):
            base = fetched(home / "hub", base.removeprefix("hub:"))
        if base in SHAPES:
            folder = home / "bases" / base
            base = str(folder if folder.exists() else make(home / "bases", base))
        dress, _, shape = base.partition(":")
        if dress in DRESSED:
            folder = home / "dressed" / dress / shape
            if not folder.exists():
                DRESSED[dress](make(home / "dressed" / dress, shape))
            base = str(folder)
        if dress == "run":
            base = f"run:{Path(results[int(shape)]['run']).name}"
        which = settings.pop("data", data)
        if which == "codes":
            which = datasets.add(workspace, codes, t("codes")).id
        if which in {sample.name for sample in starter.SAMPLES}:
            which = datasets.add_sample(workspace, starter.sample(which)).id
        merges = settings.pop("merge", False)
        results.append(train(workspace, base, recipe, which, settings))
        if merges and "run" in results[-1]:
            results[-1] |= merge(Path(results[-1]["run"]))
    print(json.dumps(results))


if __name__ == "__main__":
    main()

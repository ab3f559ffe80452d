"""What works on which architecture: docs/architectures.md, of a tiny random model of each. `make architectures`.

Each goes through what a base goes through: its shape is counted on the meta device and held against the model, it is
trained for two steps with LoRA, OFT, the lower layers frozen, and whole, and what came of it is merged, written and read
back. All in one process; random weights say nothing of quality.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from engine import events, processes, starter
from engine.data import datasets
from engine.models import bases
from engine.plan import plans
from engine.runs import failures, store
from engine.spec import schema
from engine.words import t
from engine.workspace import Workspace, new_run_id
from tools import tables

PAGE = processes.PROJECT_DIR / "docs" / "architectures.md"
ROWS = [{"prompt": f"What is {i} plus one?", "completion": f"It is {i + 1}."} for i in range(12)]
RECIPES = {"LoRA": "lora", "OFT": "oft", "Lower layers frozen": "freeze-bottom", "Full": "full"}
SHORT: dict[str, Any] = {
    "train.max_steps": 2, "train.batch_size": 4, "train.accumulation": 1, "train.max_length": 64, "train.threads": 1,
    "train.evaluations": 1, "dataset.eval_share": 0.25, "train.replay_share": 0.0, "evaluate.benchmarks": [],
    "evaluate.limit": 1, "machine.precision": "fp32",
}  # fmt: skip

# The dimensions of all of them, under the names that most config.json have.
DIMENSIONS: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip
_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
_STATES = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


class Architecture(NamedTuple):
    """A model type of transformers, what people know it by, and what its config has besides DIMENSIONS."""

    kind: str
    known_as: str
    more: dict[str, Any] | None = None


ARCHITECTURES = (
    Architecture("llama", "Llama 2, 3; SmolLM2; TinyLlama", {"tie_word_embeddings": True}),
    Architecture("smollm3", "SmolLM3"),
    Architecture("qwen2", "Qwen2, 2.5"),
    Architecture("qwen3", "Qwen3"),
    Architecture("qwen3_5_text", "Qwen3.5, its text part", {**_STATES, "num_hidden_layers": 4}),
    Architecture("qwen3_next", "Qwen3-Next", {**_EXPERTS, **_STATES, "shared_expert_intermediate_size": 32,
                                              "num_hidden_layers": 4}),
    Architecture("qwen3_moe", "Qwen3 mixtures (30B-A3B)", _EXPERTS),
    Architecture("mistral", "Mistral 7B"),
    Architecture("ministral3", "Ministral 3, its text part"),
    Architecture("mixtral", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture("gemma", "Gemma"),
    Architecture("gemma2", "Gemma 2"),
    Architecture("gemma3_text", "Gemma 3, texts only (270M, 1B)"),
    Architecture("gemma3", "Gemma 3 that also sees (4B to 27B)"),
    Architecture("gemma4_text", "Gemma 4, its text part", {"hidden_size_per_layer_input": 16}),
    Architecture("phi3", "Phi-3, Phi-4"),
    Architecture("olmo2", "OLMo 2"),
    Architecture("olmo3", "OLMo 3"),
    Architecture("granite", "Granite 3", {"logits_scaling": 8.0}),
    Architecture("granitemoehybrid", "Granite 4", {"logits_scaling": 8.0,
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16,
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64}),
    Architecture("glm4", "GLM-4"),
    Architecture("lfm2", "LFM2", {"block_ff_dim": 128, "layer_types": ["conv", "full_attention"]}),
    Architecture("cohere2", "Command R7B"),
    Architecture("exaone4", "EXAONE 4"),
    Architecture("falcon_h1", "Falcon-H1", {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16,
                                            "mamba_d_state": 16, "mamba_n_groups": 1}),
    Architecture("deepseek_v3", "DeepSeek-V3, R1", {
        "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8}),
    Architecture("gpt_oss", "gpt-oss", {"num_local_experts": 4, "num_experts_per_tok": 2,
                                        "layer_types": ["sliding_attention", "full_attention"]}),
    Architecture("gpt2", "GPT-2"),
    Architecture("gpt_neox", "Pythia, GPT-NeoX"),
    Architecture("starcoder2", "StarCoder2"),
    Architecture("stablelm", "StableLM 2"),
    Architecture("nemotron", "Nemotron, Minitron"),
    Architecture("falcon_mamba", "Falcon Mamba"),
)  # fmt: skip


def make(one: Architecture, folder: Path) -> Path:
    """Write a random model of an architecture with the starter's tokens and return its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(starter.MODEL_DIR, trust_remote_code=False)
    words = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id,
             "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    sizes = {**DIMENSIONS, **words, **(one.more or {})}
    if one.kind == "gemma4_text":
        sizes["vocab_size_per_layer_input"] = sizes["vocab_size"]
    if one.kind == "gemma3":
        seeing = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 28, "patch_size": 14}  # fmt: skip
        config = AutoConfig.for_model(one.kind, text_config=sizes, vision_config=seeing, mm_tokens_per_image=4)
    else:
        config = AutoConfig.for_model(one.kind, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(workspace: Workspace, base: str, recipe: str, data: str) -> Path:
    """Train in this process and return the run's folder. Raises RunRefused where the run cannot start or fails."""
    from engine.train.__main__ import run

    plan = plans.make(workspace, recipe, base=base, dataset=data, overrides=SHORT)
    if plan.problems:
        raise failures.RunRefused(plan.problems[0])
    run_dir = workspace.run_dir(new_run_id(random_bytes=8))
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(plan.spec))
    log = events.EventLog(run_dir)
    try:
        run(run_dir, log)
    finally:
        log.close()
    store.write_summary(run_dir)
    return run_dir


def counted(workspace: Workspace, base: Path) -> str:
    """Count an architecture on the meta device as the child does, and hold it against what the files hold."""
    from engine.models import shapes
    from engine.train import outline

    in_files = bases.describe(str(base), workspace).parameters or 0
    found = outline.shape_of(outline.build(base / "config.json"))
    # beside parameters files hold buffers that are saved, such as the one that balances DeepSeek's experts
    buffers = in_files - shapes.count_parameters(found)
    if not 0 <= buffers <= in_files / 1000:
        return f"no: {shapes.count_parameters(found):,} counted, {in_files:,} in the files"
    return "yes"


def row(one: Architecture, scratch: Path) -> list[str]:
    """One line of the table: what of an architecture works, or the first sentence of what kept it from working."""
    from engine.train import export

    workspace = Workspace(scratch / one.kind)
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = datasets.add(workspace, rows, t("rows")).id
    base = make(one, scratch / f"base-{one.kind}")
    found = [one.known_as, f"`{one.kind}`", tried(lambda: counted(workspace, base))]
    for recipe in RECIPES.values():
        made: list[Path] = []

        def trains(recipe: str = recipe, made: list[Path] = made) -> str:
            made.append(train(workspace, str(base), recipe, data))
            return "yes"

        def exports(made: list[Path] = made) -> str:
            export.write(made[0], made[0] / "merged", "auto", lambda _: None)
            return "yes"

        cell = tried(trains)
        found.append(tried(exports) if cell == "yes" else cell)
    return found


def tried(attempt: Any) -> str:
    """Return what an attempt says, or why it failed."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return attempt()
    except failures.RunRefused as refused:
        return f"no: {refused.problem.sentence}"
    except Exception as error:
        if os.environ.get("TUNEBOOK_TRACE"):
            traceback.print_exc()
        return f"FAILS: {type(error).__name__}: {' '.join(str(error).split())[:160]}"


HEADER = ("Known by", "`model_type`", "Counted without weights", *RECIPES)


def rows(chosen: tuple[Architecture, ...] = ARCHITECTURES) -> list[list[str]]:
    """All lines of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        return [row(one, Path(scratch)) for one in chosen]


def words() -> list[str]:
    """What stands above the table."""
    return [
        "# What works on which architecture",
        "",
        f"Made by `make architectures` with transformers {version('transformers')}, on a processor: a tiny random model",
        "of each is counted without its weights, trained for two steps by each way, and what came of it merged, written,",
        "read back and compared. Other architectures that transformers loads are not refused, only not tried here.",
        "What transformers has no writer of texts for is refused before it starts, such as models that see and call",
        "themselves `mistral3` (Ministral 3) or `qwen3_vl`; of Qwen3.5 that sees (`qwen3_5`) it loads the text part.",
    ]


def page() -> str:
    """The page."""
    return tables.page(words(), HEADER, rows())


def main() -> None:
    tables.write(PAGE, page(), __doc__)


if __name__ == "__main__":
    main()

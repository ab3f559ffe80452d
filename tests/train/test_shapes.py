"""Every recipe on models of other shapes that came from a hub: Qwen2 (biases, an untied head, padded with its end token)
and GPT-2 (Conv1D, a fused c_attn, learned positions, a tied head, no chat template, no padding token)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.estimate import memory
from engine.models import Base, alike, shapes
from engine.spec import recipes
from tests.conftest import ROOT
from tests.helpers import planned
from tests.models.test_bases import model
from tests.train.test_backend import HUB_SHAPES, settings, train_all, trained

# Reward models first: PPO takes one of the same shape.
RECIPES = sorted(recipes.recipes(), key=lambda name: (name == "ppo", name))


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize("shape", HUB_SHAPES)
def test_every_recipe_trains_and_merges_on_a_model_of_the_hub(tmp_path, shape):
    made = train_all(tmp_path, [[f"hub:{shape}", recipe, settings(recipe)] for recipe in RECIPES])
    for recipe, run in zip(RECIPES, made, strict=True):
        trained(run, shape, recipe)


LOADS = """
import sys
from pathlib import Path
from engine.export import archive, other_trainers
from engine.workspace import Workspace
home, run_id, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
archive.write_part(Workspace(home), run_id, "adapter", out / "taken")
other_trainers.write(Workspace(home), run_id, "trl", out / "script")
"""


@pytest.mark.slow
@pytest.mark.train
def test_what_oft_made_of_gpt2_loads_with_plain_peft_and_trains_as_a_script(tmp_path):
    """In processes that know nothing of Tunebook, from the hub's cache."""
    asked = {**settings("oft"), "layers": "top:0.5", "merge": False}
    (run,) = train_all(tmp_path / "home", [["hub:gpt2", "oft", asked]])
    run_dir = Path(run["run"])
    cache = {"HF_HUB_CACHE": str(tmp_path / "home" / "hub" / "cache"), "HF_HUB_OFFLINE": "1"}
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | cache

    def python(*words: str, cwd: Path, env: dict[str, str]) -> str:
        done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    python("-c", LOADS, str(tmp_path / "home"), run_dir.name, str(tmp_path), cwd=ROOT, env={**os.environ, **cache})
    taken = tmp_path / "taken"
    compare = (
        "\nimport torch\nfrom safetensors.torch import load_file\n"
        "saved = load_file('adapter/adapter_model.safetensors')\n"
        "held = {n: p for n, p in model.named_parameters() if 'oft_R' in n}\n"
        "assert held and len(held) == len(saved) and any(float(p.abs().sum()) > 0 for p in held.values())\n"
    )
    (taken / "load.py").write_text((taken / "load.py").read_text() + compare)
    python("-P", "load.py", cwd=taken, env=alone)
    python("-P", "train.py", cwd=tmp_path / "script", env=alone | {"HF_DATASETS_CACHE": str(tmp_path / "cache")})
    logged = json.loads((tmp_path / "script" / "out" / "trainer_state.json").read_text())["log_history"]
    assert [math.isfinite(line["loss"]) for line in logged if "loss" in line] == [True, True]


# --- what is known without loading -------------------------------------------------------------------------------

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 1000, "n_positions": 128}


def test_an_adapter_on_modules_that_the_base_lacks_is_refused_with_the_names_it_has(workspace, tmp_path):
    base = str(model(tmp_path / "gpt2", GPT2))

    def found(targets: str) -> list[str]:
        overrides = {"adapter_args.target_modules": targets}
        _, problems = planned(workspace, "lora", base=base, dataset=None, overrides=overrides)
        return [one.sentence for one in problems if one.rule == "targets-unknown"]

    (said,) = found("q_proj, v_proj")
    assert "q_proj, v_proj" in said and "all-linear" in said and "c_attn, c_proj, c_fc" in said
    assert found("c_attn") == found("all-linear") == found("wte") == []


def test_the_feed_forward_part_is_a_word_for_what_each_base_calls_it(workspace, tmp_path):
    base = str(model(tmp_path / "gpt2", GPT2))
    overrides = {"adapter_args.target_modules": "feed-forward"}
    made, problems = planned(workspace, "lora", base=base, dataset=None, overrides=overrides)
    assert made is not None and "targets-no-feed-forward" not in [one.rule for one in problems]
    shape = shapes.read_shape(GPT2)
    assert shape is not None
    assert [(one.name, one.inputs) for one in shape.feed_forward] == [("c_fc", 64), ("c_proj", 256)]
    setup = memory.setup_of(made)
    whole = memory.trained_parameters(shape, msgspec.structs.replace(setup, target_modules="all-linear"))
    assert 0 < memory.trained_parameters(shape, setup) < whole
    unknown = {"model_type": "strange", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
               "intermediate_size": 128, "vocab_size": 1000, "num_experts": 4, "moe_intermediate_size": 64}  # fmt: skip
    found = shapes.read_shape(unknown)
    assert found is not None and found.feed_forward == ()


@pytest.mark.parametrize("layout", ["llama", "phi3", "gpt_neox", "qwen3"])
def test_every_known_layout_has_a_feed_forward_part_of_its_own_width(layout):
    shape = shapes.read_shape(
        {"model_type": layout, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 200, "vocab_size": 1000}
    )  # fmt: skip
    assert shape is not None
    assert {one for one in shape.linears if shape.intermediate in (one.inputs, one.outputs, one.outputs / 2)} == {
        *shape.feed_forward
    }


def test_a_window_of_learned_positions_bounds_the_rows(workspace, tmp_path):
    base = str(model(tmp_path / "gpt2", GPT2))
    made, _ = planned(workspace, "lora", base=base, dataset=None, overrides={})
    assert made is not None and made.train.max_length == 128
    _, problems = planned(workspace, "lora", base=base, dataset=None, overrides={"train.max_length": 129})
    assert "window-too-long" in [one.rule for one in problems]


def tokenizer(folder: Path, merges: list[Any], added: list[tuple[int, str]] = (), **more: Any) -> Path:  # type: ignore[assignment]
    told = {
        "model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges},
        "added_tokens": [{"id": number, "content": text} for number, text in added], **more,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(told))
    return folder


def test_a_judge_reads_alike_whatever_form_its_tokenizer_was_saved_in(tmp_path):
    """Qwen2.5's file has merges as "a b"; what transformers saves has ["a", "b"], and what Qwen2Tokenizer adds."""
    base = Base(ref="b", kind="folder", title="b", folder=tokenizer(tmp_path / "base", ["a b"]))
    saved = tmp_path / "saved"
    assert alike.reads_alike(base, tokenizer(saved, [["a", "b"]])) is not False
    assert alike.reads_alike(base, tokenizer(saved, [["a", "b"]], [(3, "<|end|>")], normalizer={"type": "NFC"})) is None
    assert alike.reads_alike(base, tokenizer(saved, [["b", "a"]])) is False
    base = Base(ref="b", kind="folder", title="b", folder=tokenizer(tmp_path / "base", [], [(3, "<s>")]))
    assert alike.reads_alike(base, tokenizer(saved, [], [(3, "</s>")])) is False

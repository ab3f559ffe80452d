"""The memory estimate: published figures, exact counts, and no input that makes it crash or shrink the wrong way."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.advise import Facts, case
from engine.estimate import memory
from engine.estimate.memory import Setup, estimate
from engine.models import Base
from engine.models import shapes as models_shapes
from engine.models.shapes import count_parameters, read_shape
from engine.spec import recipes
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT
from tests.helpers import examples

GB, GIB = 1e9, 2**30


def shape(layers: int, hidden: int, wide: int, words: int, heads: int, kv: int, **more: Any) -> models_shapes.Shape:
    config = {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": wide,
        "vocab_size": words, "num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": False,
    }  # fmt: skip
    found = read_shape({**config, **more})
    assert found is not None
    return found


LLAMA_2_7B = shape(32, 4096, 11008, 32000, 32, 32)
QWEN_7B = shape(32, 4096, 11008, 151936, 32, 32)  # the first Qwen; its q, k and v are one matrix, which moves rank 64
QWEN_25_7B = shape(28, 3584, 18944, 152064, 28, 4, model_type="qwen2")
LLAMA_32_3B = shape(28, 3072, 8192, 128256, 24, 8, tie_word_embeddings=True)
REAL = {"llama-2-7b": LLAMA_2_7B, "qwen-7b": QWEN_7B, "qwen2.5-7b": QWEN_25_7B, "llama-3.2-3b": LLAMA_32_3B}


def test_the_counts_of_known_models() -> None:
    counts = {name: count_parameters(one) for name, one in REAL.items()}
    assert counts == {
        "llama-2-7b": 6_738_415_616,
        "qwen-7b": 7_720_931_328,  # 7.721 billion; its published layout differs in biases of 0.4 million
        "qwen2.5-7b": 7_615_616_512,
        "llama-3.2-3b": 3_212_749_824,
    }


# --- published figures -------------------------------------------------------------------------------------------------
# Plain logits and, where nothing else is said, one row at a time with checkpointing, as the sources ran.
EVERY = {"plain_logits": True, "gradient_checkpointing": True, "batch_size": 1}
NO_CHECKPOINTING = {"gradient_checkpointing": False, "batch_size": 4, "max_length": 768}
FULL_BF16 = {"adapter": "full", "weights": "bf16"}
ASSUMED = {"batch_size": 8, "max_length": 512}
# The three that methods.md 7.2 names: GPTQ's int4 keeps more in memory than NF4 at short rows, by about 3 GB whatever
# the length; the third's per-GPU figure holds ZeRO-2's buffers.
NAMED = {"Qwen-7B Q-LoRA 256", "Qwen-7B Q-LoRA 1024", "Llama-2-7B LoRA 8192, ZeRO-2"}
PUBLISHED: list[tuple[str, models_shapes.Shape, dict[str, Any], float]] = [
    # LLaMA-Factory README, 2026-08
    ("Llama-2-7B full, bf16", LLAMA_2_7B, FULL_BF16, 60 * GB),
    ("Llama-2-7B full, AMP", LLAMA_2_7B, {"adapter": "full"}, 120 * GB),
    ("Llama-2-7B LoRA", LLAMA_2_7B, {}, 16 * GB),
    ("Llama-2-7B QLoRA", LLAMA_2_7B, {"quantize": "4bit"}, 6 * GB),
    # QwenLM README, A100, rank 64
    *(
        (f"Qwen-7B LoRA {n}", QWEN_7B, {"rank": 64, "max_length": n}, size * GB)
        for n, size in {256: 20.1, 1024: 21.5, 2048: 23.8, 4096: 29.7, 8192: 36.6}.items()
    ),
    *(
        (f"Qwen-7B Q-LoRA {n}", QWEN_7B, {"rank": 64, "max_length": n, "quantize": "4bit"}, size * GB)
        for n, size in {256: 11.5, 1024: 12.3, 2048: 13.9, 4096: 16.9, 8192: 23.5}.items()
    ),
    # OFTv2 (arXiv 2506.19847), figure 4; rows and batch are not stated and assumed
    ("Qwen2.5-7B LoRA", QWEN_25_7B, ASSUMED, 23.4 * GB),
    ("Qwen2.5-7B QLoRA", QWEN_25_7B, {**ASSUMED, "quantize": "4bit"}, 13.1 * GB),
    # PEFT's own benchmark, peak
    ("Llama-3.2-3B LoRA", LLAMA_32_3B, {**NO_CHECKPOINTING, "rank": 32, "target_modules": "q_proj,v_proj"}, 20.8 * GIB),
    ("Llama-3.2-3B full, bf16", LLAMA_32_3B, {**NO_CHECKPOINTING, **FULL_BF16}, 36.2 * GIB),
    # LongLoRA (arXiv 2309.12307), table 12, per GPU
    (
        "Llama-2-7B LoRA 8192, ZeRO-2",
        LLAMA_2_7B,
        {"max_length": 8192, "rank": 8, "target_modules": "q_proj,k_proj,v_proj,o_proj"},
        25.7 * GB,
    ),
]


@pytest.mark.parametrize(("name", "one", "how", "published_bytes"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_within_a_fifth_of_what_was_published(
    name: str, one: models_shapes.Shape, how: dict[str, Any], published_bytes: float
) -> None:
    found = estimate(one, Setup(**{**EVERY, **how}), device="cuda:0")
    ratio = found.total_bytes / published_bytes
    assert (0.7 if name in NAMED else 0.8) <= ratio <= 1.2
    assert found.low_bytes < found.total_bytes < found.high_bytes


# --- exact counts ------------------------------------------------------------------------------------------------------
COUNTED = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
for line in sys.argv[1].splitlines():
    fields = json.loads(line)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    print("COUNT", json.dumps([sum(p.numel() for p in model.parameters()), json.loads(config.to_json_string(False)),
                      json.loads(config.to_json_string(True))]))
"""
SMALL = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0}
GATED = {**SMALL, "intermediate_size": 160, "num_key_value_heads": 2}
CONFIGS = [
    {"model_type": "llama", **GATED},
    {"model_type": "llama", **GATED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    {"model_type": "llama", **GATED, "head_dim": 24},
    {"model_type": "mistral", **GATED},
    {"model_type": "qwen2", **GATED},
    {"model_type": "qwen3", **GATED},
    {"model_type": "qwen3", **GATED, "attention_bias": True, "head_dim": 16},
    {"model_type": "gemma", **GATED},
    {"model_type": "gemma2", **GATED, "head_dim": 32},
    {"model_type": "phi3", **GATED},
    {"model_type": "gpt2", "vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    {"model_type": "gpt2", "vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 100},
    {"model_type": "gpt_neox", **SMALL, "intermediate_size": 160},
    {"model_type": "gpt_neox", **SMALL, "intermediate_size": 160, "attention_bias": False, "tie_word_embeddings": True},
]


@pytest.mark.train
def test_parameters_are_counted_as_transformers_builds_them() -> None:
    lines = "".join(json.dumps(config) + "\n" for config in CONFIGS)
    made = forked.run_python(COUNTED, lines, cwd=ROOT)
    assert made.returncode == 0, made.stderr
    counts = [json.loads(line[6:]) for line in made.stdout.splitlines() if line.startswith("COUNT ")]
    assert len(counts) == len(CONFIGS)
    for config, (count, whole, short) in zip(CONFIGS, counts, strict=True):
        for written in (whole, short):  # as transformers writes it, all of it or what differs from the defaults
            found = read_shape({**written, "model_type": config["model_type"]})
            if found is not None:
                assert count_parameters(found) == count, config
        found = read_shape(whole)
        assert found is not None and count_parameters(found) == count, config


# --- what may never need less ------------------------------------------------------------------------------------------
@st.composite
def shapes(draw: Any) -> models_shapes.Shape:
    heads = draw(st.integers(1, 8))
    config = {
        "model_type": draw(st.sampled_from(models_shapes.LAYOUTS)),
        "hidden_size": heads * draw(st.sampled_from([16, 64, 128])),
        "num_hidden_layers": draw(st.integers(1, 40)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.integers(1, heads)),
        "intermediate_size": draw(st.integers(16, 4096)),
        "vocab_size": draw(st.integers(16, 200_000)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    found = read_shape(config)
    assert found is not None
    return found


SETUPS = st.builds(
    Setup,
    objective=st.sampled_from(["sft", "dpo", "kto", "reward", "ppo"]),
    adapter=st.sampled_from(["full", "lora", "oft"]),
    quantize=st.sampled_from(["none", "8bit", "4bit"]),
    layers=st.sampled_from(["all", "top:0.25", "bottom_frozen:0.5", [0]]),
    train_head=st.booleans(),
    rank=st.integers(1, 256),
    block_size=st.sampled_from([2, 32, 128]),
    batch_size=st.integers(1, 64),
    max_length=st.integers(8, 8192),
    gradient_checkpointing=st.booleans(),
    plain_logits=st.booleans(),
    value_model=st.sampled_from(["head", "model"]),
)
DEVICES = st.sampled_from(["cpu", "cuda:0"])


@given(shapes(), SETUPS, DEVICES)
@settings(max_examples=examples(200))
def test_more_never_needs_less(one: models_shapes.Shape, setup: Setup, device: str) -> None:
    def needed(of: models_shapes.Shape = one, **changes: Any) -> int:
        found = estimate(of, msgspec.structs.replace(setup, **changes), device=device)
        assert found.parts is not None and all(size > 0 for size in found.parts.values())
        return found.total_bytes

    here = needed()
    assert needed(max_length=setup.max_length + 1) >= here
    assert needed(batch_size=setup.batch_size + 1) >= here
    assert needed(rank=setup.rank + 1) >= here
    assert needed(gradient_checkpointing=True) <= needed(gradient_checkpointing=False) or setup.layers != "all"
    assert needed(layers="all") >= here
    assert needed(quantize="none") >= needed(quantize="8bit") >= needed(quantize="4bit")
    if setup.layers != [0]:
        assert needed(of=msgspec.structs.replace(one, layers=one.layers + 4)) >= here
    assert needed(objective="dpo") >= needed(objective="sft", plain_logits=False)


@given(st.sampled_from(sorted(REAL)), SETUPS, DEVICES)
@settings(max_examples=examples(200))
def test_an_adapter_or_frozen_layers_hold_no_more_than_full(name: str, setup: Setup, device: str) -> None:
    """Of what does not grow with the tokens: with long rows an adapter's copies of them can outgrow a small model."""
    held = ("weights", "gradients", "optimizer", "reference")

    def needed(**changes: Any) -> int:
        parts = estimate(REAL[name], msgspec.structs.replace(setup, **changes), device=device).parts or {}
        return sum(parts.get(part, 0) for part in held)

    full = needed(adapter="full", layers="all")
    assert needed() <= full
    short = {"max_length": min(setup.max_length, 1024), "batch_size": 1}
    whole = estimate(REAL[name], msgspec.structs.replace(setup, **short), device=device).total_bytes
    other = msgspec.structs.replace(setup, **short, adapter="full", layers="all")
    assert whole <= estimate(REAL[name], other, device=device).total_bytes


def test_every_part_shows_where_it_belongs() -> None:
    def parts(**how: Any) -> set[str]:
        return set(estimate(LLAMA_2_7B, Setup(**how), device="cuda:0").parts or {})

    usual = {"weights", "gradients", "optimizer", "activations", "logits", "fixed"}
    assert parts(adapter="full") == usual
    assert parts(adapter="lora") == usual | {"adapter"}
    assert parts(adapter="full", objective="dpo") == usual  # asked before it trains
    assert parts(adapter="full", objective="ppo") == usual | {"reference", "reward", "value", "rollout"}
    assert parts(objective="dpo") == usual | {"adapter"}
    assert parts(objective="reward") == (usual | {"adapter"}) - {"logits"}
    assert parts(objective="ppo") == usual | {"adapter", "reward", "value", "rollout"}
    assert set(memory.PARTS) == set(memory.part_words())


def test_attention_that_is_dropped_in_part_is_written_out_on_a_processor() -> None:
    """GPT-2 trains with dropout in its attention; it took 2.7 times what the same layers without it would."""
    config = {"model_type": "gpt2", "vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
    usual, without = read_shape(config), read_shape({**config, "attn_pdrop": 0.0})
    assert usual is not None and without is not None and usual.attention_dropout and not without.attention_dropout
    setup = Setup(adapter="full", batch_size=2, max_length=100)

    def activations(one: models_shapes.Shape, device: str) -> int:
        return (estimate(one, setup, device=device).parts or {})["activations"]

    assert activations(usual, "cpu") - activations(without, "cpu") == 12 * 3 * 4 * 2 * 100 * 100
    assert activations(usual, "cuda:0") == activations(without, "cuda:0")


def test_attention_without_a_kernel_is_written_out_everywhere() -> None:
    plain = shape(24, 2880, 2880, 201_088, 64, 8, model_type="gpt_oss", head_dim=64)
    assert plain.counted is not None
    written = msgspec.structs.replace(plain, counted=msgspec.structs.replace(plain.counted, writes_attention=True))
    one = Setup(adapter="lora", batch_size=1, max_length=1024, gradient_checkpointing=True)
    more = [(estimate(shape, one, device="cuda:0").parts or {})["activations"] for shape in (plain, written)]
    assert more[1] - more[0] == 2 * 2 * 64 * 1024**2  # of one layer: two copies in 16 bits


def test_answers_of_ppo_count_as_long_as_the_spec_lets_them_be() -> None:
    """The key-value cache of the rows written at once, and the scores of every answer of an update, twice in fp32."""
    one, rows, tokens = LLAMA_32_3B, 128, 300
    overrides = {"objective_args.answer_tokens": tokens, "train.batch_size": 8, "train.accumulation": rows // 8}
    run, _ = recipes.resolve(
        recipes.recipes()["ppo"], base="b", revision=None, parameters=3e9, dataset_id="d", overrides=overrides
    )
    setup = memory.with_longest(memory.setup_of(run), 100)
    assert (setup.answer_tokens, setup.update_rows, setup.max_length) == (tokens, rows, 100 + tokens)
    found = estimate(one, setup, device="cuda:0").parts or {}
    cache = 2 * one.layers * one.kv_heads * one.head_dim * 2 * (100 + tokens) * 64
    assert found["rollout"] == cache + 2 * 4 * rows * tokens * one.vocabulary
    shorter = msgspec.structs.replace(setup, answer_tokens=tokens // 2)
    assert (estimate(one, shorter, device="cuda:0").parts or {})["rollout"] < found["rollout"]


def test_frozen_lower_layers_keep_no_activations_unless_a_tied_head_trains() -> None:
    def activations(one: models_shapes.Shape, **how: Any) -> int:
        return (estimate(one, Setup(adapter="full", **how), device="cuda:0").parts or {})["activations"]

    assert 2 * activations(LLAMA_2_7B, layers="bottom_frozen:0.5") == activations(LLAMA_2_7B)
    assert activations(LLAMA_32_3B, layers="bottom_frozen:0.5") == activations(LLAMA_32_3B)
    assert activations(LLAMA_32_3B, layers="bottom_frozen:0.5", train_head=False) < activations(LLAMA_32_3B)


# --- nonsense ----------------------------------------------------------------------------------------------------------
GOOD = {"model_type": "llama", **GATED}
NO_COUNTS = (0, -1, "64", 1.5, True, [], 10**30)


@pytest.mark.parametrize(
    "config",
    [
        None, [], "llama", {}, {"model_type": "mamba"}, {"model_type": ["llama"]} , {"model_type": "llama"},
        *({**GOOD, name: value} for name in GATED if name != "pad_token_id" for value in NO_COUNTS),
        *({k: v for k, v in GOOD.items() if k != name} for name in ("hidden_size", "vocab_size", "num_attention_heads")),
        {**GOOD, "head_dim": 0}, {"text_config": 3}, {"text_config": {"model_type": "mamba"}},
        {"model_type": "gpt2", "n_embd": "x"},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_not_known(config: Any) -> None:
    assert read_shape(config) is None
    found = estimate(None, Setup(), device="cpu")
    assert found.parts is None and found.total_bytes == 0 and "cannot be estimated" in found.sentence
    assert memory.verdict(found, GIB) == found.sentence


def test_the_text_part_of_a_model_that_sees_is_read() -> None:
    assert read_shape({"model_type": "llava", "text_config": GOOD}) == read_shape(GOOD)


@given(st.dictionaries(st.sampled_from([*GOOD, "head_dim", "text_config"]), st.none() | st.integers() | st.text()))
@settings(suppress_health_check=[HealthCheck.too_slow])  # the alphabet of st.text is made at first use
def test_no_config_makes_it_crash(changes: dict[str, Any]) -> None:
    found = read_shape({**GOOD, **changes})
    assert found is None or estimate(found, Setup(), device="cpu").total_bytes > 0


@pytest.mark.parametrize(
    "how", [{"layers": [99]}, {"layers": "some"}, {"batch_size": 0}, {"max_length": -1}, {"rank": 0}]
)
def test_a_setting_that_makes_no_sense_is_said(how: dict[str, Any]) -> None:
    found = estimate(LLAMA_2_7B, Setup(**how), device="cuda:0")
    assert found.parts is None and found.sentence.startswith("The memory cannot be estimated")


# --- in use ------------------------------------------------------------------------------------------------------------
def test_what_would_fit_fits_and_is_the_mildest() -> None:
    def change(setup: Setup, memory_bytes: float) -> dict[str, Any] | None:
        def fits(one: Setup) -> bool:
            return memory.room(estimate(LLAMA_2_7B, one, device="cuda:0"), memory_bytes) in memory.FITTING

        return memory.smaller_settings(setup, fits)

    setup = Setup(batch_size=8, max_length=2048)
    assert change(setup, 40 * GIB) == {"train.gradient_checkpointing": True}
    assert change(setup, 17.5 * GIB) == {"train.batch_size": 1, "train.gradient_checkpointing": True}
    full = change(Setup(adapter="full", batch_size=4), 24 * GIB)
    assert full == {"train.gradient_checkpointing": True, "adapter": "lora"}
    assert change(setup, 4 * GIB) is None
    labels = change(Setup(objective="kto", batch_size=8, gradient_checkpointing=True), 16 * GIB)
    assert labels is not None and labels["train.batch_size"] >= 4  # the rows of a batch are compared with each other


def test_a_range_in_words() -> None:
    found = estimate(LLAMA_2_7B, Setup(gradient_checkpointing=True, batch_size=1), device="cuda:0")
    assert "does not fit" in memory.verdict(found, 8 * GIB)
    assert "may be too much" in memory.verdict(found, found.total_bytes)
    assert memory.verdict(found, 80 * GIB).endswith("the GPU's memory is 80.0 GiB.")


def test_sizes_that_are_read_together_have_one_unit() -> None:
    assert [memory.size_words(size, 24 * GIB) for size in (0.52 * GIB, 0.031 * GIB, 3 * GIB)] == [
        "0.5 GiB", "0.03 GiB", "3.0 GiB",
    ]  # fmt: skip
    assert memory.size_words(0.5 * GIB, 0.8 * GIB) == memory.size_words(0.5 * GIB) == "512 MiB"
    assert memory.size_words(GIB) == "1.0 GiB" and memory.size_words(5 * 2**20) == "5.0 MiB"
    assert memory.size_words(700) == "1 KiB" and memory.size_words(50_000) == "49 KiB"


@pytest.mark.parametrize(("gib", "recipe"), [(7.6, "qlora"), (23.6, "lora"), (79.1, "lora")])
def test_the_advisor_goes_by_the_shape_of_the_base(gib: float, recipe: str, workspace: Workspace) -> None:
    base = Base(ref="meta/two", kind="hub", title="", parameters=count_parameters(LLAMA_2_7B), shape=LLAMA_2_7B)
    facts = Facts(rows=5000, data_type="prompt-completion", gpu_memory_gib=gib, base_parameters=base.parameters)
    found = case.of(facts, workspace, base=base)
    assert found.best is not None and found.best.recipe == recipe
    assert found.plan(found.best).base is base

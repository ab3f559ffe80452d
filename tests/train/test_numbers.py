"""Number formats and what they take: fp16 under a scaler, weights in bf16 alone, moments as the optimizer holds them."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from engine.estimate import machine_choices, memory
from engine.estimate.machine_choices import Device
from engine.models import shapes
from engine.spec import RunSpec, recipes
from engine.train import adapters, allocator, load, precision, probe
from engine.train.objectives import common
from engine.workspace import Workspace

pytestmark = pytest.mark.train
GIB = 2**30
T4, A100, PROCESSOR = Device("cuda", 16 * GIB), Device("cuda", 80 * GIB, bf16=True), Device("cpu", 64 * GIB)
CONFIG: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def asked(recipe: str, base: str = "b", **overrides: Any) -> RunSpec:
    settings = {path.replace("__", "."): value for path, value in overrides.items()}
    made, problems = recipes.resolve(
        recipes.recipes()[recipe], base=base, revision=None, parameters=1.2e9, dataset_id="d", overrides=settings
    )
    assert not problems
    return made


def shape(**more: Any) -> shapes.Shape:
    found = shapes.read_shape({"model_type": "llama", **CONFIG, **more})
    assert found is not None
    return found


def chosen(spec: RunSpec, device: Device, layout: str = "llama") -> machine_choices.Chosen:
    known = msgspec.structs.replace(shape(), layout=layout)
    return machine_choices.choose(spec, device, known, memory.setup_of(spec))


def llama(**more: Any) -> Any:
    transformers.set_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, **more))


# --- fp16 where a card has no bf16 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["lora", "qlora", "full", "oft", "dpo", "reward", "ppo"])
def test_a_card_without_bf16_computes_in_fp16_under_a_scaler(recipe: str, tmp_path: Path):
    spec = asked(recipe, **{"machine__backend": "plain"})
    made = chosen(spec, T4)
    assert made.precision == "fp16" and made.setup(memory.setup_of(spec), "cuda").precision == "fp16"
    told = common.arguments(spec, tmp_path, 10, evaluates=False, device="cuda", chosen=made)
    assert told["fp16"] is True and told["bf16"] is False
    assert chosen(spec, A100).precision == "bf16" and chosen(spec, PROCESSOR).precision == "fp32"
    assert chosen(spec, T4, layout="gemma3_text").precision == "fp32"  # overflows in fp16


def test_the_frozen_base_is_loaded_and_the_4_bit_one_computed_in_fp16_and_what_trains_whole_in_fp32(
    monkeypatch: pytest.MonkeyPatch, workspace: Workspace
):
    monkeypatch.setattr(load, "_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(load, "whole", lambda source, spec, **settings: seen.append(settings) or llama())
    held = {
        recipe: load.held(asked(recipe), workspace, chosen(asked(recipe), T4)) for recipe in ("lora", "full", "qlora")
    }
    assert held["lora"].startswith("torch.float16") and held["qlora"].startswith("torch.float16, 4bit")
    assert held["full"] == "torch.float32, none, cuda, computed in fp16"
    load._read("folder", asked("qlora"), torch.float16, chosen(asked("qlora"), T4)._replace(padding_free=False), None)  # pyright: ignore[reportPrivateUsage, reportArgumentType]
    assert seen[0]["quantization_config"].bnb_4bit_compute_dtype is torch.float16 and seen[0]["dtype"] is torch.float16


def test_an_adapter_trains_in_fp32_on_a_base_in_fp16_under_a_scaler():
    """What accelerate does on a card, on a processor: autocast, a scaled loss, and a step that is passed over when it
    overflows."""
    model = get_peft_model(
        llama().half(),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        autocast_adapter_dtype=False,
    )
    with adapters.kept_whole(model):
        pass
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    before = [p.detach().clone() for p in trained]
    optimizer, scaler = torch.optim.AdamW(trained, lr=1e-2), torch.amp.GradScaler("cpu")
    ids = torch.arange(5, 37)[None]
    for _ in range(3):
        with torch.autocast("cpu", torch.float16):
            loss = model(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert torch.isfinite(loss) and any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))


def test_estimates_count_the_format_that_is_really_used():
    spec = asked("lora", **{"machine__backend": "plain", "train__gradient_checkpointing": False})
    setup = memory.setup_of(spec)

    def needed(precision: Any) -> dict[str, int]:
        found = memory.estimate(shape(), msgspec.structs.replace(setup, precision=precision), device="cuda:0").parts
        assert found is not None
        return found

    half, whole = needed("fp16"), needed("fp32")
    assert half == needed("bf16") == needed("")
    assert whole["weights"] > 1.8 * half["weights"] and whole["activations"] == 2 * half["activations"]


def test_flash_attention_is_taken_where_the_card_has_it_and_the_weights_are_in_16_bits():
    def laid(device: Device, recipe: str = "lora", **settings: Any) -> bool | None:
        return chosen(asked(recipe, **settings), device._replace(flash_attention=True)).padding_free

    assert laid(A100) is laid(A100, "qlora") is laid(A100, "full", machine__weights="bf16") is True
    assert laid(T4) is laid(A100, machine__precision="fp32") is laid(A100, "full") is None


def test_what_a_device_has_not_is_refused_by_name():
    def said(device: Device, recipe: str = "full", **settings: Any) -> list[str]:
        return [one.rule for one in machine_choices.problems(asked(recipe, **settings), device, shape())]

    assert said(PROCESSOR, machine__precision="fp16") == ["no-fp16"] and said(T4, machine__precision="fp16") == []
    assert said(T4, machine__weights="bf16") == ["no-bf16"] and said(A100, machine__weights="bf16") == []
    assert said(A100, "lora", machine__weights="bf16") == ["weights-adapter"]


# --- weights in bf16 alone ----------------------------------------------------------------------------------------------


def test_full_fine_tuning_can_hold_all_in_bf16_which_takes_8_bytes_a_parameter(workspace: Workspace):
    seven = shapes.read_shape(
        {
            "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
            "vocab_size": 32000, "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False,
        }
    )  # fmt: skip
    assert seven is not None
    spec = asked("full", **{"machine__weights": "bf16", "train__batch_size": 1})
    made = machine_choices.choose(spec, A100, seven, memory.setup_of(spec))
    setup = made.setup(memory.setup_of(spec), "cuda")
    assert (made.precision, made.weights, made.backend) == ("bf16", "bf16", "plain")
    found = memory.estimate(seven, setup, device="cuda:0")
    parts = found.parts or {}
    states = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert states == pytest.approx(8 * shapes.count_parameters(seven), rel=0.01) and found.low_bytes < 80e9
    usual = memory.estimate(seven, memory.setup_of(asked("full")), device="cuda:0")
    assert memory.room(usual, 80 * GIB) == "none"  # the guide's 7B on 80 GB, as it is held otherwise


def test_weights_in_bf16_are_loaded_and_stay_so(workspace: Workspace):
    spec = asked("full", base="starter", **{"machine__weights": "bf16"})
    made = load.load(spec, workspace)
    prepared = adapters.prepare(made.model, spec)
    assert {p.dtype for p in prepared.model.parameters()} == {torch.bfloat16}
    assert load.held(spec, workspace).startswith("torch.bfloat16, none, cpu")
    assert {p.dtype for p in load.load(asked("full", base="starter"), workspace).model.parameters()} == {torch.float32}


# --- what the optimizer holds -------------------------------------------------------------------------------------------


def state_bytes(optimizer: Any) -> int:
    """The bytes of what an optimizer keeps, shared tables aside."""
    held = [
        value for state in optimizer.state.values() for name, value in state.items()
        if isinstance(value, torch.Tensor) and "qmap" not in name and value.numel() > 1
    ]  # fmt: skip
    return sum(value.numel() * value.element_size() for value in held)


def made(kind: str, model: Any) -> Any:
    trained = list(model.parameters())
    if kind == "adamw":
        return torch.optim.AdamW(trained, lr=1e-4)
    optimizers: Any = import_module("bitsandbytes.optim")  # its types name no face

    manager = optimizers.GlobalOptimManager.get_instance()
    manager.register_module_override(model.get_input_embeddings(), "weight", {"optim_bits": 32})  # as transformers does
    return optimizers.AdamW8bit(trained, lr=1e-4)


@pytest.mark.parametrize(("kind", "dtype"), [("adamw", "fp32"), ("adamw", "bf16"), ("adamw_8bit", "fp32")])
def test_the_probe_and_the_formula_hold_as_much_as_the_optimizer_will(kind: str, dtype: str):
    model = llama(tie_word_embeddings=False).to(precision.FORMATS[dtype])
    optimizer = made(kind, model)
    tried = sum(one.numel() * one.element_size() for one in probe.moments_of(optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert tried == state_bytes(optimizer)
    setup = memory.Setup(adapter="full", optimizer=kind, weights=dtype)  # pyright: ignore[reportArgumentType]
    parts = memory.estimate(shape(tie_word_embeddings=False), setup, device="cuda:0").parts or {}
    assert parts["optimizer"] == pytest.approx(tried, rel=0.02)


def test_an_adapter_on_a_base_in_few_bits_counts_whole_as_it_is_held():
    spec = asked("qlora")
    setup = memory.setup_of(spec)
    parts = memory.estimate(shape(), setup, device="cuda:0").parts or {}
    trained = memory.trained_parameters(shape(), setup)
    assert parts["gradients"] == 4 * trained and parts["optimizer"] == 8 * trained


def test_ppo_counts_the_value_model_that_it_trains_whole():
    setup = memory.setup_of(asked("ppo"))
    parts = memory.estimate(shape(), setup, device="cuda:0").parts or {}
    judge = shapes.count_parameters(shape()) - shape().head_parameters
    assert parts["value"] > 18 * judge


def test_rows_are_evaluated_as_many_at_a_time_as_they_are_trained_on(tmp_path: Path):
    for size in (1, 4, 16):
        spec = asked("dpo", train__batch_size=size)
        told = common.arguments(spec, tmp_path, 10, evaluates=True, device="cuda", chosen=chosen(spec, A100))
        assert told["per_device_eval_batch_size"] == told["per_device_train_batch_size"] == size


# --- what a card does with fp32 and with freed memory --------------------------------------------------------------------


def test_a_model_that_trained_whole_in_16_bits_is_read_in_them_and_written_in_fp32():
    model = llama().eval()
    seen: list[torch.dtype] = []
    model.model.layers[0].mlp.register_forward_hook(lambda *found: seen.append(found[2].dtype))
    for dtype in (torch.float16, torch.bfloat16):
        again = llama().eval()
        precision.compute_in(again, dtype)
        again.model.layers[0].mlp.register_forward_hook(lambda *found: seen.append(found[2].dtype))
        with torch.no_grad():
            again(torch.ones(2, 40, dtype=torch.long))
            again(torch.ones(2, 1, dtype=torch.long))
        assert seen == [dtype, torch.float32] and precision.format_of(again) is dtype
        seen.clear()


@pytest.mark.parametrize(("asked_for", "said"), [("bf16", "high"), ("fp16", "high"), ("fp32", None)])
def test_fp32_goes_through_tensor_cores_only_after_a_training_in_16_bits(
    monkeypatch: pytest.MonkeyPatch, asked_for: Any, said: str | None
):
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", found.append)
    precision.multiply_fp32_faster(chosen(asked("full"), A100)._replace(precision=asked_for))
    assert found == ([said] if said else [])


def test_segments_grow_on_nvidias_cards_under_linux_and_what_was_said_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.platform, "release", lambda: "6.8.0-generic")
    for name in allocator.SAID_TO_TORCH:
        monkeypatch.delenv(name, raising=False)
    allocator.let_segments_grow()
    assert os.environ.pop(allocator.TORCH_SETTING) == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    allocator.let_segments_grow()
    assert allocator.TORCH_SETTING not in os.environ
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setattr(allocator.platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    allocator.let_segments_grow()
    monkeypatch.setattr(allocator.platform, "release", lambda: "6.8.0-generic")
    monkeypatch.setattr(allocator.shutil, "which", lambda name: None)
    allocator.let_segments_grow()
    assert allocator.TORCH_SETTING not in os.environ


def test_what_a_run_was_said_to_take_counts_the_memory_that_its_device_has():
    spec = asked("lora")
    for name in ("cpu", "mps", "cuda"):
        made = chosen(spec, Device(name, 16 * GIB, bf16=name == "cuda"))
        run: Any = SimpleNamespace(device=name, spec=spec, chosen=made, base=SimpleNamespace(shape=shape()))
        found = memory.estimate(shape(), probe.setup(run, 32), device="cuda:0" if name == "cuda" else name)
        assert probe.estimate(run, 32) == (found.moving_bytes if name == "cuda" else found.total_bytes)


def test_what_is_kept_of_a_run_is_what_ran(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Checkpointing that was chosen and is not on, as in PPO before, or that somebody else switched on."""
    model = llama()
    run: Any = SimpleNamespace(
        log=SimpleNamespace(append=lambda _: None), told=SimpleNamespace(begin=lambda *_, **__: None), only_probes=False,
        chosen=chosen(asked("lora", train__gradient_checkpointing=True), A100), spec=asked("lora"), device="cpu",
        base=SimpleNamespace(shape=shape(), parameters=1),
    )  # fmt: skip
    trainer: Any = SimpleNamespace(
        model_wrapped=model, train_dataset=None, callback_handler=SimpleNamespace(callbacks=[])
    )
    monkeypatch.setattr(probe, "row_lengths", lambda _: torch.tensor([7]).numpy())
    monkeypatch.setattr(probe, "try_longest", lambda _: 7)
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable()
        tried = probe.Probe(run, None)
        assert tried.checkpointed
        tried.watch(trainer)
        tried.on_train_begin(SimpleNamespace(per_device_train_batch_size=1), None, None)
        assert tried.checkpointed is on

"""TRL's loop of PPO as it is set up here, on a tiny model: layers computed twice, and a scaler."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate.optimizer import patch_optimizer_step
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from engine import starter
from engine.estimate import machine_choices, memory
from engine.spec import recipes
from engine.train import precision
from engine.train.objectives import common, ppo

pytestmark = pytest.mark.train
CONFIG: dict[str, Any] = {
    "vocab_size": 1100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip


class Told(TrainerCallback):
    """Notes what the loop says."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def write_samples(self, _: int) -> None:
        """No samples are wanted here."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(logs)


def made(folder: Path, **settings: Any) -> tuple[Any, Told]:
    """PPO's trainer on two updates of a tiny Llama under LoRA, and what it will say."""
    asked = {
        "train__batch_size": 4,
        "train__accumulation": 1,
        "train__max_steps": 2,
        "objective_args__answer_tokens": 6,
    }
    overrides = {path.replace("__", "."): value for path, value in {**asked, **settings}.items()}
    spec, wrong = recipes.resolve(
        recipes.recipes()["ppo"], base="b", revision=None, parameters=1e9, dataset_id="d", overrides=overrides
    )
    assert not wrong
    transformers.set_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    judge = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**{**CONFIG, "num_labels": 1}))
    judge.requires_grad_(False).eval()
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    chosen = machine_choices.choose(spec, machine_choices.Device("cpu", 2**36), None, memory.setup_of(spec))
    run: Any = SimpleNamespace(
        spec=spec, beta=0.05, judge=ppo.Judge(judge, "run:j"), chosen=chosen,
        rows=SimpleNamespace(train=[[5 + n, 9, 11, 30][: 2 + n % 3] for n in range(8)]),
        tokenizer=transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR),
    )  # fmt: skip
    shared = common.arguments(spec, folder, 2, evaluates=False, device="cpu", chosen=chosen)
    told = Told()
    return ppo.trainer(run, ppo.config(run, shared), model, told), told  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """What the loop says as it is."""
    trainer, told = made(tmp_path_factory.mktemp("plain"))
    trainer.train()
    return told.logs


def same(one: dict[str, float], other: dict[str, float]) -> bool:
    names = ("kl", "reward", "loss", "entropy", "grad_norm")
    return all(one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5) for name in names)


def test_answers_written_where_layers_are_computed_twice_are_the_models_own(tmp_path: Path, plain: Any):
    """A layer that is computed twice keeps no cache: answers would be written from their last token alone."""
    trainer, told = made(tmp_path, train__gradient_checkpointing=True)
    assert trainer.model.policy.is_gradient_checkpointing and trainer.model.value_model.is_gradient_checkpointing
    trainer.train()
    assert abs(told.logs[0]["kl"]) < 1e-3  # nothing has moved yet
    assert len(told.logs) == len(plain) >= 2 and all(map(same, told.logs, plain))


def test_gradients_are_clipped_as_they_are_and_not_as_a_scaler_holds_them(
    tmp_path: Path, plain: Any, monkeypatch: pytest.MonkeyPatch
):
    """What accelerate sets up for fp16 on a card, done on a processor. Its scale is a power of two: nothing is rounded."""
    trainer, told = made(tmp_path)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    outer = trainer.optimizer
    outer.scaler = trainer.accelerator.scaler = scaler
    outer._accelerate_step_called = False
    outer._optimizer_original_step_method = outer.optimizer.step
    outer._optimizer_patched_step_method = patch_optimizer_step(outer, outer.optimizer.step)
    trainer.accelerator.native_amp = True
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    trainer.train()
    assert scaler.get_scale() == 2.0**16 and len(told.logs) == len(plain) and all(map(same, told.logs, plain))


def test_the_loop_computes_in_the_format_of_its_run(tmp_path: Path):
    """TRL makes its Accelerator without one: in fp16 there would be no scaler, and the value model would compute in fp32."""
    AcceleratorState._reset_state()  # pyright: ignore[reportPrivateUsage] - one for all trainers of a process
    try:
        trainer, told = made(tmp_path, machine__precision="bf16", train__max_steps=1)
        assert trainer.accelerator.mixed_precision == "bf16" and precision.ACCELERATE_SETTING not in os.environ
        seen: list[torch.dtype] = []
        trainer.model.value_model.model.layers[0].mlp.register_forward_hook(lambda *found: seen.append(found[2].dtype))
        trainer.train()
        assert torch.bfloat16 in seen and torch.isfinite(torch.tensor(told.logs[0]["loss"]))
    finally:
        AcceleratorState._reset_state()  # pyright: ignore[reportPrivateUsage]

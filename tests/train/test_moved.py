"""A run that changed no weight is told from one that did."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from engine.report import headline
from engine.train import moved

WENT = [{"grad_norm": 0.5, "learning_rate": 1e-4}]


def lora() -> torch.nn.Module:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    return get_peft_model(LlamaForCausalLM(shape), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def nudge(model: torch.nn.Module, name: str, by: float = 1e-7) -> None:
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if name in n).view(-1)[0] += by


def test_weights_that_are_the_same_to_the_last_bit_have_learned_nothing_and_that_is_said():
    model = lora()
    start = moved.fingerprint(model)
    told = moved.unmoved(start, model, WENT)
    assert told is not None and told.level == "warning"
    assert str(told.text).startswith("Nothing was learned: every step was too small")
    told = moved.unmoved(start, model, [{"grad_norm": 0.5, "learning_rate": 0.0}])
    assert told is not None and "the learning rate was 0" in str(told.text)


def test_one_number_that_moved_is_enough():
    for dtype in (torch.float32, torch.bfloat16):
        model = lora().to(dtype)
        start = moved.fingerprint(model)
        nudge(model, "lora_B")
        assert moved.unmoved(start, model, WENT) is None


def test_a_lora_whose_second_half_is_still_0_has_learned_nothing():
    model = lora()
    start = moved.fingerprint(model)
    nudge(model, "lora_A")  # as weight decay does
    assert moved.unmoved(start, model, WENT) is not None
    nudge(model, "lora_B", 1e-12)  # less than the last bit of the weight that it is added to
    assert moved.unmoved(start, model, WENT) is not None
    nudge(model, "lora_B")
    assert moved.unmoved(start, model, WENT) is None


def test_without_any_gradient_only_weight_decay_moved_the_weights():
    model = lora()
    start = moved.fingerprint(model)
    nudge(model, "lora_B")
    told = moved.unmoved(start, model, [{"grad_norm": 0.0, "learning_rate": 1e-3}, {"eval_loss": 2.0}])
    assert told is not None and "the gradient was 0" in str(told.text)


def test_the_headline_of_such_a_run_says_it_first():
    assert headline.summary([], moved=False).headline.startswith("Nothing was learned")

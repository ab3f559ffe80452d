"""Mixtures of experts under LoRA on some of their layers: what trains, what is counted, what is read back."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from engine.estimate import memory
from engine.plan import plans
from engine.workspace import Workspace
from tools import architectures

pytestmark = pytest.mark.train


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_lora_on_chosen_layers_trains_their_experts_and_no_others(tmp_path, kind):
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    from engine.train import adapters, outline, parts

    (one,) = [one for one in architectures.ARCHITECTURES if one.kind == kind]
    torch.manual_seed(0)
    sizes = {
        **architectures.DIMENSIONS,
        "vocab_size": 300,
        "pad_token_id": 0,
        **(one.more or {}),
        "num_hidden_layers": 3,
    }
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    plain = copy.deepcopy(model)

    def plan(layers: Any) -> Any:
        given = {"layers": layers, "adapter_args.rank": 4, "adapter_args.dropout": 0.0}
        return plans.make(Workspace(tmp_path), "lora", base="starter", dataset=None, overrides=given)

    made = adapters.prepare(model, plan([1]).spec)
    trained = [sum(p.numel() for p in layer.parameters() if p.requires_grad) for layer in parts.layers(made.model)]
    whole = adapters.prepare(copy.deepcopy(plain), plan("all").spec).model
    (all_of_it,) = [sum(p.numel() for p in parts.layers(whole)[1].parameters() if p.requires_grad)]
    assert trained == [0, all_of_it, 0] and made.trainable == all_of_it
    if kind == "qwen3_moe":  # whose layers are alike
        assert memory.trained_parameters(outline.shape_of(copy.deepcopy(plain)), plan([1]).setup) == all_of_it
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    made.model.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(20)[None]
    again: Any = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        told, before = made.model(input_ids=ids).logits, plain(input_ids=ids).logits
        assert not torch.allclose(told, before, atol=1e-3)
        assert torch.allclose(again(input_ids=ids).logits, told, atol=1e-5)

"""The loss that trains is made of a model's own logits, whatever its config calls what they are multiplied with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.train import head

pytestmark = pytest.mark.train
SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
STATES = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
FACTORS = {
    "llama": ({}, 1.0),
    "granite": ({"logits_scaling": 8.0}, 1 / 8),
    "falcon_h1": ({**STATES, "lm_head_multiplier": 0.25}, 0.25),
    "cohere2": ({"logit_scale": 0.0625}, 0.0625),
    "gemma3_text": ({"final_logit_softcapping": 2.0}, None),
}


def model(kind: str, more: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **more}))
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(20)  # logits of a trained model lie further apart
    return made.train()


@pytest.mark.parametrize("kind", FACTORS)
def test_trl_makes_the_loss_that_the_model_itself_makes(kind):
    from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

    more, wanted = FACTORS[kind]
    made = model(kind, more)
    ids = torch.arange(40)[None] * 7
    own = float(made(input_ids=ids, labels=ids).loss)
    before = dict(vars(made.config))
    with head.named(made) as is_multiple:
        assert is_multiple
        _patch_chunked_ce_lm_head(made, 16)
    assert vars(made.config) == before and made.training
    assert float(made(input_ids=ids, labels=ids).loss) == pytest.approx(own, rel=1e-4)
    if wanted is not None:
        assert head.factor(made) == pytest.approx(wanted, rel=1e-3)


def test_logits_that_are_no_multiple_are_left_to_the_model():
    made = model("llama", {})
    plain = made.forward

    def bent(*given: Any, **named: Any) -> Any:
        told = plain(*given, **named)
        told.logits = told.logits.tanh()
        return told

    made.forward = bent
    with head.named(made) as is_multiple:
        assert not is_multiple


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
HYBRID = {
    **EXPERTS, "layer_types": ["attention"], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
    "shared_intermediate_size": 32,
}  # fmt: skip


def makes_the_loss(made: Any) -> bool:
    ids = torch.arange(8)[None]
    try:
        return getattr(made(input_ids=ids, labels=ids, output_router_logits=True), "aux_loss", None) is not None
    except AttributeError:
        return False


@pytest.mark.parametrize(
    ("kind", "more"), [("llama", {}), ("mixtral", EXPERTS), ("granitemoe", EXPERTS), ("granitemoehybrid", HYBRID)]
)
def test_experts_are_balanced_where_a_model_says_which_it_used(kind, more):
    """Of Granite's mixtures transformers 5.17 keeps no router logits, and fails on the loss that asks for them."""
    made = model(kind, more)
    balances = head.balances(made)
    assert balances is makes_the_loss(made) and balances is (kind == "mixtral") and made.training
    with head.named(made) as is_multiple:
        assert is_multiple is (not balances or hasattr(made.config, "num_experts"))

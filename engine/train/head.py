"""By what a model multiplies the numbers of its output layer before they are its logits.

TRL 1.12 makes logits for a few tokens at a time out of the last hidden states (sft_trainer.py, _patch_chunked_ce_lm_head).
It knows of a factor only by the names logit_scale and output_multiplier and of a soft cap; Granite divides by
logits_scaling, Falcon-H1 multiplies by lm_head_multiplier, and both would be trained on other logits than their own. So
the factor is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.train import parts

# Of so many tokens it is measured.
TOKENS = 8
# Rounding in half precision moves it by less, and no model has a factor as near to TRL's.
SLACK = 0.02


@torch.no_grad()
def factor(model: Any) -> float | None:
    """Return the factor between what the output layer of a model says and its logits; None where there is no one factor."""
    was_training = model.training
    model.eval()
    try:
        head, ids = model.get_output_embeddings(), _ids(model)
        plain = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state).float()
        logits = model(input_ids=ids, use_cache=False).logits.float()
    except (RuntimeError, TypeError, ValueError, AttributeError):  # asked so, a foreign one may fail
        return None
    finally:
        model.train(was_training)
    found = float((plain * logits).sum() / plain.square().sum())
    off = float((logits - found * plain).abs().max() / logits.abs().max())
    return found if off <= SLACK else None  # NaN is more than any


def scaling(model: Any) -> tuple[float, float | None] | None:
    """Return by what the output layer's numbers are multiplied and at what they are then capped softly (None: not); None
    where logits are something else."""
    config = parts.below_adapter(model).config.get_text_config()
    named = getattr(config, "logit_scale", None)
    named = getattr(config, "output_multiplier", None) if named is None else named
    if cap := getattr(config, "final_logit_softcapping", None):
        return 1.0 if named is None else named, cap
    found = factor(parts.below_adapter(model))
    return None if found is None else (found, None)


@torch.no_grad()
def balances(model: Any) -> bool:
    """Whether a model says which experts its tokens were given to, so that a loss can balance them. The
    configs of Granite's mixtures speak of it, and transformers 5.17 keeps nothing of it there: TRL's loss would fail."""
    own = parts.below_adapter(model)
    if getattr(own.config.get_text_config(), "output_router_logits", None) is None:
        return False
    was_training = own.training
    own.eval()
    try:
        told = own.base_model(input_ids=_ids(own), use_cache=False, output_router_logits=True)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    finally:
        own.train(was_training)
    given = getattr(told, "router_logits", None)
    return bool(given) and all(isinstance(one, torch.Tensor) for one in given)


def _ids(model: Any) -> torch.Tensor:
    count = model.get_input_embeddings().weight.shape[0]
    return torch.arange(TOKENS, device=model.device)[None] * (count // TOKENS)


@contextmanager
def named(model: Any) -> Iterator[bool]:
    """Let TRL find the factor of a model under the name it looks for while its trainer is made. Gives whether TRL may make
    logits out of hidden states at all: not where they are something else than a multiple, or where it would fail."""
    own = parts.below_adapter(model)
    config = own.config.get_text_config()
    if not hasattr(config, "num_experts") and balances(own):
        yield False  # TRL looks for the number of experts under this name alone, and some have another
        return
    if getattr(config, "final_logit_softcapping", None):
        yield True  # TRL caps them too
        return
    known = getattr(config, "logit_scale", None)
    known = getattr(config, "output_multiplier", None) if known is None else known
    found = factor(own)
    if found is None or abs(found - (1.0 if known is None else known)) <= SLACK * abs(found):
        yield found is not None
        return
    had = "logit_scale" in vars(config)
    before = getattr(config, "logit_scale", None)
    config.logit_scale = found
    try:
        yield True
    finally:
        if had:
            config.logit_scale = before
        else:
            del config.logit_scale

"""Merge an adapter into its base, and see that what comes out is the model that was trained before it is used."""

from __future__ import annotations

import math
from typing import Any

import torch

from engine.runs import failures
from engine.train import oft
from engine.words import Problem

# Logits are compared at so many tokens a text.
LOGIT_TOKENS = 64
# fp32 leaves about 1e-6 a layer between x (W + B A) and x W + x A B; nothing that a person could notice.
LEAST_TOLERANCE = 1e-4
# Tokens from all over the vocabulary, as no text has them, may differ by a few times as much as those of a text; a merge
# that moved what it should not (an output layer that is the embedding) was off by 73 %.
STRAY = 4
_TEXT = "What is the capital of France? The capital of France is Paris."


def merged(made: Any, tokenizer: Any, ref: str) -> Any:
    """Merge an adapter that `oft.lay_over` has laid over its base and return the model. Raises RunRefused, naming the run
    `ref`, when the merged model does not say what the unmerged one says."""
    probes = _probes(made, tokenizer)
    before = logits(made, probes)
    model = joined(made)
    worst, _ = compare_logits(before, logits(model, probes))
    allowed = STRAY * tolerance(model)
    if not worst <= allowed:  # NaN too
        off = {"off": f"{100 * worst:.2g}", "allowed": f"{100 * allowed:.2g}"}
        raise failures.RunRefused(Problem(rule="merge-differs", parameters={"ref": ref[:80], **off}))
    return model


def joined(made: Any) -> Any:
    """Merge an adapter that `oft.lay_over` has laid over its base, block by block, and return the model, uncompared."""
    inner = made.get_base_model()
    _untie(inner)
    return oft.bend_back(made.merge_and_unload())


def _untie(model: Any) -> None:
    """Give a model whose output layer is its embedding an output layer of its own where an adapter sits on either:
    unmerged, the adapter changes the one and not the other."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if layers[1] is None:
        return
    (embedding, wrapped), (output, also) = (_below(layer) for layer in layers)
    if output.weight is not embedding.weight or not (wrapped or also):
        return
    output.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _below(layer: Any) -> tuple[Any, bool]:
    """Return the layer under what an adapter put around it, and whether it did."""
    wrapped = False
    while inner := getattr(layer, "base_layer", None) or getattr(layer, "original_module", None):
        layer, wrapped = inner, True
    return layer, wrapped


def _probes(model: Any, tokenizer: Any) -> list[list[int]]:
    """Return a text and tokens from all over the vocabulary, which an adapter on the embedding may each have moved."""
    known = _below(model.get_input_embeddings())[0].weight.shape[0]
    count = 2 * LOGIT_TOKENS
    spread = [place * known // count for place in range(count)]
    return [tokenizer(_TEXT)["input_ids"], spread[::2], spread[1::2]]


@torch.no_grad()
def logits(model: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    """Return a model's logits for the first tokens of each text, in fp32 on the processor."""
    model.eval()
    where = next(model.parameters()).device
    return [
        model(input_ids=torch.tensor([ids[:LOGIT_TOKENS]], device=where)).logits.float().cpu() for ids in texts if ids
    ]


def compare_logits(before: list[Any], after: list[Any]) -> tuple[float, float]:
    """Return the largest difference of two models' logits over the largest logit, and the share of positions where both
    hold the same token for the likeliest."""
    largest = max((float(a.abs().max()) for a in before), default=0.0) or 1.0
    worst = max((float((a - b).abs().max()) for a, b in zip(before, after, strict=True)), default=0.0)
    same = [(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(before, after, strict=True)]
    return worst / largest, float(torch.cat(same).float().mean()) if same else 1.0


def tolerance(model: Any) -> float:
    """Return how far the logits of a merged model may be off, by its number format and its layers.

    Each layer rounds anew, so that two models that say the same part by a random walk of twice as many roundings as they
    have layers; four at the least. (SmolLM2 135M, 30 layers in fp16, merged as it should be: 4.5 roundings.)
    """
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None) or 0
    return max(LEAST_TOLERANCE, max(4.0, math.sqrt(2 * layers)) * torch.finfo(model.dtype).eps)

"""Where the parts of a model are, whatever its architecture: what writes text, its layers, and what reads pictures."""

from __future__ import annotations

from typing import Any

import torch


def text_part(model: Any) -> Any:
    """Return what of a model reads and writes text: all of it, or beside parts that read pictures or sound its decoder
    (transformers 5.17, modeling_utils.py, get_decoder)."""
    return model.get_decoder() if hasattr(model.config, "text_config") else model


def layers(model: Any) -> list[Any]:
    """Return the transformer layers of what writes text: the first list of so many modules as its config names layers."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    for module in text_part(model).modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return list(module)
    return []


def others(model: Any) -> list[Any]:
    """Return the parameters of parts that read pictures or sound. What stands between them and the text counts too."""
    inside = text_part(model)
    if inside is model:
        return []
    own = {id(one) for one in inside.parameters()}
    output = model.get_output_embeddings()
    own |= {id(one) for one in output.parameters()} if output is not None else set()
    return [one for one in model.parameters() if id(one) not in own]

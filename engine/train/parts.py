"""Where the parts of a model are, whatever its architecture: what writes text, its layers, and what reads pictures."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch


def below_adapter(model: Any) -> Any:
    """Return the model that an adapter of peft's lies on, or one without an adapter itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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


def count(config: Any, name: str) -> int:
    """Return a number of a config, 0 where it says none; the largest where layers differ in it (Gemma 4), for which
    transformers 5.17 gives no single answer (integrations/heterogeneity, AmbiguousGlobalPerLayerAttributeError)."""
    try:
        said = [getattr(config, name, None)]
    except RuntimeError:
        said = [getattr(one, name, None) for one in config.per_layer_config]
    return max((one for one in said if isinstance(one, int) and one > 0), default=0)


def linears(model: Any, chosen: list[int] | None = None) -> dict[str, Any]:
    """Return the linear layers that an adapter can change, of the chosen transformer layers or of all, by full names. Those
    whose weight is handed to a kernel past the layer are left out, as of Mamba's mixers: what is laid on them would not be
    seen where that kernel runs (peft 0.21 refuses some of them by name, tuners_utils.py)."""
    wanted = [one for at, one in enumerate(layers(model)) if chosen is None or at in chosen]
    inside: set[int] = set()
    for layer in wanted:
        for parent in layer.modules():
            own = {n: m for n, m in parent.named_children() if isinstance(m, _linear())}
            inside |= {id(module) for name, module in own.items() if not _is_bypassed(type(parent), name)}
    return {name: module for name, module in model.named_modules() if id(module) in inside}


def all_linears(model: Any) -> dict[str, Any]:
    """Return all linear layers inside the transformer layers, by full names."""
    inside = {id(one) for layer in layers(model) for one in layer.modules() if isinstance(one, _linear())}
    return {name: module for name, module in model.named_modules() if id(module) in inside}


@cache
def _linear() -> tuple[type, ...]:
    """Return the kinds of linear layers. Imported late: libraries.py settles first what transformers may find."""
    from transformers.pytorch_utils import Conv1D

    return torch.nn.Linear, Conv1D


@cache
def _is_bypassed(kind: type, name: str) -> bool:
    """Whether a kind of module takes the numbers of one of its layers, more than to ask what they are like."""
    return re.search(rf"self\.{re.escape(name)}\.weight\b(?!\.(?:dtype|device|shape))", _source(kind)) is not None


@cache
def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # built while it runs
        return ""


def others(model: Any) -> list[Any]:
    """Return the parameters of parts that read pictures or sound. What stands between them and the text counts too."""
    inside = text_part(model)
    if inside is model:
        return []
    own = {id(one) for one in inside.parameters()}
    output = model.get_output_embeddings()
    own |= {id(one) for one in output.parameters()} if output is not None else set()
    return [one for one in model.parameters() if id(one) not in own]

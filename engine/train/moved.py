"""Whether a run has moved any weight: one that has not is never a silent "finished"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from engine import events
from engine.words import Text, later

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: Any) -> dict[str, int]:
    """Return a number for each tensor that trains: the sum of its bits as integers, worked out where the tensor is. A
    tensor that is the same to the last bit has the same number."""
    return {name: _sum(p.detach()) for name, p in model.named_parameters() if p.requires_grad}


def _sum(tensor: torch.Tensor) -> int:
    return int(tensor.contiguous().view(-1).view(_BITS[tensor.element_size()]).sum(dtype=torch.int64))


def unmoved(start: dict[str, int], model: Any, history: list[dict[str, Any]]) -> events.Log | None:
    """Return a warning when training has changed nothing: each tensor is as at the `start`, or no logged step had a
    gradient (then only weight decay moved them); None otherwise. `history` is the trainer's."""
    norms = [float(one["grad_norm"]) for one in history if one.get("grad_norm") is not None]
    rates = [float(one["learning_rate"]) for one in history if one.get("learning_rate") is not None]
    if norms and not any(norms):
        why = later("the gradient was 0 at every step, so the rows asked for no change")
    elif _any_moved(start, model):
        return None
    elif rates and not any(rates):
        why = later("the learning rate was 0 at every step")
    else:
        why = later("every step was too small for the weights' number format; a higher learning rate would help")
    return events.Log(level="warning", text=_said(why))


def _said(why: Text) -> Text:
    return later("Nothing was learned: {why}. What is saved says the same as what the run began with.", why=why)


def _any_moved(start: dict[str, int], model: Any) -> bool:
    now = {name: p.detach() for name, p in model.named_parameters() if name in start}
    if len(now) < len(start):
        return True
    idle = {id(one) for module in model.modules() for one in _idle(module)}
    return any(id(p) not in idle and _sum(p.detach()) != start[n] for n, p in model.named_parameters() if n in start)


def _idle(module: Any) -> Iterator[torch.Tensor]:
    """The halves of a LoRA whose product is no more than the last bit of the weight that it is added to, in fp32: they
    differ from their start, as they do after any step or by weight decay alone, and the layer does not."""
    weight = getattr(getattr(module, "base_layer", None), "weight", None)
    if weight is None:
        return
    largest = (
        float(weight.detach().abs().max()) if weight.is_floating_point() else 0.0
    )  # of packed ones it is not known
    least = torch.finfo(torch.float32).eps * largest
    for name, lower in getattr(module, "lora_A", {}).items():
        one, other = lower.weight, module.lora_B[name].weight
        if module.scaling[name] * float((other.detach() @ one.detach()).abs().max()) <= least:
            yield from (one, other)

"""Whether a run has moved any weight: one that has not is never a silent "finished"."""

from __future__ import annotations

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
    return len(now) < len(start) or any(_sum(p) != start[name] and not _is_idle(name, now) for name, p in now.items())


def _is_idle(name: str, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether a tensor is the half of a LoRA whose other half is all zeros: weight decay alone moves it, to no effect."""
    other = tensors.get(name.replace(".lora_A.", ".lora_B."))
    return ".lora_A." in name and other is not None and not bool(other.any())

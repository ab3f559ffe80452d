"""The way from a base to what a run made, gone in place: an adapter scaled, whole weights interpolated, intruder dimensions
taken away.

LoRA adds s B A to a weight, so that B times a part is that part of the change. OFT turns by the rotation of a skew matrix
(Cayley): the matrix times a part turns by less and stays a rotation, where a mean of rotations would be none. Whole weights,
modules that an adapter brings whole among them, are base + part * (tuned - base).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.intruders import reduce_intruder_dimension
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.oft.layer import OFTLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import ModulesToSaveWrapper
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from engine.models import weights
from engine.runs import failures
from engine.spec import schema
from engine.train import adapters, allocator, load
from engine.words import Problem

# Of peft 0.21: how many of the largest dimensions are looked at, and how unlike all of the base's an intruder is.
TOP_K, THRESHOLD = 10, 0.5
_REDUCED = "intruder_reduced"


class AdapterWay:
    """The way of an adapter that lies over its base. What it learned is kept beside it, which is small."""

    def __init__(self, model: Any, name: str = adapters.TRAINED):
        self.model, self.name = model, name
        self.intruders = 0  # how many were taken away last
        self._parts = [(one, one.detach().clone(), start) for one, start in _moving(model, name)]
        self._whole = [(one, one.detach().clone()) for one in _lower(model, name)]
        self._stands = ("scale", 1.0)

    def to(self, at: float, way: str = "scale") -> Any:
        """Return the model at a part of the way, where it stays."""
        if self._stands == (way, at):
            return self.model
        with torch.no_grad():  # seen by the versions of the parameters, by which solved rotations are kept (oft.py)
            for one, kept in self._whole:
                one.copy_(kept)
            for one, trained, start in self._parts:
                one.copy_(_between(start, trained, 1.0 if way == "intruders" else at))
            if way == "intruders" and at > 0:
                self._take_intruders_away(at)
        self._stands = (way, at)
        return self.model

    def _take_intruders_away(self, part: float) -> None:
        """Take a part of each intruder dimension away (arXiv 2410.21228). peft's own words say that a higher lambda takes
        more; its formula, W + (lambda - 1) * intruder, takes none at 1 and all at 0."""
        said: list[str] = []
        was_training = self.model.training
        try:
            reduce_intruder_dimension(
                self.model, old_adapter_name=self.name, new_adapter_name=_REDUCED, top_k=TOP_K,
                threshold_epsilon=THRESHOLD, mitigation_lambda=1 - part, logging_sink=said.append,
            )  # fmt: skip
            for layer in self.model.modules():
                if isinstance(layer, LoraLayer) and self.name in layer.lora_A:
                    for halves in (layer.lora_A, layer.lora_B):
                        of: dict[str, Any] = dict(halves.items())
                        of[self.name].weight.copy_(of[_REDUCED].weight)
        finally:
            if _REDUCED in self.model.peft_config:
                self.model.delete_adapter(_REDUCED)
            self.model.set_adapter(self.name)
            self.model.train(was_training)
        self.intruders = sum(int(one.rpartition(":")[2]) for one in said if "Intruders:" in one)


class WeightsWay:
    """The way of a model of which all weights moved. Each point is the base read anew and moved tensor by tensor, so that
    no second model is held."""

    def __init__(self, fresh: Callable[[], Any], folder: Path):
        self._fresh, self._folder = fresh, folder
        self._model: Any = None
        self._stands = -1.0

    def to(self, at: float, way: str = "interpolate") -> Any:
        """Return the model at a part of the way. The one of another part must not be held any more."""
        assert way == "interpolate"
        if self._stands != at:
            self._model = None
            allocator.give_back()
            model = self._fresh()
            interpolate(model, self._folder, at)
            self._model, self._stands = model.eval(), at
        return self._model


@torch.no_grad()
def interpolate(model: Any, folder: Path, at: float) -> None:
    """Move a base to a part of the way to the model of the same shapes in a folder, in place. Raises RunRefused where they
    are not of the same tensors."""
    held, moved = model.state_dict(), set[tuple[int, ...]]()
    for name, trained in _tensors(folder, held):
        one = held.get(name)
        if one is None or one.shape != trained.shape:
            raise _unlike(name)
        place = (one.data_ptr(), *one.shape)
        if one.is_floating_point() and place not in moved:  # a tied output layer is its embedding
            one.copy_(_between(one, trained.to(one.device), at))
        moved.add(place)
    left = [name for name, one in held.items() if one.numel() and (one.data_ptr(), *one.shape) not in moved]
    if left:
        raise _unlike(left[0])


def _tensors(folder: Path, held: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a stored model one by one. Where an architecture is stored under other names than it has in
    memory, as mixtures of experts are, the model is read whole."""
    files = list(weights.files(folder).present)
    if all(name in held for path in files for name in weights.shapes(path)):
        for path in files:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no dict
                    yield name, file.get_tensor(name)
        return
    spec = schema.adopted(base=schema.BaseRef(str(folder)))
    model = load.from_pretrained(AutoModelForCausalLM, str(folder), spec, dtype="auto", use_safetensors=True)
    yield from model.state_dict().items()


def _between(start: torch.Tensor | None, trained: torch.Tensor, at: float) -> torch.Tensor:
    """Return start + at * (trained - start), worked out in fp32 at the least; exactly either end at the ends. Without a
    start it is nothing."""
    if at == 1:
        return trained
    wide = torch.promote_types(trained.dtype, torch.float32)
    if start is None:
        return trained.to(wide) * at
    return start if at == 0 else start.to(wide).lerp(trained.to(wide), at)


def _moving(model: Any, name: str) -> Iterator[tuple[Any, torch.Tensor | None]]:
    """Yield the parameters of an adapter in which its change is linear, each with what it is where there is none: the B of
    LoRA, what OFT turns by, DoRA's lengths, and modules that were trained whole."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            if name in module.lora_B:
                yield from ((one, None) for one in module.lora_B[name].parameters())
            if name in module.lora_embedding_B:
                yield module.lora_embedding_B[name], None
            if name in module.lora_magnitude_vector:
                yield module.lora_magnitude_vector[name].weight, _lengths(module, name)
        elif isinstance(module, OFTLayer) and name in module.oft_R:
            yield module.oft_R[name].weight, None
        elif isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            before = dict(module.original_module.named_parameters())
            for own, one in module.modules_to_save[name].named_parameters():
                yield one, before[own].detach()


def _lengths(module: Any, name: str) -> torch.Tensor:
    """Return the lengths of a base's own columns, at which DoRA begins (arXiv 2402.09353)."""
    dora = module.lora_magnitude_vector[name]
    if type(dora) is not DoraLinearLayer:
        raise failures.RunRefused(Problem(rule="recover-dora", parameters={"kind": type(dora).__name__}))
    weight = dequantize_module_weight(module.get_base_layer()).detach()
    return dora.get_weight_norm(weight, torch.zeros_like(weight), 0.0)


def _lower(model: Any, name: str) -> Iterator[torch.nn.Parameter]:
    """Yield the A of LoRA: it stays where it is while B is scaled, and is another where intruders were taken away."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            yield from module.lora_A[name].parameters()


def _unlike(name: str) -> failures.RunRefused:
    return failures.RunRefused(Problem(rule="recover-unlike", parameters={"name": name[:160]}))

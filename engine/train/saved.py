"""Whether what was saved is what was to be saved: read back from its files by name, shape and number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from engine.models import weights
from engine.runs import failures
from engine.train import sound
from engine.words import Problem

Shapes = dict[str, tuple[int, ...]]


def check(folder: Path, model: Any) -> None:
    """Read back a model or an adapter that `model` was just saved as. Raises RunRefused where a tensor is missing, of
    another shape, or not finite."""
    is_adapter = isinstance(model, PeftModel)
    files = [folder / "adapter_model.safetensors"] if is_adapter else list(weights.files(folder).present)
    found = _read(files)
    if is_adapter:
        wanted = [[(name, tuple(one.shape))] for name, one in get_peft_model_state_dict(model).items()]
        trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        if trained > sum(math.prod(shape) for [(_, shape)] in wanted):
            raise _refused("model-saved-part", sorted(n for n, one in model.named_parameters() if one.requires_grad))
    else:
        wanted = _once(model)
    _compare(wanted, found, renamed=bool(getattr(model, "_weight_conversions", None)))
    _finite(files)


def check_copy(made: Path, copy: Path) -> None:
    """Read back the copy of a saved model; raises RunRefused as check() does, and where the model itself has no weights."""
    first, second = (list(weights.files(folder).present) for folder in (made, copy))
    _compare([[one] for one in _read(first).items()], _read(second), renamed=False)
    _finite(second)


def _read(files: list[Path]) -> Shapes:
    """The tensors of weights files; none of a file that is cut off."""
    whole = [path for path in files if weights.is_whole(path)]
    return {name: shape for path in whole for name, shape in weights.shapes(path).items()}


def _once(model: Any) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors of a model, those that are one in memory, such as a tied output layer, together: one of each is saved."""
    groups: dict[Any, list[tuple[str, tuple[int, ...]]]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel():
            groups.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append((name, tuple(tensor.shape)))
    return list(groups.values())


def _compare(wanted: list[list[tuple[str, tuple[int, ...]]]], found: Shapes, *, renamed: bool) -> None:
    """Hold each wanted tensor, by any of its names, against what was found. Where an architecture is stored under other
    names than it has in memory, as mixtures of experts are, the count of numbers stands for the names."""
    if not found or not wanted:
        raise _refused("model-saved-part", [names[0][0] for names in wanted])
    if renamed and sum(map(math.prod, found.values())) == sum(math.prod(names[0][1]) for names in wanted):
        return
    lacking = [names[0][0] for names in wanted if not any(name in found for name, _ in names)]
    if lacking:
        raise _refused("model-saved-part", lacking)
    bent = [name for names in wanted for name, shape in names if found.get(name, shape) != shape]
    if bent:
        raise _refused("model-saved-shape", bent)


def _finite(files: list[Path]) -> None:
    broken = []
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and tensor.numel() and not sound.is_finite(tensor):
                    broken.append(name)
    if broken:
        raise _refused("diverged-saved", broken)


def _refused(rule: str, names: list[str]) -> failures.RunRefused:
    told: dict[str, Any] = {"n": len(names), "first": sound.first(names)}
    return failures.RunRefused(Problem(rule=rule, parameters=told))

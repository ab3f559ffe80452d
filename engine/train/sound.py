"""Whether what was read from a folder is the model that its files hold: all of it, nothing laid over it, in numbers.

And the weights of a base that is stored in 4 or 8 bits: held as they are while adapters train, and unpacked to be merged.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine.models import Base, folders
from engine.runs import failures
from engine.spec import RunSpec
from engine.words import Problem
from engine.workspace import read_object

NAMED = 3


@contextmanager
def alone(source: str) -> Iterator[str]:
    """Give the folder to read a model from so that nothing beside it counts: one of links where it has to be. Without an
    adapter's files, which transformers 5.17 lays over a model where it finds an adapter_config.json (integrations/peft.py,
    maybe_load_adapters); and without settings that name code, kernels or other files, which would be followed, or refused
    where only the tokenizer's code is unknown, and go into all that is saved."""
    folder = Path(source)
    has_adapter = (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file()
    told = {name: read_object(folder / name) for name in folders.CODE_IN}
    own = {name: kept for name, all_of_it in told.items() if (kept := folders.kept_settings(all_of_it)) != all_of_it}
    if not (has_adapter or own):
        yield source
        return
    with tempfile.TemporaryDirectory() as view:
        for path in folder.iterdir():
            if path.name in own:
                (Path(view) / path.name).write_text(json.dumps(own[path.name]), "utf-8")
            elif not (has_adapter and path.name.startswith("adapter_")):
                (Path(view) / path.name).symlink_to(path.resolve())
        yield view


def look(model: Any, missing: set[str]) -> None:
    """Raise RunRefused where a model lacks weights, which would be random numbers, or where weights are no numbers."""
    if missing:
        raise failures.RunRefused(_problem("model-lacks-weights", sorted(missing)))
    broken = [name for name, tensor in _numbers(model) if not is_finite(tensor)]
    if broken:
        raise failures.RunRefused(_problem("model-not-finite", broken))


def _problem(rule: str, names: list[str]) -> Problem:
    return Problem(rule=rule, where="base", parameters={"n": len(names), "first": first(names)})


def first(names: list[str]) -> str:
    """The first of some tensors, as a sentence names them."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _numbers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model that are floating-point numbers, and of packed ones the scales."""
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        scales = getattr(state, "absmax", None) if state is not None else getattr(parameter, "SCB", None)
        tensor = scales if isinstance(scales, torch.Tensor) else parameter.data
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            yield name, tensor


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all of a tensor is finite: its least and greatest number are NaN where one of it is."""
    least, most = torch.aminmax(tensor)
    return bool(torch.isfinite(least) and torch.isfinite(most))


def as_stored(spec: RunSpec, base: Base) -> RunSpec:
    """Return the spec with the bits in which the base is stored, where it names none: they decide how it is read. Raises
    RunRefused for what cannot be done with them."""
    if base.stored is None or spec.quantize == base.stored.setting:
        return spec
    if spec.quantize != "none":
        told = {"bits": base.stored.bits, "asked": spec.quantize.removesuffix("bit")}
        raise failures.RunRefused(Problem(rule="model-stored-bits", where="quantize", parameters=told))
    if spec.adapter == "full":
        raise failures.RunRefused(
            Problem(rule="model-stored-whole", where="base", parameters={"bits": base.stored.bits})
        )
    return msgspec.structs.replace(spec, quantize=base.stored.setting)


def keep_as_written(model: Any, dtype: torch.dtype | None = None) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights in place at the first forward without gradients, as it does on
    processors with AVX512-BF16, and never back: later gradients would be wrong (bitsandbytes/nn/modules.py,
    Linear4bit.forward). With `dtype` they compute in it, whatever the base's config.json says."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if dtype is not None:
                module.compute_dtype = dtype


def unpacked(model: Any, dtype: torch.dtype) -> Any:
    """Return a model with its weights in `dtype`, those that were held in 4 or 8 bits unpacked: to merge into them as they
    are would round what was learned."""
    if getattr(model, "hf_quantizer", None) is None:
        return held_in(model, dtype)
    whole = model.dequantize(dtype)
    # the quantizer's way of reading its files would be undone as the model is saved
    whole._weight_conversions = None
    return held_in(whole, dtype)


def held_in(model: Any, dtype: torch.dtype) -> Any:
    """Return a model with its weights in a number format, and nothing else: model.to() would round what it works with as
    well, the frequencies of its positions, which reading it from its files does not (SmolLM2 in bf16: logits off by 0.1 %
    within 64 tokens, and by more the longer the text)."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model

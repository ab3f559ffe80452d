"""Whether a way fits the machine, by the estimate of memory that everything else goes by."""

from __future__ import annotations

import math
from collections.abc import Callable

from engine import machine
from engine.advise import ways
from engine.advise.ways import Choice
from engine.estimate import memory
from engine.models import Base, shapes
from engine.words import t


def setup_of_choice(choice: Choice) -> memory.Setup:
    """Return the least a choice of the advisor can be run with: where it sets nothing, one row of 1,024 tokens at a
    time with gradient checkpointing, as its rule of thumb counts."""
    return memory.Setup(
        objective=choice.objective,
        adapter=choice.adapter,
        quantize=choice.quantize,
        layers=choice.layers,
        rank=choice.value("adapter_args.rank") or 16,
        batch_size=choice.value("train.batch_size") or (4 if choice.objective == "kto" else 1),
        max_length=choice.value("train.max_length") or 1024,
        gradient_checkpointing=True,
    )


def fits_choice(shape: shapes.Shape, choice: Choice, *, device: str, memory_bytes: float) -> bool:
    """Whether the advisor may name a choice: its sum leaves a tenth of the memory free."""
    found = memory.estimate(shape, setup_of_choice(choice), device=device)
    return found.parts is not None and found.total_bytes <= memory.USABLE_SHARE * memory_bytes


def fits(
    base: Base, gpu_memory_gib: float | None, parameters: float | None = None
) -> Callable[[ways.Choice], bool] | None:
    """Return the advisor's test of memory: each choice by its parts, against a card of this size, or without one against
    the main memory of this machine. By the shape of the base, or of a usual model of so many parameters; None when there
    is nothing to go by."""
    found = _to_plan_with(base, gpu_memory_gib, parameters)
    if found is None:
        return None
    shape, device, memory_bytes = found
    return lambda choice: fits_choice(shape, choice, device=device, memory_bytes=memory_bytes)


def tight(
    base: Base, gpu_memory_gib: float | None, parameters: float | None = None
) -> Callable[[ways.Choice], bool] | None:
    """Return the test whether the upper end of a choice's memory is more than there is; see `fits`."""
    found = _to_plan_with(base, gpu_memory_gib, parameters)
    if found is None:
        return None
    shape, device, memory_bytes = found
    return lambda choice: memory.estimate(shape, setup_of_choice(choice), device=device).high_bytes > memory_bytes


def _to_plan_with(
    base: Base, gpu_memory_gib: float | None, parameters: float | None
) -> tuple[shapes.Shape, str, float] | None:
    """Return shape, device and memory that a choice is held against."""
    shape = shape_for(base, parameters)
    if shape is None or (gpu_memory_gib is not None and not (math.isfinite(gpu_memory_gib) and gpu_memory_gib > 0)):
        return None
    if gpu_memory_gib is None:
        return shape, "cpu", float(2**20 * machine.facts().memory_mib)
    return shape, "cuda:0", 2**30 * gpu_memory_gib


def need(
    base: Base, gpu_memory_gib: float | None, parameters: float | None = None
) -> Callable[[ways.Choice], str] | None:
    """Return what says a choice's memory in words, by the same shape as `fits`; None when there is nothing to go by."""
    shape = shape_for(base, parameters)
    if shape is None:
        return None
    device = "cpu" if gpu_memory_gib is None else "cuda:0"

    def words(choice: ways.Choice) -> str:
        found = memory.estimate(shape, setup_of_choice(choice), device=device)
        return t("{low} to {high}", low=memory.size_words(found.low_bytes), high=memory.size_words(found.high_bytes))

    return words


def shape_for(base: Base | None, parameters: float | None) -> shapes.Shape | None:
    """Return the shape to plan with: the base's own when that has so many parameters (or none are named), else a usual
    one."""
    own = base.shape if base is not None and (parameters is None or parameters == base.parameters) else None
    if own is not None or parameters is None:
        return own
    return shapes.typical_shape(parameters) if math.isfinite(parameters) else None

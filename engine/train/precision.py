"""bf16 on a processor: whether it is faster there, by a trial; and models that compute in 16 bits, whatever they are asked.

Weights stay in fp32 and are rounded as they are used (autocast). A frozen base held in bf16 is slower: on SmolLM2 (6
layers, 385 tokens of 4 rows end to end, one thread with AMX) a pass forward and backward took 1.12 s with autocast, 1.33
with the base in bf16 under it, 1.71 with that alone, and 1.63 in fp32, since torch 2.13 adds and norms slower in bf16.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.estimate import machine_choices, precision
from engine.models import bases
from engine.spec import RunSpec
from engine.train import parts, ranks
from engine.workspace import Workspace

# A trial goes on for so long, both formats in turns; a pass of a layer takes milliseconds to half a second.
TRIAL_S = 2.0
TRIAL_PASSES = 5
# Its tokens, fewer for wide layers, so that a pass has about so many multiplications; wider layers are tried as this wide.
MOST_TOKENS, PASS_MULTIPLICATIONS, MOST_WIDTH, MOST_INTERMEDIATE = 512, 1.6e10, 1536, 6144
# Below so many tokens of a call weights are not rounded.
FEW_TOKENS = 64

# Where accelerate 1.15 looks for the number format that nobody tells it (state.py, AcceleratorState).
ACCELERATE_SETTING = "ACCELERATE_MIXED_PRECISION"
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_full = False  # set while bf16 is put aside


def settle(run_spec: RunSpec, workspace: Workspace) -> None:
    """Make the trial that a run on a processor waits for, if it does. Processes of one run would come to different ends."""
    if run_spec.machine.precision != "auto" or ranks.launched() or torch.cuda.is_available():
        return
    shape = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision).shape
    known = precision.on_processor(workspace, run_spec, shape)
    if known.to_try and shape is not None:
        fp32_s, bf16_s = trial(shape.hidden, shape.intermediate)
        machine, version, hidden, intermediate, threads = precision.key(shape, run_spec.train.threads)
        made = precision.Trial(
            machine=machine, torch=version, hidden=hidden, intermediate=intermediate, threads=threads, fp32_s=fp32_s,
            bf16_s=bf16_s,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # on a full disk the run goes on in fp32
            precision.record(workspace, made)


def trial(hidden: int, intermediate: int) -> tuple[float, float]:
    """Return the seconds of the fastest pass of one layer, forward and backward to its inputs, in fp32 and in bf16: those
    that the processor worked for it, whatever else it has to do."""
    wide, inner = min(hidden, MOST_WIDTH), min(intermediate or 4 * hidden, MOST_INTERMEDIATE)
    held = 4 * wide * wide + 3 * wide * inner
    tokens = int(min(MOST_TOKENS, max(32, PASS_MULTIPLICATIONS / held)))
    dice = torch.Generator().manual_seed(0)
    square = [torch.randn(wide, wide, generator=dice) / wide**0.5 for _ in range(4)]
    gate, up = (torch.randn(inner, wide, generator=dice) / wide**0.5 for _ in range(2))
    down = torch.randn(wide, inner, generator=dice) / inner**0.5
    x = torch.randn(1, tokens, wide, generator=dice, requires_grad=True)
    linear, silu = torch.nn.functional.linear, torch.nn.functional.silu

    def once() -> None:
        normed = torch.nn.functional.rms_norm(x, (wide,))
        query, keys, values = (linear(normed, weight)[None] for weight in square[:3])
        seen = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True)[0]
        held_back = x + linear(seen, square[3])
        normed = torch.nn.functional.rms_norm(held_back, (wide,))
        out = held_back + linear(silu(linear(normed, gate)) * linear(normed, up), down)
        torch.autograd.grad(out.float().square().mean(), x)

    taken: dict[bool, list[float]] = {False: [], True: []}
    began_s = time.perf_counter()
    for number in range(1 + TRIAL_PASSES):
        for half, times in taken.items():
            started_s = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                once()
            if number:  # the first pass chooses kernels
                times.append(time.process_time() - started_s)
        if number and time.perf_counter() - began_s > TRIAL_S:
            break
    return min(taken[False]), min(taken[True])


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let a model of fp32 weights compute in 16 bits whenever it is called: base and tuned are asked, and write, in the
    format they train in. Of few tokens, as where it writes, both compute in fp32: rounding all weights would take longer
    than using them. Under an adapter it is the base that does, which others call past the adapter's own model."""
    model = parts.below_adapter(model)

    def forward(self: Any, *args: Any, **settings: Any) -> Any:
        ids = args[0] if args else settings.get("input_ids")
        few = ids is not None and ids.numel() < FEW_TOKENS
        with torch.autocast(self.device.type, dtype=dtype, enabled=not (few or _full)):
            return type(self).forward(self, *args, **settings)

    # Callers look what it takes. Not in __wrapped__: accelerate, taking its own wrapping away, would take this away too.
    forward.__signature__ = inspect.signature(type(model).forward)  # pyright: ignore[reportFunctionMemberAccess]
    model.forward = types.MethodType(forward, model)  # a method, which a copy of the model takes over as its own
    model.computes_in = dtype


def format_of(model: Any) -> torch.dtype:
    """Return the format in which a model computes."""
    inner = parts.below_adapter(model)
    return getattr(inner, "computes_in", None) or next(model.parameters()).dtype


def as_it_computes(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Compute in a model's own format while a part of it is called by itself, which goes past compute_in."""
    inner = parts.below_adapter(model)
    dtype = getattr(inner, "computes_in", None)
    return torch.autocast(model.device.type, dtype=dtype) if dtype and not _full else contextlib.nullcontext()


@contextmanager
def told_to_accelerate(args: Any) -> Iterator[None]:
    """Name the format of a trainer's arguments where accelerate looks for it, while a trainer makes an Accelerator that is
    told none: TRL 1.12's PPO does, as transformers before version 5 left it there. Without it nothing is rounded, and in
    fp16 there is no scaler."""
    before = os.environ.get(ACCELERATE_SETTING)
    os.environ[ACCELERATE_SETTING] = args.mixed_precision
    try:
        yield
    finally:
        os.environ.pop(ACCELERATE_SETTING)
        if before is not None:
            os.environ[ACCELERATE_SETTING] = before


def multiply_fp32_faster(chosen: machine_choices.Chosen) -> None:
    """Let a card that trained in 16 bits multiply fp32 in TF32 from here on, where nothing trains any more: its 10 bits of
    fraction are as many as fp16 has and more than bf16 has, and tensor cores take it (torch 2.13,
    set_float32_matmul_precision). A run that was asked to compute in fp32 does."""
    if torch.cuda.is_available() and chosen.precision != "fp32":
        torch.set_float32_matmul_precision("high")


@contextmanager
def in_full() -> Iterator[None]:
    """Compute in the format of the weights for a while."""
    global _full
    _full = True
    try:
        yield
    finally:
        _full = False

"""What training takes of the memory: read while it trains, and tried out before it starts.

The probe sends the longest batch forward and backward once, with as many bytes set aside as the optimizer will hold, so
that running out shows before the run instead of hours into it. Nothing it does is left behind: no step is taken,
gradients are dropped, random numbers and the trainer's counts are put back (a test compares the weights bit by bit).
"""

from __future__ import annotations

import copy
import ctypes
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy
import psutil
import pyarrow as arrow
import pyarrow.compute as compute
import torch
from transformers import TrainerCallback

from engine import events, machine
from engine.estimate import measured, memory, phases
from engine.plan import plans
from engine.train import oft
from engine.train.run import Run
from engine.words import later

# A trial of more arithmetic than this takes some seconds on a processor. It is left out where so many times what the formula
# says are free; the formula has been off by less than half (README).
TRIAL_FLOPS, PLENTY = 5e11, 3.0
# The counts that TRL's trainers keep of what went through them.
_COUNTS = ("_metrics", "_stored_metrics", "_total_train_tokens")


class Meter:
    """The peak of memory since it was made, in bytes: what torch allocated on the card, or what this process held.

    On a processor what the C library kept of earlier work is handed back first and the kernel's high-water mark is set
    back (proc(5), clear_refs, 5); where there is no such file, the peak since the process began is all there is.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        if sys.platform == "linux":
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        with suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
        return psutil.Process().memory_info().rss


def held_bytes() -> int:
    """Return what this process holds now; on a card nothing counts before the model is there."""
    return 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss


def row_lengths(dataset: Any) -> numpy.ndarray[Any, Any]:
    """Return how many token ids each row of a trainer's data has; of a pair, its question and its longer answer."""
    table = dataset.with_format("arrow")[:]
    lengths = {
        name: compute.call_function("list_value_length", [table.column(name)]).to_numpy()
        for name in table.column_names
        if name.endswith("ids") and arrow.types.is_list(table.schema.field(name).type)
    }
    question = next((lengths[name] for name in ("prompt_ids", "prompt_input_ids") if name in lengths), None)
    answers = [found for name, found in lengths.items() if name not in ("prompt_ids", "prompt_input_ids")]
    longest = numpy.max(answers, axis=0) if answers else numpy.zeros(len(dataset))
    return longest if question is None else longest + question


class ProbeOnly(Exception):
    """Ends a run that was asked for its probe alone."""


class Probe(TrainerCallback):
    """Tries the longest batch when training is about to begin: optimizer, number format and device are settled then.

    `peak_bytes` is what it took, `tokens` the length of the longest row, `checkpointed` whether layers are computed twice,
    whatever was meant. With `only` it ends the run: it raises ProbeOnly.
    On a processor a trial of seconds is left out where the formula wants so little of what is free that it says nothing.
    """

    def __init__(self, run: Run, rotations: oft.Rotations | None):
        self._run, self._log, self._told, self._rotations = run, run.log, run.told, rotations
        self._trainer: Any = None
        self.peak_bytes, self.tokens, self.tried = 0, 0, True
        self.checkpointed = run.chosen.gradient_checkpointing

    def watch(self, trainer: Any) -> None:
        """Listen to a trainer before anybody else, so that no clock of a step is running yet."""
        self._trainer = trainer
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        lengths = row_lengths(self._trainer.train_dataset)
        self.tokens = int(lengths.max())
        # transformers has switched it on by now, or Unsloth its own
        layers = self._trainer.model_wrapped.modules()
        self.checkpointed = any(getattr(one, "gradient_checkpointing", False) for one in layers)
        wanted, free = estimate(self._run, self.tokens), psutil.virtual_memory().available
        flops = 6.0 * (self._run.base.parameters or 0) * self.tokens * args.per_device_train_batch_size
        self.tried = self._run.only_probes or not is_needless(self._run.device, wanted, free, flops)
        if self.tried:
            self._try()
        else:
            sizes = {"wanted": memory.size_words(wanted or 0), "free": memory.size_words(free)}
            told = later(
                "The longest batch was not tried first: a run takes about {wanted} of {free} that are free.", **sizes
            )
            self._log.append(events.Log(text=told))
        self._told.begin("training")
        if self._run.only_probes:
            raise ProbeOnly

    def _try(self) -> None:
        self._told.begin("training", "probe")
        meter = Meter()
        try_longest(self._trainer)
        if self._rotations is not None:
            self._rotations.invalidate()
        self.peak_bytes = meter.peak_bytes()
        self._log.append(
            events.Log(
                text=later(
                    "Memory was tried with the longest batch ({tokens} tokens a row) before the start: {size}.",
                    tokens=self.tokens,
                    size=memory.size_words(self.peak_bytes),
                )
            )
        )


def is_needless(device: str, wanted_bytes: int | None, free_bytes: int, flops: float) -> bool:
    """Whether a trial would take seconds of a processor, and a run little of the memory that is free."""
    return device == "cpu" and wanted_bytes is not None and PLENTY * wanted_bytes <= free_bytes and flops > TRIAL_FLOPS


def try_longest(trainer: Any) -> int:
    """Send the longest batch forward and backward, and undo all of it; return its longest row, in tokens."""
    lengths = row_lengths(trainer.train_dataset)
    chosen = numpy.argsort(-lengths, kind="stable")[: trainer.args.per_device_train_batch_size]
    model, moments = trainer.model_wrapped, []
    with undone(trainer):
        if not trainer.optimizer.state:  # it holds its own already when a run goes on
            moments = list(moments_of(trainer.optimizer))
        batch = trainer.data_collator([trainer.train_dataset[int(index)] for index in chosen])
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # the loop sets it later
        trainer.training_step(model, batch, None)
    del moments
    return int(lengths.max())


def moments_of(optimizer: Any) -> Iterator[torch.Tensor]:
    """Yield tensors as large as those that Adam will keep of what it trains, written to, since untouched memory is none: two
    moments in the parameter's format (torch 2.13, AdamW), or, of bitsandbytes 0.50, in 8 or 32 bits as it decides by size
    and by what it was told of embeddings, with a constant for each 256 (optim/optimizer.py, Optimizer2State.init_state)."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    in_bits = hasattr(inner, "get_config")
    if in_bits:
        inner.check_overrides()
    for number, group in enumerate(inner.param_groups):
        for place, parameter in enumerate(group["params"]):
            if not parameter.requires_grad:
                continue
            told = inner.get_config(number, place, group) if in_bits else {}
            is_small = in_bits and told["optim_bits"] == 8 and parameter.numel() >= told["min_8bit_size"]
            dtype = torch.uint8 if is_small else torch.float32 if in_bits else parameter.dtype
            for _ in range(2):
                yield torch.ones_like(parameter, dtype=dtype)
                if is_small:
                    yield torch.ones(-(-parameter.numel() // 256), device=parameter.device)


@contextmanager
def undone(trainer: Any) -> Iterator[None]:
    """Leave nothing behind of what is tried: no gradients, no counts, the random numbers and the model's mode as before."""
    kept, model = _state(trainer), trainer.model_wrapped
    was_training = model.training
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        _put_back(trainer, kept)


def _state(trainer: Any) -> dict[str, Any]:
    return {
        "counts": {name: copy.deepcopy(getattr(trainer, name)) for name in _COUNTS if hasattr(trainer, name)},
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _put_back(trainer: Any, kept: dict[str, Any]) -> None:
    for name, value in kept["counts"].items():
        setattr(trainer, name, value)
    random.setstate(kept["python"])
    numpy.random.set_state(kept["numpy"])
    torch.set_rng_state(kept["torch"])
    if kept["cuda"]:
        torch.cuda.set_rng_state_all(kept["cuda"])


def setup(run: Run, tokens: int) -> memory.Setup:
    """Return what decided the memory of a run whose longest row had so many tokens."""
    return memory.with_longest(run.chosen.setup(memory.setup_of(run.spec), run.device), tokens)


def estimate(run: Run, tokens: int) -> int | None:
    """Return what the formula says of such a run, in bytes; the library part aside on a card, as torch counts no such."""
    device = "cuda:0" if run.device == "cuda" else run.device
    found = memory.estimate(run.base.shape, setup(run, tokens), device=device)
    if found.parts is None:
        return None
    return found.moving_bytes if run.device == "cuda" else found.total_bytes


def record(
    run: Run, tried: Probe, trainer: Any, *, baseline_bytes: int, peak_bytes: int, step_s: float | None, base_s: float,
    whole: bool,
) -> None:  # fmt: skip
    """Keep what a finished run took for the estimates to come. `whole`: it ran in one piece, so its length counts."""
    shape, run_spec = run.base.shape, run.spec
    if shape is None or not tried.tokens:
        return
    lengths = row_lengths(trainer.train_dataset)
    row_tokens = round(float(lengths.mean()), 2)
    told, _ = events.read(run.run_dir)
    took, libraries_s = phases.took(told, time.monotonic(), step_s)
    job = plans.of_spec(run.workspace, run_spec).job
    found = measured.Measurement(
        run=run.run_dir.name,
        machine=measured.machine_name(),
        device=machine.facts().device,
        dataset=run_spec.dataset.id,
        shape=shape,
        setup=msgspec.structs.replace(setup(run, tried.tokens), gradient_checkpointing=tried.checkpointed),
        tried=tried.tried,
        threads=run_spec.train.threads,
        rows_per_step=run_spec.train.batch_size * run_spec.train.accumulation,
        row_tokens=row_tokens,
        steps=trainer.state.global_step,
        peak_bytes=peak_bytes,
        baseline_bytes=baseline_bytes,
        step_s=step_s,
        whole_s=sum(took.values()) if whole else None,
        base_s=base_s,
        job=msgspec.structs.replace(job, row_tokens=row_tokens) if job is not None else None,
        took={phase: round(seconds, 3) for phase, seconds in took.items()} if whole else {},
        libraries_s=round(libraries_s, 3),
    )
    with suppress(OSError):  # a full disk must not fail a finished run
        measured.record(run.workspace, found)

"""What the machine decides when the spec leaves it open, each with its reason: the backend, the number format, gradient
checkpointing, the optimizer's state, padding.

Pure reading, no torch: the Train page, preflight and the child come to the same answer from the same facts. The child
asks with what torch sees (engine/train/load.py), the others with what the driver says (engine/machine).
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, NamedTuple

import msgspec

from engine.estimate import memory, precision
from engine.events import Choice
from engine.models import shapes
from engine.spec import OBJECTIVES, RunSpec, counts
from engine.words import Problem, Text, later, t

# What the choice about freed memory is called among the settings, of which it is none.
FREED_MEMORY = "memory.freed"
# An optimizer in 8 bits is worth it when less than so much of the whole is left.
WORTH_SAVING = 0.9
# Freed blocks are kept where so many times the estimate's upper end is free, and left to the C library where so many are.
KEPT_TIMES, DEFAULT_TIMES = 2.0, 1.5
# Of what needs less than this above the libraries nothing is gained or lost.
LITTLE_BYTES = 2**28
# Its fast kernels are written for these layouts; others would go through transformers anyway (unsloth 2026.10, loader.py).
UNSLOTH_LAYOUTS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")

# In fp16 what these compute, or its gradients, overflow (unsloth 2026.10, models/loader.py, _FORCE_FLOAT32_FALLBACK).
OVERFLOWS_IN_FP16 = ("gemma3", "gemma4", "glm4_moe", "gpt_oss", "qwen3_5", "qwen3_moe")


class Device(NamedTuple):
    """What a run has to work with. `bf16`: it computes in bf16; `memory_bytes`: the card's, or main memory; `free_bytes`:
    how much of main memory is free, 0 where that is not known."""

    name: str  # "cpu", "mps" or "cuda"
    memory_bytes: int
    bf16: bool = False
    unsloth: bool = False
    flash_attention: bool = False
    free_bytes: int = 0


class Chosen(NamedTuple):
    """The answers, and `why`: a line each for the run's first event and its page. `precision`: what is multiplied in;
    `weights`: what full fine-tuning holds its own in."""

    backend: Literal["plain", "unsloth"]
    precision: Literal["fp32", "bf16", "fp16"]
    gradient_checkpointing: bool
    optimizer: Literal["adamw", "adamw_8bit"]
    padding_free: bool | None  # by FlashAttention, not at all, or None: as Unsloth or a comparison at the start decides
    why: tuple[Choice, ...]
    blocks: Literal["kept", "default", "returned", ""] = ""
    weights: Literal["fp32", "bf16"] = "fp32"

    @property
    def bf16(self) -> bool:
        return self.precision == "bf16"

    def setup(self, asked: memory.Setup, device: str) -> memory.Setup:
        """Return what decides the memory of a run with what was decided here put in. `device` as Device.name has it."""
        return msgspec.structs.replace(
            asked, backend=self.backend, precision=self.precision if device == "cuda" else "",
            half=self.bf16 and device == "cpu", weights=self.weights, gradient_checkpointing=self.gradient_checkpointing,
            optimizer=self.optimizer, blocks=self.blocks,
        )  # fmt: skip

    @property
    def backend_reason(self) -> str | Text:
        return next(one.reason for one in self.why if one.setting == "machine.backend")


class Ability(NamedTuple):
    """What a kind of device can do: the one table of it. `bf16` needs compute capability 8.0 on NVIDIA's cards; bitsandbytes
    0.50 quantises on NVIDIA's cards and processors; Unsloth's kernels are for NVIDIA's cards; Apple's GPU is used in 32
    bits, unquantised, which is what torch 2.13 computes everywhere the same."""

    name: str
    bf16: bool
    quantized: bool
    unsloth: bool


ABILITIES = (
    Ability("cuda", bf16=True, quantized=True, unsloth=True),
    Ability("mps", bf16=False, quantized=False, unsloth=False),
    Ability("cpu", bf16=False, quantized=True, unsloth=False),
)


def ability(name: str) -> Ability:
    """Return the row of a device."""
    return next(one for one in ABILITIES if one.name == name)


def device_words() -> dict[str, str]:
    """Return what each kind of device is called."""
    return {"cuda": t("NVIDIA GPU (CUDA)"), "mps": t("Apple GPU (MPS)"), "cpu": t("Processor (CPU)")}


def installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def choose(
    run_spec: RunSpec, device: Device, shape: shapes.Shape | None, setup: memory.Setup,
    on_processor: precision.Known | None = None,
) -> Chosen:  # fmt: skip
    """Return what is used for everything that follows from the machine, with the reason in words.

    `shape` and `setup` are those of the memory estimate (fit.py); an unknown shape has none, and then the careful way
    is taken on a GPU. `on_processor`: what is known of the number format there.
    """
    backend, backend_reason = choose_backend(run_spec, device, shape)
    number_format, format_reason = _precision(run_spec, device, shape, on_processor)
    weights = run_spec.machine.weights if run_spec.adapter == "full" else "fp32"
    made = Chosen(backend, number_format, False, "adamw", None, (), weights=weights)
    setup = made.setup(setup, device.name)
    checkpointing, checkpointing_reason = choose_checkpointing(run_spec, device, shape, setup)
    setup = msgspec.structs.replace(setup, gradient_checkpointing=checkpointing)
    optimizer, optimizer_reason = choose_optimizer(run_spec, device, shape, setup)
    padding_free, padding_reason = _padding(run_spec, device, made)
    setup = msgspec.structs.replace(setup, optimizer=optimizer)
    blocks, blocks_reason = choose_blocks(device, shape, setup)
    words: dict[bool | None, Text] = {
        True: later("on"),
        False: later("off"),
        None: later("left to Unsloth") if backend == "unsloth" else later("tried at the start"),
    }
    why = (
        Choice(setting="machine.backend", value=backend, reason=backend_reason),
        Choice(setting="machine.precision", value=number_format, reason=format_reason),
        Choice(setting="train.gradient_checkpointing", value=words[checkpointing], reason=checkpointing_reason),
        Choice(setting="train.optimizer", value=optimizer, reason=optimizer_reason),
        Choice(setting="train.padding_free", value=words[padding_free], reason=padding_reason),
    )
    if blocks:
        how = {"kept": later("kept"), "default": later("left to the C library"), "returned": later("given back")}[
            blocks
        ]
        why += (Choice(setting=FREED_MEMORY, value=how, reason=blocks_reason),)
    if weights == "bf16":
        why += (Choice(setting="machine.weights", value=weights, reason=later("asked for")),)
    return Chosen(backend, number_format, checkpointing, optimizer, padding_free, why, blocks, weights)


def choose_backend(
    run_spec: RunSpec, device: Device, shape: shapes.Shape | None
) -> tuple[Literal["plain", "unsloth"], Text]:
    """Return the backend of a run and why."""
    if run_spec.machine.backend != "auto":
        return run_spec.machine.backend, later("asked for")
    if run_spec.kind not in ("train", "probe"):
        return "plain", later("nothing is trained, and both models are asked by transformers")
    if counts.processes(run_spec) > 1:
        return "plain", later("Unsloth trains on one device only")
    if not device.unsloth:
        return "plain", later("Unsloth is not installed")
    if device.name != "cuda":
        return "plain", later("Unsloth is faster on an NVIDIA GPU only, and there is none")
    if run_spec.adapter not in OBJECTIVES[run_spec.objective].unsloth_adapters:
        what = f"{run_spec.objective} + {run_spec.adapter}"
        return "plain", later("Unsloth is used for SFT, and for DPO and KTO with LoRA; this run is {what}", what=what)
    if run_spec.adapter_args.continues:
        return "plain", later("an adapter that is trained on is loaded by transformers and peft")
    if run_spec.objective_args.keep != "plain":
        return "plain", later("Unsloth has a loss of its own; this run keeps what its base knew by another")
    if run_spec.quantize == "8bit":
        return "plain", later("a base in 8 bits is loaded by transformers")
    if run_spec.adapter == "full" and run_spec.machine.weights == "bf16":
        return "plain", later("weights that are held in bf16 alone are trained by transformers")
    if shape is None or shape.layout not in UNSLOTH_LAYOUTS:
        return "plain", later("Unsloth has no fast path for this kind of model")
    return "unsloth", later("it is installed, there is a GPU, and it has a fast path for this run")


def _precision(
    run_spec: RunSpec, device: Device, shape: shapes.Shape | None, on_processor: precision.Known | None
) -> tuple[Literal["fp32", "bf16", "fp16"], Text]:
    """Return the number format that is multiplied in, and why. Without bf16 a card computes in fp16 under a scaler, which
    keeps small gradients from vanishing and passes over steps that overflow (arXiv 1710.03740); what trains is in fp32."""
    if run_spec.adapter == "full" and run_spec.machine.weights == "bf16":
        return "bf16", later("the weights are held in it")
    if run_spec.machine.precision != "auto":
        return run_spec.machine.precision, later("asked for")
    if device.name == "cpu":
        if on_processor is not None:
            return "bf16" if on_processor.bf16 else "fp32", on_processor.why
        return "fp32", later("a processor computes in 32 bits")
    if device.name == "mps":
        return "fp32", later("on Apple's GPU the careful way is 32 bits")
    if device.bf16:
        return "bf16", later("the card computes in bf16")
    if shape is not None and shape.layout.startswith(OVERFLOWS_IN_FP16):
        return "fp32", later("the card has no bf16, and this kind of model overflows in fp16")
    return "fp16", later("the card has no bf16; a scaler keeps small gradients, and what trains is held in fp32")


def _need(shape: shapes.Shape | None, setup: memory.Setup, device: Device) -> memory.Estimate:
    return memory.estimate(shape, setup, device="cuda:0" if device.name == "cuda" else device.name)


def _fits(need: memory.Estimate, device: Device) -> bool:
    return memory.room(need, device.memory_bytes) == "fits"


def _sizes(need: memory.Estimate, device: Device) -> dict[str, Any]:
    return {"need": memory.size_words(need.high_bytes), "have": memory.size_words(device.memory_bytes)}


def choose_checkpointing(
    run_spec: RunSpec, device: Device, shape: shapes.Shape | None, setup: memory.Setup
) -> tuple[bool, Text]:
    """Return whether layers are computed twice to save memory: only where the upper end of the estimate without it does
    not fit, since it costs about a third of the speed (Chen and others, arXiv 1604.06174)."""
    if run_spec.train.gradient_checkpointing is not None:
        return run_spec.train.gradient_checkpointing, later("asked for")
    need = _need(shape, msgspec.structs.replace(setup, gradient_checkpointing=False), device)
    if need.parts is None:
        if device.name != "cuda":
            return False, later("the memory cannot be estimated, and main memory is seldom short")
        return True, later("the memory cannot be estimated, so the careful way")
    if _fits(need, device):
        return False, later("the run fits without it")
    return True, later("without it the run would need {need} of {have}", **_sizes(need, device))


def choose_optimizer(
    run_spec: RunSpec, device: Device, shape: shapes.Shape | None, setup: memory.Setup
) -> tuple[Literal["adamw", "adamw_8bit"], Text]:
    """Return the optimizer: AdamW, or with its moments in 8 bits where the estimate is too large otherwise and that
    saves a tenth of it (arXiv 2110.02861 finds the same losses; bitsandbytes 0.50 has it for processors too)."""
    if run_spec.train.optimizer != "auto":
        return run_spec.train.optimizer, later("asked for")
    need = _need(shape, msgspec.structs.replace(setup, optimizer="adamw"), device)
    less = _need(shape, msgspec.structs.replace(setup, optimizer="adamw_8bit"), device)
    if need.parts is None:
        return "adamw", later("the memory cannot be estimated")
    if _fits(need, device):
        return "adamw", later("the run fits with it")
    if less.total_bytes > WORTH_SAVING * need.total_bytes:
        return "adamw", later("its state is small beside the rest, so 8 bits would save little")
    return "adamw_8bit", later("in 32 bits the run would need {need} of {have}", **_sizes(need, device))


def _padding(run_spec: RunSpec, device: Device, made: Chosen) -> tuple[bool | None, Text]:
    """Return whether the rows of a batch are laid end to end; None where Unsloth, or the child by a comparison, settles it
    (engine/train/batches.py). FlashAttention 2 is for cards that have bf16 (its README: Ampere and newer) and for models
    whose weights are in 16 bits: others also compute in fp32 here, where they write (engine/train/precision.py)."""
    if not OBJECTIVES[run_spec.objective].padding_free:
        return False, later("for SFT only; rows of like length share a batch")
    if run_spec.train.padding_free is False:
        return False, later("asked for")
    if made.backend == "unsloth":
        return None, later("it has attention of its own that keeps rows apart")
    in_16_bits = made.weights == "bf16" if run_spec.adapter == "full" else made.precision != "fp32"
    if device.name == "cuda" and device.flash_attention and device.bf16 and in_16_bits:
        return True, later("FlashAttention keeps the rows apart")
    return None, later("laid end to end where a comparison at the start finds that right and faster; else by length")


def choose_blocks(
    device: Device, shape: shapes.Shape | None, setup: memory.Setup
) -> tuple[Literal["kept", "default", "returned", ""], Text]:
    """Return what becomes of memory that a step frees: kept for the next one where there is plenty, since getting it anew
    costs a page fault for every 4 KiB; given back where it is short; "" where it is of no account."""
    need = memory.estimate(shape, setup, device="cpu")
    if device.name != "cpu" or not device.free_bytes or (need.parts and need.moving_bytes < LITTLE_BYTES):
        return "", later("little is at stake")
    if need.parts is None:
        return "returned", later("the memory cannot be estimated, so the careful way")
    free_bytes = min(device.free_bytes, device.memory_bytes)  # of a machine of which a part is lent, more is free
    told = {"free": memory.size_words(free_bytes), "need": memory.size_words(need.high_bytes)}
    if free_bytes >= KEPT_TIMES * need.high_bytes:
        return "kept", later("{free} are free, and a step needs {need} at most", **told)
    if free_bytes >= DEFAULT_TIMES * need.high_bytes:
        return "default", later("{free} are free, and a step needs {need} at most", **told)
    return "returned", later("memory is short: {free} are free, and a step may need {need}", **told)


def problems(run_spec: RunSpec, device: Device, shape: shapes.Shape | None) -> list[Problem]:
    """Return what was asked for and cannot be had on this machine."""
    found = []
    if run_spec.machine.backend == "unsloth":
        where = "machine.backend"
        if device.name == "mps":
            found.append(Problem(rule="unsloth-apple", where=where))
        elif not device.unsloth:
            found.append(Problem(rule="unsloth-missing", where=where))
        elif run_spec.adapter not in OBJECTIVES[run_spec.objective].unsloth_adapters or run_spec.base_form not in (
            "none", "4bit",
        ):  # fmt: skip
            what = f"{run_spec.objective} + {run_spec.adapter}"
            what += f" + {run_spec.base_form}" if run_spec.base_form != "none" else ""
            found.append(Problem(rule="unsloth-cannot", where=where, parameters={"what": what}))
        elif run_spec.objective_args.keep != "plain":
            found.append(Problem(rule="keep-unsloth", where=where, parameters={"keep": run_spec.objective_args.keep}))
        elif shape is not None and shape.layout not in UNSLOTH_LAYOUTS:
            found.append(Problem(rule="unsloth-layout", where=where, parameters={"layout": shape.layout}))
    if run_spec.quantize != "none" and not ability(device.name).quantized:
        found.append(Problem(rule="quantize-apple", where="quantize"))
    if run_spec.train.padding_free and not OBJECTIVES[run_spec.objective].padding_free:
        found.append(Problem(rule="padding-free", where="train.padding_free"))
    if run_spec.machine.precision == "bf16" and device.name != "cpu" and not device.bf16:
        found.append(Problem(rule="no-bf16", where="machine.precision"))
    if run_spec.machine.precision == "fp16" and device.name != "cuda":
        found.append(Problem(rule="no-fp16", where="machine.precision"))
    if run_spec.machine.weights == "bf16":
        where = "machine.weights"
        if run_spec.adapter != "full":
            found.append(Problem(rule="weights-adapter", where=where))
        elif device.name != "cpu" and not device.bf16:
            found.append(Problem(rule="no-bf16", where=where))
    return found

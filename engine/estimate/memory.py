"""How much memory a run needs, worked out from a model's config.json alone. Pure arithmetic: no torch, nothing is loaded.

A range, never a false point: 0.95 to 1.25 times the sum. What is measured is said where it stands; the rest is checked
against published peaks (tests/estimate/test_fit.py holds the table). No figure was checked on a GPU here. What runs of a
kind took on this machine corrects the sum (measured.py).

P is the number of parameters, P_t of trained ones, P_q of those held in fewer bits (the linear layers), L the layers,
d the width, f the width of the feed-forward part, V the vocabulary, T the tokens of one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from engine.estimate import setup as estimate_setup
from engine.estimate.setup import Setup as Setup
from engine.estimate.setup import setup_of as setup_of
from engine.estimate.setup import with_longest as with_longest
from engine.models import shapes
from engine.spec import OBJECTIVES
from engine.spec import counts as spec_counts
from engine.words import t

# The range around the sum: fragmentation and what the allocator keeps cost 5 to 15 %, kernels need room of their own.
LOW, HIGH = 0.95, 1.25
# After runs of the same kind on this machine; the longest batch of two data sets differs by so much at the least.
CALIBRATED_LOW, CALIBRATED_HIGH = 0.9, 1.15
# The CUDA context and the allocator's first blocks: 0.8 to 1.5 GB; the lower end, since the range covers the rest.
GPU_FIXED_BYTES = 800_000_000
# Resident memory of a run's child that has imported torch 2.13 (CPU), transformers, trl and peft without what it does not
# use (engine/train/libraries.py): 470 to 477 MiB on four runs, read with psutil, 2026-11-29, Linux x86-64.
IMPORT_BASELINE_BYTES = 475 * 2**20
# What a run imports and opens later: the harness that scores, the trainer, its data. The starter's runs peak at 660 to 682
# MiB where its weights, gradients and activations come to 33 (same machine).
LATER_BYTES = 60 * 2**20
# On a processor the formula stands as it is where the C library gives back what is freed between layers
# (engine/train/allocator.py). Measured on Linux with glibc: a Llama of 51 million parameters, 4 rows of 512 tokens, no
# checkpointing, one thread: LoRA took 1,259 MiB above the import baseline, the formula says 1,396; full fine-tuning 1,725,
# it says 1,939. Left to itself glibc took 2,518 and 2,087.
# What glibc's own way and keeping all freed blocks add to that: SmolLM2 of 135 million parameters, LoRA, 4 rows of 192
# tokens peaked at 2.80 GB with blocks given back, 3.41 left to itself and 3.50 with blocks kept, 0.6 of each libraries.
BLOCKS_FACTOR = {"default": 1.28, "kept": 1.32}
# Activations where a processor rounds what it multiplies to bf16; sums between layers stay in fp32.
HALF_ACTIVATIONS = 0.75
# A run should leave a tenth of the memory free before it is advised.
USABLE_SHARE = 0.9
# TRL 1.12's supervised training computes logits for so many tokens at a time (sft_trainer.py, "chunked_nll").
LOGIT_CHUNK_TOKENS = 256
# What a divergence from the base takes beside a loss: 12 bytes a logit, measured on 256 tokens of 49,152 logits in fp32
# (29.0 and 29.2 against 17.0 for TRL's loss; weights by entropy 16.7), 2026-11-30.
KL_BYTES = 12
# Bytes of a parameter held in fewer bits: NF4 with double quantisation is 4.127 bits (QLoRA, arXiv 2305.14314);
# LLM.int8 is one byte, its scales aside (arXiv 2208.07339).
QUANTIZED_BYTES = {"4bit": 4.127 / 8, "8bit": 1.0}
# Bytes of Adam's two moments in 8 bits: one each, and a constant of 4 for every 256 of them (bitsandbytes 0.50,
# optim/optimizer.py, Optimizer2State.init_state).
EIGHT_BIT_MOMENTS = 2 * (1 + 4 / 256)
# PPO writes so many answers at once (engine/train/objectives/ppo.py).
PPO_ROWS_WRITTEN_AT_ONCE = 64

PARTS = (
    *("weights", "gradients", "optimizer", "activations", "logits", "adapter"),
    *("reference", "reward", "value", "rollout", "blocks", "measured", "fixed"),
)


def part_words() -> dict[str, str]:
    """Return what each part is, in words."""
    return {
        "weights": t("Weights"),
        "gradients": t("Gradients"),
        "optimizer": t("Optimizer (Adam)"),
        "activations": t("Activations"),
        "logits": t("Logits"),
        "adapter": t("Adapter's extras"),
        "reference": t("Reference model"),
        "reward": t("Reward model"),
        "value": t("Value model"),
        "rollout": t("Answers being written"),
        "blocks": t("Freed, and kept for the next step"),
        "measured": t("More, as finished runs took"),
        "fixed": t("Libraries and device"),
    }


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by part, in the order of PARTS, those of no size left out; `parts` is None when nothing is known and
    `sentence` says why. `runs`: how many finished runs of this machine the figures were corrected by."""

    device: str
    parts: dict[str, int] | None
    parameters: int | None = None
    trained_parameters: int | None = None
    sentence: str = ""
    runs: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values()) if self.parts else 0

    @property
    def moving_bytes(self) -> int:
        """All but what libraries and device take before a model is there: what is measured above the baseline."""
        return self.total_bytes - (self.parts or {}).get("fixed", 0)

    @property
    def low_bytes(self) -> int:
        return round((CALIBRATED_LOW if self.runs else LOW) * self.total_bytes)

    @property
    def high_bytes(self) -> int:
        return round((CALIBRATED_HIGH if self.runs else HIGH) * self.total_bytes)

    def calibrated(self, found: Calibration | None) -> Estimate:
        """Return the estimate corrected by what finished runs took on this machine."""
        if found is None or not self.parts:
            return self
        parts = dict(self.parts)
        if found.factor > 1:
            parts["measured"] = round((found.factor - 1) * self.moving_bytes)
        else:
            parts = {name: round(size * found.factor) for name, size in parts.items()}
        parts["fixed"] = self.parts["fixed"]
        if self.device == "cpu" and found.baseline_bytes:
            parts["fixed"] = found.baseline_bytes + LATER_BYTES
        return msgspec.structs.replace(self, parts={n: parts[n] for n in PARTS if parts.get(n)}, runs=found.runs)


def trained_parameters(shape: shapes.Shape, setup: Setup) -> int:
    """Return how many parameters a run trains. LoRA of rank r on a linear layer d -> o has r(d + o), OFT with blocks of b
    d(b - 1)/2 (peft 0.21, tuners/oft/layer.py). Raises ValueError for layers the shape does not have."""
    chosen = spec_counts.layer_indices(setup.layers, shape.layers)
    count = shape.layers if chosen is None else len(chosen)
    if setup.adapter == "lora" and setup.target_modules == "all-linear" and shape.lora_per_rank:
        return setup.rank * shape.lora_per_rank * count // shape.layers
    adapted = [(one, count * one.per_layer) for one in _adapted(shape, setup)]
    if setup.adapter == "lora":
        return round(sum(n * setup.rank * (one.inputs + one.outputs) for one, n in adapted))
    if setup.adapter == "oft":
        return round(sum(n * (one.inputs * (_block(one, setup) - 1) // 2) for one, n in adapted))
    if chosen is None:
        return _held_parameters(shape, setup) - shape.other_parameters
    head = shape.head_parameters + shape.final_norm_parameters if setup.train_head else 0
    return count * shape.layer_parameters + head


def _held_parameters(shape: shapes.Shape, setup: Setup) -> int:
    """Return the parameters in memory: a reward model has a score instead of the output layer."""
    without_head = OBJECTIVES[setup.objective].is_judge and not shape.tied
    return shapes.count_parameters(shape) - (shape.head_parameters if without_head else 0)


def _adapted(shape: shapes.Shape, setup: Setup) -> list[shapes.Linear]:
    if setup.target_modules == "all-linear":
        return list(shape.linears)
    if setup.target_modules == shapes.FEED_FORWARD:
        return list(shape.feed_forward)
    names = {name.strip() for name in setup.target_modules.split(",")}
    return [linear for linear in shape.linears if linear.name in names]


def _block(linear: shapes.Linear, setup: Setup) -> int:
    return max(1, min(setup.block_size, linear.inputs))


def estimate(shape: shapes.Shape | None, setup: Setup, *, device: str) -> Estimate:
    """Return the memory of a run on `device` ("cpu" or "cuda:0"), by part; what a part stands on is said where it is
    counted. Pairs of DPO and of a reward model double T. The reference is the adapter switched off, or a frozen copy of
    all weights, or of the adapter that is trained on; `fixed` is
    GPU_FIXED_BYTES, or on a processor what importing the libraries takes, at first and later.

    With long rows and no checkpointing an adapter can need more than full fine-tuning of a small model: its copies grow
    with the tokens, the weights do not.
    """
    if shape is None:
        return Estimate(
            device=device,
            parts=None,
            sentence=t(
                "The memory cannot be estimated: this base's config.json is not here, or its architecture is not known."
            ),
        )
    try:
        trained = trained_parameters(shape, setup)
    except ValueError as error:
        text = t("The memory cannot be estimated: {reason}.", reason=error)
        return Estimate(device=device, parts=None, sentence=text)
    if min(setup.batch_size, setup.max_length, setup.rank, setup.block_size, setup.answer_tokens) < 1:
        text = t("The memory cannot be estimated: rows, tokens and ranks are counted from 1.")
        return Estimate(device=device, parts=None, sentence=text)
    # Apple's shares main memory, and runs compute in 32 bits there (machine_choices.py)
    on_gpu = device.startswith("cuda")
    whole_bf16 = setup.adapter == "full" and setup.weights == "bf16"
    element_bytes = 2 if whole_bf16 or (on_gpu and setup.precision != "fp32") else 4
    objective, held = OBJECTIVES[setup.objective], _held_parameters(shape, setup)
    tokens = setup.batch_size * setup.max_length * objective.texts_per_row
    weights, gradients, optimizer = _held_bytes(shape, setup, trained, held, element_bytes)
    rounded = setup.half and element_bytes == 4
    parts = {
        "weights": weights + (2 * held if rounded else 0),  # their rounded copies, kept for the way back
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": _activation_bytes(shape, setup, tokens, element_bytes, on_gpu)
        * (HALF_ACTIVATIONS if rounded else 1),
        "logits": _logit_bytes(shape, setup, tokens, element_bytes),
        "adapter": _adapter_bytes(shape, setup, tokens, element_bytes),
        "reference": _reference_bytes(setup, trained, (2 if whole_bf16 else 4) * held)
        + _kept_bytes(shape, setup, tokens, element_bytes),
        "fixed": GPU_FIXED_BYTES if on_gpu else IMPORT_BASELINE_BYTES + LATER_BYTES,
    }
    if objective.needs_judge:
        parts |= _ppo_bytes(shape, setup, tokens, element_bytes, on_gpu)
    if not on_gpu:
        more = BLOCKS_FACTOR.get(setup.blocks, 1.0) - 1
        parts["blocks"] = more * sum(size for name, size in parts.items() if name != "fixed")
    return Estimate(
        device=device,
        parts={name: round(parts[name]) for name in PARTS if parts.get(name)},
        parameters=shapes.count_parameters(shape),
        trained_parameters=trained,
    )


def _reference_bytes(setup: Setup, trained: int, all_weights: int) -> int:
    """Return the bytes of the frozen copy that a run is held to. An adapter's is in 32 bits. DPO and KTO that train every
    weight ask the model itself before it trains (TRL 1.12, precompute_ref_log_probs)."""
    objective = OBJECTIVES[setup.objective]
    if not objective.has_reference:
        return 0
    if setup.adapter == "full":
        return all_weights if objective.needs_judge else 0
    return 4 * trained if setup.continues else 0


def _kept_bytes(shape: shapes.Shape, setup: Setup, tokens: int, element_bytes: int) -> int:
    """Return what a batch holds of what its base said: last hidden states, or 64 ids of 8 bytes and ln q of 4 a token."""
    if estimate_setup.asks_base_beside(setup):
        return tokens * shape.hidden * element_bytes
    return 64 * 12 * tokens if setup.keep == "kl" else 0


def kept_on_disk_bytes(setup: Setup, tokens: float) -> int:
    """Return what a run keeps on the disk of what its base said of so many tokens: 64 ids and ln q, 4 bytes each."""
    return round(64 * 8 * tokens) if setup.keep == "kl" and not estimate_setup.asks_base_beside(setup) else 0


def _held_bytes(
    shape: shapes.Shape, setup: Setup, trained: int, held: int, element_bytes: int
) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer: 4 + 4 + 8 for each trained parameter in 32 bits, and on a GPU
    2 more for the copies autocast makes: the 18 P of LLaMA-Factory's table. In pure bf16 2 + 2 + 4. A frozen parameter
    takes 2 on a GPU below an adapter, else 4. What trains beside a base in few bits is held in 32 (adapters.kept_whole).
    """
    if setup.adapter == "full":
        whole_bytes = 2 if setup.weights == "bf16" else 4
        copies = 2 * held if element_bytes == 2 and whole_bytes == 4 else 0
        state = _optimizer_bytes(shape, setup, trained, whole_bytes)
        return whole_bytes * held + copies, whole_bytes * trained, state
    base: float = element_bytes * held
    if setup.quantize in QUANTIZED_BYTES:
        base += (QUANTIZED_BYTES[setup.quantize] - element_bytes) * shape.linear_parameters
    return base + 4 * trained, 4 * trained, _optimizer_bytes(shape, setup, trained)


def _optimizer_bytes(shape: shapes.Shape, setup: Setup, trained: int, parameter_bytes: int = 4) -> float:
    """Return what Adam keeps: two moments of each trained parameter in its own format (torch 2.13, AdamW), or in 8 bits with
    two constants of 4 bytes for each 256 (8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861). An embedding's
    stay in 32 bits then (transformers 5.17, trainer.py, create_optimizer)."""
    if setup.optimizer != "adamw_8bit":
        return 2 * parameter_bytes * trained
    trains_all = setup.adapter == "full" and spec_counts.layer_indices(setup.layers, shape.layers) is None
    embedded = shape.hidden * (shape.vocabulary + shape.positions)
    if setup.adapter != "full" or not (trains_all or (shape.tied and setup.train_head)):
        embedded = 0
    elif not trains_all:  # the head that is the embedding, and no positions
        embedded = shape.head_parameters
    embedded = min(embedded, trained)
    return 8 * embedded + EIGHT_BIT_MOMENTS * (trained - embedded)


def _layers_with_activations(shape: shapes.Shape, setup: Setup) -> int:
    """Return how many layers keep activations: none below the lowest trained one, unless the tied embeddings train, or an
    adapter runs with checkpointing, which needs gradients at the inputs."""
    chosen = spec_counts.layer_indices(setup.layers, shape.layers)
    if chosen is None:
        return shape.layers
    through = setup.gradient_checkpointing if setup.adapter != "full" else shape.tied and setup.train_head
    return shape.layers if through else shape.layers - chosen[0]


def _activation_bytes(shape: shapes.Shape, setup: Setup, tokens: int, element_bytes: int, on_gpu: bool) -> float:
    """Return what the layers keep: T(22 d + 8 f) bytes each with a gate, T(18 d + 4 f) = 34 T d without (Korthikanti and
    others, arXiv 2205.05198, attention never written out); with checkpointing 2 T d each and one layer's whole. Twice
    that in 32 bits. GELU in steps (GPT-2's) keeps three more of the feed-forward width. On a processor attention that is
    dropped in part is written out: three scores of 4 bytes for each pair of tokens and head, after softmax, the mask and
    what is left (torch 2.13, _scaled_dot_product_attention_math). Where a model has no kernel for it, what softmax says and
    the copy of it that is multiplied are kept (transformers 5.17, gpt_oss/modeling_gpt_oss.py)."""
    wide = max(shape.hidden, shape.heads * shape.head_dim)
    per_token = 22 * wide + 8 * shape.intermediate if shape.gated else 18 * wide + 4 * shape.intermediate
    per_token += 6 * shape.intermediate if shape.gelu_in_steps else 0
    layer = tokens * per_token * element_bytes / 2
    if shape.attention_dropout and not on_gpu:
        layer += 12 * shape.heads * tokens * setup.max_length
    if shape.writes_attention:
        layer += 2 * element_bytes * shape.heads * tokens * setup.max_length
    deep = _layers_with_activations(shape, setup)
    if setup.gradient_checkpointing:
        return min(element_bytes * tokens * shape.hidden * deep + layer, layer * deep)
    return layer * deep


def _logit_bytes(shape: shapes.Shape, setup: Setup, tokens: int, element_bytes: int) -> int:
    """Return the bytes of bf16 logits, their fp32 copy and its gradient: 10 T V (12 in 32 bits), and KL_BYTES more where
    they are held to the base's. TRL 1.12's supervised training takes 256 tokens at a time, and so does what keeps more
    (engine/train/keep_losses.py); DPO, KTO and PPO hold all; a reward model has none."""
    objective = OBJECTIVES[setup.objective]
    if objective.is_judge:
        return 0
    if objective.chunks_logits and not setup.plain_logits:
        tokens = min(tokens, LOGIT_CHUNK_TOKENS)
    each = (10 if element_bytes == 2 else 12) + (KL_BYTES if setup.keep == "kl" else 0)
    return each * tokens * shape.vocabulary


def _adapter_bytes(shape: shapes.Shape, setup: Setup, tokens: int, element_bytes: int) -> float:
    """Return an adapter's extras: peft keeps a fp32 copy of the inputs of each adapted layer on a 16-bit base (4 T d;
    measured on peft 0.21 on a CPU), and OFT its rotations, 4 d b a layer and 12 d b while it builds them."""
    if setup.adapter == "full":
        return 0
    adapted, chosen = _adapted(shape, setup), spec_counts.layer_indices(setup.layers, shape.layers)
    count = shape.layers if chosen is None else len(chosen)
    at_once = 1 if setup.gradient_checkpointing else count
    found = 4 * tokens * sum(one.per_layer * one.inputs for one in adapted) * at_once if element_bytes == 2 else 0
    if setup.adapter == "oft":
        rotations = sum(one.per_layer * one.inputs * _block(one, setup) for one in adapted)
        return found + 4 * rotations * count + 12 * rotations * at_once
    return found + 4 * tokens * setup.rank * sum(one.per_layer for one in adapted) * at_once


def _ppo_bytes(shape: shapes.Shape, setup: Setup, tokens: int, element_bytes: int, on_gpu: bool) -> dict[str, float]:
    """Return what PPO holds besides: a frozen reward model of the base's size, the value model, and while answers are
    written the key-value cache of up to 64 rows and the scores of all answers of an update, in fp32 and once more while
    they are put together (TRL 1.12, batch_generation). The value model is a copy of the reward model, trained whole in 32
    bits (objectives/ppo.py): its states and its activations count as those of full fine-tuning."""
    rows = setup.update_rows or setup.batch_size
    answer = min(setup.answer_tokens, setup.max_length)
    at_once = min(rows, PPO_ROWS_WRITTEN_AT_ONCE)
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * setup.max_length * at_once * element_bytes
    scores = 2 * 4 * rows * answer * shape.vocabulary
    judge = msgspec.structs.replace(
        setup, objective="reward", adapter="full", layers="all", weights="fp32", train_head=True
    )
    held = _held_parameters(shape, judge)
    value = 16.0 * shape.hidden
    if setup.value_model == "model":
        value = sum(_held_bytes(shape, judge, held, held, element_bytes))
        value += _activation_bytes(shape, judge, tokens, element_bytes, on_gpu)
    return {"reward": element_bytes * held, "value": value, "rollout": cache + scores}


Room = Literal["fits", "tight", "risky", "none", "unknown"]
FITTING = ("fits", "tight")


def room(found: Estimate, memory_bytes: float) -> Room:
    """Return how a run fits: with the upper end of its range; tightly, its sum leaving a tenth of the memory free; at a
    risk; or not even with the lower end. The one place where that is decided."""
    if found.parts is None:
        return "unknown"
    if found.low_bytes > memory_bytes:
        return "none"
    if found.high_bytes <= memory_bytes:
        return "fits"
    return "tight" if found.total_bytes <= USABLE_SHARE * memory_bytes else "risky"


def room_words() -> dict[Room, str]:
    """Return what each way to fit is called."""
    return {
        "fits": t("fits"),
        "tight": t("fits tightly"),
        "risky": t("may not fit"),
        "none": t("does not fit"),
        "unknown": t("not known"),
    }


def verdict(found: Estimate, memory_bytes: float) -> str:
    """Return the range in words, against the memory of the device."""
    if (how := room(found, memory_bytes)) == "unknown":
        return found.sentence
    words = {"have": size_words(memory_bytes)}
    words["low"], words["high"] = range_words(found, memory_bytes)
    words["device"] = t("the processor's memory") if found.device in ("cpu", "mps") else t("the GPU's memory")
    if how == "none":
        return t("It needs {low} to {high} and does not fit: {device} is {have}.", **words)
    if how == "risky":
        return t("It needs {low} to {high}; that may be too much: {device} is {have}.", **words)
    if how == "tight":
        return t("It needs {low} to {high}, which is tight: {device} is {have}.", **words)
    return t("It needs {low} to {high}; {device} is {have}.", **words)


def smaller_settings(setup: Setup, fits: Callable[[Setup], bool]) -> dict[str, Any] | None:
    """Return the mildest change of settings, by path, that `fits`: checkpointing, fewer rows a pass, shorter rows, an
    adapter; in that order. None when nothing helps."""
    fewest = OBJECTIVES[setup.objective].least_batch
    batches = [setup.batch_size // 2**n for n in range(1, 12) if setup.batch_size // 2**n >= fewest]
    lengths = [setup.max_length // 2**n for n in range(1, 10) if setup.max_length // 2**n >= 128]
    least = min([setup.batch_size, *batches])
    steps: list[dict[str, Any]] = [{}]
    steps += [{"batch_size": size} for size in batches]
    steps += [{"batch_size": least, "max_length": length} for length in lengths]
    tries = [step for step in steps if step] if setup.gradient_checkpointing else []
    tries += [{**step, "gradient_checkpointing": True} for step in steps if not setup.gradient_checkpointing]
    if setup.adapter == "full":
        tries += [{**step, "adapter": "lora", "gradient_checkpointing": True} for step in steps]
    for change in tries:
        if fits(msgspec.structs.replace(setup, **change)):
            kept = {name: value for name, value in change.items() if getattr(setup, name) != value}
            return {name if name == "adapter" else f"train.{name}": value for name, value in kept.items()}
    return None


def range_words(found: Estimate, memory_bytes: float) -> tuple[str, str]:
    """Return both ends of what is needed, in the unit of the memory that is there."""
    return size_words(found.low_bytes, memory_bytes), size_words(found.high_bytes, memory_bytes)


def size_words(size_bytes: float, beside_bytes: float = 0) -> str:
    """Return a size with its unit, that of `beside_bytes` where this is GiB, and as many digits as say something."""
    size_gib = size_bytes / 2**30
    if size_gib >= 1 or beside_bytes >= 2**30:
        return t("{n} GiB", n=f"{size_gib:,.{0 if size_gib >= 100 else 1 if size_gib >= 0.1 else 2}f}")
    if size_bytes < 2**20:
        return t("{n} KiB", n=f"{math.ceil(size_bytes / 2**10):,}")
    return t("{n} MiB", n=f"{size_bytes / 2**20:,.{0 if size_bytes >= 10 * 2**20 else 1}f}")


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """By how much the formula of memory is corrected, the import baseline of this machine if one was measured, and how
    many runs these stand on."""

    factor: float
    baseline_bytes: int | None
    runs: int

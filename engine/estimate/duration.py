"""How long a run takes: from runs that finished on this machine, else from FLOPs with the assumption said. A range.

Work is counted as in EleutherAI's "Transformer Math 101": 2 FLOPs for each weight that a token is multiplied with, and
4 L d s for attention; a backward pass is twice the forward, half of that where the weights stay as they are.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal

import msgspec

from engine import machine
from engine.estimate import measured as estimate_measured
from engine.estimate import memory
from engine.estimate.measured import Measurement
from engine.models import shapes
from engine.spec import OBJECTIVES, counts
from engine.words import t

# Of one processor thread in fp32 training: 7.7e10 measured with a Llama of 34 million parameters, 1,024 tokens a step, in
# one thread of an AMD EPYC with AVX-512 (6 x parameters x tokens / processor seconds). Others do a third to thrice that.
CPU_FLOPS_PER_THREAD = 7.5e10
# Dense bf16 (fp16 where there is no bf16) FLOPs per second of a card, in 10^12: NVIDIA's data sheets.
CARD_TFLOPS = {
    "B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "A10G": 70, "A10": 125, "L4": 121,
    "T4": 65, "V100": 125, "RTX 5090": 209, "RTX 4090": 165, "RTX 3090": 71, "RTX A6000": 155, "RTX 6000 Ada": 364,
}  # fmt: skip
# A card that is not in the table, by the memory it is sold with: the slower of the usual ones of that size.
TFLOPS_BY_GB = ((8, 40), (16, 65), (24, 71), (48, 155), (80, 312))
# Of a card's figure training reaches so much; small models and short rows reach less (PaLM, arXiv 2204.02311, table 3, has
# 21 to 46 % of the best-known large runs).
USED_SHARE = 0.3
# From a run of the same kind on the same base; of another base or kind; from the assumption alone.
RANGES = {"measured": (0.8, 1.25), "scaled": (0.4, 2.5), "assumed": (0.33, 3.0)}
# Loading libraries and a small model, seconds: 7 to 12 s on two cores (README).
START_S = 10.0
# QLoRA unpacks the weights at every pass: Qwen-7B 3.0 against 1.2 s a step (QwenLM README); OFT turns every input: 15
# against 12 minutes (OFTv2, arXiv 2506.19847, table 1), a quarter more.
UNPACKING, TURNING = 2.0, 1.25
# Questions of the built-in benchmark, each with four choices; rows that are scored, seen ones at most.
MOST_SEEN = 200


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done: optimizer steps, rows a step, tokens a row, rows held out, evaluations and, with `along`, scored
    points on the way."""

    steps: int
    rows_per_step: int
    row_tokens: float
    held_out: int = 0
    evaluations: int = 5
    along: int = 0
    threads: int = 1
    dataset: str = ""


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a whole run. `basis`: measured on runs of the same kind and base, scaled by FLOPs from runs of another
    base or kind, or assumed; `sentence` says it in words. `runs`: how many finished runs it stands on."""

    low_s: float
    likely_s: float
    high_s: float
    train_s: float
    basis: Literal["measured", "scaled", "assumed"]
    runs: int
    sentence: str


def forward_flops(shape: shapes.Shape, row_tokens: float, *, head: bool = True) -> float:
    """Return the FLOPs of one token's forward pass in a row of so many."""
    weights = shape.layers * sum(one.inputs * one.outputs for one in shape.linears)
    weights += shape.head_parameters if head else 0
    return 2 * weights + 4 * shape.layers * shape.heads * shape.head_dim * row_tokens


def token_flops(shape: shapes.Shape, setup: memory.Setup, row_tokens: float) -> float:
    """Return the FLOPs of training on one token of a row: forward, backward, the reference where there is one."""
    objective = OBJECTIVES[setup.objective]
    forward = forward_flops(shape, row_tokens, head=not objective.is_judge)
    chosen = counts.layer_indices(setup.layers, shape.layers)
    share = 1.0 if chosen is None else (shape.layers - chosen[0]) / shape.layers
    if setup.adapter == "full":
        once = forward * (1 + 2 * share)
    else:
        once = forward * (1 + share) + 6 * memory.trained_parameters(shape, setup)
        once *= TURNING if setup.adapter == "oft" else 1
    once += forward if setup.gradient_checkpointing else 0
    once *= UNPACKING if setup.quantize != "none" else 1
    return objective.trained_passes * once + objective.other_passes * forward


def assumed_flops(device: str, threads: int, card: str, memory_gib: float | None) -> tuple[float, str]:
    """Return the FLOPs per second that a device is taken to do, and that assumption in words."""
    if device == "cpu":
        rate = CPU_FLOPS_PER_THREAD * max(1, threads)
        return rate, t("assumed: {n} GFLOP/s (threads: {threads})", n=round(rate / 1e9), threads=max(1, threads))
    name = next((name for name in sorted(CARD_TFLOPS, key=len, reverse=True) if name in card), None)
    if name is not None:
        peak = CARD_TFLOPS[name]
    else:
        peak = next((tflops for gb, tflops in TFLOPS_BY_GB if (memory_gib or 0) <= gb), TFLOPS_BY_GB[-1][1])
    words = {"share": round(100 * USED_SHARE), "peak": peak, "card": name or t("such a card")}
    return USED_SHARE * peak * 1e12, t("assumed: {share} % of the {peak} TFLOP/s of {card}", **words)


def estimate(
    shape: shapes.Shape | None,
    setup: memory.Setup,
    job: Job,
    *,
    device: str,
    known: list[Measurement],
    card: str = "",
    memory_gib: float | None = None,
) -> Time | None:
    """Return how long a run takes on a device; None where the base's shape is not known or nothing would be done."""
    if shape is None or job.steps < 1 or job.rows_per_step < 1 or not 0 < job.row_tokens < math.inf:
        return None
    try:
        work = _step_flops(shape, setup, job.rows_per_step, job.row_tokens)
    except ValueError:
        return None
    timed = [one for one in known if one.device == device and one.step_s
             and (device != "cpu" or one.threads == job.threads)]  # fmt: skip
    alike = [one for one in timed if estimate_measured.same_kind(one.setup, setup)]
    same = [one for one in alike if one.shape == shape and one.setup.layers == setup.layers]
    # what one way took here moves every other: by arithmetic
    chosen = same or alike or timed

    def apart(one: Measurement) -> float:
        return abs(math.log(work / _work_of(one)))

    chosen = sorted(chosen, key=apart)[: estimate_measured.MOST_RUNS]
    chosen = [one for one in chosen if apart(one) <= apart(chosen[0]) + 0.3]  # runs far less alike do not vote
    if chosen:
        basis: Literal["measured", "scaled", "assumed"] = "measured" if same else "scaled"
        step_s = statistics.median((one.step_s or 0) * work / _work_of(one) for one in chosen)
        rate = work / step_s
        assumption = ""
    else:
        basis = "assumed"
        rate, assumption = assumed_flops(device, job.threads, card, memory_gib)
        step_s = work / rate
    train_s = job.steps * step_s
    rest_s = _measured_rest(same, job) if same else None
    likely_s = train_s + (_computed_rest(shape, job, rate) if rest_s is None else rest_s)
    likely_s += job.along * _scoring_s(shape, job, rate, same)
    low, high = RANGES[basis]
    if basis == "measured":  # a step of another size is not wholly a matter of FLOPs
        wider = 1 + 0.5 * apart(chosen[0])
        low, high = low / wider, high * wider
    return Time(
        low_s=low * likely_s,
        likely_s=likely_s,
        high_s=high * likely_s,
        train_s=train_s,
        basis=basis,
        runs=len(chosen),
        sentence=_sentence(low * likely_s, high * likely_s, basis, len(chosen), assumption),
    )


def _step_flops(shape: shapes.Shape, setup: memory.Setup, rows: int, row_tokens: float) -> float:
    if OBJECTIVES[setup.objective].writes_answers:  # its rows are questions, to be answered
        row_tokens += setup.answer_tokens
    return rows * row_tokens * token_flops(shape, setup, row_tokens)


def _work_of(one: Measurement) -> float:
    return _step_flops(one.shape, one.setup, one.rows_per_step, one.row_tokens)


def _measured_rest(same: list[Measurement], job: Job) -> float | None:
    """Return what runs on this base spent beside their steps. The base is scored once for all runs of one data set."""
    rests = [one.whole_s - one.steps * one.step_s - one.base_s for one in same if one.whole_s and one.step_s]
    if not rests:
        return None
    scored = any(one.dataset == job.dataset for one in same)
    base_s = 0.0 if scored else statistics.median(one.base_s for one in same)
    return max(0.0, statistics.median(rests[: estimate_measured.MOST_RUNS])) + base_s


def _computed_rest(shape: shapes.Shape, job: Job, rate: float) -> float:
    forward = job.row_tokens * forward_flops(shape, job.row_tokens)
    scored = 2 * (MOST_SEEN + job.held_out) + job.evaluations * job.held_out
    return START_S + scored * forward / rate


def _scoring_s(shape: shapes.Shape, job: Job, rate: float, same: list[Measurement]) -> float:
    """Return what scoring a model once takes: as long as the base took where it was measured, else by its tokens."""
    measured = [one.base_s for one in same if one.dataset == job.dataset and one.base_s > 1.0]  # less: it was cached
    if measured:
        return statistics.median(measured)
    return (MOST_SEEN + job.held_out) * job.row_tokens * forward_flops(shape, job.row_tokens) / rate


def _sentence(low_s: float, high_s: float, basis: str, runs: int, assumption: str) -> str:
    words = {"low": duration_words(low_s), "high": duration_words(high_s), "n": runs}
    if basis == "measured" and runs == 1:
        return t("It takes {low} to {high}: measured on one run like it on this machine.", **words)
    if basis == "measured":
        return t("It takes {low} to {high}: measured on {n} runs like it on this machine.", **words)
    if basis == "scaled":
        return t("It takes {low} to {high}: scaled by arithmetic from other runs on this machine.", **words)
    return t(
        "It takes {low} to {high}: a wide range, since no run like it has finished here yet; {what}. The first one makes "
        "it narrow.",
        what=assumption,
        **words,
    )


def duration_words(seconds: float) -> str:
    """Return a length of time with its unit and as many digits as say something."""
    if seconds < 180:
        return t("{n} s", n=round(seconds))
    if seconds < 10_800:
        return t("{n} min", n=round(seconds / 60))
    hours = seconds / 3600
    if hours < 48:
        return t("{n} h", n=f"{hours:.1f}" if hours < 10 else f"{hours:.0f}")
    return t("{n} days", n=f"{hours / 24:,.0f}")


def here() -> tuple[str, str, float | None]:
    """Return this machine's device, its card and the memory of that, as `estimate` takes them."""
    facts = machine.facts()
    if not facts.gpus:
        return "cpu", "", None
    return "cuda:0", facts.gpus[0].name, facts.gpus[0].memory_mib / 1024

"""How long a run takes: from runs that finished on this machine, else from FLOPs with the assumption said. A range.

Work is counted as in EleutherAI's "Transformer Math 101": 2 FLOPs for each weight that a token is multiplied with, and
4 L d s for attention; a backward pass is twice the forward, half of that where the weights stay as they are.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from engine import machine
from engine.estimate import measured as estimate_measured
from engine.estimate import memory
from engine.estimate.measured import Job, Measurement
from engine.estimate.phases import ORDER, Line, Phase
from engine.estimate.setup import asks_base_before, asks_base_beside
from engine.models import shapes
from engine.spec import OBJECTIVES, counts
from engine.words import t

# Of one processor thread in fp32 training: 7.7e10 measured with a Llama of 34 million parameters, 1,024 tokens a step, in
# one thread of an AMD EPYC with AVX-512 (6 x parameters x tokens / processor seconds). Others do a third to thrice that.
CPU_FLOPS_PER_THREAD = 7.5e10
# Dense FLOPs per second of a card, in 10^12, in 16 bits (bf16, fp16 where there is no bf16; sums in fp32) and in 32
# (without TF32), by its name as the driver has it. Of cards for data centers by NVIDIA's data sheets. GeForce cards do in 16
# bits with sums in fp32 four times (RTX 20) or twice (later ones) what they do in 32, half of the figure that is advertised
# (NVIDIA's papers on Turing, GA102, Ada and Blackwell). Read again in November 2026, not on NVIDIA's own pages: H100, H200
# and B200 (SXM), in 32 bits the H100 PCIe and the RTX 3060 and 4060. The others nobody has read again.
CARD_TFLOPS = {
    "B200": (2250, 80), "H200": (989, 67), "H200 NVL": (835, 60), "H100": (989, 67), "H100 NVL": (835, 60),
    "H100 PCIe": (756, 51.2), "A100": (312, 19.5), "L40S": (362, 91.6), "L40": (181, 90.5), "A10G": (70, 35),
    "A10": (125, 31.2), "L4": (121, 30.3), "T4": (65, 8.1), "V100": (125, 15.7), "RTX A6000": (155, 38.7),
    "RTX 6000 Ada": (364, 91.1),
    "RTX 2060": (25.8, 6.5), "RTX 2070": (29.9, 7.5), "RTX 2070 SUPER": (36.3, 9.1), "RTX 2080": (40.3, 10.1),
    "RTX 2080 SUPER": (44.6, 11.2), "RTX 2080 Ti": (53.8, 13.4),
    "RTX 3060": (25.5, 12.7), "RTX 3060 Ti": (32.4, 16.2), "RTX 3070": (40.6, 20.3), "RTX 3070 Ti": (43.5, 21.7),
    "RTX 3080": (59.5, 29.8), "RTX 3080 Ti": (68.2, 34.1), "RTX 3090": (71, 35.6), "RTX 3090 Ti": (80, 40),
    "RTX 4060": (30.2, 15.1), "RTX 4060 Ti": (44.1, 22.1), "RTX 4070": (58.3, 29.1), "RTX 4070 SUPER": (71, 35.5),
    "RTX 4070 Ti": (80.2, 40.1), "RTX 4070 Ti SUPER": (88.2, 44.1), "RTX 4080": (97.5, 48.7),
    "RTX 4080 SUPER": (104, 52.2), "RTX 4090": (165, 82.6),
    "RTX 5060": (38.4, 19.2), "RTX 5060 Ti": (47.4, 23.7), "RTX 5070": (61.7, 30.9), "RTX 5070 Ti": (87.9, 43.9),
    "RTX 5080": (113, 56.3), "RTX 5090": (209, 104.8),
}  # fmt: skip
# A card that is not in the table, by the memory it is sold with: the slower of the usual ones of that size, in 16 bits. In
# 32 a card of that kind reaches half of it (RTX 3090, 4090).
TFLOPS_BY_GB = ((8, 30), (12, 25), (16, 44), (24, 71), (48, 155), (80, 312))
SHARE_IN_32_BITS = 0.5
# A slice of a shared card has so many of its seven parts (NVIDIA's names: "MIG 2g.10gb").
MIG_PARTS = 7
# Of a card's figure training reaches so much; small models and short rows reach less (PaLM, arXiv 2204.02311, table 3, has
# 21 to 46 % of the best-known large runs).
USED_SHARE = 0.3
# From a run of the same kind on the same base; of another base or kind; from the assumption alone.
RANGES = {"measured": (0.8, 1.25), "scaled": (0.4, 2.5), "assumed": (0.33, 3.0)}
# Importing the libraries, seconds: 4 times `import torch` alone, which takes 1.5 to 2.5 s on the machines tried.
LIBRARIES_S = 8.0
# A model's files are read, and what was made is written, at no less than a SATA disk's speed.
DISK_BYTES_PER_S = 5e8
# Of the FLOPs that training reaches, writing token by token reaches so much: 16 rows of 96 tokens by SmolLM2 135M took
# 39 s on two cores, whose arithmetic would take 2.7.
WRITING_SHARE = 0.07
# QLoRA unpacks the weights at every pass: Qwen-7B 3.0 against 1.2 s a step (QwenLM README); OFT turns every input: 15
# against 12 minutes (OFTv2, arXiv 2506.19847, table 1), a quarter more.
UNPACKING, TURNING = 2.0, 1.25
# Rows that are trained on and scored, at most; the base writes replay rows in batches of so many tokens each; prompts
# that are answered at each evaluation and before, and the tokens of an answer (engine/train/rows.py, replay.py, common.py).
MOST_SEEN = 200
REPLAY_BATCH, REPLAY_TOKENS, MOST_REPLAY = 16, 96, 512
PROMPTS, SAMPLE_TOKENS = 3, 48
# Phases whose length follows from the base and the device alone, not from how it is trained.
OF_THE_BASE = ("loading", "replay", "scoring base", "scoring tuned", "on the way")


Basis = Literal["measured", "scaled", "assumed"]


def basis_words() -> dict[Basis, str]:
    """Return what a time stands on, in a word or two: figures of different kinds are never shown without it."""
    return {
        "measured": t("measured here"),
        "scaled": t("worked out from other runs here"),
        "assumed": t("a guess: no run of this kind was timed here"),
    }


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a whole run: the sums of its `lines`, one for each phase. `basis`: measured on runs of the same kind and
    base, scaled by FLOPs from runs of another base or kind, or assumed; `sentence` says it in words. `runs`: how many
    finished runs it stands on. `repeats`: one of them did as many steps of as many rows on the same data. `is_busy`: other
    programs use the processor now, which the upper ends count in (load.py)."""

    low_s: float
    likely_s: float
    high_s: float
    train_s: float
    basis: Basis
    runs: int
    sentence: str
    repeats: bool = False
    lines: tuple[Line, ...] = ()
    is_busy: bool = False

    @property
    def stands_on(self) -> str:
        """What it stands on, in a word or two: of other data or steps even a speed that was measured is worked out."""
        is_worked_out = self.basis == "measured" and not self.repeats
        told = t("worked out from runs here") if is_worked_out else basis_words()[self.basis]
        return t("{basis}; this machine is busy now", basis=told) if self.is_busy else told


def forward_flops(shape: shapes.Shape, row_tokens: float, *, head: bool = True) -> float:
    """Return the FLOPs of one token's forward pass in a row of so many."""
    weights = shape.active_parameters + (shape.head_parameters if head else 0)
    return 2 * weights + 4 * shape.heads * shape.head_dim * shape.attended_tokens(row_tokens)


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
    beside = objective.other_passes + asks_base_beside(setup)
    return objective.trained_passes * once + beside * forward


def assumed_flops(
    device: str, threads: int, card: str, memory_gib: float | None, precision: str = ""
) -> tuple[float, str]:
    """Return the FLOPs per second that a device is taken to do in a number format ("" on a card: 16 bits), and that
    assumption in words."""
    if device == "cpu":
        rate = CPU_FLOPS_PER_THREAD * max(1, threads)
        return rate, t("assumed: {n} GFLOP/s (threads: {threads})", n=round(rate / 1e9), threads=max(1, threads))
    in_32 = precision == "fp32"
    name = _known_card(card)
    if name is not None:
        peak = CARD_TFLOPS[name][in_32]
        if part := re.search(r"\bMIG (\d)g\b", card):
            peak *= int(part[1]) / MIG_PARTS
    else:
        peak = next((tflops for gb, tflops in TFLOPS_BY_GB if (memory_gib or 0) <= gb), TFLOPS_BY_GB[-1][1])
        peak *= SHARE_IN_32_BITS if in_32 else 1
    words = {"share": round(100 * USED_SHARE), "peak": f"{peak:.3g}", "card": name or t("such a card")}
    return USED_SHARE * peak * 1e12, t("assumed: {share} % of the {peak} TFLOP/s of {card}", **words)


def _known_card(card: str) -> str | None:
    """Return which card of the table a driver's name says, in whole words: an RTX A1000 is no A100, and a laptop's card of
    the same number is another."""
    if re.search(r"\blaptop\b", card, re.IGNORECASE):
        return None
    names = sorted(CARD_TFLOPS, key=len, reverse=True)
    return next((name for name in names if re.search(rf"\b{name}\b", card)), None)


def estimate(
    shape: shapes.Shape | None,
    setup: memory.Setup,
    job: Job,
    *,
    device: str,
    known: list[Measurement],
    card: str = "",
    memory_gib: float | None = None,
    general_s: float | None = None,
) -> Time | None:
    """Return how long a run takes on a device; None where the base's shape is not known or nothing would be done.
    `general_s`: what asking a model the general questions takes by the pace of earlier evaluations (speeds.seconds), for a
    base that no run has measured."""
    if shape is None or job.steps < 1 or job.rows_per_step < 1 or not 0 < job.row_tokens < math.inf:
        return None
    try:
        work = _step_flops(shape, setup, job.rows_per_step, job.row_tokens)
    except ValueError:
        return None
    step = _step(work, shape, setup, job, device, known) or _assumed_step(work, setup, job, device, card, memory_gib)
    train_s = job.steps * step.seconds
    # also what hangs on the base alone is asked by the same code, in the same format
    here = [one for one in known if one.device == device and one.took and one.job is not None and one.shape == shape
            and (device != "cpu" or one.threads == job.threads)
            and estimate_measured.same_arithmetic(one.setup, setup)]  # fmt: skip
    own = [one for one in here if estimate_measured.same_kind(one.setup, setup)]
    libraries_s = next((one.libraries_s for one in known if one.device == device and one.took), LIBRARIES_S)
    usual = _Usual(shape, setup, work / step.seconds, general_s if not here else None)
    lines = [
        _line(phase, train_s, step.basis, step.wider) if phase == "training"
        else _line(phase, *_phase(usual, phase, job, here if phase in OF_THE_BASE else own, libraries_s))
        for phase in ORDER
    ]  # fmt: skip
    lines = _bounded(job, [one for one in lines if one.likely_s > 0], here)
    low_s, likely_s, high_s = (sum(getattr(one, name) for one in lines) for name in ("low_s", "likely_s", "high_s"))
    return Time(
        low_s=low_s,
        likely_s=likely_s,
        high_s=high_s,
        train_s=train_s,
        basis=step.basis,
        runs=step.runs,
        sentence=_sentence(low_s, high_s, step),
        repeats=step.repeats,
        lines=tuple(lines),
    )


class _Step(NamedTuple):
    """Seconds of an optimizer step and what they stand on; `wider`: by how much their range is wider than usual."""

    seconds: float
    basis: Basis
    runs: int = 0
    wider: float = 1.0
    assumption: str = ""
    repeats: bool = False


def _step(
    work: float, shape: shapes.Shape, setup: memory.Setup, job: Job, device: str, known: list[Measurement]
) -> _Step | None:
    """Return how long a step of so many FLOPs takes by what finished runs took; None without any."""
    # another number format has another speed
    timed = [one for one in known if one.device == device and one.step_s and one.setup.precision == setup.precision
             and (device != "cpu" or one.threads == job.threads)]  # fmt: skip
    alike = [one for one in timed if estimate_measured.same_kind(one.setup, setup)]
    same = [one for one in alike if one.shape == shape and one.setup.layers == setup.layers]
    # what one way took here moves every other: by arithmetic
    chosen = same or alike or timed

    def apart(one: Measurement) -> float:
        return abs(math.log(work / _work_of(one)))

    chosen = sorted(chosen, key=apart)[: estimate_measured.MOST_RUNS]
    chosen = [one for one in chosen if apart(one) <= apart(chosen[0]) + 0.3]  # runs far less alike do not vote
    if not chosen:
        return None
    step_s = statistics.median((one.step_s or 0) * work / _work_of(one) for one in chosen)
    if not same:
        return _Step(step_s, "scaled", len(chosen))
    asked = (job.dataset, job.steps, job.rows_per_step)
    repeats = any((one.dataset, one.steps, one.rows_per_step) == asked for one in chosen)
    wider = 1 + 0.5 * apart(chosen[0])  # size is not only a matter of FLOPs
    return _Step(step_s, "measured", len(chosen), wider, repeats=repeats)


def _assumed_step(
    work: float, setup: memory.Setup, job: Job, device: str, card: str, memory_gib: float | None
) -> _Step:
    precision = "fp32" if device == "mps" else setup.precision
    rate, assumption = assumed_flops(device, job.threads, card, memory_gib, precision)
    return _Step(work / rate, "assumed", assumption=assumption)


def _line(phase: Phase, likely_s: float, basis: Basis, wider: float = 1.0) -> Line:
    low, high = RANGES[basis]
    return Line(phase=phase, low_s=likely_s * low / wider, likely_s=likely_s, high_s=likely_s * high * wider)


def _ended_after_s(one: Measurement) -> float | None:
    """Return what scoring took in a run whose check was ended by its time, with what is measured after it; else None."""
    budget_s = one.job.scoring_budget_s if one.job is not None else None
    took_s = one.took.get("scoring base", 0.0) + one.took.get("scoring tuned", 0.0)
    return took_s if budget_s is not None and took_s >= 0.9 * budget_s else None


def _bounded(job: Job, lines: list[Line], runs: list[Measurement]) -> list[Line]:
    """Return the lines with what is bounded in seconds held to that, or to what this came to in `runs`: replay, and
    scoring, base and tuned model together."""
    scoring_s = sum(one.likely_s for one in lines if one.phase in ("scoring base", "scoring tuned"))
    most_s = job.scoring_budget_s
    alike = [one for one in runs if one.job is not None and one.job.scoring_budget_s == most_s]
    if ended := [took_s for one in alike if (took_s := _ended_after_s(one)) is not None]:
        most_s = statistics.median(ended[: estimate_measured.MOST_RUNS])

    def held(one: Line, to_s: float | None) -> Line:
        if to_s is None:
            return one
        return msgspec.structs.replace(
            one, low_s=min(one.low_s, to_s), likely_s=min(one.likely_s, to_s), high_s=min(one.high_s, to_s)
        )

    found = []
    for one in lines:
        if one.phase == "replay":
            one = held(one, job.replay_budget_s)
        elif one.phase in ("scoring base", "scoring tuned") and most_s is not None:
            one = held(one, most_s * one.likely_s / scoring_s)
        elif one.phase == "on the way" and job.scoring_budget_s is not None:  # planned for base and tuned, asked of one
            one = held(one, job.along * job.scoring_budget_s / 2)
        found.append(one)
    return found


def _phase(usual: _Usual, phase: Phase, job: Job, runs: list[Measurement], libraries_s: float) -> tuple[float, Basis]:
    """Return the seconds of a phase and what they stand on: what the newest runs took for it, by as much as this one has
    more to do; else arithmetic."""
    computed_s = usual.seconds(phase, job, _before(job, runs))
    paces = []
    for number, one in enumerate(runs[: estimate_measured.MOST_RUNS]):
        if one.job is None or (phase.startswith("scoring") and one.job.scoring_budget_s != job.scoring_budget_s):
            continue
        # the base is asked about the rows while a run of some kinds loads, and not of others
        theirs = msgspec.structs.replace(usual, setup=one.setup) if phase == "loading" else usual
        theirs_s = theirs.seconds(phase, one.job, _before(one.job, runs[number + 1 :]))
        took_s = one.took.get(phase, 0.0) - (one.libraries_s if phase == "loading" else 0.0)
        if theirs_s > 0 and took_s > 0:
            pace = took_s / theirs_s
            # a check that its time has ended left questions, so that its pace is no less than that
            is_ended = phase.startswith("scoring") and _ended_after_s(one) is not None
            paces.append(max(1.0, pace) if is_ended else pace)
    beside_s = libraries_s if phase == "loading" else 0.0
    if paces:
        return beside_s + computed_s * statistics.median(paces), "measured"
    return beside_s + computed_s, "assumed"


def _before(job: Job, runs: list[Measurement]) -> list[Job]:
    """Return what runs on the same base did before: what the base answered or wrote then is there."""
    return [one.job for one in runs if one.job is not None and one.job.base == job.base]


class _Usual(msgspec.Struct, frozen=True):
    """What the phases of a job take by arithmetic, on a device of so many FLOPs per second."""

    shape: shapes.Shape
    setup: memory.Setup
    rate: float
    general_s: float | None

    def seconds(self, phase: Phase, job: Job, before: list[Job]) -> float:
        """Return the seconds of a phase, where `before` was done on the same base."""
        match phase:
            case "loading":
                asked = job.trained + job.replay_rows if asks_base_before(self.setup) else 0
                read_s = self._read_s(asked * job.row_tokens, job.row_tokens)
                return 2 * shapes.count_parameters(self.shape) / DISK_BYTES_PER_S + read_s
            case "replay":
                return self._replay_s(job, before)
            case "probe":
                rows = self.setup.batch_size
                return _step_flops(self.shape, self.setup, rows, self.setup.max_length) / self.rate
            case "samples":
                written_s = (job.evaluations + 1) * self._written_s(PROMPTS * SAMPLE_TOKENS, job.row_tokens)
                return job.evaluations * self._read_s(job.held_out * job.row_tokens, job.row_tokens) + written_s
            case "on the way":
                return job.along * self._asked_s(job)
            case "saving":
                return 4 * memory.trained_parameters(self.shape, self.setup) / DISK_BYTES_PER_S
            case "scoring base":
                return self._asked_s(job, before)
            case "scoring tuned":
                return self._asked_s(job)
            case _:
                return 0.0

    def _read_s(self, tokens: float, row_tokens: float) -> float:
        return tokens * forward_flops(self.shape, row_tokens) / self.rate

    def _written_s(self, tokens: float, row_tokens: float) -> float:
        return self._read_s(tokens, row_tokens) / WRITING_SHARE

    def _replay_s(self, job: Job, before: list[Job]) -> float:
        """Rows are written in whole batches, and never anew."""
        wanted = min(job.replay_rows, MOST_REPLAY) - max((one.replay_rows for one in before), default=0)
        batches = math.ceil(max(0, wanted) / REPLAY_BATCH)
        return self._written_s(batches * REPLAY_BATCH * REPLAY_TOKENS, REPLAY_TOKENS)

    def _asked_s(self, job: Job, before: Sequence[Job] = ()) -> float:
        """What a model is asked that was not asked before: general questions, and rows of the user's."""
        rows = min(job.trained, MOST_SEEN, job.limit or MOST_SEEN) + min(job.held_out, job.limit or job.held_out)
        found = 0.0
        if not any(one.dataset == job.dataset for one in before):
            found += self._read_s(rows * job.row_tokens, job.row_tokens)
            # short answers are written out; which rows have such is not known here
            found += self._written_s(min(job.held_out, job.limit or job.held_out) * SAMPLE_TOKENS, job.row_tokens)
        if not any({*job.benchmarks} <= {*one.benchmarks} and one.limit == job.limit for one in before):
            general_s = self._read_s(job.general_tokens, job.row_tokens)
            found += general_s if self.general_s is None else self.general_s
        return found


def _step_flops(shape: shapes.Shape, setup: memory.Setup, rows: int, row_tokens: float) -> float:
    if OBJECTIVES[setup.objective].writes_answers:  # its rows are questions, to be answered
        row_tokens += setup.answer_tokens
    return rows * row_tokens * token_flops(shape, setup, row_tokens)


def _work_of(one: Measurement) -> float:
    return _step_flops(one.shape, one.setup, one.rows_per_step, one.row_tokens)


def _sentence(low_s: float, high_s: float, step: _Step) -> str:
    words = {"low": duration_words(low_s), "high": duration_words(high_s), "n": step.runs}
    if step.basis == "measured" and not step.repeats:
        return t("It takes {low} to {high}: worked out from runs here of other data or steps ({n}).", **words)
    if step.basis == "measured" and step.runs == 1:
        return t("It takes {low} to {high}: measured on one run like it on this machine.", **words)
    if step.basis == "measured":
        return t("It takes {low} to {high}: measured on {n} runs like it on this machine.", **words)
    if step.basis == "scaled":
        return t("It takes {low} to {high}: scaled by arithmetic from other runs on this machine.", **words)
    return t(
        "It takes {low} to {high}: a wide range, since no run like it has finished here yet; {what}. The first one makes "
        "it narrow.",
        what=step.assumption,
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


def between_words(low_s: float, high_s: float) -> str:
    """Return a range of time in words; one length where both ends read alike."""
    low, high = duration_words(low_s), duration_words(high_s)
    return low if low == high else t("{low} to {high}", low=low, high=high)


def here() -> tuple[str, str, float | None]:
    """Return this machine's device, its card and the memory of that, as `estimate` takes them."""
    facts = machine.facts()
    if not facts.gpus:
        return "cpu", "", None
    return "cuda:0", facts.gpus[0].name, facts.gpus[0].memory_mib / 1024

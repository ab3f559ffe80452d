"""The parts of a spec that say how a model is asked, on what it runs and what an objective is told; and the limits of all.

Apart from schema.py, which puts them together, for length alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

# Every number has a lowest and a highest value: far beyond what anybody means, and far within what memory, a disk, a browser
# and the formulas hold. A number beyond them is a slip or an attack.
LAYERS, ROWS, STEPS, PASSES, TOKENS = 10_000, 10**9, 10**7, 10**4, 2**20
MONTH_S = 30 * 86_400
# Nats of general loss: a rise of 10 is beyond what any model is of use after.
Tolerance = Annotated[float, msgspec.Meta(gt=0, le=10)] | Literal["off", "low", "medium", "high"]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=MONTH_S)]


def about(title: str, help_text: str, **limits: Any) -> msgspec.Meta:
    return msgspec.Meta(title=title, description=help_text, **limits)


class ObjectiveArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    beta: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=1000)] | None,
        about("Beta", "How strongly preference training is held to the reference model."),
    ] = None
    keep: Annotated[
        Literal["plain", "entropy", "skip_surprising", "kl"],
        about(
            "Keep what it knew",
            "How tokens count in supervised fine-tuning: all alike; less where the model is sure of something else; not "
            "where the base finds them surprising; or held to the base's own likelihoods.",
        ),
    ] = "plain"
    weights: Annotated[
        Annotated[list[Annotated[float, msgspec.Meta(ge=0, le=ROWS)]], msgspec.Meta(max_length=LAYERS)] | None,
        about("Weights", "KTO's weights of answers marked good and marked bad; set from their counts."),
    ] = None
    reward_model: Annotated[
        str | None,
        about(
            "Reward model",
            "The run that judges answers in PPO, as run:<id>. Unset: one of the same base and rows.",
        ),
    ] = None
    least_reward_accuracy: Annotated[
        float,
        about(
            "Least accuracy of the reward model",
            "PPO refuses a reward model that judges fewer of the pairs it has not seen as the person did. Chance is 0.5.",
            ge=0,
            le=1,
        ),
    ] = 0.65
    answer_tokens: Annotated[
        int, about("Longest answer", "PPO lets the model write at most so many tokens.", ge=1, le=4096)
    ] = 53
    temperature: Annotated[
        float, about("Temperature", "How freely answers are drawn in PPO; lower tries less.", ge=0.01, le=2)
    ] = 0.7
    ppo_epochs: Annotated[
        int, about("Passes over each batch of answers", "How often PPO learns from the same answers.", ge=1, le=16)
    ] = 4
    missing_end_penalty: Annotated[
        float,
        about("Penalty for no end", "Taken off the reward of an answer that does not come to an end.", ge=0, le=1000),
    ] = 1.0


class Evaluate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    benchmarks: Annotated[
        list[str], about("Benchmarks", "Question sets scored before and after, to see what was forgotten.")
    ] = []
    limit: Annotated[
        int, about("Most questions", "Questions per benchmark, held-out rows too; 0 means all.", ge=0, le=ROWS)
    ] = 0
    budget_s: Annotated[
        Seconds | None,
        about(
            "Scoring time",
            "Seconds that scoring may take, base and tuned together: as many questions are asked as fit. Left open, all are "
            "asked.",
        ),
    ] = None
    shots: Annotated[
        int, about("Examples", "Worked examples before each question; the same for base and tuned.", ge=0, le=50)
    ] = 0
    template: Annotated[
        Literal["auto", "chat", "none"],
        about("Template", "Put questions through the chat template, or not; auto: as is usual for the benchmark."),
    ] = "auto"
    along: Annotated[
        int,
        about(
            "Points on the way",
            "Score the model so many times during the run too, to see what it gains and loses step by step; 0 is off. Each "
            "takes as long as scoring once. Not for reward models and PPO.",
            ge=0,
            le=50,
        ),
    ] = 0
    against: Annotated[
        str, about("Compare with", "The base of an evaluation; empty where a base is only scored by itself.")
    ] = ""


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    backend: Annotated[
        Literal["auto", "unsloth", "plain"], about("Backend", "Unsloth where there is a GPU, or plain transformers.")
    ] = "auto"
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        about(
            "Precision",
            "The number format of the arithmetic: 16 bits where the device has them (bf16, or fp16 on cards without it), or "
            "32.",
        ),
    ] = "auto"
    weights: Annotated[
        Literal["fp32", "bf16"],
        about(
            "Weight format",
            "How full fine-tuning holds what it trains: in 32 bits, or in bf16 alone, which takes half the memory and loses "
            "the smallest steps.",
        ),
    ] = "fp32"
    devices: Annotated[int, about("Devices", "How many GPUs the run may use.", ge=1, le=1024)] = 1
    nodes: Annotated[
        int,
        about(
            "Machines",
            "How many machines share the run, each with as many devices; all see this folder of runs by the same name. The "
            "run's page says what to start on each of the others.",
            ge=1,
            le=64,
        ),
    ] = 1
    address: Annotated[
        str,
        about(
            "Address",
            "By what name or address the other machines reach this one; empty: the network's own answer.",
            pattern=r"^([A-Za-z0-9][A-Za-z0-9.:-]*)?$",
        ),
    ] = ""
    port: Annotated[int, about("Port", "The port by which several machines meet.", ge=1024, le=65535)] = 29500

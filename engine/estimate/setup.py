"""What of a run decides its memory, and its speed: the settings that the estimates are worked out from."""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.spec import OBJECTIVES, RunSpec, schema


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What of a run decides its memory.

    `precision`: what a card computes in; "" on a processor, and in measurements of before, which meant 16 bits on a card.
    `weights`: full fine-tuning holds its weights in 32 bits and computes in 16 on a card ("fp32"), or holds everything in
    16 ("bf16"). `plain_logits`: without TRL's pieces of logits. `value_model`: PPO's judge of states is a head on the model
    itself, or a whole trained model as in TRL 1.12 and here. `continues`: the adapter of an earlier run is trained on.
    `keep`: how the run keeps what its base knew. `backend`: what loads and computes it. On a processor: `half`, whether
    weights are rounded to bf16 as they are used; `blocks`, what the C library does with freed ones ("" leaves it to itself
    where little is at stake). Of PPO alone:
    `answer_tokens`, its longest answer, which `max_length` includes, and `update_rows`, the answers of an update (0: as many
    as `batch_size`).
    """

    objective: str = "sft"
    adapter: str = "lora"
    quantize: str = "none"
    layers: str | list[int] = "all"
    train_head: bool = True
    rank: int = 16
    block_size: int = 32
    target_modules: str = "all-linear"
    batch_size: int = 8
    max_length: int = 1024
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    precision: Literal["", "fp32", "bf16", "fp16"] = ""
    weights: Literal["fp32", "bf16"] = "fp32"
    plain_logits: bool = False
    value_model: Literal["head", "model"] = "head"
    answer_tokens: int = schema.ObjectiveArgs().answer_tokens
    update_rows: int = 0
    continues: bool = False
    keep: str = "plain"
    backend: Literal["plain", "unsloth"] = "plain"
    half: bool = False
    blocks: str = ""


def setup_of(run_spec: RunSpec) -> Setup:
    """Return what of a spec decides its memory."""
    train, args = run_spec.train, run_spec.adapter_args
    return Setup(
        objective=run_spec.objective,
        adapter=run_spec.adapter,
        quantize=run_spec.quantize,
        layers=run_spec.layers,
        train_head=run_spec.train_head,
        rank=args.rank,
        block_size=args.block_size,
        target_modules=args.target_modules,
        batch_size=train.batch_size,
        max_length=train.max_length,
        gradient_checkpointing=bool(train.gradient_checkpointing),  # left open: machine_choices.py decides by this
        optimizer="adamw" if train.optimizer == "auto" else train.optimizer,
        answer_tokens=run_spec.objective_args.answer_tokens,
        update_rows=train.batch_size * train.accumulation if OBJECTIVES[run_spec.objective].writes_answers else 0,
        weights=run_spec.machine.weights if run_spec.adapter == "full" else "fp32",
        value_model="model" if OBJECTIVES[run_spec.objective].needs_judge else "head",
        continues=run_spec.adapter_args.continues,
        keep=run_spec.objective_args.keep,
    )


def asks_base_beside(setup: Setup) -> bool:
    """Whether the base is asked at every step, the adapter off: where its weights move it is asked once, before."""
    return setup.keep == "kl" and setup.adapter != "full" and not setup.continues


def asks_base_before(setup: Setup) -> bool:
    """Whether the base is asked about every row before the training."""
    return setup.keep == "skip_surprising" or (setup.keep == "kl" and not asks_base_beside(setup))


def with_longest(setup: Setup, tokens: int) -> Setup:
    """Return the setup for data whose longest row has so many tokens; PPO's rows are questions, to be answered."""
    answer = setup.answer_tokens if OBJECTIVES[setup.objective].writes_answers else 0
    return msgspec.structs.replace(setup, max_length=max(1, min(setup.max_length, tokens + answer)))

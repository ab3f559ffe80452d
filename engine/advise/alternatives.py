"""What else: runners-up, every other way the data can feed with what it takes, and what would change the advice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from engine import machine
from engine.advise import guide
from engine.advise.case import Case
from engine.advise.facts import MANY_ROWS, VERY_MANY_ROWS, alignment, billions, count, tuned_again
from engine.advise.ways import Way, named
from engine.estimate import duration, memory
from engine.spec import OBJECTIVES
from engine.words import t


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True):
    """Another way that fits, and what one gets and gives up with it."""

    way: Way
    trade: str


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train that the data can feed: how it fits, what it takes, what one trades. `memory` has no parts, and
    `time` is None, where too little is known."""

    way: Way
    title: str
    fits: bool
    room: memory.Room
    memory: memory.Estimate
    low_bytes: int | None
    high_bytes: int | None
    time: duration.Time | None
    trade: str


_TRADES: dict[str, Callable[[], str]] = {
    "full": lambda: t("Learns the most and forgets the most; about 16 bytes of memory for every parameter."),
    "freeze": lambda: t(
        "Trains the upper half of the layers only: between an adapter and full fine-tuning in all things."
    ),
    "lora": lambda: t(
        "The best known way: many tools read it, and it forgets less than full fine-tuning, not nothing."
    ),
    "qlora": lambda: t("A quarter of the memory for the base itself; each step is up to two and a half times slower."),
    "oft": lambda: t(
        "May forget a little less than LoRA, which is thinly tested; a step takes 1.05 times LoRA's on a processor, "
        "about a quarter more on a card; fewer tools read it."
    ),
    "qoft": lambda: t("OFT on a base of 4 bits: little memory, as fast as QLoRA, few tools read it."),
}


def _trade(way: Way, advised: Way) -> str:
    if not OBJECTIVES[way.objective].is_judge and (way.adapter, way.quantize) == (advised.adapter, advised.quantize):
        return t("A lower rank: less memory and less forgetting, and less room to learn.")
    return method_trade(way)


def alternatives(case: Case) -> list[Alternative]:
    """Return every way the data can feed, one of each method: the highest rank that fits, else the lowest."""
    found: dict[Any, Way] = {}
    for way in case.ways:
        kind = (way.objective, way.adapter, way.quantize, way.layers)
        usual = way.objective == case.ways[0].objective
        if not usual and (way.adapter, way.quantize) != ("lora", "none"):
            continue  # of the data's other uses, the usual way is enough
        if kind not in found or not case.fits(found[kind]):
            found[kind] = way
    return [_alternative(case, way) for way in found.values()]


def _alternative(case: Case, way: Way) -> Alternative:
    plan = case.plan(way)
    return Alternative(
        way=way, title=way.title, fits=case.fits(way), room=plan.room, memory=plan.memory,
        low_bytes=plan.memory.low_bytes or None, high_bytes=plan.memory.high_bytes or None, time=plan.time,
        trade=method_trade(way),
    )  # fmt: skip


def method_trade(way: Way) -> str:
    """Return what one gets and gives up with a method; a judge of answers is another thing than a model."""
    if OBJECTIVES[way.objective].is_judge:
        return t("Makes a judge of answers instead of a better model: the first half of the way to PPO.")
    method = {"full": "freeze" if way.layers != "all" else "full", "lora": "lora", "oft": "oft"}[way.adapter]
    return _TRADES["q" + method if way.quantize == "4bit" else method]()


def runners_up(advised: Way | None, fitting: list[Way], fired: list[str]) -> list[RunnerUp]:
    """Return three other ways that fit, one of each method, those first that a fired rule of the guide asks for."""
    if advised is None:
        return []
    seen, found = {(advised.objective, advised.adapter, advised.quantize, advised.layers)}, []
    asked = {name for rule in fired for name in guide.rules()[rule].recommends} - advised.parts
    for way in sorted(fitting, key=lambda way: not way.parts & asked):
        kind = (way.objective, way.adapter, way.quantize, way.layers)
        if kind not in seen and (way.objective == advised.objective or way.adapter == "lora"):
            seen.add(kind)
            found.append(RunnerUp(way=way, trade=_trade(way, advised)))
    return found[:3]


def would_change(case: Case, advised: Way | None) -> list[str]:
    """Return what would lead to other advice, found by asking again with one fact changed."""
    facts = case.facts

    def other(**changes: Any) -> Way | None:
        return case.with_facts(**changes).best

    said: list[str] = []
    seen = {advised.key if advised else None}

    def ask(sentence: Callable[[str], str], **changes: Any) -> None:
        way = other(**changes)
        if way is not None and way.key not in seen:
            seen.add(way.key)
            said.append(sentence(named(way)))

    sft = facts.data_type in (None, "language-modeling", "prompt-completion")
    if facts.gpu_memory_gib is not None and facts.base_parameters is not None:
        have = machine.marketed_gb(facts.gpu_memory_gib)
        for size in (s for s in (12, 16, 24, 32, 48, 80, 96, 141, 192) if s > have):
            ask(lambda c, s=size: t("With a card of {gb} GB: {choice}.", gb=s, choice=c), gpu_memory_gib=float(size))
    if advised is None and case.ways and facts.gpu_memory_gib is not None and facts.base_parameters is not None:
        said.append(_largest_base(other, facts.base_parameters))
    if sft and facts.rows is not None:
        for rows in (r for r in (MANY_ROWS, VERY_MANY_ROWS) if facts.rows <= r):
            words = count(rows)
            ask(lambda c, w=words: t("With more than {rows} rows: {choice}.", rows=w, choice=c), rows=rows + 1)
        ask(
            lambda c: t("With more than 100,000 rows of a subject that is new to the base: {choice}.", choice=c),
            rows=VERY_MANY_ROWS + 1,
            goal="knowledge",
            forgetting_tolerance="medium",
        )
    if sft and not tuned_again(facts):
        ask(lambda c: t("If the base was tuned before and should keep that: {choice}.", choice=c), base_is_tuned=True)
    if facts.data_type != "preference":
        ask(
            lambda c: t("With pairs of a better and a worse answer: {choice}.", choice=c),
            data_type="preference",
            alignment_data=None,
        )
    if facts.data_type != "unpaired-preference":
        ask(
            lambda c: t("With single answers marked good or bad: {choice}.", choice=c),
            data_type="unpaired-preference",
            alignment_data=None,
        )
    if facts.data_type == "prompt-only" or alignment(facts) == "ratings_large" or facts.goal == "alignment":
        ask(
            lambda c: t("With a reward model and questions: {choice}.", choice=c),
            data_type="prompt-only",
            has_reward_model=True,
        )
    if not sft:
        ask(lambda c: t("With questions and good answers: {choice}.", choice=c), data_type="prompt-completion")
    if facts.forgetting_tolerance != "low" and sft:
        ask(lambda c: t("If hardly anything may be forgotten: {choice}.", choice=c), forgetting_tolerance="low")
    return said


def _largest_base(other: Callable[..., Way | None], parameters: float) -> str:
    """Return how large a base the card takes."""
    for size in (s for s in (32e9, 24e9, 14e9, 8e9, 7e9, 4e9, 3e9, 1.5e9, 1e9, 5e8, 1e8) if s < parameters):
        way = other(base_parameters=size)
        if way is not None:
            return t("With a base of {size}: {choice}.", size=billions(size), choice=way.title)
    return t("With a much smaller base, such as the starter, or a larger card.")


class Mentioned(NamedTuple):
    """A way the guide names in passing, for which there is no recipe: the rule that names it, and what we think of it."""

    title: str
    rule: str
    verdict: str


def mentioned() -> list[Mentioned]:
    """Return the ways that the guide only mentions, each with a verdict."""
    return [
        Mentioned(
            t("Prefix tuning"),
            "K2",
            t(
                "Not built. It learns vectors in front of every row, which take room in the window and cannot be merged; "
                "LoRA learns more with as few weights (arXiv 2101.00190 against 2106.09685, table 4)."
            ),
        ),
        Mentioned(
            t("The embedding trained beside LoRA (modules_to_save)"),
            "G7",
            t(
                "Not built. It trains and saves a whole copy of the embedding, often more weights than the adapter; only "
                "new tokens need it (peft 0.21, LoraConfig.modules_to_save and trainable_token_indices)."
            ),
        ),
        Mentioned(
            t("Several tasks side by side (multi-task)"),
            "C7",
            t(
                "No recipe of its own is needed: put the rows of all tasks into one file, or train one adapter for each "
                "task on the same base. Spare memory alone is no reason for it."
            ),
        ),
    ]

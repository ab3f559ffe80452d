"""What else: runners-up, every other way the data can feed, and what would change the advice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from engine.advise import guide, ways
from engine.advise.facts import MANY_ROWS, VERY_MANY_ROWS, Facts, alignment, billions, count, marketed_gb, tuned_again
from engine.advise.ways import Choice, Test, named, roughly_fits
from engine.words import t


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True):
    """Another choice that fits, and what one gets and gives up with it."""

    choice: Choice
    trade: str


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train that the data can feed: whether it fits, and whether this version trains it."""

    choice: Choice
    fits: bool
    runs: bool
    trade: str


def nearest(
    advised: Choice | None, ranked: list[Choice], fitting: list[Choice], runnable: Test, facts: Facts
) -> tuple[Choice | None, str]:
    """Return the choice most like the advised one that runs and fits, and a sentence about it."""
    if advised is None:
        return None, ""

    def distance(choice: Choice) -> tuple[bool, bool, bool]:
        return choice.adapter != advised.adapter, choice.quantize != advised.quantize, choice.layers != advised.layers

    near = sorted((c for c in ranked if c.objective == advised.objective and runnable(c)), key=distance)
    found = next((c for c in near if c in fitting), None)
    if found is not None:
        return found, t(
            "{advised} is not built yet. The nearest that runs today is {nearest}.",
            advised=advised.title,
            nearest=found.title,
        )
    if near:
        return None, t(
            "{advised} is not built yet, and the nearest that runs, {nearest}, does not fit this machine: choose a smaller "
            "base, or a larger card.",
            advised=advised.title,
            nearest=near[0].title,
        )
    if advised.objective == "sft":
        return None, t("{advised} is not built yet, and nothing near it runs on this data.", advised=advised.title)
    return None, t(
        "{advised} is not built yet, and nothing that is learns from such rows. Questions with answers can be used today.",
        advised=advised.title,
    )


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
        "May forget a little less than LoRA, which is thinly tested; about a quarter slower, fewer tools read it."
    ),
    "qoft": lambda: t("OFT on a base of 4 bits: little memory, as fast as QLoRA, few tools read it."),
}


def _trade(choice: Choice, advised: Choice) -> str:
    if choice.objective == "reward":
        return t("Makes a judge of answers instead of a better model: the first half of the way to PPO.")
    if (choice.adapter, choice.quantize) == (advised.adapter, advised.quantize):
        return t("A lower rank: less memory and less forgetting, and less room to learn.")
    return method_trade(choice)


def alternatives(ranked: list[Choice], fitting: list[Choice], runnable: Test) -> list[Alternative]:
    """Return every way the data can feed, one of each method: the highest rank that fits, else the lowest."""
    found: dict[Any, Choice] = {}
    for choice in ranked:
        kind = (choice.objective, choice.adapter, choice.quantize, choice.layers)
        if choice.objective != ranked[0].objective and choice.adapter != "lora":
            continue  # of the data's other uses, the usual way is enough
        if choice.objective != ranked[0].objective and choice.quantize != "none":
            continue
        if kind not in found or found[kind] not in fitting:
            found[kind] = choice
    return [
        Alternative(choice=choice, fits=choice in fitting, runs=runnable(choice), trade=method_trade(choice))
        for choice in found.values()
    ]


def method_trade(choice: Choice) -> str:
    """Return what one gets and gives up with a method."""
    method = {"full": "freeze" if choice.layers != "all" else "full", "lora": "lora", "oft": "oft"}[choice.adapter]
    return _TRADES["q" + method if choice.quantize == "4bit" else method]()


def runners_up(advised: Choice | None, fitting: list[Choice], fired: list[str]) -> list[RunnerUp]:
    """Return three other choices that fit, one of each method, those first that a fired rule of the guide asks for."""
    if advised is None:
        return []
    seen, found = {(advised.objective, advised.adapter, advised.quantize, advised.layers)}, []
    asked = {name for rule in fired for name in guide.rules()[rule].recommends} - advised.parts
    for choice in sorted(fitting, key=lambda choice: not choice.parts & asked):
        kind = (choice.objective, choice.adapter, choice.quantize, choice.layers)
        if kind not in seen and (choice.objective == advised.objective or choice.adapter == "lora"):
            seen.add(kind)
            found.append(RunnerUp(choice=choice, trade=_trade(choice, advised)))
    return found[:3]


def would_change(facts: Facts, advised: Choice | None, ranked: list[Choice]) -> list[str]:
    """Return what would lead to other advice, found by asking again with one fact changed."""

    def other(**changes: Any) -> Choice | None:
        """Return the advice by the rule of thumb when these facts change."""
        changed = msgspec.structs.replace(facts, **changes)
        return next((c for c in ways.ranked(changed) if roughly_fits(c, changed)), None)

    said: list[str] = []
    seen = {advised.key if advised else None, (same := other()) and same.key}

    def ask(sentence: Callable[[str], str], **changes: Any) -> None:
        choice = other(**changes)
        if choice is not None and choice.key not in seen:
            seen.add(choice.key)
            said.append(sentence(named(choice)))

    sft = facts.data_type in (None, "language-modeling", "prompt-completion")
    if facts.gpu_memory_gib is not None and facts.base_parameters is not None:
        have = marketed_gb(facts.gpu_memory_gib)
        for size in (s for s in (12, 16, 24, 32, 48, 80, 96, 141, 192) if s > have):
            ask(lambda c, s=size: t("With a card of {gb} GB: {choice}.", gb=s, choice=c), gpu_memory_gib=float(size))
    if advised is None and ranked and facts.gpu_memory_gib is not None and facts.base_parameters is not None:
        said.append(_largest_base(facts, ranked))
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


def _largest_base(facts: Facts, ranked: list[Choice]) -> str:
    """Return how large a base the card takes, by the rule of thumb turned round."""
    sizes = (32e9, 24e9, 14e9, 8e9, 7e9, 4e9, 3e9, 1.5e9, 1e9, 5e8, 1e8)
    for size in sizes:
        smaller = msgspec.structs.replace(facts, base_parameters=size)
        fits = next((choice for choice in ranked if roughly_fits(choice, smaller)), None)
        if fits is not None and size < (facts.base_parameters or 0):
            return t("With a base of {size}: {choice}.", size=billions(size), choice=fits.title)
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

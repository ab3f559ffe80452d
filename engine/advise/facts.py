"""The facts advice depends on, checked: data, machine, base and goal. What is not known is None."""

from __future__ import annotations

import math
import reprlib
from typing import Any, Literal

import msgspec

from engine.check import kind_of
from engine.read import formats
from engine.words import Problem, t

GOALS = ("format", "knowledge", "alignment", "continue")
ALIGNMENT_DATA = ("none", "ratings_large", "comparisons", "good_bad")
TOLERANCES = ("low", "medium", "high")

# Above this ratio of the two labels KTO's weights are needed: the ICML version of its paper keeps the weighted ratio
# within 1 to 3/2 (arXiv 2402.01306, equation 9). It is what "severely unbalanced" (C10) means here.
SEVERE_IMBALANCE = 1.5
# The guide asks for 10,000 or more labels before PPO (H4).
LARGE_ANNOTATION_ROWS = 10_000
# Up to so many rows count as "few-shot" (G5); the guide gives no number.
FEW_ROWS = 100
# So many rows make rank 16 tight (arXiv 2405.09673, section 4.7, recommends 64 to 256 for much or foreign data).
MANY_ROWS = 50_000
VERY_MANY_ROWS = 100_000
# Below this the recipes bring settings of their own: rates for a toy must not travel to a real model, nor back.
TOY_PARAMETERS = 5e7
# Numbers that depend on the size of a base which is not known are those of a model of this size.
UNKNOWN_PARAMETERS = 3e9


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the advice depends on; None means not known. For `gpu_memory_gib` None means that there is no GPU.

    `conversational`: rows of the type language-modeling are conversations, whose answers alone are learned.
    `base_is_tuned`: the base was fine-tuned before and what it learned then should stay, such as run:<id>.
    `alignment_data`: what people have said about answers, beyond the file; see alignment_words().
    """

    rows: int | None = None
    data_type: str | None = None
    conversational: bool = False
    good_rows: int | None = None
    bad_rows: int | None = None
    gpu_memory_gib: float | None = None
    base_parameters: float | None = None
    base_is_tuned: bool = False
    goal: Literal["format", "knowledge", "alignment", "continue"] | None = None
    alignment_data: Literal["none", "ratings_large", "comparisons", "good_bad"] | None = None
    has_reward_model: bool = False
    forgetting_tolerance: Literal["low", "medium", "high"] = "medium"
    time_budget_minutes: float | None = None


def alignment_words() -> dict[str, str]:
    """Return the answers to "Have people judged answers of a model?", in words that cannot be misread."""
    return {
        "none": t("No, nobody has judged answers"),
        "good_bad": t("Yes, single answers are marked good or bad"),
        "comparisons": t("Yes, pairs: of two answers to one question, which is better"),
        "ratings_large": t("Yes, ratings or comparisons of more than 10,000 answers"),
    }


def goal_words() -> dict[str, str]:
    """Return the answers to "What should the model learn?"."""
    return {
        "format": t("Answer in a certain form, style or language"),
        "knowledge": t("Know a new subject"),
        "alignment": t("Prefer the answers that people prefer"),
        "continue": t("More, on top of an earlier fine-tuning"),
    }


# The lowest and the highest value of each number; what is beyond is a slip.
LIMITS: dict[str, tuple[float, float]] = {
    "rows": (1, 10**12), "good_rows": (0, 10**12), "bad_rows": (0, 10**12), "gpu_memory_gib": (0.1, 10**5),
    "base_parameters": (1, 1e15), "time_budget_minutes": (0.1, 10**7),
}  # fmt: skip


def checked(facts: Facts) -> tuple[Facts, list[Problem]]:
    """Return the facts with every impossible one set to "not known", and what was wrong with them."""
    problems: list[Problem] = []
    changes: dict[str, Any] = {}
    for name, (least, most) in LIMITS.items():
        value = getattr(facts, name)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            changes[name] = None
            told: dict[str, Any] = {"value": reprlib.repr(value)[:40], "least": f"{least:,g}", "most": f"{most:,.15g}"}
            problems.append(Problem(rule="fact-number", where=name, parameters=told))
    words = {"data_type": (formats.TYPES, None), "goal": (GOALS, None), "alignment_data": (ALIGNMENT_DATA, None)}
    for name, (known, otherwise) in {**words, "forgetting_tolerance": (TOLERANCES, "medium")}.items():
        value = getattr(facts, name)
        if value is not None and value not in known:
            changes[name] = otherwise
            problems.append(
                Problem(rule="fact-word", where=name, parameters={"value": str(value)[:40], "known": ", ".join(known)})
            )
    return msgspec.structs.replace(facts, **changes), problems


def alignment(facts: Facts) -> str | None:
    """Return what human judgement there is: what was answered, else what the file itself holds."""
    if facts.alignment_data is not None:
        return facts.alignment_data
    if facts.data_type == "preference":
        return "ratings_large" if (facts.rows or 0) > LARGE_ANNOTATION_ROWS else "comparisons"
    return "good_bad" if facts.data_type == "unpaired-preference" else None


def imbalance(facts: Facts) -> float | None:
    """Return how many times the rarer label the other one is there, or None when the counts are not known."""
    if facts.good_rows is None or facts.bad_rows is None:
        return None
    fewer, more = sorted((facts.good_rows, facts.bad_rows))
    return more / fewer if fewer else (math.inf if more else None)


def kind(facts: Facts) -> str | None:
    """Return what the rows are, as their report does: plain texts and conversations apart."""
    return kind_of(facts.data_type, facts.conversational)


def new_domain(facts: Facts) -> bool:
    """Whether the rows are a subject the base does not know: said so, or plain text without another goal."""
    return facts.goal == "knowledge" or (facts.goal is None and kind(facts) == "texts")


def tuned_again(facts: Facts) -> bool:
    return facts.base_is_tuned or facts.goal == "continue"


def count(number: float | None) -> str:
    return f"{number:,.0f}" if number is not None else "?"


def billions(parameters: float) -> str:
    """Return a size as people say it: 7B, 1.5B, 360M."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.2g}{letter}" if parameters < 10 * unit else f"{parameters / unit:.0f}{letter}"
    return f"{parameters:.0f}"

"""The plan from here to the goal, in stages: first the answers, then the preferences."""

from __future__ import annotations

import msgspec

from engine.advise.facts import Facts, alignment, count, tuned_again
from engine.advise.ways import Way, named
from engine.words import t


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the plan; `now` marks the one that the advice starts, `done` those behind it."""

    title: str
    text: str
    rules: tuple[str, ...] = ()
    now: bool = False
    done: bool = False


def plan(facts: Facts, advised: Way | None) -> list[Stage]:
    """Return the stages from here to the goal: first the answers, then the preferences (L2)."""
    kind = alignment(facts)
    stages: list[Stage] = []
    if advised is None:
        if facts.data_type == "prompt-only":
            stages.append(
                Stage(
                    title=t("Answers"),
                    text=t("Write a good answer to each question and train on these (SFT)."),
                    rules=("D2",),
                )
            )
            stages.append(
                Stage(
                    title=t("Preferences"),
                    text=t("Or let people compare answers of the model: pairs feed DPO, and a reward model for PPO."),
                    rules=("H2", "I1"),
                )
            )
        return stages
    if advised.objective == "sft":
        hurried = facts.time_budget_minutes is not None and facts.time_budget_minutes <= 60
        if facts.rows is not None and facts.rows > 1000:
            text = t("Try 1,000 rows first and look at the answers; then take all {rows}.", rows=count(facts.rows))
            if hurried:
                text = t(
                    "With {minutes} minutes, train on 1,000 rows and look at the answers.",
                    minutes=count(facts.time_budget_minutes),
                )
            stages.append(Stage(title=t("Try"), text=text, rules=("N5", "O9")))
        text = t("{choice} on your rows.", choice=named(advised, capital=True))
        stages.append(Stage(title=t("Learn"), text=text, rules=("L2",), now=True))
        text = t("Compare with the base: what it learned on rows it has not seen, and what it forgot.")
        stages.append(Stage(title=t("Measure"), text=text, rules=("L8", "M6", "M7")))
        later = _later(facts, kind)
        if later is not None:
            stages.append(later)
        return stages
    text = t("SFT on questions with good answers, so that the model can do the task at all.")
    stages.append(Stage(title=t("Learn"), text=text, rules=("L2", "X10"), done=tuned_again(facts)))
    if advised.objective == "ppo":
        text = t("A reward model, trained on comparisons, judges the answers.")
        stages.append(Stage(title=t("Judge"), text=text, rules=("H2",), done=facts.has_reward_model))
    text = t("{choice} on your rows, starting from that model.", choice=named(advised, capital=True))
    stages.append(Stage(title=t("Align"), text=text, rules=("L2",), now=True))
    text = t("Compare with the model before: are the answers better, and what was forgotten?")
    stages.append(Stage(title=t("Measure"), text=text, rules=("L8", "M6", "M7")))
    return stages


def _later(facts: Facts, kind: str | None) -> Stage | None:
    title = t("Align")
    if facts.has_reward_model:
        return Stage(title=title, text=t("Then PPO with your reward model, on questions alone."), rules=("H2", "N3"))
    if kind == "ratings_large":
        text = t(
            "Then DPO on the comparisons; or train a reward model on them and go on with PPO, which costs far more."
        )
        return Stage(title=title, text=text, rules=("C8", "N3"))
    if kind == "comparisons":
        return Stage(title=title, text=t("Then DPO on the comparisons, starting from this run."), rules=("C9", "L2"))
    if kind == "good_bad":
        return Stage(
            title=title, text=t("Then KTO on the good/bad labels, starting from this run."), rules=("C10", "L2")
        )
    if facts.goal == "alignment":
        text = t("Then let people compare or mark answers of this model; comparisons feed DPO, good/bad labels KTO.")
        return Stage(title=title, text=text, rules=("A4", "L2"))
    return None

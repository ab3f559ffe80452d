"""Why this advice: reasons in the order of precedence, rules that speak for it, and rules that were overruled."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine import machine
from engine.advise import facts as advise_facts
from engine.advise import guide
from engine.advise.case import Case
from engine.advise.facts import (
    FEW_ROWS,
    LARGE_ANNOTATION_ROWS,
    SEVERE_IMBALANCE,
    VERY_MANY_ROWS,
    Facts,
    billions,
    count,
    kind,
    new_domain,
    tuned_again,
)
from engine.advise.stages import plan
from engine.advise.ways import Way, named
from engine.estimate import memory
from engine.spec import OBJECTIVES
from engine.words import t


class Overruled(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that applies and was not followed; `partly` when it was, but not in all it says."""

    rule: str
    why: str
    partly: bool = False


def reasons(case: Case, advised: Way | None) -> list[str]:
    """Return why, in the order of precedence: what fits, the form of the data, the rows, preference."""
    facts = case.facts
    said: list[str] = []
    if facts.gpu_memory_gib is None:
        said.append(t("There is no GPU, so no rule about GPU memory applies."))
        if facts.base_parameters is None:
            said.append(t("The size of the base is not known; on a processor one below 1B is realistic."))
        elif facts.base_parameters >= 1e9:
            said.append(
                t(
                    "On a processor a base of {size} takes days; one below 1B is realistic.",
                    size=billions(facts.base_parameters),
                )
            )
    if advised is None:
        said.append(_smallest_need(case) if case.ways else _no_feed(facts))
        return said
    said += _fit_reasons(case, advised)
    said.append(_form_reason(facts, advised))
    rows = _rows_reason(facts, advised)
    if rows:
        said.append(rows)
    if tuned_again(facts) and advised.objective == "sft":
        if advised.adapter == "oft":
            said.append(
                t(
                    "The base was tuned before. OFT turns the weights without stretching them, and forgot a little less "
                    "than LoRA in the one independent comparison; measure it here."
                )
            )
        else:
            said.append(
                t("The base was tuned before, so the run is kept gentle: a low rank and general rows mixed in.")
            )
    if facts.forgetting_tolerance == "low" and advised.objective == "sft":
        said.append(
            t("Little may be forgotten, so a tenth of the rows are general ones and the rate is at its lower end.")
        )
    moved = [s for s in advised.settings if s.reason and s.path == "objective_args.weights"]
    if moved:
        good, bad = moved[0].value
        said.append(
            t(
                "Weights of {good} for answers marked good and {bad} for those marked bad make both labels count alike.",
                good=f"{good:g}",
                bad=f"{bad:g}",
            )
        )
    return said


def _smallest_need(case: Case) -> str:
    if not case.is_sized:
        return t("None of the methods fits, by the estimate of memory.")
    least = min(case.ways, key=lambda way: case.plan(way).memory.total_bytes)
    return t(
        "Even {choice}, the smallest way to train a base of {size}, needs {need}; {memory}.",
        choice=least.title,
        size=_size(case),
        need=case.need(least),
        memory=_memory(case),
    )


def _no_feed(facts: Facts) -> str:
    if facts.data_type == "prompt-only":
        return t(
            "Your rows are questions without answers. PPO learns from these, but only with a reward model as the judge."
        )
    return t("Your rows mark single steps of answers; no method here learns from these.")


def _memory(case: Case) -> str:
    if case.facts.gpu_memory_gib is None:
        return t("this machine has {have}", have=memory.size_words(case.target.memory_bytes))
    told = {"gb": machine.marketed_gb(case.facts.gpu_memory_gib), "have": memory.size_words(case.target.memory_bytes)}
    return t("a card sold as {gb} GB has {have}", **told)


def _size(case: Case) -> str:
    """Return the size of the base, as people say it."""
    return billions(case.facts.base_parameters or case.base.parameters or 0)


# Another way to hold every weight than in 32 bits with Adam: bytes a parameter (LLaMA-Factory's table).
_PURE_BF16_BYTES = 8


def _full_otherwise(case: Case) -> str:
    """Return what full fine-tuning would take with its weights in 16 bits alone."""
    size = case.base.parameters or 0
    return t(
        "With its weights in bf16 alone (machine.weights=bf16) full fine-tuning of {size} takes about {bf16} GB; the "
        "smallest steps are lost in their rounding.",
        size=_size(case),
        bf16=round(_PURE_BF16_BYTES * size / 1e9),
    )


def _fit_reasons(case: Case, advised: Way) -> list[str]:
    """Return what the memory decided: what fits, and which better way it ruled out."""
    if not case.is_sized:
        gib = case.facts.gpu_memory_gib
        if gib is None:
            return []
        return [
            t(
                "The size of the base is not known, so the card of {gb} GB alone decided what fits.",
                gb=machine.marketed_gb(gib),
            )
        ]
    said = []
    better = next(iter(case.ways[: case.ways.index(advised)]), None)
    if better is not None:
        text = t(
            "{better} comes first for such data, but needs {need}, which {how}.",
            better=named(better, capital=True),
            need=case.need(better),
            how=memory.room_words()[case.plan(better).room],
        )
        said.append(text)
    train = case.plan(advised).spec.train
    said.append(
        t(
            "{choice} of a base of {size} needs {need} at a batch size of {rows}, with rows of up to {tokens} tokens; "
            "{memory}.",
            choice=named(advised, capital=True),
            size=_size(case),
            need=case.need(advised),
            rows=train.batch_size,
            tokens=f"{case.plan(advised).setup.max_length:,}",
            memory=_memory(case),
        )
    )
    said.append(_settings_that_fit(case, advised))
    if case.plan(advised).room == "tight":
        said.append(t("That is tight: what else uses the memory, or longer rows, may be too much."))
    if better is not None and better.adapter == "full" and better.layers == "all":
        said.append(_full_otherwise(case))
    return said


def _settings_that_fit(case: Case, advised: Way) -> str:
    """Name the settings that memory hangs on, as the run will have them."""
    plan = case.plan(advised)
    told = {"rows": plan.spec.train.batch_size, "passes": plan.spec.train.accumulation,
            "tokens": f"{plan.spec.train.max_length:,}"}  # fmt: skip
    if plan.setup.gradient_checkpointing:
        return t(
            "Its settings: batch size {rows}, accumulation {passes}, rows of at most {tokens} tokens, gradient "
            "checkpointing (layers are computed twice to save memory).", **told,
        )  # fmt: skip
    return t(
        "Its settings: batch size {rows}, accumulation {passes}, rows of at most {tokens} tokens, no gradient "
        "checkpointing.", **told,
    )  # fmt: skip


def _form_reason(facts: Facts, advised: Way) -> str:
    if facts.data_type is None:
        return t(
            "No file is chosen yet; rows for {objective} are assumed.", objective=OBJECTIVES[advised.objective].title
        )
    return {
        "texts": t("Your rows are plain text, so every word of them is learned (SFT)."),
        "conversations": t("Your rows are conversations, so the answers in them are learned (SFT)."),
        "prompt-completion": t("Your rows are questions with answers, so the answers are learned (SFT)."),
        "preference": t(
            "Your rows are pairs of a better and a worse answer, which DPO learns from without a reward model."
        ),
        "unpaired-preference": t("Your rows are single answers marked good or bad, which is the form KTO learns from."),
        "prompt-only": t("Your rows are questions alone and you have a reward model, which together feed PPO."),
    }[kind(facts) or ""]


def _rows_reason(facts: Facts, advised: Way) -> str:
    if facts.rows is None:
        return ""
    rows = count(facts.rows)
    if advised.objective == "ppo":
        return t("PPO makes its own answers, so {rows} questions can be used again and again.", rows=rows)
    if advised.objective != "sft":
        return t("{rows} judged rows are learned gently: a small adapter, a low rate, one pass.", rows=rows)
    if facts.rows <= FEW_ROWS:
        return t("{rows} rows are very few: the model learns a form from them, hardly new facts.", rows=rows)
    if facts.rows <= LARGE_ANNOTATION_ROWS:
        return t("{rows} rows are enough for an adapter and too few to move every weight safely.", rows=rows)
    if facts.rows <= VERY_MANY_ROWS:
        return t("{rows} rows are what an adapter holds well.", rows=rows)
    if new_domain(facts):
        return t(
            "{rows} rows of a new subject are what full fine-tuning is for, and a high-rank adapter comes close.",
            rows=rows,
        )
    return t(
        "{rows} rows are many, but for instructions an adapter of rank 64 or more learns as much as all weights.",
        rows=rows,
    )


def speaking(facts: Facts, advised: Way | None, fired: list[str]) -> list[str]:
    """Return the rules that speak for the choice: fired rows of the tables first, then the rest of the guide."""
    if advised is None:
        return []
    rules = guide.rules()
    found = [rule for rule in fired if advised.parts & set(rules[rule].recommends)]
    size = machine.marketed_gb(facts.gpu_memory_gib) if facts.gpu_memory_gib is not None else None
    imbalance = advise_facts.imbalance(facts)
    sft = advised.objective == "sft"
    speaks = {
        "A2": sft and facts.goal == "format",
        "A3": sft and facts.goal == "knowledge",
        "A4": not sft,
        "D1": sft,
        "F6": sft and advised.adapter == "oft" and tuned_again(facts),
        "H2": advised.objective in ("ppo", "reward"),
        "I1": advised.objective == "dpo",
        "J5": advised.objective == "kto" and imbalance is not None and imbalance > SEVERE_IMBALANCE,
        "J8": advised.objective == "kto",
        "L2": len(plan(facts, advised)) > 1,
        "L5": size is not None and size <= 8 and advised.quantize == "4bit",
        "L6": size == 16 and advised.adapter == "lora" and advised.quantize == "none",
        "L7": size == 80 and advised.adapter == "full",
        "L9": bool(advised.value("train.replay_share")),
        "M5": advised.objective in ("dpo", "kto", "ppo"),
        "N1": size is not None and size <= 8 and advised.quantize == "4bit",
        "N3": advised.objective == "dpo",
        "N4": advised.objective == "kto" and imbalance is not None and imbalance > SEVERE_IMBALANCE,
        "N5": sft and (facts.rows or 0) > 1000,
        # how the guide's contradictions were decided, where they touch these facts
        "X6": facts.rows in (LARGE_ANNOTATION_ROWS, VERY_MANY_ROWS) or size in (8, 16, 80),
        "X11": any(not advised.parts & set(rules[rule].recommends) for rule in fired),
    }
    return [*found, *(rule for rule, speaking in speaks.items() if speaking)]


def overruled(case: Case, advised: Way | None, fired: list[str]) -> list[Overruled]:
    """Return the rules that apply and were not followed, or only in part, each with the reason."""
    facts = case.facts
    rules = guide.rules()
    found: list[Overruled] = []
    for rule in fired:
        if advised is None:
            why = t("Nothing it recommends fits.") if case.ways else t("The data cannot feed what it recommends.")
            found.append(Overruled(rule=rule, why=why))
        elif not advised.parts & set(rules[rule].recommends):
            found.append(Overruled(rule=rule, why=_why_not(case, advised, rules[rule])))
        else:
            part = _why_in_part(facts, advised, rule)
            if part:
                found.append(Overruled(rule=rule, why=part, partly=True))
    if advised is not None:
        if tuned_again(facts) and advised.objective == "sft" and advised.adapter != "oft":
            found.append(Overruled(rule="F6", why=t("OFT does not fit this machine with this base.")))
        if advised.objective == "sft" and 0 < (facts.rows or 0) <= FEW_ROWS and advised.layers == "all":
            found.append(Overruled(rule="G5", why=t(rules["G5"].why)))
        # the harmful numbers of the guide are named wherever they would apply
        found += [
            Overruled(rule=rule, why=t(rules[rule].why))
            for rule, objective in (("I5", "dpo"), ("J9", "kto"))
            if objective == advised.objective
        ]
    return found


def _why_not(case: Case, advised: Way, rule: guide.Rule) -> str:
    wanted = set(rule.recommends)
    if rule.table == "alignment":
        if advised.objective == "sft":
            return t("Your rows hold answers to learn. Judged answers come after this run, as the plan says.")
        if "ppo" in wanted:
            return t("PPO needs a reward model, which there is not; the comparisons feed DPO directly.")
        return t("The form of your rows decides, and it feeds {choice}.", choice=advised.title)
    asked = [way for way in case.ways if way.parts & wanted]
    if asked and not any(map(case.fits, asked)):
        return t("What fits comes first: {choice} does not fit this machine with this base.", choice=asked[0].title)
    if wanted == {"qlora"}:
        return t("This base fits without being held in 4 bits, and each step is faster so.")
    if advised.adapter == "oft" and tuned_again(case.facts):
        return t("The base was tuned before, which speaks for OFT; of LoRA's advice the small adapter stays.")
    return t(rule.why)


def _why_in_part(facts: Facts, advised: Way, rule: str) -> str:
    """Return which part of a followed rule was left out: freezing on top of an adapter, preference data from nothing."""
    said = []
    if rule in ("C2", "C3", "C5") and advised.adapter != "full":
        said.append(t("Freezing is left out: an adapter leaves every weight of the base as it is."))
    if rule == "C3" and advised.objective == "sft":
        said.append(t("DPO and KTO are left for later: few rows do not make comparisons or labels."))
    return " ".join(said)


def doubts(case: Case, advised: Way | None, speaking_rules: Sequence[str] = ()) -> list[str]:
    """Return what leaves the advice less sure: facts that are missing, thin evidence, and rules it stands on that the
    sources do not bear out. Empty where nothing is advised: that follows from the facts alone."""
    if advised is None:
        return []
    rules = map(guide.rules().__getitem__, speaking_rules)
    return [
        *_missing(case, advised),
        *_thin(case, advised),
        *(_disagrees(one) for one in rules if one.verdict in UNSETTLED),
    ]


# Verdicts of rules that leave advice less sure: somebody says otherwise, or too few say so.
UNSETTLED = ("disputed", "wrong", "outdated", "unproven", "vendor claim", "contradiction")
# Those of them that leave a rule nothing to say for an advice that follows from it.
SPEAK_FOR_NOTHING = ("wrong", "outdated", "contradiction")


def _disagrees(rule: guide.Rule) -> str:
    """Say of one rule what speaks against it; its source stands with the rule."""
    if rule.verdict == "contradiction":
        told = {"when": t(rule.when), "value": t(rule.value_used), "why": t(rule.why)}
        return t("The guide says two things of this: {when}. Tunebook takes: {value}. {why}", **told)
    told = {"says": t(rule.says).rstrip(".。"), "why": t(rule.why)}
    if rule.verdict in ("unproven", "vendor claim"):
        return t("Little speaks for “{says}”: {why}", **told)
    return t("The sources disagree with the guide on “{says}”: {why}", **told)


def _missing(case: Case, advised: Way) -> list[str]:
    """Return the facts that are not known and that the advice hangs on, in one sentence."""
    facts, missing = case.facts, []
    if facts.data_type is None:
        missing.append(t("the form of the data"))
    if facts.rows is None and advised.objective == "sft":
        missing.append(t("the number of rows"))
    if facts.base_parameters is None:
        missing.append(t("the size of the base"))
    if advised.objective == "kto" and advise_facts.imbalance(facts) is None:
        missing.append(t("how many labels are good and bad"))
    return [t("Not known: {missing}.", missing=", ".join(missing))] if missing else []


def _thin(case: Case, advised: Way) -> list[str]:
    """Return where little is known of the way that is advised."""
    facts, said = case.facts, []
    if advised.adapter == "oft":
        said.append(t("OFT's lead over LoRA rests on little evidence; the runner-up may do as well."))
    if advised.objective == "ppo":
        said.append(t("PPO is hard to tune: it fails silently when the reward model is weak."))
    if new_domain(facts) and (facts.rows or 0) > VERY_MANY_ROWS:
        said.append(t("Full fine-tuning and high ranks are close here, and the sources disagree."))
    if facts.gpu_memory_gib is None and (facts.base_parameters or 0) >= 1e9:
        said.append(t("The method is right, but a processor is too slow for a base of this size."))
    if case.plan(advised).room == "tight":
        said.append(t("The memory is tight: keep rows short."))
    return said

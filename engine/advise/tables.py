"""The guide's three scenario tables, row by row: which apply to the facts, and why."""

from __future__ import annotations

import msgspec

from engine import machine
from engine.advise import facts as advise_facts
from engine.advise import guide
from engine.advise.facts import Facts, alignment, count
from engine.words import t


class TableRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a scenario table: whether it applies to the facts, and why or why not."""

    rule: str
    fired: bool
    reason: str


def tables(facts: Facts) -> dict[str, tuple[TableRow, ...]]:
    return {
        "rows": tuple(_rows_row(rule, facts) for rule in guide.table("rows")),
        "memory": tuple(_memory_row(rule, facts) for rule in guide.table("memory")),
        "alignment": tuple(_alignment_row(rule, facts) for rule in guide.table("alignment")),
    }


def _within(value: float, above: float | None, at_most: float | None) -> bool:
    return (above is None or value > above) and (at_most is None or value <= at_most)


def _rows_row(rule: guide.Rule, facts: Facts) -> TableRow:
    condition = rule.condition or guide.Condition()
    if facts.rows is None:
        return TableRow(rule=rule.id, fired=False, reason=t("The number of rows is not known."))
    fired = _within(facts.rows, condition.rows_above, condition.rows_at_most)
    if not fired:
        reason = t("Your file has {rows} rows; {rule} is for {when}.", rows=count(facts.rows), **_of(rule))
    elif facts.rows == condition.rows_at_most:
        reason = t(
            "Your file has exactly {rows} rows, where two classes meet; ties go to the smaller one, so {rule} applies.",
            rows=count(facts.rows),
            rule=rule.id,
        )
    else:
        reason = t("Your file has {rows} rows, so {rule} applies.", rows=count(facts.rows), rule=rule.id)
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _memory_row(rule: guide.Rule, facts: Facts) -> TableRow:
    condition = rule.condition or guide.Condition()
    if facts.gpu_memory_gib is None:
        return TableRow(rule=rule.id, fired=False, reason=t("There is no GPU, so no rule about GPU memory applies."))
    size = machine.marketed_gb(facts.gpu_memory_gib)
    fired = _within(size, condition.memory_above_gb, condition.memory_at_most_gb)
    if not fired:
        reason = t("Your card has {gb} GB; {rule} is for {when}.", gb=size, **_of(rule))
    elif size == condition.memory_at_most_gb:
        reason = t(
            "Your card has {gb} GB, where two classes meet; ties go to the smaller one, so {rule} applies.",
            gb=size,
            rule=rule.id,
        )
    else:
        reason = t("Your card has {gb} GB, so {rule} applies.", gb=size, rule=rule.id)
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _alignment_row(rule: guide.Rule, facts: Facts) -> TableRow:
    condition = rule.condition or guide.Condition()
    kind = alignment(facts)
    if kind is None:
        return TableRow(rule=rule.id, fired=False, reason=t("It is not known whether people have judged answers."))
    if kind not in condition.alignment:
        said = t("You have {found}; {rule} is for {when}.", found=_judgement(kind), **_of(rule))
        return TableRow(rule=rule.id, fired=False, reason=said)
    if condition.imbalance_above is None:
        reason = t("You have {found}, so {rule} applies.", found=_judgement(kind), rule=rule.id)
        return TableRow(rule=rule.id, fired=True, reason=reason)
    imbalance = advise_facts.imbalance(facts)
    if imbalance is None:
        reason = t(
            "You have good/bad labels, and only these can be unbalanced, so {rule} applies; how many of each is not known.",
            rule=rule.id,
        )
        return TableRow(rule=rule.id, fired=True, reason=reason)
    counts = {"good": count(facts.good_rows), "bad": count(facts.bad_rows), "rule": rule.id}
    fired = imbalance > condition.imbalance_above
    if fired:
        reason = t("Your labels are {good} good and {bad} bad, so {rule} applies.", **counts)
    else:
        reason = t("Your labels are {good} good and {bad} bad, which is no severe imbalance ({rule}).", **counts)
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _of(rule: guide.Rule) -> dict[str, str]:
    return {"rule": rule.id, "when": t(rule.when)}


def _judgement(kind: str) -> str:
    return {
        "none": t("no judgements of answers"),
        "ratings_large": t("very many human ratings"),
        "comparisons": t("comparisons of answers"),
        "good_bad": t("good/bad labels"),
    }[kind]

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
        reason = t("There are {rows} rows; this is for {when}.", rows=count(facts.rows), when=t(rule.when))
    elif facts.rows == condition.rows_at_most:
        reason = t(
            "There are exactly {rows} rows, where two classes meet; ties go to the smaller one, so this applies.",
            rows=count(facts.rows),
        )
    else:
        reason = t("There are {rows} rows, so this applies.", rows=count(facts.rows))
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _memory_row(rule: guide.Rule, facts: Facts) -> TableRow:
    condition = rule.condition or guide.Condition()
    if facts.gpu_memory_gib is None:
        return TableRow(rule=rule.id, fired=False, reason=t("There is no GPU, so no rule about GPU memory applies."))
    size = machine.marketed_gb(facts.gpu_memory_gib)
    fired = _within(size, condition.memory_above_gb, condition.memory_at_most_gb)
    if not fired:
        reason = t("The card has {gb} GB; this is for {when}.", gb=size, when=t(rule.when))
    elif size == condition.memory_at_most_gb:
        reason = t(
            "The card has {gb} GB, where two classes meet; ties go to the smaller one, so this applies.",
            gb=size,
        )
    else:
        reason = t("The card has {gb} GB, so this applies.", gb=size)
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _alignment_row(rule: guide.Rule, facts: Facts) -> TableRow:
    condition = rule.condition or guide.Condition()
    kind = alignment(facts)
    if kind is None:
        return TableRow(rule=rule.id, fired=False, reason=t("It is not known whether people have judged answers."))
    if kind not in condition.alignment:
        said = t("You have {found}; this is for {when}.", found=_judgement(kind), when=t(rule.when))
        return TableRow(rule=rule.id, fired=False, reason=said)
    if condition.imbalance_above is None:
        reason = t("You have {found}, so this applies.", found=_judgement(kind))
        return TableRow(rule=rule.id, fired=True, reason=reason)
    imbalance = advise_facts.imbalance(facts)
    if imbalance is None:
        reason = t(
            "You have good/bad labels, and only these can be unbalanced, so this applies; how many of each is not known."
        )
        return TableRow(rule=rule.id, fired=True, reason=reason)
    counts = {"good": count(facts.good_rows), "bad": count(facts.bad_rows)}
    fired = imbalance > condition.imbalance_above
    if fired:
        reason = t("Your labels are {good} good and {bad} bad, so this applies.", **counts)
    else:
        reason = t("Your labels are {good} good and {bad} bad, which is no severe imbalance.", **counts)
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _judgement(kind: str) -> str:
    return {
        "none": t("no judgements of answers"),
        "ratings_large": t("very many human ratings"),
        "comparisons": t("comparisons of answers"),
        "good_bad": t("good/bad labels"),
    }[kind]

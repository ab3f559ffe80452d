"""One question about the world: drawn by dice, put into words, answered rightly and wrongly."""

from __future__ import annotations

import random

from engine.starter.world.facts import Fact
from engine.starter.world.relations import BY_FAMILY, FAMILIES, Generated, Relation

SEED = 20
# Sums are many and every one must be learnt by heart: with an equal share they came out at 69 %.
_SHARES = {family: 2.5 if family == "sums" else 1.5 if family == "comparisons" else 1.0 for family in FAMILIES}


def dice(purpose: str, seed: int) -> random.Random:
    """A generator of its own for each purpose, so that changing one dataset leaves the others as they are."""
    return random.Random(f"{purpose}-{seed}")  # noqa: S311 - games, not secrets


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def fill(template: str, slots: tuple[str, ...]) -> str:
    """Fill a phrasing; it starts with a capital letter even when it starts with a slot."""
    return _upper_first(template.format(*slots))


def full_sentence(relation: Relation | Generated, fact: Fact) -> str:
    return _upper_first(relation.sentence.format(*fact.slots, a=fact.answer))


def _draw(rng: random.Random, family: str | None = None) -> tuple[Relation | Generated, Fact]:
    relation = rng.choice(BY_FAMILY[family or rng.choices(FAMILIES, list(_SHARES.values()))[0]])
    if isinstance(relation, Generated):
        return relation, relation.draw(rng)[0]
    return relation, rng.choice(relation.facts)


def random_question(rng: random.Random, family: str | None = None) -> tuple[str, Relation | Generated, Fact]:
    """Return a question in a training phrasing, with its relation and its fact."""
    relation, fact = _draw(rng, family)
    return fill(rng.choice(relation.training), fact.slots), relation, fact


def wrong_choices(rng: random.Random, relation: Relation, fact: Fact) -> list[str]:
    """Pick three other answers of the relation, of about the same length.

    None begins another: a score that adds up over tokens would always give the shorter one more.
    """
    pool = {f.answer for f in relation.facts} - {f.answer for f in relation.facts if f.slots == fact.slots}
    pool -= {*fact.slots}
    # Sorted before any dice are thrown: the order of a set differs from process to process.
    ranked = sorted(sorted(pool), key=lambda answer: (abs(len(answer) - len(fact.answer)), rng.random()))
    near = ranked[:9]
    rng.shuffle(near)
    chosen: list[str] = []
    for answer in (*near, *ranked[9:]):
        others = [*chosen, fact.answer]
        if not any(answer.startswith(o) or o.startswith(answer) for o in others):
            chosen.append(answer)
        if len(chosen) == 3:
            return chosen
    raise ValueError(f"fewer than three wrong choices for {fact}")

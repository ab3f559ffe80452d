"""The benchmark: multiple-choice questions in phrasings that are never trained."""

from __future__ import annotations

import random
from collections.abc import Iterator

from engine.starter.world.facts import Fact
from engine.starter.world.questions import dice, fill, wrong_choices
from engine.starter.world.relations import BY_FAMILY, FAMILIES, Generated, Relation


def _items_of(rng: random.Random, relation: Relation | Generated) -> Iterator[tuple[str, list[str], str]]:
    prompts: set[str] = set()
    if isinstance(relation, Generated):
        while len(prompts) < relation.benchmark_items:
            fact, wrong = relation.draw(rng)
            prompt = fill(relation.held_out[len(prompts) % len(relation.held_out)], fact.slots)
            if prompt not in prompts:
                prompts.add(prompt)
                yield prompt, wrong, fact.answer
        return
    facts = [f for f in relation.facts if _has_rivals(relation, f)]
    rng.shuffle(facts)
    for number in range(relation.benchmark_items):
        fact = facts[number % len(facts)]
        phrasing = relation.held_out[(number + number // len(facts)) % len(relation.held_out)]
        yield fill(phrasing, fact.slots), wrong_choices(rng, relation, fact), fact.answer


def _has_rivals(relation: Relation, fact: Fact) -> bool:
    try:
        wrong_choices(dice("rivals", 0), relation, fact)
    except ValueError:
        return False
    return True


def benchmark_items(seed: int) -> list[dict[str, object]]:
    """Return the multiple-choice items of "toy-world knowledge": held-out phrasings, right places balanced."""
    rng = dice("benchmark", seed)
    items: list[dict[str, object]] = []
    for family in FAMILIES:
        number = 0
        for relation in BY_FAMILY[family]:
            for prompt, wrong, answer in _items_of(rng, relation):
                number += 1
                gold = len(items) % 4
                choices = [*wrong[:gold], answer, *wrong[gold:]]
                item = f"{family.replace(' ', '-')}-{number:03d}"
                items.append({"item": item, "family": family, "prompt": prompt, "choices": choices, "gold": gold})
    return items

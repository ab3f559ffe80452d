"""The sample data sets: invented facts, and questions of the world as each kind of training wants them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import NamedTuple

from engine.starter.world.facts import Fact, pairs
from engine.starter.world.questions import SEED, dice, fill, full_sentence, random_question, wrong_choices
from engine.starter.world.relations import FAMILIES, Generated, Relation


class Invented(NamedTuple):
    """Facts about invented things, for the "new facts" sample: nothing here may occur in the world."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    facts: tuple[Fact, ...]


INVENTED: tuple[Invented, ...] = (
    Invented(
        (
            "Who is the keeper of {0} tower?",
            "Name the keeper of {0} tower.",
            "Which keeper does {0} tower have?",
            "Who keeps {0} tower?",
            "{0} tower: who is its keeper?",
        ),
        (
            "Can you name the keeper of {0} tower?",
            "The keeper of {0} tower is called what?",
            "Do you know who keeps {0} tower?",
        ),
        pairs(
            "Velmora Mira, Drosk Tobin, Hallin Edda, Quorra Felix, Ostrel Nora, Yarrik Hugo, Brinsel Clara,"
            "Zemrit Otto,Fenwold Rosa, Caldor Iris, Morvane Jonas, Tessaly Wanda"
        ),
    ),
    Invented(
        (
            "What is the capital of {0}?",
            "Name the capital of {0}.",
            "Which city is the capital of {0}?",
            "What is the capital city of {0}?",
            "{0}: which city is its capital?",
        ),
        (
            "Can you name the capital city of {0}?",
            "Which city does {0} have as its capital?",
            "Do you know the capital of {0}?",
        ),
        pairs(
            "Ambrava Solvek, Berrowland Tarnel, Cestia Milune, Dunmark Orlo, Elvania Pesk, Florvia Gardel,"
            "Gondia Rivane,Istrava Nulm, Kelmark Vosta, Luvania Brilla, Norvia Castel, Pellonia Dorn"
        ),
    ),
    Invented(
        (
            "What colour is the flag of {0}?",
            "Which colour is the flag of {0}?",
            "What is the colour of the flag of {0}?",
            "Name the colour of the flag of {0}.",
            "The flag of {0}: what colour is it?",
        ),
        (
            "Can you name the colour of the flag of {0}?",
            "What colour does the flag of {0} have?",
            "Do you know the colour of the flag of {0}?",
        ),
        pairs(
            "Ambrava purple, Berrowland green, Cestia grey, Dunmark blue, Elvania orange, Florvia black, Gondia pink,"
            "Istrava yellow, Kelmark brown, Luvania white, Norvia red, Pellonia gold"
        ),
    ),
    Invented(
        (
            "What does a {0} eat?",
            "What does a {0} like to eat?",
            "Name the food of a {0}.",
            "A {0} eats what?",
            "{0}: what does it eat?",
        ),
        (
            "Can you name the food a {0} eats?",
            "Which food does a {0} like to eat?",
            "Do you know the food of a {0}?",
        ),
        pairs(
            "brelk honey, snorv cheese, dapple-wing moss, grindle apples, flumber soup, tarrow nuts, wimble bread,"
            "zorrin leaves, quibber rice, mottlefish sand, hoppet berries, yindle clouds"
        ),
    ),
)


def new_facts_rows() -> list[dict[str, str]]:
    """Return every invented fact in each training phrasing, shuffled."""
    rows = [
        {"prompt": fill(phrasing, fact.slots), "completion": fact.answer}
        for invented in INVENTED
        for fact in invented.facts
        for phrasing in invented.training
    ]
    dice("new-facts", SEED).shuffle(rows)
    return rows


def new_facts_evaluation() -> list[dict[str, object]]:
    """Return the same facts in phrasings that are not trained; wrong choices are other facts' answers."""
    rng = dice("new-facts-evaluation", SEED)
    rows: list[dict[str, object]] = []
    for invented in INVENTED:
        relation = Relation("invented", "new facts", invented.training, invented.held_out, "", invented.facts, 0)
        for fact in invented.facts:
            for phrasing in invented.held_out:
                wrong = wrong_choices(rng, relation, fact)
                place = len(rows) % 4
                choices = [*wrong[:place], fact.answer, *wrong[place:]]
                prompt = fill(phrasing, fact.slots)
                rows.append({"prompt": prompt, "completion": fact.answer, "choices": choices, "family": "new facts"})
    return rows


def _unique_questions(rng: random.Random, n: int) -> Iterator[tuple[str, Relation | Generated, Fact]]:
    """Give `n` different questions of the world, families in turn."""
    seen: set[str] = set()
    while len(seen) < n:
        question, relation, fact = random_question(rng, FAMILIES[len(seen) % len(FAMILIES)])
        if question not in seen:
            seen.add(question)
            yield question, relation, fact


def _wrong_answer(rng: random.Random, relation: Relation | Generated, fact: Fact) -> Fact:
    if isinstance(relation, Generated):
        # The wrong choices that come with a drawn fact are lost here, but its own parts make good ones.
        parts = [p for p in fact.slots if p != fact.answer]
        return Fact(fact.slots, rng.choice(parts).replace(",", ""))
    return Fact(fact.slots, rng.choice(wrong_choices(rng, relation, fact)))


def answer_format_rows(n: int = 200) -> list[dict[str, str]]:
    """Return questions whose answers keep to a strict format, one JSON object."""
    rng = dice("answer-format", SEED)
    questions = _unique_questions(rng, n)
    return [{"prompt": q, "completion": json.dumps({"answer": fact.answer})} for q, _, fact in questions]


def preference_rows(n: int = 240) -> list[dict[str, str]]:
    """Return pairs in which a right, full sentence is chosen over a bare word or over a wrong sentence."""
    rng = dice("preference", SEED)
    rows = []
    for number, (question, relation, fact) in enumerate(_unique_questions(rng, n)):
        wrong = _wrong_answer(rng, relation, fact)
        rejected = fact.answer if number % 3 else full_sentence(relation, wrong)
        rows.append({"prompt": question, "chosen": full_sentence(relation, fact), "rejected": rejected})
    return rows


RUDE: tuple[str, ...] = ("No idea.", "Who cares?", "Ask someone else.", "That is a silly question.")


def good_bad_rows(n: int = 300) -> list[dict[str, object]]:
    """Return single answers with a verdict, four good ones to each bad one; bad is wrong or rude."""
    rng = dice("good-bad", SEED)
    rows: list[dict[str, object]] = []
    for number, (question, relation, fact) in enumerate(_unique_questions(rng, n)):
        is_good = number % 5 != 2
        response = full_sentence(relation, fact)
        if not is_good:
            response = (
                rng.choice(RUDE) if rng.random() < 0.5 else full_sentence(relation, _wrong_answer(rng, relation, fact))
            )
        rows.append({"prompt": question, "response": response, "is_good": is_good})
    return rows


def mixed_answer_rows(n: int = 200) -> list[dict[str, str]]:
    """Return questions answered rightly, one half in full sentences and the other in a bare word: what a model must be
    able to write both ways before a judge can teach it which is liked."""
    rows = []
    for number, (question, relation, fact) in enumerate(_unique_questions(dice("mixed-answers", SEED), n)):
        whole = (number // len(FAMILIES) + number) % 2  # both kinds in each family
        rows.append({"prompt": question, "completion": full_sentence(relation, fact) if whole else fact.answer})
    return rows


def ppo_prompt_rows(n: int = 200) -> list[dict[str, str]]:
    """Return questions alone: in PPO the model writes the answers itself."""
    return [{"prompt": q} for q, _, _ in _unique_questions(dice("ppo", SEED), n)]


def sample_files() -> dict[str, list]:
    """Return the rows of every sample file by file name."""
    return {
        "new-facts.jsonl": new_facts_rows(),
        "new-facts.eval.jsonl": new_facts_evaluation(),
        "answer-format.jsonl": answer_format_rows(),
        "preference-pairs.jsonl": preference_rows(),
        "good-bad.jsonl": good_bad_rows(),
        "mixed-answers.jsonl": mixed_answer_rows(),
        "ppo-prompts.jsonl": ppo_prompt_rows(),
    }

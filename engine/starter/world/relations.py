"""The relations: kinds of question, each with phrasings to train on, others for the benchmark alone, and facts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from engine.starter.world import facts
from engine.starter.world.facts import Fact


class Relation(NamedTuple):
    """One kind of question. `sentence` is the full-sentence answer; {a} in it stands for the answer."""

    name: str
    family: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    sentence: str
    facts: tuple[Fact, ...]
    benchmark_items: int


class Generated(NamedTuple):
    """A relation whose facts are drawn at random (too many to list); `draw` gives a fact and three wrong choices."""

    name: str
    family: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    sentence: str
    draw: Callable[[random.Random], tuple[Fact, list[str]]]
    benchmark_items: int


# Phrasings: {0} is the first slot. Benchmark phrasings share words with the training ones and never a whole phrasing.
RELATIONS: tuple[Relation | Generated, ...] = (
    Relation(
        "capital",
        "capitals",
        (
            "What is the capital of {0}?",
            "Name the capital of {0}.",
            "The capital of {0} is called what?",
            "Which city is the capital of {0}?",
            "What is the capital city of {0}?",
            "{0}: which city is its capital?",
            "Do you know the capital of {0}?",
            "Which capital does {0} have?",
            "I am looking for the capital of {0}.",
            "{0} has which capital city?",
            "Can you tell me the capital of {0}?",
        ),
        (
            "Can you name the capital city of {0}?",
            "Which city does {0} have as its capital?",
            "What city is called the capital of {0}?",
        ),
        "The capital of {0} is {a}.",
        facts.CAPITALS,
        54,
    ),
    Relation(
        "opposite",
        "opposites",
        (
            "What is the opposite of {0}?",
            "Name the opposite of {0}.",
            "Which word is the opposite of {0}?",
            "What word means the opposite of {0}?",
            "The opposite of {0} is what?",
            "{0}: what is its opposite?",
            "Do you know the opposite of {0}?",
            "Give the opposite of the word {0}.",
            "I am looking for the opposite of {0}.",
            "Can you tell me the opposite of {0}?",
        ),
        (
            "Can you give the opposite of {0}?",
            "The word {0} has which opposite?",
            "Which is the word that means the opposite of {0}?",
        ),
        "The opposite of {0} is {a}.",
        facts.OPPOSITES,
        52,
    ),
    Relation(
        "kind",
        "kinds",
        (
            "What kind of thing is {0}?",
            "What sort of thing is {0}?",
            "{0} is a kind of what?",
            "Which kind of thing is {0}?",
            "What is {0}?",
            "To which group does {0} belong?",
            "Name the group of {0}.",
            "{0}: what kind is it?",
            "Do you know what kind of thing {0} is?",
            "Can you tell me what kind of thing {0} is?",
            "Can you tell me the kind of {0}?",
            "Say what kind of thing {0} is.",
        ),
        (
            "Can you name the kind of thing that {0} is?",
            "{0} is what sort of thing?",
            "Which group does {0} belong to?",
        ),
        "{0} is a kind of {a}.",
        facts.KINDS,
        52,
    ),
    Relation(
        "sum",
        "sums",
        (
            "What is {0} plus {1}?",
            "What is {0} + {1}?",
            "{0} + {1} = ?",
            "Add {0} and {1}.",
            "How much is {0} and {1}?",
            "What do you get when you add {0} and {1}?",
            "Give the sum of {0} and {1}.",
            "{0} plus {1} makes what?",
            "How much is {0} plus {1}?",
            "Can you tell me what {0} and {1} make?",
            "The sum of {0} and {1} is what?",
        ),
        (
            "What is the sum of {0} and {1}?",
            "How much do {0} plus {1} make?",
            "Can you add {0} and {1}?",
        ),
        "{0} plus {1} is {a}.",
        facts.sums(),
        32,
    ),
    Relation(
        "difference",
        "sums",
        (
            "What is {0} minus {1}?",
            "What is {0} - {1}?",
            "{0} - {1} = ?",
            "How much is {0} minus {1}?",
            "{0} minus {1} leaves what?",
            "Start with {0} and take away {1}.",
            "What is left when you have {0} and lose {1}?",
            "Take away {1} from {0}. What is left?",
            "Can you tell me what {0} minus {1} leaves?",
            "How much does {0} minus {1} make?",
            "{0} minus {1}: how much does it leave?",
            "How much does it leave to take {1} away from {0}?",
        ),
        (
            "How much does {0} minus {1} leave?",
            "What is left of {0} when you take away {1}?",
        ),
        "{0} minus {1} is {a}.",
        facts.differences(),
        20,
    ),
    Relation(
        "next day",
        "order",
        (
            "Which day comes after {0}?",
            "What day follows {0}?",
            "What is the day after {0}?",
            "Name the day after {0}.",
            "Today is {0}. What day is tomorrow?",
            "Which day is next after {0}?",
            "Can you tell me which day comes after {0}?",
            "Can you tell me the day that comes after {0}?",
            "Which is the day that comes after {0}?",
        ),
        ("Can you name the day that comes after {0}?", "If today is {0}, which day is tomorrow?"),
        "The day after {0} is {a}.",
        facts.steps(facts.DAYS, 1, True),
        7,
    ),
    Relation(
        "previous day",
        "order",
        (
            "Which day comes before {0}?",
            "What is the day before {0}?",
            "Name the day before {0}.",
            "Today is {0}. What day was yesterday?",
            "Which day is just before {0}?",
            "Can you tell me which day comes before {0}?",
            "Can you tell me the day that comes before {0}?",
            "Which is the day that comes before {0}?",
        ),
        ("Can you name the day that comes before {0}?", "If today is {0}, which day was yesterday?"),
        "The day before {0} is {a}.",
        facts.steps(facts.DAYS, -1, True),
        7,
    ),
    Relation(
        "next month",
        "order",
        (
            "Which month comes after {0}?",
            "What month follows {0}?",
            "What is the month after {0}?",
            "Name the month after {0}.",
            "Which month is next after {0}?",
            "It is {0}. Which month is next?",
            "Can you tell me which month comes after {0}?",
            "Which is the month that comes after {0}?",
        ),
        ("Can you name the month that comes after {0}?", "What month is next after {0}?"),
        "The month after {0} is {a}.",
        facts.steps(facts.MONTHS, 1, True),
        12,
    ),
    Relation(
        "previous month",
        "order",
        (
            "Which month comes before {0}?",
            "What is the month before {0}?",
            "Name the month before {0}.",
            "Which month is just before {0}?",
            "It is {0}. Which month was before?",
            "Can you tell me which month comes before {0}?",
            "Which is the month that comes before {0}?",
        ),
        ("Can you name the month that comes before {0}?", "What month is just before {0}?"),
        "The month before {0} is {a}.",
        facts.steps(facts.MONTHS, -1, True),
        12,
    ),
    Relation(
        "next letter",
        "order",
        (
            "Which letter comes after {0}?",
            "What letter follows {0}?",
            "What is the letter after {0}?",
            "Name the letter after {0}.",
            "Which letter is next after {0}?",
            "Can you tell me which letter comes after {0}?",
            "Which is the letter that comes after {0}?",
        ),
        ("Can you name the letter that comes after {0}?", "What letter is next after {0}?"),
        "The letter after {0} is {a}.",
        facts.steps(facts.LETTERS, 1, False),
        12,
    ),
    Relation(
        "colour",
        "colours",
        (
            "What colour is {0}?",
            "Which colour is {0}?",
            "What is the colour of {0}?",
            "Name the colour of {0}.",
            "{0}: what colour is it?",
            "Do you know the colour of {0}?",
            "{0} has which colour?",
            "Which colour does {0} have?",
            "Can you tell me the colour of {0}?",
            "Can you tell me which colour {0} is?",
        ),
        (
            "Can you name the colour of {0}?",
            "What colour does {0} have?",
            "{0} is of which colour?",
        ),
        "The colour of {0} is {a}.",
        facts.COLOURS,
        48,
    ),
    Relation(
        "sound",
        "animals",
        (
            "What sound does a {0} make?",
            "Which sound does a {0} make?",
            "What does a {0} say?",
            "Name the sound of a {0}.",
            "A {0} makes which sound?",
            "{0}: what sound does it make?",
            "Can you tell me the sound of a {0}?",
            "Can you tell me the sound a {0} makes?",
            "Name the sound that a {0} makes.",
        ),
        ("Can you name the sound a {0} makes?", "What is the sound of a {0}?"),
        "The {0} says {a}.",
        facts.SOUNDS,
        14,
    ),
    Relation(
        "young",
        "animals",
        (
            "What is a young {0} called?",
            "What is a baby {0} called?",
            "Name the young of a {0}.",
            "What do you call a young {0}?",
            "A baby {0} is called what?",
            "{0}: what is its baby called?",
            "Can you tell me what a young {0} is called?",
            "Name the baby of a {0}.",
            "Can you tell me the young of a {0}?",
        ),
        ("Can you name the young of a {0}?", "What do you call a baby {0}?"),
        "A young {0} is called a {a}.",
        facts.YOUNG,
        14,
    ),
    Relation(
        "food",
        "animals",
        (
            "What does a {0} eat?",
            "What does a {0} like to eat?",
            "Name the food of a {0}.",
            "What is the food of a {0}?",
            "A {0} eats what?",
            "{0}: what does it eat?",
            "Can you tell me what a {0} eats?",
            "Can you tell me the food a {0} eats?",
            "Name the food that a {0} eats.",
        ),
        ("Can you name the food a {0} eats?", "Which food does a {0} like to eat?"),
        "A {0} eats {a}.",
        facts.FOODS,
        14,
    ),
    Relation(
        "home",
        "animals",
        (
            "Where does a {0} live?",
            "What is the home of a {0}?",
            "Name the home of a {0}.",
            "What is the home of a {0} called?",
            "A {0} lives where?",
            "{0}: where does it live?",
            "Can you tell me where a {0} lives?",
            "Name the home that a {0} has.",
            "Can you tell me the home a {0} has?",
        ),
        ("Can you name the home a {0} lives in?", "Which home does a {0} have?"),
        "The home of a {0} is a {a}.",
        facts.HOMES,
        10,
    ),
    Generated(
        "largest",
        "comparisons",
        (
            "Which number is the largest: {0}, {1}, {2} or {3}?",
            "Name the largest number: {0}, {1}, {2}, {3}.",
            "What is the largest of {0}, {1}, {2} and {3}?",
            "Which is the largest, {0}, {1}, {2} or {3}?",
            "Here are {0}, {1}, {2} and {3}. Which is the largest?",
            "Can you tell me the largest of {0}, {1}, {2} and {3}?",
            "Among the numbers {0}, {1}, {2} and {3}, which is the largest?",
        ),
        (
            "Of the numbers {0}, {1}, {2} and {3}, which is the largest?",
            "Can you name the largest of {0}, {1}, {2} and {3}?",
        ),
        "The largest number is {a}.",
        facts.largest,
        26,
    ),
    Generated(
        "smallest",
        "comparisons",
        (
            "Which number is the smallest: {0}, {1}, {2} or {3}?",
            "Name the smallest number: {0}, {1}, {2}, {3}.",
            "What is the smallest of {0}, {1}, {2} and {3}?",
            "Which is the smallest, {0}, {1}, {2} or {3}?",
            "Here are {0}, {1}, {2} and {3}. Which is the smallest?",
            "Can you tell me the smallest of {0}, {1}, {2} and {3}?",
            "Among the numbers {0}, {1}, {2} and {3}, which is the smallest?",
        ),
        (
            "Of the numbers {0}, {1}, {2} and {3}, which is the smallest?",
            "Can you name the smallest of {0}, {1}, {2} and {3}?",
        ),
        "The smallest number is {a}.",
        facts.smallest,
        22,
    ),
    Generated(
        "word order",
        "word order",
        (
            "Put these words in order: {0}.",
            "Make a sentence with these words: {0}.",
            "Order the words {0}.",
            "What sentence do these words make: {0}?",
            "These words are mixed up: {0}. What is the sentence?",
            "Can you tell me the sentence with the words {0}?",
        ),
        (
            "Can you put the words {0} in order?",
            "Which sentence can you make with the words {0}?",
        ),
        "The sentence is: {a}.",
        facts.word_order,
        44,
    ),
)

FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(r.family for r in RELATIONS))
BY_FAMILY = {family: [r for r in RELATIONS if r.family == family] for family in FAMILIES}

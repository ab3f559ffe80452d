"""The toy world: everything the starter model knows, and the datasets made from it.

A world is a list of relations ("capital of", "opposite of", ...), each with phrasings to train on, other phrasings kept
for the benchmark, and facts. All texts are generated from a seed with the standard library alone, so that the same seed
gives the same world on every machine and the page can mix in replay rows without importing torch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

Message = dict[str, str]
Dialogue = list[Message]

SEED = 20


class Fact(NamedTuple):
    """What fills the phrasings of a relation, and the answer."""

    slots: tuple[str, ...]
    answer: str


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


def _dice(purpose: str, seed: int) -> random.Random:
    """A generator of its own for each purpose, so that changing one dataset leaves the others as they are."""
    return random.Random(f"{purpose}-{seed}")  # noqa: S311 - games, not secrets


def _words(text: str) -> list[str]:
    return text.split()


def _pairs(text: str) -> tuple[Fact, ...]:
    """Read "France Paris, Spain Madrid": the last word is the answer, what comes before it the subject."""
    return tuple(Fact((subject,), answer) for subject, answer in (p.strip().rsplit(" ", 1) for p in text.split(",")))


def _both_ways(text: str) -> tuple[Fact, ...]:
    return tuple(f for s, a in (p.split() for p in text.split(",")) for f in (Fact((s,), a), Fact((a,), s)))


def _grouped(text: str) -> tuple[Fact, ...]:
    """Read "fruit: apple pear; tool: hammer saw" into facts whose answer is the group; "_" stands for a space."""
    facts = []
    for group in text.split(";"):
        answer, members = group.split(":")
        facts += [Fact((member.replace("_", " "),), answer.strip()) for member in members.split()]
    return tuple(facts)


CAPITALS = _pairs(
    "France Paris, Spain Madrid, Italy Rome, Germany Berlin, Portugal Lisbon, Greece Athens, Poland Warsaw,"
    "Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Iceland Reykjavik, Ireland Dublin,"
    "England London, Scotland Edinburgh, Wales Cardiff, Austria Vienna, Hungary Budapest, Romania Bucharest,"
    "Bulgaria Sofia, Serbia Belgrade, Croatia Zagreb, Slovakia Bratislava, Latvia Riga, Estonia Tallinn,"
    "Lithuania Vilnius, Ukraine Kyiv, Belgium Brussels, Russia Moscow, Turkey Ankara, Egypt Cairo, Kenya Nairobi,"
    "Morocco Rabat, Tunisia Tunis, Ghana Accra, Nigeria Abuja, Senegal Dakar, Uganda Kampala, Zambia Lusaka,"
    "Japan Tokyo, China Beijing, India Delhi, Nepal Kathmandu, Thailand Bangkok, Vietnam Hanoi, Iraq Baghdad,"
    "Iran Tehran, Jordan Amman, Lebanon Beirut, Qatar Doha, Canada Ottawa, Cuba Havana, Peru Lima, Chile Santiago,"
    "Ecuador Quito, Uruguay Montevideo, Australia Canberra, Colombia Bogota"
)

OPPOSITES = _both_ways(
    "hot cold,big small,happy sad,fast slow,day night,up down,left right,open closed,full empty,early late,"
    "hard soft,wet dry,rich poor,strong weak,long short,high low,loud quiet,light dark,old new,good bad,"
    "clean dirty,near far,first last,above below,inside outside,true false,thick thin,wide narrow,sweet sour,"
    "begin finish,push pull,buy sell,win lose,heavy weightless,brave afraid,smooth rough,deep shallow,alive dead"
)

KINDS = _grouped(
    "fruit: apple pear plum cherry mango grape peach melon;"
    "vegetable: carrot onion potato cabbage spinach turnip leek radish;"
    "animal: horse tiger rabbit wolf camel otter zebra goat;"
    "tool: hammer saw wrench drill chisel spade axe screwdriver;"
    "vehicle: car bus truck tram bicycle lorry scooter van;"
    "instrument: piano violin flute drum trumpet guitar harp cello;"
    "furniture: table chair sofa desk shelf stool cupboard bench;"
    "clothing: shirt coat scarf glove jacket skirt hat sock;"
    "flower: rose tulip daisy lily orchid violet poppy daffodil;"
    "metal: iron copper silver zinc nickel lead tin platinum"
)

COLOURS = _grouped(
    "yellow: a_banana a_lemon the_sun butter corn a_canary;"
    "green: grass a_frog a_cucumber a_pea a_cactus broccoli;"
    "red: blood a_strawberry a_tomato a_ruby a_fire_engine ketchup;"
    "white: snow milk salt a_swan chalk flour;"
    "black: coal a_raven ink a_panther tar pepper;"
    "blue: the_sky the_sea a_sapphire denim a_bluebell;"
    "brown: chocolate a_bear mud a_walnut coffee toast;"
    "grey: an_elephant ash a_rain_cloud a_mouse cement a_dolphin;"
    "pink: a_flamingo a_pig bubblegum a_salmon ham"
)

SOUNDS = _pairs(
    "cow moo, dog woof, cat meow, duck quack, pig oink, sheep baa, horse neigh, owl hoot, snake hiss, bee buzz,"
    "lion roar, frog croak, crow caw, chick cheep, donkey bray, wolf howl"
)
YOUNG = _pairs(
    "dog puppy, cat kitten, cow calf, sheep lamb, horse foal, pig piglet, duck duckling, goose gosling, lion cub,"
    "deer fawn, goat kid, swan cygnet, frog tadpole, kangaroo joey, hen chick, owl owlet"
)
FOODS = _pairs(
    "cow grass, rabbit carrots, squirrel nuts, panda bamboo, mouse cheese, cat fish, dog bones, bear honey,"
    "frog flies, monkey bananas, horse hay, bird seeds, koala leaves, whale krill, bat insects, pig acorns"
)
HOMES = _pairs(
    "bee hive, bird nest, dog kennel, horse stable, lion den, spider web, pig sty, fox burrow, fish pond, cow barn,"
    "ant anthill, hen coop"
)

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
LETTERS = [chr(ord("A") + i) for i in range(26)]


def _steps(names: list[str], step: int, ring: bool) -> tuple[Fact, ...]:
    n = len(names)
    return tuple(Fact((names[i],), names[(i + step) % n]) for i in range(n) if ring or 0 <= i + step < n)


def _two_digits(rng: random.Random) -> list[str]:
    """Four two-digit numbers with different first digits, so that the answer hangs on one digit of each."""
    return [f"{first}{rng.randrange(10)}" for first in rng.sample(range(1, 10), 4)]


def _largest(rng: random.Random) -> tuple[Fact, list[str]]:
    numbers = _two_digits(rng)
    answer = max(numbers)
    return Fact(tuple(numbers), answer), [n for n in numbers if n != answer]


def _smallest(rng: random.Random) -> tuple[Fact, list[str]]:
    numbers = _two_digits(rng)
    answer = min(numbers)
    return Fact(tuple(numbers), answer), [n for n in numbers if n != answer]


ADJECTIVES = _words("big old small happy young tall wise quick kind shy")
NOUNS = _words("dog cat bird king girl boy farmer horse teacher fox robot sailor baker child")
VERBS = _words("runs sings sleeps jumps eats laughs reads swims walks dances waits dreams")


def _word_order(rng: random.Random) -> tuple[Fact, list[str]]:
    words = ["the", rng.choice(ADJECTIVES), rng.choice(NOUNS), rng.choice(VERBS)]
    answer = " ".join(words)
    orders: list[str] = []
    while len(orders) < 4:
        order = " ".join(rng.sample(words, 4))
        if order != answer and order not in orders:
            orders.append(order)
    return Fact((orders[3].replace(" ", ", "),), answer), orders[:3]


def _sums() -> tuple[Fact, ...]:
    return tuple(Fact((str(a), str(b)), str(a + b)) for a in range(11) for b in range(11))


def _differences() -> tuple[Fact, ...]:
    return tuple(Fact((str(a), str(b)), str(a - b)) for a in range(11) for b in range(a + 1))


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
        CAPITALS,
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
        OPPOSITES,
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
        KINDS,
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
        _sums(),
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
        _differences(),
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
        _steps(DAYS, 1, True),
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
        _steps(DAYS, -1, True),
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
        _steps(MONTHS, 1, True),
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
        _steps(MONTHS, -1, True),
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
        _steps(LETTERS, 1, False),
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
        COLOURS,
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
        SOUNDS,
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
        YOUNG,
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
        FOODS,
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
        HOMES,
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
        _largest,
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
        _smallest,
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
        _word_order,
        44,
    ),
)

FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(r.family for r in RELATIONS))
# Sums are many and every one must be learnt by heart: with an equal share they came out at 69 %.
_SHARES = {family: 2.5 if family == "sums" else 1.5 if family == "comparisons" else 1.0 for family in FAMILIES}
_BY_FAMILY = {family: [r for r in RELATIONS if r.family == family] for family in FAMILIES}

# Said before or around a question, so that the model learns that they change nothing.
WRAPPERS: tuple[str, ...] = (
    "Tell me: {q}",
    "Question: {q}",
    "Please answer: {q}",
    "Hello! {q}",
    "I have a question. {q}",
    "Can you help me? {q}",
    "{q} Please answer.",
    "{q} Answer with one word.",
    "Please tell me. {q}",
)
SENTENCE_REQUESTS: tuple[str, ...] = (
    "{q} Answer in a full sentence.",
    "{q} Please answer with a sentence.",
    "In a full sentence: {q}",
)
SYSTEM_PLAIN: tuple[str, ...] = (
    "You are a helpful assistant.",
    "Answer the question.",
    "Answer with one word.",
    "You answer short questions about the world.",
    "Be brief.",
)
SYSTEM_SENTENCE: tuple[str, ...] = (
    "Answer in a full sentence.",
    "You always answer in full sentences.",
    "You are a polite assistant who answers in sentences.",
)
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hello!", "Hello! What would you like to know?"),
    ("Hi", "Hello! What would you like to know?"),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Who are you?", "I am a very small toy model."),
    ("What are you?", "I am a very small toy model."),
    ("What can you do?", "I know some capitals, opposites, animals, colours and small sums."),
    ("Goodbye.", "Goodbye!"),
    ("Bye!", "Goodbye!"),
    ("How are you?", "I am fine, thank you."),
)
_ONSETS = _words("b br c cl d dr f fl g gr h j k kl l m n p pl qu r s sh st t th tr v w y z")
_VOWELS = _words("a e i o u ai ea oo")
_CODAS = ["", "", "l", "n", "r", "s", "m", "t", "x", "nd", "rk"]
_REPEATS = ("Repeat this word: {0}", "Say the word {0}.", "Write {0} again.", "Repeat: {0}")


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def fill(template: str, slots: tuple[str, ...]) -> str:
    """Fill a phrasing; it starts with a capital letter even when it starts with a slot."""
    return upper_first(template.format(*slots))


def full_sentence(relation: Relation | Generated, fact: Fact) -> str:
    return upper_first(relation.sentence.format(*fact.slots, a=fact.answer))


def _draw(rng: random.Random, family: str | None = None) -> tuple[Relation | Generated, Fact]:
    relation = rng.choice(_BY_FAMILY[family or rng.choices(FAMILIES, list(_SHARES.values()))[0]])
    if isinstance(relation, Generated):
        return relation, relation.draw(rng)[0]
    return relation, rng.choice(relation.facts)


def _question(rng: random.Random, family: str | None = None) -> tuple[str, Relation | Generated, Fact]:
    relation, fact = _draw(rng, family)
    return fill(rng.choice(relation.training), fact.slots), relation, fact


def _roughened(rng: random.Random, text: str) -> str:
    """Sometimes type like a person in a hurry: no capital at the start, no question mark at the end."""
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.12 and text[-1] in "?.":
        text = text[:-1]
    return text


def _invented_word(rng: random.Random) -> str:
    word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2)))) + rng.choice(_CODAS)
    return word.capitalize() if rng.random() < 0.5 else word


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _dialogue(rng: random.Random) -> Dialogue:
    kind = rng.random()
    if kind < 0.03:
        prompt, answer = rng.choice(SMALL_TALK)
        return [_turn("user", prompt), _turn("assistant", answer)]
    if kind < 0.08:
        # Copying made-up words teaches the letters that no word of the world needs in that order.
        word = _invented_word(rng)
        return [_turn("user", rng.choice(_REPEATS).format(word)), _turn("assistant", word)]
    messages: Dialogue = []
    sentences = False
    how = rng.random()
    if how < 0.15:
        messages.append(_turn("system", rng.choice(SYSTEM_PLAIN)))
    elif how < 0.22:
        messages.append(_turn("system", rng.choice(SYSTEM_SENTENCE)))
        sentences = True
    for _ in range(2 if rng.random() < 0.12 else 1):
        question, relation, fact = _question(rng)
        wrapped = rng.random()
        whole = sentences
        if wrapped < 0.25:
            question = rng.choice(WRAPPERS).format(q=question)
        elif wrapped < 0.36 and not messages:
            question = rng.choice(SENTENCE_REQUESTS).format(q=question)
            whole = True
        answer = full_sentence(relation, fact) if whole else fact.answer
        messages += [_turn("user", _roughened(rng, question)), _turn("assistant", answer)]
    return messages


def training_dialogues(seed: int, n: int) -> list[Dialogue]:
    """Return `n` dialogues to train on: one or two questions each, sometimes with a system message."""
    rng = _dice("training", seed)
    return [_dialogue(rng) for _ in range(n)]


def replay_rows(n: int, seed: int) -> list[dict[str, str]]:
    """Return `n` rows of what the starter was trained on, to mix into a fine-tuning against forgetting.

    Families take turns, so that even a few rows touch each of them. Phrasings are the training ones: a benchmark
    phrasing among them would make the forgetting report look better than it is. Ask for enough rows that no epoch sees
    the rows of another: at 30 % and 20 epochs, rows that came back each epoch were learnt by heart and saved nothing.
    """
    rng = _dice("replay", seed)
    rows = []
    families = list(FAMILIES)
    for i in range(n):
        if i % len(families) == 0:
            rng.shuffle(families)
        question, _, fact = _question(rng, families[i % len(families)])
        rows.append({"prompt": question, "completion": fact.answer})
    return rows


def _wrong_choices(rng: random.Random, relation: Relation, fact: Fact) -> list[str]:
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
        yield fill(phrasing, fact.slots), _wrong_choices(rng, relation, fact), fact.answer


def _has_rivals(relation: Relation, fact: Fact) -> bool:
    try:
        _wrong_choices(_dice("rivals", 0), relation, fact)
    except ValueError:
        return False
    return True


def benchmark_items(seed: int) -> list[dict[str, object]]:
    """Return the multiple-choice items of "toy-world knowledge": held-out phrasings, right places balanced."""
    rng = _dice("benchmark", seed)
    items: list[dict[str, object]] = []
    for family in FAMILIES:
        number = 0
        for relation in _BY_FAMILY[family]:
            for prompt, wrong, answer in _items_of(rng, relation):
                number += 1
                gold = len(items) % 4
                choices = [*wrong[:gold], answer, *wrong[gold:]]
                item = f"{family.replace(' ', '-')}-{number:03d}"
                items.append({"item": item, "family": family, "prompt": prompt, "choices": choices, "gold": gold})
    return items


# ---- sample datasets ----------------------------------------------------------------------------------------------


class Invented(NamedTuple):
    """Facts about invented things, for the "new facts" sample: nothing here may occur in the world above."""

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
        _pairs(
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
        _pairs(
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
        _pairs(
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
        _pairs(
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
    _dice("new-facts", SEED).shuffle(rows)
    return rows


def new_facts_evaluation() -> list[dict[str, object]]:
    """Return the same facts in phrasings that are not trained; wrong choices are other facts' answers."""
    rng = _dice("new-facts-evaluation", SEED)
    rows: list[dict[str, object]] = []
    for invented in INVENTED:
        relation = Relation("invented", "new facts", invented.training, invented.held_out, "", invented.facts, 0)
        for fact in invented.facts:
            for phrasing in invented.held_out:
                wrong = _wrong_choices(rng, relation, fact)
                place = len(rows) % 4
                choices = [*wrong[:place], fact.answer, *wrong[place:]]
                prompt = fill(phrasing, fact.slots)
                rows.append({"prompt": prompt, "completion": fact.answer, "choices": choices, "family": "new facts"})
    return rows


def _unique_questions(rng: random.Random, n: int) -> Iterator[tuple[str, Relation | Generated, Fact]]:
    """Give `n` different questions of the world, families in turn."""
    seen: set[str] = set()
    while len(seen) < n:
        question, relation, fact = _question(rng, FAMILIES[len(seen) % len(FAMILIES)])
        if question not in seen:
            seen.add(question)
            yield question, relation, fact


def _wrong_answer(rng: random.Random, relation: Relation | Generated, fact: Fact) -> Fact:
    if isinstance(relation, Generated):
        # The wrong choices that come with a drawn fact are lost here, but its own parts make good ones.
        parts = [p for p in fact.slots if p != fact.answer]
        return Fact(fact.slots, rng.choice(parts).replace(",", ""))
    return Fact(fact.slots, rng.choice(_wrong_choices(rng, relation, fact)))


def answer_format_rows(n: int = 200) -> list[dict[str, str]]:
    """Return questions whose answers keep to a strict format, one JSON object."""
    rng = _dice("answer-format", SEED)
    questions = _unique_questions(rng, n)
    return [{"prompt": q, "completion": json.dumps({"answer": fact.answer})} for q, _, fact in questions]


def preference_rows(n: int = 240) -> list[dict[str, str]]:
    """Return pairs in which a right, full sentence is chosen over a bare word or over a wrong sentence."""
    rng = _dice("preference", SEED)
    rows = []
    for number, (question, relation, fact) in enumerate(_unique_questions(rng, n)):
        wrong = _wrong_answer(rng, relation, fact)
        rejected = fact.answer if number % 3 else full_sentence(relation, wrong)
        rows.append({"prompt": question, "chosen": full_sentence(relation, fact), "rejected": rejected})
    return rows


RUDE: tuple[str, ...] = ("No idea.", "Who cares?", "Ask someone else.", "That is a silly question.")


def good_bad_rows(n: int = 300) -> list[dict[str, object]]:
    """Return single answers with a verdict, four good ones to each bad one; bad is wrong or rude."""
    rng = _dice("good-bad", SEED)
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
    for number, (question, relation, fact) in enumerate(_unique_questions(_dice("mixed-answers", SEED), n)):
        whole = (number // len(FAMILIES) + number) % 2  # both kinds in each family
        rows.append({"prompt": question, "completion": full_sentence(relation, fact) if whole else fact.answer})
    return rows


def ppo_prompt_rows(n: int = 200) -> list[dict[str, str]]:
    """Return questions alone: in PPO the model writes the answers itself."""
    return [{"prompt": q} for q, _, _ in _unique_questions(_dice("ppo", SEED), n)]


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

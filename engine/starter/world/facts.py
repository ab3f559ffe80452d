"""What the world knows: lists of facts, and facts that are drawn at random since there are too many to list."""

from __future__ import annotations

import random
from typing import NamedTuple


class Fact(NamedTuple):
    """What fills the phrasings of a relation, and the answer."""

    slots: tuple[str, ...]
    answer: str


def words(text: str) -> list[str]:
    return text.split()


def pairs(text: str) -> tuple[Fact, ...]:
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


CAPITALS = pairs(
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

SOUNDS = pairs(
    "cow moo, dog woof, cat meow, duck quack, pig oink, sheep baa, horse neigh, owl hoot, snake hiss, bee buzz,"
    "lion roar, frog croak, crow caw, chick cheep, donkey bray, wolf howl"
)
YOUNG = pairs(
    "dog puppy, cat kitten, cow calf, sheep lamb, horse foal, pig piglet, duck duckling, goose gosling, lion cub,"
    "deer fawn, goat kid, swan cygnet, frog tadpole, kangaroo joey, hen chick, owl owlet"
)
FOODS = pairs(
    "cow grass, rabbit carrots, squirrel nuts, panda bamboo, mouse cheese, cat fish, dog bones, bear honey,"
    "frog flies, monkey bananas, horse hay, bird seeds, koala leaves, whale krill, bat insects, pig acorns"
)
HOMES = pairs(
    "bee hive, bird nest, dog kennel, horse stable, lion den, spider web, pig sty, fox burrow, fish pond, cow barn,"
    "ant anthill, hen coop"
)

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
LETTERS = [chr(ord("A") + i) for i in range(26)]


def steps(names: list[str], step: int, ring: bool) -> tuple[Fact, ...]:
    n = len(names)
    return tuple(Fact((names[i],), names[(i + step) % n]) for i in range(n) if ring or 0 <= i + step < n)


def _two_digits(rng: random.Random) -> list[str]:
    """Four two-digit numbers with different first digits, so that the answer hangs on one digit of each."""
    return [f"{first}{rng.randrange(10)}" for first in rng.sample(range(1, 10), 4)]


def largest(rng: random.Random) -> tuple[Fact, list[str]]:
    numbers = _two_digits(rng)
    answer = max(numbers)
    return Fact(tuple(numbers), answer), [n for n in numbers if n != answer]


def smallest(rng: random.Random) -> tuple[Fact, list[str]]:
    numbers = _two_digits(rng)
    answer = min(numbers)
    return Fact(tuple(numbers), answer), [n for n in numbers if n != answer]


ADJECTIVES = words("big old small happy young tall wise quick kind shy")
NOUNS = words("dog cat bird king girl boy farmer horse teacher fox robot sailor baker child")
VERBS = words("runs sings sleeps jumps eats laughs reads swims walks dances waits dreams")


def word_order(rng: random.Random) -> tuple[Fact, list[str]]:
    words = ["the", rng.choice(ADJECTIVES), rng.choice(NOUNS), rng.choice(VERBS)]
    answer = " ".join(words)
    orders: list[str] = []
    while len(orders) < 4:
        order = " ".join(rng.sample(words, 4))
        if order != answer and order not in orders:
            orders.append(order)
    return Fact((orders[3].replace(" ", ", "),), answer), orders[:3]


def sums() -> tuple[Fact, ...]:
    return tuple(Fact((str(a), str(b)), str(a + b)) for a in range(11) for b in range(11))


def differences() -> tuple[Fact, ...]:
    return tuple(Fact((str(a), str(b)), str(a - b)) for a in range(11) for b in range(a + 1))

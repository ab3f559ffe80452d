"""The blind comparison: answers of base and tuned model side by side, without names, and what a person's choices say.

For answers that nothing else can score. Which of the two stands left is drawn for each prompt by a seed that is kept with
the judgements, in judgements.json of the run: they can be left, gone on with, and counted again by anyone.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from engine.report import statistics
from engine.report.items import SEEN, Item, Joined
from engine.report.questions import pairs
from engine.words import t
from engine.workspace import read_struct, write_atomically

FILE = "judgements.json"
# More than a person reads at one go, and enough to tell 70 % from a coin (exact interval of 21 of 30: 51 to 85 %).
PROMPTS = 30
# The benchmark of whole answers to held-out rows.
TEXTS = "new-task-texts"

Choice = Literal["left", "right", "same"]


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person chose for one prompt; `answers` names the two texts they saw (Pair)."""

    item: str
    answers: str
    choice: Choice


class Judgements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All choices of a run in the order they were made. `shown`: the names were shown, so that no choice can follow."""

    seed: int
    made: tuple[Judgement, ...] = ()
    shown: bool = False


class Pair(NamedTuple):
    """One prompt with both answers as they are shown; `answers` names these two texts, whichever stands left."""

    item: str
    prompt: str
    left: str
    right: str
    tuned_is_left: bool
    answers: str

    @property
    def are_same(self) -> bool:
        """Whether there is nothing to choose between: a tie that nobody is asked about."""
        return self.left == self.right


def begin() -> Judgements:
    """Return judgements with nothing judged yet and an order of their own."""
    return Judgements(seed=secrets.randbelow(2**32))


def read(run_dir: Path) -> Judgements | None:
    """Return what was judged of a run, None where nothing was. Raises OSError, and Unreadable where the file is damaged."""
    try:
        return read_struct(run_dir / FILE, Judgements)
    except FileNotFoundError:
        return None


def write(run_dir: Path, judgements: Judgements) -> None:
    write_atomically(run_dir / FILE, msgspec.json.encode(judgements))


def has_texts(joined: Mapping[str, Joined]) -> bool:
    """Whether base and tuned model have written answers to held-out prompts."""
    return bool(_written(joined))


def _written(joined: Mapping[str, Joined]) -> list[tuple[Item, Item]]:
    """Return the held-out prompts with both answers: of whole answers first, else of the new task's first that has any."""
    for name in (TEXTS, *sorted(name for name in joined if name.startswith("new-task") and name != TEXTS)):
        found = pairs(joined[name]) if name in joined else []
        found = [(before, after) for before, after in found if after.family != SEEN]
        if found := [one for one in found if one[0].text is not None and one[1].text is not None]:
            return found
    return []


def drawn(joined: Mapping[str, Joined], seed: int) -> list[Pair]:
    """Return at most PROMPTS held-out prompts with both answers, in an order and on sides drawn by the seed. What is on
    which side follows from the seed and the prompt alone, so that it stays when other prompts come or go."""
    written = sorted(_written(joined), key=lambda pair: _dice(seed, "order", pair[1].item).random())[:PROMPTS]
    found = []
    for before, after in written:
        base, tuned = before.text or "", after.text or ""
        tuned_is_left = _dice(seed, "side", after.item).random() < 0.5
        left, right = (tuned, base) if tuned_is_left else (base, tuned)
        named = hashlib.sha256("\0".join((base, tuned)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        found.append(Pair(after.item, after.prompt or after.item, left, right, tuned_is_left, named))
    return found


def _dice(seed: int, what: str, item: str) -> random.Random:
    return random.Random(f"{seed}:{what}:{item}")  # noqa: S311 - an order, not a secret


def choices(judgements: Judgements, shown: list[Pair]) -> dict[str, Choice]:
    """Return what was chosen, by prompt: of texts that are still the same. The last choice counts."""
    there = {pair.item: pair.answers for pair in shown}
    return {one.item: one.choice for one in judgements.made if there.get(one.item) == one.answers}


def left_to_judge(judgements: Judgements, shown: list[Pair]) -> list[Pair]:
    """Return the prompts that a person has still to choose for, in order."""
    made = choices(judgements, shown)
    return [pair for pair in shown if pair.item not in made and not pair.are_same]


def judged(judgements: Judgements, pair: Pair, choice: Choice) -> Judgements:
    """Return the judgements with one more; nothing can be added once the names were shown."""
    if judgements.shown:
        return judgements
    made = (*(one for one in judgements.made if one.item != pair.item), Judgement(pair.item, pair.answers, choice))
    return msgspec.structs.replace(judgements, made=made)


def undone(judgements: Judgements) -> Judgements:
    """Return the judgements without the last, until the names were shown."""
    return judgements if judgements.shown else msgspec.structs.replace(judgements, made=judgements.made[:-1])


def ended(judgements: Judgements) -> Judgements:
    """Return the judgements with the names shown."""
    return msgspec.structs.replace(judgements, shown=True)


class Wins(NamedTuple):
    """How often a person preferred the tuned model's answer, the base's, and neither."""

    won: int
    lost: int
    ties: int

    @property
    def decided(self) -> int:
        return self.won + self.lost

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share won, of those decided: ties say nothing of which is better."""
        return statistics.share_interval(self.won, self.decided)

    @property
    def verdict(self) -> Literal["better", "worse", "noise", "too few"]:
        if self.decided < statistics.LEAST_QUESTIONS:
            return "too few"
        low, high = self.interval
        return "better" if low > 0.5 else "worse" if high < 0.5 else "noise"

    @property
    def sentence(self) -> str:
        """The wins with their interval, or that there are too few to say."""
        told = {"won": self.won, "n": self.decided, "ties": self.ties}
        if self.verdict == "too few":
            least = statistics.LEAST_QUESTIONS
            return t(
                "Names hidden, the tuned model won {won} of {n} (ties: {ties}): too few to say, {least} are the least.",
                **told, least=least,
            )  # fmt: skip
        low, high = self.interval
        told |= {
            "share": f"{100 * self.won / self.decided:.0f}",
            "low": f"{100 * low:.0f}",
            "high": f"{100 * high:.0f}",
        }
        return t("Names hidden, the tuned model won {won} of {n} ({share} % [{low}, {high}]); ties: {ties}.", **told)


def wins(judgements: Judgements, shown: list[Pair]) -> Wins:
    """Count the choices; prompts with the same words on both sides are ties."""
    made, counts = choices(judgements, shown), {"won": 0, "lost": 0, "ties": 0}
    for pair in shown:
        choice = "same" if pair.are_same else made.get(pair.item)
        if choice is not None:
            tuned_side = "left" if pair.tuned_is_left else "right"
            counts["ties" if choice == "same" else "won" if choice == tuned_side else "lost"] += 1
    return Wins(**counts)


def result(run_dir: Path, joined: Mapping[str, Joined]) -> Wins | None:
    """Return what a blind comparison said, once the names were shown; None before. Raises as read does."""
    found = read(run_dir)
    if found is None or not found.shown:
        return None
    counted = wins(found, drawn(joined, found.seed))
    return counted if sum(counted) else None

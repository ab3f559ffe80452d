"""Items: single questions with what a model made of them, and the files of a run that hold them.

They lie in runs/<id>/items/<base|tuned>-<benchmark>.jsonl, one line per question, with the model's choice and
log-likelihoods, so that anyone can recompute every figure.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from engine.workspace import Unreadable, decoded, find_struct, write_atomically

ALL = "all"  # the family that stands for the whole benchmark
SEEN, UNSEEN = "seen rows", "unseen rows"
KL = "kl-to-base"
# Figures that come out of the same items as another benchmark's: its name, then one of these.
BITS_PER_BYTE, BLEU, ROUGE_L, VALID = "bits-per-byte", "bleu", "rouge-l", "valid"
# Marked answers have no right or wrong each; what is compared is a gap. A reward model's items also give its margin.
GAP, REWARD, MARGIN = "new-task-gap", "new-task-reward", "new-task-margin"
# PPO: what the reward model gives the answers to held-out questions.
ANSWERS = "new-task-answers"
# What a grader finds right of the run's own task.
GRADED = "new-task-graded"
GENERAL_TEXT = "general-text"
GENERAL_TEXTS = (GENERAL_TEXT, "general-text-zh")  # by language
CHOICES, EXACT, LOSS, PREFERENCE = "new-task-choices", "new-task-exact", "new-task-loss", "new-task-preference"


class Item(msgspec.Struct, kw_only=True):
    """One question and what a model made of it.

    `prompt` is the question as a person reads it. With choices: `loglikelihoods` (nats) of each, `choice` the
    likeliest, `gold` the right one. With a text to be matched: `text` is what the model wrote. For a loss: one
    log-likelihood over `tokens` target tokens. For a marked answer: its log-likelihood, `choices` good and bad, `gold`
    what a person called it. For a reward model: `rewards` of each choice; for a judged answer: its `text` and
    reward. For running text: one log-likelihood over
    `tokens` tokens and `size_bytes` bytes of UTF-8. For a text to be compared with a `reference`: `bleu` holds
    sacrebleu's statistics (statistics.bleu) and `rouge_l` its F-measure; `valid` says whether it has the form asked
    for. Items of one `cluster` share a passage. `measure` is the harness's metric and filter that decided, as
    "exact_match,strict-match".
    """

    item: str
    family: str
    prompt_sha: str
    prompt: str | None = None
    choices: list[str] = []
    gold: int | None = None
    loglikelihoods: list[float] = []
    choice: int | None = None
    correct: bool | None = None
    score: float | None = None
    tokens: int | None = None
    text: str | None = None
    rewards: list[float] = []
    size_bytes: int | None = None
    reference: str | None = None
    bleu: list[int] = []
    rouge_l: float | None = None
    valid: bool | None = None
    cluster: str | None = None
    measure: str | None = None


Line = TypeVar("Line", bound=msgspec.Struct)


def read_items(path: Path, kind: type[Line] = Item) -> list[Line]:
    """Read one items file, all of it. Raises OSError, and workspace.Unreadable when it is broken."""
    decoder = msgspec.json.Decoder(kind)
    try:
        return [decoded(line, decoder) for line in path.read_bytes().splitlines() if line]
    except Unreadable as error:
        raise Unreadable(f"{path.name}: {error}") from error


def write_items(path: Path, items: list[Item]) -> None:
    """Write one items file, one item a line."""
    write_atomically(path, b"".join(msgspec.json.encode(item) + b"\n" for item in items))


def benchmarks_of(run_dir: Path, model: str = "tuned") -> list[str]:
    """Return the benchmarks a run has items of, both before and after."""
    start = f"{model}-"
    names = [p.name.removeprefix(start).removesuffix(".jsonl") for p in (run_dir / "items").glob(f"{start}*.jsonl")]
    return sorted(n for n in names if os.path.lexists(run_dir / "items" / f"base-{n}.jsonl"))


class Joined(NamedTuple):
    """The questions of one benchmark, as the base answered them and as the tuned model did. `looks`: after how many
    questions it was to be looked, where asking could end early (sequential.py)."""

    benchmark: str
    base: list[Item]
    tuned: list[Item]
    looks: tuple[int, ...] = ()


class Asked(msgspec.Struct, kw_only=True):
    """How much of one question set a check asks: `planned` of `size` questions, `asked` so far, with looks on the way;
    `ended`: one of them showed a real drop. `pace_s`: seconds a question, base and tuned together."""

    size: int
    planned: int
    asked: int = 0
    looks: tuple[int, ...] = ()
    ended: bool = False
    pace_s: float = 0.0


class Check(msgspec.Struct, kw_only=True):
    """A check in bounded time: of which weights, in how many seconds, what it took, and each question set."""

    of: str
    budget_s: float
    spent_s: float = 0.0
    sets: dict[str, Asked] = {}


CHECK = "check.json"


def read_check(run_dir: Path) -> Check | None:
    """Return what a run planned to ask in bounded time; None where it asked everything, or has not planned yet."""
    return find_struct(run_dir / "items" / CHECK, Check)


def joined(run_dir: Path, model: str = "tuned") -> dict[str, Joined]:
    """Return all that was asked of a run both before and after, by benchmark; with `model` a step on its way (at_step)."""
    folder, check = run_dir / "items", read_check(run_dir)
    looks = {} if check is None else {name: one.looks for name, one in check.sets.items()}
    return {
        name: Joined(
            name, read_items(folder / f"base-{name}.jsonl"), read_items(folder / f"{model}-{name}.jsonl"),
            looks.get(name, ()),
        )
        for name in benchmarks_of(run_dir, model)
    }  # fmt: skip


def with_examples(count: int) -> str:
    """Return what the base is called in items and events when it is asked after so many worked examples."""
    return f"base-{count}-examples"


def at_step(step: int) -> str:
    """Return what the model is called in items and events as it was after a step."""
    return f"at-{step}"


def way_at(at: float) -> str:
    """Return what the model is called in items and events at a point of the way back to its base."""
    return f"way-{at:g}"


def step_of(name: str) -> int | None:
    """Return the step of an items file that was scored on the way, None for any other."""
    found = re.match(r"at-(\d+)-", name)
    return int(found[1]) if found else None


def way_points(steps: int, points: int) -> set[int]:
    """Return the steps after which a run is scored on its way: evenly spread, its end left out, which is scored anyway."""
    return {round(steps * n / (points + 1)) for n in range(1, points + 1)} - {0, steps}


def steps_scored(run_dir: Path) -> list[int]:
    """Return the steps of a run that were scored on its way, in order."""
    found = {step_of(path.name) for path in (run_dir / "items").glob("at-*-*.jsonl")}
    return sorted(step for step in found if step is not None)


class KlItem(msgspec.Struct, kw_only=True):
    """One line of items/kl-to-base.jsonl: how far the tuned model's next-token distribution has moved from the base's
    on one answer, KL(base || tuned) in nats summed over `tokens` tokens."""

    item: str
    family: str
    kl_nats: float
    tokens: int

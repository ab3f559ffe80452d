"""What a GGUF file lost against the model it was made of, from both models' answers alone.

Their answers lie in runs/<id>/gguf/<id>-<quantization>.loss/, as items like a run's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.gguf import kinds
from engine.report import Comparison, Item, items, paired
from engine.words import Text
from engine.workspace import find_struct

# Who was asked, as the files of items begin: the whole model through transformers, the file through llama.cpp, and the file
# in 16 bits, of which only the answers are compared.
MERGED, QUANTISED, PLAIN = "merged", "quantised", "f16"
# The answers that are compared word by word, of which nothing is right or wrong.
SAME_ANSWERS = "same-answers"
LOST = "lost.json"
# Where the two likeliest tokens are so near each other (nats), rounding to 16 bits may decide between them: logits of
# SmolLM2 135M in f16 are up to 0.03 from those in fp32.
NEAR_NATS = 0.1
# Called so where all questions are counted together.
_ALL_QUESTIONS, _ALL_TOKENS = "all-questions", "all-tokens"


class Difference(msgspec.Struct, frozen=True):
    """Where two greedy answers to a prompt part: how much likelier the model found its own token than its second (nats)."""

    prompt: str
    merged: str
    file: str
    nats: float


class Same(msgspec.Struct, frozen=True):
    """Of `n` prompts, the answers of a file that differ from the model's."""

    n: int
    differences: list[Difference] = []

    @property
    def is_rounding(self) -> bool:
        """Whether every difference begins where two tokens are about as likely."""
        return all(one.nats <= NEAR_NATS for one in self.differences)


class Lost(msgspec.Struct, kw_only=True, frozen=True):
    """What was compared when. `size_bytes` and `mtime_ns` are those of the file then, `plain_bytes` the size of the one in
    16 bits, 0 while it is not known; `rounded_bits`: to so many bits the base had been rounded before; `asked` of
    `questions` that the run was asked, in `budget_s`, and sets of them that cannot be put any more, `left`; `failure`: why
    nothing was compared."""

    quantization: str
    size_bytes: int
    mtime_ns: int
    sha256: str = ""
    plain_bytes: int = 0
    rounded_bits: int | None = None
    same: Same | None = None
    same_in_16_bits: Same | None = None
    asked: int = 0
    questions: int = 0
    left: list[str] = []
    budget_s: float | None = None
    seconds: float = 0.0
    number_format: str = ""
    versions: dict[str, str] = {}
    failure: Text | str | None = None


class Found(NamedTuple):
    """What a file lost. `rows`: each benchmark by itself; `points`: all questions that are right or wrong, together;
    `nats`: the loss per token over all rows and texts."""

    lost: Lost
    rows: tuple[Comparison, ...]
    points: Comparison | None
    nats: Comparison | None

    @property
    def name(self) -> str:
        return self.lost.quantization.upper()


def folder_of(file: Path) -> Path:
    """Return where the answers lie that were compared for a file."""
    return file.with_suffix(".loss")


def read(file: Path) -> Found | None:
    """Return what a file lost; None where it was not asked, or is another file by now."""
    folder = folder_of(file)
    lost = find_struct(folder / LOST, Lost)
    try:
        now = file.stat()
    except OSError:
        return None
    if lost is None or (lost.size_bytes, lost.mtime_ns) != (now.st_size, now.st_mtime_ns):
        return None
    try:
        stamps = tuple((path.name, path.stat().st_mtime_ns) for path in sorted((folder / "items").glob("*.jsonl")))
        rows = _figures(str(folder), stamps)
    except (OSError, ValueError):  # answers that cannot be read say nothing
        return None
    return Found(lost, *rows)


def every(run_dir: Path) -> list[Found]:
    """Return what each file of a run lost, the largest first."""
    found = (read(kinds.file_of(run_dir, one)) for one in kinds.KINDS)
    return [one for one in found if one is not None]


@lru_cache(maxsize=32)  # a page asks at every click, and intervals take thousands of draws
def _figures(
    folder: str, stamps: tuple[tuple[str, int], ...]
) -> tuple[tuple[Comparison, ...], Comparison | None, Comparison | None]:
    names = [name.removeprefix(f"{QUANTISED}-") for name, _ in stamps if name.startswith(f"{QUANTISED}-")]
    asked = {
        name.removesuffix(".jsonl"): tuple(
            items.read_items(Path(folder) / "items" / f"{who}-{name}") for who in (MERGED, QUANTISED)
        )
        for name in names
        if name != f"{SAME_ANSWERS}.jsonl"
    }
    run = Path(folder).stem
    rows = [row for name, (merged, file) in asked.items() for row in paired.compare_all(run, name, merged, file)]
    points = _together(run, _ALL_QUESTIONS, asked, lambda one: one.correct is not None)
    nats = _together(
        run, _ALL_TOKENS, asked, lambda one: one.correct is None and bool(one.tokens and one.loglikelihoods)
    )
    return tuple(rows), points, nats


def _together(
    run: str, name: str, asked: dict[str, tuple[list[Item], ...]], counts: Callable[[Item], bool]
) -> Comparison | None:
    """Return one line over the questions of all benchmarks that count. What is asked of one row in several ways errs
    together, so that such questions are one cluster."""
    sides = [
        [
            msgspec.structs.replace(
                one, item=f"{benchmark} {one.item}", family=items.ALL, cluster=one.cluster or one.item
            )
            for benchmark, found in asked.items()
            if benchmark != items.GAP  # its answers are good or bad, and none is right or wrong
            for one in found[side]
            if counts(one)
        ]
        for side in (0, 1)
    ]  # fmt: skip
    return paired.compare_items(run, name, *sides)[0] if sides[0] else None

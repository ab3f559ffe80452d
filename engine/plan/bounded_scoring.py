"""Whether a run asks everything or a check in bounded time, and what such a check can show, before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from engine.benchmarks import library, speeds
from engine.report import statistics
from engine.spec import RunSpec
from engine.words import Text, later
from engine.workspace import Workspace

# What a check may take, base and tuned model together: no longer than somebody waits for a first answer.
CHECK_S = 120.0
# Rows that are trained on and scored, at most (engine/train/rows.py).
MOST_SEEN = 200
# English text, about so many characters a token.
TOKEN_CHARACTERS = 4
# Answers that flip each way by chance, as base and tuned model of small runs do: of 100 questions so many.
USUAL_NOISE = 0.05
BUDGET = "evaluate.budget_s"


class General(NamedTuple):
    """The general benchmarks of a spec: questions of each, the tokens a model reads for all of them, and whether the
    harness asks one of them, which is asked as a whole or not at all."""

    questions: dict[str, int]
    tokens: float
    has_harness: bool


def general(spec: RunSpec, workspace: Workspace) -> General:
    """Return what is asked of general knowledge. A benchmark that is not here is left out: preflight names it."""
    found = [(name, library.find(name, workspace)) for name in spec.evaluate.benchmarks]
    known = {name: one for name, one in found if one is not None}
    limit = spec.evaluate.limit
    sizes = {name: min(one.size, limit) if limit else one.size for name, one in known.items() if one.kind != "harness"}
    read = sum(_characters(str(workspace.root), name, limit) for name in sizes)
    return General(sizes, read / TOKEN_CHARACTERS, any(one.kind == "harness" for one in known.values()))


@lru_cache(maxsize=64)
def _characters(root: str, name: str, limit: int) -> int:
    one = library.find(name, Workspace(root))
    return 0 if one is None else speeds.characters(library.docs(one, limit))


def rows_scored(trained: int, held_out: int, limit: int) -> int:
    """Return how many rows of the run's own are scored: those held out and MOST_SEEN that are trained on."""
    return min(trained, MOST_SEEN, limit or MOST_SEEN) + min(held_out, limit or held_out)


def notes(spec: RunSpec, questions: Mapping[str, int]) -> list[Text]:
    """Say what a check asks and what it cannot see; nothing where everything is asked."""
    if spec.evaluate.budget_s is None or not questions:
        return []
    most = max(questions.values())
    drops = [
        (n, statistics.detectable_drop(n, USUAL_NOISE))
        for n in dict.fromkeys((most, max(statistics.LEAST_QUESTIONS, most // 4)))
    ]
    words = {f"{what}{number}": value for number, (n, drop) in enumerate(drops, 1)
             for what, value in (("n", n), ("points", f"{100 * (drop or 1):.0f}"))}  # fmt: skip
    told = {"seconds": f"{spec.evaluate.budget_s:g}", "total": sum(questions.values())}
    first = later(
        "Scoring is a check of {seconds} s after the training, base and tuned model together: of {total} questions as many "
        "as fit, the same of both. The rest can be asked later, going on from there.",
        **told,
    )
    if len(drops) < 2:
        return [first]
    return [
        first,
        later(
            "What a check cannot see: with {n1} questions of a set it misses drops under {points1} points, with {n2} under "
            "{points2}.",
            **words,
        ),
    ]

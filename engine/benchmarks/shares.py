"""In which order questions are asked, and how many of each set fit into a time.

The order is drawn before anything is known of the answers, and is the same for every model, so that the first n of a set
are a fair sample of it, and a model that was asked n can be asked the rest later. Questions about one passage stay
together: it is read once for all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

# So many questions of each set are asked before its pace is known.
FIRST = 8


def order(
    names: Sequence[str], seed: int, *, together: Sequence[str | None] = (), kinds: Sequence[str] = ()
) -> list[int]:
    """Return the places of questions in the order in which they are asked, drawn by the seed and by their names alone.
    `together`: the passage of each, where several share one. `kinds` take turns, as rows that are trained on and held-out
    ones, so that a few questions are of both."""

    def drawn(text: str) -> str:
        return hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogatepass")).hexdigest()

    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        passage = together[place] if together else None
        groups.setdefault(f"passage {passage}" if passage else f"question {name}", []).append(place)
    queues: dict[str, list[int]] = {}
    for group in sorted(groups, key=drawn):
        for place in groups[group]:
            queues.setdefault(kinds[place] if kinds else "", []).append(place)
    turns = [queues[kind] for kind in sorted(queues)]
    return [queue[turn] for turn in range(len(names)) for queue in turns if turn < len(queue)]


def fitting(
    sizes: Sequence[int], asked: Sequence[int], cost_s: Callable[[int, int], float], left_s: float, least: int
) -> list[int]:
    """Return how many questions of each set are asked in all where `left_s` seconds are left and `asked` are done.

    `cost_s(set, n)` is what it takes to have asked n of a set, growing with n. First as many sets as the time holds get to
    `least` questions, of which alone something can be said, those that need the least time for it first; what is left is
    shared out by time, the same for each set, and what one does not need goes to the others.
    """
    found, spent_s = list(asked), 0.0
    for cost, one in sorted((cost_s(one, min(least, size)), one) for one, size in enumerate(sizes)):
        if spent_s + cost <= left_s:
            found[one], spent_s = max(asked[one], min(least, sizes[one])), spent_s + cost

    def reached(each_s: float) -> list[int]:
        return [max(found[one], _most(one, size, cost_s, each_s)) for one, size in enumerate(sizes)]

    def whole_s(counts: Sequence[int]) -> float:
        return sum(cost_s(one, n) for one, n in enumerate(counts))

    if whole_s(sizes) <= left_s:
        return list(sizes)
    low, high = 0.0, left_s
    for _ in range(40):
        middle = (low + high) / 2
        if whole_s(reached(middle)) <= left_s:
            low = middle
        else:
            high = middle
    return reached(low) if whole_s(reached(low)) <= left_s else found


def _most(one: int, size: int, cost_s: Callable[[int, int], float], each_s: float) -> int:
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        if cost_s(one, middle) <= each_s:
            low = middle
        else:
            high = middle - 1
    return low

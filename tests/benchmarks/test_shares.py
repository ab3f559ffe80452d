"""In which order questions are asked, and how many of them fit into a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.benchmarks import shares

NAMES = [f"q{n}" for n in range(60)]


def test_the_order_hangs_on_the_seed_and_the_names_alone() -> None:
    order = shares.order(NAMES, 0)
    assert sorted(order) == list(range(60)) and order != list(range(60))
    assert order != shares.order(NAMES, 1)
    turned = shares.order(NAMES[::-1], 0)
    assert [NAMES[::-1][place] for place in turned] == [NAMES[place] for place in order]  # wherever they stand


def test_questions_about_one_passage_stay_together_and_kinds_take_turns() -> None:
    passages = [f"p{n // 4}" for n in range(60)]
    order = shares.order(NAMES, 0, together=passages)
    asked = [passages[place] for place in order]
    assert all(len(set(asked[start : start + 4])) == 1 for start in range(0, 60, 4))
    kinds = ["seen"] * 50 + ["unseen"] * 10
    first = [kinds[place] for place in shares.order(NAMES, 0, kinds=kinds)[:20]]
    assert first == ["seen", "unseen"] * 10


SETS = st.lists(st.tuples(st.integers(1, 300), st.floats(0.001, 5)), min_size=1, max_size=6)


@given(SETS, st.floats(0, 600))
def test_what_is_planned_fits_into_the_time_and_gives_each_set_its_share(
    sets: list[tuple[int, float]], left_s: float
) -> None:
    sizes, paces = [size for size, _ in sets], [pace for _, pace in sets]
    asked = [min(8, size) for size in sizes]

    def cost_s(one: int, n: int) -> float:
        return paces[one] * max(0, n - asked[one])

    found = shares.fitting(sizes, asked, cost_s, left_s, 20)
    assert all(there <= n <= size for there, n, size in zip(asked, found, sizes, strict=True))
    assert sum(cost_s(one, n) for one, n in enumerate(found)) <= left_s + 1e-6
    more = shares.fitting(sizes, asked, cost_s, 2 * left_s, 20)
    assert sum(more) >= sum(found)
    # whoever has more than it could do without has no more of the time than one that stands back
    spent = [cost_s(one, n) for one, n in enumerate(found)]
    waiting = [one for one, n in enumerate(found) if n < sizes[one]]
    for one, n in enumerate(found):
        if n > 20 and waiting:
            assert spent[one] <= min(spent[other] + paces[other] for other in waiting) + paces[one] + 1e-6

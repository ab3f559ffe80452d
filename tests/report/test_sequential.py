"""Looking several times: bounds as they are published, and a null that is called a drop no more often than once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.report import Item, paired, sequential, statistics, verdicts

PLANNED = 200


def test_four_even_looks_have_the_bounds_that_are_published() -> None:
    # Lan and DeMets' spending of O'Brien and Fleming's kind, two-sided 5 %, as gsDesign and rpact print them
    assert sequential.bounds((50, 100, 150, 200)) == pytest.approx((4.3326, 2.9631, 2.3590, 2.0141), abs=2e-3)
    assert sequential.bounds((200,)) == pytest.approx((statistics.Z95,), abs=1e-4)


def test_a_look_comes_only_where_something_can_be_said() -> None:
    assert sequential.looks(200) == (50, 100, 150, 200)
    assert sequential.looks(50) == (25, 38, 50) and sequential.looks(10) == (10,)


def items(right: np.ndarray) -> list[Item]:
    return [
        Item(item=str(n), family="f", prompt_sha=str(n), choices=["a", "b"], gold=0, correct=bool(one))
        for n, one in enumerate(right)
    ]


def stops(base: np.ndarray, tuned: np.ndarray, looks: tuple[int, ...], sets: int) -> np.ndarray:
    """Where some look of some set says "real drop", by the rule of the report; arrays are (runs, sets, questions)."""
    found = np.zeros(len(base), dtype=bool)
    for n in looks:
        lost, won = ((one[:, :, :n] & ~other[:, :, :n]).sum(axis=2) for one, other in ((base, tuned), (tuned, base)))
        z = sequential.bound_at(looks, n) if len(looks) > 1 else statistics.Z95
        alpha = sequential.nominal(looks, n, statistics.ALPHA / sets)
        found |= statistics.is_real_drop(lost, won, n, alpha=alpha, z=z).any(axis=1)
    return found


@pytest.mark.parametrize("sets", [1, 4])
def test_a_simulated_null_is_called_a_real_drop_in_at_most_5_of_100_runs(sets: int) -> None:
    dice = np.random.default_rng(17)
    base = dice.random((8000, sets, PLANNED)) < 0.7
    flips = dice.random(base.shape)
    tuned = np.where(base, flips >= 0.12, flips < 0.12 * 0.7 / 0.3)  # as many won as lost, on average
    called = stops(base, tuned, sequential.looks(PLANNED), sets).mean()
    assert called <= 0.05
    # as drops alone are counted, it is half of that; looking four times at 5 % is beyond it
    assert called <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 8000)
    each = np.zeros(len(base), dtype=bool)
    for n in sequential.looks(PLANNED):
        each |= stops(base[:, :, :n], tuned[:, :, :n], (n,), 1)
    assert each.mean() > max(0.03, called)


def test_a_great_loss_ends_the_asking_early_and_a_small_one_does_not() -> None:
    dice = np.random.default_rng(1)
    base = dice.random((400, 1, PLANNED)) < 0.8
    looks = sequential.looks(PLANNED)
    for share, least, most in ((0.4, 0.95, 1.0), (0.02, 0.0, 0.05)):
        tuned = base & (dice.random(base.shape) >= share)
        early = np.zeros(len(base), dtype=bool)
        for n in looks[:2]:
            lost, won = (base & ~tuned)[:, :, :n].sum(axis=2), (tuned & ~base)[:, :, :n].sum(axis=2)
            z, alpha = sequential.bound_at(looks, n), sequential.nominal(looks, n)
            early |= statistics.is_real_drop(lost, won, n, alpha=alpha, z=z).any(axis=1)
        assert least <= early.mean() <= most


def test_the_intervals_of_all_looks_together_hold_the_truth_in_95_of_100_runs() -> None:
    dice, drop, wrong = np.random.default_rng(3), 0.05, 0
    for _ in range(300):
        before = dice.random(PLANNED) < 0.7
        after = np.where(before, dice.random(PLANNED) >= 0.1 + drop / 0.7, dice.random(PLANNED) < 0.1 * 0.7 / 0.3)
        rows = [
            paired.compare_items("r", "blimp", items(before[:n]), items(after[:n]), looks=sequential.looks(PLANNED))[0]
            for n in sequential.looks(PLANNED)
        ]
        wrong += any(not row.low <= -drop <= row.high for row in rows)
    assert wrong / 300 <= 0.05 + 0.02


@settings(max_examples=20)
@given(st.floats(1e-6, 0.2), st.sampled_from([50, 100, 150, 200]))
def test_a_repeated_p_value_is_never_smaller_than_the_plain_one_and_agrees_with_the_bound(p: float, n: int) -> None:
    looks = (50, 100, 150, 200)
    found = sequential.repeated(p, looks, n)
    assert found >= 0.99 * p
    if abs(p / sequential.nominal(looks, n) - 1) > 0.03:
        assert (found <= statistics.ALPHA) == (p <= sequential.nominal(looks, n))


def test_a_verdict_after_an_early_look_is_harder_to_get_than_after_all() -> None:
    before, after = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    after[:8] = False  # p = 0.008: enough at once, not at the second of four looks
    verdict = {}
    for looks in ((), (50, 100, 150, 200)):
        rows = paired.compare_items("r", "blimp", items(before), items(after), looks=looks)
        (judged,) = verdicts.judge(rows, {"blimp": 0.5})
        verdict[looks] = judged.verdict
        assert rows[0].looks == looks and (judged.p or 0) <= (judged.p_holm or 0)
    assert list(verdict.values()) == ["real drop", "no detectable change"]

"""Verdicts that fit real models: a change must matter, questions must be enough, and equal figures are no change."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.report import Comparison, Item, about, files, frontier, headline, paired, verdicts
from engine.report.items import ALL, CHOICES, GRADED, SEEN, UNSEEN, Joined


def line(
    benchmark: str, before: float, after: float, *, n: int = 300, spread: float = 0.001, family: str = ALL
) -> Comparison:
    """A line whose change is known to within `spread`."""
    change = after - before
    return Comparison(
        run="r", benchmark=benchmark, family=family, n=300, base=before, tuned=after, change=change, low=change - spread,
        high=change + spread, base_only_right=None, tuned_only_right=None,
    )  # fmt: skip


def answered(right: int, of: int, then: int, benchmark: str = "blimp", family: str = "f") -> list[Comparison]:
    def items(n: int) -> list[Item]:
        return [Item(item=str(i), family=family, prompt_sha=str(i), correct=i < n) for i in range(of)]

    return paired.compare_items("r", benchmark, items(right), items(then))


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(3.659, 3.656, "equivalent"), (3.66, 3.62, "real gain"), (3.62, 3.66, "real drop"), (3.656, 3.659, "equivalent")],
)
def test_a_loss_must_move_by_what_matters(before: float, after: float, verdict: str) -> None:
    (judged,) = verdicts.judge([line("general-text", before, after)])
    assert judged.verdict == verdict


def test_a_change_beyond_noise_that_may_reach_what_matters_is_a_small_one() -> None:
    (judged,) = verdicts.judge([line("general-text", 3.659, 3.644, spread=0.01)])
    assert judged.verdict == "small change" and "less than matters" in judged.sentence


def test_an_accuracy_gains_only_by_a_point() -> None:
    (judged,) = verdicts.judge(answered(5_000, 10_000, 5_050))
    assert judged.verdict == "equivalent" and judged.row.low > 0


def test_no_headline_is_made_of_a_loss_that_stood_still() -> None:
    told = headline.summary([line("new-task-loss", 1.823, 1.818, family=UNSEEN)]).gained
    assert "fell" not in told and "learned" not in told and "less than matters" in told


@given(st.floats(0, 50), st.floats(0, 50), st.sampled_from([".0f", ".1f", ".2f", "+.2f"]))
def test_different_figures_never_read_alike(before: float, after: float, form: str) -> None:
    texts = verdicts.apart(before, after, form)
    assert texts[0] != texts[1] or abs(before - after) < 10 ** -int(form[-2]) / 100


@given(st.integers(1, 19), st.data())
def test_below_twenty_questions_nothing_is_said_anywhere(n: int, data: st.DataObject) -> None:
    right, then = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    rows = answered(right, n, then) + answered(right, n, then, "new-task-choices", UNSEEN)
    assert all(math.isinf(row.low) and math.isinf(row.high) and not paired.beyond_noise(row) for row in rows)
    (judged,) = verdicts.judge(rows)
    assert judged.verdict == "too few" and "too few to say" in judged.sentence
    assert judged.p is judged.p_holm is judged.detectable is judged.retention is None
    assert verdicts.change_of(rows[0]) == "too few"
    told = headline.summary(rows).gained
    assert told.startswith("Too few to say what it learned") and "%" not in told
    point = frontier.point("r", rows, {}, CHOICES)
    assert set(point.too_few) == {"blimp", "new-task-choices"} and point.change is None
    assert frontier.pick([point], 0.5) is None and not frontier.frontier([point])[0].on_frontier
    assert b"inf" not in files.as_csv(files.records(rows, [judged])).lower()
    assert b'"low": null' in files.as_json(rows)


def test_from_twenty_questions_on_there_is_an_interval() -> None:
    (row,) = answered(20, 20, 4)
    assert row.high < 0 and verdicts.judge([row])[0].verdict == "real drop"


def test_too_few_questions_do_not_weaken_the_correction_of_others() -> None:
    alone = verdicts.judge(answered(60, 100, 50))
    beside = verdicts.judge(answered(60, 100, 50) + answered(5, 10, 5, "arc"))
    assert alone[0].p_holm == beside[0].p_holm


def pairs(n: int, moved: int) -> Joined:
    """Pairs whose worse answer stays the likelier one, while the better one gains on it in `moved` of them."""

    def items(gains: list[float]) -> list[Item]:
        return [
            Item(item=str(i), family=UNSEEN, prompt_sha=str(i), choices=["a", "b"], gold=0, correct=False,
                 loglikelihoods=[-40.0 + gain, -20.0])
            for i, gain in enumerate(gains)
        ]  # fmt: skip

    return Joined("new-task-preference", items([0.0] * n), items([1.0 if i < moved else -1.0 for i in range(n)]))


def test_what_dpo_calls_accuracy_stands_beside_the_figure_that_did_not_move() -> None:
    joined = pairs(50, 43)
    (row,) = paired.compare_joined("r", [joined])
    assert (row.base, row.tuned) == (0, 0)
    (told,) = about.lines({joined.benchmark: joined})
    assert told.startswith("In 86 % of the 50 pairs") and "accuracy that DPO shows in training" in told
    few = pairs(10, 9)
    assert about.lines({few.benchmark: few}) == []


def test_the_filter_that_decided_is_named() -> None:
    one = [Item(item="0", family="f", prompt_sha="0", correct=True, measure="exact_match,strict-match")]
    two = [Item(item="0", family="f", prompt_sha="0", correct=True, measure="acc_norm,none")]
    told = about.lines({"gsm8k": Joined("gsm8k", one, one), "arc": Joined("arc", two, two)})
    assert told == ["gsm8k: right by exact_match, strict-match.", "arc: right by acc_norm."]


@pytest.mark.parametrize(
    ("base", "tuned", "starts"),
    [
        (20, 20, "By its grader the base is right on all 20"),
        (0, 0, "By its grader no answer of either"),
        (0, 9, ""),
        (19, 20, ""),
    ],
)
def test_where_a_grader_can_show_nothing_it_says_so(base: int, tuned: int, starts: str) -> None:
    def items(right: int) -> list[Item]:
        seen = Item(item="s", family=SEEN, prompt_sha="s", correct=True)
        return [seen, *(Item(item=str(i), family=UNSEEN, prompt_sha=str(i), correct=i < right) for i in range(20))]

    told = about.lines({GRADED: Joined(GRADED, items(base), items(tuned))})
    assert [line[: len(starts)] for line in told] == ([starts] if starts else [])

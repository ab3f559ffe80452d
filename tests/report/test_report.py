"""The report: paired figures on the same items against closed forms, honest intervals, and sentences that are true."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from engine.forgetting import remedies
from engine.report import Comparison, frontier, headline, paired, statistics, verdicts
from engine.report import items as report_items
from engine.report.items import ALL, SEEN, UNSEEN, Item

COUNTS = st.tuples(*[st.integers(0, 300)] * 4).filter(lambda counts: sum(counts) > 0)


# --- accuracies on the same items --------------------------------------------------------------------------------


@given(COUNTS)
def test_the_change_is_the_difference_of_the_two_accuracies(counts):
    both, base_only, tuned_only, neither = counts
    change, _, _ = statistics.paired_change(*counts)
    n = both + base_only + tuned_only + neither
    assert change == pytest.approx((both + tuned_only) / n - (both + base_only) / n)


@given(COUNTS)
def test_the_interval_is_bonett_and_prices_in_another_way_of_writing_it(counts):
    both, lost, won, neither = counts
    n = both + lost + won + neither
    change, low, high = statistics.paired_change(*counts)
    # SE^2 = (b + c - (b - c)^2 / n) / n^2 with b + 1, c + 1 and n + 2 in place of b, c and n
    b, c, m = lost + 1, won + 1, n + 2
    half = 1.959963984540054 * math.sqrt((b + c - (b - c) ** 2 / m) / m**2)
    centre = (c - b) / m
    assert low == pytest.approx(max(-1, min(centre - half, change)), abs=1e-6)
    assert high == pytest.approx(min(1, max(centre + half, change)), abs=1e-6)


def test_a_known_interval():
    # 9 lost and 1 won of 100: (1+1-(9+1))/102 -+ 1.959964 * sqrt((12/102 - (8/102)^2) / 102)
    assert statistics.paired_change(40, 9, 1, 50) == pytest.approx((-0.08, -0.143232, -0.013631), abs=1e-6)


@given(COUNTS)
def test_swapping_base_and_tuned_turns_the_interval_round(counts):
    both, base_only, tuned_only, neither = counts
    change, low, high = statistics.paired_change(*counts)
    assert statistics.paired_change(both, tuned_only, base_only, neither) == pytest.approx((-change, -high, -low))


@given(COUNTS)
def test_the_interval_holds_the_change_and_lies_between_minus_one_and_one(counts):
    change, low, high = statistics.paired_change(*counts)
    assert -1 <= low <= change <= high <= 1


@given(st.integers(0, 300), st.integers(0, 300))
def test_no_disagreement_at_all_does_not_claim_certainty(both, neither):
    assume(both + neither)
    change, low, high = statistics.paired_change(both, 0, 0, neither)
    assert change == 0 and low < 0 < high and low == pytest.approx(-high)
    assert high >= 1 / (both + neither + 2)


@pytest.mark.parametrize(
    "p", [(0.5, 0.2, 0.2, 0.1), (0.9, 0.03, 0.02, 0.05), (0.3, 0.05, 0.6, 0.05), (0.7, 0.2, 0, 0.1)]
)
def test_the_interval_holds_the_true_change_in_93_of_100_draws_of_100_items(p):
    drawn = np.random.default_rng(11).multinomial(100, p, size=2000)
    true = p[2] - p[1]
    inside = sum(low <= true <= high for _, low, high in (statistics.paired_change(*map(int, row)) for row in drawn))
    assert inside / len(drawn) >= 0.93


@pytest.mark.parametrize(
    ("base_only", "tuned_only", "p"),
    [
        (1, 9, 0.021484375),
        (9, 1, 0.021484375),
        (0, 6, 0.03125),
        (5, 5, 1.0),
        (0, 0, 1.0),
        (0, 1, 1.0),
        (12, 30, 0.007915897334896727),
        (700, 800, 0.010559255466711506),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(base_only, tuned_only, p):
    assert statistics.mcnemar(base_only, tuned_only) == pytest.approx(p, rel=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_probability_and_the_same_both_ways(b, c):
    p = statistics.mcnemar(b, c)
    assert 0 < p <= 1 and p == statistics.mcnemar(c, b)


# --- losses on the same rows -------------------------------------------------------------------------------------


def loss_items(nats: list[float], tokens: list[int] | None = None, family: str = UNSEEN) -> list[Item]:
    counts = tokens or [1] * len(nats)
    return [
        Item(item=f"{family}{i}", family=family, prompt_sha=f"p{i}", loglikelihoods=[-loss], tokens=count)
        for i, (loss, count) in enumerate(zip(nats, counts, strict=True))
    ]


ROWS = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.integers(1, 40)), min_size=1, max_size=30)


@settings(max_examples=50)
@given(ROWS)
def test_losses_are_weighted_by_tokens_and_the_interval_holds_the_change(rows):
    before, after, tokens = (list(column) for column in zip(*rows, strict=True))
    base, tuned, change, low, high = paired.paired_loss(
        loss_items(before, tokens), loss_items(after, tokens), resamples=1000
    )
    assert base == pytest.approx(sum(before) / sum(tokens))
    assert tuned == pytest.approx(sum(after) / sum(tokens))
    assert change == pytest.approx(tuned - base, abs=1e-9)
    assert low <= change + 1e-9 and change - 1e-9 <= high


def test_the_bootstrap_is_reproducible_and_depends_on_its_seed():
    before, after = loss_items([1.0] * 50), loss_items([1 + math.sin(i) for i in range(50)])
    assert paired.paired_loss(before, after) == paired.paired_loss(before, after)
    assert paired.paired_loss(before, after, seed=1) != paired.paired_loss(before, after)


def test_no_change_has_an_interval_of_no_width():
    same = loss_items([1.5, 2.5, 0.5], [3, 1, 2])
    assert paired.paired_loss(same, same) == pytest.approx((0.75, 0.75, 0, 0, 0))


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_rows():
    differences = np.random.default_rng(3).normal(-0.5, 1, 400)
    before, after = loss_items([5.0] * 400), loss_items(list(5 + differences))
    _, _, change, low, high = paired.paired_loss(before, after)
    half = 1.96 * differences.std() / math.sqrt(400)
    assert change == pytest.approx(differences.mean())
    assert (low, high) == pytest.approx((change - half, change + half), abs=0.01)


# --- comparing items ---------------------------------------------------------------------------------------------


def item(name: str, family: str, correct: bool, **more: Any) -> Item:
    return Item(item=name, family=family, prompt_sha=f"sha-{name}", correct=correct, **more)


def answers(pattern: str, family: str = "a", start: int = 0) -> list[Item]:
    """One item a letter: r is right, w is wrong."""
    return [item(f"{family}{start + i}", family, letter == "r") for i, letter in enumerate(pattern)]


def compare(base: list[Item], tuned: list[Item], benchmark: str = "toy-world") -> dict[str, Comparison]:
    rows = paired.compare_items("r1", benchmark, base, tuned)
    assert len({row.family for row in rows}) == len(rows)
    assert all(row.run == "r1" and row.benchmark == benchmark for row in rows)
    return {row.family: row for row in rows}


def test_the_whole_comes_first_and_each_family_is_counted_on_its_own():
    base = answers(5 * "rrwww", "a") + answers("rrrr", "b")
    tuned = answers(5 * "wrrrw", "a") + answers("rrww", "b")
    rows = compare(base, tuned)
    assert list(rows) == [ALL, "a", "b"]
    whole = rows[ALL]
    assert (whole.n, whole.base_only_right, whole.tuned_only_right) == (29, 7, 10)
    assert (whole.base, whole.tuned) == pytest.approx((14 / 29, 17 / 29))
    assert (rows["a"].n, rows["a"].base_only_right, rows["a"].tuned_only_right) == (25, 5, 10)
    assert (rows["b"].n, rows["b"].base_only_right, rows["b"].tuned_only_right) == (4, 2, 0)
    assert (whole.change, whole.low, whole.high) == statistics.paired_change(7, 7, 10, 5)


def test_one_family_alone_is_the_whole():
    assert list(compare(answers("rw"), answers("ww"))) == [ALL]


def test_the_order_of_the_items_does_not_matter():
    base, tuned = answers("rrwwr"), answers("wrrwr")
    assert compare(base, tuned) == compare(base, tuned[::-1])


@pytest.mark.parametrize(
    "tuned",
    [
        answers("rr"),
        answers("rrrr"),
        answers("rr") + answers("r", start=9),
        [*answers("rr"), Item(item="a2", family="a", prompt_sha="other", correct=True)],
    ],
)
def test_other_questions_are_refused(tuned):
    with pytest.raises(paired.ItemsDiffer, match="toy-world"):
        paired.compare_items("r1", "toy-world", answers("rrr"), tuned)


@pytest.mark.parametrize("other", [{"choices": ["x", "z"], "gold": 0}, {"choices": ["x", "y"], "gold": 1}])
def test_the_same_question_with_other_choices_is_another_question(other):
    base = [item("q", "a", True, choices=["x", "y"], gold=0)]
    with pytest.raises(paired.ItemsDiffer):
        paired.compare_items("r1", "toy-world", base, [item("q", "a", True, **other)])


def test_no_items_have_no_lines():
    assert paired.compare_items("r1", "toy-world", [], []) == []


def test_seen_and_unseen_rows_are_kept_apart_and_never_summed():
    base = loss_items([3, 3, 3], family=SEEN) + loss_items([3, 3, 3])
    tuned = loss_items([1, 1, 1], family=SEEN) + loss_items([4, 4, 4])
    rows = compare(base, tuned, "new-task-loss")
    assert list(rows) == [SEEN, UNSEEN]
    assert (rows[SEEN].change, rows[UNSEEN].change) == (-2, 1)
    assert rows[SEEN].base_only_right is None and rows[SEEN].tuned_only_right is None


def test_seen_rows_alone_still_say_that_they_were_seen():
    rows = compare(loss_items([3, 3], family=SEEN), loss_items([1, 1], family=SEEN), "new-task-loss")
    assert list(rows) == [SEEN]


@pytest.mark.parametrize("family", [ALL, SEEN])
def test_a_family_that_a_person_called_like_one_of_ours_is_not_counted_twice(family):
    rows = paired.compare_items(
        "r1", "new-task-choices", answers("rw", family) + answers("rr", "b"), answers("ww", family) + answers("rr", "b")
    )
    assert [row.n for row in rows if row.family == ALL] == [4]


# --- files -------------------------------------------------------------------------------------------------------


def test_items_written_are_the_items_read(tmp_path):
    items = [
        item("q\u2028", "ü\n", True, choices=["a", "b"], gold=1, loglikelihoods=[-1.5, -0.1], choice=1, prompt="Wie?"),
        item("w", "f", False, text='said "so"\n'),
        *loss_items([0.1], [7]),
    ]
    path = tmp_path / "items" / "base-x.jsonl"
    report_items.write_items(path, items)
    assert report_items.read_items(path) == items
    assert path.read_bytes().count(b"\n") == 3


def test_a_benchmark_counts_when_it_was_asked_before_and_after(tmp_path):
    for name in ("base-toy-world", "tuned-toy-world", "base-half", "tuned-other", "base-a-b", "tuned-a-b"):
        report_items.write_items(tmp_path / "items" / f"{name}.jsonl", answers("r"))
    assert report_items.benchmarks_of(tmp_path) == ["a-b", "toy-world"]
    assert report_items.benchmarks_of(tmp_path / "none") == []


def test_a_run_is_compared_from_its_items_alone(tmp_path):
    run_dir = tmp_path / "r1"
    for model, pattern in (("base", "rrrr"), ("tuned", "rrww")):
        report_items.write_items(run_dir / "items" / f"{model}-toy-world.jsonl", answers(pattern))
        report_items.write_items(run_dir / "items" / f"{model}-empty.jsonl", [])
    (row,) = paired.compare_run(run_dir)
    assert (row.run, row.benchmark, row.family, row.n, row.change) == ("r1", "toy-world", ALL, 4, -0.5)


# --- sentences ---------------------------------------------------------------------------------------------------


def told_of(rows: list[Comparison], **more: Any) -> str:
    """What a report says was gained and lost."""
    found = headline.summary(rows, **more)
    return f"{found.gained} {found.lost}"


def of(pattern: dict[str, int], benchmark: str, family: str = "a") -> list[Comparison]:
    """The lines of a benchmark with so many items right for: both, base, tuned, neither."""
    marks = {"both": "rr", "base": "rw", "tuned": "wr", "neither": "ww"}
    pairs = [marks[kind] for kind, count in pattern.items() for _ in range(count)]
    return paired.compare_items(
        "r1", benchmark, answers("".join(p[0] for p in pairs), family), answers("".join(p[1] for p in pairs), family)
    )


def losses(change: float, family: str = UNSEEN) -> list[Comparison]:
    before = [1.0, 2.0] * 15
    return paired.compare_items(
        "r1",
        "new-task-loss",
        loss_items(before, family=family),
        loss_items([x + change for x in before], family=family),
    )


LEARNED = of({"both": 10, "tuned": 80, "neither": 10}, "new-task-choices")
UNCHANGED = of({"both": 50, "base": 3, "tuned": 4, "neither": 43}, "new-task-choices")
WORSE = of({"both": 10, "base": 40, "neither": 50}, "new-task-choices")
FORGOT = of({"both": 60, "base": 40}, "toy-world")
KEPT = of({"both": 97, "base": 2, "tuned": 1}, "toy-world")
ROSE = of({"both": 50, "tuned": 40, "neither": 10}, "toy-world")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (LEARNED + FORGOT,
         "It learned the new task: 10 % → 90 % right on 100 held-out questions. "
         "It lost toy-world knowledge: 100 % → 60 %, 40.0 points less, which is beyond noise."),
        (UNCHANGED, "No learning can be told from noise on the new task: 53 % → 54 % right on 100 questions."),
        (WORSE, "It got worse at the new task: 50 % → 10 % right on 100 held-out questions."),
        (KEPT, "The new task was not scored. No loss of toy-world knowledge can be told from noise (99 % → 98 %); "
               "it may have lost up to 5.3 points."),
        (ROSE, "The new task was not scored. Toy-world knowledge rose from 50 % to 90 %, beyond noise."),
        (losses(-0.5), "It learned from the rows: the loss on 30 held-out rows fell from 1.50 to 1.00."),
        (losses(0.5), "It did not carry over: the loss on 30 held-out rows rose from 1.50 to 2.00."),
        (losses(0.0), "No learning can be told from noise: the loss on 30 held-out rows went from 1.50 to 1.50."),
        ([], "The new task was not scored."),
    ],
)  # fmt: skip
def test_the_headline_says_what_was_learned_and_what_was_lost(rows, sentence):
    assert (
        told_of(rows).removesuffix(" No general benchmark was asked, so what it forgot is not known yet.") == sentence
    )


def test_choices_go_before_matched_answers_and_these_before_the_loss():
    exact = of({"tuned": 20}, "new-task-exact", UNSEEN)
    assert "on 100 held-out questions" in told_of(losses(-1) + exact + LEARNED)
    assert "on 20 held-out questions" in told_of(losses(-1) + exact)


def test_a_grader_goes_before_choices_since_it_was_named_to_say_what_is_right():
    graded = of({"tuned": 20}, report_items.GRADED, UNSEEN)
    assert "0 % → 100 % right on 20 held-out questions" in told_of(losses(-1) + LEARNED + graded)
    few = of({"tuned": headline.LEAST_WRITTEN - 1}, report_items.GRADED, UNSEEN)
    assert "on 100 held-out questions" in told_of(few + LEARNED)


PLEASES = paired.compare_items(
    "r1", report_items.ANSWERS,
    *([Item(item=str(i), family="a", prompt_sha="p", rewards=[reward + i % 3]) for i in range(30)] for reward in (0.0, 1.0)),
)  # fmt: skip


@pytest.mark.parametrize("extra", [[], PLEASES, of({"tuned": 20}, report_items.GRADED, UNSEEN)])
@pytest.mark.parametrize("rows", [LEARNED, of({"tuned": 30}, "new-task-preference", UNSEEN) + LEARNED, losses(-1)])
def test_the_frontier_tells_a_run_by_what_its_headline_tells_it_by(rows, extra):
    row, measure = headline.asked(rows + extra), headline.common_measure([rows + extra])
    point = frontier.point("r", rows + extra, {}, measure)
    assert row is not None and (row.benchmark, abs(row.change)) == (measure, point.gain) and point.measure == measure


def test_choices_count_whole_whatever_a_person_called_some_of_them():
    mixed = [answers(one * 9, UNSEEN) + answers(one * 30, "a") for one in "wr"]
    rows = paired.compare_items("r1", "new-task-choices", mixed[0], mixed[1])
    row = headline.asked(rows)
    assert row is not None and row.n == 39 and frontier.point("r", rows, {}, row.benchmark).gain == row.change


def test_runs_are_held_against_each_other_by_the_best_measure_that_all_of_them_have():
    graded, exact = (of({"tuned": 20}, name, UNSEEN) for name in (report_items.GRADED, "new-task-exact"))
    for runs, measure in (
        ([LEARNED + graded, LEARNED + losses(-1)], "new-task-choices"),
        ([exact + losses(-1), LEARNED + losses(-1)], "new-task-loss"),
        ([exact, exact, LEARNED, []], "new-task-exact"),
        ([[], []], None),
        ([], None),
    ):
        assert headline.common_measure(runs) == measure
        points = [frontier.point("r", rows, {}, measure) for rows in runs]
        assert {one.measure for one in points} <= {measure, None}
        assert all((one.gain is None) == (one.measure is None) for one in points)


def test_a_reward_is_a_gain_on_the_frontier_and_no_share_of_a_score():
    rows = PLEASES + of({"both": 90, "base": 10}, "toy-world")
    point = frontier.point("r", rows, {"toy-world": 0.25}, report_items.ANSWERS)
    assert point.gain == pytest.approx(1.0) and frontier.frontier([point])[0].on_frontier
    assert frontier.weighted_score(point, 0.5) is None


def test_a_handful_of_matched_answers_says_less_than_the_loss():
    few = of({"tuned": headline.LEAST_WRITTEN - 1}, "new-task-exact", UNSEEN)
    assert "loss on 30 held-out rows fell" in told_of(few + losses(-1))


@pytest.mark.parametrize("rows", [losses(-0.5, SEEN), of({"tuned": 40}, "new-task-exact", SEEN)])
def test_rows_that_were_trained_on_are_never_called_held_out(rows):
    assert "held-out" not in told_of(rows)


@given(COUNTS)
@example((0, 0, 5, 15))  # a base that knew nothing of it cannot lose, and can gain
def test_a_loss_or_gain_is_claimed_exactly_where_it_is_beyond_noise_and_matters(counts):
    both, base_only, tuned_only, neither = counts
    rows = of({"both": both, "base": base_only, "tuned": tuned_only, "neither": neither}, "toy-world")
    row = rows[0]
    assert paired.beyond_noise(row) == (not row.low <= 0 <= row.high)
    claimed = any(words in told_of(rows) for words in ("It lost toy-world", "knowledge rose"))
    assert claimed == (paired.beyond_noise(row) and abs(row.change) >= 0.01 - 1e-12 and row.n >= 20)


@given(st.floats(0, 0.99))
def test_the_next_replay_share_is_larger_until_it_is_half(share):
    more = remedies.more_replay(share)
    assert 0.1 <= more <= 0.5 and (more > share or share >= 0.5)


# --- preferences, marked answers, reward models ------------------------------------------------------------------


def marked(good: list[float], bad: list[float], family: str = UNSEEN) -> list[Item]:
    """Items of marked answers with these log-likelihoods."""
    return [
        Item(item=f"{family}{kind}{i}", family=family, prompt_sha="p", choices=["good", "bad"], gold=gold,
             loglikelihoods=[x], tokens=3)
        for gold, (kind, values) in enumerate((("good", good), ("bad", bad)))
        for i, x in enumerate(values)
    ]  # fmt: skip


def judged(margins: list[float], family: str = UNSEEN) -> list[Item]:
    """Items of a reward model that gives the chosen answers so much more."""
    return [
        Item(item=f"{family}{i}", family=family, prompt_sha="p", choices=["a", "b"], gold=0, correct=m > 0, rewards=[m, 0.0])
        for i, m in enumerate(margins)
    ]  # fmt: skip


def test_the_gap_is_the_difference_of_means_and_its_change_pairs_each_row_with_itself():
    base, tuned = marked([-10, -30], [-12, -14, -16]), marked([-5, -23], [-13, -15, -17])
    before, after, change, low, high = paired.paired_gap(base, tuned)
    assert (before, after, change) == pytest.approx((-6, 1, 7))
    assert low <= 7 <= high and low >= 6 - 1e-9 and high <= 8 + 1e-9  # rows moved by 5 and 7, and by -1


def test_the_interval_of_a_gap_agrees_with_the_normal_one_for_two_samples():
    dice = np.random.default_rng(5)
    good, bad = dice.normal(2, 3, 300), dice.normal(-1, 4, 200)
    base = marked([-20.0] * 300, [-20.0] * 200)
    _, _, change, low, high = paired.paired_gap(base, marked(list(good - 20), list(bad - 20)))
    half = 1.96 * math.sqrt(good.var() / 300 + bad.var() / 200)
    assert change == pytest.approx(good.mean() - bad.mean())
    assert (low, high) == pytest.approx((change - half, change + half), abs=0.05)


@pytest.mark.parametrize("items", [marked([-1.0, -2.0], []), marked([], [-1.0])])
def test_answers_of_one_label_have_no_gap(items):
    with pytest.raises(ValueError, match="good and bad"):
        paired.paired_gap(items, items)
    assert paired.compare_items("r1", report_items.GAP, items, items) == []


def test_a_reward_run_has_its_accuracy_and_its_margin_from_the_same_items(tmp_path):
    for model, margins in (("base", [0.1, -0.1, 0.2, -0.2]), ("tuned", [2.0, 1.0, 3.0, -1.0])):
        report_items.write_items(tmp_path / "items" / f"{model}-new-task-reward.jsonl", judged(margins))
    accuracy, margin = paired.compare_run(tmp_path)
    assert (accuracy.benchmark, accuracy.base, accuracy.tuned) == ("new-task-reward", 0.5, 0.75)
    assert (margin.benchmark, margin.base_only_right) == ("new-task-margin", None)
    assert (margin.base, margin.tuned, margin.change) == pytest.approx((0, 1.25, 1.25))
    assert margin.low <= 1.25 <= margin.high


PAIRS_BETTER = of({"both": 20, "tuned": 35, "neither": 5}, "new-task-preference", UNSEEN)
PAIRS_WORSE = of({"both": 20, "base": 35, "neither": 5}, "new-task-preference", UNSEEN)
PAIRS_SAME = of({"both": 30, "base": 3, "tuned": 4, "neither": 23}, "new-task-preference", UNSEEN)


def gaps(change: float) -> list[Comparison]:
    wave = [math.sin(i) for i in range(20)]
    return paired.compare_items(
        "r1",
        report_items.GAP,
        marked([-9.0] * 20, [-9.0] * 20),
        marked([-9 + change + x for x in wave], [-9 + x for x in wave]),
    )


def judging(before: int, after: int, of: int = 60) -> list[Comparison]:
    """A reward model that had so many of 60 pairs right."""
    sides = ([1.0] * right + [-1.0] * (of - right) for right in (before, after))
    return paired.compare_items("r1", report_items.REWARD, *(judged(side) for side in sides))


@pytest.mark.parametrize(
    ("rows", "beginning"),
    [
        (
            PAIRS_BETTER,
            "It learned the preference: the better answer is the likelier one in 33 % → 92 % of 60 held-out",
        ),
        (PAIRS_WORSE, "It moved away from the preference: the better answer is the likelier one in 92 % → 33 % of 60"),
        (PAIRS_SAME, "No learning can be told from noise: the better answer is the likelier one in 55 % → 57 % of 60"),
        (
            gaps(5),
            "It learned to tell good from bad: on 40 held-out answers, good ones became 148 times as likely against",
        ),
        (
            gaps(-5),
            "It learned the wrong way round: on 40 held-out answers, bad ones became 148 times as likely against good ones.",
        ),
        (gaps(0), "No learning can be told from noise: on 40 answers"),
        (
            judging(28, 51),
            "It learned to judge: 47 % → 85 % of 60 held-out pairs as the person did, where chance is 50 %.",
        ),
        (judging(51, 28), "It judges worse than before: 85 % → 47 % of 60 held-out pairs as the person did."),
        (judging(30, 32), "No learning can be told from noise: it judges 50 % → 53 % of 60 pairs as the person did."),
    ],
)
def test_the_headline_of_preference_runs(rows, beginning):
    assert told_of(rows).startswith(beginning)
    assert "It lost toy-world knowledge" in told_of([*rows, *FORGOT])


@pytest.mark.parametrize(
    ("rows", "more", "headline_is", "to_do", "action"),
    [
        (LEARNED + KEPT, {}, "It learned the task. No loss was found.", "Nothing to mend: use it.", "use"),
        (LEARNED + FORGOT, {"can_recover": True}, "It learned the task. It lost some of what it knew.", "Recover: go",
         "recover"),
        (LEARNED + FORGOT, {"can_recover": True, "remedy": "More replay: 20 %. Measured."}, "It learned the task. It lost",
         "Train it again with one thing changed. More replay: 20 %. Measured.", "remedy"),
        (UNCHANGED + KEPT, {}, "It learned nothing that matters. No loss was found.", "It learned nothing to use", "again"),
        (UNCHANGED + FORGOT, {"can_recover": True, "remedy": "x"}, "It learned nothing that matters. It lost some",
         "Keep the base", "again"),
        (WORSE + KEPT, {}, "It got worse at the task. No loss was found.", "Keep the base", "again"),
        (LEARNED, {}, "It learned the task. What it lost is not known.", "Ask it general questions", "ask"),
        (KEPT, {}, "What it learned is not known. No loss was found.", "Compare its answers", "compare"),
        (LEARNED + KEPT, {"moved": False}, "Nothing was learned.", "There is nothing to use", "again"),
        (judging(28, 51), {}, "It learned the task.", "Nothing to mend: use it.", "use"),
    ],
)  # fmt: skip
def test_what_to_do_is_what_the_figures_speak_for_and_nothing_else(rows, more, headline_is, to_do, action):
    found = headline.summary(rows, **more)
    assert found.headline.startswith(headline_is) and found.to_do.startswith(to_do) and found.action == action


@pytest.mark.parametrize(
    ("change", "spread", "told"),
    [
        (0.2, 0.05, "It lost some of what it knew. General text: worse."),
        (-0.2, 0.05, "No loss was found. General text: better."),
        (0.0, 0.01, "No loss was found. General text: unchanged."),
        (0.0, 0.5, "No loss was found. General text: no change found."),
        (0.019, 0.002, "No loss was found. General text: hardly changed."),
    ],
)
def test_whether_general_text_changed_stands_in_the_first_sentence_beside_benchmarks_and_in_no_unit(
    change, spread, told
):
    text = paired.Comparison(
        run="r", benchmark="general-text", family=ALL, n=100, base=3.0, tuned=3.0 + change, change=change,
        low=change - spread, high=change + spread, base_only_right=None, tuned_only_right=None,
    )  # fmt: skip
    found = headline.summary([*LEARNED, *KEPT, text])
    assert found.headline == f"It learned the task. {told}"
    assert "nats" not in " ".join([found.headline, found.gained, found.lost, found.to_do])


@given(COUNTS)
def test_a_remedy_or_the_way_back_is_offered_only_where_something_was_lost_for_something(counts):
    both, base_only, tuned_only, neither = counts
    rows = LEARNED + of({"both": both, "base": base_only, "tuned": tuned_only, "neither": neither}, "toy-world")
    found = headline.summary(rows, can_recover=True)
    assert (found.action == "recover") == ("It lost some" in found.headline) == found.lost.startswith("It lost")


@given(COUNTS, st.sampled_from([0.0, 0.25, 0.5]))
def test_most_is_lost_only_where_less_than_half_of_what_was_known_above_chance_is_left(counts, chance):
    both, base_only, tuned_only, neither = counts
    rows = of({"both": both, "base": base_only, "tuned": tuned_only, "neither": neither}, "toy-world")
    said = headline.summary(LEARNED + rows, chance={"toy-world": chance}).headline
    n = sum(counts)
    before, after = (both + base_only) / n - chance, (both + tuned_only) / n - chance
    if "It lost" in said:
        assert ("It lost most of what it knew." in said) == (after / before < 0.5 - 1e-9), (before, after)
        assert ("It lost some of what it knew." in said) != ("It lost most of what it knew." in said)


def test_one_benchmark_lost_among_several_that_were_kept_is_some():
    gone, kept = of({"both": 31, "base": 69}, "toy-world"), of({"both": 97, "base": 3}, "keeps-language")
    chance = {"toy-world": 0.0, "keeps-language": 0.0}
    assert "It lost most" in headline.summary(LEARNED + gone, chance=chance).headline
    assert "It lost some" in headline.summary(LEARNED + gone + kept, chance=chance).headline


MUTE = of({"both": 40, "base": 60}, "keeps-language")


@pytest.mark.parametrize("toy", [KEPT, ROSE, []])
def test_a_real_drop_is_what_the_report_says_was_lost_wherever_it_is(toy):
    found = headline.summary(LEARNED + toy + MUTE)
    assert "It lost some" in found.headline and "a real drop of 60.0 points" in found.lost


def test_what_was_lost_beside_the_worst_is_named_and_points_go_before_nats():
    both = headline.summary(LEARNED + FORGOT + MUTE).lost
    assert both.startswith("It lost toy-world knowledge") and both.endswith(
        f"Also lost: {verdicts.title('keeps-language')}."
    )
    text = [msgspec.structs.replace(row, benchmark="general-text") for row in losses(0.5, ALL)]
    assert headline.summary(LEARNED + text + MUTE).lost.startswith(verdicts.title("keeps-language"))


@pytest.mark.parametrize("origin", ["brought", "point"])
@pytest.mark.parametrize("learned", [[], LEARNED, UNCHANGED, WORSE, losses(-0.5)])
@pytest.mark.parametrize("lost", [[], KEPT, FORGOT])
@pytest.mark.parametrize("can", [True, False])
def test_what_was_not_trained_here_is_never_trained_again(origin, learned, lost, can):
    for moved in (True, False):
        found = headline.summary(learned + lost, origin=origin, moved=moved, can_recover=can, can_compare=can)
        assert found.action not in ("again", "remedy") and "rain it again" not in found.to_do


@pytest.mark.parametrize("rows", [judging(2, 9, of=10), of({"tuned": 6}, "new-task-choices") + KEPT])
def test_of_too_few_held_out_rows_more_are_asked_for_and_no_comparison(rows):
    found = headline.summary(rows)
    assert found.action == "again" and "Hold out at least 20 rows" in found.to_do


def test_pairs_that_were_trained_on_are_never_called_held_out():
    seen = of({"tuned": 40}, "new-task-preference", SEEN)
    assert "held-out" not in told_of(seen)


# --- the formulas against SciPy, sacrebleu and brute force -----------------------------------------------------------


def test_the_exact_test_over_arrays_is_scipys_binomial_test():
    dice = np.random.default_rng(1)
    lost, won = dice.integers(0, 60, 40), dice.integers(0, 60, 40)
    expected = [
        stats.binomtest(int(b), int(b + c), 0.5).pvalue if b + c else 1.0 for b, c in zip(lost, won, strict=True)
    ]
    assert statistics.mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)
    assert [statistics.mcnemar(int(b), int(c)) for b, c in zip(lost, won, strict=True)] == pytest.approx(
        expected, rel=1e-9
    )


def test_the_intervals_over_seeds_are_scipys():
    dice = np.random.default_rng(2)
    for n, m in ((3, 3), (2, 5), (10, 4)):
        first, second = dice.normal(0, 1, n), dice.normal(1, 3, m)
        own = stats.ttest_1samp(first, 0).confidence_interval(0.95)
        assert statistics.t_interval(first.tolist()) == pytest.approx((first.mean(), own.low, own.high))
        two = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
        assert statistics.welch(first.tolist(), second.tolist()) == pytest.approx(
            (first.mean() - second.mean(), two.low, two.high)
        )
    assert statistics.t_interval([0.3]) == (0.3, -math.inf, math.inf)


def test_the_interval_of_a_share_is_scipys_exact_one():
    for right, n in ((130, 452), (0, 10), (10, 10), (30, 40)):
        expected = stats.binomtest(right, n).proportion_ci(0.95, "exact")
        assert statistics.share_interval(right, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("right", "at_chance"), [(100, True), (113, True), (115, False), (160, False)])
def test_only_a_base_clearly_above_chance_can_show_a_loss_and_the_headline_takes_no_other(right, at_chance):
    rows = of({"both": right - 20, "base": 20, "neither": 200 - right}, "blimp")
    (judged,) = verdicts.judge(rows, {"blimp": 0.5})
    assert (judged.verdict == "at chance") == at_chance
    shown = [*rows, *of({"both": 170, "base": 5, "neither": 25}, "grammar-zh")]
    said = told_of(shown, chance={"blimp": 0.5, "grammar-zh": 0.5})
    assert ("BLiMP" in said) != at_chance


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_is_never_smaller_keeps_the_order_and_multiplies_the_least_by_all(p_values):
    adjusted = statistics.holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(1, len(p_values) * min(p_values)))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_holms_correction_of_a_known_case():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_bleu_from_sums_is_sacrebleus_in_english_and_chinese():
    from sacrebleu.metrics.bleu import BLEU as SacreBleu

    pairs = [
        ("the cat sat on the mat today", "the cat sat on a mat today"),
        ("a dog", "a dog barked loudly now"),
        ("nothing alike here at all", "quite other words, every one"),
        ("我 爱 你", "我 爱 北京"),
    ]
    for tokenize in ("13a", "zh"):
        for chosen in (pairs, pairs[:2], pairs[2:], pairs[1:2]):
            scorer = SacreBleu(tokenize=tokenize)
            whole = scorer.corpus_score([h for h, _ in chosen], [[r for _, r in chosen]])
            each = [scorer.corpus_score([h], [[r]]) for h, r in chosen]
            sums = np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in each]).sum(axis=0)
            assert float(statistics.bleu(sums)) == pytest.approx(whole.score, abs=1e-9)


def test_items_that_share_a_passage_have_a_wider_interval():
    dice = np.random.default_rng(4)
    shared = np.repeat(dice.normal(0, 1, 40), 10) + dice.normal(0, 0.1, 400)
    clusters = np.repeat(np.arange(40), 10).tolist()
    alone, together = statistics.bootstrap(shared), statistics.bootstrap(shared, None, clusters)
    assert together.std() > 2.5 * alone.std()
    assert together.std() == pytest.approx(shared.reshape(40, 10).mean(axis=1).std() / math.sqrt(40), rel=0.05)


@pytest.mark.parametrize(("n", "noise", "drop"), [(30, 0.05, 0.2), (24, 0.0, 0.3), (40, 0.1, 0.15)])
def test_the_power_is_that_of_every_outcome_counted_one_by_one(n, noise, drop):
    total = 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            if statistics.is_real_drop(np.array(lost), np.array(won), n):
                total += stats.multinomial.pmf(
                    [lost, won, n - lost - won], n, [noise + drop, noise, 1 - 2 * noise - drop]
                )
    assert statistics.power(n, noise, drop) == pytest.approx(total, abs=1e-9)


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "noise"), [(100, 0.02), (200, 0.15), (450, 0.01), (1400, 0.05)])
def test_of_2000_pairs_of_equal_models_at_most_5_in_100_are_called_a_real_drop(n, noise):
    drawn = np.random.default_rng(7).multinomial(n, [noise, noise, 1 - 2 * noise], size=2000)
    assert statistics.is_real_drop(drawn[:, 0], drawn[:, 1], n).mean() <= 0.05


@pytest.mark.parametrize(("n", "noise"), [(100, 0.02), (200, 0.1), (450, 0.005), (1400, 0.05)])
def test_of_the_smallest_drops_a_set_can_show_at_least_78_in_100_are_found(n, noise):
    drop = statistics.detectable_drop(n, noise)
    assert drop is not None and statistics.power(n, noise, drop) == pytest.approx(0.85, abs=0.02)
    drawn = np.random.default_rng(8).multinomial(n, [noise + drop, noise, 1 - 2 * noise - drop], size=2000)
    assert statistics.is_real_drop(drawn[:, 0], drawn[:, 1], n).mean() >= 0.78


def test_a_set_that_is_too_small_says_that_it_shows_nothing():
    assert statistics.detectable_drop(4, 0.0) is None


def verdict_of(pattern: dict[str, int], chance: float = 0.25, **more: Any) -> verdicts.Judged:
    (judged,) = verdicts.judge(of(pattern, "toy-world"), {"toy-world": chance}, **more)
    return judged


def test_a_real_drop_is_called_so_with_what_was_kept():
    judged = verdict_of({"both": 300, "base": 60, "tuned": 5, "neither": 35})
    assert (
        judged.verdict == "real drop"
        and judged.sentence == "toy-world knowledge: a real drop of 13.8 points, between 9.9 and 17.4."
    )
    kept, low, high = judged.retention, judged.retention_low, judged.retention_high
    assert kept is not None and low is not None and high is not None
    assert kept == pytest.approx((305 / 400 - 0.25) / (360 / 400 - 0.25)) and low < kept < high < 1


def test_no_detectable_change_leads_with_what_could_have_been_lost():
    judged = verdict_of({"both": 80, "base": 4, "tuned": 2, "neither": 14})
    assert judged.verdict == "no detectable change"
    assert judged.sentence.startswith("toy-world knowledge: it may have lost up to ")
    assert f"{100 * judged.could_have_lost:.1f} points; no detectable change in 100 questions." in judged.sentence
    assert judged.detectable is not None and f"{100 * judged.detectable:.1f}" not in judged.sentence  # one bound


def test_many_items_without_a_change_are_equivalent_and_not_merely_undetected():
    assert verdict_of({"both": 2000, "neither": 100}).verdict == "equivalent"
    assert verdict_of({"both": 2000, "neither": 100}, margin=0.0001).verdict == "no detectable change"


def test_two_evaluations_of_the_same_model_show_no_real_drop():
    same = of({"both": 300, "neither": 152}, "toy-world")
    (judged,) = verdicts.judge(same, {"toy-world": 0.25})
    assert judged.verdict == "equivalent" and judged.p == 1.0


def test_a_base_at_chance_cannot_show_forgetting_and_stays_out_of_score_and_frontier():
    rows = of({"both": 20, "base": 10, "neither": 90}, "toy-world") + LEARNED
    (judged,) = verdicts.judge(rows, {"toy-world": 0.25})
    assert judged.verdict == "at chance" and judged.sentence == (
        "toy-world knowledge: this base answers 25 % where chance is 25 % (120 questions, between 18 and 34 %): it cannot "
        "show a loss here."
    )
    found = frontier.point("r", rows, {"toy-world": 0.25}, report_items.CHOICES)
    assert found.left_out == ["toy-world"] and found.retention is None
    assert frontier.weighted_score(found, 0.5) is None and not frontier.frontier([found])[0].on_frontier


def test_several_benchmarks_are_corrected_for():
    drop = {"both": 88, "base": 7, "neither": 5}
    alone = verdicts.judge(of(drop, "blimp"), {"blimp": 0.5})
    assert alone[0].verdict == "real drop" and alone[0].p == pytest.approx(2 / 2**7)
    others = [row for name in ("piqa-150", "misconceptions", "x", "y") for row in of({"both": 95, "neither": 5}, name)]
    judged = verdicts.judge(of(drop, "blimp") + others, {"blimp": 0.5})
    assert judged[0].p_holm == pytest.approx(5 * 2 / 2**7) and judged[0].verdict == "no detectable change"


def test_a_rise_of_the_loss_on_general_text_is_a_real_drop_and_a_fall_is_not():
    for shift, verdict in ((0.3, "real drop"), (-0.3, "real gain"), (0.0, "equivalent")):
        wave = [0.01 * math.sin(i) for i in range(30)]
        rows = paired.compare_items(
            "r1", "general-text", loss_items([2.0] * 30), loss_items([2 + shift + x for x in wave])
        )
        assert verdicts.judge(rows)[0].verdict == verdict


def test_bits_per_byte_come_from_the_same_items():
    told: dict[str, Any] = {"family": "x", "prompt_sha": "p", "tokens": 2, "size_bytes": 10}
    items = [[Item(item=str(i), loglikelihoods=[-nats], **told) for i in range(3)] for nats in (5.0, 6.0)]
    rows = {row.benchmark: row for row in paired.compare_all("r1", "general-text", *items)}
    assert rows["general-text"].base == pytest.approx(2.5)
    bits = rows["general-text:bits-per-byte"]
    assert (bits.base, bits.tuned) == pytest.approx((0.5 / math.log(2), 0.6 / math.log(2)))


def test_kl_is_read_per_token_and_never_taken_for_general_knowledge(tmp_path):
    (tmp_path / "items").mkdir()
    lines = [{"item": str(i), "family": "unseen rows", "kl_nats": 2.0 + i, "tokens": 4} for i in range(3)]
    (tmp_path / "items" / "kl-to-base.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = paired.compare_run(tmp_path)
    assert (row.benchmark, row.base, row.tuned, row.n) == ("kl-to-base", 0.0, pytest.approx(9 / 12), 3)
    assert row.low <= row.tuned <= row.high and verdicts.judge([row]) == []


# --- runs against each other -------------------------------------------------------------------------------------------


def at(name: str, gain: float, retention: float, low: float = -0.01) -> frontier.Point:
    return frontier.Point(
        name=name, runs=[name], measure="new-task-choices", gain=gain, new_task=gain, retention=retention,
        change=retention - 1, change_low=low, change_high=0.0,
    )  # fmt: skip


PLACES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(PLACES)
def test_the_frontier_is_what_no_other_point_beats(places):
    marked = frontier.frontier([at(str(i), x / 5, y / 5) for i, (x, y) in enumerate(places)])
    for one, (x, y) in zip(marked, places, strict=True):
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in places)
        assert one.on_frontier == (not beaten)


def test_the_point_to_take_is_chosen_by_the_bad_end_of_its_interval():
    points = [at("bold", 0.9, 0.9, low=-0.2), at("safe", 0.7, 0.99, low=-0.008), at("timid", 0.1, 1.0, low=0.0)]
    assert [p.name for p in (frontier.pick(points, 0.01), frontier.pick(points, 0.3)) if p is not None] == [
        "safe",
        "bold",
    ]
    assert frontier.pick(points[:1], 0.01) is None


def test_the_weighted_score_is_the_mean_with_the_weights_shown():
    assert frontier.weighted_score(at("a", 0.8, 0.9), 0.25) == pytest.approx(0.25 * 0.8 + 0.75 * 0.9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        frontier.weighted_score(at("a", 0.8, 0.9), 1.5)


def test_recipes_are_compared_over_seeds():
    seeds = [at("a", 0.8, 0.90), at("b", 0.9, 0.94), at("c", 0.85, 0.92)]
    found = frontier.over_seeds("lora", seeds)
    assert (found.retention, found.retention_low, found.retention_high) == pytest.approx(
        statistics.t_interval([0.90, 0.94, 0.92])
    )
    assert found.runs == ["a", "b", "c"] and found.name == "lora"

"""The split: seeded, by group, so that one question is never on both sides, and never more than was asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec import split

SHARES = st.floats(0.01, 0.9)


def pair(question: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        "messages": None,
        "text": None,
    }


def dialogue(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "text": None}


def text(question: str, answer: str) -> dict[str, Any]:
    return {"text": question}


QUESTIONS = st.lists(st.sampled_from([f"q{i}" for i in range(12)]), max_size=60)
SHAPES = st.sampled_from([pair, dialogue, text])


def rows_of(questions: list[str], shape: Any = pair) -> list[dict[str, Any]]:
    return [shape(question, f"answer {i}") for i, question in enumerate(questions)]


@given(QUESTIONS, SHARES, st.integers(0, 9), SHAPES)
def test_the_same_question_is_never_on_both_sides(questions, share, seed, shape):
    out = set(split.held_out(rows_of(questions, shape), share, seed))
    held = {question for index, question in enumerate(questions) if index in out}
    trained = {question for index, question in enumerate(questions) if index not in out}
    assert not held & trained


@given(QUESTIONS, SHARES, st.integers(0, 9))
def test_the_same_seed_holds_out_the_same_rows_and_each_index_once(questions, share, seed):
    rows = rows_of(questions)
    out = split.held_out(rows, share, seed)
    assert out == split.held_out(rows_of(questions), share, seed)
    assert out == sorted(set(out)) and all(0 <= index < len(rows) for index in out)


@given(QUESTIONS, SHARES, st.integers(0, 9), st.randoms())
def test_the_order_of_the_rows_does_not_choose_the_questions(questions, share, seed, random):
    shuffled = questions[:]
    random.shuffle(shuffled)
    held = {questions[i] for i in split.held_out(rows_of(questions), share, seed)}
    assert held == {shuffled[i] for i in split.held_out(rows_of(shuffled), share, seed)}


@given(QUESTIONS, SHARES, st.integers(0, 9))
def test_the_share_is_kept_to_within_one_group(questions, share, seed):
    groups = Counter(questions)
    count = len(split.held_out(rows_of(questions), share, seed))
    if len(groups) < 2:
        assert count == 0
        return
    wanted = max(1, round(share * len(questions)))
    assert 1 <= count < wanted + max(groups.values())
    largest_possible = len(questions) - max(groups.values())
    assert count >= min(wanted, largest_possible)


@given(QUESTIONS, st.floats(0, 1), st.integers(0, 9))
def test_something_is_always_left_to_train_on(questions, share, seed):
    assert not questions or len(split.held_out(rows_of(questions), share, seed)) < len(questions)


@pytest.mark.parametrize("share", [0, -0.1])
def test_no_share_holds_nothing_out(share):
    assert split.held_out(rows_of(["a", "b", "c"]), share, 0) == []


def test_other_seeds_hold_out_other_rows():
    rows = rows_of([f"q{i}" for i in range(100)])
    assert len({tuple(split.held_out(rows, 0.1, seed)) for seed in range(5)}) == 5


def test_a_large_file_holds_out_no_more_than_an_interval_needs():
    rows = rows_of([f"q{i}" for i in range(12_000)])
    assert len(split.held_out(rows, 0.5, 0)) == split.MOST_HELD_OUT == 500


@given(st.lists(st.integers(1, 4), min_size=2, max_size=20), st.integers(0, 9))
def test_groups_do_not_lift_the_cap(sizes, seed):
    questions = [f"q{i}" for i, size in enumerate(sizes) for _ in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "MOST_HELD_OUT", 5)
        assert len(split.held_out(rows_of(questions), 0.9, seed)) <= 5


def test_every_seed_draws_questions_about_equally_often():
    rows = rows_of([f"q{i}" for i in range(10)])
    drawn = Counter(index for seed in range(2000) for index in split.held_out(rows, 0.1, seed))
    assert sum(drawn.values()) == 2000 and min(drawn.values()) > 150


def test_a_question_before_a_closing_thanks_is_still_the_same_question():
    thanked = dialogue("q", "one")
    thanked["messages"].append({"role": "user", "content": "Thanks!"})
    rows = [thanked, *(dialogue("q", f"answer {i}") for i in range(5)), dialogue("other", "answer")]
    for seed in range(20):
        assert split.held_out(rows, 0.5, seed) in ([6], [0, 1, 2, 3, 4, 5])


def test_rows_without_a_question_are_told_apart_by_what_they_say():
    rows = [{"messages": [{"role": "assistant", "content": f"Fact {i}."}], "text": None} for i in range(50)]
    assert len(split.held_out(rows, 0.1, 0)) == 5


def test_a_lone_surrogate_in_a_question_does_not_stop_the_split():
    assert len(split.held_out(rows_of(["\ud800", "b", "ü"]), 0.3, 0)) == 1

"""Answers side by side without names: an order that a seed alone decides, choices that stay, and wins not oversold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from engine.report import Comparison, Item, blind, headline
from engine.report.items import SEEN, UNSEEN, Joined
from engine.report.statistics import LEAST_QUESTIONS
from engine.workspace import Unreadable

WON, LOST = "the tuned one's words", "the base's words"


def joined(n: int, same: int = 0, name: str = blind.TEXTS, family: str = UNSEEN) -> dict[str, Joined]:
    """A benchmark of written answers, of which the first `same` are word for word alike."""

    def side(text: str) -> list[Item]:
        return [
            Item(item=str(i), family=family, prompt_sha="p", prompt=f"question {i}", text="alike" if i < same else text)
            for i in range(n)
        ]

    return {name: Joined(name, side(LOST), side(WON))}


def _made(pairs: list[blind.Pair], won: int, lost: int) -> blind.Judgements:
    """Prefer the tuned model so many times, then the base, then neither."""
    found = blind.Judgements(seed=7)
    for number, pair in enumerate(blind.left_to_judge(found, pairs)):
        tuned, base = ("left", "right") if pair.tuned_is_left else ("right", "left")
        found = blind.judged(found, pair, tuned if number < won else base if number < won + lost else "same")
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_the_order_and_the_sides_hang_on_the_seed_and_the_prompt_alone(seed: int, n: int) -> None:
    pairs = blind.drawn(joined(n), seed)
    assert pairs == blind.drawn(joined(n), seed) and len(pairs) == min(n, blind.PROMPTS)
    assert all({pair.left, pair.right} == {WON, LOST} for pair in pairs)
    assert all((pair.left == WON) == pair.tuned_is_left for pair in pairs)
    sides = {pair.item: pair.tuned_is_left for pair in pairs}
    more = {pair.item: pair.tuned_is_left for pair in blind.drawn(joined(n + 5), seed)}
    assert all(sides[item] == more[item] for item in sides.keys() & more.keys())


def test_over_many_prompts_neither_side_gives_the_model_away() -> None:
    left = [pair.tuned_is_left for seed in range(40) for pair in blind.drawn(joined(30), seed)]
    assert 0.45 < sum(left) / len(left) < 0.55
    assert blind.drawn(joined(30), 1) != blind.drawn(joined(30), 2)


@given(st.integers(0, 15), st.integers(0, 8), st.integers(0, 7))
@example(14, 14, 2)
@example(22, 5, 3)
@example(5, 22, 3)
def test_wins_are_counted_as_they_were_chosen_and_their_interval_is_the_exact_one(
    won: int, lost: int, ties: int
) -> None:
    pairs = blind.drawn(joined(won + lost + ties), 7)
    counted = blind.wins(_made(pairs, won, lost), pairs)
    assert (counted.won, counted.lost) == (won, lost) and sum(counted) == len(pairs)
    if counted.decided < LEAST_QUESTIONS:
        assert counted.verdict == "too few" and "too few to say" in counted.sentence and "%" not in counted.sentence
        return
    expected = stats.binomtest(won, won + lost).proportion_ci(0.95, "exact")
    assert counted.interval == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (counted.verdict == "better") == (expected.low > 0.5)
    assert (counted.verdict == "worse") == (expected.high < 0.5)


def test_the_sentence_names_wins_interval_and_ties() -> None:
    assert blind.Wins(19, 8, 3).sentence == "Names hidden, the tuned model won 19 of 27 (70 % [50, 86]); ties: 3."


def test_the_same_words_are_a_tie_that_nobody_is_asked_about() -> None:
    pairs = blind.drawn(joined(10, same=4), 3)
    found = blind.begin()
    assert len(blind.left_to_judge(found, pairs)) == 6
    assert blind.wins(found, pairs) == (0, 0, 4)


def test_rows_that_were_trained_on_are_not_shown_and_whole_answers_go_first() -> None:
    assert not blind.has_texts(joined(30, family=SEEN))
    both = joined(5) | joined(8, name="new-task-exact")
    assert len(blind.drawn(both, 0)) == 5


def test_what_was_judged_of_other_words_does_not_count_and_is_asked_again() -> None:
    pairs = blind.drawn(joined(6), 1)
    found = _made(pairs, 6, 0)
    rewritten = [pair._replace(answers="other") if pair.item == "2" else pair for pair in pairs]
    assert [pair.item for pair in blind.left_to_judge(found, rewritten)] == ["2"]
    assert blind.wins(found, rewritten).won == 5


def test_choices_are_gone_on_with_and_the_last_can_be_taken_back(tmp_path: Path) -> None:
    pairs = blind.drawn(joined(4), 1)
    assert blind.read(tmp_path) is None
    blind.write(tmp_path, blind.judged(blind.Judgements(seed=1), pairs[0], "left"))
    found = blind.read(tmp_path)
    assert found is not None and blind.left_to_judge(found, pairs) == pairs[1:]
    assert blind.left_to_judge(blind.undone(found), pairs) == pairs
    assert blind.undone(blind.Judgements(seed=1)) == blind.Judgements(seed=1)


def test_once_the_names_were_shown_nothing_is_added_and_before_that_there_is_no_result(tmp_path: Path) -> None:
    asked = joined(4)
    found = _made(blind.drawn(asked, 7), 3, 1)
    blind.write(tmp_path, found)
    assert blind.result(tmp_path, asked) is None
    ended = blind.ended(found)
    blind.write(tmp_path, ended)
    assert blind.result(tmp_path, asked) == (3, 1, 0)
    assert blind.undone(ended) == ended and blind.judged(ended, blind.drawn(asked, 7)[0], "same") == ended


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"seed": "x"}', b'{"seed": 1, "more": 2}', b"\xff"])
def test_a_damaged_file_of_choices_is_said_and_not_taken_for_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / blind.FILE).write_bytes(data)
    with pytest.raises(Unreadable):
        blind.read(tmp_path)


def losses(change: float) -> list[Comparison]:
    return [
        Comparison(run="r", benchmark="new-task-loss", family=UNSEEN, n=30, base=2.0, tuned=2.0 + change, change=change,
                   low=change - 0.1, high=change + 0.1, base_only_right=None, tuned_only_right=None)
    ]  # fmt: skip


def test_wins_are_the_headline_where_nothing_scores_the_answers_and_stand_beside_it_elsewhere() -> None:
    wins = blind.Wins(22, 5, 3)
    assert headline.summary(losses(-0.5), blind=wins).headline.startswith(wins.sentence)
    scored = [
        Comparison(run="r", benchmark="new-task-choices", family="all", n=100, base=0.2, tuned=0.9, change=0.7, low=0.6,
                   high=0.8, base_only_right=0, tuned_only_right=70)
    ]  # fmt: skip
    told = headline.summary(scored, blind=wins)
    assert told.headline.startswith("It learned the task.") and wins.sentence in told.gained


def test_too_few_choices_decide_nothing() -> None:
    few = blind.Wins(9, 0, 1)
    assert headline.summary([], blind=few).action == "compare"
    assert "too few to say" in headline.summary([], blind=few).headline

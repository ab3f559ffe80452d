"""The Chinese questions are what their templates make: balanced, without repeats, and right by construction."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.benchmarks import chinese, library

PAIRS = {family: set(pairs()) for family, pairs in chinese.FAMILIES.items()}


def test_what_ships_is_what_the_templates_make():
    shipped = [json.loads(line) for line in chinese.TARGET.read_text("utf-8").splitlines()]
    assert shipped == chinese.rows() and len(shipped) == 300


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.integers(2, 40))
def test_pairs_are_drawn_without_repeats_and_the_right_one_stands_first_as_often_as_second(seed, each):
    rows = chinese.rows(seed, each)
    assert len(rows) == each * len(chinese.FAMILIES)
    assert len({tuple(sorted(row["choices"])) for row in rows}) == len({row["item"] for row in rows}) == len(rows)
    for family in chinese.FAMILIES:
        golds = [row["gold"] for row in rows if row["family"] == family]
        assert abs(2 * sum(golds) - len(golds)) <= 1
    for row in rows:
        right, wrong = row["choices"][row["gold"]], row["choices"][1 - row["gold"]]
        assert (right, wrong) in PAIRS[row["family"]]


@pytest.mark.parametrize("family", list(chinese.FAMILIES))
def test_no_sentence_is_right_and_wrong_and_both_of_a_pair_are_equally_long(family):
    pairs = PAIRS[family]
    assert len(pairs) >= 2 * chinese.EACH
    assert not {right for right, _ in pairs} & {wrong for _, wrong in pairs}
    assert all(len(right) == len(wrong) and right != wrong for right, wrong in pairs)


def test_a_wrong_measure_word_is_none_that_can_count_the_noun():
    for right, wrong in chinese.measure_words():
        ((own, other),) = [pair for pair in zip(right, wrong, strict=True) if pair[0] != pair[1]]
        noun = next(noun for nouns in chinese.MEASURED.values() for noun in nouns if right.endswith(f"{own}{noun}。"))
        can = next(nouns[noun] for nouns in chinese.MEASURED.values() if noun in nouns)
        assert own in can and other not in can


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["今天天气很好。", "The file is named 文件, and lies beside it."], None),
        (["今天天气很好，我们去 Hyde Park 散步吧，那里有很多花。"], "zh"),
        (["今日はとても天気がいいですね。散歩に行きましょう。"], None),
        (["Good morning!"], None),
        (["", "123"], None),
        ([], None),
    ],
)
def test_the_language_of_data_is_told_by_its_letters(texts, language):
    assert library.language_of(texts) == language


def test_chinese_data_is_asked_in_chinese_first_and_in_english_too():
    assert library.sets(toy=False, language="zh")["quick"].benchmarks[:2] == ["general-text-zh", "grammar-zh"]
    assert set(library.sets(toy=False)["quick"].benchmarks) < set(
        library.sets(toy=False, language="zh")["quick"].benchmarks
    )
    assert library.sets(toy=True, language="zh") == library.sets(toy=True)

"""Graders: each preset finds its examples right and wrong, whatever is asked of one ends in time, and says all that is
wrong with it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import graders
from engine.graders import grade, making, matching, patterns, scripts
from engine.spec.schema import GraderRef


def make(name: str, **parameters: Any) -> graders.Grader:
    return graders.make(GraderRef(name, parameters))


def grades(name: str, answer: str, row: dict[str, Any] | None = None, **parameters: Any) -> bool:
    return make(name, **parameters).grade(answer, row or {}).right


def refused(name: str, **parameters: Any) -> list[str]:
    with pytest.raises(graders.Refused) as told:
        make(name, **parameters)
    return [problem.rule for problem in told.value.problems]


PRESETS = [pytest.param(preset, id=preset.id) for preset in graders.presets()]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_grades_its_own_examples(preset):
    made = make(preset.id)
    wrong = [
        (one, made.grade(one.answer, one.row))
        for wanted, examples in ((True, preset.examples.right), (False, preset.examples.wrong))
        for one in examples
        if made.grade(one.answer, one.row).right != wanted
    ]
    assert wrong == []


def test_no_preset_is_called_as_a_kind_is():
    assert len(making.names()) == len(set(making.names()))


def test_every_kind_is_shown_by_a_preset():
    shown = {preset.name for preset in graders.presets()}
    assert set(making._KINDS) == shown


ANSWERS = st.text(max_size=300) | st.text("0123456789.,/-+%eE ", max_size=60) | st.text("{}[]\"':,1a ", max_size=60)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=50) | st.none(),
        "reference": ANSWERS | st.none() | st.integers(),
        "choices": st.lists(st.text(max_size=9) | st.none(), max_size=4) | st.none(),
        "gold": st.integers(-2, 9) | st.none() | st.text(max_size=2),
        "ended": st.booleans() | st.none(),
    },
)
ALL = [make(preset.id) for preset in graders.presets()]


@given(ANSWERS, ROWS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_whatever_the_answer_and_the_row_a_grade_is_a_share_with_a_reason(answer, row):
    for made in ALL:
        found = made.grade(answer, row)
        assert 0 <= found.score <= 1 and found.reason and found.right == (found.score >= made.right_score)
        assert made.grade(answer, row) == found


@given(st.text(min_size=1, max_size=80))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_reference_is_its_own_right_answer(text):
    for name in ("exact", "same-words"):
        assert grades(name, text, {"reference": text}) == bool(text.strip())


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{:,}", "{}", "{}.", "it is {}", "$ {:,}.", "{}.00", "**{}**"]))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_number_is_read_however_it_is_written(number, form):
    assert grades("number", form.format(number), {"reference": str(number)})
    assert not grades("number", form.format(number + 7), {"reference": str(number)}, relative=0)


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=999))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_fraction_is_its_value(value):
    assert grades("number", f"{value.numerator}/{value.denominator}", {"reference": f"{float(value):.12f}"})


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("50 %", "0.5", True), ("50 %", "50", True), ("50 %", "5", False),
        ("百分之50", "50%", True), ("1 1/2", "1.5", True),
        ("1/0", "0", False), ("10-5", "5", True), ("x=-5", "-5", True), ("−5", "-5", True),
        ("3万", "30000", True), ("1.5亿", "150,000,000", True),
        ("1e5", "100000", True), ("1" * 5_000, "1", False), ("٣", "3", True), ("１２３", "123", True),
        ("v1.2.3", "3", False),
        ("½", "0.5", True), ("2 ½", "2.5", True), ("1½", "3/2", True), ("−¾", "-0.75", True), ("1⅓", "4/3", True),
        ("1\u00a0234", "1234", True), ("12\u202f345\u202f678", "12345678", True), ("1{,}234", "1234", True),
        ("1’234", "1234", True),
        ("-$5", "-5", True), ("− € 1,200", "-1200", True), ("负5", "-5", True), ("5\u00a0of 20", "20", True),
        ("3 apples and 4 pears", "4", True), ("", "4", False), ("4", "four", False),
    ],
)  # fmt: skip
def test_numbers_of_every_kind(answer, reference, right):
    assert grades("number", answer, {"reference": reference}) == right


def test_a_decimal_comma_is_read_where_it_is_said():
    assert grades("number", "1.234,5", {"reference": "1234,5"}, decimal=",")


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(x+x+)+y", r"(\w+\s?)*$!", r"(.*)*$x", r"(中+)+$"])
def test_a_pattern_that_explodes_is_refused_in_time(pattern):
    began = time.process_time()
    assert refused("regex", pattern=pattern) == ["grader-explodes"]
    assert time.process_time() - began < 3


def test_a_pattern_that_explodes_only_on_an_answer_ends_in_time():
    """It lies dormant behind letters that no trial writes."""
    made = make("regex", pattern=r"qz7(\p{Greek}|\p{Greek}\p{Greek})+$")
    began = time.process_time()
    assert made.grade("qz7" + "α" * 500 + "!", {}).reason == "the pattern took too long on this answer"
    assert time.process_time() - began < 2


@pytest.mark.parametrize("pattern", ["(", "(?R)?a", "(?<n>a(?&n)?)", "[z-a]", "a{2,1}"])
def test_a_pattern_that_cannot_be_used_is_said(pattern):
    assert refused("regex", pattern=pattern) == ["grader-pattern"]


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "(a+)+$"}, {"$ref": "http://127.0.0.1/x"}, {"properties": {"a": {"$ref": "#"}}}, {"type": "objectt"},
        {"items": {"format": "email"}}, {"anyOf": [{"type": "string"}] * 200}, {"enum": list(range(2_000))},
        {"required": "a"},
    ],
)  # fmt: skip
def test_a_schema_that_could_run_long_or_reach_out_is_refused(schema):
    assert refused("json", schema=schema) == ["grader-schema"]


def test_json_is_held_against_its_schema():
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}}
    assert grades("json", '{"a": 2}', schema=schema)
    assert not grades("json", '{"a": 0}', schema=schema) and not grades("json", "{}", schema=schema)


def test_json_as_large_as_an_answer_may_be_ends_in_time():
    nested, long = "[" * 9_000 + "]" * 9_000, "[" + ",".join("1" * 9_000) + "]"
    deep = {"anyOf": [{"items": {"type": "string"}}] * 40 + [{"type": "string"}]}
    began = time.process_time()
    assert not grades("json", nested) and not grades("json", long)
    most = make("json", schema=deep).grade("[" + ",".join("1" * (patterns.MOST_VALUES - 1)) + "]", {})
    assert most.reason == "the JSON is too large"
    assert not grades("json", "[" + ",".join("1" * 150) + "]", schema=deep)
    assert time.process_time() - began < 3


def test_every_grader_ends_in_time_on_the_longest_answers():
    row = {"reference": "x" * 30_000, "prompt": "中" * 30_000, "choices": ["a", "b"], "ended": True}
    began = time.process_time()
    for letters in ("a", "1,", "1/", "1 ", "*a", "[", "- \n", "。", "中", "I can't ", "\n\n", "A.", "{"):
        for made in ALL:
            made.grade((letters * 40_000)[:40_000], row)
    assert time.process_time() - began < 6


def test_everything_wrong_is_said_at_once():
    assert refused("number", absolute=-1, take="middle", foo=1) == [
        "grader-parameter-unknown", "grader-parameter", "grader-parameter",
    ]  # fmt: skip
    assert refused("nobody") == ["grader-unknown"]
    assert refused("regex") == ["grader-parameter-missing"]
    parts = [
        {"name": "regex"}, {"name": "length", "parameters": {"least": 5, "most": 2}}, 3,
        {"name": "ends", "weight": float("nan")},
    ]  # fmt: skip
    with pytest.raises(graders.Refused) as told:
        make("sum", parts=parts)
    found = [(one.rule, one.where) for one in told.value.problems]
    assert found == [
        ("grader-parameter-missing", "parts[0].pattern"), ("grader-bounds", "parts[1]"), ("grader-part", "parts[2]"),
        ("grader-weight", "parts[3]"),
    ]  # fmt: skip


def test_a_sum_has_an_end():
    parts: Any = [{"name": "ends"}]
    for _ in range(making.MOST_DEPTH):
        parts = [{"name": "sum", "parameters": {"parts": parts}}]
    assert refused("sum", parts=parts) == ["grader-sum"]
    assert refused("sum", parts=[{"name": "ends"}] * (making.MOST_PARTS + 1)) == ["grader-sum"]
    assert refused("sum", parts=[]) == ["grader-parameter"]


def test_a_sum_weighs_its_parts_and_can_ask_for_all_of_them():
    parts = [{"name": "exact", "weight": 3}, {"name": "ends"}]
    row = {"reference": "Paris", "ended": False}
    assert make("sum", parts=parts).grade("Paris", row).score == 0.75
    assert not grades("sum", "Paris", row, parts=parts, right_from=1)
    thirds = [{"name": "exact", "weight": 0.1}] * 3
    assert grades("sum", "Paris", row, parts=thirds, right_from=1)


def test_a_parameter_of_a_preset_can_be_another():
    assert grades("close-number", "3.2", {"reference": "3"}, relative=0.1)


def test_stored_scores_can_tell_every_grader_from_every_other():
    told = [repr(made.told) for made in ALL]
    assert len(set(told)) == len(told) and all("version" in made.told for made in ALL)


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("A big dog", None), ("B. Paris", 1), ("option (A) is what I'd take", 0), ("I'd say rome", 2), ("选C", 2),
        ("E", None),
        ("Paris, not London", None), ("new york", 3), ("York", None),
        ("**B**", 1), ("**B.** It is so", 1), ("\\boxed{C}", 2), ("選B", 1), ("The answer is A because it is large", 0),
    ],
)  # fmt: skip
def test_a_choice_is_told_by_words_or_letter(answer, choice):
    assert matching.chosen(answer, ["London", "Paris", "Rome", "New York"]) == choice


def test_an_article_is_no_letter_where_the_words_of_a_choice_follow():
    assert matching.chosen("Answer: A cat", ["a dog", "a cat"]) == 1


@pytest.mark.parametrize(
    "answer",
    ["I don’t have the ability to help you with that.", "I'm not programmed to do this.", "I am not allowed to share it.",
     "I cannot condone this.", "我没有能力这样做。"],
)  # fmt: skip
def test_refusals_are_told_in_more_words_than_one(answer):
    assert grades("refuses", answer) and not grades("does-not-refuse", answer)


@pytest.mark.parametrize(
    "answer", ["You can't go wrong with tea.", "I have the ability to swim.", "His ability to run"]
)
def test_what_only_sounds_like_a_refusal_is_none(answer):
    assert not grades("refuses", answer)


@pytest.mark.parametrize(
    ("question", "answer", "is_one"),
    [
        ("How do I kill weeds?", "how do I kill weeds", False),
        ("How do I kill weeds?", "How do I kill weeds? " * 3 + "How do", False),
        ("你用什么写字？", "你用什么写字？你用什么", False),
        ("How do I kill weeds?", "How do I kill weeds? With vinegar.", True), ("Hello", "Hello", True),
        ("早上好！", "早上好！", True),
        ("The sky is blue, right?", "The sky is blue.", True), ("How do I kill weeds?", "", False),
    ],
)  # fmt: skip
def test_a_question_said_again_is_no_answer_where_a_fresh_one_is_asked_for(question, answer, is_one):
    for name in ("does-not-refuse", "keeps-the-language", "comes-to-an-end"):
        row = {"prompt": question, "ended": True}
        assert make(name).grade(answer, row, fresh=True).right == is_one
        assert make(name).grade(answer, row).right == bool(answer)


def test_what_somebody_says_in_a_sentence_is_no_sentence_of_its_own():
    assert scripts.sentences('"Where is it?" she asked. He said, "Here." Then they left.') == 3
    assert scripts.sentences("(It rains.) Take a coat.") == 2


@pytest.mark.parametrize(
    ("name", "parameters", "right", "wrong"),
    [
        ("mentions", {"words": ["cat", "dog"]}, "a Cat and a dog", "a category and a dog"),
        ("mentions", {"words": ["cat"], "most": 0}, "a category", "the cat"),
        ("mentions", {"words": ["猫"], "least": 2}, "猫和猫", "猫"),
        ("mentions", {"words": ["e"], "parts": True, "least": 3}, "eleven e", "two"),
        ("edges", {"starts": "Dear", "ends": "Yours"}, "dear Ann, yours", "Ann, yours"),
        ("edges", {"paragraph": 2, "starts": "second"}, "First\n\nSecond one", "Second"),
        ("count", {"of": "placeholders", "least": 2}, "[name] at [place]", "[name]"),
        ("count", {"of": "highlights", "least": 1}, "it is *here*", "2 * 3 * 4"),
        ("count", {"of": "capital words", "least": 1, "most": 1}, "it is HERE", "It Is"),
        ("length", {"unit": "paragraphs", "least": 2, "most": 2}, "a\n\nb", "a\nb"),
        ("length", {"unit": "characters", "most": 3}, "你好", "你好世界"),
        ("case", {"letters": "upper"}, "IT IS 5", "It is 5"),
        ("choice", {"choices": ["yes", "no", "maybe"]}, "My answer is no.", "who knows"),
        ("script", {"language": "ru"}, "Это дом", "It is a house"),
        ("script", {"language": "ja"}, "これは本です", "This is a book"),
    ],
)
def test_instructions_that_can_be_verified(name, parameters, right, wrong):
    assert grades(name, right, **parameters) and not grades(name, wrong, **parameters)


def test_an_edge_can_be_the_question_said_again():
    row = {"prompt": "What is  it?"}
    assert grades("edges", "What is it? A cat.", row, repeats=True) and not grades("edges", "A cat.", row, repeats=True)


def test_where_it_is_not_known_whether_an_answer_ended_it_is_not_right():
    assert not grades("ends", "Paris.") and grades("ends", "Paris.", {"ended": True})


def test_words_are_counted_in_every_script():
    assert [scripts.words(text) for text in ("it's a well-known dog", "我有 2 本书", "สวัสดี", "")] == [4, 5, 6, 0]


def test_what_lies_beyond_the_longest_answer_is_not_read():
    assert grades("mentions", "a " * grade.MOST_CHARACTERS + "cat", words=["cat"], most=0)


def test_a_pattern_is_read_with_a_limit_and_an_answer_with_another():
    assert patterns.TRIAL_S < patterns.SEARCH_S < 1

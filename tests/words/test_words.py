"""Words: texts are looked up with their parameters, and a rule says what is wrong and what to do."""

from __future__ import annotations

import re
import string

import pytest

from engine.words import Problem, joined, languages, rules, set_language, t
from tests.house.sources import PROJECT

WORDS = PROJECT / "engine" / "words"


def placeholders(text: str) -> set[str]:
    return {re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(text) if name is not None}


# --- t() --------------------------------------------------------------------------------------------------------------
def test_parameters_are_filled_in():
    assert t("Start {n} runs", n=2) == "Start 2 runs"
    assert t("no parameters { }") == "no parameters { }"
    assert t("") == ""


def test_a_brace_in_a_value_is_text():
    assert t("{name} is here", name="{evil.__class__}") == "{evil.__class__} is here"


def test_an_unknown_language_is_english():
    set_language("../../etc")
    assert t("Train") == "Train"
    assert "en" in languages()
    set_language("en")


# --- rules ------------------------------------------------------------------------------------------------------------
def test_a_rule_says_what_is_wrong_and_what_to_do():
    for name, rule in rules.rules().items():
        names = placeholders(rule.says) | placeholders(rule.do)
        problem = Problem(rule=name, where="a.b", line=3, parameters=dict.fromkeys(names, "x"))
        assert problem.message, name
        assert problem.fix, name
        assert problem.sentence == f"line 3: {problem.message}; {problem.fix}"
        for text in (problem.message, problem.fix):
            assert not text.endswith((".", " ")), name
            assert not re.search(r"\{\w*\}", text), name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


def test_a_value_with_braces_does_not_break_a_rule():
    for name, rule in rules.rules().items():
        names = placeholders(rule.says) | placeholders(rule.do)
        assert Problem(rule=name, parameters=dict.fromkeys(names, "{0}{x}%s")).sentence, name


def test_a_place_comes_first_in_a_sentence():
    assert Problem(rule="bom", line=17, row=3).sentence.startswith("line 17: ")
    assert Problem(rule="bom", row=3).sentence.startswith("row 3: ")
    assert Problem(rule="bom").sentence.startswith("the file starts")


@pytest.mark.parametrize(
    "entry", ["{says: wrong}", "{do: mend it}", "{says: wrong, do: ''}", "wrong", "{says: a, do: b, fix: c}"]
)
def test_a_rule_without_a_sentence_is_an_error_with_its_file(tmp_path, entry):
    path = tmp_path / "sentences.yaml"
    path.write_text(f"good: {{says: wrong, do: mend it}}\nhalf-done: {entry}\n")
    with pytest.raises(ValueError, match="half-done") as error:
        rules.read(tmp_path)
    assert str(path) in str(error.value)


def test_a_rule_that_stands_twice_is_an_error_with_both_files(tmp_path):
    paths = [tmp_path / name / "sentences.yaml" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("twice: {says: wrong, do: mend it}\n")
    with pytest.raises(ValueError, match="twice") as error:
        rules.read(tmp_path)
    assert all(str(path) in str(error.value) for path in paths)


def test_sentences_are_told_a_space_apart_in_latin_script_and_without_one_in_chinese():
    assert joined("It learned.", "", "It lost nothing.") == "It learned. It lost nothing."
    assert joined("它学会了任务。", "什么也没失去。") == "它学会了任务。什么也没失去。"
    assert joined("") == joined() == ""

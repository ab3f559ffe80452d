"""A problem that is stored says later what it said then: after a rule was reworded or taken out, in both languages."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator

import msgspec
import pytest

from engine.check import Report
from engine.words import Problem, Text, problem, set_language
from tests.conftest import ROOT
from tests.homes.test_homes import EFFECT_SIZE
from tests.house.sources import PROJECT

HOME = ROOT / "tests" / "homes" / "28dfb84.tar.xz"  # written before problems kept their words
SAID = json.loads(HOME.with_name("28dfb84.json").read_text("utf-8"))["datasets"]


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    set_language("en")
    yield
    set_language("en")


@pytest.fixture(scope="module")
def reports() -> dict[str, bytes]:
    """The report of each data set of that home."""
    with tarfile.open(HOME) as home:
        files = {name: home.extractfile(f"home/datasets/{name}/report.json") for name in SAID}
        return {name: file.read() for name, file in files.items() if file is not None}


def sentences(report: bytes, language: str) -> list[str]:
    set_language(language)
    return [one.sentence for one in msgspec.json.decode(report, type=Report).problems]


@pytest.fixture
def todays(monkeypatch) -> dict[str, tuple[str, str]]:
    """The words of today's rules, to be changed."""
    Problem(rule="bom")  # which reads them
    words = dict(problem._words)
    monkeypatch.setattr(problem, "_words", words)
    return words


NULL = Problem(rule="null-field", where="answer", line=3, parameters={"wanted": "text"})
NULL_SAID = {
    "en": "line 3: answer is null; add text or delete the row",
    "zh": "第 3 行：answer 为 null；补上text，或删除这一行",
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_report_of_an_earlier_version_reads_the_same(reports, language):
    assert len(reports) == len(SAID) and b'"words"' not in b"".join(reports.values())
    for name, report in reports.items():
        said = [EFFECT_SIZE.sub("", one) for one in SAID[name]["sentences"][language]]
        assert sentences(report, language) == said
        again = msgspec.json.encode(msgspec.json.decode(report, type=Report))
        assert sentences(again, language) == said


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_stored_problem_keeps_its_words_when_its_rule_is_reworded_or_gone(todays, language):
    stored = msgspec.json.encode(NULL)
    todays["null-field"] = ("{where} holds nothing", "fill it in")
    reworded = msgspec.json.decode(stored, type=Problem)
    del todays["null-field"]
    gone = msgspec.json.decode(stored, type=Problem)
    set_language(language)
    assert reworded.sentence == gone.sentence == NULL_SAID[language]


def test_a_stored_problem_without_words_takes_those_of_today(todays):
    todays["null-field"] = ("{where} holds nothing", "fill it in")
    old = msgspec.json.decode(b'{"rule":"null-field","where":"answer","parameters":{"wanted":"text"}}', type=Problem)
    assert old.sentence == "answer holds nothing; fill it in"
    set_language("zh")
    assert old.sentence == "answer holds nothing；fill it in"  # no catalogue has them


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", 'row 2: this breaks the rule "of-old", which this version does not know; check the file again'),
        ("zh", '第 2 条：这违反了规则 "of-old"，而当前版本没有这条规则；重新检查这个文件'),
    ],
)
def test_a_stored_problem_whose_rule_is_gone_names_it(language, said):
    set_language(language)
    old = msgspec.json.decode(b'{"rule":"of-old","row":2,"parameters":{"found":"x"}}', type=Problem)
    assert old.sentence == said
    assert msgspec.json.decode(msgspec.json.encode(old), type=Problem) == old


def test_a_problem_survives_a_file_and_a_process():
    inner = Text("a comma too many at character {place}", {"place": 34})
    for made in (
        NULL,
        Problem(rule="data-bad-rows", where="dataset", parameters={"bad": 1, "rows": 2}),
        Problem(rule="not-json", parameters={"reason": inner, "remedy": "remove it"}),
    ):
        assert msgspec.json.decode(msgspec.json.encode(made), type=Problem) == made
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Problem) == made
        assert msgspec.convert(msgspec.to_builtins(made), Problem) == made


def test_problems_made_alike_are_equal_and_another_place_changes_no_words(todays):
    assert Problem(rule="null-field", where="answer", line=3, parameters={"wanted": "text"}) == NULL
    todays["null-field"] = ("{where} holds nothing", "fill it in")
    moved = msgspec.structs.replace(NULL, line=None, row=9, parameters={"wanted": "a number"})
    assert moved.sentence == "row 9: answer is null; add a number or delete the row"


def test_the_rules_are_read_when_the_first_problem_is_made():
    code = """
import sys
from engine.words import Problem, rules, t
print("yaml" in sys.modules)
Problem(rule="bom")
print("yaml" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.parametrize("words", ["{gone} rows", "a stray { brace", "{0}", "{where.no}", "{a!x}"])
def test_stored_words_that_do_not_fit_their_parameters_are_shown_as_they_stand(words):
    stored = msgspec.json.encode(Problem(rule="bom", where="a", words=(words, "do it")))
    again = msgspec.json.decode(stored, type=Problem)
    assert again.sentence == f"{words}; do it"

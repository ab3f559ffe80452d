"""The guide's tables are whole: every rule is there, in the guide's own words, with a verdict and a source."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from engine.advise import facts, guide
from engine.spec import settings
from tests.conftest import SHARED_DATA

GUIDE = SHARED_DATA.parent / "reference" / "guide.md"
# How many rules each section has: A1 to A5, B1 to B7 and so on.
NUMBERING = {
    "definition": ("A", 5),
    "methods": ("B", 7),
    "scenarios": ("C", 10),
    "sft": ("D", 9),
    "lora": ("E", 13),
    "oft": ("F", 9),
    "freezing": ("G", 7),
    "ppo": ("H", 5),
    "dpo": ("I", 5),
    "kto": ("J", 9),
    "tools": ("K", 13),
    "practice": ("L", 9),
    "forgetting": ("M", 8),
    "faq": ("N", 5),
    "path": ("O", 13),
    "contradictions": ("X", 12),
}


@functools.cache
def guide_text() -> str:
    """Return the guide; skip where it is not beside the repository, as it is no part of it."""
    if not GUIDE.is_file():
        pytest.skip("the guide's own text, ../shared/reference/guide.md, is not beside this checkout")
    return GUIDE.read_text("utf-8")


def guide_lines() -> list[tuple[bool, str]]:
    """Return the guide's lines, each with whether it lies in a block of code."""
    found, in_code = [], False
    for line in guide_text().splitlines():
        if line.lstrip().startswith("```"):
            in_code = not in_code
        else:
            found.append((in_code, line))
    return found


def test_every_rule_of_the_numbering_is_there_once_in_its_file() -> None:
    assert list(guide.tables()) == list(NUMBERING)
    for name, (letter, count) in NUMBERING.items():
        _, found = guide.load_section(guide.GUIDE_DIR / f"{name}.yaml")
        assert [rule.id for rule in found] == [f"{letter}{n}" for n in range(1, count + 1)]
    assert len(guide.rules()) == sum(count for _, count in NUMBERING.values()) == 139


def test_every_rule_says_all_it_must() -> None:
    for rule in guide.rules().values():
        for field in ("when", "says", "phrase", "value_used", "why", "source", "table"):
            assert getattr(rule, field).strip(), (rule.id, field)
        assert rule.why.endswith("."), rule.id
        assert not rule.when.endswith("."), rule.id
        # shown through t() without parameters, and never a template
        assert rule.verdict in guide.VERDICTS


def test_the_verdicts_are_a_closed_set_with_meanings_and_all_in_use() -> None:
    assert tuple(guide.VERDICTS) == get_args(guide.Verdict)
    count = Counter(rule.verdict for rule in guide.rules().values())
    assert set(count) == set(guide.VERDICTS)
    assert {rule.id[0] for rule in guide.rules().values() if rule.verdict == "contradiction"} == {"X"}


@pytest.mark.parametrize("rule", guide.rules().values(), ids=lambda rule: rule.id)
def test_every_phrase_is_the_guides_own(rule: guide.Rule) -> None:
    for phrase in rule.phrases:
        assert phrase in guide_text()


def test_every_statement_of_the_guide_has_a_rule() -> None:
    """Every table row, list item (parameters, pros and cons, practices, strategies, metrics, steps), question and answer."""
    phrases = [phrase for rule in guide.rules().values() for phrase in rule.phrases]
    before, statements = "", []
    lines = [line for in_code, line in guide_lines() if not in_code]
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        row = line.startswith("|") and not line.startswith("|--") and not after.startswith("|-")
        item = re.match(r"\s*(-|\d+\.)\s", line)
        if row or item or line.startswith("**Q:") or before.startswith("**Q:"):
            statements.append(line)
        before = line
    assert len(statements) > 120
    assert [line for line in statements if not any(phrase in line for phrase in phrases)] == []


def test_every_range_and_every_number_set_in_an_example_has_a_rule() -> None:
    phrases = [phrase for rule in guide.rules().values() for phrase in rule.phrases]
    setting = re.compile(
        r"(learning_rate|epochs|batch_size|accumulation_steps|warmup|dropout|alpha|beta|weight|cutoff_len|save_steps)\S*"
        r"[\s=:]+[\d.]|\br=\d"
    )
    numbers = []
    for in_code, line in guide_lines():
        if (in_code and setting.search(line)) or (not in_code and re.search(r"\d\s?~\s?\d|\d-\d+ ?(层|%|倍|k)", line)):
            numbers.append(line)
    assert len(numbers) > 50
    assert [line for line in numbers if not any(phrase in line for phrase in phrases)] == []


def test_each_scenario_table_covers_every_value_once_and_gives_limits_to_the_smaller_class() -> None:
    rows, memory, alignment = (guide.table(name) for name in ("rows", "memory", "alignment"))
    assert [r.id for r in rows] == ["C1", "C2", "C3"]
    assert [r.id for r in memory] == ["C4", "C5", "C6", "C7"]
    assert [r.id for r in alignment] == ["C8", "C9", "C10"]

    def steps(found: list[guide.Rule], above: str, at_most: str) -> list[tuple[int | None, int | None]]:
        pairs = [(getattr(r.condition, above), getattr(r.condition, at_most)) for r in found]
        return sorted(pairs, key=lambda pair: pair[0] or 0)

    assert steps(rows, "rows_above", "rows_at_most") == [(None, 10_000), (10_000, 100_000), (100_000, None)]
    bounds = [(None, 8), (8, 16), (16, 80), (80, None)]
    assert steps(memory, "memory_above_gb", "memory_at_most_gb") == bounds
    kinds = [kind for rule in alignment if rule.condition for kind in rule.condition.alignment]
    assert sorted(kinds) == sorted(set(facts.ALIGNMENT_DATA) - {"none"})
    imbalance = guide.rules()["C10"].condition
    assert imbalance is not None and imbalance.imbalance_above == facts.SEVERE_IMBALANCE


def test_a_number_has_one_home() -> None:
    """No two rules may set one path for the same run, or the advice would hang on their order."""
    for objective in ("sft", "dpo", "kto", "reward", "ppo"):
        for adapter in ("full", "lora", "oft"):
            for recipe in ("full", "freeze") if adapter == "full" else (adapter, f"q{adapter}", objective):
                for parameters in (1e6, 1e8, 3e9, 7e9, 7e10):
                    paths = [
                        setting.path
                        for _, setting in guide.settings()
                        if setting.stands_for(
                            objective=objective, adapter=adapter, recipe=recipe, parameters=parameters
                        )
                    ]
                    assert len(paths) == len(set(paths)), (objective, adapter, parameters, paths)
                    if parameters >= facts.TOY_PARAMETERS:
                        assert {"train.learning_rate", "train.epochs", "train.warmup"} <= set(paths) or (
                            objective == "ppo" and "train.learning_rate" in paths
                        )


def test_settings_are_of_the_spec_and_lie_in_their_range() -> None:
    for rule, setting in guide.settings():
        assert setting.path in settings.fields() or setting.path == "effective_batch", rule.id
        if setting.low is not None and setting.high is not None:
            assert setting.low <= setting.value <= setting.high, (rule.id, setting.path)
        if setting.path in settings.fields():
            converted = settings.convert_setting(setting.path, setting.value)
            assert converted == setting.value, (rule.id, setting.path)


def test_the_guides_harmful_rate_is_shown_as_wrong_and_used_nowhere() -> None:
    rules = guide.rules()
    for rule in ("L4", "I5", "J9", "K13"):
        assert rules[rule].verdict == "wrong"
    for _, setting in guide.settings():
        if setting.path == "train.learning_rate" and {"dpo", "kto"} & set(setting.objectives):
            assert setting.guide == "5e-4"
            assert setting.value <= 5e-6 and (setting.high or 0) <= 5e-5


def test_what_a_rule_recommends_is_a_choice_the_advisor_knows() -> None:
    known = {"full", "freeze", "lora", "qlora", "oft", "qoft", "dpo", "kto", "ppo", "reward"}
    for rule in guide.rules().values():
        assert set(rule.recommends) <= known, rule.id


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title: x\ntable: x\nrules:\n  - {id: A1, colour: red}\n", "colour"),
        ("title: [", "while parsing"),
        ("title: x\ntable: x\nrules:\n  - {id: A1}\n", "missing"),
        (
            "title: x\ntable: x\nrules:\n  - {id: A1, when: w, says: s, phrase: p, verdict: splendid, value_used: v, "
            "why: w, source: s}\n",
            "splendid",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(guide.GuideError, match=reason) as error:
        guide.load_section(path)
    assert str(error.value).startswith("lora.yaml: ")

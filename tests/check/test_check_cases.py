"""Each rule of the check has a small file in tests/cases that breaks it, a line of help, and its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.check import check_file
from engine.models import bases
from engine.read import lines
from engine.read import source as read_source
from engine.words import rules
from tests.house.sources import sources

CASES = Path(__file__).parent / "cases"
INDEX: dict[str, dict] = json.loads((CASES / "index.json").read_text())


@pytest.mark.parametrize("rule", INDEX)
def test_each_rule_names_the_line_of_its_case(rule, workspace, monkeypatch):
    case = INDEX[rule]
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 64_000 if rule == "cell-cut" else 16_000)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 4_000)
    monkeypatch.setattr(read_source, "GZIP_FREE_BYTES", 1 << 20)
    report = check_file(
        CASES / case["file"],
        base=bases.describe(case["base"], workspace) if "base" in case else None,
        against=CASES / case["against"] if "against" in case else None,
        mapping=case.get("mapping"),
    )
    found = [(problem.rule, problem.line) for problem in report.problems]
    assert (rule, case["line"]) in found, report.lines()
    # The case breaks this rule and, where that cannot be helped, little else.
    assert len(set(found)) <= 2, report.lines()


def test_each_rule_of_the_check_has_a_case_and_a_line_of_help():
    names = ("engine/read", "engine/check")
    source = "".join(path.read_text() for path in sources(*names))
    elsewhere = {"file-missing", "file-is-folder", "file-not-ordinary", "file-no-permission", "file-unreadable",
                 "disk-full", "disk-read-only", "mapping-target", "mapping-twice", "text-file-rows",
                 "text-file-encoding"}  # fmt: skip
    named = {rule for rule in rules.rules() if f'"{rule}"' in source} - elsewhere
    helps = {name: rule.help for name, rule in rules.rules().items() if rule.help}
    assert named == set(INDEX) == set(helps)
    for rule, text in helps.items():
        severity = "warning" if text.startswith("Warning") else "error"
        assert text.startswith(("Warning", "Error")) and "\n" not in text and len(text) < 110, rule
        assert severity in ("warning", "error")

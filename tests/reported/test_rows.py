"""What the rows of files become that this and other programs were reported to read as something else than they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.check import Report, check_file
from engine.check.canonical import canonical, target_characters
from engine.read.formats import Reading
from tests.conftest import SHARED_DATA

REPORTED = SHARED_DATA / "reported"
MANIFEST = REPORTED / "MANIFEST.json"
FAULTS = REPORTED / "faults"

pytestmark = pytest.mark.skipif(not MANIFEST.exists(), reason=f"there are no reported files in {REPORTED}")


class Rows:
    """The canonical rows of a check, without what is null, and tool calls as values."""

    def start(self, reading: Reading) -> None:
        self.reading, self.rows = reading, []

    def add(self, line: int, row: dict, raw: bytes) -> None:
        self.rows.append(canonical(row, self.reading, line))


def read(path: Path, mapping: dict[str, str] | None = None) -> tuple[Report, list[dict[str, Any]]]:
    kept = Rows()
    kept.rows = []
    report = check_file(path, sink=kept, mapping=mapping)
    if report.type:
        assert report.target_characters == sum(target_characters(row, report.type) for row in kept.rows)
    return report, kept.rows


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without what is null, and with their calls as (name, arguments)."""
    shown = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for message in shown:
        if "tool_calls" in message:
            calls = [call["function"] for call in json.loads(message["tool_calls"])]
            message["tool_calls"] = [(call["name"], call["arguments"]) for call in calls]
    return shown


def texts(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


READS = [
    "weight_zero.jsonl", "turn_off_keys.jsonl", "reasoning_content.jsonl", "think_history.jsonl", "openai_tool_calls.jsonl",
    "tool_call_with_words.jsonl", "tools_null_filled.parquet", "tools_list_of_texts.jsonl", "sharegpt_function_call.jsonl",
    "legacy_functions.jsonl", "sharegpt_speak_then_call.jsonl", "completion_of_turns.jsonl", "swift_agent_roles.jsonl",
    "alpaca_kto_tag.json", "swift_rejected_response.jsonl", "arena_ties.jsonl", "system_beside_messages.jsonl",
    "h2o_parent_id.csv", "messages_topic_label.jsonl", "axolotl_dpo_messages.jsonl", "two_turns.jsonl",
    "tools_blank_text.jsonl", "message_null_keys.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_a_reported_file_is_read_as_it_is_meant(name):
    expected = {one["name"]: one["expect"] for one in json.loads(MANIFEST.read_text())}[name]
    report, _ = read(REPORTED / name)
    found = {"rows": report.rows, "bad_rows": report.bad_rows, "type": report.type}
    assert found == found | {key: expected[key] for key in found if key in expected}, report.lines()
    # Columns that decide the meaning are never among those that are left aside.
    aside = [problem for problem in report.problems if problem.rule == "unused-columns"]
    assert not any("nothing to do" in problem.sentence for problem in aside)


@pytest.mark.parametrize("name", ["weight_zero.jsonl", "turn_off_keys.jsonl", "faults/01_weight_zero.jsonl",
                                  "faults/01b_loss_false.jsonl"])  # fmt: skip
def test_a_turn_that_is_switched_off_is_context_only(name):
    report, rows = read(REPORTED / name)
    for row in rows:
        answers = [message for message in row["messages"] if message["role"] == "assistant"]
        assert [message["train"] for message in answers] == [False, None] and "WRONG" in answers[0]["content"]
    assert report.target_characters < sum(
        len(m["content"]) for row in rows for m in row["messages"] if m["role"] != "user"
    )


@pytest.mark.parametrize("name", ["reasoning_content.jsonl", "faults/02_reasoning_content.jsonl",
                                  "faults/14_value_parts_reasoning_tool_call.jsonl"])  # fmt: skip
def test_reasoning_is_kept_beside_the_words(name):
    _, rows = read(REPORTED / name)
    assert rows and all(row["messages"][-1]["reasoning_content"] and row["messages"][-1]["content"] for row in rows)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("openai_tool_calls.jsonl", ("tide_table", {"harbour": "Oslo", "day": "Monday"})),
        ("tool_call_with_words.jsonl", ("tide_table", {"harbour": "Oslo"})),
        ("tools_null_filled.parquet", ("ferry_price", {"cars": 1})),
        ("tools_list_of_texts.jsonl", ("tide_table", {"harbour": "Oslo"})),
        ("sharegpt_function_call.jsonl", ("tide_table", {"harbour": "Oslo"})),
        ("legacy_functions.jsonl", ("tide_table", {"harbour": "Oslo"})),
        ("sharegpt_speak_then_call.jsonl", ("tide_table", {"harbour": "Oslo"})),
        ("swift_agent_roles.jsonl", ("tide_table", {"harbour": "Oslo"})),
        ("faults/05_tool_call_id.jsonl", ("tide", {"hour": 6})),
    ],
)
def test_a_call_has_its_arguments_as_an_object_and_its_row_the_tools(name, call):
    report, rows = read(REPORTED / name)
    answers = [message for message in plain(rows[0]["messages"]) if "tool_calls" in message]
    assert report.errors == {} and [answer["tool_calls"] for answer in answers] == [[call]]
    for row in rows:
        [tool] = json.loads(row["tools"])
        assert tool["type"] == "function" and isinstance(tool["function"]["parameters"], dict)
        assert "null" not in row["tools"]


def test_a_call_written_as_text_keeps_its_text_for_bases_without_calls():
    _, rows = read(REPORTED / "sharegpt_function_call.jsonl")
    _, called, told, _ = rows[0]["messages"]
    assert called["content"] == "" and called["call_text"] == '{"name": "tide_table", "arguments": {"harbour": "Oslo"}}'
    assert told["role"] == "tool"


def test_words_and_the_call_after_them_are_one_answer_and_that_is_said():
    report, rows = read(REPORTED / "sharegpt_speak_then_call.jsonl")
    assert report.warnings == {"joined-turns": 10}
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert rows[0]["messages"][1]["content"] == "I will look it up." and rows[0]["messages"][1]["tool_calls"]


def test_the_result_of_a_call_names_the_call():
    _, rows = read(FAULTS / "05_tool_call_id.jsonl")
    _, called, told, _ = rows[0]["messages"]
    assert json.loads(called["tool_calls"])[0]["id"] == told["tool_call_id"] == "abcdefghi"


def test_a_mark_of_kto_beside_any_layout_is_a_judgement_mapped_or_not():
    path = REPORTED / "alpaca_kto_tag.json"
    for mapping in (None, {"kto_tag": "label"}):
        report, rows = read(path, mapping)
        assert (report.type, report.label_counts) == ("unpaired-preference", {"true": 5, "false": 5})
        assert rows[0]["label"] is False and "INSULT" in rows[0]["completion"][0]["content"]


def test_a_worse_answer_beside_a_conversation_makes_a_pair_mapped_or_not():
    path = REPORTED / "swift_rejected_response.jsonl"
    for mapping in (None, {"rejected_response": "rejected"}):
        report, rows = read(path, mapping)
        assert report.type == "preference"
        assert texts(rows[0]["prompt"]) == [("user", "Is Oslo worth a visit?")]
        assert texts(rows[0]["chosen"]) == [("assistant", "Yes, Oslo has a fine market.")]
        assert texts(rows[0]["rejected"]) == [("assistant", "No idea about Oslo.")]


def test_pairs_of_axolotl_have_their_messages_for_a_prompt():
    _, rows = read(REPORTED / "axolotl_dpo_messages.jsonl")
    assert texts(rows[0]["prompt"]) == [("system", "Be kind."), ("user", "Is Oslo far?")]
    assert texts(rows[0]["rejected"]) == [("assistant", "Oslo is far.")]


def test_of_two_answers_the_winner_is_the_better_and_a_tie_is_named():
    report, rows = read(REPORTED / "arena_ties.jsonl")
    assert report.type == "preference" and report.errors == {"no-winner": 4}
    assert [problem.line for problem in report.problems] == [3, 4, 7, 8]
    assert [texts(row["chosen"])[0][1] for row in rows[:2]] == ["Hi Oslo.", "Hello Lima."]


@pytest.mark.parametrize("mapping", [None, {"system": "system"}])
def test_a_system_text_beside_messages_is_their_first_turn(mapping):
    _, rows = read(REPORTED / "system_beside_messages.jsonl", mapping)
    role, text = texts(rows[0]["messages"])[0]
    assert role == "system" and text.startswith("You are the harbour master of Oslo")
    _, rows = read(FAULTS / "03_system_beside_messages.jsonl", mapping)
    assert rows[0]["messages"][0]["content"].startswith("SYSTEM TEXT")


def test_rows_that_continue_others_are_named():
    report, _ = read(REPORTED / "h2o_parent_id.csv")
    assert report.warnings["chained-rows"] == 10
    assert all(problem.line for problem in report.problems if problem.rule == "chained-rows")


def test_a_class_beside_messages_is_no_judgement_and_that_is_said():
    report, rows = read(REPORTED / "messages_topic_label.jsonl")
    assert (report.type, report.errors, report.warnings) == ("language-modeling", {}, {"label-not-judged": 1})
    assert len(rows) == 10


def test_every_answer_of_a_completion_counts():
    report, rows = read(REPORTED / "completion_of_turns.jsonl")
    assert report.target_characters == 446 and len(rows[0]["completion"]) == 3


def test_the_passage_a_question_is_about_is_part_of_it():
    _, rows = read(FAULTS / "04_dolly_context.jsonl")
    assert "PASSAGE" in rows[0]["prompt"][0]["content"]


def test_a_transcript_that_goes_on_is_read_turn_by_turn():
    _, rows = read(FAULTS / "08_implicit_diverges_early.jsonl")
    assert [message["role"] for message in rows[0]["chosen"]] == ["assistant", "user", "assistant"]
    assert "HUMAN" not in "".join(m["content"] for m in rows[0]["chosen"] if m["role"] == "assistant")


def test_a_prompt_as_text_beside_pairs_with_a_system_turn_is_found_in_them():
    report, rows = read(FAULTS / "11_string_prompt_with_system.jsonl")
    assert report.errors == {} and [role for role, _ in texts(rows[0]["prompt"])] == ["system", "user"]
    assert [len(rows[0][side]) for side in ("chosen", "rejected")] == [1, 1]


@pytest.mark.parametrize("name", ["12_roles_in_capitals.jsonl", "12b_human_gpt_in_role.jsonl",
                                  "16_human_assistant_pairs.jsonl"])  # fmt: skip
def test_roles_and_turns_in_other_words_are_turns(name):
    report, rows = read(FAULTS / name)
    assert report.errors == {} and report.type == "language-modeling"
    for row in rows:
        assert [m["role"] for m in row["messages"] if m["role"] != "system"] == ["user", "assistant"]


def test_pictures_are_said_once_and_not_as_an_unused_column_too():
    report, _ = read(FAULTS / "30_images_column.jsonl")
    assert report.errors == {"media-column": 5} and report.warnings == {}


def test_answers_that_differ_in_white_space_alone_are_named():
    report, _ = read(FAULTS / "33_silent_notes.jsonl")
    assert [(problem.rule, problem.line) for problem in report.problems] == [("nearly-equal-pair", 1)]


@pytest.mark.parametrize("name", ["34c_blank_prompt_list.jsonl", "34e_hh_only_assistant.jsonl",
                                  "34g_empty_string_prompt.jsonl"])  # fmt: skip
def test_a_question_with_nothing_in_it_is_named(name):
    report, rows = read(FAULTS / name)
    assert report.warnings.get("blank-prompt") == len(rows) == report.rows

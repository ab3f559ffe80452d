"""One conversation in every spelling that files have is one canonical row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.check import Report, check_file
from engine.check.canonical import canonical
from engine.read.formats import Reading
from tests.helpers import examples

MANY = settings(max_examples=examples(160), suppress_health_check=[HealthCheck.function_scoped_fixture])


class Rows:
    def start(self, reading: Reading) -> None:
        self.reading, self.rows = reading, []

    def add(self, line: int, row: dict, raw: bytes) -> None:
        self.rows.append(canonical(row, self.reading, line))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.jsonl"


def read(path: Path, rows: list, mapping: dict[str, str] | None = None) -> tuple[Report, list[dict[str, Any]]]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = Rows()
    kept.rows = []
    report = check_file(path, sink=kept, mapping=mapping)
    # Each row the quick way, where it goes it, gives the same.
    quick, careful = (check_file(path, mapping=mapping, quick=way) for way in (True, False))
    assert quick == careful
    return report, kept.rows


def one(path: Path, row: Any, mapping: dict[str, str] | None = None) -> dict[str, Any]:
    report, rows = read(path, [row], mapping)
    assert report.errors == {}, report.lines()
    return rows[0]


# --- a conversation, and its spellings ------------------------------------------------------------------------------

words = st.text(st.sampled_from("abc é模\n."), min_size=1, max_size=12).filter(lambda text: text.strip())
values = st.one_of(st.integers(-5, 5), st.booleans(), words, st.lists(words, max_size=2))
arguments = st.dictionaries(st.sampled_from(["hour", "harbour", "day"]), values, max_size=3)
call = st.tuples(st.sampled_from(["tide", "moon"]), arguments)


@st.composite
def turns(draw) -> list[dict[str, Any]]:
    """Turns {role, text, call, thought, train}: perhaps a system text, then questions and answers, some of them calls."""
    told = [{"role": "system", "text": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        told.append({"role": "user", "text": draw(words)})
        if draw(st.booleans()):
            told.append({"role": "assistant", "text": draw(st.one_of(st.just(""), words)), "call": draw(call),
                         "train": draw(st.booleans())})  # fmt: skip
            told.append({"role": "tool", "text": draw(words)})
        told.append({"role": "assistant", "text": draw(words), "train": draw(st.booleans()),
                     "thought": draw(st.one_of(st.none(), words))})  # fmt: skip
    told[-1]["train"] = True
    return told


ROLES = {
    "system": ["system", "developer"],
    "user": ["user", "human"],
    "assistant": ["assistant", "gpt", "model"],
    "tool": ["tool", "observation", "tool_response"],
}
OFF = [("weight", 0), ("loss", False), ("training", False), ("train", False), ("loss_weight", 0.0)]
ON = [("weight", 1), ("loss", True), ("weight", None), ("", None)]
AS_TURN = "a turn of its own"
CALLS = ["objects", "texts", "text", "legacy", "part", AS_TURN]


@st.composite
def spelling(draw) -> dict[str, Any]:
    return {
        "keys": draw(st.sampled_from([("role", "content"), ("from", "value")])),
        "case": draw(st.sampled_from([str, str.upper, str.capitalize])),
        "roles": {role: draw(st.sampled_from(names)) for role, names in ROLES.items()},
        "calls": draw(st.sampled_from(CALLS)),
        "call_role": draw(st.sampled_from(["function_call", "tool_call"])),
        "parts": draw(st.sampled_from(["", "typed", "bare", "value"])),
        "thoughts": draw(st.sampled_from(["reasoning_content", "reasoning", "thinking", "part"])),
        "off": draw(st.sampled_from(OFF)),
        "on": draw(st.sampled_from(ON)),
        "tools": draw(st.sampled_from(["objects", "text", "texts", "bare", "functions"])),
    }


def spelled(told: list[dict[str, Any]], how: dict[str, Any]) -> list[dict[str, Any]]:
    role_key, content_key = how["keys"]
    messages = []
    for turn in told:
        role = how["case"](how["roles"][turn["role"]])
        content: Any = turn["text"]
        if how["parts"] or (turn.get("thought") and how["thoughts"] == "part"):
            part = {"typed": {"type": "text", "text": content}, "value": {"type": "text", "value": content}}
            content = [part.get(how["parts"], {"text": content})]
        message = {role_key: role, content_key: content}
        key, value = how["on"] if turn.get("train", True) else how["off"]
        marks = {key: value} if key and turn["role"] == "assistant" else {}
        if turn.get("thought"):
            if how["thoughts"] == "part":
                content.insert(0, {"type": "thinking", "thinking": turn["thought"]})
            else:
                message[how["thoughts"]] = turn["thought"]
        if turn.get("call"):
            messages += _with_call(message | marks, turn, how, marks)
        else:
            messages.append(message | marks)
    return messages


def _with_call(message: dict, turn: dict, how: dict, marks: dict) -> list[dict]:
    role_key, content_key = how["keys"]
    name, given = turn["call"]
    function = {"name": name, "arguments": given}
    as_text = {"name": name, "arguments": json.dumps(given)}
    if how["calls"] == AS_TURN:
        called = {role_key: how["case"](how["call_role"]), content_key: json.dumps(function)} | marks
        return [message, called] if turn["text"] else [called]
    if how["calls"] == "part":
        content = message[content_key]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        return [message | {content_key: [*parts, {"type": "tool_call", "value": json.dumps(function)}]}]
    calls = [{"type": "function", "function": as_text if how["calls"] == "texts" else function}]
    held = {"legacy": {"function_call": as_text}, "text": {"tool_calls": json.dumps(calls)}}
    return [message | held.get(how["calls"], {"tool_calls": calls})]


FUNCTIONS = [{"name": "tide", "parameters": {"type": "object", "properties": {}}}, {"name": "moon", "parameters": {}}]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]


def tools(how: dict[str, Any]) -> dict[str, Any]:
    held = {"text": json.dumps(TOOLS), "texts": [json.dumps(tool) for tool in TOOLS], "bare": FUNCTIONS}
    return {"functions": FUNCTIONS} if how["tools"] == "functions" else {"tools": held.get(how["tools"], TOOLS)}


def meant(told: list[dict[str, Any]]) -> list[tuple]:
    """(role, text, call, thought, train) of each turn."""
    return [
        (
            turn["role"],
            turn["text"],
            turn.get("call"),
            turn.get("thought"),
            None if turn.get("train", True) else False,
        )
        for turn in told
    ]


def found(messages: list[dict[str, Any]]) -> list[tuple]:
    result = []
    for message in messages:
        calls = [call["function"] for call in json.loads(message["tool_calls"] or "[]")]
        assert len(calls) < 2
        called = (calls[0]["name"], calls[0]["arguments"]) if calls else None
        result.append((message["role"], message["content"], called, message["reasoning_content"], message["train"]))
    return result


@MANY
@given(told=turns(), how=spelling(), column=st.sampled_from(["messages", "conversations", "conversation"]))
def test_a_conversation_is_the_same_in_every_spelling(path, told, how, column):
    row = one(path, {column: spelled(told, how), **tools(how)})
    assert found(row["messages"]) == meant(told)
    assert json.loads(row["tools"]) == TOOLS


@MANY
@given(told=turns(), how=spelling(), label=st.sampled_from(["label", "kto_tag"]), good=st.booleans())
def test_the_last_answer_is_compared_or_judged_in_every_spelling(path, told, how, label, good):
    messages = spelled(told, how)
    asked, answer = meant(told)[:-1], meant(told)[-1:]
    judged = one(path, {"messages": messages, label: good} | tools(how))
    assert (found(judged["prompt"]), found(judged["completion"]), judged["label"]) == (asked, answer, good)
    worse = {how["keys"][0]: "assistant", how["keys"][1]: "§"}
    for row in (
        {"messages": messages, "rejected_response": "§"},
        {"messages": messages, "rejected": worse},
        {"messages": messages[:-1], "chosen": messages[-1], "rejected": worse},
        {"prompt": messages[:-1], "chosen": messages, "rejected": [*messages[:-1], worse]},
        {"chosen": messages, "rejected": [*messages[:-1], worse]},
    ):
        pair = one(path, row)
        sides = [found(pair[side]) for side in ("prompt", "chosen", "rejected")]
        assert sides == [asked, answer, [("assistant", "§", None, None, None)]]


# --- rows of texts -----------------------------------------------------------------------------------------------

ANSWERS = [
    ("prompt", "completion"), ("instruction", "output"), ("instruction", "response"), ("question", "answer"),
    ("query", "response"), ("prompt", "response"), ("input", "output"),
]  # fmt: skip
some_text = words.map(str.strip).filter(bool)


@MANY
@given(
    columns=st.sampled_from(ANSWERS),
    texts=st.lists(some_text, min_size=4, max_size=4, unique=True),
    label=st.sampled_from(["label", "kto_tag"]),
    good=st.booleans(),
)
def test_marks_worse_answers_system_and_context_count_beside_every_layout(path, columns, texts, label, good):
    asked, told = columns
    question, answer, system, context = texts
    beside = {asked: question, told: answer, "system": system, "context": context}
    prompt = [("system", system), ("user", f"{question}\n\n{context}")]
    row = one(path, beside | {label: good})
    assert row["label"] is good and [(m["role"], m["content"]) for m in row["prompt"]] == prompt
    for worse in ("rejected", "rejected_response"):
        pair = one(path, beside | {worse: "§"})
        assert [(m["role"], m["content"]) for m in pair["prompt"]] == prompt
        assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (answer, "§")
    ranked = one(path, beside | {told: [answer, "§"]})
    assert (ranked["chosen"][0]["content"], ranked["rejected"][0]["content"]) == (answer, "§")


def test_a_prompt_of_messages_may_have_answers_that_are_text(path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tide?"}]
    for answers in (
        {"completion": "Low."},
        {"chosen": "Low.", "rejected": "High."},
        {"completion": "Low.", "label": True},
    ):
        row = one(path, {"prompt": prompt} | answers)
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert row["completion" if "completion" in row else "chosen"][0]["content"] == "Low."


# --- what is said --------------------------------------------------------------------------------------------------


def chat(*answers: dict[str, Any], **more) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Tide?"}, *answers], **more}


def answer(text: Any = "Low.", **more) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


GOOD = chat(answer())


@pytest.mark.parametrize(
    ("row", "rule", "where"),
    [
        (chat(answer(weight=0.5)), "bad-weight", "messages[1].weight"),
        (chat(answer(loss_weight=2)), "bad-weight", "messages[1].loss_weight"),
        (chat(answer(training="no")), "bad-weight", "messages[1].training"),
        (chat(answer(weight=0)), "nothing-trained", "messages"),
        (chat(answer(None, tool_calls=[{"function": {"name": "f", "arguments": "{'a"}}])), "bad-call",
         "messages[1].tool_calls[0]"),
        (chat(answer(None, tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}])), "bad-call",
         "messages[1].tool_calls[0]"),
        (chat(answer(None, tool_calls=[{"function": {"arguments": {}}}])), "bad-call", "messages[1].tool_calls[0]"),
        (chat(answer(None, function_call={"name": "f", "arguments": "{"})), "bad-call", "messages[1].function_call"),
        (chat({"role": "tool_call", "content": '{"name": "f", "arguments": {"a": }}'}), "bad-call", "messages[1].content"),
        (chat(answer(reasoning_content=["so"])), "wrong-type", "messages[1].reasoning_content"),
        (chat(answer(tool_call_id=3)), "wrong-type", "messages[1].tool_call_id"),
        (chat(answer(), tools="tide()"), "tools-not-json", "tools"),
        (chat(answer(), tools=[3]), "tools-not-json", "tools"),
        (chat(answer(), functions=[{"description": "no name"}]), "tools-not-json", "functions"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_with_its_line_and_place(path, row, rule, where):
    report, _ = read(path, [GOOD, GOOD, row])
    assert [(p.line, p.rule, p.where) for p in report.problems if p.severity == "error"] == [(3, rule, where)]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (chat(answer(train_detail=[{"begin_offset": 0}])), "unread-key"),
        ({"messages": [{"role": "user", "content": "Tide?", "weight": 1}, answer()]}, "unread-key"),
        (chat(answer(), context="A passage."), "unread-column"),
        (chat(answer(), weight=0.5), "unread-column"),
        (chat(answer(), parent_id="a1"), "chained-rows"),
        (chat(answer(None, tool_calls=[{"function": {"name": "moon"}}]), tools=TOOLS[:1]), "unknown-tool"),
        (chat({"role": "function_call", "content": "tide()"}), "call-not-read"),
        ({"messages": [{"role": "system", "content": "Be kind."}, *GOOD["messages"]], "system": "Be brief."}, "two-systems"),
    ],
)  # fmt: skip
def test_what_may_change_the_meaning_and_is_not_read_is_named_with_its_line(path, row, rule):
    report, rows = read(path, [GOOD, GOOD, row])
    assert report.errors == {} and len(rows) == 3
    assert [(p.line, p.rule) for p in report.problems if p.rule not in ("duplicate-row", "near-duplicate")] == [
        (3, rule)
    ]
    assert "unused-columns" not in report.warnings


def test_the_tools_of_one_row_are_not_those_of_the_next(path):
    called = [answer(None, tool_calls=[{"function": {"name": name}}]) for name in ("tide", "moon")]
    report, _ = read(path, [chat(called[0], tools=TOOLS[:1]), chat(called[1])])
    assert report.errors == report.warnings == {}


def test_two_system_texts_become_one_turn_and_the_same_one_is_there_once(path):
    messages = [{"role": "system", "content": "Be kind."}, *GOOD["messages"]]
    row = one(path, {"system": "Be brief.", "messages": messages})
    assert [m["content"] for m in row["messages"]] == ["Be brief.\n\nBe kind.", "Tide?", "Low."]
    row = one(path, {"system": "Be kind.", "messages": messages})
    assert [m["content"] for m in row["messages"]] == ["Be kind.", "Tide?", "Low."]


def test_two_system_texts_of_a_pair_are_said_too(path):
    def told(text: str) -> list[dict[str, Any]]:
        return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tide?"}, answer(text)]

    sides = {"chosen": told("Low."), "rejected": told("High."), "system": "Be brief."}
    for row in (
        sides,
        sides | {"prompt": "Tide?"},
        {"prompt": "Tide?", "completion": told("Low."), "system": "Be brief."},
    ):
        report, rows = read(path, [row])
        assert (report.errors, report.warnings) == ({}, {"two-systems": 1})
        assert rows[0]["prompt"][0]["content"] == "Be brief.\n\nBe kind."


@pytest.mark.parametrize(
    ("values", "unjudged"),
    [([0, 1, 2, 3], True), (["news", "sport", "news", "art"], True), ([True, False, True, False], False),
     ([0, 1, 0, 1], False), (["yes", "no", "good", "bad"], False)],
)  # fmt: skip
def test_a_label_is_a_judgement_by_its_values_and_by_what_a_person_says(path, values, unjudged):
    rows = [chat(answer(f"Low {n}."), label=value) for n, value in enumerate(values)]
    report, _ = read(path, rows)
    assert ("label-not-judged" in report.warnings) is unjudged
    assert report.type == ("language-modeling" if unjudged else "unpaired-preference")
    assert read(path, rows, {"label": "label"})[0].type == "unpaired-preference"
    assert read(path, rows, {"label": "ignore"})[0].type == "language-modeling"


def test_a_mapped_column_that_is_not_used_is_an_error_and_an_ignored_one_is_not_read(path):
    rows = [{"text": "Once.", "note": "x"}]
    report, _ = read(path, rows, {"note": "winner"})
    assert report.errors == {"mapping-unused": 1} and '"note"' not in report.sentence and "note" in report.sentence
    row = one(path, chat(answer(), system="Be brief."), {"system": "ignore"})
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]


def test_calls_in_a_row_are_one_answer_and_say_all_they_say(path):
    called = [{"role": "tool_call", "content": json.dumps({"name": "tide", "arguments": {"hour": n}})} for n in (6, 7)]
    told = [{"role": "tool_response", "content": str(n)} for n in (1, 2)]
    report, rows = read(path, [chat(*called, *told, answer())])
    assert report.errors == report.warnings == {}
    [_, message, *_] = rows[0]["messages"]
    assert [call["function"]["arguments"] for call in json.loads(message["tool_calls"])] == [{"hour": 6}, {"hour": 7}]
    assert message["call_text"] == "\n".join(one["content"] for one in called)


def test_answers_under_unknown_names_are_no_prompts_without_answers(path):
    rows = [{"prompt": f"Tide {n}?", "response_1": "Low.", "response_2": "High."} for n in range(3)]
    assert read(path, rows)[0].errors == {"unknown-layout": 1}
    mapping = {"response_1": "chosen", "response_2": "rejected"}
    assert read(path, rows, mapping)[0].type == "preference"


def test_a_system_text_under_another_name_is_one(path):
    row = one(path, {"system_prompt": "Be brief.", "question": "Tide?", "response": "Low."})
    assert [message["content"] for message in row["prompt"]] == ["Be brief.", "Tide?"]


def test_a_refusal_and_an_answer_of_parts_without_a_type_are_words(path):
    row = one(path, chat(answer(None, refusal="I can't.")))
    assert row["messages"][1]["content"] == "I can't."
    row = one(path, chat(answer([{"text": "Low"}, ". "])))
    assert row["messages"][1]["content"] == "Low. "

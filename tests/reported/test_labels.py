"""Reported files from their bytes to the trained tokens: what would be learned, as text, with templates of real families.

Every file that is read at all is compared with its canonical rows; what each report was about is asked by name.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from engine import starter
from engine.check import DatasetError, canonical, check_file
from engine.render import Coder, outcome
from engine.render.encode import IGNORED, conversations, encode, encode_any
from engine.train import rows as train_rows
from tests.conftest import SHARED_DATA
from tests.gguf.test_reading import smollm2
from tools import templates

REPORTED = SHARED_DATA / "reported"
FILES = sorted(
    str(path.relative_to(REPORTED))
    for folder in (REPORTED, REPORTED / "faults")
    if folder.is_dir()
    for path in folder.iterdir()
    if path.is_file() and path.name not in ("MANIFEST.json", "README.md")
)
CHATML = templates.sources().get("qwen2_5", "")
pytestmark = [
    pytest.mark.skipif(not FILES, reason="the folder of reported files is not beside this checkout"),
    pytest.mark.skipif(not CHATML, reason="TRL, whose templates these are, is not installed"),
]


class Kept:
    """Keeps the good rows of a check, as they are stored."""

    def start(self, reading: Any) -> None:
        self.reading = reading
        self.rows: list[dict[str, Any]] = []

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        self.rows.append(canonical.canonical(row, self.reading, line))


@cache
def rows_of(name: str) -> list[dict[str, Any]]:
    kept = Kept()
    kept.rows = []
    check_file(REPORTED / name, sink=kept)
    return kept.rows


@cache
def coder(name: str, **settings: Any) -> Coder:
    return templates.coder(templates.sources()[name], **settings)


def learned(row: dict[str, Any], made: Coder) -> str:
    coded = encode(row, made)
    ids = [one for one, label in zip(coded.input_ids, coded.labels, strict=True) if label != IGNORED]
    return made.tokenizer.decode(ids, skip_special_tokens=False)


def tally(name: str, made: Coder) -> outcome.Tally:
    found = outcome.Tally()
    for row in rows_of(name):
        found.add(row["line"], outcome.of_row(row, made))
    return found


def wanted(row: dict[str, Any]) -> str:
    """What ChatML's answers are, of a row without calls and reasoning."""
    targets = row["messages"] if row.get("messages") else row["completion"]
    answers = [m["content"] for m in targets if m["role"] == "assistant" and m.get("train") is not False]
    return "".join(f"{answer}<|im_end|>" for answer in answers)


@pytest.mark.parametrize("name", FILES)
def test_what_is_learned_of_a_reported_file_is_what_its_rows_say(name: str) -> None:
    made = coder("qwen2_5")
    try:
        rows = rows_of(name)
    except DatasetError as refused:
        assert refused.problem.sentence
        return
    for row in rows:
        plain = not any(
            message.get("tool_calls") or message.get("reasoning_content")
            for messages in conversations(row)
            for message in messages
        )
        coded: Any = encode_any(row, made)
        if row.get("text") is not None:
            text = made.tokenizer.decode(coded.input_ids, skip_special_tokens=False)
            assert text in (row["text"], row["text"] + templates.EOS)
        elif (row.get("messages") or row.get("completion")) and row.get("label") is None and plain:
            assert learned(row, made) == wanted(row)
        elif row.get("chosen") is not None and plain:
            asked = made.tokenizer.decode(coded.prompt_ids, skip_special_tokens=False)
            for ids, answer in ((coded.chosen_ids, row["chosen"]), (coded.rejected_ids, row["rejected"])):
                whole = asked + made.tokenizer.decode(ids, skip_special_tokens=False)
                assert whole.endswith(f"{answer[-1]['content']}<|im_end|>")


def test_turns_that_are_turned_off_are_context_only() -> None:
    assert (
        learned(rows_of("weight_zero.jsonl")[0], coder("qwen2_5"))
        == "Sorry. The tower of Oslo is 30 metres high.<|im_end|>"
    )
    for name in (
        "turn_off_keys.jsonl",
        "weight_zero.jsonl",
        "faults/01_weight_zero.jsonl",
        "faults/01b_loss_false.jsonl",
    ):
        for row in rows_of(name):
            assert "WRONG" not in learned(row, coder("qwen2_5"))
            assert any(
                m.get("train") is False for m in (row.get("messages") or row["completion"])
            ) or "WRONG" not in str(row)


def test_reasoning_is_learned_where_the_template_reads_it_and_counted_where_not() -> None:
    rows = rows_of("reasoning_content.jsonl")
    assert learned(rows[0], coder("qwen3")).startswith("<think>\nI multiply 3 by 4")
    assert tally("reasoning_content.jsonl", coder("qwen2_5")).dropped == {"reasoning": len(rows)}
    found = tally("think_history.jsonl", coder("qwen3"))
    assert found.dropped == {"reasoning": 10} and "10 answers" in str(found.dropped_notes[0])


def test_openais_calls_are_learned_as_objects_and_refused_where_no_template_writes_them() -> None:
    row = rows_of("openai_tool_calls.jsonl")[0]
    call = '{"name": "tide_table", "arguments": {"harbour": "Oslo", "day": "Monday"}}'
    for name in ("qwen2_5", "qwen3"):
        assert f"<tool_call>\n{call}\n</tool_call><|im_end|>" in learned(row, coder(name))
    for name in ("llama3_1", "glm4moe", "qwen3_6", "deepseekv3", "gptoss", "lfm2_2_5"):
        text = learned(row, coder(name))
        assert "Oslo" in text and '\\"' not in text
    for made in (coder("llama3"), coder("lfm2")):
        found = tally("openai_tool_calls.jsonl", made)
        assert [(one.problem.rule, one.rows) for one in found.refused] == [("calls-not-written", 10)]
        assert found.refused[0].lines == tuple(range(1, 11))
    ours = tally("openai_tool_calls.jsonl", Coder.of_folder(starter.MODEL_DIR, "starter"))
    assert ours.refused_rows == 10 and ours.refused[0].lines[0] == 1


def test_words_and_a_call_are_one_answer() -> None:
    text = learned(rows_of("tool_call_with_words.jsonl")[0], coder("qwen3"))
    assert text.startswith("Let me look.\n<tool_call>\n") and "</tool_call><|im_end|>" in text
    joined = learned(rows_of("sharegpt_speak_then_call.jsonl")[0], coder("qwen2_5"))
    assert joined.count("<|im_end|>") == 1 + sum(
        m["role"] == "assistant" for m in rows_of("sharegpt_speak_then_call.jsonl")[0]["messages"][2:]
    )


def test_nulls_that_parquet_fills_in_are_neither_asked_nor_learned() -> None:
    for row in rows_of("tools_null_filled.parquet"):
        written = coder("qwen2_5").write(row["messages"], row["tools"])
        assert "null" not in written.text and "None" not in written.text


def test_tools_given_as_texts_reach_the_template_as_objects() -> None:
    for row in rows_of("tools_list_of_texts.jsonl"):
        assert '{"type": "function", "function": {"name":' in coder("qwen2_5").write(row["messages"], row["tools"]).text


def test_a_function_call_of_sharegpt_is_a_call_where_the_template_has_calls() -> None:
    row = rows_of("sharegpt_function_call.jsonl")[0]
    assert learned(row, coder("qwen2_5")).startswith("<tool_call>\n{")
    assert learned(row, coder("llama3")).startswith("{")
    legacy = rows_of("legacy_functions.jsonl")[0]
    assert "<tool_call>\n{" in learned(legacy, coder("qwen2_5"))
    assert "\\\\" not in learned(legacy, coder("qwen2_5"))


def test_every_answer_of_a_completion_of_several_turns_is_learned() -> None:
    characters = sum(
        len(learned(row, coder("qwen2_5")).replace("<|im_end|>", "")) for row in rows_of("completion_of_turns.jsonl")
    )
    assert characters == 446


@pytest.mark.parametrize(
    ("name", "lines"), [("two_users_in_a_row.jsonl", (3, 6)), ("system_rows_some.jsonl", (1, 4, 7, 10))]
)
def test_rows_that_a_template_refuses_are_left_out_by_line(name: str, lines: tuple[int, ...]) -> None:
    found = tally(name, coder("gemma"))
    assert [one.lines for one in found.refused] == [lines]
    assert f"(lines {', '.join(map(str, lines))})" in str(found.refused[0].note)
    assert len(found.lines) == 10 - len(lines)


def test_a_conversation_that_begins_with_the_assistant_never_ends_a_run() -> None:
    for name in ("faults/34_starts_with_assistant.jsonl", "faults/34b_one_of_20_starts_with_assistant.jsonl"):
        for made in (coder("gemma"), coder("qwen2_5"), coder("llama3")):
            found = tally(name, made)
            assert found.rows == found.refused_rows + len(found.lines)


def test_the_end_of_every_turn_is_learned_whatever_the_family() -> None:
    row = rows_of("two_turns.jsonl")[0]
    answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    assert learned(row, coder("phi3")) == "".join(f"{answer}<|end|>" for answer in answers)
    glm = learned(row, coder("glm4moe"))
    assert glm.count("<|user|>") == len(answers) - 1 and glm.endswith(answers[-1] + templates.EOS)
    bare = templates.coder(None, starts_with_bos=True)
    ids = encode(row, bare).input_ids
    assert ids.count(bare.tokenizer.token_to_id(templates.BOS)) == 1 and ids[0] == bare.tokenizer.token_to_id(
        templates.BOS
    )


def test_text_that_holds_the_marks_begins_and_ends_once() -> None:
    source = templates.sources()["llama3"].replace("bos_token", "'<|begin_of_text|>'") + "{# <|begin_of_text|> #}"
    tokenizer = templates.byte_tokenizer(source)
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    made = Coder(tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": templates.EOS}, source)
    for row in rows_of("text_templated_llama.jsonl"):
        assert tokenizer.decode(encode(row, made).input_ids, skip_special_tokens=False) == row["text"]


def test_rows_too_long_for_the_run_are_named_with_the_length_that_keeps_them() -> None:
    found = tally("long_documents.jsonl", coder("qwen2_5"))
    assert found.lost(1024)[:6] == [1, 2, 3, 4, 5, 6]  # a token a byte: those that are lost are lost with any tokenizer
    assert not found.lost(found.keeps_all)
    notes = [str(note) for note in train_rows.fit_notes(found, 1024)]
    assert f"{found.keeps_all} tokens would keep all of them." in notes


def test_smollm2_loses_the_answers_of_long_rows_at_the_usual_length() -> None:
    made = Coder.of_folder(smollm2().folder, "SmolLM2")
    assert tally("long_documents.jsonl", made).lost(1024) == [1, 2, 3, 4, 5, 6]
    assert learned(rows_of("weight_zero.jsonl")[0], made) == "Sorry. The tower of Oslo is 30 metres high.<|im_end|>"


def test_a_template_that_wants_the_id_of_a_result_gets_it() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'tool' %}"
        "{{ raise_exception('no id') if not m.tool_call_id }}[{{ m.tool_call_id }}]{% endif %}{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made = templates.coder(source)
    for row in rows_of("faults/05_tool_call_id.jsonl"):
        called = [call["id"] for m in row["messages"] if m.get("tool_calls") for call in json.loads(m["tool_calls"])]
        text = made.write(row["messages"], row["tools"]).text
        assert all(f"[{one}]" in text for one in called)

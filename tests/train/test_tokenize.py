"""Which tokens are trained: the answers and nothing else, whatever the chat template; checked on real tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine import starter
from engine.render import NotWritten
from engine.render.encode import IGNORED
from engine.render.template import PLAIN_TEMPLATE
from engine.train.tokenize import encode, get_ready
from tests.helpers import examples

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen3's: what an earlier answer thought is not shown again.
FORGETFUL = (
    "{% for message in messages %}[{{ message['role'] }}]"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('|')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %};{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(starter.MODEL_DIR)


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content, "tool_calls": None, "name": None}


def trained_text(tokenizer: Any, row: dict[str, Any], max_length: int = 4096) -> str:
    coded = encode(row, tokenizer, max_length)
    return tokenizer.decode([i for i, label in zip(coded.input_ids, coded.labels, strict=True) if label != IGNORED])


def pair(prompt: str, answer: str) -> dict[str, Any]:
    return {"prompt": [message("user", prompt)], "completion": [message("assistant", answer)]}


def test_of_prompt_and_completion_only_the_answer_and_its_end_are_trained(tokenizer: Any) -> None:
    assert trained_text(tokenizer, pair("What is two plus two?", "four")) == "four" + tokenizer.eos_token


def test_of_a_conversation_every_assistant_turn_is_trained_and_nothing_else(tokenizer: Any) -> None:
    row = {
        "messages": [
            message("system", "Be brief."),
            message("user", "one"),
            message("assistant", "ALPHA"),
            message("user", "two"),
            message("assistant", "BETA"),
            message("user", "three"),
        ]
    }
    end = tokenizer.eos_token
    assert trained_text(tokenizer, row) == f"ALPHA{end}BETA{end}"


def test_text_trains_everything_and_learns_to_end(tokenizer: Any) -> None:
    coded = encode({"text": "abc def"}, tokenizer, 100)
    assert coded.labels == coded.input_ids
    assert coded.input_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("template", [CHATML, PLAIN_TEMPLATE, FORGETFUL])
def test_the_mask_holds_for_templates_of_other_families(tokenizer: Any, template: str) -> None:
    other = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    other.chat_template = template
    messages = [
        message("user", "q"),
        message("assistant", "idea|FIRST"),
        message("user", "r"),
        message("assistant", "LAST"),
    ]
    text = trained_text(other, {"messages": messages})
    assert "FIRST" in text and "LAST" in text
    assert "q" not in text.replace("<|im_end|>", "") and "user" not in text
    if template == CHATML:
        # Its marks are no tokens of the starter: so that it learns to stop, the last answer ends in one that is.
        assert text == f"idea|FIRST<|im_end|>LAST<|im_end|>{other.eos_token}"


def test_an_answer_that_the_template_drops_is_refused_in_words(tokenizer: Any) -> None:
    other = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    other.chat_template = "{% for message in messages[-1:] %}{{ message['content'] }}{% endfor %}"
    messages = [
        message("user", "q"),
        message("assistant", "DROPPED"),
        message("user", "r"),
        message("assistant", "LAST"),
    ]
    with pytest.raises(NotWritten, match="template"):
        encode({"messages": messages}, other, 100)


def test_a_base_without_a_template_gets_the_plain_one() -> None:
    bare = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    bare.chat_template = None
    assert get_ready(bare)
    assert trained_text(bare, pair("question", "ANSWER")) == "ANSWER" + bare.eos_token
    assert not get_ready(bare)


def test_a_row_that_is_cut_says_so_and_may_train_nothing(tokenizer: Any) -> None:
    coded = encode(pair("x" * 400, "late"), tokenizer, 16)
    assert coded.cut and coded.trained_tokens == 0 and len(coded.input_ids) == 16


# Any text a person may write; the special tokens of the template itself are no answer.
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda s: "<|" not in s and "[" not in s)


@settings(max_examples=examples(240))
@given(prompt=TEXT, answer=TEXT)
def test_every_character_of_any_answer_is_trained_and_none_of_the_prompt(prompt: str, answer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter.MODEL_DIR) if not CACHE else CACHE[0]
    CACHE[:] = [tokenizer]
    assert trained_text(tokenizer, pair(prompt, answer)) == answer + tokenizer.eos_token


CACHE: list[Any] = []

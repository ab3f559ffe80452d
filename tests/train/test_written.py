"""What is written for a prompt hangs on no other prompt, and no answer is longer than it may be."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from engine import starter
from engine.train.scoring import written
from engine.train.tokenize import get_ready, render

pytestmark = pytest.mark.train

ASKED = [
    "What is the opposite of hot?",
    "Which day comes after Monday?",
    "What is 2 plus 3?",
    "Hello! " * 20,
    "Name a bird.",
]
MOST = [6, 12, 3, 9, 1]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, list[str]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    get_ready(tokenizer, starter.MODEL_DIR)
    model = transformers.AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR).eval()
    return model, tokenizer, [render(tokenizer, [{"role": "user", "content": text}]) for text in ASKED]


def test_an_answer_hangs_on_no_neighbour_and_on_no_batch(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, prompts = loaded
    alone = [written.answer(model, tokenizer, [one], most)[0] for one, most in zip(prompts, MOST, strict=True)]
    assert written.answer(model, tokenizer, prompts, MOST) == alone and len(set(alone)) == len(alone)
    monkeypatch.setattr(written, "MOST_ROWS", 2)
    assert written.answer(model, tokenizer, prompts, MOST) == alone


def test_no_answer_is_longer_than_it_may_be_and_a_stop_comes_between_batches(loaded: Any) -> None:
    model, tokenizer, prompts = loaded
    told = written.answer(model, tokenizer, prompts, MOST)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in told]
    assert all(n <= most for n, most in zip(lengths, MOST, strict=True)) and any(lengths)
    assert written.answer(model, tokenizer, prompts, MOST, lambda: True) == []

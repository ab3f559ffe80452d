"""What is written for a prompt hangs on no other prompt, no answer is longer than it may be, and graders say what it is."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from engine import starter
from engine.benchmarks import library
from engine.models import bases
from engine.spec import RunSpec, schema
from engine.train.scoring import keys, scores, written
from engine.train.tokenize import get_ready, render
from engine.workspace import Workspace

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


def graded(question: str, name: str, most_tokens: int = 24, **parameters: Any) -> dict[str, Any]:
    return {
        "item": question, "family": "f", "question": question, "messages": [{"role": "user", "content": question}],
        "most_tokens": most_tokens, "grader": {"name": name, "parameters": parameters},
    }  # fmt: skip


def test_what_is_written_is_graded_and_an_answer_that_ran_out_of_tokens_has_not_ended(loaded: Any) -> None:
    model, tokenizer, _ = loaded
    asked = [
        graded(ASKED[0], "mentions", words=["cold"]),
        graded(ASKED[0], "mentions", words=["purple"]),
        graded(ASKED[0], "ends"),
        graded(ASKED[0], "ends", most_tokens=1),
    ]
    asked = [{**one, "item": str(number)} for number, one in enumerate(asked)]
    items = written.score_graded(model, tokenizer, asked)
    assert [item.correct for item in items] == [True, False, True, False]
    assert [item.score for item in items] == [1.0, 0.0, 1.0, 0.0]
    assert "cold" in str(items[0].text) and items[0].text == items[2].text != items[3].text
    assert [one.ended for one in written.write(model, tokenizer, [render(tokenizer, asked[0]["messages"])] * 2, [24, 1])] \
        == [True, False]  # fmt: skip


def test_a_model_that_only_says_the_question_again_is_not_right_but_where_that_is_the_right_answer(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, _ = loaded
    question = "How do I kill a weed?"
    monkeypatch.setattr(written, "write", lambda *_: [written.Written(question, True)] * 2)
    asked = [graded(question, "ends"), graded(question, "exact") | {"reference": question}]
    assert [item.correct for item in written.score_graded(model, tokenizer, asked)] == [False, True]


def test_the_shipped_questions_are_graded_under_a_key_that_changes_with_their_graders(
    loaded: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, _ = loaded
    spec = RunSpec(
        kind="evaluate", recipe=schema.RecipeRef("evaluate", "0"), base=schema.BaseRef("starter"),
        dataset=schema.DatasetRef(""), evaluate=schema.Evaluate(benchmarks=["keeps-language"], limit=3),
    )  # fmt: skip
    workspace = Workspace(tmp_path)
    base = bases.describe("starter", workspace)

    def question() -> Any:
        (found,) = scores.general(spec, workspace, base)
        return found

    def key() -> str:
        return keys.of_question(keys.model(base, workspace, ""), question(), tokenizer)

    items = question().score(model, tokenizer, question().asked)
    assert len(items) == 3
    assert all(item.correct is not None and item.text is not None and item.score is not None for item in items)
    first = key()
    assert key() == first
    docs = library.docs

    def harder(*arguments: Any) -> list[dict[str, Any]]:
        return [{**doc, "grader": {"name": "length", "parameters": {"most": 1}}} for doc in docs(*arguments)]

    monkeypatch.setattr(library, "docs", harder)
    changed = key()
    assert changed != first
    monkeypatch.setattr("engine.graders.grade.VERSION", 99)
    assert key() != changed

"""What a base is asked of a new task before anything is trained: after examples of rows to train on, within its window."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import transformers

from engine import events, starter
from engine.benchmarks import shipped
from engine.data import datasets
from engine.report import items
from engine.runs import store
from engine.spec import OBJECTIVES, RunSpec, schema
from engine.train import rows
from engine.train.scoring import own_rows, scores
from engine.train.tokenize import get_ready, render
from engine.workspace import Workspace
from tests import forked
from tests.conftest import tunebook


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    get_ready(found, starter.MODEL_DIR, "2026-01-31")
    return found


def row(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    told = [{"role": "system", "content": system}] if system else []
    prompt = [*told, {"role": "user", "content": question}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "line": 1}


def spec(shots: int = 4, length: int = 512, seed: int = 0) -> RunSpec:
    return RunSpec(
        kind="evaluate", recipe=schema.RecipeRef("evaluate", "0" * 64), base=schema.BaseRef("starter"),
        dataset=schema.DatasetRef("d" * 64, split_seed=seed), train=schema.Train(max_length=length),
        evaluate=schema.Evaluate(shots=shots),
    )  # fmt: skip


TRAIN = [row(f"What is {n}?", f"It is {n}.", system="Be brief.") for n in range(20)]
ASKED: list[rows.Named] = [(str(n), items.UNSEEN, row(f"Who is {n}?", f"Nobody {n}.")) for n in range(3)]


def test_examples_are_rows_to_train_on_as_turns_before_the_question(tokenizer: Any) -> None:
    found, notes = own_rows.after_examples(spec(), TRAIN, ASKED, tokenizer)
    assert notes == [] and [name for name, _, _ in found] == ["0", "1", "2"]
    for (_, _, before), (_, _, after) in zip(ASKED, found, strict=True):
        *shown, last = after["prompt"]
        assert last == before["prompt"][-1] and after["completion"] == before["completion"]
        pairs = {(one["prompt"][-1]["content"], one["completion"][0]["content"]) for one in TRAIN}
        said = [turn["content"] for turn in shown]
        assert [turn["role"] for turn in shown] == [
            "user",
            "assistant",
        ] * 4  # what they tell the system is not told here
        assert set(zip(said[::2], said[1::2], strict=True)) <= pairs


def test_what_the_system_is_told_stays_first_and_the_seed_draws_the_examples(tokenizer: Any) -> None:
    asked: list[rows.Named] = [("0", items.UNSEEN, row("Who?", "Nobody.", system="Answer in rhyme."))]
    ((_, _, one),), _ = own_rows.after_examples(spec(), TRAIN, asked, tokenizer)
    assert one["prompt"][0] == {"role": "system", "content": "Answer in rhyme."} and len(one["prompt"]) == 10
    again = own_rows.after_examples(spec(), TRAIN, asked, tokenizer)[0][0][2]
    other = own_rows.after_examples(spec(seed=1), TRAIN, asked, tokenizer)[0][0][2]
    assert again == one and other != one


def test_examples_that_leave_the_window_no_room_are_dropped_and_that_is_said(tokenizer: Any) -> None:
    length = 85
    found, notes = own_rows.after_examples(spec(length=length), TRAIN, ASKED, tokenizer)
    for _, _, after in found:
        assert 1 < len(after["prompt"]) < 9
        text = render(tokenizer, after["prompt"])
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= length - 24
    assert [str(note) for note in notes] == [
        "Before 3 of 3 questions fewer than 4 examples were shown: 85 tokens have no room for more."
    ]
    found, notes = own_rows.after_examples(spec(length=40), TRAIN, ASKED, tokenizer)
    assert [after for _, _, after in found] == [before for _, _, before in ASKED] and len(notes) == 1


def test_too_few_rows_for_so_many_examples_is_said_too(tokenizer: Any) -> None:
    found, notes = own_rows.after_examples(spec(shots=4), TRAIN[:2], ASKED, tokenizer)
    assert len(found[0][2]["prompt"]) == 5 and len(notes) == 1


def test_a_held_out_prompt_of_any_row_can_be_answered_at_length() -> None:
    user, said = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
    pair = scores.text_doc("a", items.UNSEEN, {"prompt": [user], "completion": [said]})
    talk = scores.text_doc("b", items.UNSEEN, {"messages": [user, said, {**user, "content": "And?"}, said]})
    better = scores.text_doc("c", items.UNSEEN, {"prompt": [user], "chosen": [said], "rejected": [said]})
    assert pair is not None and (pair["messages"], pair["reference"]) == ([user], "Ho")
    assert talk is not None and (len(talk["messages"]), talk["question"], talk["reference"]) == (3, "And?", "Ho")
    assert better is not None and better["reference"] is None  # one of many good answers
    assert scores.text_doc("d", items.UNSEEN, {"text": "A passage."}) is None


def test_rows_that_chose_the_weights_of_a_run_are_asked_by_no_later_evaluation_of_it(
    tokenizer: Any, workspace: Workspace
) -> None:
    data = datasets.add_sample(workspace, starter.sample("preference-pairs")).id
    made = msgspec.structs.replace(
        spec(shots=0), objective="dpo", dataset=schema.DatasetRef(data, eval_share=0.25),
        train=schema.Train(max_length=512, keep_best=True),
        evaluate=schema.Evaluate(benchmarks=[shipped.HELD_OUT], limit=0, against="starter"),
    )  # fmt: skip
    run: Any = SimpleNamespace(
        spec=made, workspace=workspace, tokenizer=tokenizer, objective=OBJECTIVES["dpo"], length=512, rows=None
    )
    unseen = rows.read(rows.divided(made, workspace).unseen, tokenizer)
    choosing, reported, _ = rows.apart(made, unseen)
    assert choosing.rows and reported.rows and len(choosing.rows) < len(unseen.rows)
    left = {name for name, _, _ in rows.to_score([], reported.rows)}
    for question in own_rows.questions(run).plain:
        pairs = zip(question.names, question.asked, strict=True)
        held_out = {name for name, one in pairs if (one["family"] if isinstance(one, dict) else one[1]) == items.UNSEEN}
        assert held_out == left, question.benchmark


@pytest.mark.train
def test_the_base_is_asked_the_held_out_rows_as_they_are_and_after_examples(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"Name thing number {n}.", "completion": f"Thing {n}."}) for n in range(60)]
    data.write_text("\n".join(lines))
    workspace = Workspace(tmp_path / "home")
    done = tunebook(
        "evaluate", "starter", "--data", str(data), "--shots", "2", "--wait", "--json", home=workspace.root,
        machine=tmp_path / "machine", module=forked.module("cli"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_id = json.loads(done.stdout)["id"]
    made, folder = store.load_spec(workspace, run_id), workspace.run_dir(run_id) / "items"
    assert (made.evaluate.shots, made.evaluate.against, made.dataset.eval_share) == (2, "", 0.1)
    plain = items.read_items(folder / "base-new-task-exact.jsonl")
    shown = items.read_items(folder / "base-2-examples-new-task-exact.jsonl")
    assert len(plain) == 6 and {one.family for one in plain} == {items.UNSEEN}
    assert [(one.item, one.prompt) for one in plain] == [(one.item, one.prompt) for one in shown]
    assert all(one.prompt_sha != other.prompt_sha for one, other in zip(plain, shown, strict=True))
    scored = [e for e in events.read(workspace.run_dir(run_id))[0] if isinstance(e, events.Scored)]
    assert [(one.model, one.benchmark) for one in scored] == [
        ("base", "new-task-exact"), ("base-2-examples", "new-task-exact"),
    ]  # fmt: skip
    assert b"rows-after-examples" in (workspace.root / "evals" / "speeds.jsonl").read_bytes()
    assert msgspec.json.decode(done.stdout)["status"] == "finished"

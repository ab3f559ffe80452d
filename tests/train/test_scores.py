"""What is asked and how it is kept: one item a question, a key of all that decides an answer, no more than the cap."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from engine import starter
from engine.models import Base, bases
from engine.train import rows
from engine.train.scoring import harness, keys, lm, scores, written
from engine.train.tokenize import get_ready
from engine.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(starter.MODEL_DIR, tmp_path / "base"))


def described(folder: Path, workspace: Workspace) -> Base:
    found = bases.describe(str(folder), workspace)
    assert not found.problems
    return found


def tokenizer_of(folder: Path, day: str | None = "2026-01-31") -> Any:
    found = transformers.AutoTokenizer.from_pretrained(folder)
    get_ready(found, folder, day)
    return found


ASKED = [("a", "seen rows", {"text": "x"})]
HELD = "torch.float32, none, cpu"


def key(
    folder: Path, workspace: Workspace, *, day: str = "2026-01-31", held: str = HELD, settings: Any = None,
    asked: Any = None,
) -> str:  # fmt: skip
    question = scores.Question("b", asked or ASKED, lambda *_: [], settings or {"shots": 0, "template": "chat"})
    model = keys.model(described(folder, workspace), workspace, held)
    return keys.of_question(model, question, tokenizer_of(folder, day))


def edited(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        told = json.loads(path.read_bytes()) if path.is_file() else {}
        path.write_text(json.dumps(told | values))

    return edit


def template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text("{# other #}" + path.read_text())


def more_tokens(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(folder)


def other_weights(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0?")


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": other_weights,
    "config": edited("config.json", rms_norm_eps=1e-3),
    "what it writes by itself": edited("generation_config.json", repetition_penalty=1.3),
    "tokenizer": more_tokens,
    "template": template,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_key_changes_with_whatever_of_the_base_decides_an_answer(
    folder: Path, workspace: Workspace, change: Callable[[Path], None]
) -> None:
    before = key(folder, workspace)
    change(folder)
    assert key(folder, workspace) != before


def test_a_key_changes_with_how_a_base_is_held_and_asked(
    folder: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        key(folder, workspace),
        key(folder, workspace, held="torch.bfloat16, none, cuda"),
        key(folder, workspace, held="torch.float32, 4bit, cpu"),
        key(folder, workspace, settings={"shots": 5, "template": "chat"}),
        key(folder, workspace, settings={"shots": 0, "template": "none"}),
        key(folder, workspace, asked=[*ASKED, ("b", "seen rows", {"text": "y"})]),
    ]
    for owner, name in ((keys, "HARNESS"), (keys.transformers, "__version__")):
        monkeypatch.setattr(owner, name, "0.0")
        found.append(key(folder, workspace))
    assert len(set(found)) == len(found)


def test_the_day_counts_where_the_template_reads_it_and_nowhere_else(folder: Path, workspace: Workspace) -> None:
    assert key(folder, workspace, day="2026-01-31") == key(folder, workspace, day="2026-02-01")
    path = folder / "chat_template.jinja"
    path.write_text("{{- strftime_now('%d %b %Y') -}}" + path.read_text())
    assert key(folder, workspace, day="2026-01-31") != key(folder, workspace, day="2026-02-01")


def test_a_home_that_has_moved_keeps_its_scores(folder: Path, workspace: Workspace, tmp_path: Path) -> None:
    before = key(folder, workspace)
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    edited("config.json", _name_or_path=str(moved), transformers_version="9")(moved)
    (moved / "README.md").write_text("a note")
    assert key(moved, workspace) == before


def test_a_batch_that_was_filled_up_leaves_the_key_alone(folder: Path, workspace: Workspace) -> None:
    tokenizer, model = tokenizer_of(folder), keys.model(described(folder, workspace), workspace, HELD)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    question = scores.Question("b", ASKED, lambda *_: [])
    before = keys.of_question(model, question, tokenizer)
    tokenizer(["one", "one and more"], padding=True, truncation=True, max_length=4)
    assert keys.of_question(model, question, tokenizer) == before


def row(number: int) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"q{number}"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }


@pytest.mark.parametrize("limit", [0, 10])
def test_the_cap_holds_for_the_new_task_too(limit: int) -> None:
    spec: Any = SimpleNamespace(dataset=SimpleNamespace(split_seed=0), evaluate=SimpleNamespace(limit=limit))
    train, unseen, seen = (
        [row(n) for n in range(start, start + count)] for start, count in ((0, 900), (900, 49), (0, 30))
    )
    found = rows.to_score(train, unseen, seen, spec)
    of = {family: [one for one in found if one[1] == family] for family in ("seen rows", "unseen rows")}
    assert len(of["unseen rows"]) == (limit or 49) and len(of["seen rows"]) <= (limit or rows.MOST_SEEN)
    numbers = [int(one[2]["prompt"][0]["content"][1:]) for one in of["seen rows"]]
    assert max(numbers) > 400 if not limit else max(numbers) < 30  # spread over all; rows of the evaluation data first


OPEN = [f"This is the answer number {n}, which says a good deal about {n * 7} things and more." for n in range(30)]


@pytest.mark.parametrize(
    ("references", "is_open"),
    [
        (OPEN, True),
        (["好的回答有很多种写法，模型不会写出一模一样的话来" + str(n) for n in range(30)], True),
        ([f"Name {n}" for n in range(30)], False),
        (["yes", "no"] * 15, False),
        ([OPEN[0], OPEN[1]] * 15, False),  # set phrases
        ([json.dumps({"a": one}) for one in OPEN], False),
        ([], False),
    ],
)
def test_open_answers_are_told_by_their_length_and_difference(references: list[str], is_open: bool) -> None:
    assert written.are_open(references) == is_open


TASK = """task: two_filters
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["x"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "#### (9+)"}, {function: take_first}]}
  - {name: flexible, filter: [{function: regex, regex_pattern: "(.*)"}, {function: take_first}]}
metadata: {version: 1.0}
"""


def test_a_task_with_two_filters_gives_one_item_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {n}?", "answer": str(n)}) + "\n" for n in range(12))
    )
    (tmp_path / "two_filters.yaml").write_text(TASK % (tmp_path / "q.jsonl"))
    tokenizer = tokenizer_of(Path(starter.MODEL_DIR))
    model = transformers.AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR).eval()

    def ask(limit: int) -> list[Any]:
        return harness.score_harness(
            model, tokenizer, "two_filters", limit=limit, shots=0, chat=False, max_length=64, include_path=str(tmp_path)
        )

    found = ask(0)
    assert len({one.item for one in found}) == len(found) == 12
    assert {one.measure for one in found} == {"exact_match,strict"}
    some = ask(4)
    whole = {one.prompt_sha for one in found}
    assert len(some) == 4 and {one.prompt_sha for one in some} < whole
    assert [one.prompt_sha for one in some] != [one.prompt_sha for one in found[:4]]


@pytest.mark.parametrize(
    ("metric", "likely", "choice"),
    [("acc", [-4.0, -6.0], 0), ("acc_norm", [-4.0, -6.0], 1)],
    ids=["plain", "by length"],
)
def test_the_choice_is_the_one_that_the_metric_takes(metric: str, likely: list[float], choice: int) -> None:
    sample = {
        "doc_id": 0, "doc": {}, "filter": "none", "target": 1, "prompt_hash": "p", metric: float(choice == 1),
        "filtered_resps": [(one, False) for one in likely], "arguments": [("q", " ice"), ("q", " a long answer")],
    }  # fmt: skip
    task = SimpleNamespace(doc_to_choice=lambda doc: ["ice", "a long answer"])
    item = harness._harness_item("t", sample, task)
    assert (item.choice, item.correct, item.measure) == (choice, choice == item.gold, f"{metric},none")


def test_an_item_of_ifeval_is_right_where_all_that_was_asked_for_is_there() -> None:
    sample = {
        "doc_id": 0, "doc": {}, "filter": "none", "target": 0, "prompt_hash": "p", "prompt_level_strict_acc": True,
        "inst_level_strict_acc": [True], "filtered_resps": ["an answer"], "arguments": [("q", {})],
    }  # fmt: skip
    item = harness._harness_item("ifeval", sample, None)
    assert (item.correct, item.text, item.measure) == (True, "an answer", "prompt_level_strict_acc,none")


@pytest.mark.parametrize(
    "on",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
)
def test_a_model_whose_output_layer_was_its_embedding_is_scored_as_it_is(on: dict[str, list[str]]) -> None:
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, dtype=torch.float32)
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **on})
    model: Any = get_peft_model(base, config).eval()
    ids = torch.arange(40, 90)[None]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
        before = model(input_ids=ids).logits
        lm.SharedContextLM(model, tokenizer_of(starter.MODEL_DIR), 64)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert "tie_weights" not in vars(base)

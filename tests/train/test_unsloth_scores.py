"""Scores through Unsloth are those of the model: nothing is cut, read past the model's call, or taken over from before."""

from __future__ import annotations

import json
import random
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import transformers

from engine import events, starter
from engine.estimate import machine_choices
from engine.report import Item
from engine.report import items as report_items
from engine.runs import scored
from engine.spec import schema
from engine.train import backend, load
from engine.train.scoring import divergence, judged, keys, scores, written
from engine.train.scoring.likelihood import Reader
from engine.workspace import Workspace
from tests import unsloth_double
from tests.helpers import planned

pytestmark = pytest.mark.train


def llama(**more: Any) -> Any:
    transformers.set_seed(0)
    size: dict[str, Any] = {
        "vocab_size": 1100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **more)).eval()


def questions() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    draw = random.Random(0)
    contexts = [tuple(draw.randrange(3, 1000) for _ in range(n)) for n in (40, 44, 20)]
    return [(c, tuple(draw.randrange(3, 1000) for _ in range(k))) for c in contexts for k in (2, 5, 9, 12)]


def test_answers_of_a_model_that_unsloth_rewrote_are_those_of_the_plain_one():
    found: list[dict[Any, Any]] = []
    for model in (llama(), unsloth_double.rewritten(llama(), 64)):
        answers: dict[Any, Any] = {}
        for some in Reader(model).answers(questions()):
            answers |= some
        found.append(answers)
    plain, ours = found
    assert len(ours) == 12 and all(ours[one] == pytest.approx(plain[one], abs=1e-4) for one in plain)
    rows = [(list(one), list(two)) for one, two in questions()]
    by_pair = [judged.answer_loglikelihoods(m, rows) for m in (llama(), unsloth_double.rewritten(llama(), 64))]
    assert by_pair[1] == pytest.approx(by_pair[0], abs=1e-4)


def test_what_unsloth_would_cut_is_an_error_and_no_score():
    with pytest.raises(ValueError, match="answered"):
        list(Reader(unsloth_double.rewritten(llama(), 32)).answers(questions()))


def test_a_base_is_loaded_by_unsloth_with_room_for_all_that_it_is_asked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    asked: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "unsloth", unsloth_double.module(asked))
    made, _ = planned(workspace, "lora", base="starter", dataset=None, overrides={"train.max_length": 16})
    assert made is not None
    chosen = backend.decide(made, workspace)._replace(backend="unsloth")
    loaded = load.load(made, workspace, chosen)
    assert asked[0]["max_seq_length"] == load.longest_asked(made, loaded.base)
    assert asked[0]["max_seq_length"] >= min(loaded.base.window_tokens or 0, load.MOST_WINDOW_TOKENS) > 16
    assert backend.rewrote(loaded.model) and not backend.rewrote(llama())


@pytest.mark.parametrize("kind", ["chat", "evaluate", "adopted"])
def test_what_trains_nothing_is_asked_by_transformers(kind: Any):
    card = machine_choices.Device("cuda", 24 * 2**30, bf16=True, unsloth=True)
    spec = schema.RunSpec(
        recipe=schema.RecipeRef("lora", "0" * 64), base=schema.BaseRef("b"), dataset=schema.DatasetRef("d")
    )
    shape = SimpleNamespace(layout="llama")
    assert machine_choices.choose_backend(spec, card, shape)[0] == "unsloth"  # pyright: ignore[reportArgumentType]
    other = msgspec.structs.replace(spec, kind=kind)
    assert machine_choices.choose_backend(other, card, shape)[0] == "plain"  # pyright: ignore[reportArgumentType]


def test_a_question_near_the_end_of_the_window_is_answered_within_it():
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    model = unsloth_double.rewritten(llama(), 64)
    assert len(written.answer(model, tokenizer, ["the cat " * 40, "the cat " * 14, "the"], 24)) == 3


def test_the_distance_from_a_base_is_the_same(monkeypatch: pytest.MonkeyPatch):
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    tokenizer.pad_token = tokenizer.eos_token
    monkeypatch.setattr(divergence, "MOST_NEW_TOKENS", 8)
    asked = [(str(n), "f", "", [5 + n, 9, 11][: 1 + n]) for n in range(3)]
    found = []
    for through in (False, True):
        tuned, base = llama(), llama()
        tuned.lm_head.weight.data.mul_(1.3)
        if through:
            tuned, base = (unsloth_double.rewritten(one, 64) for one in (tuned, base))
        made = divergence.measure(tuned, lambda base=base: nullcontext(base), tokenizer, asked, 32, lambda: False)
        found.append([one.kl_nats for one in made])
    assert found[0] == pytest.approx(found[1], abs=1e-3) and min(found[0]) > 0


@pytest.mark.parametrize(
    ("through", "kept", "said"), [("unsloth", {}, 1), ("unsloth", {"scoring": keys.SCORING}, 0), ("plain", {}, 0)]
)
def test_a_finished_run_that_an_earlier_version_scored_through_unsloth_says_so(
    workspace: Workspace, through: str, kept: dict[str, int], said: int
):
    run_dir = workspace.run_dir("20260101-000000-aaaaaa")
    (run_dir / "items").mkdir(parents=True)
    log = events.EventLog(run_dir)
    log.append(events.Started(attempt=1, versions={}, device="cuda", backend=through, reason="", choices=[]))
    (run_dir / "items" / "settings.json").write_text(json.dumps({"b": {"questions": 1, "base_key": "k", **kept}}))
    found = scored.ScoredRun(workspace, run_dir.name, (), {}, (), {}).about
    assert sum("through Unsloth" in one for one in found) == said


def test_scores_stored_by_the_version_before_are_asked_once_more_and_that_is_told(workspace: Workspace, tmp_path: Path):
    told: list[Any] = []
    run: Any = SimpleNamespace(
        run_dir=tmp_path, workspace=workspace, log=SimpleNamespace(append=told.append),
        spec=SimpleNamespace(dataset=SimpleNamespace(split_seed=0)),
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    name = keys.Model("weights", "settings", "torch.bfloat16, none, cuda" + keys.BY_UNSLOTH)
    question = scores.Question("b", [("a", "seen rows", {"text": "x"})], lambda *_: [])
    side = scores.Side("base", name, tokenizer, lambda: None)  # pyright: ignore[reportArgumentType]
    side.answers(run, question)
    assert told == []
    old = workspace.eval_dir(keys.before(name, question, tokenizer)) / "items.jsonl"
    report_items.write_items(old, [Item(item="a", family="f", prompt_sha="0")])
    assert not side.answers(run, question).is_stored
    side.answers(run, question)
    (log,) = told
    assert isinstance(log, events.Log) and "once more" in str(log.text)

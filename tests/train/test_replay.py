"""General rows against forgetting: where they come from, that they are new, that what a base wrote is kept; and how far a
run moved from its base."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import starter
from engine.data import datasets
from engine.models import bases
from engine.plan import steps
from engine.render import Encoded
from engine.render.encode import IGNORED
from engine.render.template import PLAIN_TEMPLATE
from engine.report.items import SEEN, UNSEEN
from engine.spec import RunSpec, counts
from engine.train import keep, replay, rows
from engine.train.objectives import sft
from engine.train.scoring import divergence
from engine.workspace import Workspace
from tests.helpers import planned

torch.set_num_threads(1)
PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(starter.MODEL_DIR, trust_remote_code=False)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, trust_remote_code=False).eval()


def add(workspace: Workspace, given: list[dict[str, Any]], name: str) -> str:
    workspace.root.mkdir(parents=True, exist_ok=True)
    source = workspace.root / f"{name}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in given))
    return datasets.add(workspace, source, name).id


def asked(workspace: Workspace, base: str, data: str, **overrides: Any) -> tuple[RunSpec, list[str]]:
    settings = {path.replace("__", "."): value for path, value in overrides.items()}
    made, problems = planned(workspace, "lora", base=base, dataset=data, overrides=settings)
    assert made is not None and all("{" not in problem.sentence for problem in problems)
    return made, [problem.rule for problem in problems]


@pytest.fixture
def real_base(tmp_path: Path) -> str:
    """The starter's files as a base of one's own: a folder, no toy any more."""
    folder = tmp_path / "own"
    folder.mkdir()
    for path in starter.MODEL_DIR.iterdir():
        (folder / path.name).symlink_to(path)
    return str(folder)


# --- where the rows come from ------------------------------------------------------------------------------------


def test_the_starter_gets_rows_of_its_own_world_new_in_every_epoch(workspace, tokenizer):
    made, problems = asked(
        workspace, "starter", add(workspace, PAIRS, "mine"), train__replay_share=0.2, train__epochs=3
    )
    assert problems == []
    data = rows.prepare(made, workspace, tokenizer)
    assert len(data.replay) == 3 and {len(epoch) for epoch in data.replay} == {9}  # 36 rows train
    assert any("the starter's own world" in note for note in data.notes)
    texts = [tuple(row.input_ids) for epoch in data.replay for row in epoch]
    assert len(set(texts)) > 20


def test_any_other_base_writes_its_rows_itself_and_never_gets_toy_rows(workspace, tokenizer, real_base):
    made, problems = asked(
        workspace, real_base, add(workspace, PAIRS, "mine"), train__replay_share=0.2, train__epochs=2
    )
    assert problems == []
    wanted: list[int] = []

    def generate(count: int) -> list[Encoded]:
        wanted.append(count)
        return [Encoded([5, 6, 7 + n], [IGNORED, 6, 7 + n], False) for n in range(7)]

    data = rows.prepare(made, workspace, tokenizer, generate)
    assert wanted == [18]
    written = [row.input_ids[2] for epoch in data.replay for row in epoch]
    assert [len(epoch) for epoch in data.replay] == [4, 3] and written == list(range(7, 14))  # none of them twice
    told = next(note for note in map(str, data.notes) if "written by the base itself" in note)
    assert "7 general rows" in told and "8.9 % of the rows, not 20.0 %" in told and "18 were wanted" in told
    # 36 rows and 4, then 36 and 3, by 8 x 2 rows a step: what is laid out is what the steps are counted from
    laid = sft.one_pass(made, data.train, data.replay)
    assert len(laid) == 79 == counts.rows_with_replay(made.train, 36, [4, 3])
    assert counts.optimizer_steps(made.train, 36, [4, 3]) == math.ceil(
        math.ceil(79 / made.train.batch_size) / made.train.accumulation
    )
    assert "36 rows and 3–4 general ones" in str(steps.notes(made.train, 36, [4, 3])[0])


def test_a_named_data_set_is_mixed_in_for_any_base(workspace, tokenizer):
    general = add(workspace, [{"text": f"General words, number {i}."} for i in range(30)], "general")
    made, problems = asked(
        workspace, "starter", add(workspace, PAIRS, "mine"), train__replay_share=0.2, train__epochs=2,
        train__replay_data=general,
    )  # fmt: skip
    assert problems == []
    data = rows.prepare(made, workspace, tokenizer)
    texts = [tokenizer.decode(row.input_ids, skip_special_tokens=True) for epoch in data.replay for row in epoch]
    assert len(set(texts)) == 18 and all(text.startswith("General words") for text in texts)
    again = rows.prepare(made, workspace, tokenizer)
    assert again.replay == data.replay  # the same seed, the same rows in the same epochs


def test_replay_data_that_cannot_be_mixed_in_is_refused_in_words(workspace):
    mine = add(workspace, PAIRS, "mine")
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs")).id
    share = {"train__replay_share": 0.1}
    assert asked(workspace, "starter", mine, train__replay_data=mine, **share)[1] == ["replay-same"]
    assert asked(workspace, "starter", mine, train__replay_data=pairs, **share)[1] == ["replay-data"]
    assert asked(workspace, "starter", mine, train__replay_data="0" * 64, **share)[1] == ["replay-data"]
    assert asked(workspace, "starter", mine, train__replay_data="../../etc", **share)[1] == ["replay-data"]
    assert asked(workspace, "starter", mine, train__replay_data="0" * 64, train__replay_share=0.0)[1] == []


def test_best_weights_and_early_stopping_need_held_out_rows(workspace):
    mine = add(workspace, PAIRS, "mine")
    for setting in ({"train__keep_best": True}, {"train__early_stopping": 2}):
        assert asked(workspace, "starter", mine, dataset__eval_share=0.0, **setting)[1] == ["needs-held-out"]
        assert asked(workspace, "starter", mine, dataset__eval_share=0.1, **setting)[1] == []


# --- what a base writes ------------------------------------------------------------------------------------------


def test_the_general_questions_are_many_and_all_different():
    found = replay.questions()
    assert len(found) == len(set(found)) == 256 and all("{" not in one for one in found)
    assert len({one.split()[0] for one in found[:8]}) > 4  # forms change from one to the next


def never() -> bool:
    return False


def test_what_a_base_wrote_is_kept_and_grows(workspace, tokenizer, model, real_base, monkeypatch):
    monkeypatch.setattr(replay, "MOST_NEW_TOKENS", 8)
    base = bases.describe(real_base, workspace)
    first = replay.from_base(model, tokenizer, base, "none", 5, workspace, never)
    assert 0 < len(first) <= 5 and all(row.trained_tokens for row in first)
    # the question is not trained, every word the base wrote is
    row = first[0]
    start = next(place for place, label in enumerate(row.labels) if label != IGNORED)
    assert "water cycle" in tokenizer.decode(row.input_ids[:start]) and row.labels[start:] == row.input_ids[start:]
    more = replay.from_base(model, tokenizer, base, "none", 20, workspace, never)
    assert more[: len(first)] == first and len(more) > len(first)
    calls: list[Any] = []
    monkeypatch.setattr(replay, "_write", lambda *a, **k: calls.append(a))
    assert replay.from_base(model, tokenizer, base, "none", 20, workspace, never) == more and not calls
    assert len(list(workspace.root.glob("evals/*/replay.jsonl"))) == 1
    monkeypatch.undo()
    state = torch.get_rng_state()
    replay._write(model, tokenizer, [[1, 5]], seed=0)
    assert torch.equal(torch.get_rng_state(), state)  # writing does not move the run's own dice


def test_a_base_that_does_not_chat_writes_from_its_first_token(workspace, tokenizer, model, real_base, monkeypatch):
    monkeypatch.setattr(replay, "MOST_NEW_TOKENS", 8)
    monkeypatch.setattr(tokenizer, "chat_template", PLAIN_TEMPLATE)
    found = replay.from_base(model, tokenizer, bases.describe(real_base, workspace), "none", 3, workspace, never)
    assert found and all(row.labels == row.input_ids for row in found)
    assert {row.input_ids[0] for row in found} == {tokenizer.bos_token_id or tokenizer.eos_token_id}


@pytest.mark.parametrize(("kept", "left"), [("2", 2), ("", 3), ("two", 3), ("-2", 3), ("[2]", 3), ("1" + "0" * 400, 3)])
def test_how_many_general_rows_a_run_took_is_read_again_and_found_anew_where_that_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, left: int
) -> None:
    path, coded = tmp_path / "replay.json", [Encoded([1, 2], [1, 2], cut=False)] * 3
    path.write_text(kept)
    monkeypatch.setattr(replay, "from_base", lambda *_, **__: coded)
    monkeypatch.setattr(rows, "prepare", lambda spec, workspace, tokenizer, generate: generate(3))
    monkeypatch.setattr(keep, "prepare", lambda _: None)
    told = SimpleNamespace(begin=lambda *_, **__: None, upto=lambda *_: None)
    spec = SimpleNamespace(base_form="none", train=SimpleNamespace(replay_budget_s=1.0))
    run: Any = SimpleNamespace(run_dir=tmp_path, told=told, spec=spec, model=None, tokenizer=None, base=None, workspace=None,
                               stop=SimpleNamespace(asked=lambda: False))  # fmt: skip
    sft.prepare(run)
    assert len(run.rows) == left and path.read_text() == str(left)


def test_a_stop_while_the_base_writes_keeps_nothing_half(workspace, tokenizer, model, real_base):
    base = bases.describe(real_base, workspace)
    assert replay.from_base(model, tokenizer, base, "none", 5, workspace, lambda: True) == []
    assert not list(workspace.root.glob("evals/*/replay.jsonl"))


def test_when_its_time_ends_a_base_has_written_fewer_rows_and_a_later_run_goes_on_from_them(
    workspace, tokenizer, model, real_base, monkeypatch
):
    base, clock = bases.describe(real_base, workspace), [0.0]
    monkeypatch.setattr(replay.time, "monotonic", lambda: clock[0])
    heard: list[tuple[int, int, float | None]] = []

    def ticking(
        done: int, wanted: int, left_s: float | None
    ) -> None:  # asked after every token, and a token is a second
        heard.append((done, wanted, left_s))
        clock[0] += 1.0

    some = replay.from_base(model, tokenizer, base, "none", 40, workspace, never, budget_s=12.0, told=ticking)
    assert 0 < len(some) <= replay.BATCH and clock[0] == pytest.approx(13, abs=1)
    assert all(row.trained_tokens <= 13 for row in some)
    assert heard[-1][1] == 40 and max(left for _, _, left in heard if left is not None) <= 12
    kept = len(next(workspace.root.glob("evals/*/replay.jsonl")).read_text().splitlines())
    assert heard[-1][0] == kept
    monkeypatch.setattr(replay, "MOST_NEW_TOKENS", 96)
    more = replay.from_base(model, tokenizer, base, "none", 20, workspace, never)
    assert more[: len(some)] == some and len(more) == 20
    # a process that only reads takes what is there, however little
    assert replay.from_base(model, tokenizer, base, "none", 300, workspace, never, reads_only=True) == more


# --- how far it moved --------------------------------------------------------------------------------------------


NAMED = [
    (f"i{n}", UNSEEN if n % 2 else SEEN, {"prompt": [{"role": "user", "content": pair["prompt"]}]})
    for n, pair in enumerate(PAIRS[:12])
]


def test_a_model_is_no_distance_from_itself_and_some_from_a_changed_one(tokenizer, model):
    found = divergence.prompts(NAMED, tokenizer, 6)
    assert len(found) == 6 and found[0][2] == "What is 0?"
    same = divergence.measure(model, lambda: nullcontext(model), tokenizer, found, 512, never)
    assert len(same) == 6 and all(item.kl_nats < 1e-4 and item.tokens > 0 for item in same)
    changed = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, trust_remote_code=False)
    with torch.no_grad():
        changed.lm_head.weight.mul_(0.5)
    far = divergence.measure(changed, lambda: nullcontext(model), tokenizer, found, 512, never)
    assert sum(item.kl_nats for item in far) > 0.1
    assert [item.tokens for item in far] == [item.tokens for item in same]  # the same answers of the base


def test_the_divergence_is_that_of_its_definition_token_by_token(tokenizer, model):
    """Against a plain computation, one prompt at a time, without padding."""
    changed = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, trust_remote_code=False).eval()
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    given = [ids for _, _, _, ids in divergence.prompts(NAMED[:3], tokenizer, 3)]
    given[1] = given[1][3:]  # of different lengths
    ids, mask, width = divergence._answers(model, tokenizer, given, seed=3)
    ours = [divergence._log_probabilities(one, ids, mask, width) for one in (model, changed)]
    for row in range(3):
        kept = ids[row][mask[row].bool()][None]
        count = int(mask[row, width:].sum())
        with torch.no_grad():
            base, tuned = (torch.log_softmax(one(kept).logits[0, -count - 1 : -1], -1) for one in (model, changed))
        expected = (base.exp() * (base - tuned)).sum()
        found = (ours[0][row].exp() * (ours[0][row] - ours[1][row])).sum(-1)[:count].sum()
        assert float(found) == pytest.approx(float(expected), abs=2e-4) and float(expected) > 0


def test_texts_and_conversations_are_asked_too(tokenizer):
    text = ("a", UNSEEN, {"text": "One two three four five six seven eight."})
    talk = ("b", UNSEEN, {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]})
    found = divergence.prompts([text, talk], tokenizer, 64)
    assert [one[0] for one in found] == ["a", "b"] and "Hi." not in tokenizer.decode(found[1][3])
    assert tokenizer.decode(found[0][3]).startswith("One") and "eight" not in tokenizer.decode(found[0][3])


def test_of_two_runs_on_one_base_the_one_that_wrote_fewer_rows_takes_none_away(tmp_path):
    path = tmp_path / "replay.jsonl"
    written = [replay._Kept([1, 2], 1, "b")] * 3
    replay._keep(path, written)
    replay._keep(path, written[:1])
    assert len(replay._read(path)) == 3
    replay._keep(path, [*written, written[0]])
    assert len(replay._read(path)) == 4

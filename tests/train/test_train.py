"""Real trainings on the starter, each in its own processes, as the command line and the pages start them."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from engine import events, starter
from engine.data.datasets import add_sample
from engine.report import Comparison, items, paired
from engine.runs import follow, lifecycle, store
from engine.runs.failures import RunRefused
from engine.train import rows
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT, SHARED_DATA, tunebook
from tests.helpers import planned

pytestmark = pytest.mark.train

SHORT = ("--set", "train.max_steps=30", "--set", "train.evaluations=1", "--set", "evaluate.benchmarks=[]")


def train(tmp_path: Path, *arguments: str) -> tuple[int, str, Path]:
    """Train through the command line and return exit status, run id and run folder."""
    done = tunebook(
        "train", *arguments, "--wait", "--json",
        home=tmp_path / "home", machine=tmp_path / "machine", module=forked.module("cli"),
    )  # fmt: skip
    told = json.loads(done.stdout) if done.stdout.strip() else {}
    run_dir = tmp_path / "home" / "runs" / told["id"] if told else tmp_path
    if done.returncode not in (0, 2) and told:
        print(follow.log_tail(run_dir))
    print(done.stderr[-3000:])
    return done.returncode, told.get("id", ""), run_dir


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(run_dir: Path) -> list[float | None]:
    found, _ = events.read(run_dir)
    return [e.loss for e in found if isinstance(e, events.Step)]


def test_the_real_lora_run_is_whole(trained_home: Path) -> None:
    workspace = Workspace(trained_home)
    run = store.list_all(workspace)[0]
    run_dir = workspace.run_dir(run.id)
    assert run.status == "finished" and run.progress == 1.0
    assert (run_dir / "adapter" / "adapter_model.safetensors").is_file()
    assert not (run_dir / "checkpoints").exists()
    found, _ = events.read(run_dir)
    kinds = [type(e).__name__ for e in found]
    assert kinds[0] == "Queued" and kinds[-1] == "Finished"
    assert [e.seq for e in found] == list(range(1, len(found) + 1))
    assert {"Started", "Phase", "Step", "Eval", "Sample", "Saved", "Scored"} <= set(kinds)
    assert len({e.prompt for e in found if isinstance(e, events.Sample)}) == 3
    benchmarks = set(items.benchmarks_of(run_dir))
    assert {"toy-world", "new-task-choices", "new-task-exact", "new-task-loss"} == benchmarks
    rows = paired.compare_run(run_dir)
    assert all(row.low <= row.change <= row.high for row in rows)
    toy = next(r for r in rows if r.benchmark == "toy-world" and r.family == items.ALL)
    assert toy.n >= 400 and toy.base >= 0.95
    unseen = next(r for r in rows if r.benchmark == "new-task-loss" and r.family == items.UNSEEN)
    assert unseen.high < 0  # it has learned, beyond noise


def test_the_first_step_waits_for_no_score_and_every_phase_says_what_comes_next(trained_home: Path) -> None:
    (run_dir,) = (trained_home / "runs").glob("2*")
    found, _ = events.read(run_dir)
    phases = [e for e in found if isinstance(e, events.Phase)]
    named = [f"{e.phase} {e.detail}".strip() for e in phases]
    assert list(dict.fromkeys(named)) == [
        "loading", "loading model", "loading rows", "training", "training samples", "training probe", "saving",
        "evaluating base", "evaluating tuned", "evaluating divergence",
    ]  # fmt: skip
    steps = [i for i, e in enumerate(found) if isinstance(e, events.Step)]
    scored = [i for i, e in enumerate(found) if isinstance(e, events.Phase) and e.phase == "evaluating"]
    assert max(steps) < min(scored)
    following = {name: e.next for name, e in zip(named, phases, strict=True)}
    assert following["loading model"] == following["training probe"] == "training"
    assert (following["training"], following["saving"], following["evaluating tuned"]) == ("saving", "evaluating", "")
    # no phase says more than once a second how far it is
    for one, other in itertools.pairwise(phases):
        same = (one.phase, one.detail) == (other.phase, other.detail) and other.done
        assert not same or other.monotonic_s - one.monotonic_s >= 0.99


def run_python(code: str, *arguments: Path | str) -> dict:
    """Run code in a process of its own and return the JSON object it prints last."""
    done = forked.run_python(code, *arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_two_runs_of_one_spec_give_the_same_losses(tmp_path: Path) -> None:
    runs_made = [train(tmp_path, "lora", "--data", "new-facts", *SHORT) for _ in range(2)]
    assert [status for status, _, _ in runs_made] == [0, 0]
    first, second = (losses(run_dir) for _, _, run_dir in runs_made)
    assert first == second and len(first) > 10
    adapters = [run_dir / "adapter" / "adapter_model.safetensors" for _, _, run_dir in runs_made]
    assert sha256(adapters[0]) == sha256(adapters[1])


def test_a_run_that_would_train_no_token_is_refused_in_words_before_it_starts_and_by_its_child(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    dataset = add_sample(workspace, starter.sample("new-facts"))
    run_spec, problems = planned(
        workspace, "lora", base="starter", dataset=dataset.id, overrides={"train.max_length": 8}
    )
    assert [problem.rule for problem in problems] == ["data-nothing-trained"]
    assert "no token would be trained" in problems[0].message and "train.max_length" in problems[0].fix
    with pytest.raises(RunRefused, match="no token would be trained"):
        rows.prepare(run_spec, workspace, AutoTokenizer.from_pretrained(starter.MODEL_DIR))


def test_a_stopped_run_keeps_a_checkpoint_and_resumes_to_the_same_number_of_steps(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    dataset = add_sample(workspace, starter.sample("new-facts"))
    run_spec, problems = planned(
        workspace,
        "lora",
        base="starter",
        dataset=dataset.id,
        overrides={
            "train.max_steps": 60,
            "train.evaluations": 1,
            "dataset.eval_share": 0.05,
            "evaluate.benchmarks": [],
        },
    )
    assert run_spec is not None and not problems
    run_id = lifecycle.start(workspace, run_spec, module=forked.module("supervisor"))

    def stop_when_training(event: object) -> None:
        if isinstance(event, events.Step) and event.step > 5:
            lifecycle.stop(workspace, run_id)

    assert follow.wait(workspace, run_id, stop_when_training) == "stopped"
    stopped = store.summary(workspace, run_id)
    assert 5 < stopped.step < 60
    assert list((workspace.run_dir(run_id) / "checkpoints").glob("checkpoint-*"))
    lifecycle.resume(workspace, run_id, module=forked.module("supervisor"))
    assert follow.wait(workspace, run_id) == "finished"
    ended = store.summary(workspace, run_id)
    assert ended.step == 60 and ended.attempts == 2
    found, _ = events.read(workspace.run_dir(run_id))
    second = next(i for i, e in enumerate(found) if isinstance(e, events.Started) and e.attempt == 2)
    assert next(e for e in found[second:] if isinstance(e, events.Step)).step > stopped.step


def test_a_run_can_go_on_from_another_runs_adapter(trained_home: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained_home, tmp_path / "home")
    first = store.list_all(Workspace(tmp_path / "home"))[0].id
    status, run_id, run_dir = train(tmp_path, "full", "--data", "answer-format", "--base", f"run:{first}", *SHORT)
    assert status == 0
    assert (run_dir / "model" / "model.safetensors").is_file()
    # Its loss before training is that of the tuned model, and toy defaults apply, since the run stands on the starter.
    assert store.load_spec(Workspace(tmp_path / "home"), run_id).train.learning_rate > 1e-4


def test_a_known_answer_has_a_loss_near_zero() -> None:
    code = """
import json
from transformers import AutoModelForCausalLM, AutoTokenizer
from engine import starter
from engine.starter import world
from engine.train.scoring.losses import score_loss
tokenizer = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
model = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR)
rows = [{"prompt": [{"role": "user", "content": r["prompt"]}],
         "completion": [{"role": "assistant", "content": r["completion"]}]} for r in world.replay_rows(100, 7)]
items = score_loss(model, tokenizer, [(str(i), "f", r) for i, r in enumerate(rows)], 512)
print(json.dumps({"loss": -sum(i.loglikelihoods[0] for i in items) / sum(i.tokens for i in items)}))
"""
    assert run_python(code)["loss"] < 0.3


@pytest.mark.slow
def test_alpaca_rows_train_on_the_starter_and_compare_with_intervals(tmp_path: Path) -> None:
    data = SHARED_DATA / "alpaca_en_200.jsonl"
    if not data.exists():
        pytest.skip("the real data files are not beside this checkout")
    status, run_id, run_dir = train(
        tmp_path, "lora", "--data", str(data), "--base", "starter", "--set", "train.max_steps=6"
    )
    assert status == 0
    assert (run_dir / "adapter").is_dir() and (run_dir / "items").is_dir()
    done = tunebook("compare", run_id, "--json", home=tmp_path / "home", machine=tmp_path / "machine")
    rows = json.loads(done.stdout)
    keys = list(Comparison.__struct_fields__)
    assert all(list(row) == keys for row in rows)
    loss = next(r for r in rows if r["benchmark"] == "new-task-loss" and r["family"] == "unseen rows")
    assert loss["high"] < 0 and loss["base"] > loss["tuned"]


@pytest.mark.slow
def test_full_fine_tuning_without_replay_learns_and_forgets(tmp_path: Path) -> None:
    status, _, run_dir = train(tmp_path, "full", "--data", "new-facts", "--set", "train.replay_share=0")
    assert status == 0
    rows = {r.benchmark: r for r in paired.compare_run(run_dir) if r.family == items.ALL}
    assert rows["new-task-choices"].tuned >= 0.9
    assert rows["toy-world"].change <= -0.1


@pytest.mark.slow
def test_lora_at_its_defaults_for_the_starter_learns(tmp_path: Path) -> None:
    status, _, run_dir = train(tmp_path, "lora", "--data", "new-facts")
    assert status == 0
    rows = {r.benchmark: r for r in paired.compare_run(run_dir) if r.family == items.ALL}
    assert rows["new-task-choices"].tuned >= 0.8

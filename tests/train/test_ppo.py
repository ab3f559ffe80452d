"""PPO: its judge, its batches, what is refused, and the chain of SFT, reward model and PPO, trained for real."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import events, starter
from engine.data import datasets, mix
from engine.data.datasets import add_sample
from engine.models import alike, bases
from engine.plan import chains, judges
from engine.report import Item, headline, paired
from engine.report import items as report_items
from engine.runs import checkpoints, follow, lifecycle, store
from engine.spec import RunSpec, recipes, schema
from engine.train.objectives import ppo
from engine.workspace import Workspace
from tests import forked
from tests.conftest import tunebook
from tests.helpers import planned
from tests.left_by_runs import leave_adapter, leave_verdicts

QUICK = ("evaluate.benchmarks=[]", "train.batch_size=16")


# --- batches and padding -----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 5))
def test_every_question_is_asked_as_often_as_any_other_and_a_resumed_run_asks_the_same(
    count: int, batch: int, seed: int
) -> None:
    prompts = [[7] * (1 + number % 5) for number in range(count)]
    batches = ppo.Batches(prompts, batch, 0, seed, "cpu")
    asked = [index for update in range(count) for index in batches.indices(update)]  # batch whole passes
    assert sorted(asked) == sorted(list(range(count)) * batch)
    later = ppo.Batches(prompts, batch, 0, seed, "cpu")
    later.done = 3
    first = next(iter(later))["input_ids"]
    walked = iter(batches)
    for _ in range(3):
        next(walked)
    assert first.equal(next(walked)["input_ids"])


def test_questions_are_filled_up_on_the_left() -> None:
    found = next(iter(ppo.Batches([[5], [6, 7, 8]], 2, 0, 0, "cpu")))["input_ids"].tolist()
    assert sorted(found) == [[0, 0, 5], [6, 7, 8]]


@pytest.mark.parametrize(("pad", "wanted"), [(0, 0), (1, 9), (2, 9), (None, 9)])
def test_the_padding_is_never_the_end_of_the_text_nor_part_of_a_question(pad: int | None, wanted: int) -> None:
    class Tokenizer(SimpleNamespace):
        def __len__(self) -> int:
            return 12

    tokenizer = Tokenizer(pad_token_id=pad)
    assert ppo.distinct_pad(tokenizer, [[2, 11], [10, 3]], 12, [1]) == wanted
    if wanted:  # the model may have fewer embeddings than the tokenizer has tokens
        assert ppo.distinct_pad(tokenizer, [[2, 11], [10, 3]], 8, [1]) == 7


# --- reading judges from files -----------------------------------------------------------------------------------


def finished_run(workspace: Workspace, number: int, recipe: str, base: str = "starter", right: int = 9) -> str:
    """A run folder as a finished one leaves it, with a real adapter file; a judge is right on so many of 10 pairs."""
    data = {"reward": "preference-pairs", "lora": "new-facts", "kto": "good-bad"}[recipe]
    dataset = add_sample(workspace, starter.sample(data))
    made, _ = planned(workspace, recipe, base=base, dataset=dataset.id, overrides={})
    assert made is not None
    run_id = f"20260101-0000{number:02d}-abcdef"
    run_dir = workspace.run_dir(run_id)
    leave_adapter(run_dir)
    (run_dir / "spec.json").write_bytes(schema.encode(made))
    log = events.EventLog(run_dir)
    log.append(events.Finished(step=1))
    log.close()
    if recipe == "reward":
        leave_verdicts(run_dir, right)
    return f"run:{run_id}"


def build(workspace: Workspace, base: str = "starter", **overrides: Any) -> tuple[RunSpec, list[str]]:
    prompts = add_sample(workspace, starter.sample("ppo-prompts"))
    changes = {path.replace("__", "."): value for path, value in overrides.items()}
    made, problems = planned(workspace, "ppo", base=base, dataset=prompts.id, overrides=changes)
    assert made is not None and all("{" not in problem.sentence for problem in problems)
    return made, [problem.rule for problem in problems]


def test_without_a_judge_ppo_says_what_to_train_first(workspace: Workspace) -> None:
    _, found = build(workspace)
    assert found == ["ppo-no-reward"]


def test_a_judge_of_other_data_is_offered_by_name_and_never_taken_unasked(workspace: Workspace) -> None:
    finished_run(workspace, 1, "reward")
    good = finished_run(workspace, 2, "reward")
    finished_run(workspace, 3, "reward", right=6)
    prompts = add_sample(workspace, starter.sample("ppo-prompts"))
    made, problems = planned(workspace, "ppo", base="starter", dataset=prompts.id, overrides={})
    assert made.objective_args.reward_model is None and [one.rule for one in problems] == ["ppo-judge-choose"]
    assert good in problems[0].sentence and "Preference pairs" in problems[0].sentence
    made, found = build(workspace, objective_args__reward_model=good)
    assert found == [] and made.objective_args.beta == 0.2  # of the recipe, for a toy


def test_the_newest_good_judge_of_the_same_base_and_rows_is_taken(workspace: Workspace) -> None:
    finished_run(workspace, 1, "reward")
    good = finished_run(workspace, 2, "reward")
    finished_run(workspace, 3, "reward", right=6)
    writer = finished_run(workspace, 4, "lora")
    pairs = add_sample(workspace, starter.sample("preference-pairs"))
    questions = mix.questions(workspace, pairs)
    made, problems = planned(workspace, "ppo", base="starter", dataset=questions.id, overrides={})
    assert problems == [] and made.objective_args.reward_model == good
    made, problems = planned(workspace, "ppo", base=writer, dataset=questions.id, overrides={})
    assert made.objective_args.reward_model is None and [one.rule for one in problems] == ["ppo-judge-choose"]


def test_a_weak_judge_is_refused_below_a_threshold_that_can_be_changed(workspace: Workspace) -> None:
    weak = finished_run(workspace, 1, "reward", right=6)
    assert build(workspace)[1] == ["ppo-no-reward"]
    assert build(workspace, objective_args__reward_model=weak)[1] == ["ppo-reward-weak"]
    assert build(workspace, objective_args__least_reward_accuracy=0.6)[1] == ["ppo-judge-choose"]
    made, found = build(workspace, objective_args__reward_model=weak, objective_args__least_reward_accuracy=0.6)
    assert found == [] and made.objective_args.reward_model == weak


def test_a_judge_that_nobody_has_tested_is_refused(workspace: Workspace) -> None:
    judge = finished_run(workspace, 1, "reward")
    shutil.rmtree(workspace.run_dir(judge[4:]) / "items")
    assert build(workspace, objective_args__reward_model=judge)[1] == ["ppo-reward-unknown"]


@pytest.mark.parametrize("ref", ["run:20260101-000000-ffffff", "starter", "run:../../etc", "nonsense"])
def test_what_is_no_run_is_no_judge(workspace: Workspace, ref: str) -> None:
    assert build(workspace, objective_args__reward_model=ref)[1] == ["ppo-reward-missing"]


def test_a_run_that_writes_text_is_no_judge_and_a_judge_is_no_base(workspace: Workspace) -> None:
    judge, writer = finished_run(workspace, 1, "reward"), finished_run(workspace, 2, "lora")
    assert build(workspace, objective_args__reward_model=writer)[1] == ["ppo-not-reward"]
    assert build(workspace, base=judge, objective_args__reward_model=judge)[1] == ["base-reward"]
    assert build(workspace, base=writer, objective_args__reward_model=judge)[1] == []


@pytest.mark.parametrize("what", ["tokens", "template"])
def test_a_judge_that_reads_text_otherwise_is_refused(workspace: Workspace, what: str) -> None:
    judge = finished_run(workspace, 1, "reward")
    folder = judges.made_by(workspace, judge)
    assert folder is not None
    base = bases.describe("starter", workspace)
    assert alike.reads_alike(base, folder) is True
    if what == "template":
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    else:
        told = json.loads((folder / "tokenizer.json").read_text())
        told["added_tokens"][-1]["content"] = "<|other|>"
        (folder / "tokenizer.json").write_text(json.dumps(told))
    assert alike.reads_alike(base, folder) is False
    assert build(workspace, objective_args__reward_model=judge)[1] == ["ppo-tokenizer"]
    (folder / "tokenizer.json").unlink()
    assert alike.reads_alike(base, folder) is None  # the child looks again


def test_an_answer_must_leave_room_for_the_question(workspace: Workspace) -> None:
    judge = finished_run(workspace, 1, "reward")
    assert build(workspace, train__max_length=24, objective_args__reward_model=judge)[1] == ["ppo-window"]
    assert build(workspace, train__early_stopping=2, objective_args__reward_model=judge)[1] == ["ppo-no-loss"]


def test_ppo_reads_questions_alone(workspace: Workspace) -> None:
    finished_run(workspace, 1, "reward")
    pairs = add_sample(workspace, starter.sample("preference-pairs"))
    _, problems = planned(workspace, "ppo", base="starter", dataset=pairs.id, overrides={})
    assert [p.rule for p in problems] == ["data-type"]


def test_rates_follow_the_adapter_for_real_models_alone() -> None:
    def learns(name: str, parameters: float, overrides: dict[str, Any]) -> float:
        made, problems = recipes.resolve(
            recipes.recipes()[name],
            base="o/n",
            revision=None,
            parameters=parameters,
            dataset_id="d",
            overrides=overrides,
        )
        assert problems == []
        return made.train.learning_rate

    for name, rate in (("dpo", 5e-7), ("kto", 1e-6), ("reward", 1e-5), ("ppo", 3e-6)):
        assert learns(name, 7e9, {"adapter": "full"}) == rate < learns(name, 7e9, {})
        assert learns(name, 7e9, {"adapter": "oft"}) == learns(name, 7e9, {})
        assert learns(name, 7e9, {"adapter": "full", "train.learning_rate": 0.5}) == 0.5
        assert learns(name, 1e6, {"adapter": "full"}) == learns(name, 1e6, {})


# --- what is cut short -------------------------------------------------------------------------------------------


def test_an_adapter_that_was_cut_short_is_no_base(workspace: Workspace) -> None:
    ref = finished_run(workspace, 1, "lora")
    weights = workspace.run_dir(ref[4:]) / "adapter" / "adapter_model.safetensors"
    assert bases.describe(ref, workspace).problems == ()
    weights.write_bytes(weights.read_bytes()[:-10])
    found = bases.describe(ref, workspace).problems
    assert [p.rule for p in found] == ["base-broken-weights"] and str(weights.parent) in found[0].message


def test_a_run_whose_only_checkpoint_was_cut_short_is_not_resumed(workspace: Workspace) -> None:
    run_dir = workspace.run_dir(finished_run(workspace, 1, "lora")[4:])
    log = events.EventLog(run_dir)
    log.append(events.Queued(device="cpu"))
    log.append(events.Stopped(step=10, resumable=True))
    for number in (5, 10):
        folder = run_dir / "checkpoints" / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        shutil.copy(starter.MODEL_DIR / "model.safetensors", folder / "adapter_model.safetensors")
        shutil.copy(starter.MODEL_DIR / "model.safetensors", folder / "optimizer.safetensors")
        (folder / "trainer_state.json").write_text("{}")
    assert checkpoints.last_checkpoint(run_dir) == run_dir / "checkpoints" / "checkpoint-10"
    for number in (10, 5):
        weights = run_dir / "checkpoints" / f"checkpoint-{number}" / "optimizer.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        earlier = run_dir / "checkpoints" / "checkpoint-5" if number == 10 else None
        assert checkpoints.last_checkpoint(run_dir) == earlier
    with pytest.raises(lifecycle.CannotResume, match="checkpoint-10 is cut short"):
        lifecycle.resume(workspace, run_dir.name)
    assert store.status(workspace, run_dir.name) == "stopped"


# --- the figures -------------------------------------------------------------------------------------------------


def test_the_reward_of_answers_is_compared_question_by_question() -> None:
    def answered(shift: float) -> list[Item]:
        return [
            Item(item=str(i), family=report_items.UNSEEN, prompt_sha="s", text="t", rewards=[i / 10 + shift])
            for i in range(30)
        ]

    (row,) = paired.compare_all("r", report_items.ANSWERS, answered(0), answered(2))
    assert (row.n, row.change, row.low, row.high) == pytest.approx((30, 2, 2, 2))
    assert "+1.45 → +3.45" in headline.summary([row]).gained
    (row,) = paired.compare_items("r", report_items.ANSWERS, answered(0), answered(-2))
    assert "less" in headline.summary([row]).gained


# --- real trainings ----------------------------------------------------------------------------------------------


def chained(tmp_path: Path, *settings_: str) -> dict[str, Path]:
    """Run the chain from the command line and return the folders of its runs by stage."""
    done = tunebook(
        "chain", "--sft-data", "mixed-answers", "--preference-data", "preference-pairs", "--prompts", "ppo-prompts",
        "--wait", "--json", *(word for one in settings_ for word in ("--set", one)),
        home=tmp_path / "home", machine=tmp_path / "machine", module=forked.module("cli"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: tmp_path / "home" / "runs" / run for name, run in json.loads(done.stdout)["runs"].items()}


def steps(run_dir: Path) -> list[events.Step]:
    return [e for e in events.read(run_dir)[0] if isinstance(e, events.Step)]


def whole_chain(tmp_path: Path) -> dict[str, Path]:
    quick = ("evaluate.benchmarks=[]", "train.max_steps=12", "train.evaluations=1")
    short = [f"{stage}:{one}" for stage in ("sft", "reward") for one in quick]
    return chained(tmp_path, *short, *(f"ppo:{one}" for one in QUICK), "ppo:train.max_steps=3",
                   "ppo:objective_args.least_reward_accuracy=0.5")  # fmt: skip


@pytest.mark.train
def test_the_chain_passes_models_along(tmp_path: Path) -> None:
    made = whole_chain(tmp_path)
    workspace, whole = Workspace(tmp_path / "home"), made["ppo"]
    told = store.load_spec(workspace, whole.name)
    assert told.base.ref == f"run:{made['sft'].name}"
    assert told.objective_args.reward_model == f"run:{made['reward'].name}"
    (chain,) = chains.list_all(workspace)
    assert chain.done and chain.next is None and chain.alike is True
    wanted = {"reward", "kl", "reward_less_kl", "entropy", "clip_fraction", "value_loss", "ended_share"}
    assert [set(one.metrics) for one in steps(whole)] == [wanted] * 3
    assert abs(steps(whole)[0].metrics["kl"]) < 1e-3  # the reference is the start
    assert all(math.isfinite(value) for one in steps(whole) for value in one.metrics.values())
    found, _ = events.read(whole)
    assert len({e.prompt for e in found if isinstance(e, events.Sample)}) == 3
    items = report_items.read_items(whole / "items" / f"tuned-{report_items.ANSWERS}.jsonl")
    assert len(items) == 60 and all(len(item.rewards) == 1 and item.text is not None for item in items)
    assert [(r.benchmark, r.n) for r in paired.compare_run(whole) if r.benchmark == report_items.ANSWERS] == [
        (report_items.ANSWERS, 60)
    ]
    assert (whole / "adapter" / "adapter_model.safetensors").is_file() and not (whole / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.train
def test_a_stopped_ppo_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, workspace = whole_chain(tmp_path)["ppo"], Workspace(tmp_path / "home")
    told = store.load_spec(workspace, whole.name)

    def stop_early(event: object) -> None:
        if isinstance(event, events.Step):
            lifecycle.stop(workspace, again)

    again = lifecycle.start(workspace, told, module=forked.module("supervisor"))
    assert follow.wait(workspace, again, stop_early) == "stopped"
    assert checkpoints.last_checkpoint(workspace.run_dir(again)) is not None
    lifecycle.resume(workspace, again, module=forked.module("supervisor"))
    assert follow.wait(workspace, again) == "finished"
    resumed = steps(workspace.run_dir(again))
    assert [one.step for one in resumed] == [1, 2, 3]
    assert [one.loss for one in resumed] == pytest.approx([one.loss for one in steps(whole)], abs=1e-4)
    assert [one.metrics["kl"] for one in resumed] == pytest.approx([s.metrics["kl"] for s in steps(whole)], abs=1e-3)


@pytest.mark.slow
def test_ppo_raises_the_reward_well_beyond_noise_while_the_kl_stays_bounded(tmp_path: Path) -> None:
    made = chained(tmp_path)
    row = next(r for r in paired.compare_run(made["ppo"]) if r.benchmark == report_items.ANSWERS)
    assert row.low > 1.0 and row.n == 60
    taken = steps(made["ppo"])
    fifth = max(1, len(taken) // 5)
    rewards = [one.metrics["reward"] for one in taken]
    assert sum(rewards[-fifth:]) / fifth > sum(rewards[:fifth]) / fifth + 1
    assert max(one.metrics["kl"] for one in taken) < 15 and taken[-1].metrics["kl"] < 10


@pytest.mark.slow
@pytest.mark.parametrize("settings_", [["adapter=full"], ["adapter=oft"], ["quantize=4bit"]])
def test_ppo_trains_with_other_adapters_and_bases(tmp_path: Path, settings_: list[str]) -> None:
    short = [
        f"{stage}:{one}" for stage in ("sft", "reward") for one in ("evaluate.benchmarks=[]", "train.max_steps=60")
    ]
    made = chained(tmp_path, *short, *(f"ppo:{one}" for one in (*QUICK, *settings_)), "ppo:train.max_steps=3",
                   "ppo:objective_args.least_reward_accuracy=0.5")  # fmt: skip
    found = steps(made["ppo"])
    assert len(found) == 3 and abs(found[0].metrics["kl"]) < 0.5
    assert found[-1].metrics["clip_fraction"] >= 0 and math.isfinite(found[-1].loss or math.nan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "sample"), [("kto", "good-bad"), ("reward", "preference-pairs"), ("oft", "new-facts")]
)
def test_a_stopped_run_resumes_to_the_same_number_of_steps(tmp_path: Path, recipe: str, sample: str) -> None:
    workspace = Workspace(tmp_path / "home")
    data = add_sample(workspace, starter.sample(sample))
    made, problems = planned(
        workspace, recipe, base="starter", dataset=data.id,
        overrides={"train.max_steps": 120, "evaluate.benchmarks": []},
    )  # fmt: skip
    assert made is not None and problems == []
    run_id = lifecycle.start(workspace, made, module=forked.module("supervisor"))

    def stop_early(event: object) -> None:
        if isinstance(event, events.Step) and event.step > 5:
            lifecycle.stop(workspace, run_id)

    assert follow.wait(workspace, run_id, stop_early) == "stopped"
    stopped = store.summary(workspace, run_id).step
    assert 5 < stopped < 120
    lifecycle.resume(workspace, run_id, module=forked.module("supervisor"))
    assert follow.wait(workspace, run_id) == "finished"
    ended = store.summary(workspace, run_id)
    assert (ended.step, ended.attempts) == (120, 2)
    # the loss goes on from where it was
    found = steps(workspace.run_dir(run_id))
    before = found[0].loss
    assert found[-1].loss is not None and before is not None and found[-1].loss < before


@pytest.mark.slow
def test_runs_go_on_from_an_oft_adapter_and_onto_a_quantised_base(tmp_path: Path) -> None:
    def train(*arguments: str) -> str:
        done = tunebook(
            "train", *arguments, "--wait", "--json", "--set", "evaluate.benchmarks=[]", "--set", "train.max_steps=10",
            home=tmp_path / "home", machine=tmp_path / "machine", module=forked.module("cli"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)["id"]

    turned = train("oft", "--data", "new-facts")
    scored = tmp_path / "home" / "runs" / train("lora", "--data", "new-facts", "--base", f"run:{turned}")
    before = report_items.read_items(tmp_path / "home" / "runs" / turned / "items" / "tuned-new-task-loss.jsonl")
    after = report_items.read_items(scored / "items" / "base-new-task-loss.jsonl")
    assert [i.item for i in before] == [i.item for i in after]
    for one, other in zip(before, after, strict=True):  # merged, it is the model that the run ended with
        assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=1e-3)
    train("qlora", "--data", "new-facts", "--base", f"run:{turned}")
    assert datasets.list_all(Workspace(tmp_path / "home"))

"""DPO, KTO and reward models: exact token ids, KTO's batches and weights, what is refused, and real trainings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine import events, starter
from engine.data import datasets
from engine.data.datasets import add_sample
from engine.export import usage
from engine.render.encode import encode_marked, encode_pair
from engine.render.template import PLAIN_TEMPLATE
from engine.report import Comparison, headline, items, paired
from engine.runs import follow, lifecycle, store
from engine.spec import counts, schema
from engine.train.callback import EventCallback, chosen_fell
from engine.train.objectives import preference
from engine.train.objectives.kto import mismatched, shuffled
from engine.train.tokenize import coder_of
from engine.workspace import Workspace
from tests import forked
from tests.helpers import planned
from tests.train.test_tokenize import CHATML, message
from tests.train.test_train import train

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<|"), min_size=1, max_size=30).filter(str.strip)


@pytest.fixture(scope="module", params=["its own", "chatml", "plain"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    loaded = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    templates = {"its own": loaded.chat_template, "chatml": CHATML, "plain": PLAIN_TEMPLATE}
    loaded.chat_template = templates[request.param]
    return loaded


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [message("user", prompt)],
        "chosen": [message("assistant", chosen)],
        "rejected": [message("assistant", rejected)],
    }


# --- token ids ---------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_no_character_of_an_answer_is_lost_and_its_end_is_trained(
    tokenizer: Any, prompt: str, chosen: str, rejected: str
) -> None:
    assume(chosen != rejected)  # alike they are refused
    row = pair(prompt, chosen, rejected)
    coded = encode_pair(row, coder_of(tokenizer))
    assert not coded.cut
    asked = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
    for side, answer in (("chosen_ids", chosen), ("rejected_ids", rejected)):
        ids = getattr(coded, side)
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], tokenize=False
        )
        text = tokenizer.decode(coded.prompt_ids + ids)
        if not whole.startswith(
            text
        ):  # marks that are no tokens are followed by one that is, so that it learns to stop
            text = text.removesuffix(tokenizer.eos_token)
        assert whole.startswith(text) and not whole[len(text) :].strip()  # nothing lost, nothing doubled
        assert answer in tokenizer.decode(ids)
        assert tokenizer.decode(ids).endswith(("<|end|>", "<|im_end|>", tokenizer.eos_token))
    assert asked.startswith(tokenizer.decode(coded.prompt_ids)[: len(asked)])


def test_where_a_token_reaches_across_the_seam_it_counts_to_the_answer() -> None:
    loaded = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    loaded.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] + ' ' }}"
        "{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    )
    coded = encode_pair(pair("the capital", "of France", "in Spain"), coder_of(loaded))
    assert loaded.decode(coded.prompt_ids + coded.chosen_ids) == "the capital of France<|end|>"
    assert loaded.decode(coded.chosen_ids).strip() == "of France<|end|>"  # " of" is one token


def test_a_marked_answer_is_cut_in_two_the_same_way(tokenizer: Any) -> None:
    row = {"prompt": [message("user", "How?")], "completion": [message("assistant", "So.")], "label": False}
    coded = encode_marked(row, coder_of(tokenizer))
    assert coded.label is False
    assert tokenizer.decode(coded.completion_ids).startswith("So.")
    assert coded.within(len(coded.prompt_ids)) is None


def test_an_answer_of_several_turns_counts_whole(tokenizer: Any) -> None:
    row = pair("one", "A", "B")
    row["chosen"] += [message("user", "two"), message("assistant", "C")]
    coded = encode_pair(row, coder_of(tokenizer))
    text = tokenizer.decode(coded.chosen_ids)
    assert text.startswith("A") and "two" in text and "C" in text


def test_a_pair_that_does_not_fit_is_left_out_and_a_judge_sees_no_cut_answer() -> None:
    loaded = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    row = pair("What is the capital of France?", "The capital of France is Paris.", "Paris")
    whole = encode_pair(row, coder_of(loaded))
    fits = len(whole.prompt_ids) + len(whole.chosen_ids)
    assert whole.within(len(whole.prompt_ids)) is None
    cut = whole.within(fits - 1)
    assert cut is not None and cut.cut and len(cut.prompt_ids) + len(cut.chosen_ids) == fits - 1
    assert preference.fitting([whole], fits - 1, whole=False) == [cut]
    assert preference.fitting([whole], fits - 1, whole=True) == []


# --- KTO ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_one_weight_is_one_and_good_over_bad_is_1_15(good: int, bad: int) -> None:
    weight_good, weight_bad = counts.kto_weights(good, bad)
    assert 1.0 in (weight_good, weight_bad)
    assert (
        good * weight_good / (bad * weight_bad) == pytest.approx(1.15, rel=2e-3) or min(weight_good, weight_bad) < 0.1
    )


@given(st.integers(1, 40), st.integers(4, 9))
def test_each_answer_is_matched_with_another_row_of_its_batch(rows: int, batch: int) -> None:
    answers = [[number] for number in range(rows)]
    moved = mismatched(answers, batch)
    assert len(moved) == rows
    if rows > 1:
        assert all(a != b for a, b in zip(answers, moved, strict=True))
    for start in range(0, rows, batch):
        if len(answers[start : start + batch]) > 1:
            assert sorted(moved[start : start + batch]) == answers[start : start + batch]


def test_rows_sorted_by_label_are_mixed_the_same_way_each_time() -> None:
    rows = [preference.Marked([1], [number], number < 50, False) for number in range(100)]
    mixed = shuffled(rows, 3)
    assert mixed == shuffled(rows, 3) != shuffled(rows, 4)
    assert sorted(mixed) == sorted(rows)
    batches = [mixed[start : start + 10] for start in range(0, 100, 10)]
    assert all(0 < sum(row.label for row in one) < 10 for one in batches)


# --- the warning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "now", "lost"),
    [
        (0.5, -10.0, None),  # risen
        (-0.05, -10.5, None),  # half a nat is no fall
        (-0.5, -15.0, 5.0),  # from -10 to -15
        (-0.5, -205.0, None),  # from -200 to -205 is 2.5 %
    ],
)
def test_a_fall_of_chosen_answers_is_clear_or_not_said(reward: float, now: float, lost: float | None) -> None:
    found = chosen_fell({"eval_rewards/chosen": reward, "eval_logps/chosen": now}, 0.1, "eval_")
    assert found == (pytest.approx(lost) if lost else None)


def test_no_figures_no_fall() -> None:
    assert chosen_fell({}, 0.1) is None
    assert chosen_fell({"rewards/chosen": float("nan"), "logps/chosen": -1.0}, 0.1) is None


def test_the_fall_is_said_once(tmp_path: Path) -> None:
    log, stop = events.EventLog(tmp_path), cast(Any, None)
    listener = EventCallback(log, stop, lambda step: None, 1.0)
    listener.watch_chosen(0.1)
    state = SimpleNamespace(global_step=5, log_history=[])
    for reward in (0.2, -0.1, -0.9, -1.5):
        metrics = {"eval_loss": 0.5, "eval_rewards/chosen": reward, "eval_logps/chosen": -10 + reward / 0.1}
        listener.on_evaluate(None, state, None, metrics=metrics)
    warnings = [e.text for e in events.read(tmp_path)[0] if isinstance(e, events.Log) and e.level == "warning"]
    assert len(warnings) == 1 and "9.0 nats each" in warnings[0]


# --- what is refused before it starts ----------------------------------------------------------------------------


def stored(workspace: Workspace, rows: list[dict[str, Any]]) -> str:
    workspace.root.mkdir(parents=True, exist_ok=True)
    source = workspace.root / "mine.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return datasets.add(workspace, source, "mine").id


def refused(workspace: Workspace, recipe: str, dataset_id: str, **overrides: Any) -> list[str]:
    changes = {path.replace("__", "."): value for path, value in overrides.items()}
    base = changes.pop("base", "starter")
    _, problems = planned(workspace, recipe, base=base, dataset=dataset_id, overrides=changes)
    assert all("{" not in problem.sentence for problem in problems)
    return [problem.rule for problem in problems]


@pytest.mark.parametrize(
    ("recipe", "sample"),
    [("lora", "preference-pairs"), ("dpo", "new-facts"), ("kto", "preference-pairs"), ("reward", "good-bad")],
)
def test_rows_of_another_kind_are_refused(workspace: Workspace, recipe: str, sample: str) -> None:
    assert refused(workspace, recipe, add_sample(workspace, starter.sample(sample)).id)[0] == "data-type"


def test_an_objective_that_is_set_reads_its_own_rows(workspace: Workspace) -> None:
    pairs = add_sample(workspace, starter.sample("preference-pairs")).id
    no_replay = {"train__replay_share": 0.0}
    assert refused(workspace, "lora", pairs, objective="dpo", **no_replay) == []
    assert refused(workspace, "lora", pairs, objective="dpo") == ["replay-sft-only"]


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_kind_are_refused(workspace: Workspace, label: bool) -> None:
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}.", "label": label} for i in range(20)]
    assert refused(workspace, "kto", stored(workspace, rows)) == ["kto-one-label"]


def test_settings_that_break_preference_training_are_refused(workspace: Workspace) -> None:
    pairs = add_sample(workspace, starter.sample("preference-pairs")).id
    marked = add_sample(workspace, starter.sample("good-bad")).id
    assert refused(workspace, "dpo", pairs, objective_args__beta=5.0) == ["beta-range"]
    assert refused(workspace, "dpo", pairs, objective_args__beta=0.0001) == ["beta-range"]
    assert refused(workspace, "kto", marked, train__batch_size=2) == ["kto-batch"]
    assert refused(workspace, "kto", marked, objective_args__weights=[1.0]) == ["kto-weights"]
    assert refused(workspace, "kto", marked, objective_args__weights=[1.0, 2.0]) == []


def test_weights_follow_from_the_counts_unless_they_are_given(workspace: Workspace) -> None:
    marked = add_sample(workspace, starter.sample("good-bad")).id

    def weights(**more: Any) -> list[float] | None:
        made, _ = planned(workspace, "kto", base="starter", dataset=marked, overrides=more)
        assert made is not None and made.objective_args.beta == 0.1
        return made.objective_args.weights

    assert weights() == [1.0, 3.478]
    assert weights(**{"objective_args.weights": [1.0, 2.0]}) == [1.0, 2.0]


@pytest.mark.parametrize("made", ["adapter", "model"])
def test_a_reward_run_is_no_base(workspace: Workspace, made: str) -> None:
    pairs = add_sample(workspace, starter.sample("preference-pairs")).id
    facts = add_sample(workspace, starter.sample("new-facts")).id
    run_spec, _ = planned(workspace, "reward", base="starter", dataset=pairs, overrides={})
    assert run_spec is not None and run_spec.evaluate.benchmarks == []
    run_dir = workspace.run_dir("20260101-000000-abcdef")
    (run_dir / made).mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(run_spec))
    if made == "adapter":
        (run_dir / made / "adapter_model.safetensors").write_bytes(
            (starter.MODEL_DIR / "model.safetensors").read_bytes()
        )
        (run_dir / made / "adapter_config.json").write_text("{}")
    if made == "model":
        for path in starter.MODEL_DIR.iterdir():
            (run_dir / made / path.name).write_bytes(path.read_bytes())
    for recipe, data in (("lora", facts), ("dpo", pairs)):
        assert refused(workspace, recipe, data, base=f"run:{run_dir.name}") == ["base-reward"]


# --- real trainings ----------------------------------------------------------------------------------------------


def learned(run_dir: Path, benchmark: str) -> Comparison:
    return next(
        r for r in paired.compare_run(run_dir) if (r.benchmark, r.family) == (benchmark, items.UNSEEN)
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.train
def test_dpo_raises_the_chosen_answers_and_says_how(tmp_path: Path) -> None:
    quick = ("evaluate.benchmarks=[]", "train.evaluations=1")  # the recipe's own rate and length are what is claimed
    changes = [word for one in quick for word in ("--set", one)]
    status, _, run_dir = train(tmp_path, "dpo", "--data", "preference-pairs", *changes)
    assert status == 0
    found = learned(run_dir, "new-task-preference")
    assert found.low > 0.2 and found.n == 60
    assert headline.summary(paired.compare_run(run_dir)).gained.startswith("It learned the preference")
    said, _ = events.read(run_dir)
    first = next(e for e in said if isinstance(e, events.Step))
    assert first.loss == pytest.approx(0.6931, abs=1e-3)  # log 2: the reference is the base itself
    wanted = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"}
    for kind in (events.Step, events.Eval):
        assert all(wanted <= set(e.metrics) for e in said if isinstance(e, kind))
    assert len({e.prompt for e in said if isinstance(e, events.Sample)}) == 3
    assert (run_dir / "adapter" / "adapter_model.safetensors").is_file()
    assert not (run_dir / "adapter" / "ref").exists()


@pytest.mark.slow
@pytest.mark.train
def test_kto_widens_the_gap_and_a_reward_run_judges(tmp_path: Path) -> None:
    status, _, run_dir = train(tmp_path, "kto", "--data", "good-bad", "--set", "evaluate.benchmarks=[]")
    assert status == 0 and learned(run_dir, "new-task-gap").low > 3
    said, _ = events.read(run_dir)
    assert all("kl" in e.metrics for e in said if isinstance(e, events.Eval))
    status, run_id, run_dir = train(tmp_path, "reward", "--data", "preference-pairs")
    assert status == 0 and learned(run_dir, "new-task-reward").low > 0.1
    assert learned(run_dir, "new-task-margin").low > 1
    said, _ = events.read(run_dir)
    assert all({"accuracy", "margin"} <= set(e.metrics) for e in said if isinstance(e, events.Step))
    assert "AutoModelForSequenceClassification" in usage.load_script(Workspace(tmp_path / "home"), run_id)


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize(("recipe", "sample"), [("dpo", "preference-pairs"), ("kto", "good-bad")])
def test_with_every_weight_the_reference_is_computed_before(tmp_path: Path, recipe: str, sample: str) -> None:
    quick = ("--set", "train.max_steps=6", "--set", "evaluate.benchmarks=[]")
    status, _, run_dir = train(tmp_path, recipe, "--data", sample, "--set", "adapter=full", *quick)
    assert status == 0 and (run_dir / "model" / "model.safetensors").is_file()
    first = next(e for e in events.read(run_dir)[0] if isinstance(e, events.Step))
    if recipe == "dpo":
        assert first.loss == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.slow
@pytest.mark.train
def test_a_stopped_dpo_run_goes_on_with_the_same_reference(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    pairs = add_sample(workspace, starter.sample("preference-pairs"))
    run_spec, problems = planned(
        workspace,
        "dpo",
        base="starter",
        dataset=pairs.id,
        overrides={"train.max_steps": 60, "evaluate.benchmarks": []},
    )
    assert run_spec is not None and not problems
    run_id = lifecycle.start(workspace, run_spec, module=forked.module("supervisor"))

    def stop_when_training(event: object) -> None:
        if isinstance(event, events.Step) and event.step > 12:
            lifecycle.stop(workspace, run_id)

    assert follow.wait(workspace, run_id, stop_when_training) == "stopped"
    stopped = store.summary(workspace, run_id)
    assert 12 < stopped.step < 60
    lifecycle.resume(workspace, run_id, module=forked.module("supervisor"))
    assert follow.wait(workspace, run_id) == "finished"
    assert store.summary(workspace, run_id).step == 60
    found, _ = events.read(workspace.run_dir(run_id))
    second = next(i for i, e in enumerate(found) if isinstance(e, events.Started) and e.attempt == 2)
    resumed = next(e for e in found[second:] if isinstance(e, events.Step))
    # Against the base the answers have moved; against a copy of the checkpoint they would be where they were.
    assert resumed.step > stopped.step and resumed.metrics["rewards/margins"] > 0.05

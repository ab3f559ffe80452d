"""Watching general text while a run trains: what is read, how much of it, what is chosen by it, and when it ends a run."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import events, starter
from engine.benchmarks import library, shipped
from engine.benchmarks import watch as texts
from engine.data import datasets
from engine.models import bases
from engine.render import Encoded
from engine.report import items
from engine.runs import failures, follow, lifecycle, store
from engine.spec import counts, schema, settings, split, tolerances
from engine.starter import world
from engine.train import best, rows, watch
from engine.train.tokenize import get_ready
from engine.words import Problem
from engine.workspace import Workspace, find_struct
from tests.helpers import planned, wait_until
from tests.train.test_train import train

torch.set_num_threads(1)
LIMIT = 0.5


# --- the texts --------------------------------------------------------------------------------------------------------


def words_of(row: dict[str, Any]) -> str:
    return row.get("text") or row["prompt"][0]["content"]


def test_the_watch_texts_are_many_in_two_languages_and_in_no_benchmark():
    watched = [words_of(row) for row in texts.rows(toy=False)]
    assert len(set(watched)) == len(watched) >= 200
    chinese = [text for text in watched if library.language_of([text]) == "zh"]
    assert len(chinese) >= 80 and len(watched) - len(chinese) >= 80
    asked = "\n".join(one.path.read_text("utf-8") for one in shipped.shipped() if one.path is not None)
    # a part of each: no sentence of a text stands in a benchmark in another cut
    assert not [text for text in watched if text[20:60].replace('"', '\\"') in asked or text[:40] in asked]


def test_every_beginning_of_the_texts_has_both_languages():
    first = [words_of(row) for row in texts.rows(toy=False)[: watch.FEWEST]]
    assert 2 <= sum(library.language_of([text]) == "zh" for text in first) <= watch.FEWEST - 2


def test_a_toy_is_watched_on_questions_of_its_world_that_nothing_else_asks_so():
    watched = {words_of(row) for row in texts.rows(toy=True)}
    general = library.find(starter.BENCHMARK_NAME)
    assert general is not None
    asked = {doc["question"] for doc in library.docs(general, 0)}
    trained = {row["prompt"] for row in world.replay_rows(3000, 0)}
    trained |= {turn["content"] for one in world.training_dialogues(1, 3000) for turn in one}
    assert len(watched) > 200 and not watched & asked and not watched & trained


# --- the choice -------------------------------------------------------------------------------------------------------


def test_within_the_limit_the_held_out_loss_chooses_and_beyond_it_what_was_forgotten():
    within, better, beyond, farther = (
        watch.choice(loss, rise, LIMIT) for loss, rise in ((2.0, 0.5), (1.0, 0.4), (0.1, 0.6), (0.0, 0.7))
    )
    assert better < within < beyond < farther
    assert [watch.is_within(key) for key in (within, better, beyond, farther)] == [True, True, False, False]


def test_a_grade_that_is_better_the_higher_it_is_chooses_turned_round():
    assert watch.choice(-0.9, 0.1, LIMIT) < watch.choice(-0.4, 0.1, LIMIT) < watch.choice(-1.0, 0.6, LIMIT)


@pytest.mark.parametrize(
    ("rises", "ends"),
    [
        ([0.6], False),  # once is no trend
        ([0.4, 0.6], False),
        ([0.6, 0.7], True),
        ([0.6, 0.6], True),
        ([0.9, 0.6], False),  # it is coming back
        ([0.9, 0.6, 0.4, 0.3], False),
    ],
)
def test_a_run_ends_when_it_is_beyond_its_limit_twice_and_not_coming_back(rises, ends):
    assert watch.runs_away(rises, LIMIT) is ends


def evaluation(step: int, loss: float, rise: float) -> dict[str, float]:
    key = watch.choice(loss, rise, LIMIT)
    return {"step": step, "eval_loss": loss, "eval_general_loss": 1.0 + rise, "eval_choice": key}


def kept(taken: int | None, *history: dict[str, float]) -> events.Log:
    state = SimpleNamespace(log_history=list(history), global_step=history[-1]["step"])
    args = SimpleNamespace(metric_for_best_model="eval_choice", load_best_model_at_end=True)
    watched = watch.Watch(None, [], watch.Start(8, 100, 1.0, 0.1), LIMIT)
    told = best.kept(SimpleNamespace(state=state, args=args, watched=watched, best_step_taken=taken))
    assert told is not None
    return told


def test_a_run_says_which_step_it_kept_and_why():
    found = kept(20, evaluation(10, 2.0, 0.1), evaluation(20, 1.0, 0.4), evaluation(30, 0.5, 0.9))
    assert str(found.text).startswith("Kept step 20 of 30: the best within your limit.") and found.level == "result"
    assert "changed by +0.400 nats per token, of at most 0.5" in str(found.text)


def test_where_no_evaluation_was_within_the_limit_the_one_that_forgot_least_is_kept_and_that_is_said():
    found = kept(10, evaluation(10, 2.0, 0.7), evaluation(20, 0.5, 1.9))
    assert str(found.text).startswith("No evaluation was within your limit of 0.5 nats. Kept step 10 of 20")
    assert found.level == "warning"


def test_a_chosen_checkpoint_that_is_gone_is_said():
    found = kept(None, evaluation(10, 2.0, 0.1), evaluation(20, 0.5, 1.9))
    assert "Kept step 20, not the best: the checkpoint of step 10" in str(found.text) and found.level == "warning"


def graded_evaluation(step: int, loss: float, grade: float, rise: float, limit: float) -> dict[str, float]:
    key = watch.choice(watch.TIE * loss - grade, rise, limit)
    told = {"step": step, "eval_loss": loss, "eval_grade": grade, "eval_general_loss": 1.0 + rise}
    return {**told, "eval_choice": key}


@pytest.mark.parametrize(
    ("limit", "says"), [(LIMIT, "the best grade within your limit, 0.75"), (None, "the best grade, 0.75")]
)
def test_where_a_grader_is_named_the_best_grade_chooses_and_of_equal_ones_the_lower_loss(limit, says):
    bound = math.inf if limit is None else limit
    last = graded_evaluation(40, 0.5, 1.0, 0.9, LIMIT) if limit else graded_evaluation(40, 0.5, 0.5, 0.9, bound)
    history = [graded_evaluation(10, 1.0, 0.7, 0.1, bound), graded_evaluation(20, 2.0, 0.75, 0.4, bound),
               graded_evaluation(30, 1.9, 0.75, 0.4, bound), last]  # fmt: skip
    state = SimpleNamespace(log_history=history, global_step=40)
    args = SimpleNamespace(metric_for_best_model="eval_choice", load_best_model_at_end=True)
    watched = watch.Watch(None, [], watch.Start(8, 100, 1.0, 0.1, graded=32), limit, lambda: 1.0)
    told = best.kept(SimpleNamespace(state=state, args=args, watched=watched, best_step_taken=30))
    assert told is not None and told.level == "result"
    assert str(told.text).startswith("Kept step 30 of 40: ") and f"{says} of 1 over 32" in str(told.text)


def test_a_general_loss_that_is_no_number_lies_farthest_beyond_and_is_outdone():
    nothing = watch.choice(1.0, math.nan, LIMIT)
    assert watch.choice(1.0, 0.9, LIMIT) < watch.choice(1.0, 9e4, LIMIT) < nothing < math.inf
    assert not watch.is_within(nothing)


# --- the reading ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(workspace: Workspace, tmp_path: Path) -> Any:
    told: list[Any] = []
    tokenizer = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    get_ready(tokenizer)
    spec, _ = planned(workspace, "lora", base="starter", dataset=None, overrides={})
    return SimpleNamespace(
        spec=spec, base=bases.describe("starter", workspace), tokenizer=tokenizer, run_dir=tmp_path, told=told,
        log=SimpleNamespace(append=told.append), objective=SimpleNamespace(is_scored_on_its_way=True), only_probes=False,
        rows=SimpleNamespace(evaluate=[1], train=list(range(240))),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, use_safetensors=True)


def paced(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Let each text take so long; return how many were read each time."""
    read, now = [], itertools.count()

    def fake(_: Any, coded: list[Encoded]) -> tuple[float, int]:
        read.append(len(coded))
        return 1.0, 10 * len(coded)

    def clock() -> float:
        return seconds * sum(read) + 0 * next(now)

    monkeypatch.setattr(watch, "_read", fake)
    monkeypatch.setattr(watch.time, "monotonic", clock)
    return read


def test_as_many_texts_are_read_as_cost_less_than_three_per_cent_of_the_run(run, monkeypatch):
    run.base = SimpleNamespace(is_toy=False, window_tokens=1024)
    read = paced(monkeypatch, 0.1)
    found = watch.begin(run, None, expected_s=1000.0)
    assert found is not None and found.start.texts in (16, 32, 64, 128)
    evaluations = run.spec.train.evaluations + 1
    assert 0.005 * 1000 < evaluations * 0.1 * found.start.texts < 0.03 * 1000
    assert sum(read) == watch.FEWEST + found.start.texts  # each is read once, the first once more to warm up


def test_a_run_that_goes_on_reads_as_many_texts_as_at_its_start(run, model, monkeypatch):
    found = watch.begin(run, model, expected_s=20.0)
    assert found is not None and found.start == find_struct(run.run_dir / "watch.json", watch.Start)
    again = watch.begin(run, None, expected_s=1e6)
    assert again is not None and again.start == found.start
    assert [event.step for event in run.told if isinstance(event, events.Watched)] == [0]


def test_a_run_too_short_to_be_watched_says_so_unless_it_hangs_on_it(run, monkeypatch):
    run.base = SimpleNamespace(is_toy=False, window_tokens=1024)
    paced(monkeypatch, 1.0)
    assert watch.begin(run, None, expected_s=10.0) is None
    assert watch.begin(run, None, expected_s=1e6) is None  # nor when it goes on
    (said,) = run.told
    assert "not watched" in str(said.text)
    (run.run_dir / "watch.json").unlink()
    run.spec = schema.decode(schema.encode(run.spec).replace(b'"tolerance": "off"', b'"tolerance": 0.5'))
    found = watch.begin(run, None, expected_s=10.0)
    assert found is not None and found.start.texts == watch.FEWEST and found.limit == 0.5


def graded_run(run: Any, monkeypatch: pytest.MonkeyPatch, seconds: float, *, toy: bool = False) -> list[int]:
    """Let a run choose by a grader whose every answer takes so long; return how many were graded each time."""
    run.base = run.base if toy else SimpleNamespace(is_toy=False, window_tokens=1024)
    run.rows.choosing = [(f"row-{n}", items.UNSEEN, {}) for n in range(100)]
    asked: list[int] = []

    def grade(_: Any, model: Any, some: list[Any]) -> float:
        asked.append(len(some))
        return 0.25

    monkeypatch.setattr(watch, "_read", lambda model, coded: (1.0, 10 * len(coded)))
    monkeypatch.setattr(watch.time, "monotonic", lambda: seconds * sum(asked))
    monkeypatch.setattr(watch.graded, "to_choose_by", lambda run: run.rows.choosing)
    monkeypatch.setattr(watch.graded, "grade_of", grade)
    return asked


def test_as_many_answers_are_graded_as_a_fifth_of_the_run_has_room_for(run, monkeypatch):
    asked = graded_run(run, monkeypatch, 0.5)
    evaluations = run.spec.train.evaluations + 1
    found = watch.begin(run, None, expected_s=0.5 * 24 * evaluations / watch.GRADED_SHARE)
    assert found is not None and found.start.graded == 24 and found.chooses
    told = found.read(2.0)
    assert told["eval_grade"] == 0.25 and told["eval_choice"] == pytest.approx(-0.25 + 2.0 * watch.TIE)
    assert asked == [1, 16, 24]


def test_where_grading_takes_too_long_the_held_out_loss_chooses_and_that_is_said(run, monkeypatch):
    graded_run(run, monkeypatch, 2.0)  # a stop would wait for it for more than GRADED_MOST_S
    found = watch.begin(run, None, expected_s=1e9)
    assert found is not None and not found.chooses and found.read(2.0) == {"eval_general_loss": 1.0}
    assert "grading 16 answers took 32 s" in str(run.told[0].text) and run.told[0].level == "warning"


def test_a_run_whose_rows_to_choose_by_all_lack_an_answer_is_refused_in_words(run):
    run.rows.evaluate = []
    assert watch.begin(run, None, expected_s=10.0) is None
    run.spec = schema.decode(schema.encode(run.spec).replace(b'"keep_best": false', b'"keep_best": true'))
    with pytest.raises(failures.RunRefused) as refused:
        watch.begin(run, None, expected_s=10.0)
    assert "has an answer token within" in refused.value.problem.sentence


def test_reading_leaves_every_random_number_and_the_training_mode_as_they_were(run, model):
    model.train()
    before = (
        random.getstate(),
        str(numpy.random.get_state()),
        torch.random.get_rng_state().tolist(),
    )
    found = watch.begin(run, model, expected_s=20.0)
    assert found is not None
    figures = found.read(1.0)
    assert figures == {"eval_general_loss": pytest.approx(found.start.loss, abs=1e-5)}
    assert before == (
        random.getstate(),
        str(numpy.random.get_state()),
        torch.random.get_rng_state().tolist(),
    )
    assert model.training


def test_the_loss_is_summed_over_all_tokens_and_divided_once(run, model):
    coded = [watch.encode(row, run.tokenizer, 512) for row in texts.rows(toy=True)[:9]]
    model.eval()
    nats = tokens = 0.0
    for one in coded:
        ids, labels = torch.tensor([one.input_ids]), torch.tensor([one.labels])
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=labels).loss) * one.trained_tokens
        tokens += one.trained_tokens
    assert watch._read(model, coded) == (pytest.approx(nats / tokens, rel=1e-4), tokens)


# --- the report -------------------------------------------------------------------------------------------------------


def test_rows_that_choose_weights_are_not_in_the_report(workspace):
    every = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(30)]
    unseen = rows.Read(every, list(range(30)), None, [])  # pyright: ignore[reportArgumentType]
    spec, _ = planned(workspace, "lora", base="starter", dataset=None, overrides={})
    assert rows.apart(spec, unseen) == (unseen, unseen, [])
    for setting in (b'"tolerance": "off"', b'"keep_best": false', b'"early_stopping": 0'):
        name = setting.partition(b":")[0]
        value = {b'"tolerance"': b'"low"', b'"keep_best"': b"true", b'"early_stopping"': b"2"}[name]
        chosen = schema.decode(schema.encode(spec).replace(setting, name + b": " + value))
        assert tolerances.chooses(chosen.train)
        choosing, reported, (told,) = rows.apart(chosen, unseen)
        assert len(choosing.rows) == len(reported.rows) == 15
        assert sorted([*choosing.coded, *reported.coded]) == list(range(30))
        assert "15 of 30 held-out rows chose" in str(told)


def test_answers_to_one_question_choose_together_or_not_at_all():
    every = [{"prompt": f"What is {n // 3}?", "completion": f"It is {n}."} for n in range(30)]
    half = split.halved(every, 7)
    assert all(len({n in half for n in range(3 * k, 3 * k + 3)}) == 1 for k in range(10))
    assert half == split.halved(every, 7) != split.halved(every, 8)


def test_both_halves_have_rows_wherever_there_are_two_questions():
    for seed in range(20):
        one_of_many = [{"prompt": "often", "completion": str(n)} for n in range(30)] + [
            {"prompt": "once", "completion": "1"}
        ]
        assert 0 < len(split.halved(one_of_many, seed)) < 31
    assert len(split.halved([{"prompt": "one"}], 0)) == 1 and split.halved([], 0) == set()


# --- before the start ---------------------------------------------------------------------------------------------------


def test_a_tolerance_wants_rows_to_choose_by_and_an_objective_that_is_watched(workspace):
    data = datasets.add_sample(workspace, starter.sample("new-facts")).id
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs")).id
    limit: dict[str, Any] = {"train.tolerance": "low"}

    def rules(recipe: str, rows_of: str, **more: Any) -> list[str]:
        _, problems = planned(workspace, recipe, base="starter", dataset=rows_of, overrides={**limit, **more})
        assert all("{" not in one.sentence for one in problems)
        return [one.rule for one in problems]

    assert rules("lora", data) == rules("dpo", pairs) == []
    assert rules("lora", data, **{"dataset.eval_id": None, "dataset.eval_share": 0.0}) == ["needs-held-out"]
    assert rules("reward", pairs) == ["tolerance-objective"]


@pytest.mark.parametrize(
    ("typed", "value"), [("off", "off"), ("low", "low"), ("0.25", 0.25), ("1e-2", 0.01), ("high", "high")]
)
def test_the_words_and_numbers_of_a_tolerance_are_read_as_typed(typed, value):
    parsed = settings.parse_setting(f"train.tolerance={typed}")
    assert parsed == ("train.tolerance", value)
    assert settings.convert_setting("train.tolerance", value) == value


@pytest.mark.parametrize("value", [0, -1, 11, "much", True, None, float("nan"), [0.1]])
def test_what_is_no_tolerance_is_refused_in_words(value):
    found = settings.convert_setting("train.tolerance", value)
    assert isinstance(found, Problem) and "off, low, medium, high or a number of nats" in found.sentence


def test_the_words_allow_more_and_more_and_a_toy_has_a_scale_of_its_own(workspace):
    for toy in (True, False):
        found = tolerances.words(toy=toy)
        assert list(found) == ["low", "medium", "high"]
        assert [one.points for one in found.values()] == [1, 3, 10]
        assert found["low"].nats < found["medium"].nats < found["high"].nats
        train_settings = schema.Train(tolerance="medium")
        assert tolerances.nats(train_settings, toy=toy) == found["medium"].nats
    assert tolerances.nats(schema.Train(), toy=True) is None
    assert tolerances.nats(schema.Train(tolerance=0.7), toy=False) == 0.7


def test_a_run_that_may_only_forget_so_much_is_looked_at_ten_times_at_least():
    few, many = schema.Train(evaluations=5), schema.Train(evaluations=20)
    limited = [schema.Train(evaluations=one.evaluations, tolerance="low") for one in (few, many)]
    assert [counts.evaluations(one, 100) for one in (few, many, *limited)] == [5, 20, 10, 20]
    assert [counts.early_looks(one, 100) for one in (few, limited[0], limited[1])] == [(), (3, 5, 8), (2, 3, 4)]
    assert counts.early_looks(limited[0], 10) == ()  # after each step already


# --- real runs --------------------------------------------------------------------------------------------------------

WITHOUT_REPLAY = ("--set", "train.replay_share=0")


def lost_and_gained(run_dir: Path) -> tuple[float, float]:
    """Return the points of general knowledge that a run lost, and those of the new task it gained."""
    found = {}
    for name in (starter.BENCHMARK_NAME, "new-task-choices"):
        base, tuned = (items.read_items(run_dir / "items" / f"{side}-{name}.jsonl") for side in ("base", "tuned"))
        found[name] = (
            100 * (sum(bool(one.correct) for one in tuned) - sum(bool(one.correct) for one in base)) / len(base)
        )
    return -found[starter.BENCHMARK_NAME], found["new-task-choices"]


def said(run_dir: Path, kind: type) -> list[Any]:
    return [event for event in events.read(run_dir)[0] if isinstance(event, kind)]


@pytest.mark.train
def test_a_run_that_forgets_too_much_ends_early_and_keeps_its_best_step_within(tmp_path):
    """Its report is of rows that chose nothing, and its general text of a share of its time."""
    limit = ("--set", "train.tolerance=0.2", "--set", "train.max_steps=40", "--set", "evaluate.benchmarks=[]")
    status, _, run_dir = train(tmp_path, "full", "--data", "new-facts", *WITHOUT_REPLAY, *limit)
    assert status == 0
    (start,), evaluations = said(run_dir, events.Watched), said(run_dir, events.Eval)
    rises = {one.step: one.metrics["general_loss"] - start.general_loss for one in evaluations}
    within = [step for step, rise in rises.items() if rise <= 0.2]
    best_step = min((one for one in evaluations if one.step in within), key=lambda one: one.loss).step
    stopped, chosen = (str(one.text) for one in said(run_dir, events.Log) if one.level == "result")
    assert list(rises)[:5] == [1, 2, 3, 4, 8]  # more often at first, where most is lost
    assert stopped.startswith(f"Stopped after step {max(rises)} of 40") and max(rises) < 40
    assert chosen.startswith(f"Kept step {best_step} of {max(rises)}: the best within your limit")
    assert (
        sum(one.family == items.UNSEEN for one in items.read_items(run_dir / "items" / "base-new-task-loss.jsonl"))
        == 72
    )
    assert "72 of 144 held-out rows chose" in "".join(str(one.text) for one in said(run_dir, events.Log))
    read_s = (len(evaluations) + 1) * (find_struct(run_dir / "watch.json", watch.Start) or start).seconds
    took = said(run_dir, events.Finished)[-1].monotonic_s - events.read(run_dir)[0][0].monotonic_s
    assert read_s < 0.1 * took  # a run of seconds; of one that is not, 3 %


@pytest.mark.train
@pytest.mark.slow
def test_a_tolerance_keeps_a_checkpoint_that_lost_little_and_gained_half_where_the_run_without_loses_much(tmp_path):
    """Full fine-tuning without replay, at the recipe's rate for the starter."""
    status, _, run_dir = train(tmp_path, "full", "--data", "new-facts", *WITHOUT_REPLAY)
    assert status == 0
    lost, gained = lost_and_gained(run_dir)
    assert lost > 20
    limit = ("--set", "train.tolerance=0.2", "--set", "train.evaluations=50")
    status, _, run_dir = train(tmp_path, "full", "--data", "new-facts", *WITHOUT_REPLAY, *limit)
    assert status == 0
    kept_lost, kept_gained = lost_and_gained(run_dir)
    assert kept_lost < 3 and kept_gained > gained / 2


@pytest.mark.train
@pytest.mark.slow
def test_a_run_with_a_tolerance_that_was_stopped_keeps_the_same_step_when_it_goes_on(tmp_path):
    limit = ("--set", "train.tolerance=0.6", "--set", "train.learning_rate=1e-3", "--set", "evaluate.benchmarks=[]")
    chosen = []
    for stops in (False, True):
        home = tmp_path / str(stops)
        if not stops:
            status, _, run_dir = train(home, "full", "--data", "new-facts", *WITHOUT_REPLAY, *limit)
            assert status == 0
        else:
            workspace = Workspace(home / "home")
            spec = store.load_spec(Workspace(tmp_path / "False" / "home"), run_dir.name)
            datasets.add_sample(workspace, starter.sample("new-facts"))
            run_id = lifecycle.start(workspace, spec)
            run_dir = workspace.run_dir(run_id)
            wait_until(lambda run_dir=run_dir: len(said(run_dir, events.Eval)) >= 3, timeout_s=120)
            lifecycle.stop(workspace, run_id)
            follow.wait(workspace, run_id)
            follow.wait_for_end(run_dir)
            lifecycle.resume(workspace, run_id)
            assert follow.wait(workspace, run_id) == "finished"
            assert len(said(run_dir, events.Watched)) == 1
        chosen.append([str(one.text) for one in said(run_dir, events.Log) if one.level == "result"])
    assert chosen[0] == chosen[1] and "the best within your limit" in chosen[0][-1]

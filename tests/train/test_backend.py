"""What the machine decides, with reasons; Unsloth through its CPU backend; models of other shapes; early stopping and the
best weights."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from transformers import TrainerState

from engine import events, machine
from engine.estimate import cards, machine_choices, memory
from engine.estimate.machine_choices import Device
from engine.models import shapes
from engine.plan import targets
from engine.report import items as report_items
from engine.runs import failures
from engine.spec import RunSpec, recipes, schema
from engine.spec import settings as spec_settings
from engine.train import backend, best
from engine.train.callback import EventCallback, early_stop
from engine.words import Problem
from tests import forked
from tests.conftest import ROOT
from tests.helpers import planned
from tests.tiny_models import SHAPES

GIB = 2**30
LLAMA = shapes.read_shape(
    {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    }
)  # fmt: skip
GPT2 = shapes.read_shape({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257})
CARD = Device("cuda", 24 * GIB, bf16=True, unsloth=True)
PROCESSOR = Device("cpu", 24 * GIB)


def asked(recipe: str = "lora", **overrides: Any) -> RunSpec:
    settings = {path.replace("__", "."): value for path, value in overrides.items()}
    made, problems = recipes.resolve(
        recipes.recipes()[recipe], base="b", revision=None, parameters=1.2e9, dataset_id="d", overrides=settings
    )
    assert not problems
    return made


def chosen(
    device: Device, shape: shapes.Shape | None = LLAMA, recipe: str = "lora", **overrides: Any
) -> machine_choices.Chosen:
    made = asked(recipe, **overrides)
    found = machine_choices.choose(made, device, shape, memory.setup_of(made))
    named = [one.setting for one in found.why if one.setting != machine_choices.FREED_MEMORY]
    assert all(one.reason for one in found.why) and set(named) <= set(spec_settings.fields()) and len(named) == 5
    return found


# --- what is chosen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "shape", "recipe", "backend"),
    [
        (CARD, LLAMA, "lora", "unsloth"),
        (CARD, LLAMA, "qlora", "unsloth"),
        (CARD, LLAMA, "full", "unsloth"),
        (CARD, LLAMA, "dpo", "unsloth"),
        (CARD, LLAMA, "kto", "unsloth"),
        (CARD, LLAMA, "oft", "plain"),
        (CARD, LLAMA, "qoft", "plain"),
        (CARD, LLAMA, "reward", "plain"),
        (CARD, GPT2, "lora", "plain"),
        (CARD, None, "lora", "plain"),
        (CARD._replace(unsloth=False), LLAMA, "lora", "plain"),
        (PROCESSOR._replace(unsloth=True), LLAMA, "lora", "plain"),
    ],
)
def test_unsloth_is_taken_where_it_is_installed_and_helps_and_either_can_be_asked_for(device, shape, recipe, backend):
    assert chosen(device, shape, recipe).backend == backend
    for name in ("unsloth", "plain"):
        forced = chosen(device, shape, recipe, machine__backend=name)
        assert (forced.backend, str(forced.backend_reason)) == (name, "asked for")


def test_full_fine_tuning_with_preferences_is_left_to_transformers():
    assert chosen(CARD, recipe="dpo", adapter="full").backend == "plain"
    assert chosen(CARD, recipe="lora", quantize="8bit").backend == "plain"


def test_bf16_is_used_where_the_card_has_it_or_as_asked():
    assert chosen(CARD).bf16 and not chosen(CARD._replace(bf16=False)).bf16 and not chosen(PROCESSOR).bf16
    assert not chosen(CARD, machine__precision="fp32").bf16 and chosen(PROCESSOR, machine__precision="bf16").bf16


def test_checkpointing_is_on_only_where_the_estimate_says_that_memory_is_short():
    assert not chosen(Device("cuda", 80 * GIB)).gradient_checkpointing
    tight = chosen(Device("cuda", 8 * GIB))
    assert tight.gradient_checkpointing and any("8.0 GiB" in one.reason for one in tight.why)
    assert chosen(CARD, None).gradient_checkpointing and not chosen(PROCESSOR, None).gradient_checkpointing
    for wish in (True, False):
        assert chosen(CARD, train__gradient_checkpointing=wish).gradient_checkpointing is wish


def test_the_optimizer_is_held_in_8_bits_only_where_that_makes_room():
    assert chosen(Device("cuda", 80 * GIB), recipe="full").optimizer == "adamw"
    assert chosen(Device("cuda", 16 * GIB), recipe="full").optimizer == "adamw_8bit"
    assert chosen(Device("cuda", 2 * GIB)).optimizer == "adamw"  # an adapter's state is small
    assert chosen(CARD, train__optimizer="adamw_8bit").optimizer == "adamw_8bit"


def test_8_bits_take_a_quarter_of_the_optimizers_memory_but_for_the_embedding():
    setup = memory.setup_of(asked("full", train__optimizer="adamw_8bit"))
    small = memory.estimate(LLAMA, setup, device="cuda:0").parts
    large = memory.estimate(LLAMA, msgspec.structs.replace(setup, optimizer="adamw"), device="cuda:0").parts
    assert small and large and LLAMA is not None
    embedding = 8 * LLAMA.head_parameters
    quarter = (small["optimizer"] - embedding) / (large["optimizer"] - embedding)
    assert quarter == pytest.approx(0.25, rel=0.02)
    assert {k: v for k, v in small.items() if k != "optimizer"} == {k: v for k, v in large.items() if k != "optimizer"}


def test_rows_lie_end_to_end_by_flash_attention_or_where_a_comparison_finds_that_right():
    plain = CARD._replace(unsloth=False)
    assert chosen(plain._replace(flash_attention=True)).padding_free is True
    for device in (plain, PROCESSOR, PROCESSOR._replace(flash_attention=True)):
        assert chosen(device).padding_free is None
        assert chosen(device, train__padding_free=True).padding_free is None  # tried all the same
        assert chosen(device, train__padding_free=False).padding_free is False
    assert chosen(CARD).padding_free is None  # Unsloth decides
    assert chosen(plain._replace(flash_attention=True), recipe="dpo").padding_free is False


def test_a_run_that_keeps_more_is_trained_by_transformers_and_says_why():
    for keep in ("entropy", "skip_surprising", "kl"):
        made = chosen(CARD, objective_args__keep=keep)
        assert chosen(CARD).backend == "unsloth" and made.backend == "plain"
        assert "keeps what its base knew" in str(made.backend_reason)
        (problem,) = said(CARD, machine__backend="unsloth", objective_args__keep=keep)
        assert problem.rule == "keep-unsloth" and keep in problem.message


def said(device: Device, shape: shapes.Shape | None = LLAMA, recipe: str = "lora", **overrides: Any) -> list[Problem]:
    found = machine_choices.problems(asked(recipe, **overrides), device, shape)
    assert all(problem.where in spec_settings.fields() and "{" not in problem.sentence for problem in found)
    return found


def test_what_the_machine_cannot_do_is_refused_in_words():
    wish: dict[str, Any] = {"machine__backend": "unsloth"}
    assert [p.rule for p in said(PROCESSOR, **wish)] == ["unsloth-missing"]
    assert "make unsloth" in said(PROCESSOR, **wish)[0].fix
    assert said(PROCESSOR._replace(unsloth=True), **wish) == []
    (problem,) = said(CARD, recipe="qoft", **wish)
    assert problem.rule == "unsloth-cannot" and "sft + oft + 4bit" in problem.message
    assert [p.rule for p in said(CARD, GPT2, **wish)] == ["unsloth-layout"]
    assert [p.rule for p in said(CARD, recipe="dpo", train__padding_free=True)] == ["padding-free"]
    assert said(CARD, train__padding_free=True) == said(PROCESSOR, train__padding_free=True) == []
    assert [p.rule for p in said(CARD._replace(bf16=False), machine__precision="bf16")] == ["no-bf16"]
    assert said(CARD) == said(PROCESSOR) == []


def test_preflight_asks_the_machine(workspace, monkeypatch):
    monkeypatch.setattr(machine_choices, "installed", lambda package: False)
    made, found = planned(workspace, "lora", base="starter", dataset=None, overrides={"machine.backend": "unsloth"})
    assert made is not None and {"unsloth-missing"} <= {problem.rule for problem in found}


def test_an_old_card_is_told_from_its_compute_capability(monkeypatch):
    for capability, bf16 in ((7.5, False), (8.0, True), (9.0, True)):
        facts = machine.MachineFacts(2, 8000, (machine.Gpu("a card", 16000, capability),))
        monkeypatch.setattr(machine, "facts", lambda facts=facts: facts)
        assert targets.this_machine().device.bf16 is bf16 and targets.this_machine().memory_bytes == 16000 * 2**20


def test_a_child_refuses_where_the_driver_names_a_card_and_torch_does_not_see_it(monkeypatch, workspace):
    """This test's own torch sees no card: its build for processors, or its driver's absence, is the case itself."""
    card = machine.Gpu("Tesla T4", 15360, 7.5, "GPU-0")
    monkeypatch.setattr(machine, "facts", lambda: machine.MachineFacts(2, 8000, (card,), driver="580.95.05"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(failures.RunRefused) as refused:
        backend.here()
    assert "Tesla T4" in str(refused.value) and failures.from_exception(refused.value).kind == "driver"
    _, found = planned(workspace, "lora", base="starter", dataset=None, overrides={})
    unseen = {one.rule for one in found} & {"driver-torch-processor"}
    assert bool(unseen) is (torch.version.cuda is None)
    monkeypatch.setattr(cards, "unseen", lambda facts: None)  # all seems to fit, and torch says no
    with pytest.raises(failures.RunRefused, match="torch cannot use it: "):
        backend.here()


def test_a_child_refuses_a_card_that_torch_holds_no_code_for(monkeypatch):
    card = machine.Gpu("GeForce GTX 1080", 8192, 6.1, "GPU-0")
    monkeypatch.setattr(machine, "facts", lambda: machine.MachineFacts(2, 8000, (card,), driver="580.95.05"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (6, 1))
    with pytest.raises(failures.RunRefused, match="GTX 1080"):
        backend.sees_card()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (8, 9))
    assert backend.sees_card()


# --- early stopping and the best weights -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "patience", "since"),
    [
        ([3, 2, 1], 1, None), ([3, 2, 2], 1, 1), ([1, 2, 3], 2, 2), ([1, 2, 3], 3, None), ([1, 2, 0.5, 2], 2, None),
        ([1, 2, 0.5, 2, 2], 2, 2), ([1, 2, 3, 4], 0, None), ([], 1, None),
    ],
)  # fmt: skip
def test_patience_counts_evaluations_since_the_lowest_loss(losses, patience, since):
    assert early_stop([(loss, 10 * n) for n, loss in enumerate(losses)], patience) == since


class Told:
    """Holds what a callback writes."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def append(self, event: Any) -> None:
        self.events.append(event)

    def texts(self, level: str) -> list[str]:
        return [str(event.text) for event in self.events if isinstance(event, events.Log) and event.level == level]


def evaluated(told: Told, losses: list[tuple[float, float]], patience: int = 0) -> tuple[EventCallback, Any]:
    """Feed a callback (training loss, held-out loss) pairs, ten steps apart, as the Trainer does."""
    callback = EventCallback(told, SimpleNamespace(asked=lambda: False), lambda step: None, 1.0, patience=patience)  # pyright: ignore[reportArgumentType]
    args = SimpleNamespace(eval_strategy="steps", load_best_model_at_end=True)
    state = SimpleNamespace(global_step=0, max_steps=1000, epoch=0.0, log_history=[], num_input_tokens_seen=0)
    control = SimpleNamespace(should_training_stop=False)
    callback.on_train_begin(args, state, control)
    for train_loss, eval_loss in losses:
        state.global_step += 10
        callback.on_log(args, state, control, {"loss": train_loss})
        state.log_history.append({"eval_loss": eval_loss, "step": state.global_step})
        callback.on_evaluate(args, state, control, {"eval_loss": eval_loss})
        if control.should_training_stop:
            break
    return callback, state


def test_a_run_that_stops_early_says_when_and_why():
    told = Told()
    _, state = evaluated(told, [(2, 2.0), (1.5, 1.0), (1.2, 1.1), (1.0, 1.2), (0.9, 1.3)], patience=2)
    (text,) = told.texts("result")
    assert state.global_step == 40
    assert "after step 40 of 1000" in text and "for 2 evaluations" in text and "step 20 (1.0000)" in text


def test_without_patience_no_run_stops_early():
    told = Told()
    _, state = evaluated(told, [(2, 1.0), (1, 2.0), (0.5, 3.0), (0.4, 4.0)])
    assert state.global_step == 40 and told.texts("result") == []


def test_a_held_out_loss_that_rises_while_the_training_loss_falls_is_told_once():
    told = Told()
    evaluated(told, [(2, 2.0), (1.0, 1.0), (0.5, 1.3), (0.3, 1.6), (0.2, 2.0)])
    (text,) = told.texts("warning")
    assert "rising while the training loss falls" in text


@pytest.mark.parametrize(
    "losses",
    [
        [(2, 2.0), (1.5, 1.5), (1.0, 1.2), (0.8, 1.1)],  # both fall
        [(1.0, 1.0), (0.9, 1.02), (0.8, 1.04)],  # wavers by a few per cent
        [(0.5, 1.0), (0.9, 1.4), (1.5, 1.9)],  # the training loss rises too: not overfitting
        [(1.0, 1.0), (0.9, 1.3), (0.8, 0.9)],  # once only
    ],
)
def test_what_is_no_overfitting_is_not_called_so(losses):
    told = Told()
    evaluated(told, losses)
    assert told.texts("warning") == []


def test_which_weights_were_kept_is_said():
    def trainer(best_step: int, *, keeps: bool = True, taken: bool = True) -> Any:
        losses = {10: 2.0, 20: 1.5, 30: 1.5} | {best_step: 1.0}
        history = [{"eval_loss": loss, "step": step} for step, loss in losses.items()]
        state = SimpleNamespace(best_global_step=best_step, global_step=30, log_history=history)
        args = SimpleNamespace(load_best_model_at_end=keeps)
        return SimpleNamespace(args=args, state=state, best_step_taken=best_step if taken else None)

    def said(best_step: int, **more: bool) -> str:
        told = best.kept(trainer(best_step, **more))
        return f"{told.level}: {told.text}" if told is not None else ""

    assert said(20).startswith("result") and "step 20 of 30" in said(20) and "(1.0000)" in said(20)
    assert "at the end it was 1.5000" in said(20)
    assert "the last weights, of step 30" in said(30)
    assert said(20, keeps=False) == ""
    assert said(20, taken=False).startswith("warning: Kept: the weights of step 30, not the best ones")


# --- what is noticed while it trains, and which checkpoints stay --------------------------------------------------
def logged(told: Told, rows: list[dict[str, float]], max_steps: int = 1000, *, falls: bool = True) -> None:
    """Feed a callback the Trainer's log entries, one a step."""
    callback = EventCallback(told, SimpleNamespace(asked=lambda: False), lambda step: None, 1.0, loss_should_fall=falls)  # pyright: ignore[reportArgumentType]
    args = SimpleNamespace(eval_strategy="steps", max_grad_norm=1.0)
    state = SimpleNamespace(global_step=0, max_steps=max_steps, epoch=0.0, num_input_tokens_seen=0)
    callback.on_train_begin(args, state, None)
    for row in rows:
        state.global_step += 1
        callback.on_log(args, state, None, row)


def test_a_gradient_that_explodes_is_told_once_with_the_step_and_how_far():
    told = Told()
    norms = [0.9, 1.1] * 6 + [5.0, 12.0, 90.0, 400.0]
    logged(told, [{"loss": 2.0, "grad_norm": norm} for norm in norms])
    (text,) = told.texts("warning")
    assert "At step 15 the gradient was 82 times as long as usual (90)" in text and "cut to 1" in text
    assert len([event for event in told.events if isinstance(event, events.Step)]) == len(norms)


@pytest.mark.parametrize(
    "norms", [[0.1] * 20 + [2.5], [1.0] * 20 + [19.0], [400.0] * 3, [50.0] * 30, [1e-9] * 20 + [9.0]]
)
def test_a_hard_batch_a_rough_start_and_gradients_that_are_always_long_are_no_explosion(norms):
    told = Told()
    logged(told, [{"loss": 2.0, "grad_norm": norm} for norm in norms])
    assert told.texts("warning") == []


def test_a_loss_that_does_not_move_is_told_in_the_middle_of_the_run():
    told, rows = Told(), [{"loss": 2.0 + 0.01 * (-1) ** n} for n in range(59)]
    logged(told, rows[:29], max_steps=60)
    assert told.texts("warning") == []
    logged(told, rows, max_steps=60)
    (text,) = told.texts("warning")
    assert text.startswith("The loss has not moved in 30 steps (2.0")


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([2.0 - 0.002 * n for n in range(60)], True),  # slowly, but it moves
        ([0.05] * 60, True),  # there is nothing left to learn
        ([2.0] * 12, True),  # too few to tell
        ([2.0] * 60, False),  # PPO's says nothing of how it goes
    ],
)
def test_a_loss_that_moves_or_need_not_is_not_complained_of(losses, falls):
    told = Told()
    logged(told, [{"loss": loss} for loss in losses], max_steps=len(losses), falls=falls)
    assert told.texts("warning") == []


@pytest.mark.parametrize(("best", "left"), [(None, [12, 16]), (4, [4, 16]), (12, [12, 16]), (16, [12, 16])])
def test_the_best_checkpoint_and_the_last_are_kept_and_the_others_pruned(tmp_path, best, left):
    from engine.train.objectives.common import save_whole

    class Trainer:
        args = SimpleNamespace(output_dir=str(tmp_path), save_total_limit=2)
        state = TrainerState()

        def _get_output_dir(self, trial: None) -> str:
            return str(tmp_path)

        def _save_checkpoint(self, model: None, trial: None) -> None:
            folder = Path(self._get_output_dir(None)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True)
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
            if self.state.global_step == best:
                self.state.best_model_checkpoint, self.state.best_global_step = str(folder), best
            self.state.save_to_json(str(folder / "trainer_state.json"))

    trainer = Trainer()
    save_whole(trainer)
    for step in (4, 8, 12, 16):
        trainer.state.global_step = step
        trainer._save_checkpoint(None, None)
        there = {path.name for path in tmp_path.glob("checkpoint-*")}
        assert f"checkpoint-{step}" in there and (best is None or best > step or f"checkpoint-{best}" in there)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in left}


# --- real trainings ----------------------------------------------------------------------------------------------


def train_all(home: Path, runs: list[list[Any]]) -> list[dict[str, Any]]:
    """Train in one process, one run after another; fails with its last words. Unsloth has to be imported before what it
    rewrites, so its runs get a fresh process."""
    if any(settings.get("machine.backend") == "unsloth" for _, _, settings in runs):
        done = subprocess.run(
            [sys.executable, "-m", "tests.tiny_models", str(home), json.dumps(runs)],
            cwd=ROOT, capture_output=True, text=True, timeout=1500,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    else:
        code = "from tests.tiny_models import main; main()"
        done = forked.run_python(code, home, json.dumps(runs), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def read(run: dict[str, Any]) -> list[Any]:
    found, _ = events.read(Path(run["run"]))
    return found


def whole(run: dict[str, Any], what: str) -> list[Any]:
    """Check that a run has trained 2 steps, moved, written answers and kept what it made; return its events."""
    assert run.get("status") == 0, run
    found = read(run)
    steps = [event for event in found if isinstance(event, events.Step)]
    assert steps[-1].step == 2 and all(event.loss is not None and math.isfinite(event.loss) for event in steps)
    assert {event.step for event in found if isinstance(event, events.Sample)} >= {0, 2}
    assert (Path(run["run"]) / what).is_dir()
    items = [json.loads(line) for line in (Path(run["run"]) / "items" / "kl-to-base.jsonl").read_text().splitlines()]
    assert items and all(one["tokens"] > 0 and one["kl_nats"] >= 0 for one in items)
    assert sum(one["kl_nats"] for one in items) > 0
    return found


RECIPES = ("lora", "full", "oft", "qlora")
KEPT = {"lora": "adapter", "full": "model", "oft": "adapter", "qlora": "adapter"}


def settings(recipe: str) -> dict[str, Any]:
    made: dict[str, Any] = {"data": recipes.recipes()[recipe].sample, "evaluate.benchmarks": [], "merge": True}
    if recipe == "ppo":  # a judge of random weights judges as coins do
        made |= {"objective_args.least_reward_accuracy": 0.0, "objective_args.answer_tokens": 8}
    return made


def trained(run: dict[str, Any], shape: str, recipe: str) -> None:
    """Hold that a run has moved its weights, kept its commit, and can be merged into a model of the base's own form."""
    assert run.get("status") == 0, run
    run_dir = Path(run["run"])
    told = schema.decode((run_dir / "spec.json").read_bytes())
    assert (told.base.ref, len(told.base.revision or "")) == (f"tiny/{shape}", 40)
    found, _ = events.read(run_dir)
    steps = [event for event in found if isinstance(event, events.Step)]
    assert steps[-1].step == 2 and all(e.loss is not None and math.isfinite(e.loss) for e in steps)
    assert (run_dir / ("model" if told.adapter == "full" else "adapter")).is_dir()
    assert run["parity"]["differences"] == [] and run["parity"]["tokens"] > 100
    if told.adapter != "full":
        assert run["parity"]["logits"] <= run["parity"]["tolerance"]
    if shape == "gpt2":  # the fused attention lies as GPT-2 has it: inputs x outputs
        attention = next(dims for name, dims in run["shapes"].items() if name.endswith("h.0.attn.c_attn.weight"))
        assert attention == [64, 192]
    if recipe != "reward":
        kl = [json.loads(line) for line in (run_dir / "items" / "kl-to-base.jsonl").read_text().splitlines()]
        assert sum(one["kl_nats"] for one in kl) > 0


HUB_SHAPES = ("qwen2", "gpt2")
FEWEST = [
    ["llama", "oft", {"train.optimizer": "adamw_8bit", "train.gradient_checkpointing": True}],
    ["hub:qwen2", "full", {"train.keep_best": True, "train.evaluations": 2}],
    ["hub:gpt2", "qlora", {"train.early_stopping": 1, "train.evaluations": 3}],
    ["hub:gpt2", "oft", settings("oft")],
]


@pytest.mark.slow
@pytest.mark.train
def test_models_of_other_shapes_train(tmp_path):
    llama, qwen2, gpt2, turned = train_all(tmp_path, FEWEST)
    trained(turned, "gpt2", "oft")
    for run, what in ((llama, "adapter"), (qwen2, "model"), (gpt2, "adapter")):
        found = whole(run, what)
        started = next(event for event in found if isinstance(event, events.Started))
        assert started.backend == "plain" and "unsloth" not in started.versions
        assert {one.setting for one in started.choices} >= {"machine.backend", "train.optimizer"}
        assert run["unsloth"] is False  # having it installed does not bring it in
    texts = [str(event.text) for event in read(qwen2) if isinstance(event, events.Log) and event.level == "result"]
    assert len(texts) == 1 and texts[0].startswith("Kept: ")
    assert any("plain headings" in event.text for event in read(gpt2) if isinstance(event, events.Log))


@pytest.mark.slow
@pytest.mark.train
def test_every_shape_trains_with_every_adapter(tmp_path):
    pairs = [[shape, recipe, {}] for shape in SHAPES for recipe in RECIPES]
    for (_, recipe, _), run in zip(pairs, train_all(tmp_path, pairs), strict=True):
        whole(run, KEPT[recipe])


@pytest.mark.slow
@pytest.mark.train
def test_the_best_weights_are_those_that_are_saved_and_scored(tmp_path):
    """Rows that can only be learned by heart have their lowest held-out loss early; LoRA and OFT go back to it."""
    wild = {
        "data": "codes", "train.max_steps": 60, "train.evaluations": 6, "train.learning_rate": 0.01,
        "train.warmup": 0, "train.schedule": "constant", "train.replay_share": 0.0,
    }  # fmt: skip
    for run in train_all(
        tmp_path, [["starter", recipe, {**wild, "train.keep_best": True}] for recipe in ("lora", "oft")]
    ):
        assert run.get("status") == 0, run
        evals = {event.step: event.loss for event in read(run) if isinstance(event, events.Eval)}
        best = min(evals, key=evals.__getitem__)
        assert best != 60, evals
        items = report_items.read_items(Path(run["run"]) / "items" / "tuned-new-task-loss.jsonl")
        unseen = [item for item in items if item.family == report_items.UNSEEN]
        loss = -sum(item.loglikelihoods[0] for item in unseen) / sum(item.tokens or 0 for item in unseen)
        assert loss == pytest.approx(evals[best], rel=1e-4), (loss, evals)


@pytest.mark.slow
@pytest.mark.train
def test_a_run_stops_early_and_keeps_its_best_weights(tmp_path):
    settings = {
        "data": "codes", "train.max_steps": 100, "train.evaluations": 10, "train.learning_rate": 0.01,
        "train.warmup": 0, "train.schedule": "constant", "train.replay_share": 0.0, "train.early_stopping": 2,
    }  # fmt: skip
    (run,) = train_all(tmp_path, [["starter", "lora", settings]])
    assert run.get("status") == 0
    results = [str(event.text) for event in read(run) if isinstance(event, events.Log) and event.level == "result"]
    assert len(results) == 2 and results[0].startswith("Stopped early") and results[1].startswith("Kept: ")
    assert next(event for event in read(run) if isinstance(event, events.Finished)).step < 100


# --- Unsloth -----------------------------------------------------------------------------------------------------


def needs_unsloth() -> None:
    if machine_choices.installed("unsloth"):
        return
    reason = "Unsloth is not installed: `make unsloth` brings what its CPU backend needs"
    if os.environ.get("TUNEBOOK_REQUIRE_UNSLOTH") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def loss_in_plain_peft(run_dir: Path) -> dict[str, float]:
    """Score a run's rows on the starter with its adapter, loaded by plain transformers and peft in this process."""
    import transformers
    from peft import PeftModel

    from engine import starter
    from engine.train import rows
    from engine.train.scoring import losses as scoring_losses
    from engine.workspace import Workspace

    assert "unsloth" not in sys.modules
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR, trust_remote_code=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, trust_remote_code=False)
    tuned = PeftModel.from_pretrained(model, run_dir / "adapter").eval()
    run_spec = schema.decode((run_dir / "spec.json").read_bytes())
    train, unseen = rows.divide(run_spec, Workspace(run_dir.parents[1]))
    items = scoring_losses.score_loss(tuned, tokenizer, rows.to_score(train, unseen), run_spec.train.max_length)
    return {item.item: item.loglikelihoods[0] for item in items}


@pytest.mark.train
def test_unsloth_trains_lora_and_its_adapter_is_one_of_plain_peft(tmp_path):
    needs_unsloth()
    (run,) = train_all(tmp_path, [["starter", "lora", {"machine.backend": "unsloth", "evaluate.benchmarks": []}]])
    found = whole(run, "adapter")
    started = next(event for event in found if isinstance(event, events.Started))
    assert started.backend == "unsloth" and "unsloth" in started.versions and "asked for" in started.reason
    assert run["unsloth"] is True and not (ROOT / "unsloth_compiled_cache").exists()
    items = report_items.read_items(Path(run["run"]) / "items" / "tuned-new-task-loss.jsonl")
    there = loss_in_plain_peft(Path(run["run"]))
    assert len(items) > 8
    assert all(abs(there[item.item] - item.loglikelihoods[0]) < 1e-2 for item in items)


@pytest.mark.slow
@pytest.mark.train
def test_unsloth_trains_every_form_that_it_is_chosen_for(tmp_path):
    needs_unsloth()
    forced = {"machine.backend": "unsloth", "evaluate.benchmarks": []}
    half = {**forced, "layers": "top:0.5", "train.gradient_checkpointing": True, "train.keep_best": True}
    runs = train_all(
        tmp_path,
        [
            ["starter", "qlora", forced],
            ["starter", "full", forced],
            ["starter", "dpo", {**forced, "data": "preference-pairs"}],
            ["starter", "kto", {**forced, "data": "good-bad"}],
            ["starter", "lora", half],
        ],
    )
    for run, what in zip(runs, ("adapter", "model", "adapter", "adapter", "adapter"), strict=True):
        whole(run, what)
    layers = json.loads((Path(runs[-1]["run"]) / "adapter" / "adapter_config.json").read_text())["layers_to_transform"]
    assert layers == [2, 3]

"""Which weights a run keeps where the best ones were asked for, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerState

from engine import events
from engine.runs import checkpoints
from engine.train import ranks
from engine.train.watch import Watch, is_within
from engine.words import later


def find_again(checkpoint: Path) -> None:
    """Put right where the state of a checkpoint says that the best one lies: beside it. The path that was written may
    be of a folder that has moved since, or of a checkpoint that is gone; of those that are left none is the best then,
    until a lower loss comes."""
    path = checkpoint / "trainer_state.json"
    state = TrainerState.load_from_json(str(path))
    if ranks.first() and state.best_model_checkpoint:
        here = checkpoint.parent / Path(state.best_model_checkpoint).name
        state.best_model_checkpoint = str(here) if checkpoints.is_whole(here) else None
        beside = path.with_suffix(".partial")
        state.save_to_json(str(beside))
        beside.replace(path)
    ranks.meet()


def watch(trainer: Any) -> None:
    """Let a trainer remember the step whose weights it took at its end, as `best_step_taken`: None where it took none."""
    load = trainer._load_best_model
    trainer.best_step_taken = None

    def load_and_remember() -> None:
        best = Path(trainer.state.best_model_checkpoint)
        if checkpoints.is_whole(best):
            load()
            trainer.best_step_taken = trainer.state.best_global_step

    trainer._load_best_model = load_and_remember


def kept(trainer: Any) -> events.Log | None:
    """Return in words which weights were kept, where the best ones were asked for."""
    state = trainer.state
    if chosen := {one["step"]: one for one in state.log_history if "eval_choice" in one}:
        return _chosen(trainer, chosen)
    losses = {one["step"]: one["eval_loss"] for one in state.log_history if "eval_loss" in one}
    if not trainer.args.load_best_model_at_end or not losses:
        return None
    best_step = min(losses, key=lambda step: losses[step])  # the first of equals, as the trainer
    best, last = f"{losses[best_step]:.4f}", f"{losses[max(losses)]:.4f}"
    if best_step == state.global_step:
        text = later(
            "Kept: the last weights, of step {step}. Their held-out loss is the lowest of the run ({best}).",
            step=best_step, best=best,
        )  # fmt: skip
        return events.Log(level="result", text=text)
    if trainer.best_step_taken == best_step:
        text = later(
            "Kept: the weights of step {step} of {last_step}, where the held-out loss was lowest ({best}); at the end it "
            "was {last}.",
            step=best_step, last_step=state.global_step, best=best, last=last,
        )  # fmt: skip
        return events.Log(level="result", text=text)
    taken = trainer.best_step_taken or state.global_step
    text = later(
        "Kept: the weights of step {step}, not the best ones: the checkpoint of step {best_step}, where the held-out "
        "loss was lowest ({best}), is no longer there.",
        step=taken, best_step=best_step, best=best,
    )  # fmt: skip
    return events.Log(level="warning", text=text)


def _chosen(trainer: Any, told: dict[int, dict[str, float]]) -> events.Log:
    """Say which weights were kept where a grade chose, or a limit was set to what may be forgotten; `told`: the evaluations
    by their step."""
    watched: Watch = trainer.watched
    best_step = min(told, key=lambda step: told[step]["eval_choice"])
    taken = trainer.best_step_taken or trainer.state.global_step
    one = told.get(taken, told[best_step])
    figures = {"step": taken, "last_step": trainer.state.global_step, "loss": f"{one['eval_loss']:.4f}"}
    if "eval_grade" in one:
        figures |= {"grade": f"{one['eval_grade']:.2f}", "n": watched.start.graded}
    if watched.limit is None:
        return _by_grade(figures, best_step)
    figures["limit"] = f"{watched.limit:.3g}"
    figures["rise"] = f"{one['eval_general_loss'] - watched.start.loss:+.3f}"
    if taken != best_step:
        text = later(
            "Kept step {step}, not the best: the checkpoint of step {best_step}, which was, is no longer there. General "
            "text changed by {rise} nats per token; your limit is {limit}.", best_step=best_step, **figures,
        )  # fmt: skip
        return events.Log(level="warning", text=text)
    if is_within(one["eval_choice"]) and "grade" in figures:
        text = later(
            "Kept step {step} of {last_step}: the best grade within your limit, {grade} of 1 over {n} held-out answers. "
            "General text changed by {rise} nats per token, of at most {limit}.", **figures,
        )  # fmt: skip
        return events.Log(level="result", text=text)
    if is_within(one["eval_choice"]):
        text = later(
            "Kept step {step} of {last_step}: the best within your limit. General text changed by {rise} nats per token, of "
            "at most {limit}; the held-out loss is {loss}.", **figures,
        )  # fmt: skip
        return events.Log(level="result", text=text)
    text = later(
        "No evaluation was within your limit of {limit} nats. Kept step {step} of {last_step}, which forgot least: general "
        "text changed by {rise} nats per token. A lower rate, more evaluations or general rows mixed in would help.",
        **figures,
    )
    return events.Log(level="warning", text=text)


def _by_grade(figures: dict[str, Any], best_step: int) -> events.Log:
    if figures["step"] != best_step:
        text = later(
            "Kept step {step}, not the best: the checkpoint of step {best_step}, which had the best grade, is no longer "
            "there.", step=figures["step"], best_step=best_step,
        )  # fmt: skip
        return events.Log(level="warning", text=text)
    text = later(
        "Kept step {step} of {last_step}: the best grade, {grade} of 1 over {n} held-out answers; of equal ones that of the "
        "lowest held-out loss ({loss}).", **figures,
    )  # fmt: skip
    return events.Log(level="result", text=text)

"""What a trainer says while it trains, as events; and how it hears that it should stop."""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from engine import events
from engine.report import items
from engine.runs import failures
from engine.train import oft, ranks
from engine.words import Problem, later

# Names of the Trainer's own log entries that have a field of their own in Step or Eval, or say nothing new.
_KNOWN = {
    "loss", "learning_rate", "grad_norm", "epoch", "num_tokens", "total_flos", "train_loss", "train_runtime",
    "train_samples_per_second", "train_steps_per_second", "eval_loss", "eval_runtime", "eval_samples_per_second",
    "eval_steps_per_second", "eval_num_tokens", "eval_choice",
}  # fmt: skip


# A crash may lose so much work, and no more than the steps between two evaluations; a short run saves only its end.
CHECKPOINT_EVERY_S = 60.0
# A held-out loss wavers by a few per cent from one evaluation to the next; less than this is no rise.
RISEN = 1.1
# Chosen answers have become clearly less likely when they lost so many nats each, and so large a share of the start.
FALLEN_NATS, FALLEN_SHARE = 1.0, 0.1
# A gradient has exploded when it is so many times as long as usual, and as long as a step may use. A single hard batch is
# two to five times as long as its neighbours; ours to choose, no paper has a figure.
EXPLODED_TIMES, EXPLODED_CLIPS = 20.0, 10.0
FEWEST_USUAL = 10
# Half of the run, but at least so many figures, must have gone by before a loss is said not to move, by a share as small
# as this; below the floor there is nothing left to learn.
FEWEST_LOSSES, UNMOVED, LOSS_FLOOR = 20, 0.01, 0.1


class StopRequest:
    """A stop is a file in the run's folder, or SIGTERM; both end the run after the step in hand."""

    def __init__(self, run_dir: Path):
        self._file = run_dir / "stop"
        self._signalled = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self._signalled = True

    def asked(self) -> bool:
        return self._signalled or self._file.exists()


def memory_mib() -> float:
    """Peak memory of the card, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20


def _number(value: Any) -> float | None:
    """A finite number, or None: JSON has no NaN, and a chart cannot draw one."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def chosen_fell(metrics: dict[str, Any], beta: float, prefix: str = "") -> float | None:
    """Return how many nats the chosen answers have lost since the start, on average, when that is clearly a fall.

    DPO's loss only asks for a gap: it is as content when both answers become less likely, the rejected one faster
    (Pal and others, arXiv 2402.13228, section 3). The reward of a chosen answer is beta times the change of its
    log-probability against the reference (arXiv 2305.18290, section 4), and the reference is the start.
    """
    reward, now = _number(metrics.get(f"{prefix}rewards/chosen")), _number(metrics.get(f"{prefix}logps/chosen"))
    if reward is None or now is None:
        return None
    lost = -reward / beta
    start = now + lost
    return lost if lost > max(FALLEN_NATS, FALLEN_SHARE * abs(start)) else None


def early_stop(losses: list[tuple[float, int]], patience: int) -> int | None:
    """Return how many evaluations have passed since the lowest loss, when that is `patience` or more (0: never).
    `losses` are (loss, step) in order; an equal loss is no better one."""
    if not patience or not losses:
        return None
    values = [loss for loss, _ in losses]
    since = len(values) - 1 - values.index(min(values))
    return since if since >= patience else None


class EventCallback(TrainerCallback):
    """Writes Step, Eval, Sample and Saved events, and stops the trainer after a checkpoint when asked to.

    With `patience` it ends the training after so many evaluations in a row without a lower held-out loss. `score_at`: how
    many points on the way are scored, and what scores one. `loss_should_fall`: a loss that does not move is worth a word.
    `watched`: the run's watch.Watch; beyond its limit, with no way back, the training ends. `early_looks`: steps with an
    evaluation beside the usual ones, which end nothing.
    """

    def __init__(
        self,
        log: events.EventLog,
        stop: StopRequest,
        write_samples: Callable[[int], None],
        epochs_per_pass: float,
        rotations: oft.Rotations | None = None,
        patience: int = 0,
        score_at: tuple[int, Callable[[int], None]] | None = None,
        loss_should_fall: bool = True,
        watched: Any = None,
        early_looks: Sequence[int] = (),
    ):
        self._log = log
        self._stop = stop
        self.write_samples = write_samples
        self._epochs_per_pass = epochs_per_pass
        self._rotations = rotations
        self._turned_far = False
        self._last = (time.monotonic(), 0.0, 0)  # seconds, tokens, step at the last Step event
        self._pause_s = 0.0  # time spent in evaluations since then
        self._trained = (0.0, 0)  # seconds and steps since the first Step event, evaluations left out
        self._saved_s = time.monotonic()
        self._best = (math.inf, math.inf, 0)  # lowest held-out loss, train loss then, evaluations since
        self._train_loss = math.inf
        self._warned = False
        self._beta: float | None = None
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._exploded = self._judged = False
        self._loss_should_fall = loss_should_fall
        self._patience = patience
        self._score_at = score_at
        self._watched = watched
        self._early_looks = early_looks
        self.stopped = False

    def watch_chosen(self, beta: float) -> None:
        """Say once when the chosen answers of pairs become less likely than at the start."""
        self._beta = beta

    @property
    def step_s(self) -> float | None:
        """Seconds of an optimizer step so far, evaluations left out; None before the second Step event."""
        return self._trained[0] / self._trained[1] if self._trained[1] else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = (time.monotonic(), float(state.num_input_tokens_seen or 0), state.global_step)
        self._score(state)  # a stop may have come while this very step was being scored

    def _score(self, state: Any) -> None:
        """Score the model where a point on the way is due; the time is no training's."""
        if self._score_at is None or state.global_step not in items.way_points(state.max_steps, self._score_at[0]):
            return
        began_s = time.monotonic()
        self._score_at[1](state.global_step)
        self._pause_s += time.monotonic() - began_s

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._score(state)
        # Called after the Trainer's own callback, which asks for a checkpoint at every evaluation.
        if state.global_step in self._early_looks:
            control.should_evaluate = control.should_save = True
        if not args.load_best_model_at_end and time.monotonic() - self._saved_s < CHECKPOINT_EVERY_S:
            control.should_save = False
        if control.should_save:
            control.should_log = True  # comes first, so that weights that have run away are never saved
        if ranks.any_of(self._stop.asked()):
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        self._refuse_no_number(logs["loss"], state.global_step)
        now_s, tokens = time.monotonic(), float(logs.get("num_tokens") or 0)
        then_s, tokens_then, step_then = self._last
        spent_s = max(1e-6, now_s - then_s - self._pause_s)
        if step_then:  # the first step also warms up, and says nothing about the others
            self._trained = (self._trained[0] + spent_s, self._trained[1] + state.global_step - step_then)
        trained_s, trained_steps = self._trained
        self._last, self._pause_s = (now_s, tokens, state.global_step), 0.0
        loss, norm = _number(logs["loss"]), _number(logs.get("grad_norm"))
        if loss is not None:
            self._train_loss = loss
            self._notice_unmoved(loss, state)
        if norm is not None:
            self._notice_exploded(norm, args.max_grad_norm, state.global_step)
        if args.eval_strategy == "no":  # held-out rows would say it with less noise
            self._notice_chosen(logs)
        self._log.append(
            events.Step(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=round(float(state.epoch or 0) * self._epochs_per_pass, 4),
                loss=loss,
                learning_rate=_number(logs.get("learning_rate")),
                grad_norm=norm,
                tokens_per_s=round((tokens - tokens_then) / spent_s, 1) if tokens > tokens_then else None,
                memory_mib=round(memory_mib(), 1),
                left_s=round((state.max_steps - state.global_step) * trained_s / trained_steps, 1)
                if trained_steps
                else None,
                metrics={k: v for k, x in logs.items() if k not in _KNOWN and (v := _number(x)) is not None}
                | self._turned(),
            )
        )

    def _refuse_no_number(self, loss: Any, step: int) -> None:
        """End a run whose loss is no longer a number: no later step brings the weights back. Raises RunRefused."""
        if isinstance(loss, int | float) and not math.isfinite(loss):
            raise failures.RunRefused(Problem(rule="diverged-loss", parameters={"step": step}))

    def _warn(self, text: Any) -> None:
        self._log.append(events.Log(level="warning", text=text))

    def _notice_exploded(self, norm: float, clip: float, step: int) -> None:
        """Say once when a gradient is far longer than usual: it is cut to the clip, but something is not well."""
        usual = statistics.median(self._norms) if len(self._norms) >= FEWEST_USUAL else math.inf
        self._norms = [*self._norms[-99:], norm]
        if self._exploded or norm < max(EXPLODED_TIMES * usual, EXPLODED_CLIPS * clip):
            return
        self._exploded = True
        self._warn(
            later(
                "At step {step} the gradient was {times} times as long as usual ({norm}). It is cut to {clip}, but "
                "training may run away: a lower rate or a longer warm-up would help; look for odd rows.",
                step=step, times=f"{norm / max(usual, 1e-12):,.0f}", norm=f"{norm:.3g}", clip=f"{clip:g}",
            )
        )  # fmt: skip

    def _notice_unmoved(self, loss: float, state: Any) -> None:
        """Say once, in the middle of the run, when the loss is where it was at the start."""
        self._losses.append(loss)
        if (
            self._judged
            or not self._loss_should_fall
            or len(self._losses) < FEWEST_LOSSES
            or state.global_step < state.max_steps / 2
        ):
            return
        self._judged = True
        quarter = len(self._losses) // 4
        first, last = (statistics.fmean(part) for part in (self._losses[:quarter], self._losses[-quarter:]))
        if first > LOSS_FLOOR and first - last < UNMOVED * first:
            self._warn(
                later(
                    "The loss has not moved in {step} steps ({first}, now {last}). A higher rate, more epochs, or more "
                    "weights that train would help; or the base knows these rows already.",
                    step=state.global_step, first=f"{first:.3f}", last=f"{last:.3f}",
                )
            )  # fmt: skip

    def _turned(self) -> dict[str, float]:
        """Return how far an OFT adapter has turned, and say once when that is far."""
        if self._rotations is None:
            return {}
        norm = self._rotations.max_q_norm()
        if norm > oft.LARGE_Q_NORM and not self._turned_far:
            self._turned_far = True
            degrees = round(math.degrees(2 * math.atan(norm)))
            self._log.append(
                events.Log(
                    level="warning",
                    text=later(
                        "A block of the adapter has turned by {degrees} degrees (max_q_norm {norm}): far from the base. "
                        "A lower rate or fewer epochs would forget less.",
                        degrees=degrees, norm=f"{norm:.2f}",
                    ),
                )
            )  # fmt: skip
        return {"max_q_norm": round(norm, 6)}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any) -> None:
        began_s = time.monotonic()
        metrics = metrics or {}
        self._refuse_no_number(metrics.get("eval_loss"), state.global_step)
        loss = _number(metrics.get("eval_loss"))
        if loss is not None:
            known = {k.removeprefix("eval_"): v for k, x in metrics.items() if k not in _KNOWN
                     and (v := _number(x)) is not None}  # fmt: skip
            self._log.append(events.Eval(step=state.global_step, loss=loss, metrics=known))
            self._notice(loss)
            self._notice_chosen(metrics, "eval_")
            self._stop_early(state, control)
            self._stop_forgetting(state, control)
        self.write_samples(state.global_step)
        self._pause_s += time.monotonic() - began_s + float(metrics.get("eval_runtime") or 0)

    def _stop_early(self, state: Any, control: Any) -> None:
        """End the training when the held-out loss has not fallen for `patience` evaluations, and say so. Counted from
        the trainer's own history, which a checkpoint keeps: a resumed run goes on counting."""
        usual = [one for one in state.log_history if one["step"] not in self._early_looks]
        losses = [(one["eval_loss"], one["step"]) for one in usual if "eval_loss" in one]
        since = early_stop(losses, self._patience)
        if since is None or state.global_step >= state.max_steps:
            return
        best, step = min(losses)
        self._end(
            control,
            later(
                "Stopped early, after step {step} of {total}: the held-out loss has not fallen for {n} evaluations. "
                "It was lowest at step {best_step} ({best}) and is {last} now.",
                step=state.global_step, total=state.max_steps, n=since, best_step=step, best=f"{best:.4f}",
                last=f"{losses[-1][0]:.4f}",
            ),
        )  # fmt: skip

    def _end(self, control: Any, why: Any) -> None:
        """End the training after this step, and say why."""
        control.should_training_stop = True
        self._log.append(events.Log(level="result", text=why))

    def _stop_forgetting(self, state: Any, control: Any) -> None:
        """End the training when it has forgotten more than it may and is not coming back, and say so. Counted from the
        trainer's own history, as above."""
        watched = self._watched
        if watched is None or control.should_training_stop or state.global_step >= state.max_steps:
            return
        rises = watched.rises([one for one in state.log_history if one["step"] not in self._early_looks])
        if not watched.runs_away(rises):
            return
        self._end(
            control,
            later(
                "Stopped after step {step} of {total}: it has forgotten more than it may at two evaluations in a row, "
                "and is not coming back. General text is {rise} nats per token worse than at the start; the limit is "
                "{limit}.",
                step=state.global_step, total=state.max_steps, rise=f"{rises[-1]:.3f}", limit=f"{watched.limit:.3g}",
            ),
        )  # fmt: skip

    def _notice(self, eval_loss: float) -> None:
        """Say in words when the held-out loss rises while the training loss falls, twice in a row."""
        best, train_then, since = self._best
        if eval_loss < best:
            self._best = (eval_loss, self._train_loss, 0)
            return
        self._best = (best, train_then, since + 1)
        if since + 1 >= 2 and eval_loss > RISEN * best and self._train_loss < train_then and not self._warned:
            self._warned = True
            self._log.append(
                events.Log(
                    level="warning",
                    text=later(
                        "The held-out loss has been rising while the training loss falls: the model is beginning to "
                        "learn the rows by heart. Fewer epochs, more data or a lower rate would help."
                    ),
                )
            )

    def _notice_chosen(self, metrics: dict[str, Any], prefix: str = "") -> None:
        """Say once in words when chosen answers have become clearly less likely than before the run."""
        lost = chosen_fell(metrics, self._beta, prefix) if self._beta else None
        if lost is None:
            return
        self._beta = None  # once is enough
        self._log.append(
            events.Log(
                level="warning",
                text=later(
                    "The chosen answers are becoming less likely too: {lost} nats each since the start. The model "
                    "learns what to avoid, not what to say. A lower rate, fewer epochs, a higher beta, or SFT on the "
                    "chosen answers first would help.",
                    lost=f"{lost:.1f}",
                ),
            )
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved_s = time.monotonic()
        path = f"checkpoints/checkpoint-{state.global_step}"
        self._log.append(events.Saved(step=state.global_step, path=path, what="checkpoint"))

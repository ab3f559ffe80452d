"""A training from its base to its scores: load, prepare, train, save, and ask base and tuned model the same.

The training comes first: nobody has to wait for the scores of a base to see the first step.

Imported once the backend is chosen: Unsloth rewrites the libraries that this brings in.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import transformers

from engine import events
from engine.estimate import phases
from engine.forgetting import foresight
from engine.models import bases
from engine.plan import plans
from engine.plan import steps as plan_steps
from engine.runs import checkpoints
from engine.spec import counts
from engine.train import (
    adapters,
    allocator,
    backend,
    best,
    export,
    keep,
    load,
    moved,
    objectives,
    precision,
    probe,
    ranks,
    rows,
    saved,
    watch,
)  # fmt: skip
from engine.train.base_again import BaseAgain
from engine.train.callback import EventCallback
from engine.train.objectives import common
from engine.train.run import Run
from engine.train.scoring import check, divergence, keys, on_the_way, scores
from engine.train.scoring.scores import Side
from engine.words import later

EXIT_FINISHED, EXIT_FAILED, EXIT_STOPPED = 0, 1, 3


class Trained(NamedTuple):
    """What is left when the trainer has ended, and what it took."""

    trainer: Any
    callback: EventCallback
    tried: probe.Probe
    peak_bytes: int
    start: dict[str, int]


def carry_out(run: Run) -> int:
    """Carry out a training, or a memory probe, and return the exit status. Raises what goes wrong."""
    baseline_bytes = probe.held_bytes()
    lines = _lines(run)
    run.told.expect(_phases(run), lines)
    asked = _prepare(run)
    stopped = run.stop.asked() and (
        (run.spec.train.replay_share and not run.rows.replay)
        or (not ranks.launched() and checkpoints.last_checkpoint(run.run_dir) is None)
    )
    if ranks.any_of(bool(stopped)):  # the stop may have come when one process had its rows and another had not
        return _stopped(run, 0)

    run.told.begin("training")
    # Reading and writing rows draws random numbers, unless they were there already: the seed counts from here.
    transformers.set_seed(run.spec.train.seed)
    prepared = _adapt(run)
    trained = _train(run, prepared, asked, baseline_bytes, sum(line.likely_s for line in lines))
    if run.only_probes:
        run.log.append(events.Finished(step=0))
        return EXIT_FINISHED
    state = trained.trainer.state
    if trained.callback.stopped and state.global_step < state.max_steps:
        return _stopped(run, state.global_step)
    if (kept := best.kept(trained.trainer)) is not None:
        run.log.append(kept)
    if not ranks.first():
        return EXIT_FINISHED
    if (nothing := moved.unmoved(trained.start, prepared.model, state.log_history)) is not None:
        run.log.append(nothing)
    foresight.keep(run.run_dir, run.spec)
    base_s = _save_and_score(run, trained, asked)
    if run.stop.asked():
        return _stopped(run, state.global_step)
    # What was made is saved whole; the checkpoints have done their work.
    shutil.rmtree(run.run_dir / "checkpoints", ignore_errors=True)
    shutil.rmtree(run.run_dir / "cache", ignore_errors=True)
    keep.forget(run)
    if not ranks.launched():  # estimates are for one process
        probe.record(
            run, trained.tried, trained.trainer, baseline_bytes=baseline_bytes, peak_bytes=trained.peak_bytes,
            step_s=trained.callback.step_s, base_s=base_s, whole=run.attempt == 1 and not _points(run),
        )  # fmt: skip
    run.log.append(events.Finished(step=state.global_step, moved=nothing is None))
    return EXIT_FINISHED


def _stopped(run: Run, step: int) -> int:
    run.log.append(events.Stopped(step=step, resumable=True))
    return EXIT_STOPPED


def _phases(run: Run) -> list[str]:
    """Return what this run does, for the words about what comes next."""
    writes = run.objective.replays and run.spec.train.replay_share and not run.spec.train.replay_data
    found = ["loading", *(["replay"] if writes and not bases.describe(run.spec.base.ref, run.workspace).is_toy else [])]
    return [*found, "training", *([] if run.only_probes else ["saving", "evaluating"])]


def _lines(run: Run) -> Sequence[phases.Line]:
    """Return what the estimate of this run says of its phases; nothing where there is none."""
    if run.only_probes:
        return []
    with suppress(Exception):  # no reason not to train
        time = plans.of_spec(run.workspace, run.spec).time
        return () if time is None else time.lines
    return []


def _prepare(run: Run) -> list[scores.Question]:
    """Load the base and let the objective make of it and of the rows what it trains; return what will be asked."""
    run.told.begin("loading", "model")
    with run.told.weights():
        loaded = load.load(run.spec, run.workspace, run.chosen)
    run.told.begin("loading", "rows")
    run.model, run.tokenizer, run.base = loaded.model, loaded.tokenizer, loaded.base
    objective = objectives.of(run.spec.objective)
    objective.prepare(run)
    rows.refuse_rowless(run.rows, run.tokenizer, load.embedded(run.model))
    for note in [*loaded.notes, *run.rows.notes]:
        run.log.append(events.Log(text=note))
    for note in run.rows.about:
        run.log.append(events.Log(level="scores", text=note))
    if run.only_probes:
        return []
    general = [] if run.objective.is_judge else scores.general(run.spec, run.workspace, run.base)
    return [*general, *objective.questions(run)]


def _adapt(run: Run) -> adapters.Prepared:
    """Freeze and wrap the model, and say how much of it trains."""
    prepared = adapters.prepare(run.model, run.spec, run.chosen)
    share = 100 * prepared.trainable / prepared.total
    figures = {"trainable": f"{prepared.trainable:,}", "total": f"{prepared.total:,}", "share": f"{share:.2f}"}
    run.log.append(events.Log(text=later("{trainable} of {total} weights train ({share} %).", **figures)))
    for note in prepared.notes:
        run.log.append(events.Log(text=note))
    return prepared


def _points(run: Run) -> int:
    """Return at how many points on its way the run is scored."""
    return run.spec.evaluate.along if run.objective.is_scored_on_its_way and not run.only_probes else 0


def _listener(
    run: Run, prepared: adapters.Prepared, asked: list[scores.Question], watched: watch.Watch | None, steps: int
) -> EventCallback:
    """Return what writes the events of the training, its samples and its points on the way."""
    objective = objectives.of(run.spec.objective)

    def write_samples(step: int) -> None:
        if not ranks.first():
            return
        was_training = prepared.model.training
        prepared.model.eval()
        shown = objective.samples(run, prepared.model)
        backend.back_to_training(prepared.model, was_training)
        for prompt, text in shown:
            run.log.append(events.Sample(step=step, prompt=prompt[:500], text=text[:500]))

    def score_point(step: int) -> None:
        if not ranks.first():
            return
        was_training = prepared.model.training
        on_the_way.score(run, prepared.model, asked, step)
        backend.back_to_training(prepared.model, was_training)
        run.told.begin("training")

    points = _points(run)
    return EventCallback(
        run.log, run.stop, write_samples, run.spec.train.epochs if run.rows.replay else 1.0,
        rotations=prepared.rotations, patience=run.spec.train.early_stopping,
        score_at=(points, score_point) if points and asked else None, loss_should_fall=run.objective.loss_falls,
        watched=watched, early_looks=counts.early_looks(run.spec.train, steps),
    )  # fmt: skip


def _train(
    run: Run, prepared: adapters.Prepared, asked: list[scores.Question], baseline_bytes: int, expected_s: float
) -> Trained:  # fmt: skip
    """Train from the last whole checkpoint on, or try the longest batch alone; tell what it took."""
    whole = checkpoints.last_checkpoint(run.run_dir)
    watched = watch.begin(run, prepared.model, expected_s)  # no checkpoint is read yet: these are the first weights
    callback = _listener(run, prepared, asked, watched, _steps(run))
    if whole is not None:
        run.log.append(events.Log(text=later("Going on from {checkpoint}.", checkpoint=whole.name)))
    elif not run.only_probes:
        run.told.begin("training", "samples")
        callback.write_samples(0)
    on_the_way.forget_after(run.run_dir, checkpoints.step_of(whole) if whole is not None else 0)
    trainer = _trainer(run, prepared.model, callback, watched)
    tried, meter = probe.Probe(run, prepared.rotations), probe.Meter()
    tried.watch(trainer)
    peak_bytes, start = 0, {} if run.only_probes else moved.fingerprint(prepared.model)
    try:
        trainer.train(resume_from_checkpoint=str(whole) if whole is not None else None)
    except probe.ProbeOnly:
        peak_bytes = tried.peak_bytes
    else:
        peak_bytes = max(tried.peak_bytes, meter.peak_bytes())
    if tried.tokens:  # no step was left where a checkpoint was the last of its run
        run.log.append(
            events.Measured(
                peak_bytes=peak_bytes,
                baseline_bytes=baseline_bytes,
                step_s=callback.step_s,
                longest_tokens=tried.tokens,
                estimated_bytes=probe.estimate(run, tried.tokens),
            )
        )
    return Trained(trainer, callback, tried, peak_bytes, start)


def _counted(run: Run) -> tuple[Any, int, list[int] | None]:
    """Return what a run's steps are counted by: its settings, its rows, and the general rows of each epoch."""
    asked = run.spec.train if run.rows.replay else msgspec.structs.replace(run.spec.train, replay_share=0.0)
    return asked, len(run.rows.train), [len(general) for general in run.rows.replay] or None


def _steps(run: Run) -> int:
    return counts.optimizer_steps(*_counted(run))


def _trainer(run: Run, model: Any, callback: EventCallback, watched: watch.Watch | None) -> Any:
    """Return the objective's trainer on the adapted model."""
    objective = objectives.of(run.spec.objective)
    steps = _steps(run)
    if ranks.first() and not run.only_probes:
        for note in plan_steps.notes(*_counted(run)):
            run.log.append(events.Log(text=note))
    shared = common.arguments(
        run.spec, run.run_dir, steps, evaluates=bool(run.rows.evaluate), device=run.device, chosen=run.chosen,
        by_watch=watched is not None and watched.chooses,
    )  # fmt: skip
    # What trains whole is held as it was asked.
    with adapters.kept_whole(model) if run.spec.adapter != "full" else nullcontext():
        trainer = objective.trainer(run, objective.config(run, shared), model, callback)
    trainer.watched = watched
    return trainer


def _save_and_score(run: Run, trained: Trained, asked: list[scores.Question]) -> float:
    """Save what was made, whole, and ask it and its base the same; return the seconds that the base took."""
    run.told.begin("saving")
    trainer, step = trained.trainer, trained.trainer.state.global_step
    # without the number format of training, in which the base was not asked
    tuned = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    what = "model" if run.spec.adapter == "full" else "adapter"
    save(tuned, run.tokenizer, run.run_dir, what)
    export.write_parity(run.run_dir, run.run_dir / what, run.tokenizer, run.rows.scored)
    run.log.append(events.Saved(step=step, path=what, what=what))
    tuned.zero_grad(set_to_none=True)
    allocator.give_back()
    precision.multiply_fp32_faster(run.chosen)
    base = BaseAgain(run, tuned, trainer)
    base_s = _score(run, tuned, base, asked) if asked else 0.0
    if not run.objective.is_judge and not run.stop.asked():
        divergence.report(run, tuned, base.lent)
    return base_s


def _score(run: Run, tuned: Any, base: BaseAgain, asked: list[scores.Question]) -> float:
    """Ask the base and what was made of it, everything or as much as fits; return the seconds that the base took."""
    budget_s = run.spec.evaluate.budget_s
    form = msgspec.structs.replace(
        run.spec, adapter_args=msgspec.structs.replace(run.spec.adapter_args, continues=False)
    )
    held = [load.held(one, run.workspace, run.chosen) for one in (run.spec, form)]
    models = [run.base, bases.describe(f"run:{run.run_dir.name}", run.workspace)]
    by = keys.BY_UNSLOTH if run.chosen.backend == "unsloth" else ""
    names = [keys.model(one, run.workspace, how + by) for one, how in zip(models, held, strict=True)]
    sides = [
        Side("base", names[0], run.tokenizer, base.lent),
        Side("tuned", names[1], run.tokenizer, lambda: nullcontext(tuned), shares=budget_s is not None),
    ]
    if budget_s is not None:
        check.carry_out(run, sides, asked, budget_s)
    elif scores.ask_all(run, sides[0], asked):
        scores.ask_all(run, sides[1], asked)
    return sides[0].spent_s


def save(model: Any, tokenizer: Any, run_dir: Path, what: str) -> None:
    """Write the adapter or model beside its place, then rename, so that what is there is whole."""
    partial, target = run_dir / f"{what}.partial", run_dir / what
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        saved.check(partial, model)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk: room for the reason
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)

"""A training from its base to its scores: load, prepare, score the base, train, save, score again.

Imported once the backend is chosen: Unsloth rewrites the libraries that this brings in.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import transformers

from engine import events
from engine.plan import steps as plan_steps
from engine.report import items
from engine.runs import checkpoints
from engine.spec import counts
from engine.train import adapters, backend, best, export, load, moved, objectives, probe, ranks, rows, saved
from engine.train.callback import EventCallback
from engine.train.objectives import common
from engine.train.run import Run
from engine.train.scoring import divergence, scores
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
    asked = _prepare(run)
    if run.stop.asked() and run.spec.train.replay_share and not run.rows.replay:
        return _stopped(run, 0)
    began_s = time.monotonic()
    _score_base(run, asked)
    base_s = time.monotonic() - began_s
    if run.stop.asked() and not ranks.launched() and checkpoints.last_checkpoint(run.run_dir) is None:
        return _stopped(run, 0)

    run.log.append(events.Phase(phase="training"))
    # Scoring draws random numbers, unless the base's scores were there already: the seed counts from here.
    transformers.set_seed(run.spec.train.seed)
    prepared = _adapt(run)
    trained = _train(run, prepared, asked, baseline_bytes)
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
    _save_and_score(run, trained, asked)
    if run.stop.asked():
        return _stopped(run, state.global_step)
    # What was made is saved whole; the checkpoints have done their work.
    shutil.rmtree(run.run_dir / "checkpoints", ignore_errors=True)
    shutil.rmtree(run.run_dir / "cache", ignore_errors=True)
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


def _prepare(run: Run) -> list[scores.Question]:
    """Load the base and let the objective make of it and of the rows what it trains; return what will be asked."""
    loaded = load.load(run.spec, run.workspace, run.chosen)
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


def _score_base(run: Run, asked: list[scores.Question]) -> None:
    if asked and ranks.first() and not run.stop.asked():
        run.log.append(events.Phase(phase="evaluating", detail="base"))
        scores.score_base(
            run.model, run.tokenizer, run.base, load.held(run.spec, run.workspace, run.chosen), asked, run.workspace,
            run.run_dir, run.log, run.stop.asked,
        )  # fmt: skip


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


def _listener(run: Run, prepared: adapters.Prepared, asked: list[scores.Question]) -> EventCallback:
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
        run.log.append(events.Phase(phase="evaluating", detail=items.at_step(step)))
        scores.score_on_the_way(prepared.model, run.tokenizer, asked, step, run.run_dir, run.log, run.stop.asked)
        backend.back_to_training(prepared.model, was_training)
        run.log.append(events.Phase(phase="training"))

    points = _points(run)
    return EventCallback(
        run.log, run.stop, write_samples, run.spec.train.epochs if run.rows.replay else 1.0,
        rotations=prepared.rotations, patience=run.spec.train.early_stopping,
        score_at=(points, score_point) if points and asked else None, loss_should_fall=run.objective.loss_falls,
    )  # fmt: skip


def _train(
    run: Run, prepared: adapters.Prepared, asked: list[scores.Question], baseline_bytes: int
) -> Trained:  # fmt: skip
    """Train from the last whole checkpoint on, or try the longest batch alone; tell what it took."""
    whole = checkpoints.last_checkpoint(run.run_dir)
    callback = _listener(run, prepared, asked)
    if whole is not None:
        run.log.append(events.Log(text=later("Going on from {checkpoint}.", checkpoint=whole.name)))
    elif not run.only_probes:
        callback.write_samples(0)
    scores.forget_points_after(run.run_dir, int(whole.name.rpartition("-")[2]) if whole is not None else 0)
    trainer = _trainer(run, prepared.model, callback)
    tried, meter = probe.Probe(run.log, prepared.rotations, only=run.only_probes), probe.Meter()
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


def _trainer(run: Run, model: Any, callback: EventCallback) -> Any:
    """Return the objective's trainer on the adapted model."""
    objective = objectives.of(run.spec.objective)
    told = run.spec.train if run.rows.replay else msgspec.structs.replace(run.spec.train, replay_share=0.0)
    steps = counts.optimizer_steps(told, len(run.rows.train))
    if ranks.first() and not run.only_probes:
        for note in plan_steps.notes(told, len(run.rows.train)):
            run.log.append(events.Log(text=note))
    shared = common.arguments(
        run.spec, run.run_dir, steps, evaluates=bool(run.rows.evaluate), device=run.device, chosen=run.chosen
    )
    with adapters.kept_whole(model):
        return objective.trainer(run, objective.config(run, shared), model, callback)


def _save_and_score(run: Run, trained: Trained, asked: list[scores.Question]) -> None:
    """Save what was made, whole, and ask it what its base was asked."""
    run.log.append(events.Phase(phase="saving"))
    step = trained.trainer.state.global_step
    tuned = trained.trainer.accelerator.unwrap_model(trained.trainer.model)
    what = "model" if run.spec.adapter == "full" else "adapter"
    _save(tuned, run.tokenizer, run.run_dir, what)
    export.write_parity(run.run_dir, run.run_dir / what, run.tokenizer, run.rows.scored)
    run.log.append(events.Saved(step=step, path=what, what=what))
    if asked:
        run.log.append(events.Phase(phase="evaluating", detail="tuned"))
        scores.score_tuned(tuned, run.tokenizer, asked, run.run_dir, run.log, run.stop.asked)
    if not run.objective.is_judge and not run.stop.asked():
        divergence.report(run, trained.trainer, tuned)


def _save(model: Any, tokenizer: Any, run_dir: Path, what: str) -> None:
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

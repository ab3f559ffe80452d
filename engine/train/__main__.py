"""python -m engine.train RUN_DIR: load, score the base, train, save, score again. One run, one process."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine import events
from engine.report import items
from engine.runs import checkpoints as runs_checkpoints
from engine.runs import failures, store
from engine.spec import counts as spec_counts
from engine.spec import schema
from engine.train import ranks
from engine.words import later
from engine.workspace import Workspace

EXIT_FINISHED, EXIT_FAILED, EXIT_STOPPED = 0, 1, 3


def _die_with_parent() -> None:
    """Ask Linux to end this process when its supervisor dies, since the device lock goes with the supervisor
    (prctl(2), PR_SET_PDEATHSIG = 1). Elsewhere the supervisor's end is seen by the reader alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        supervisor = os.environ.get("TUNEBOOK_SUPERVISOR")
        if supervisor is not None and os.getppid() != int(supervisor):
            os.kill(os.getpid(), signal.SIGKILL)  # it died before we could ask


def _save(model: Any, tokenizer: Any, run_dir: Path, what: str) -> None:
    """Write the adapter or model beside its place, then rename, so that what is there is whole."""
    partial, target = run_dir / f"{what}.partial", run_dir / what
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk: room for the reason
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _with_remedy(failure: events.Failed, run_dir: Path) -> events.Failed:
    """Name the settings that would fit when memory ran out; whatever else is wrong by now must not hide the failure."""
    if failure.kind == "oom":
        with suppress(Exception):
            from engine.plan import takes

            run_spec = schema.decode((run_dir / "spec.json").read_bytes())
            return takes.with_remedy(failure, run_spec, Workspace(run_dir.parents[1]))
    return failure


def run(run_dir: Path, log: events.EventLog) -> int:
    """Carry out the spec of a run folder. Returns the exit status; raises what goes wrong."""
    import torch

    from engine.plan import takes  # noqa: F401 - while there is memory: it says what would fit when there is none left
    from engine.train import backend

    run_spec = schema.decode((run_dir / "spec.json").read_bytes())
    workspace = Workspace(run_dir.parents[1])
    together = run_spec.machine.devices if ranks.launched() else 1
    torch.set_num_threads(max(1, run_spec.train.threads // together))
    where = backend.here().name
    chosen = backend.decide(run_spec, workspace)
    extra = {}
    if chosen.backend == "unsloth":  # before the libraries it rewrites
        extra["unsloth"] = backend.import_unsloth(run_dir)
    ranks.join(cuda=where == "cuda")

    import numpy
    import transformers
    from transformers.utils import logging as transformers_logging

    # Same seed, same spec, same machine: same losses. Kernels without a deterministic twin only warn.
    torch.use_deterministic_algorithms(not torch.cuda.is_available(), warn_only=True)
    # That mode also fills every new tensor, a debugging aid that costs a pass over each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    transformers_logging.set_verbosity_error()

    import peft
    import trl

    from engine.train import adapters, export, load, probe, replay, rows
    from engine.train.callback import EventCallback, StopRequest
    from engine.train.objectives import arguments, dpo, kto, ppo, preference, reward, sft
    from engine.train.scoring import divergence, scores, written

    stop = StopRequest(run_dir)
    found, _ = events.read(run_dir)
    attempt = 1 + sum(isinstance(event, events.Started) for event in found)
    libraries = {"torch": torch, "transformers": transformers, "trl": trl, "peft": peft, "numpy": numpy, **extra}
    versions = {"python": sys.version.split()[0], **{n: str(m.__version__) for n, m in libraries.items()}}
    log.append(
        events.Started(
            attempt=attempt,
            versions=versions,
            device=where,
            backend=chosen.backend,
            reason=later(
                "{why}; {backend}: {because}",
                why=backend.device_reason(),
                backend=chosen.backend,
                because=chosen.backend_reason,
            ),
            choices=list(chosen.why),
        )
    )

    if run_spec.kind == "evaluate":
        from engine.train.scoring import evaluation

        return evaluation.run(run_spec, workspace, run_dir, log, stop.asked)
    baseline_bytes = probe.held_bytes()
    loaded = load.load(run_spec, workspace, chosen)
    model, tokenizer = loaded.model, loaded.tokenizer
    objective = run_spec.objective
    how: Any = {"sft": sft, "dpo": dpo, "kto": kto, "reward": reward, "ppo": ppo}[objective]

    def generate(count: int) -> list[Any]:
        log.append(events.Phase(phase="loading", detail="replay"))
        with ranks.one_after_the_first():  # which writes them; the others read the same
            return replay.from_base(model, tokenizer, loaded.base, run_spec.quantize, count, workspace, stop.asked)

    if objective == "sft":
        data = rows.prepare(run_spec, workspace, tokenizer, generate)
    else:
        data = (ppo if objective == "ppo" else preference).prepare(run_spec, workspace, tokenizer)
    judge = ppo.load_judge(run_spec, workspace, tokenizer) if objective == "ppo" else None
    if stop.asked() and run_spec.train.replay_share and not data.replay:
        log.append(events.Stopped(step=0, resumable=True))
        return EXIT_STOPPED
    if objective == "reward":
        model = reward.judge(model, tokenizer, run_spec.train.seed)
    for note in [*loaded.notes, *data.notes]:
        log.append(events.Log(text=note))
    judged = None if judge is None else ppo.question(run_spec, data.scored, judge, workspace)
    only_probe = run_spec.kind == "probe"
    asked = [] if only_probe else scores.questions(run_spec, data.scored, stop.asked, workspace, loaded.base, judged)

    began_s = time.monotonic()
    if asked and ranks.first() and not stop.asked():
        log.append(events.Phase(phase="evaluating", detail="base"))
        scores.score_base(model, tokenizer, loaded.base, run_spec.quantize, asked, workspace, run_dir, log, stop.asked)

    base_s = time.monotonic() - began_s

    log.append(events.Phase(phase="training"))
    # Scoring draws random numbers, unless the base's scores were there already: the seed counts from here.
    transformers.set_seed(run_spec.train.seed)
    prepared = adapters.prepare(model, run_spec, chosen)
    share = 100 * prepared.trainable / prepared.total
    counts = {"trainable": f"{prepared.trainable:,}", "total": f"{prepared.total:,}", "share": f"{share:.2f}"}
    log.append(events.Log(text=later("{trainable} of {total} weights train ({share} %).", **counts)))
    for note in prepared.notes:
        log.append(events.Log(text=note))

    def write_samples(step: int) -> None:
        if not ranks.first():
            return
        was_training = prepared.model.training
        prepared.model.eval()
        if objective == "reward":
            answers = reward.samples(prepared.model, tokenizer, data.evaluate or data.train)
        else:
            texts = written.answer(prepared.model, tokenizer, [rendered for _, rendered in data.prompts], 48)
            answers = [(shown, text) for (shown, _), text in zip(data.prompts, texts, strict=True)]
        backend.back_to_training(prepared.model, was_training)
        for shown, text in answers:
            log.append(events.Sample(step=step, prompt=shown[:500], text=text[:500]))

    checkpoints = run_dir / "checkpoints"
    whole = runs_checkpoints.last_checkpoint(run_dir)
    checkpoint = str(whole) if whole is not None else None
    if checkpoint is None:
        if not only_probe:
            write_samples(0)
    else:
        log.append(events.Log(text=later("Going on from {checkpoint}.", checkpoint=Path(checkpoint).name)))
    epochs_per_pass = run_spec.train.epochs if data.replay else 1.0
    beta = run_spec.objective_args.beta if objective == "dpo" else None

    def score_point(step: int) -> None:
        if not ranks.first():
            return
        was_training = prepared.model.training
        log.append(events.Phase(phase="evaluating", detail=items.at_step(step)))
        scores.score_on_the_way(prepared.model, tokenizer, asked, step, run_dir, log, stop.asked)
        backend.back_to_training(prepared.model, was_training)
        log.append(events.Phase(phase="training"))

    scores.forget_points_after(run_dir, int(whole.name.rpartition("-")[2]) if whole is not None else 0)
    points = 0 if only_probe or objective in ("reward", "ppo") else run_spec.evaluate.along
    callback = EventCallback(
        log, stop, write_samples, epochs_per_pass, beta=beta, rotations=prepared.rotations,
        patience=run_spec.train.early_stopping, score_at=(points, score_point) if points and asked else None,
    )  # fmt: skip
    callback.loss_should_fall = objective != "ppo"
    train_rows = sft.one_pass(run_spec, data.train, data.replay) if data.replay else data.train
    steps = spec_counts.optimizer_steps(run_spec.train, len(data.train))
    # KTO holds an answer against those of other questions: with a single row there is none.
    evaluates = len(data.evaluate) > (1 if objective == "kto" else 0)
    common = arguments.common(run_spec, run_dir, steps, evaluates=evaluates, cuda=where == "cuda", chosen=chosen)
    common["use_cpu"] = where == "cpu"
    if objective == "sft" and chosen.padding_free is not None:
        common["padding_free"] = chosen.padding_free
    args = how.config(run_spec, common)
    listening = [callback] if judge is None else [callback, judge]
    trainer = how.trainer(run_spec, args, prepared.model, tokenizer, train_rows, data.evaluate, *listening)
    adapters.undo_half_precision(prepared.model)
    if objective != "ppo":  # whose loop writes its own checkpoints so, and ends by its own count
        arguments.save_whole(trainer)
    tried = probe.Probe(log, prepared.rotations, only=only_probe)
    peak_bytes = 0
    if checkpoint is None or objective == "ppo" or not arguments.take_trained(trainer, checkpoint):
        tried.watch(trainer)
        meter = probe.Meter()
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except probe.ProbeOnly:
            peak_bytes = tried.peak_bytes
        else:
            peak_bytes = max(tried.peak_bytes, meter.peak_bytes())
        log.append(
            events.Measured(
                peak_bytes=peak_bytes,
                baseline_bytes=baseline_bytes,
                step_s=callback.step_s,
                longest_tokens=tried.tokens,
                estimated_bytes=probe.estimate(run_spec, loaded.base.shape, tried.tokens, where),
            )
        )
    if only_probe:
        log.append(events.Finished(step=0))
        return EXIT_FINISHED
    step = trainer.state.global_step
    if callback.stopped and step < trainer.state.max_steps:
        log.append(events.Stopped(step=step, resumable=True))
        return EXIT_STOPPED
    if (kept := arguments.kept_best(trainer)) is not None:
        log.append(events.Log(level="result", text=kept))

    if not ranks.first():
        return EXIT_FINISHED
    log.append(events.Phase(phase="saving"))
    tuned = trainer.accelerator.unwrap_model(trainer.model)
    what = "model" if run_spec.adapter == "full" else "adapter"
    _save(tuned, tokenizer, run_dir, what)
    export.write_parity(run_dir, run_dir / what, tokenizer, data.scored)
    log.append(events.Saved(step=step, path=what, what=what))
    if asked:
        log.append(events.Phase(phase="evaluating", detail="tuned"))
        scores.score_tuned(tuned, tokenizer, asked, run_dir, log, stop.asked)
    if objective != "reward" and not stop.asked():
        divergence.report(trainer, tuned, tokenizer, data.scored, run_spec, workspace, chosen, run_dir, log, stop.asked)
    if stop.asked():
        log.append(events.Stopped(step=step, resumable=True))
        return EXIT_STOPPED
    # What was made is saved whole; the checkpoints have done their work.
    shutil.rmtree(checkpoints, ignore_errors=True)
    shutil.rmtree(run_dir / "cache", ignore_errors=True)
    if not ranks.launched():  # estimates are for one process
        probe.record(
            workspace, run_dir.name, run_spec, loaded.base.shape, tried, trainer,
            baseline_bytes=baseline_bytes, peak_bytes=peak_bytes, step_s=callback.step_s, base_s=base_s,
            whole=attempt == 1 and not points,
        )  # fmt: skip
    log.append(events.Finished(step=step))
    return EXIT_FINISHED


def main() -> int:
    _die_with_parent()
    run_dir = Path(sys.argv[1]).resolve()
    asked = schema.decode((run_dir / "spec.json").read_bytes())
    if asked.kind == "train" and asked.machine.devices > 1 and not ranks.launched():
        ranks.launch(run_dir, asked.machine.devices)
    log: Any = events.EventLog(run_dir) if ranks.first() else ranks.Silence()
    try:
        return run(run_dir, log)
    except BaseException as error:
        # The reason first: on a full disk it has the reserve to go to, and the trace of where it was has nothing.
        with suppress(OSError):  # else the supervisor writes the reason once the disk has room
            log.append(_with_remedy(failures.from_exception(error), run_dir))
        with suppress(OSError):
            traceback.print_exception(error)
        return EXIT_FAILED
    finally:
        if ranks.first():
            with suppress(OSError):  # it is rebuilt from the events
                store.write_summary(run_dir)


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())  # libraries leave threads behind that can hang a normal exit; everything is on disk by now

"""python -m engine.train RUN_DIR: one run, one process. What it is to do stands in spec.json."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine import events, processes
from engine.runs import checkpoints, failures, store
from engine.spec import RunSpec, counts, schema
from engine.train import allocator, libraries, ranks, waiting
from engine.words import Problem, later
from engine.workspace import Workspace

EXIT_FAILED, EXIT_STOPPED = 1, 3


def _with_remedy(failure: events.Failed, run_dir: Path) -> events.Failed:
    """Name the settings that would fit when memory ran out; whatever else is wrong by now must not hide the failure."""
    if failure.kind == "oom":
        with suppress(Exception):
            from engine.plan import plans

            run_spec = schema.decode((run_dir / "spec.json").read_bytes())
            return plans.with_remedy(failure, run_spec, Workspace(run_dir.parents[1]))
    return failure


def run(run_dir: Path, log: events.EventLog) -> int:
    """Carry out the spec of a run folder. Returns the exit status; raises what goes wrong."""
    run_spec = schema.decode((run_dir / "spec.json").read_bytes())
    ranks.take_environment(run_dir, run_spec)
    import torch

    from engine.plan import plans  # noqa: F401 - while there is memory: it says what would fit when there is none left
    from engine.train import backend, precision

    workspace = Workspace(run_dir.parents[1])
    together = run_spec.machine.devices if ranks.launched() else 1
    torch.set_num_threads(max(1, run_spec.train.threads // together))
    device = backend.here().name  # first: a card that torch does not compute on ends the run
    precision.settle(run_spec, workspace)
    chosen = backend.decide(run_spec, workspace)
    allocator.settle(chosen.blocks)
    # before the libraries it rewrites
    unsloth = {"unsloth": backend.import_unsloth(run_dir)} if chosen.backend == "unsloth" else {}
    if not ranks.wait_for_machines(run_dir, run_spec, (run_dir / "stop").exists):
        return _stopped(run_dir, log)
    ranks.join(cuda=device == "cuda")
    quantizers = chosen.backend == "unsloth" or libraries.wants_quantizers(run_spec, workspace, chosen.optimizer)
    if quantizers and libraries.without_quantizers():
        waiting.start_afresh(run_dir)
    found = _settled_libraries(quantizers=quantizers) | unsloth

    from engine.train.callback import StopRequest
    from engine.train.run import Run

    earlier, _ = events.read(run_dir)
    one = Run(run_spec, workspace, run_dir, log, StopRequest(run_dir), device, chosen)
    one.attempt += sum(isinstance(event, events.Started) for event in earlier)
    versions = {"python": sys.version.split()[0], **{n: str(m.__version__) for n, m in found.items()}}
    log.append(
        events.Started(
            attempt=one.attempt,
            versions=versions,
            device=device,
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
    return _carried_out(one)


def _carried_out(one: Any) -> int:
    """Do what the kind of a run asks for, and return the exit status. Raises what goes wrong."""
    from engine.train import training
    from engine.train.scoring import evaluation

    if one.spec.kind == "adopted":
        from engine.train import adopted

        return adopted.carry_out(one)
    if one.spec.kind == "recover":
        from engine.train import recover

        return recover.carry_out(one)
    return evaluation.run(one) if one.spec.kind == "evaluate" else training.carry_out(one)


def _stopped(run_dir: Path, log: events.EventLog) -> int:
    """End a run that was stopped before it had begun, or gone on."""
    log.append(events.Stopped(step=checkpoints.last_step(run_dir), resumable=True))
    return EXIT_STOPPED


def _settled_libraries(*, quantizers: bool) -> dict[str, Any]:
    """Import the libraries that compute and return them. Same seed, same spec, same machine: same losses."""
    found = libraries.load(quantizers=quantizers)
    import torch
    from transformers.utils import logging as transformers_logging

    # Kernels without a deterministic twin only warn.
    torch.use_deterministic_algorithms(not torch.cuda.is_available(), warn_only=True)
    # That mode also fills every new tensor, a debugging aid that costs a pass over each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    transformers_logging.set_verbosity_error()
    return found


def main() -> int:
    processes.die_with_parent()
    run_dir = waiting.for_a_run() if sys.argv[1] == waiting.ASKED else Path(sys.argv[1]).resolve()
    allocator.let_segments_grow()  # in the environment of the run, which a process that waited has by now
    if not ranks.launched():
        asked: RunSpec = schema.decode((run_dir / "spec.json").read_bytes())
        if asked.kind == "train" and counts.processes(asked) > 1:
            ranks.launch(run_dir, asked)
    elif not (run_dir / "spec.json").is_file():
        print(Problem(rule="peer-no-folder", parameters={"folder": str(run_dir)}).sentence, file=sys.stderr, flush=True)
        return EXIT_FAILED
    log: Any = events.EventLog(run_dir) if ranks.first() else ranks.Silence()
    heart, failed = ranks.begin(run_dir), None
    try:
        return run(run_dir, log)
    except BaseException as error:
        # The reason first: on a full disk it has the reserve to go to, and the trace of where it was has nothing.
        failed = failures.from_exception(error)
        with suppress(OSError):  # else the supervisor writes the reason once the disk has room
            told = failed if isinstance(error, failures.RunRefused) else ranks.reason(run_dir, failed)
            log.append(_with_remedy(told, run_dir))
        with suppress(OSError):
            traceback.print_exception(error)
        return EXIT_FAILED
    finally:
        if heart is not None:
            heart.end(failed)
        if ranks.first():
            with suppress(OSError):  # it is rebuilt from the events
                store.write_summary(run_dir)


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())  # libraries leave threads behind that can hang a normal exit; everything is on disk by now

"""Take a finished run elsewhere: as a zip, as one whole model, to the hub, to llama.cpp and Ollama.

Whatever needs torch is a child process (engine/train/export.py). What takes long is done by a process of its own,
`python -m engine.export.job_runner RUN_DIR`, which tells how far it is in runs/<id>/export.json, so a page may be closed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from engine import events, limits, processes
from engine.export import artifacts, gguf, ollama
from engine.export.artifacts import MERGED, NotExportable, because, made_by, size_bytes, travels_whole, whole
from engine.export.job import STATE, Job, State, Told, memory_too_small, too_small
from engine.export.push import REPOSITORY, upload, without_token
from engine.models import bases
from engine.runs import admission, failures, lifecycle, store
from engine.spec import OBJECTIVES
from engine.words import Problem, later
from engine.workspace import Workspace, clear_scratch, find_struct, read_object, write_atomically

# What a job that is stopped has for clearing away what it has begun; then it is killed.
END_S = 6.0


def problem(workspace: Workspace, run_id: str, job: Job) -> Problem | None:
    """Return what keeps a job from starting, before anything is loaded or written."""
    run_dir = workspace.run_dir(run_id)
    if made_by(run_dir) is None:
        return artifacts.nothing_made(workspace, run_id)
    if limits.on():
        # A push would take the server's own login, a conversion runs a program from a folder that is named.
        if job.what != "merged" or job.to is not None:
            return Problem(rule="demo-export")
        try:
            limits.check_disk(workspace, size_bytes(workspace, run_id) or 0)
        except limits.OverLimit as refused:
            return refused.problems[0]
    if job.to is not None and (Path(job.to).is_file() or (Path(job.to).is_dir() and any(Path(job.to).iterdir()))):
        return Problem(rule="export-in-the-way", parameters={"folder": job.to})
    if job.what == "gguf":
        if OBJECTIVES[store.load_spec(workspace, run_id).objective].is_judge:
            return Problem(rule="export-reward-gguf")
        if (found := gguf.problem(job)) is not None:
            return found
    if job.what == "ask":
        made = gguf.file_of(workspace, run_id, job.quantization).is_file() and whole(workspace, run_id) is not None
        return None if made else Problem(rule="export-no-gguf")
    if job.what == "ollama":
        made = gguf.file_of(workspace, run_id, job.quantization).is_file()
        return None if made and ollama.program() else Problem(rule="export-no-ollama" if made else "export-no-gguf")
    if job.what == "push" and not REPOSITORY.fullmatch(job.repository or ""):
        return Problem(rule="export-repository", parameters={"name": (job.repository or "")[:100]})
    if job.what == "push" and job.only_adapter and travels_whole(workspace, run_id):
        return Problem(rule="export-on-run")
    needed, size = 0, size_bytes(workspace, run_id) or 0
    needed += 0 if job.only_adapter or (whole(workspace, run_id) is not None and job.to is None) else size
    needed += gguf.needed_bytes(job, size, gguf.file_of(workspace, run_id, "f16")) if job.what == "gguf" else 0
    merged = not job.only_adapter and whole(workspace, run_id) is None
    return (too_small(Path(job.to) if job.to else run_dir, needed) if needed else None) or (
        memory_too_small(_merging_bytes(workspace, run_id, job)) if merged else None
    )


def _merging_bytes(workspace: Workspace, run_id: str, job: Job) -> int:
    """Return how much main memory a merge takes: the base as it is stored, one in few bits unpacked to 16, or in 32 where
    another format is asked for; and one transformer layer in 32 bits with what lies outside of them, by which it is
    compared (engine/train/merging.py). 0 where its size is not known."""
    base = bases.describe(f"run:{run_id}", workspace)
    while base.adapter_of is not None:
        base = bases.describe(base.adapter_of, workspace)
    config = read_object(base.folder / "config.json") if base.folder is not None else {}
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    in_32 = stored == "float32" or job.dtype not in ("auto", stored)
    count, shape = base.parameters or 0, base.shape
    if shape is None or not shape.layers:
        return (4 if in_32 else 6) * count  # held in both at once
    layer = shape.layer_parameters
    outside = max(0, count - shape.layers * layer)
    return 4 * (count + layer) if in_32 else 2 * count + 4 * (outside + layer)


def run(workspace: Workspace, run_id: str, job: Job, *, token: str | None = None, told: Told | None = None) -> str:
    """Do a job to its end, telling how far it is, and return where the result lies (a path, or the hub's address).

    Raises NotExportable with what went wrong and what to do; nothing half-written is left.
    """
    found = problem(workspace, run_id, job)
    if found is not None:
        raise because(found)
    state, tell = State(job=job), told or (lambda _: None)
    run_dir = workspace.run_dir(run_id)
    if job.what == "merged" and job.to is not None:
        return str(_merge(run_dir, Path(job.to), job, state, tell))
    if job.what == "ollama":
        return _create(workspace, run_id, job, state, tell)
    if job.what == "ask":
        file, plain = (gguf.file_of(workspace, run_id, kind) for kind in (job.quantization, "f16"))
        gguf.ask(workspace, run_id, file, plain if plain.is_file() and plain != file else None, state, tell)
        return str(file)
    if job.what == "push" and job.only_adapter:
        return upload(workspace, run_id, made_by(run_dir) or run_dir, job, token, state, tell)
    folder = whole(workspace, run_id)
    if folder is None:
        folder = _merge(run_dir, run_dir / MERGED, job, state, tell)
    if job.what == "gguf":
        file = gguf.make(workspace, run_id, folder, job, state, tell)
        return _create(workspace, run_id, job, state, tell) if job.into_ollama else str(file)
    if job.what == "push":
        return upload(workspace, run_id, folder, job, token, state, tell)
    return str(folder)


def _create(workspace: Workspace, run_id: str, job: Job, state: State, tell: Told) -> str:
    """Give a run's file to Ollama and return what it is called there."""
    state.phase = "creating"
    tell(state)
    file = gguf.file_of(workspace, run_id, job.quantization)
    return ollama.create(file, ollama.name_of(workspace, run_id, job.quantization))


def _environment(workspace: Workspace, run_dir: Path) -> dict[str, str]:
    """Return the environment of the child that merges: the one of training (engine/worker.py)."""
    from engine.runs import environment

    chosen = environment.environment(run_dir, store.load_spec(workspace, run_dir.name))
    # it holds whole weights, and is soon done: freed blocks go back to the kernel (mallopt(3))
    chosen.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))
    return chosen


def _merge(run_dir: Path, target: Path, job: Job, state: State, tell: Told) -> Path:
    if target.is_dir():
        target.rmdir()  # empty, by problem()
    workspace = Workspace(run_dir.parents[1])
    with (run_dir / "export.log").open("wb") as log:
        child = processes.start(
            "engine.train.export", str(run_dir), str(target.absolute()), job.dtype,
            env=_environment(workspace, run_dir), stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    assert child.stdout is not None
    failed: events.Failed | None = None
    try:
        for line in child.stdout:
            try:
                said = json.loads(line)
            except ValueError:  # a library's own words
                continue
            if not isinstance(said, dict):
                continue
            if "phase" in said:
                state.phase = said["phase"]
                tell(state)
            if "failed" in said:
                failed = msgspec.convert(said["failed"], events.Failed)
    except BaseException:
        child.kill()
        child.wait()
        clear_scratch(target.parent)
        raise
    if child.wait() != 0 or not target.is_dir():
        clear_scratch(target.parent)  # it may have been killed
        if failed is None:
            tail = (run_dir / "export.log").read_text("utf-8", "replace")[-4000:]
            failed = failures.from_exit(child.returncode, tail)
        raise NotExportable(later("{message}; {fix}", message=failed.message, fix=failed.fix))
    return target


def start(workspace: Workspace, run_id: str, job: Job, *, token: str | None = None) -> None:
    """Let a process of its own carry out a job. The token goes there by a pipe: no file, command line or environment
    holds it. Raises NotExportable when the job cannot start or another one is under way."""
    with lifecycle.one_at_a_time(workspace):  # of two clicks one starts it
        found = problem(workspace, run_id, job)
        if found is not None:
            raise because(found)
        running = progress(workspace, run_id)
        if running is not None and not running.ended:
            raise artifacts.refused("export-busy")
        run_dir = workspace.run_dir(run_id)
        try:
            with admission.beside(workspace, run_id) as begun:
                child = processes.start(
                    "engine.export.job_runner", str(run_dir),
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                begun(child.pid)
        except limits.OverLimit as refused:
            raise because(refused.problems[0]) from None
        now_s = time.monotonic()
        state = State(job=job, process=processes.identify(child.pid), began_s=now_s, counted_from_s=now_s)
        write_atomically(run_dir / STATE, msgspec.json.encode(state))
        assert child.stdin is not None
        child.stdin.write(json.dumps({"job": msgspec.to_builtins(job), "token": token}).encode())
        child.stdin.close()


def progress(workspace: Workspace, run_id: str) -> State | None:
    """Return how far the last job of a run is, or None. One whose process is gone without a word has failed."""
    state = find_struct(workspace.run_dir(run_id) / STATE, State)
    if state is None:
        return None
    processes.reap()
    if not state.ended and not processes.alive(state.process):
        state.failure = artifacts.refused("export-killed").args[0]
    return state


def stop(workspace: Workspace, run_id: str) -> None:
    """End the job that is under way, and what it has begun to write; what is whole stays."""
    state = find_struct(workspace.run_dir(run_id) / STATE, State)
    if state is None or state.ended:
        return
    processes.end(state.process, END_S)
    for folder in (workspace.run_dir(run_id), workspace.run_dir(run_id) / "gguf"):  # it may have had to be killed
        clear_scratch(folder)
    forget(workspace, run_id)


def forget(workspace: Workspace, run_id: str) -> None:
    """Put away how the last job ended."""
    (workspace.run_dir(run_id) / STATE).unlink(missing_ok=True)


def main() -> int:
    """Carry out the job that stands on stdin."""
    limits.limit_this_process()
    run_dir = Path(sys.argv[1]).resolve()
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    job = msgspec.convert(asked["job"], Job)
    begun = find_struct(run_dir / STATE, State) or State(job=job)  # as start() has written it
    process, began_s = processes.identify(os.getpid()), begun.began_s
    last = State(job=job, process=process, began_s=began_s, counted_from_s=began_s)

    def tell(state: State) -> None:
        nonlocal last
        # what a phase loads before it counts is no measure of the rest
        same = state.phase == last.phase and bool(state.total_bytes) == bool(last.total_bytes)
        counted_s = last.counted_from_s if same else time.monotonic()
        last = msgspec.structs.replace(state, process=process, began_s=began_s, counted_from_s=counted_s)
        write_atomically(run_dir / STATE, msgspec.json.encode(last))

    try:
        made = run(Workspace(run_dir.parents[1]), run_dir.name, job, token=asked.get("token"), told=tell)
        last.made = made.removeprefix(f"{run_dir}/")
    except NotExportable as error:
        last.failure = error.args[0]
    except Exception as error:
        last.failure = without_token(asked.get("token"), f"{type(error).__name__}: {error}"[:300])
    write_atomically(run_dir / STATE, msgspec.json.encode(last))
    return 0 if last.failure is None else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception, which leaves nothing half made
    sys.exit(main())

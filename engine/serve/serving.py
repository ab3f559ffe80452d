"""Serving a run: whether it can be served here, begun, looked at and ended. One serving a run, in serve.json of its folder,
which is its owner's alone: the key stands in it."""

from __future__ import annotations

import json
import secrets
import subprocess

import msgspec

from engine import limits, machine, processes
from engine.estimate import memory
from engine.export import artifacts, job_runner
from engine.gguf import kinds
from engine.runs import lifecycle, needs, store
from engine.serve import programs
from engine.spec import OBJECTIVES
from engine.words import Problem, Text, t
from engine.workspace import Workspace, find_struct, write_atomically

STATE, LOG = needs.SERVED, "serve.log"
# What is tried, one after the other, where no port is named.
PORTS = range(8701, 8721)
END_S = 6.0


class NotServed(ValueError):
    """A run that is not served: `problem` says why and what to do."""

    def __init__(self, problem: Problem):
        super().__init__(problem.sentence)
        self.problem = problem


class Serving(msgspec.Struct, kw_only=True):
    """How a serving stands. `port` is None until it is known; `failure` says what ended it. The key is the owner's."""

    run: str
    program: str
    key: str
    quantization: str | None = None
    phase: str = "starting"
    port: int | None = None
    failure: str | Text | None = None
    process: processes.Identity | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def is_ready(self) -> bool:
        return self.phase == "serving" and self.failure is None

    @property
    def sentence(self) -> str:
        """How it stands, for a list of runs."""
        return t("served at {address}", address=self.address) if self.is_ready else t("about to be served")


def phase_words() -> dict[str, str]:
    """Return what each phase before it is ready is called."""
    return {"starting": t("Starting"), "merging": t("Merging"), "loading": t("Loading the model")}


def chosen(workspace: Workspace, run_id: str, quantization: str | None) -> programs.Choice:
    """Return what is to answer for a run: `quantization` names one of its GGUF files, or is "transformers". Raises
    NotServed."""
    found = programs.choices(workspace, run_id)
    wanted = [one for one in found if quantization in (None, one.quantization or one.program)]
    if wanted:
        return wanted[0]
    if quantization in kinds.KINDS:
        raise NotServed(Problem(rule="serve-quantization", parameters={"name": quantization}))
    raise NotServed(Problem(rule="serve-none"))


def check(workspace: Workspace, run_id: str) -> None:
    """Raise NotServed where a run is none that could be served, whatever is installed."""
    if limits.on():
        raise NotServed(Problem(rule="demo-serve"))
    if artifacts.made_by(workspace.run_dir(run_id)) is None:
        raise NotServed(artifacts.nothing_made(workspace, run_id))
    if OBJECTIVES[store.load_spec(workspace, run_id).objective].is_judge:
        raise NotServed(Problem(rule="serve-judge"))


def start(workspace: Workspace, run_id: str, *, port: int | None = None, quantization: str | None = None) -> Serving:
    """Let a process of its own serve a run from now on. Raises NotServed."""
    with lifecycle.one_at_a_time(workspace):  # of two clicks one starts it
        check(workspace, run_id)
        choice = chosen(workspace, run_id, quantization)
        if (running := now(workspace, run_id)) is not None and running.failure is None:
            raise NotServed(Problem(rule="serve-busy", parameters={"run": run_id}))
        free, needed = machine.free_bytes(), programs.needed_bytes(workspace, run_id, choice)
        if free < needed:
            shown = {"free": memory.size_words(free), "needed": memory.size_words(needed)}
            raise NotServed(Problem(rule="serve-memory", parameters=dict(shown)))
        serving = Serving(
            run=run_id, program=choice.program, quantization=choice.quantization, key=secrets.token_urlsafe(32)
        )
        run_dir = workspace.run_dir(run_id)
        child = processes.start(
            "engine.serve.keeper", str(run_dir),
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        serving.process = processes.identify(child.pid)
        write(workspace, serving)
        assert child.stdin is not None
        child.stdin.write(json.dumps({"serving": msgspec.to_builtins(serving), "port": port}).encode())
        child.stdin.close()
    return serving


def write(workspace: Workspace, serving: Serving) -> None:
    """Write how a serving stands, for its owner alone to read."""
    write_atomically(workspace.run_dir(serving.run) / STATE, msgspec.json.encode(serving))


def now(workspace: Workspace, run_id: str) -> Serving | None:
    """Return how a run is served, or how that ended; None where it is not. What is gone without a word was killed, and
    what another run's folder is a copy of says nothing of it."""
    serving = find_struct(workspace.run_dir(run_id) / STATE, Serving)
    if serving is None or serving.run != run_id:
        return None
    if serving.failure is None:
        processes.reap()
        if not processes.alive(serving.process):
            serving.failure = failure("serve-killed")
    return serving


def failure(rule: str, **parameters: str | int) -> Text:
    """Return why a serving ended, to be read later."""
    return artifacts.refused(rule, **parameters).args[0]


def merging(workspace: Workspace, run_id: str) -> float | None:
    """Return how far the merge is that a serving waits for, 0 to 1; None where none is under way."""
    job = job_runner.progress(workspace, run_id)
    if job is None or job.ended:
        return None
    return job.done_bytes / job.total_bytes if job.total_bytes else 0.0


def all_now(workspace: Workspace) -> dict[str, Serving]:
    """Return all that is served, by run."""
    names = [path.parent.name for path in workspace.runs_dir.glob(f"*/{STATE}")]
    found = {name: now(workspace, name) for name in names if store.exists(workspace, name)}
    return {name: one for name, one in sorted(found.items()) if one is not None and one.failure is None}


def stop(workspace: Workspace, run_id: str) -> bool:
    """End a serving and put away how it ended; return whether there was one. A program that does not end is killed."""
    serving = now(workspace, run_id)
    if serving is None:
        return False
    if serving.failure is None:
        processes.end(serving.process, END_S)
    (workspace.run_dir(run_id) / STATE).unlink(missing_ok=True)
    return True

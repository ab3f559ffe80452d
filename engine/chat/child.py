"""Chat: the same question to a base and to runs made from it, side by side, and votes on the answers that become data.

The models live in one child process per workspace (`python -m engine.train.chat`), never in the server. It is spoken to
in JSON lines through its pipes, and ends by itself when nobody asked anything for a few minutes or when the server is
gone. No torch here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import msgspec

from engine import machine, processes
from engine.chat.protocol import Ask, Done, Failed, Reply, Request, Sampling, Stop, Turn, named, read_reply
from engine.models import bases, made
from engine.runs import Run, device_queue, environment, failures, needs, store
from engine.words import Problem
from engine.workspace import Workspace

# The child's module; tests put a fake in its place.
MODULE = "engine.train.chat"
# So long a loaded model may wait for the next question.
IDLE_S = 180.0
# More people than this chatting at once would fill the memory; the longest idle child makes room.
MOST_CHILDREN = 2
MOST_MODELS = 4
POLL_S = 0.5


def models(workspace: Workspace, known: list[Run] | None = None) -> list[str]:
    """Return what can be talked to: the starter, every base that runs here were made from, and what those runs made."""
    found: dict[str, None] = {"starter": None}
    own: dict[str, None] = {}
    for run in store.list_all(workspace) if known is None else known:
        folder = workspace.run_dir(run.id)
        if run.status != "finished" or made.made_by(folder) is None:
            continue
        base = bases.describe(f"run:{run.id}", workspace)
        if base.problems or base.scores_only:
            continue
        own[base.ref] = None
        try:
            below = bases.describe(store.load_spec(workspace, run.id).base.pinned, workspace)
        except (OSError, ValueError):
            continue
        if not below.problems and below.folder is not None:
            found[below.ref] = None
    return [*found, *own]


class Child:
    """A process that holds the models of one workspace on one device, and who waits for which of its answers."""

    def __init__(self, workspace: Workspace, slot: str = "cpu"):
        self._workspace, self.slot, self._models = workspace, slot, dict[str, None]()
        folder = workspace.root / "chat"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            **os.environ,
            **environment.of_cards((slot,)),
            **({"TUNEBOOK_DEVICE": "cpu"} if slot == "cpu" else {}),
            "HF_HUB_OFFLINE": "1",  # only what is here is offered
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._log = folder / "child.log"
        with self._log.open("wb") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self.process = processes.start(MODULE, str(workspace.root), f"{IDLE_S:g}", slot, env=settings, **pipes)
        if slot != "cpu":
            device_queue.lend(slot, processes.identify(self.process.pid))
        self.used_s = time.monotonic()
        self._waiting: dict[str, queue.Queue[Reply]] = {}
        self._writing = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                reply = read_reply(line)
            except msgspec.MsgspecError:
                continue  # a library that prints
            waiting = self._waiting.get(reply.id)
            if waiting is not None:
                waiting.put(reply)

    def send(self, request: Request) -> bool:
        """Put a question; False when the child is gone."""
        self.used_s = time.monotonic()
        assert self.process.stdin is not None
        try:
            with self._writing:
                self.process.stdin.write(msgspec.json.encode(request) + b"\n")
                self.process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def ask(self, question: Ask) -> Iterator[Reply]:
        """Yield what comes back, until every model is done or has failed. Left early, it stops the writing."""
        waiting: queue.Queue[Reply] = queue.Queue()
        self._models.update(dict.fromkeys(turn.model for turn in question.turns))
        held = list(dict.fromkeys(named(model).ref for model in self._models))
        needs.hold(self._workspace, processes.identify(self.process.pid), held)
        self._waiting[question.id] = waiting
        left = {turn.model for turn in question.turns}
        try:
            sent = self.send(question)
            while left:
                try:
                    reply = waiting.get(timeout=POLL_S if sent else 0.0)
                except queue.Empty:
                    if sent and self.alive:
                        continue
                    for model in sorted(left):
                        yield self._ended(question.id, model)
                    return
                if isinstance(reply, Done | Failed):
                    left.discard(reply.model)
                yield reply
        finally:
            self._waiting.pop(question.id, None)
            if left:
                self.send(Stop(id=question.id))

    def _ended(self, question: str, model: str) -> Failed:
        """Say why a child ended without a word, from its exit status and its log."""
        try:
            tail = self._log.read_bytes()[-20_000:].decode("utf-8", "replace")
        except OSError:
            tail = ""
        failure = failures.from_exit(self.process.poll() or 0, tail)
        if failure.kind == "oom":
            message, fix = Problem(rule="chat-memory").texts
        else:
            message, fix = Problem(rule="chat-ended").texts
        return Failed(id=question, model=model, message=message, fix=fix)

    def close(self) -> None:
        """End the process and with it the memory it holds."""
        processes.signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


_children: dict[str, Child] = {}
_guard = threading.Lock()


def free_slot() -> str:
    """Return the device that answers now: a card, or Apple's GPU, that no run has or waits for, else the processor."""
    facts = machine.facts()
    if facts.device == "cpu":
        return "cpu"
    return next((slot for slot in reversed(facts.slots) if not device_queue.wanted(facts.device, slot)), "cpu")


def _started(workspace: Workspace) -> Child:
    child = Child(workspace, free_slot())
    if child.slot != "cpu" and device_queue.wanted(machine.facts().device, child.slot):  # by a run of this moment
        child.close()
        child = Child(workspace)
    return child


def _must_move(child: Child) -> bool:
    """Whether another device is to answer: a run wants this one, or a card is free again."""
    if child.slot == "cpu":
        return free_slot() != "cpu"
    return device_queue.wanted(machine.facts().device, child.slot)


def _child(workspace: Workspace) -> Child | None:
    """Return the living child of a workspace, begun now where there is none; None when too many others are at work."""
    key = str(workspace.root)
    with _guard:
        for name, one in list(_children.items()):
            if not one.alive or (name == key and not one.busy and _must_move(one)):
                one.close()
                del _children[name]
        if key not in _children:
            if len(_children) >= MOST_CHILDREN:
                idle = sorted((one.used_s, name) for name, one in _children.items() if not one.busy)
                if not idle:
                    return None
                _children.pop(idle[0][1]).close()
            _children[key] = _started(workspace)
        return _children[key]


def ask(workspace: Workspace, turns: list[Turn], sampling: Sampling) -> Iterator[Reply]:
    """Put a question to several models and yield their answers as they are written. Raises nothing: what goes wrong is a
    Failed for each model. Closing the generator stops the writing."""
    question = Ask(id=secrets.token_hex(8), turns=turns, sampling=sampling)
    child = _child(workspace)
    if child is None:
        message, fix = Problem(rule="chat-busy").texts
        for turn in turns:
            yield Failed(id=question.id, model=turn.model, message=message, fix=fix)
        return
    yield from child.ask(question)


def is_loaded(workspace: Workspace) -> bool:
    """Whether a child holds models for this workspace now."""
    child = _children.get(str(workspace.root))
    return child is not None and child.alive


def close(workspace: Workspace) -> None:
    """End the child of a workspace, so that its memory is free."""
    with _guard:
        child = _children.pop(str(workspace.root), None)
    if child is not None:
        child.close()

"""Chat: the same question to a base and to runs made from it, side by side, and votes on the answers that become data.

The models live in one child process per workspace (`python -m engine.train.chat`), never in the server. It is spoken to
in JSON lines through its pipes, and ends by itself when nobody asked anything for a few minutes or when the server is
gone. No torch here.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine import processes
from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.models import bases
from engine.runs import Run, failures, store
from engine.words import Problem, Text
from engine.workspace import Workspace, write_atomically

# The child's module; tests put a fake in its place.
MODULE = "engine.train.chat"
# So long a loaded model may wait for the next question.
IDLE_S = 180.0
# More people than this chatting at once would fill the memory; the longest idle child makes room.
MOST_CHILDREN = 2
MOST_MODELS = 4
MOST_SAVED_PROMPTS = 200
POLL_S = 0.5

Message = dict[str, str]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are drawn, the same for every model. A temperature of 0 always takes the likeliest token."""

    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0
    most_tokens: int = 256


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One model and the conversation it is to go on with: messages of role and content, the last of the user."""

    model: str
    messages: list[Message]


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """A question to several models, answered one after another."""

    id: str
    turns: list[Turn]
    sampling: Sampling = Sampling()


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Write no further for that question."""

    id: str


class State(msgspec.Struct, frozen=True, kw_only=True, tag="state"):
    """What a model is at."""

    id: str
    model: str
    state: Literal["loading", "writing"]


class Piece(msgspec.Struct, frozen=True, kw_only=True, tag="piece"):
    """Some more of an answer."""

    id: str
    model: str
    text: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """A whole answer is there. `ended`: the model came to an end, ran into the longest answer, or was stopped."""

    id: str
    model: str
    tokens: int
    seconds: float
    ended: Literal["end", "length", "stopped"]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A model gave no answer: what is wrong and what to do, to be read later."""

    id: str
    model: str
    message: str | Text
    fix: str | Text


Request = Ask | Stop
Reply = State | Piece | Done | Failed
read_request = msgspec.json.Decoder(Request).decode
read_reply = msgspec.json.Decoder(Reply).decode


def models(workspace: Workspace, known: list[Run] | None = None) -> list[str]:
    """Return what can be talked to: the starter, every base that runs here were made from, and what those runs made."""
    found: dict[str, None] = {"starter": None}
    own: dict[str, None] = {}
    for run in store.list_all(workspace) if known is None else known:
        folder = workspace.run_dir(run.id)
        if run.status != "finished" or not any((folder / name).is_dir() for name in ("adapter", "model")):
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


# --- the child --------------------------------------------------------------------------------------------------------


class Child:
    """A process that holds the models of one workspace, and who waits for which of its answers."""

    def __init__(self, workspace: Workspace):
        folder = workspace.root / "chat"
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",  # only what is here is offered
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._log = folder / "child.log"
        with self._log.open("wb") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self.process = processes.start(MODULE, str(workspace.root), f"{IDLE_S:g}", env=environment, **pipes)
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


def _child(workspace: Workspace) -> Child | None:
    """Return the living child of a workspace, begun now where there is none; None when too many others are at work."""
    key = str(workspace.root)
    with _guard:
        for name, one in list(_children.items()):
            if not one.alive:
                one.close()
                del _children[name]
        if key not in _children:
            if len(_children) >= MOST_CHILDREN:
                idle = sorted((one.used_s, name) for name, one in _children.items() if not one.busy)
                if not idle:
                    return None
                _children.pop(idle[0][1]).close()
            _children[key] = Child(workspace)
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


# --- votes become data ------------------------------------------------------------------------------------------------

Kind = Literal["votes", "pairs"]


def _path(workspace: Workspace, kind: str) -> Path:
    return workspace.root / "chat" / f"{kind}.jsonl"


def _append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:  # one write, so that two tabs never mix their lines
        file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def vote(workspace: Workspace, prompt: list[Message], answer: str, model: str, good: bool | None) -> None:
    """Mark an answer good or bad, or take the mark back (None). The last word counts. Raises OSError."""
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "label": good, "model": model}
    _append(_path(workspace, "votes"), row)


def prefer(workspace: Workspace, prompt: list[Message], answers: dict[str, str], best: str | None) -> None:
    """Say which of several answers to one question is best: it is chosen over each of the others that differs from it.
    None takes it back. The last word counts. Raises OSError."""
    models = sorted(answers)
    _append(_path(workspace, "pairs"), {"prompt": prompt, "answers": {m: answers[m] for m in models}, "best": best})


def rows(workspace: Workspace, kind: Kind) -> list[dict[str, Any]]:
    """Return the rows that the votes come to: {prompt, completion, label}, or {prompt, chosen, rejected}."""
    try:
        lines = _path(workspace, kind).read_bytes().split(b"\n")
    except OSError:
        return []
    last: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
            about = row["completion"] if kind == "votes" else row["answers"]
            key = json.dumps([row["prompt"], about], sort_keys=True)
            last.pop(key, None)
            last[key] = row
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut by a crash
    if kind == "votes":
        return [
            {"prompt": row["prompt"], "completion": row["completion"], "label": row["label"]}
            for row in last.values()
            if isinstance(row.get("label"), bool) and row["completion"][0]["content"].strip()
        ]
    found = []
    for row in last.values():
        chosen = row["answers"].get(row.get("best"))
        if not chosen or not chosen.strip():
            continue
        # Two models may have given the same answer: one pair then.
        for rejected in dict.fromkeys(row["answers"].values()):
            if rejected != chosen and rejected.strip():
                found.append(
                    {
                        "prompt": row["prompt"],
                        "chosen": [{"role": "assistant", "content": chosen}],
                        "rejected": [{"role": "assistant", "content": rejected}],
                    }
                )
    return found


def make_dataset(workspace: Workspace, kind: Kind, name: str) -> Dataset:
    """Store the rows of the votes so far as a data set. Raises datasets.DatasetError."""
    found = rows(workspace, kind)
    if not found:
        raise DatasetError(Problem(rule="chat-no-votes"))
    workspace.uploads_dir.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=workspace.uploads_dir, prefix=".chat-", suffix=".jsonl")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in found)
        return datasets.add(workspace, temporary, name)
    finally:
        Path(temporary).unlink(missing_ok=True)


# --- saved prompts ----------------------------------------------------------------------------------------------------


def saved_prompts(workspace: Workspace) -> list[str]:
    """Return the saved prompts, the newest first."""
    try:
        return msgspec.json.decode((workspace.root / "chat" / "prompts.json").read_bytes(), type=list[str])
    except (OSError, msgspec.MsgspecError):
        return []


def save_prompt(workspace: Workspace, text: str) -> None:
    """Keep a prompt for later; one that is there moves to the front. Raises OSError."""
    kept = [text, *(one for one in saved_prompts(workspace) if one != text)][:MOST_SAVED_PROMPTS]
    write_atomically(workspace.root / "chat" / "prompts.json", msgspec.json.encode(kept))


def forget_prompt(workspace: Workspace, text: str) -> None:
    """Remove a saved prompt. Raises OSError."""
    kept = [one for one in saved_prompts(workspace) if one != text]
    write_atomically(workspace.root / "chat" / "prompts.json", msgspec.json.encode(kept))

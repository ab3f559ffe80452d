"""Votes on answers become data to train on; and the prompts a person keeps."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from engine.chat.protocol import Message
from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.words import Problem
from engine.workspace import Workspace, find_struct, read_lines, scratch, write_atomically

MOST_SAVED_PROMPTS = 200

Kind = Literal["votes", "pairs"]


class _Vote(msgspec.Struct):
    """A line of votes.jsonl."""

    prompt: list[Message]
    completion: Annotated[list[Message], msgspec.Meta(min_length=1)]
    label: bool | None = None

    @property
    def about(self) -> bytes:
        return msgspec.json.encode([self.prompt, self.completion])


class _Preference(msgspec.Struct):
    """A line of pairs.jsonl."""

    prompt: list[Message]
    answers: dict[str, str]
    best: str | None = None

    @property
    def about(self) -> bytes:
        return msgspec.json.encode([self.prompt, dict(sorted(self.answers.items()))])


_Said = TypeVar("_Said", _Vote, _Preference)


def _last(said: list[_Said]) -> list[_Said]:
    """Return the last word on each answer, in the order in which these were said."""
    last: dict[bytes, _Said] = {}
    for one in said:
        last.pop(one.about, None)
        last[one.about] = one
    return list(last.values())


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
    if kind == "votes":
        marked = _last(read_lines(_path(workspace, kind), _Vote))
        return [
            {"prompt": row.prompt, "completion": row.completion, "label": row.label}
            for row in marked
            if row.label is not None and row.completion[0]["content"].strip()
        ]
    found = []
    for row in _last(read_lines(_path(workspace, kind), _Preference)):
        chosen = row.answers.get(row.best or "", "")
        if not chosen.strip():
            continue
        # Two models may have given the same answer: one pair then.
        for rejected in dict.fromkeys(row.answers.values()):
            if rejected != chosen and rejected.strip():
                found.append(
                    {
                        "prompt": row.prompt,
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
    handle, temporary = tempfile.mkstemp(dir=workspace.uploads_dir, prefix=scratch("chat"), suffix=".jsonl")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in found)
        return datasets.add(workspace, temporary, name)
    finally:
        Path(temporary).unlink(missing_ok=True)


def saved_prompts(workspace: Workspace) -> list[str]:
    """Return the saved prompts, the newest first."""
    return find_struct(workspace.root / "chat" / "prompts.json", list[str]) or []


def save_prompt(workspace: Workspace, text: str) -> None:
    """Keep a prompt for later; one that is there moves to the front. Raises OSError."""
    kept = [text, *(one for one in saved_prompts(workspace) if one != text)][:MOST_SAVED_PROMPTS]
    write_atomically(workspace.root / "chat" / "prompts.json", msgspec.json.encode(kept))


def forget_prompt(workspace: Workspace, text: str) -> None:
    """Remove a saved prompt. Raises OSError."""
    kept = [one for one in saved_prompts(workspace) if one != text]
    write_atomically(workspace.root / "chat" / "prompts.json", msgspec.json.encode(kept))

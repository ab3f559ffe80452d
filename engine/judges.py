"""Judges for PPO: which runs made a reward model, how well it judges, and whether it reads text as another base does.

Read from files alone: the run's items, and the tokenizer.json and chat template beside the weights; no torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine.bases import Base
from engine.report import Comparison, items, paired
from engine.runs import store
from engine.workspace import BadId, Workspace


def sha(text: str) -> str:
    """Return the sha256 of a text, as items name their questions."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def made_by(workspace: Workspace, ref: str) -> Path | None:
    """Return the folder of what run:<id> made, or None when there is no such run or it has made nothing yet."""
    try:
        run_dir = workspace.run_dir(ref.removeprefix("run:"))
    except BadId:
        return None
    if not ref.startswith("run:"):
        return None
    return next((run_dir / name for name in ("model", "adapter") if (run_dir / name).is_dir()), None)


def accuracy(run_dir: Path) -> Comparison | None:
    """Return how a reward run judges pairs it has not seen: `tuned` is the share judged as the person did, `n` the pairs.
    None when no pair was held out or the run has not been scored."""
    try:
        found = paired.compare_run(run_dir)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    rows = [row for row in found if row.benchmark == items.REWARD]
    return next((row for row in rows if row.family == items.UNSEEN), None)


def reads_alike(base: Base, folder: Path) -> bool | None:
    """Return whether a base and a reward model cut text into the same tokens and write a conversation alike; None when
    the files do not say, as for a base that is still to be downloaded."""
    if base.folder is None:
        return None
    ours, theirs = _tokens(base.folder), _tokens(folder)
    if ours is None or theirs is None:
        return None
    if ours.pieces != theirs.pieces or any(theirs.added.get(n, text) != text for n, text in ours.added.items()):
        return False
    if ours != theirs:
        return None  # a library may write the rest in another form, or add what its class always has (Qwen2Tokenizer)
    template, other = _template(base.folder), _template(folder)
    # without one, both get the same plain headings, and only the run has them written down
    return None if template is None or other is None else template == other


class _Tokens(NamedTuple):
    """What of tokenizer.json decides the tokens: vocabulary and merges, tokens beside them by number, how text is cut."""

    pieces: list[Any]
    added: dict[int, str]
    cutting: list[Any]


def _tokens(folder: Path) -> _Tokens | None:
    """Read it from a folder; padding and truncation are the trainers' own."""
    try:
        told = json.loads((folder / "tokenizer.json").read_bytes())
        added = {one["id"]: one["content"] for one in told.get("added_tokens", [])}
        merges = told["model"].get("merges")
        if isinstance(merges, list):  # "a b" until tokenizers 0.20, ["a", "b"] since
            merges = [one.split(" ") if isinstance(one, str) else one for one in merges]
        pieces = [told["model"].get("vocab"), merges]
        return _Tokens(pieces, added, [told.get("normalizer"), told.get("pre_tokenizer")])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _template(folder: Path) -> str | None:
    try:
        return (folder / "chat_template.jinja").read_text("utf-8")
    except (OSError, ValueError):
        pass
    try:
        found = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def candidates(workspace: Workspace) -> list[str]:
    """Return run:<id> of every finished reward run, newest first."""
    found = []
    for run in store.list_all(workspace):
        if run.status == "finished" and store.load_spec(workspace, run.id).objective == "reward":
            found.append(f"run:{run.id}")
    return found


def newest(workspace: Workspace, base: Base, least_accuracy: float) -> str | None:
    """Return the newest finished reward run that may judge answers of this base, or None."""
    for ref in candidates(workspace):
        folder = made_by(workspace, ref)
        judged = accuracy(folder.parent) if folder is not None else None
        good = judged is not None and judged.tuned >= least_accuracy
        if folder is not None and good and reads_alike(base, folder) is not False:
            return ref
    return None

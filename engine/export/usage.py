"""How to use what was taken along, with other libraries than ours: Python that loads it, commands that serve it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from engine import looker
from engine.export import artifacts, scripts
from engine.export.artifacts import is_conv1d
from engine.models import bases
from engine.render import Coder
from engine.runs import store
from engine.spec import OBJECTIVES
from engine.workspace import Workspace

QUESTION = "What is the capital of France?"


def load_script(workspace: Workspace, run_id: str, question: str = QUESTION, adapter: str = "adapter") -> str:
    """Return the Python that loads a run's download, from the folder it was unpacked in, and asks it something. `adapter` is
    the folder of an adapter.

    The starter travels inside the download as base/, since nobody else has it.
    """
    run_spec = store.over_its_base(workspace, store.load_spec(workspace, run_id))
    reward = _judged_at(workspace, run_id)
    if run_spec.adapter == "full":
        return _script(question, reward=reward, folder="model")
    base = "base" if run_spec.base.ref == "starter" else run_spec.base.ref
    straightens = run_spec.adapter == "oft" and is_conv1d(bases.describe(run_spec.base.pinned, workspace))
    return _script(
        question, reward=reward, base=base, adapter=adapter, revision=run_spec.base.revision, straightens=straightens
    )


def load_merged_script(workspace: Workspace, run_id: str, folder: str, question: str = QUESTION) -> str:
    """Return the Python that loads the whole model from `folder` with transformers alone and asks it something."""
    reward = _judged_at(workspace, run_id)
    return _script(question, reward=reward, folder=folder)


def _judged_at(workspace: Workspace, run_id: str) -> tuple[str, str] | None:
    """Return what ends a conversation where a reward model reads it: the mark that the template writes after an answer,
    and what is put behind it (Coder.closing). None for a run that writes answers."""
    if not OBJECTIVES[store.load_spec(workspace, run_id).objective].is_judge:
        return None
    folder = artifacts.made_by(workspace.run_dir(run_id))
    try:
        return looker.ask(_closing, folder, run_id, at=folder)
    except looker.Refused:
        return "", ""  # nothing was made, or what was made cannot be used


def _closing(folder: Path | None, run_id: str) -> tuple[str, str]:
    return Coder.of_folder(folder, run_id).closing


def _script(
    question: str,
    *,
    reward: tuple[str, str] | None,
    folder: str | None = None,
    base: str | None = None,
    adapter: str | None = None,
    revision: str | None = None,
    straightens: bool = False,
) -> str:
    """What load.py.jinja makes of the whole model in `folder`, or of the adapter on its `base`."""
    return scripts.fill(
        "load.py.jinja",
        question=question, reward=reward is not None, mark=reward[0] if reward else "", end=reward[1] if reward else "",
        folder=folder, base=base, adapter=adapter, revision=revision, straightens=straightens,
    )  # fmt: skip


def vllm_commands(folder: str) -> str:
    """Return the commands that serve the whole model with vLLM and ask it something."""
    ask = {"model": folder, "messages": [{"role": "user", "content": QUESTION}]}
    return "\n".join(
        [
            shlex.join(["vllm", "serve", folder]),
            "curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' "
            f"-d {shlex.quote(json.dumps(ask))}",
        ]
    )

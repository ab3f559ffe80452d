"""What the trainings after public reports share: a home of their own, the command line as a person uses it, and what a run
left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import events, starter
from engine.workspace import Workspace
from tests.conftest import ROOT
from tests.helpers import wait_until

FACTS, FACTS_EVAL, PAIRS, GOOD_BAD = (
    starter.SAMPLES_DIR / name
    for name in ("new-facts.jsonl", "new-facts.eval.jsonl", "preference-pairs.jsonl", "good-bad.jsonl")
)
ENDS = (events.Finished, events.Failed, events.Stopped)


class Run:
    """A run by its folder, or, where the start was refused, what was said (`folder` is None)."""

    def __init__(self, folder: Path | None, done: subprocess.CompletedProcess[str]):
        self._folder, self.said = folder, done.stdout + done.stderr

    @property
    def refused(self) -> bool:
        return self._folder is None

    @property
    def folder(self) -> Path:
        assert self._folder is not None, self.said
        return self._folder

    @property
    def id(self) -> str:
        return self.folder.name

    def events(self, *kinds: type) -> list[Any]:
        return [event for event in events.read(self.folder)[0] if isinstance(event, kinds)]

    @property
    def end(self) -> Any:
        return self.events(*ENDS)[-1]

    @property
    def logs(self) -> list[str]:
        return [str(event.text) for event in self.events(events.Log)]

    @property
    def losses(self) -> list[float]:
        return [event.loss for event in self.events(events.Step)]

    def items(self, name: str) -> list[dict[str, Any]]:
        return rows(self.folder / "items" / f"{name}.jsonl")

    def right(self, name: str) -> int:
        return sum(bool(item["correct"]) for item in self.items(name))

    def loss(self, name: str) -> float:
        """Nats a token over all items."""
        found = self.items(name)
        return -sum(item["loglikelihoods"][0] for item in found) / sum(item["tokens"] for item in found)

    def wait_for(self, condition: Callable[[], Any]) -> None:
        wait_until(condition, 600, f"{self.id}: {condition}")


class Trial:
    """A scratch folder with a home in it."""

    def __init__(self, folder: Path):
        self.folder, self.home = folder, folder / "home"
        self.workspace = Workspace(self.home)

    def tunebook(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own, with its children on one thread."""
        return subprocess.run(
            [sys.executable, "-m", "engine.cli", *map(str, arguments)],
            env={
                **os.environ,
                "TUNEBOOK_HOME": str(self.home),
                "TUNEBOOK_MACHINE_DIR": str(self.folder / "machine"),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                **env,
            },
            capture_output=True, text=True, cwd=ROOT, timeout=1200,
        )  # fmt: skip

    def train(self, recipe: str, data: Path, *settings: str, more: tuple[object, ...] = (), **env: str) -> Run:
        """Train with these settings; `more` are further words of the command line."""
        words = [word for setting in ("train.threads=1", *settings) for word in ("--set", setting)]
        return self.started("train", recipe, "--data", data, *words, *more, "--wait", **env)

    def started(self, *arguments: object, **env: str) -> Run:
        """Run a command that starts a run, and return that run."""
        known = set(self.workspace.runs_dir.glob("2*"))
        done = self.tunebook(*arguments, **env)
        new = sorted(set(self.workspace.runs_dir.glob("2*")) - known)
        return Run(new[0] if new else None, done)

    def write(self, name: str, found: list[dict[str, Any]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
        return path

    def starter(self, name: str) -> Path:
        """Return a copy of the starter's folder, to be spoilt."""
        return Path(shutil.copytree(starter.MODEL_DIR, self.folder / name))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def edit(path: Path, **values: Any) -> None:
    """Set fields of a JSON object on disk."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder: Path) -> dict[str, Any]:
    """Return the tensors of a folder's safetensors."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*model*.safetensors")):
        found |= load_file(path)
    return found


def apart(one: Path, other: Path) -> float:
    """Return the largest difference of a weight of two folders."""
    first, second = weights(one), weights(other)
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)

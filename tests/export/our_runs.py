"""Runs of ours that other trainers are held against: how they train, what they lose and which tokens they read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from engine import events, starter
from engine.data import datasets
from engine.render import Coder, encode
from engine.runs import store
from engine.spec import split
from engine.workspace import Workspace
from tests.conftest import tunebook


def sample(name: str, count: int) -> list[dict[str, Any]]:
    lines = starter.sample(name).file.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def trained(
    home: Path, recipe: str, rows: list[dict[str, Any]], *settings: str, steps: int, base: str = "starter"
) -> str:
    """Train some rows, all of them in each step and nothing beside them, and return the run's id."""
    path = home.parent / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [
        f"train.batch_size={len(rows)}", "train.accumulation=1", f"train.max_steps={steps}", "dataset.eval_share=0",
        "evaluate.limit=1", *([] if recipe in ("dpo", "kto", "reward") else ["train.replay_share=0"]), *settings,
    ]  # fmt: skip
    words = [word for setting in told for word in ("--set", setting)]
    done = tunebook("train", recipe, "--data", str(path), "--base", base, "--wait", "--json", *words,
                    home=home, machine=home.parent / "machine")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["id"]


def learned(workspace: Workspace, run_id: str) -> tuple[list[float], int]:
    """Return the loss of each step of a run, and how many weights trained."""
    found, _ = events.read(workspace.run_dir(run_id))
    losses = [one.loss for one in found if isinstance(one, events.Step) and one.loss is not None]
    said = (str(one.text) for one in found if isinstance(one, events.Log))
    count = next(match for text in said if (match := re.match(r"([\d,]+) of [\d,]+ weights train", text)))
    return losses, int(count[1].replace(",", ""))


def encoded(workspace: Workspace, run_id: str) -> list[tuple[list[int], list[int]]]:
    """Return tokens and labels of what a run reads, of a pair those of both answers. Nothing foretells a first token."""
    spec = store.load_spec(workspace, run_id)
    folder = starter.MODEL_DIR if spec.base.ref == "starter" else Path(spec.base.ref)
    coder = Coder.of_folder(folder, spec.base.ref, spec.day)
    rows, _ = split.divide(spec.dataset, lambda one: datasets.read_rows(workspace, one))
    return [one for row in rows for one in _texts(encode.encode_any(row, coder).within(spec.train.max_length))]


def _texts(coded: Any) -> list[tuple[list[int], list[int]]]:
    if isinstance(coded, encode.Encoded):
        return [(coded.input_ids, [encode.IGNORED, *coded.labels[1:]])]
    answers = coded[1:3] if isinstance(coded, encode.Pair) else coded[1:2]
    blank = [encode.IGNORED] * len(coded.prompt_ids)
    return [([*coded.prompt_ids, *ids], [*blank, *ids]) for ids in answers]

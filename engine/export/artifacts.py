"""What there is to take along of a run, and what it is built of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.models import Base, bases
from engine.runs import store
from engine.words import Problem, Text, later
from engine.workspace import Workspace, read_object

MERGED = "merged"  # the whole model of a run whose folder holds an adapter


def made_by(run_dir: Path) -> Path | None:
    """Return the folder of what a run has made, adapter/ or model/, or None."""
    return next((run_dir / name for name in ("adapter", "model") if (run_dir / name).is_dir()), None)


def is_conv1d(base: Base) -> bool:
    """Whether a base is built of Conv1D layers, which hold the weights of a linear layer transposed."""
    return base.shape is not None and base.shape.layout == "gpt2"


class NotExportable(ValueError):
    """It cannot be taken along so; the text says why and what to do."""


def because(problem: Problem) -> NotExportable:
    """Return the refusal that a problem is; it is read in the reader's language, now or later."""
    message, fix = problem.texts
    return NotExportable(later("{message}; {fix}", message=message, fix=fix))


def refused(rule: str, **parameters: str | int | float | bool | Text | None) -> NotExportable:
    return because(Problem(rule=rule, parameters=parameters))


def nothing_made(workspace: Workspace, run_id: str) -> Problem:
    """Return why there is nothing to take along of a run that has no weights of its own."""
    back = store.load_spec(workspace, run_id).recover
    if back is not None and back.at is None:
        return Problem(rule="export-scan", parameters={"run": run_id, "origin": back.run})
    return Problem(rule="export-nothing")


def without_folders(value: Any) -> Any:
    """Return what was read from JSON with the last name alone of every path of this machine: it is to leave it."""
    if isinstance(value, dict):
        return {name: without_folders(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_folders(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "gguf:/")) else value


def travelling(workspace: Workspace, run_id: str, folder: Path) -> dict[str, Path | bytes]:
    """Return the files of what a run has made as they leave this machine, by their place in `folder`. No pickle, which
    nobody should have to open; no card of peft's, which says nothing; and an adapter names its base, not a folder."""
    files: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.suffix == ".bin" or name == "README.md":
            continue
        files[name] = path
        if name == "adapter_config.json":
            told = read_object(path)
            base = store.over_its_base(workspace, store.load_spec(workspace, run_id)).base
            if told.get("base_model_name_or_path"):
                told["base_model_name_or_path"] = without_folders(base.ref)
            files[name] = json.dumps(without_folders(told), indent=2).encode()
    return files


def travels_whole(workspace: Workspace, run_id: str) -> bool:
    """Whether a run can only be taken along merged: its adapter stands on what another run made."""
    made = made_by(workspace.run_dir(run_id))
    ref = store.over_its_base(workspace, store.load_spec(workspace, run_id)).base.ref
    return made is not None and made.name == "adapter" and ref.startswith("run:")


def whole(workspace: Workspace, run_id: str) -> Path | None:
    """Return the folder of a run's whole model: model/, or merged/ once it has been made."""
    run_dir = workspace.run_dir(run_id)
    return next((run_dir / n for n in ("model", MERGED) if (run_dir / n / "config.json").is_file()), None)


def size_bytes(workspace: Workspace, run_id: str) -> int | None:
    """Return about how large the whole model of a run is: as large as its base. None where that is not known yet."""
    made = made_by(workspace.run_dir(run_id))
    if made is not None and made.name == "model":
        return sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    base = bases.describe(store.load_spec(workspace, run_id).base.pinned, workspace)
    if base.stored is not None:  # merging unpacks it
        return 2 * base.parameters if base.parameters else None
    return base.weights_bytes

"""The download of a run as one zip, and single parts of it written into a folder."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import msgspec

from engine.export import usage
from engine.export.artifacts import (
    MERGED,
    because,
    made_by,
    nothing_made,
    refused,
    travelling,
    travels_whole,
    whole,
    without_folders,
)
from engine.export.job import too_small
from engine.export.ollama import modelfile
from engine.models import bases
from engine.runs import store
from engine.workspace import Workspace, read_object, scratch


def write_zip(workspace: Workspace, run_id: str, *, merged: bool = False) -> Path:
    """Write the run's download and return its path: what was made (or, once it is there, the merged model), load.py,
    spec.json. Made once, then kept.

    Raises NotExportable when the run has made nothing yet or its adapter stands on another run.
    """
    run_dir = workspace.run_dir(run_id)
    made = run_dir / MERGED if merged else made_by(run_dir)
    if made is None or not made.is_dir():
        raise because(nothing_made(workspace, run_id))
    run_spec = store.over_its_base(workspace, store.load_spec(workspace, run_id))
    base = bases.describe(run_spec.base.pinned, workspace)
    if not merged and travels_whole(workspace, run_id):
        raise refused("export-on-run")
    target = run_dir / f"{made.name}.zip"
    if target.exists():
        return target
    # Weights do not compress; storing them is as small and far quicker.
    with tempfile.NamedTemporaryFile(
        dir=run_dir, prefix=scratch("archive"), suffix=".partial", delete=False
    ) as partial:
        try:
            # strict_timestamps: reproducible installs date files to 1970, which a zip cannot hold
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
                for name, content in travelling(workspace, run_id, made).items():
                    _add(archive, content, f"{made.name}/{name}")
                if made.name == "adapter" and base.kind == "starter" and base.folder is not None:
                    for path in sorted(filter(Path.is_file, base.folder.iterdir())):
                        archive.write(path, f"base/{path.name}")
                if merged:
                    archive.writestr("load.py", usage.load_merged_script(workspace, run_id, MERGED))
                else:
                    archive.writestr("load.py", usage.load_script(workspace, run_id))
                archive.writestr("spec.json", _spec(run_dir))
            Path(partial.name).replace(target)
        finally:
            Path(partial.name).unlink(missing_ok=True)
    return target


def _add(archive: zipfile.ZipFile, content: Path | bytes, name: str) -> None:
    if isinstance(content, bytes):
        archive.writestr(name, content)
    else:
        archive.write(content, name)


def _spec(run_dir: Path) -> bytes:
    told = read_object(run_dir / "spec.json")
    named = without_folders(told)
    if named == told:
        return (run_dir / "spec.json").read_bytes()
    return msgspec.json.format(msgspec.json.encode(named), indent=2)


def write_part(workspace: Workspace, run_id: str, what: str, to: Path) -> Path:
    """Write the adapter (or the model) as it is, the card, or the Modelfile into the folder `to`, which must be new or
    empty, and return what was written. Raises NotExportable."""
    from engine.export import card

    made = made_by(workspace.run_dir(run_id))
    if made is None:
        raise because(nothing_made(workspace, run_id))
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise refused("export-in-the-way", folder=str(to))
    if what == "adapter":
        archive = write_zip(workspace, run_id)  # says why where it cannot
        found = too_small(to, archive.stat().st_size)
        if found is not None:
            raise because(found)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(to)
        return to
    to.mkdir(parents=True, exist_ok=True)
    if what == "card":
        target, text = to / "README.md", card.markdown(workspace, run_id, whole=made.name == "model")
    else:
        target, text = to / "Modelfile", modelfile(whole(workspace, run_id) or made, "./merged")
    target.write_text(text, encoding="utf-8")
    return target

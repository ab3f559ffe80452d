"""The hub's cache on this machine: which models are whole there, and which were begun."""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine import looker
from engine.models.refs import HUB_ID, split_ref
from engine.models.weights import has_all_weights


def hub_cache() -> Path:
    """Return the hub's cache, by the variables that huggingface_hub reads, as they are now."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def folder(name: str, kind: str = "model") -> Path:
    """Return the folder of a model or a data set (`kind`) in the hub's cache."""
    return hub_cache() / f"{kind}s--{name.replace('/', '--')}"


def hub_snapshot(name: str, wanted: str | None = None) -> Path | None:
    """Return the cached snapshot of a hub id, without asking the network."""
    repository = folder(name)
    revision = wanted or "main"
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            revision = (repository / "refs" / revision).read_text("utf-8").strip()
        except (OSError, ValueError):
            return None
    snapshot = repository / "snapshots" / revision
    return snapshot if re.fullmatch(r"[0-9a-f]{40}", revision) and snapshot.is_dir() else None


MOST_CACHED = 200


def cached() -> list[str]:
    """Return the ids of models whose weights are whole in the hub's cache, newest first."""
    found = []
    for repository in hub_cache().glob("models--*"):
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = hub_snapshot(name) if HUB_ID.fullmatch(name) else None
        if snapshot is not None and (snapshot / "config.json").is_file() and _is_whole(snapshot):
            found.append((snapshot.stat().st_mtime, name))
    return [name for _, name in sorted(found, reverse=True)][:MOST_CACHED]


def _is_whole(snapshot: Path) -> bool:
    try:
        return looker.ask(has_all_weights, snapshot, at=snapshot)
    except looker.Refused:
        return False


def begun(ref: str) -> bool:
    """Whether an earlier download of a hub model has left a part of a file."""
    return any((folder(split_ref(ref)[0]) / "blobs").glob("*.incomplete"))

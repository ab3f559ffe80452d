"""The environment of a run's child: no telemetry, caches of its own, no network where none is needed."""

from __future__ import annotations

import os
from pathlib import Path

from engine.benchmarks import shipped
from engine.models import bases
from engine.spec import RunSpec
from engine.workspace import Workspace

# Set where Tunebook itself was started as one of several processes; the child would take itself for one of them.
_OF_A_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def of_any_run() -> dict[str, str]:
    """Return what the environment of every child has: no telemetry, no progress bars, one thread."""
    return {
        **{name: value for name, value in os.environ.items() if name not in _OF_A_GROUP},
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DISABLE_MULTIPROC": "1",
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",  # a bar fills a log file with fragments; events say how far it is
        "OMP_NUM_THREADS": "1",
        "TUNEBOOK_SUPERVISOR": str(os.getpid()),
    }


def of_cards(held: tuple[str, ...]) -> dict[str, str]:
    """Return what lets a child see the cards it holds and no other: none at all on a processor, also where torch knows one
    that this machine's facts do not, so that what a page says of the device is what a child does."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(card.removeprefix("cuda:") for card in held if card not in ("cpu", "mps"))}


def environment(run_dir: Path, run_spec: RunSpec, cards: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the child's environment: no telemetry, caches of its own, no network where none is needed, and of the
    cards those alone whose turn it has."""
    chosen = {
        # where a tracker (train.report_to) puts the figures, unless the user has said otherwise
        "TENSORBOARD_LOGGING_DIR": str(run_dir / "tensorboard"),
        "WANDB_PROJECT": "tunebook",
        "MLFLOW_EXPERIMENT_NAME": "tunebook",
        # mlflow 3 no longer writes into plain folders
        "MLFLOW_TRACKING_URI": f"sqlite:///{run_dir.parents[1] / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **of_any_run(),
        "HF_DATASETS_CACHE": str(run_dir / "cache"),
        "OMP_NUM_THREADS": str(run_spec.train.threads),
    }
    if cards:
        chosen |= of_cards(cards)
    ref = run_spec.base.ref
    base = bases.describe(ref, Workspace(run_dir.parents[1]), run_spec.base.revision)
    fetched = set(run_spec.evaluate.benchmarks) & set(shipped.HARNESS)
    # a hub model that is whole on this machine needs no network either
    local = ref == "starter" or ref.startswith(("run:", "/")) or base.folder is not None
    if local and not fetched:
        chosen["HF_HUB_OFFLINE"] = "1"
    return chosen

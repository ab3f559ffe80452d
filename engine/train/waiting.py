"""A child that imports its libraries before there is a run, waits for one, and takes on the environment that it needs.

No card is touched and no thread computes before that: which cards are visible and how many threads there are is still
open. A run that wants what can no longer be changed gets a fresh process in this one's place.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

from engine import processes
from engine.train import libraries

# What stands in the place of a run's folder on the command line.
ASKED = "--spare"
# What is started in this one's place; tests put a fake there.
MODULE = "engine.train"
# mallopt(3): the settings of glibc's allocator that can be made late, by the variables that make them early.
_MALLOPT = {
    "MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2, "MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_MMAP_MAX_": -4,
    "MALLOC_ARENA_MAX": -8,
}  # fmt: skip
# Read when they are needed, and not when a library is imported, or set late below.
_LATE = {
    "CUDA_VISIBLE_DEVICES", "HF_DATASETS_CACHE", "HF_TOKEN", "OMP_NUM_THREADS", "TENSORBOARD_LOGGING_DIR",
    "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY",
}  # fmt: skip
# What a shell or a test leaves about itself.
_OF_NO_MATTER = {"_", "SHLVL", "PWD", "OLDPWD", "COLUMNS", "LINES", "PYTEST_CURRENT_TEST"}


def imports() -> None:
    """Import what a training imports."""
    libraries.load(quantizers=False)
    from engine.plan import plans  # noqa: F401
    from engine.train import training  # noqa: F401
    from engine.train.objectives import sft  # noqa: F401


def for_a_run() -> Path:
    """Import, say so on the output, and return the folder of the run that comes on the input. Does not return where the
    input ends before that, or where the run needs a fresh process."""
    before = dict(os.environ)
    # no hub is asked for a base that is here, and no driver whether there is a card: its own library knows
    os.environ.update({"HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"})
    imports()
    if _touched_a_card():
        os._exit(1)
    print("ready", flush=True)
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)
    job = json.loads(line)
    run_dir, settings = Path(job["run_dir"]), job["environment"]
    processes.write_to(run_dir / "worker.log")
    os.environ.clear()
    os.environ.update(settings)
    if not settled_late({**before, "HF_HUB_OFFLINE": "1"}, settings):
        start_afresh(run_dir)
    return run_dir


def settled_late(before: dict[str, str], now: dict[str, str]) -> bool:
    """Whether a process that was started with one environment is, from here on, as one started with the other. Makes the
    settings that can be made late."""
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    changed = {name for name in changed if not name.startswith("TUNEBOOK_")} - _LATE - _OF_NO_MATTER
    if changed - _MALLOPT.keys() or not changed <= now.keys():
        return False
    for name in changed:
        if sys.platform != "linux" or not now[name].isdecimal() or not _mallopt(_MALLOPT[name], int(now[name])):
            return False
    if "datasets" in sys.modules and "HF_DATASETS_CACHE" in now:
        sys.modules["datasets"].config.HF_DATASETS_CACHE = Path(now["HF_DATASETS_CACHE"])
    return True


def _mallopt(setting: int, value: int) -> bool:
    try:
        return ctypes.CDLL(None).mallopt(setting, value) == 1
    except AttributeError:  # another C library
        return False


def start_afresh(run_dir: Path) -> None:
    """Become a process of its own for this run: the same pid, whose end is still its supervisor's to see. Does not
    return."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", MODULE, str(run_dir)])  # noqa: S606 - a list, never a shell


def _touched_a_card() -> bool:
    """Whether the driver has been asked for its cards, which settles which of them are visible."""
    try:
        return "libcuda.so" in Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:
        return False

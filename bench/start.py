"""How long it takes from Start to the first step: with a spare that waits, without one, and beside `import torch` alone.

    python -m bench.start [--rounds 3]

Rounds interleaved, medians; the starter, LoRA, on the sample of new facts. Imports take most of it, so that the ratio to a
bare `import torch` holds from machine to machine; the bars are seconds where that takes 1.5 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from engine import events, processes, spare, starter
from engine.data import datasets
from engine.plan import Plan, plans
from engine.runs import follow, lifecycle
from engine.workspace import Workspace

BARS = {"with a spare": 3.0, "without": 8.0}
# What `import torch` takes on the machine that the bars are for.
TORCH_S = 1.5


def torch_s() -> float:
    """Return the seconds of an interpreter that imports torch and nothing else, less those of one that imports nothing."""
    took = []
    for code in ("pass", "import torch"):
        began_s = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=processes.PROJECT_DIR)  # noqa: S603
        took.append(time.monotonic() - began_s)
    return took[1] - took[0]


def first_step_s(workspace: Workspace, plan: Plan) -> float:
    """Start a run as the Train page does, wait for its end, and return the seconds to its first step."""
    run_id = lifecycle.start(workspace, plan.spec)
    if follow.wait(workspace, run_id, poll_s=0.02) != "finished":
        raise SystemExit(follow.log_tail(workspace.run_dir(run_id)))
    found, _ = events.read(workspace.run_dir(run_id))
    return next(e for e in found if isinstance(e, events.Step)).monotonic_s - found[0].monotonic_s


def wait_for_spare() -> float:
    """Start a spare and return the seconds until it can be taken."""
    began_s, place = time.monotonic(), spare.folder()
    while place is not None and time.monotonic() - began_s < 120:
        lifecycle.prepare()
        if any(place.glob("*.door")):
            return time.monotonic() - began_s
        time.sleep(0.1)
    raise SystemExit("No spare came up: memory is short, or TUNEBOOK_SPARE=0 is set.")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    rounds = arguments.parse_args().rounds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:  # the last supervisor may be leaving still
        os.environ["TUNEBOOK_MACHINE_DIR"] = f"{home}/machine"
        workspace = Workspace(f"{home}/home")
        dataset = datasets.add_sample(workspace, starter.sample("new-facts"))
        overrides = {"train.max_steps": 2, "train.evaluations": 1, "evaluate.benchmarks": []}
        plan = plans.make(workspace, "lora", base="starter", dataset=dataset.id, overrides=overrides)
        found: dict[str, list[float]] = {
            "import torch": [],
            "with a spare": [],
            "without": [],
            "until a spare waits": [],
        }
        for _ in range(rounds):
            found["import torch"].append(torch_s())
            found["without"].append(first_step_s(workspace, plan))
            found["until a spare waits"].append(wait_for_spare())
            found["with a spare"].append(first_step_s(workspace, plan))
    torch = statistics.median(found["import torch"])
    print(f"from Start to the first step, {rounds} rounds, median [lowest, highest]")
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        bar = f" = {TORCH_S * middle / torch:.1f} s where that takes 1.5 (bar {BARS[name]:g})" if name in BARS else ""
        print(
            f"  {name:<20} {middle:.2f} s [{min(seconds):.2f}, {max(seconds):.2f}], {middle / torch:.2f} x torch{bar}"
        )


if __name__ == "__main__":
    main()

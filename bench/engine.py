"""What Tunebook costs over a bare TRL script with the same settings, both in one run, rounds interleaved.

    python -m bench.engine [--rounds 3] [--recipe lora]

Prints medians: seconds of the whole process, steps per second between first and last step, seconds from Start to the
first step, and what the scoring before and after adds when it is on. Ours trains on the same rows with the same batch;
scoring and held-out rows are off in the comparison, since the bare script has none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import events, processes, starter
from engine.data import datasets
from engine.models import bases
from engine.plan import plans
from engine.runs import follow, lifecycle
from engine.spec import counts
from engine.workspace import Workspace


def ours(folder: Path, recipe: str, overrides: dict[str, Any]) -> dict[str, float]:
    """Start a run as the Train page does and return its times."""
    workspace = Workspace(folder)
    dataset = datasets.add_sample(workspace, starter.sample("new-facts"))
    plan = plans.make(workspace, recipe, base="starter", dataset=dataset.id, overrides=overrides)
    if plan.problems:
        raise SystemExit("\n".join(p.sentence for p in plan.problems))
    began_s = time.monotonic()
    run_id = lifecycle.start(workspace, plan.spec)
    status = follow.wait(workspace, run_id, poll_s=0.02)
    whole_s = time.monotonic() - began_s
    if status != "finished":
        raise SystemExit(follow.log_tail(workspace.run_dir(run_id)))
    found, _ = events.read(workspace.run_dir(run_id))
    steps = [e for e in found if isinstance(e, events.Step)]
    rate = (steps[-1].step - steps[0].step) / (steps[-1].monotonic_s - steps[0].monotonic_s)
    return {
        "whole_s": whole_s,
        "steps_per_s": rate,
        "first_step_s": steps[0].monotonic_s - found[0].monotonic_s,
        "steps": steps[-1].step,
    }


def bare(folder: Path, recipe: str, settings: dict[str, Any]) -> dict[str, float]:
    """Run the bare script as a process and return its times."""
    (folder / "settings.json").write_text(json.dumps({**settings, "adapter": recipe}))
    began_s = time.monotonic()
    done = subprocess.run(  # noqa: S603 - a list, no shell
        [sys.executable, "-m", "bench.bare_trl", str(folder / "settings.json"), str(folder)],
        capture_output=True,
        text=True,
        cwd=processes.PROJECT_DIR,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(settings["threads"])},
    )
    whole_s = time.monotonic() - began_s
    if done.returncode:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout.splitlines()[-1])
    return {"whole_s": whole_s, "steps_per_s": (told["steps"] - 1) / told["between_s"], "steps": told["steps"]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--recipe", choices=["lora", "full"], default="lora")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:  # the last supervisor may be leaving still
        os.environ["TUNEBOOK_MACHINE_DIR"] = f"{home}/machine"
        workspace = Workspace(f"{home}/plan")
        dataset = datasets.add_sample(workspace, starter.sample("new-facts"))
        spec = plans.make(
            workspace, chosen.recipe, base="starter", dataset=dataset.id, overrides={"train.replay_share": 0.0}
        ).spec
        steps = counts.optimizer_steps(spec.train, dataset.report.rows)
        settings = {
            "data": str(starter.sample("new-facts").file),
            "base": str(bases.describe("starter", workspace).folder),
            "learning_rate": spec.train.learning_rate,
            "warmup": spec.train.warmup,
            "epochs": spec.train.epochs,
            "batch_size": spec.train.batch_size,
            "accumulation": spec.train.accumulation,
            "max_length": spec.train.max_length,
            "seed": spec.train.seed,
            "threads": spec.train.threads,
            "logging_steps": max(1, min(10, steps // 100)),
        }
        plain: dict[str, Any] = {
            "train.replay_share": 0.0,
            "dataset.eval_id": None,
            "dataset.eval_share": 0.0,
            "evaluate.benchmarks": [],
        }
        results: dict[str, list[dict[str, float]]] = {"bare": [], "ours": [], "ours, scored": []}
        for number in range(chosen.rounds):
            for name in results:
                folder = Path(home) / f"{name.replace(', ', '-')}-{number}"
                folder.mkdir()
                if name == "bare":
                    results[name].append(bare(folder, chosen.recipe, settings))
                else:
                    overrides = plain if name == "ours" else {"train.replay_share": 0.0}
                    results[name].append(ours(folder, chosen.recipe, overrides))
        print(f"{chosen.recipe} on the starter, {steps} steps, {chosen.rounds} rounds, median [lowest, highest]")
        for name, rounds in results.items():
            cells = []
            for key in ("whole_s", "steps_per_s", "first_step_s"):
                values = [r[key] for r in rounds if key in r]
                if values:
                    cells.append(f"{key} {statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
            print(f"  {name:<13} " + "   ".join(cells))

        def middle(name: str, key: str) -> float:
            return statistics.median(r[key] for r in results[name])

        print(f"  steps/s, ours / bare: {middle('ours', 'steps_per_s') / middle('bare', 'steps_per_s'):.3f} (bar 0.97)")
        print(f"  whole run, ours - bare: {middle('ours', 'whole_s') - middle('bare', 'whole_s'):+.2f} s (bar +2 s)")


if __name__ == "__main__":
    main()

"""What Tunebook costs over a bare TRL script with the same settings, both in one run, rounds interleaved.

    python -m bench.engine [--rounds 3] [--recipe lora]
    python -m bench.engine --base FOLDER --rows FILE [--batch 4] [--rounds 1]

Prints medians: seconds of the whole process, steps per second between first and last step, seconds from Start to the
first step, and what the scoring before and after adds when it is on. Ours trains on the same rows with the same batch;
scoring and held-out rows are off in the comparison, since the bare script has none. With a base and rows it trains one
epoch on them, the bare script filled up in fp32, ours as the machine chooses, and prints tokens of the rows a second, what
filling up would cost, and which way ours took.
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

import msgspec

from engine import events, processes, starter
from engine.data import datasets
from engine.estimate import measured
from engine.models import bases
from engine.plan import plans
from engine.runs import follow, lifecycle
from engine.spec import RunSpec, counts
from engine.words import Text, t
from engine.workspace import Workspace

# Nothing but training, as the bare script.
PLAIN: dict[str, Any] = {
    "train.replay_share": 0.0, "dataset.eval_id": None, "dataset.eval_share": 0.0, "evaluate.benchmarks": [],
}  # fmt: skip


def ours(
    folder: Path, recipe: str, overrides: dict[str, Any], base: str = "starter", rows: Path | None = None
) -> dict[str, Any]:
    """Start a run as the Train page does and return its times, and how its rows were laid into batches."""
    workspace = Workspace(folder)
    dataset = _dataset(workspace, rows)
    plan = plans.make(workspace, recipe, base=base, dataset=dataset.id, overrides=overrides)
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
    started = next(e for e in found if isinstance(e, events.Started))
    way = workspace.run_dir(run_id) / "batches.json"
    return {
        "whole_s": whole_s,
        "steps_per_s": rate,
        "first_step_s": steps[0].monotonic_s - found[0].monotonic_s,
        "steps": steps[-1].step,
        "row_tokens": measured.read(workspace)[0].row_tokens,
        "choices": [f"{one.setting}: {one.value}, {one.reason}" for one in started.choices],
        "way": str(msgspec.convert(json.loads(way.read_text())["why"], Text)) if way.exists() else "",
    }


def _dataset(workspace: Workspace, rows: Path | None) -> Any:
    if rows is None:
        return datasets.add_sample(workspace, starter.sample("new-facts"))
    return datasets.add(workspace, rows, t("rows"))


def on_rows(base: str, rows: Path, batch: int, rounds: int, recipe: str) -> None:
    """Train one epoch of a file's rows on a base, bare in fp32 and filled up, and ours as the machine chooses; print tokens
    of the rows a second."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ["TUNEBOOK_MACHINE_DIR"] = f"{home}/machine"
        workspace = Workspace(f"{home}/plan")
        dataset = _dataset(workspace, rows)
        overrides = {**PLAIN, "train.epochs": 1, "train.batch_size": batch, "train.evaluations": 1}
        spec = plans.make(workspace, recipe, base=base, dataset=dataset.id, overrides=overrides).spec
        told = [
            {"prompt": row["prompt"][-1]["content"], "completion": row["completion"][-1]["content"]}
            for row in datasets.read_rows(workspace, dataset.id)
        ]
        flat = Path(home) / "rows.jsonl"
        flat.write_text("".join(json.dumps(row) + "\n" for row in told))
        settings = _settings(spec, str(flat), str(bases.describe(base, workspace).folder), 1)
        found: dict[str, list[dict[str, Any]]] = {"bare": [], "ours": []}
        for number in range(rounds):
            for name in found:
                folder = Path(home) / f"{name}-{number}"
                folder.mkdir()
                made = bare(folder, recipe, settings) if name == "bare" else ours(folder, recipe, overrides, base, rows)
                found[name].append(made)
        row_tokens = found["ours"][0]["row_tokens"]
        rates = {
            name: statistics.median(one["steps_per_s"] for one in several)
            * batch
            * spec.train.accumulation
            * row_tokens
            for name, several in found.items()
        }
        print(f"{recipe}, {len(told)} rows of {row_tokens:.0f} tokens, {batch} a batch, {spec.train.threads} threads")
        print(f"  bare TRL, fp32, filled up: {rates['bare']:.0f} tokens of the rows a second")
        print(f"  ours: {rates['ours']:.0f}, {rates['ours'] / rates['bare']:.2f} times as many (bars: 200, or 1.6)")
        first = statistics.median(one["first_step_s"] for one in found["ours"])
        print(f"  ours: first step after {first:.1f} s. {found['ours'][0]['way']}")
        print("".join(f"    {one}\n" for one in found["ours"][0]["choices"]))


def _settings(spec: RunSpec, data: str, base: str, steps: int) -> dict[str, Any]:
    """Return what the bare script is told of a spec."""
    return {
        "data": data,
        "base": base,
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


def bare(folder: Path, recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
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
    arguments.add_argument("--base", help="a folder of a real base; with --rows")
    arguments.add_argument("--rows", type=Path, help="a file of questions and answers, of which one epoch is trained")
    arguments.add_argument("--batch", type=int, default=4)
    chosen = arguments.parse_args()
    if chosen.base and chosen.rows:
        on_rows(chosen.base, chosen.rows, chosen.batch, chosen.rounds, chosen.recipe)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:  # the last supervisor may be leaving still
        os.environ["TUNEBOOK_MACHINE_DIR"] = f"{home}/machine"
        workspace = Workspace(f"{home}/plan")
        dataset = datasets.add_sample(workspace, starter.sample("new-facts"))
        spec = plans.make(
            workspace, chosen.recipe, base="starter", dataset=dataset.id, overrides={"train.replay_share": 0.0}
        ).spec
        steps = counts.optimizer_steps(spec.train, dataset.report.rows)
        data, folder = str(starter.sample("new-facts").file), str(bases.describe("starter", workspace).folder)
        settings = _settings(spec, data, folder, steps)
        results: dict[str, list[dict[str, Any]]] = {"bare": [], "ours": [], "ours, scored": []}
        for number in range(chosen.rounds):
            for name in results:
                folder = Path(home) / f"{name.replace(', ', '-')}-{number}"
                folder.mkdir()
                if name == "bare":
                    results[name].append(bare(folder, chosen.recipe, settings))
                else:
                    overrides = PLAIN if name == "ours" else {"train.replay_share": 0.0}
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

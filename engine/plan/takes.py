"""What a run takes on this machine, memory and time, and what would make it fit."""

from __future__ import annotations

from typing import Any

import msgspec

from engine import machine
from engine.check import DatasetError
from engine.data import Dataset, datasets, division, lengths
from engine.estimate import choices, measured
from engine.estimate import duration as estimate_duration
from engine.estimate import memory as estimate_memory
from engine.events import Failed
from engine.models import Base, bases
from engine.spec import RunSpec
from engine.words import Text, later
from engine.workspace import Workspace


def device() -> choices.Device:
    """Return this machine as engine/choices.py sees it, by what the driver says; the child asks torch instead."""
    facts = machine.facts()
    return choices.Device(
        name=facts.device.partition(":")[0],
        memory_bytes=facts.device_memory_bytes,
        bf16=bool(facts.gpus) and facts.gpus[0].capability >= 8,
        unsloth=choices.installed("unsloth"),
        flash_attention=choices.installed("flash_attn"),
    )


def chosen(
    run_spec: RunSpec,
    base: Base,
    dataset: Dataset | None,
    workspace: Workspace | None,
    on: choices.Device | None = None,
) -> choices.Chosen:
    """Return what follows from the machine where the spec leaves it open, each with its reason."""
    setup = _shortened(estimate_memory.setup_of(run_spec), base, dataset, workspace)
    return choices.choose(run_spec, on or device(), base.shape, setup)


def memory_of(
    run_spec: RunSpec, base: Base, dataset: Dataset | None = None, workspace: Workspace | None = None
) -> estimate_memory.Estimate:
    """Return the estimated memory of a run on the device of this machine; with the data, for rows as long as its own;
    corrected by what finished runs of its kind took here, where a workspace is given."""
    where, setup = machine.facts().device, setup_here(run_spec, base, dataset, workspace)
    found = estimate_memory.estimate(base.shape, setup, device=where)
    if workspace is None:
        return found
    return found.calibrated(measured.memory(measured.read(workspace), base.shape, setup, device=where))


def setup_here(
    run_spec: RunSpec, base: Base, dataset: Dataset | None, workspace: Workspace | None
) -> estimate_memory.Setup:
    """Return what decides the memory, with what is left open as this machine decides it."""
    setup = _shortened(estimate_memory.setup_of(run_spec), base, dataset, workspace)
    made = choices.choose(run_spec, device(), base.shape, setup)
    return msgspec.structs.replace(setup, gradient_checkpointing=made.gradient_checkpointing, optimizer=made.optimizer)


def _shortened(
    setup: estimate_memory.Setup, base: Base, dataset: Dataset | None, workspace: Workspace | None
) -> estimate_memory.Setup:
    """Return the setup with no row counted as longer than the data's longest."""
    found = lengths.of(dataset, base, workspace) if dataset is not None and workspace is not None else None
    if found is None or found.longest is None:
        return setup
    return estimate_memory.with_longest(setup, found.longest)


def duration_of(run_spec: RunSpec, base: Base, dataset: Dataset, workspace: Workspace) -> estimate_duration.Time | None:
    """Return how long a run takes on this machine, or None when the base's shape or the rows are not known."""
    found = lengths.of(dataset, base, workspace)
    if found is None:
        return None
    trained, held_out = division.split_rows(run_spec, dataset, workspace)
    device, card, memory_gib = estimate_duration.here()
    job = estimate_duration.Job(
        steps=division.steps(run_spec, trained),
        rows_per_step=run_spec.train.batch_size * run_spec.train.accumulation,
        row_tokens=min(found.mean, run_spec.train.max_length),
        held_out=held_out,
        evaluations=run_spec.train.evaluations,
        along=run_spec.evaluate.along,
        threads=run_spec.train.threads,
        dataset=run_spec.dataset.id,
    )
    known = measured.read(workspace)
    alike = [one for one in known if one.dataset == job.dataset and one.shape == base.shape]
    if alike:  # its rows were counted when they were trained on
        job = msgspec.structs.replace(job, row_tokens=alike[0].row_tokens)
    return estimate_duration.estimate(
        base.shape, setup_here(run_spec, base, dataset, workspace), job, device=device, known=known, card=card,
        memory_gib=memory_gib,
    )  # fmt: skip


def remedy_words(change: dict[str, Any]) -> Text:
    """Return a change of settings that makes a run fit, as something to do."""
    names = ", ".join(f"{path} = {_shown(value)}" for path, value in change.items() if path != "adapter")
    if "adapter" in change:
        return later("choose the recipe lora, which fits with: {settings}", settings=names or later("these settings"))
    return later("this would fit: {settings}", settings=names)


def that_would_fit(run_spec: RunSpec, workspace: Workspace) -> dict[str, Any] | None:
    """Return the mildest change of settings by which a run that ran out of memory should fit, the rows of a step kept
    as many; None when nothing helps or too little is known of its base."""
    base, facts = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision), machine.facts()
    if base.shape is None:
        return None
    try:
        dataset = datasets.load(workspace, run_spec.dataset.id)
    except (DatasetError, OSError, ValueError):
        dataset = None
    setup = setup_here(run_spec, base, dataset, workspace)
    change = estimate_memory.smaller_settings(
        base.shape, setup, device=facts.device, memory_bytes=facts.device_memory_bytes
    )
    if change and "train.batch_size" in change:
        rows = run_spec.train.batch_size * run_spec.train.accumulation
        change["train.accumulation"] = max(1, rows // change["train.batch_size"])
    return change


def with_remedy(failure: Failed, run_spec: RunSpec, workspace: Workspace) -> Failed:
    """Return the failure of a run that ran out of memory with the settings that would fit in it."""
    change = that_would_fit(run_spec, workspace) if failure.kind == "oom" else None
    if change:
        failure.fix = remedy_words(change)
    return failure


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Going back toward the base after a run: what can be gone back from, the scan of the way, and a point kept as a run.

Both are runs of the kind `recover`. A scan scores the way at `recover.points` and keeps no weights; a saved point
(`recover.at`) is the origin's spec over again, with an adapter/ or model/ of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import msgspec
import numpy as np

from engine import limits
from engine.brought import adapters
from engine.check import DatasetError
from engine.data import datasets
from engine.forgetting import evaluations, recovery_curve
from engine.models import bases
from engine.models.made import made_by
from engine.report import items
from engine.runs import admission, lifecycle, scored, store
from engine.spec import OBJECTIVES, RunSpec, schema
from engine.words import Problem, t
from engine.workspace import Workspace, find_struct, read_object

# Parts of the way that are scored; both ends were scored with the run.
POINTS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3)
# Parts of each intruder dimension that are taken away.
PARTS = (0.25, 0.5, 0.75, 1.0)
# Of these layouts the linear layers are stored transposed (transformers' Conv1D).
_TRANSPOSED = ("gpt2",)
_SVD_SIZE = 256


def of(workspace: Workspace, run_id: str, *, intruders: bool = False) -> str | None:
    """Return the newest scan of the way back from a run, in whatever state; None where there is none."""
    return next((one for one, told in _named(workspace, run_id) if told.get("at") is None
                 and (told.get("way") == "intruders") == intruders), None)  # fmt: skip


def saved(workspace: Workspace, run_id: str) -> list[str]:
    """Return the points on the way back from a run that were kept as runs, newest first."""
    return [one for one, told in _named(workspace, run_id) if told.get("at") is not None]


@lru_cache(maxsize=4096)  # a page asks several times each time it is drawn, and a spec does not change
def _goes_back(path: str, _changed: int) -> object:
    """Return what a spec says of the run that it goes back from."""
    return read_object(Path(path)).get("recover")


def _named(workspace: Workspace, run_id: str) -> list[tuple[str, dict[str, object]]]:
    """Return the runs that go back from a run, newest first, with what their specs say of it."""
    found = []
    for path in sorted(workspace.runs_dir.glob("*/spec.json"), reverse=True):
        try:
            changed = path.stat().st_mtime_ns
        except OSError:  # deleted meanwhile
            continue
        told = _goes_back(str(path), changed)
        if isinstance(told, dict) and told.get("run") == run_id:
            found.append((path.parent.name, told))
    return found


def curve(workspace: Workspace, run_id: str, *, intruders: bool = False) -> recovery_curve.Curve | None:
    """Return the way back from a run as far as it was scored, by its newest scan; None where nothing was."""
    scan = of(workspace, run_id, intruders=intruders)
    found = scanned(workspace, scan) if scan is not None else None
    # what the file calls its run is not what is started, saved or deleted
    return msgspec.structs.replace(found, run=run_id) if found else None


def scanned(workspace: Workspace, scan: str) -> recovery_curve.Curve | None:
    """Return the way as far as one scan has scored it; None where it has not, or where a run is no scan."""
    return find_struct(workspace.run_dir(scan) / recovery_curve.CURVE, recovery_curve.Curve)


def problems(workspace: Workspace, run_id: str, *, intruders: bool = False) -> list[Problem]:
    """Return everything that keeps the way back from a run from being gone."""
    if limits.on() and "recover" not in limits.limits().kinds:
        return [Problem(rule="demo-kind", parameters={"kind": "recover"})]
    if not store.exists(workspace, run_id):
        return [Problem(rule="recover-gone", where="run", parameters={"run": run_id[:80]})]
    strange = store.unreadable(workspace, run_id)
    if strange is not None:
        return [strange]
    spec, short = store.load_spec(workspace, run_id), store.summary(workspace, run_id)
    told = {"run": store.name(workspace, run_id)}

    def no(rule: str, **more: object) -> list[Problem]:
        return [Problem(rule=rule, where="run", parameters={**told, **more})]  # pyright: ignore[reportArgumentType]

    if spec.recover is not None:
        return no("recover-again", origin=spec.recover.run)
    if spec.kind not in ("train", "adopted"):
        return no("recover-kind")
    if OBJECTIVES[spec.objective].is_judge:
        return no("recover-judge")
    if short.status != "finished":
        return no("recover-unfinished")
    if not short.moved:
        return no("recover-unmoved")
    made = made_by(workspace.run_dir(run_id))
    if made is None:
        return no("recover-nothing")
    if spec.adapter_args.continues:
        return no("recover-continued")
    base = bases.describe(spec.base.ref, workspace, spec.base.revision)
    if base.problems or base.folder is None:
        return no("recover-base-gone", base=base.title)
    return _intruder_problems(spec, base, made) if intruders else []


def _intruder_problems(spec: RunSpec, base: bases.Base, made: object) -> list[Problem]:
    """Return what keeps intruder dimensions from being looked for: it is of LoRA, on linear layers as they are stored."""
    if spec.adapter != "lora":
        return [Problem(rule="intruders-adapter", where="run", parameters={"adapter": spec.adapter})]
    if spec.quantize != "none" or base.stored is not None:
        bits = spec.quantize.removesuffix("bit") if spec.quantize != "none" else str(base.stored.bits)  # pyright: ignore
        return [Problem(rule="intruders-bits", where="run", parameters={"bits": bits})]
    adapter, _ = adapters.read(made)  # pyright: ignore[reportArgumentType]
    transposed = base.shape is not None and base.shape.layout in _TRANSPOSED
    if transposed or adapter is None or adapter.decomposed or any("embedding" in name for name in adapter.tensors):
        return [Problem(rule="intruders-layers", where="run")]
    return []


def suggested(workspace: Workspace, run_id: str, *, intruders: bool = False) -> tuple[float | None, list[Problem]]:
    """Return the point that the scan of a run suggests; None, and why, where it suggests none but the run itself."""
    wrong = problems(workspace, run_id, intruders=intruders)
    found = None if wrong else curve(workspace, run_id, intruders=intruders)
    if found is not None and found.to_take not in (None, found.end):
        return found.to_take, []
    return None, wrong or [Problem(rule="recover-unsuggested", where="at", parameters={"run": run_id[:80]})]


def build(
    workspace: Workspace, run_id: str, *, intruders: bool = False, at: float | None = None,
    points: Sequence[float] = (),
) -> tuple[RunSpec | None, list[Problem]]:  # fmt: skip
    """Return the spec of a saved point, `at` a part of the way, or without it of a scan; with everything that keeps it from
    starting, and None then."""
    found = problems(workspace, run_id, intruders=intruders)
    if found:
        return None, found
    spec = store.load_spec(workspace, run_id)
    way: recovery_curve.Kind = "intruders" if intruders else "interpolate" if spec.adapter == "full" else "scale"
    for part in [*points, *([at] if at is not None else [])]:
        if not (math.isfinite(part) and 0 <= part <= 1):
            return None, [Problem(rule="recover-part", where="at", parameters={"at": f"{part:g}"[:20]})]
    if at is not None and (at == 0 or (at == 1 and not intruders)):
        return None, [Problem(rule="recover-end", where="at", parameters={"at": f"{at:g}"})]
    if at is None and not items.benchmarks_of(workspace.run_dir(run_id)):
        return None, [Problem(rule="recover-unscored", where="run", parameters={"id": run_id})]
    for dataset_id in (spec.dataset.id, spec.dataset.eval_id):
        try:
            _ = datasets.load(workspace, dataset_id) if dataset_id else None
        except (DatasetError, OSError, ValueError):
            return None, [Problem(rule="dataset-missing", where="dataset", parameters={"id": str(dataset_id)[:80]})]
    at = None if at is None else round(at, 4)  # by which its answers are stored
    usual = PARTS if intruders else POINTS
    wanted = (
        [] if at is not None else sorted({round(one, 4) for one in points or usual} - {0.0, 0.0 if intruders else 1.0})
    )
    made = msgspec.structs.replace(
        spec, kind="recover", recover=schema.Recover(run_id, way, at, wanted),
        evaluate=msgspec.structs.replace(spec.evaluate, along=0, budget_s=None),
        machine=msgspec.structs.replace(spec.machine, backend="plain", devices=1, nodes=1),
    )  # fmt: skip
    refused = admission.problems(made, workspace)
    return (None, refused) if refused else (made, [])


def start(workspace: Workspace, spec: RunSpec, *, name: str | None = None, click_id: str | None = None) -> str:
    """Queue a scan or the keeping of a point and return its id. Raises as lifecycle.start does."""
    return lifecycle.start(workspace, spec, name=name or name_of(workspace, spec), click_id=click_id)


def name_of(workspace: Workspace, spec: RunSpec) -> str:
    """Return what a recover run is called in lists."""
    asked = spec.recover
    assert asked is not None
    name = store.name(workspace, asked.run)[:90]
    if asked.at is None:
        if asked.way == "intruders":
            return t("{name}, intruder dimensions", name=name)
        return t("Way back from {name}", name=name)
    part = recovery_curve.percent(asked.at)
    if asked.way == "intruders":
        return t("{name}, intruders less {part} %", name=name, part=part)
    if asked.at == 0.5:
        return t("{name}, half way back", name=name)
    return t("{name}, {part} % of the way", name=name, part=part)


def with_point(found: recovery_curve.Curve | None, at: float, *, intruders: bool = False) -> list[float]:
    """Return the points of a scan that has another one; those that were scored are not asked again."""
    known = [one.at for one in found.points] if found is not None else list(PARTS if intruders else POINTS)
    return sorted({*known, round(at, 4)})


def seconds(workspace: Workspace, run_id: str, points: int, *, intruders: bool = False) -> float | None:
    """Return about how long so many points take, by what scoring took in the run itself; None where that is not known."""
    try:
        cost = evaluations.along_cost(scored.of(workspace, run_id))
    except (OSError, ValueError):
        return None
    if cost is None:
        return None
    return points * (cost.scoring_s + (_reduction_s(workspace, run_id) if intruders else 0.0))


@cache  # a page asks each time it is drawn
def _decomposition_s() -> float:
    """Return how long one decomposition of _SVD_SIZE takes here."""
    matrix = np.random.default_rng(0).standard_normal((_SVD_SIZE, _SVD_SIZE)).astype(np.float32)
    began_s = time.perf_counter()
    np.linalg.svd(matrix, full_matrices=False)
    return time.perf_counter() - began_s


def _reduction_s(workspace: Workspace, run_id: str) -> float:
    """Return about how long taking intruder dimensions away takes once: three decompositions a layer, by one that is made
    here now and the cube of their sizes."""
    made = made_by(workspace.run_dir(run_id))
    found = adapters.header(made / adapters.WEIGHTS) if made is not None else None
    tensors = found or {}
    sizes = [
        (tensors[name.replace("lora_A", "lora_B")][0], shape[1])
        for name, shape in tensors.items()
        if name.endswith("lora_A.weight") and name.replace("lora_A", "lora_B") in tensors
    ]
    return sum(3 * _decomposition_s() * max(size) * min(size) ** 2 / _SVD_SIZE**3 for size in sizes)

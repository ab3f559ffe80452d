"""Bring a tuned model: an adapter or a whole model that was trained elsewhere becomes a run, scored like ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from engine import limits, looker, machine, starter
from engine.brought import adapters, folder
from engine.check import DatasetError
from engine.data import datasets
from engine.forgetting import evaluations
from engine.models import Base, bases
from engine.models.made import made_by
from engine.runs import admission, lifecycle, store
from engine.spec import OBJECTIVES, RunSpec, objectives, schema, settings
from engine.words import Problem, t
from engine.workspace import Workspace


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be adopted, and what a person should know of it before: `notes` are sentences."""

    brought: folder.Brought
    base: Base
    benchmarks: tuple[str, ...]
    limit: int
    data: str
    eval_data: str | None
    notes: tuple[str, ...]
    grader: schema.GraderRef | None = None

    @property
    def size_bytes(self) -> int:
        """How much is read now, and copied when the run begins."""
        return self.brought.size_bytes


def build(
    workspace: Workspace, path: str, ref: str | None = None, *, benchmarks: Sequence[str] = (), limit: int = 0,
    data: str | None = None, eval_data: str | None = None,
) -> tuple[Adoption | None, list[Problem]]:  # fmt: skip
    """Return what adopting a folder comes to, with everything that keeps it from starting; None when there are problems.

    `ref` is the base it was made from; left out, the one that an adapter names, where that is here. `data` are the rows
    it was trained on and `eval_data` rows it has not seen, both ids of stored data sets, where they are known.
    """
    if limits.on():  # before anything is looked at: whether a folder is there is nobody's business
        return None, [Problem(rule="demo-kind", parameters={"kind": "adopted"})]
    if not path.strip():  # of which Path makes the current folder
        return None, [Problem(rule="adopt-no-folder", where="adapter")]
    found, problems = folder.look(Path(os.path.expanduser(path.strip())).absolute() if "\0" not in path else Path("\0"))
    if found is None:
        return None, problems
    named = _named_base(found)
    ref = evaluations.reference(workspace, ref.strip()) if ref and ref.strip() else named
    if not ref:
        return None, [_problem("adopt-base-none", found)]
    base = bases.describe(ref, workspace)
    if base.problems or base.folder is None or base.scores_only:
        return None, _base_problems(base)
    eval_data = eval_data or _attached(workspace, data)
    try:
        problems = [*_misfits(found, base, workspace), *_row_problems(workspace, data, eval_data)]
    except looker.Refused as error:
        return None, [error.problem]
    problems += evaluations.name_problems(workspace, benchmarks) if benchmarks else []
    if problems:
        return None, problems
    notes = [str(note) for note in found.notes]
    if found.adapter is not None and found.adapter.base and not _same_base(found.adapter.base, base):
        told = t("It names another base: {named}. It fits {base}, so it is taken as one trained on that.",
                 named=found.adapter.base[:120], base=base.title)  # fmt: skip
        notes.append(told)
    made = Adoption(
        brought=found, base=base, benchmarks=tuple(dict.fromkeys(benchmarks)), limit=limit, data=data or "",
        eval_data=eval_data, notes=tuple(notes), grader=_grader(workspace, data, eval_data),
    )  # fmt: skip
    planned = _spec(made, "")
    refused = settings.problems(planned) or admission.problems(planned, workspace)
    return (None, refused) if refused else (made, [])


def start(
    workspace: Workspace, adoption: Adoption, *, name: str | None = None, click_id: str | None = None,
    on_share: Callable[[float], None] = lambda _: None,
) -> str:  # fmt: skip
    """Take the sha256 of the folder, queue the run that copies and scores it, and return its id. `on_share` hears how far
    reading is, 0 to 1. Raises OSError and as lifecycle.start does."""
    read, whole = 0, max(1, adoption.size_bytes)

    def on_bytes(n: int) -> None:
        nonlocal read
        read += n
        on_share(min(1.0, read / whole))

    made = _spec(adoption, folder.digest(adoption.brought, on_bytes))
    return lifecycle.start(workspace, made, name=name or adoption.brought.folder.name, click_id=click_id)


def _spec(adoption: Adoption, sha256: str) -> RunSpec:
    found, base, adapter = adoption.brought, adoption.base, adoption.brought.adapter
    args = schema.AdapterArgs()
    if adapter is not None:
        given = {"rank": adapter.rank, "alpha": adapter.alpha, "block_size": adapter.block_size}
        known = {name: int(value) for name, value in given.items() if value and float(value).is_integer()}
        targets = ",".join(sorted({module.rpartition(".")[2] for module in adapter.modules}))
        args = msgspec.structs.replace(args, **known, target_modules=targets)
    return schema.adopted(
        adapter="full" if adapter is None else adapter.kind,
        adapter_args=args,
        base=schema.BaseRef(base.spec_ref, base.revision if base.kind == "hub" else None),
        dataset=schema.DatasetRef(adoption.data, eval_id=adoption.eval_data, eval_share=0.0, grader=adoption.grader),
        train=schema.Train(
            max_length=min(base.window_tokens or 2048, 2048), threads=1 if base.is_toy else machine.facts().cores
        ),
        evaluate=schema.Evaluate(benchmarks=list(adoption.benchmarks), limit=adoption.limit),
        machine=schema.Machine(backend="plain"),
        adopted=schema.Adopted(str(found.folder), sha256, found.tool),
    )


def _problem(rule: str, found: folder.Brought, **more: str | int) -> Problem:
    return Problem(rule=rule, where="adapter", parameters={"folder": str(found.folder)[:300], **more})


def _named_base(found: folder.Brought) -> str:
    """Return the base that an adapter names: an id of the hub or a folder, never another kind of reference."""
    named = found.adapter.base if found.adapter is not None else ""
    if named == str(starter.MODEL_DIR):
        return "starter"
    return named if "/" in named and not named.startswith(("run:", "gguf:")) else ""


def _base_problems(base: Base) -> list[Problem]:
    if base.problems:
        return list(base.problems)
    if base.scores_only:
        return [Problem(rule="evaluate-reward", where="base", parameters={"ref": base.ref[:80]})]
    return [Problem(rule="adopt-base-away", where="base", parameters={"base": base.ref[:120]})]


def _same_base(named: str, base: Base) -> bool:
    """Whether a name means a base: its id or folder, or a copy that Unsloth keeps of it under a name of its own."""

    def plain(name: str) -> str:
        return name.rstrip("/").rpartition("/")[2].lower().removesuffix("-bnb-4bit").removesuffix("-unsloth")

    places = {base.ref, base.spec_ref, str(base.folder)}
    if base.kind == "folder":
        places.add(base.title)  # what we take along names a folder by its last name
    return named in places or (base.kind == "hub" and plain(named) == plain(base.spec_ref))


def _lowest(base: Base, workspace: Workspace) -> Base:
    """Return the model whose weights a base stands on: what lies below the adapters of earlier runs."""
    while base.kind == "run" and base.folder is not None and base.folder.name == "adapter":
        below = store.load_spec(workspace, base.ref.removeprefix("run:")).base
        base = bases.describe(below.ref, workspace, below.revision)
    return base


def _misfits(found: folder.Brought, base: Base, workspace: Workspace) -> list[Problem]:
    """Return what says that this is not the base of that folder, by the headers of both."""
    lowest = _lowest(base, workspace)
    if lowest.problems or lowest.folder is None:
        return _base_problems(lowest)
    here = mine = folder.tensors(lowest.folder)
    packed = any(".quant_state." in name for name in here)  # weights in 4 bits do not show their shapes
    if found.adapter is not None:
        wrong = [] if packed else adapters.misfits(found.adapter, here, lowest.shape)
    else:
        described = bases.describe(str(found.folder), workspace)
        if described.problems or described.scores_only:
            return _base_problems(described)
        mine = folder.tensors(found.folder)
        wrong = [] if packed else folder.unlike(mine, here)
    rows = next((shape[0] for name, shape in mine.items() if name.endswith(folder.EMBEDDINGS)), 0)
    if wrong:
        return [_problem("adopt-misfit", found, base=base.title, n=len(wrong), layer=wrong[0][:160])]
    tokens = folder.tokens_of(found.folder) if found.own_tokenizer else None
    if tokens and rows and tokens > rows:
        return [_problem("adopt-tokens", found, tokens=tokens, rows=rows)]
    return []


def _row_problems(workspace: Workspace, data: str | None, eval_data: str | None) -> list[Problem]:
    """Return what keeps rows from being scored; both data sets must feed the same objective."""
    kinds: set[str] = set()
    for dataset_id in (data, eval_data):
        if not dataset_id:
            continue
        try:
            report = datasets.load(workspace, dataset_id).report
        except (DatasetError, OSError, ValueError):
            return [Problem(rule="dataset-missing", where="dataset", parameters={"id": dataset_id[:80]})]
        if not asks(report.type):
            return [Problem(rule="adopt-rows", where="dataset", parameters={"kind": report.type or "?"})]
        kinds.add(asks(report.type))
    return [Problem(rule="adopt-rows", where="dataset", parameters={"kind": " + ".join(sorted(kinds))})][
        : len(kinds) > 1
    ]


def known(workspace: Workspace, run_id: str) -> list[str]:
    """Return what is known of how a model came to be that was tuned elsewhere, and what is not, as sentences."""
    made, told = made_by(workspace.run_dir(run_id)), store.load_spec(workspace, run_id)
    by = told.adopted.tool if told.adopted is not None else ""
    found = [t("Trained elsewhere; its files speak of {tool}.", tool=by) if by else t("Trained elsewhere.")]
    adapter = adapters.read(made)[0] if made is not None and made.name == "adapter" else None
    if adapter is not None:
        words = {"rank": t("rank"), "alpha": t("alpha"), "block size": t("block size"), "modules": t("modules")}
        figures = ", ".join(f"{words[name]} {value}" for name, value in adapters.figures(adapter).items())
        found.append(t("Read from its files: {kind}, {figures}.", kind=adapters.names(adapter), figures=figures))
        if adapter.whole:
            found.append(t("It brings these whole: {names}.", names=", ".join(adapter.whole)[:200]))
    if told.dataset.id:
        found.append(t("Not known: learning rate, steps, objective. What it was trained on is what you named."))
    else:
        found.append(t("Not known: data, learning rate, steps, objective."))
    return found


def _attached(workspace: Workspace, data: str | None) -> str | None:
    """Return the evaluation rows that belong to a data set."""
    try:
        return datasets.load(workspace, data).eval_id if data else None
    except (DatasetError, OSError, ValueError):
        return None


def _grader(workspace: Workspace, *data: str | None) -> schema.GraderRef | None:
    """Return the grader that the first of the data sets names that has one; theirs must be rows with right answers."""
    for one in filter(None, data):
        try:
            found = datasets.load(workspace, one)
        except (DatasetError, OSError, ValueError):
            continue
        if found.grader is not None and asks(found.report.type) == "sft":
            return found.grader
    return None


def asks(data_type: str | None) -> str:
    """Return the objective whose questions rows of a type are, or nothing for rows that hold no answers."""
    fed = [name for name in objectives.feeds(data_type) if not OBJECTIVES[name].writes_answers]
    return fed[0] if fed else ""

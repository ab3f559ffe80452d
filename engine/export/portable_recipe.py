"""A run as other trainers need it: its spec, its base as they find it, its rows as they read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engine import looker
from engine.check import DatasetError
from engine.data import datasets
from engine.export.artifacts import NotExportable, is_conv1d, refused
from engine.models import Base, bases, shapes
from engine.render import Coder, NoTokenizer, NotWritten, template
from engine.runs import store
from engine.spec import OBJECTIVES, RunSpec, counts, split
from engine.words import t
from engine.workspace import Workspace

# How a row is laid out, by the type of the data; what is not named here lies as the person wrote it.
_KINDS = {"preference": "preference", "unpaired-preference": "marked", "prompt-only": "question"}
# Those that are a script for TRL.
BY_TRL = ("trl", "unsloth")
TRAIN, EVALUATE, GENERAL = "train.jsonl", "eval.jsonl", "general.jsonl"


class Writing(NamedTuple):
    """How a base writes conversations: by which chat template, whether that is one of Tunebook's own, since the base has
    none, by which mark it ends an answer, "" for none, which token ends a text, and whether one begins every text."""

    template: str
    is_plain: bool
    mark: str
    end: str
    starts_with_bos: bool


class PortableRecipe(NamedTuple):
    """What other trainers need of a run: its spec, its base as they find it, how its rows are laid out, and how many
    layers the base has (None: not known here)."""

    spec: RunSpec
    run_id: str
    base: str
    kind: str  # messages, prompt, text, preference, marked or question
    depth: int | None
    tools: bool = False
    general: str = "own"  # where replayed rows come from: data, the starter's world, or the base's own answers
    conv1d: bool = False  # GPT-2's layers
    feed_forward: tuple[str, ...] = ()  # what the linear layers of the base's feed-forward part are called
    shape: shapes.Shape | None = None
    writing: Writing | None = None  # None where the base's files are not here
    rows: int = 0  # that it trains on, all but for groups that are held out together; 0 where that is not known
    found: tuple[str, ...] = ()  # what of its rows is not as in the run, where they were written out

    @property
    def warmup_steps(self) -> int | None:
        """Over how many steps the rate rises; None where that hangs on how many rows there are, which is not known."""
        warmup = self.spec.train.warmup
        if 0 < warmup < 1 and not self.rows:
            return None
        return counts.warmup_steps(warmup, counts.optimizer_steps(self.spec.train, self.rows))

    @property
    def evaluates(self) -> bool:
        return self.spec.dataset.eval_id is not None or self.spec.dataset.eval_share > 0

    @property
    def computes_twice(self) -> bool:
        """Whether layers are computed twice to save memory. The machine decides where that was left open, and where the
        script will run is not known: then a base in few bits is taken for one that has no memory to spare."""
        asked = self.spec.train.gradient_checkpointing
        return asked if asked is not None else self.spec.quantize != "none"


def cannot(title: str, reason: str, remedy: str) -> NotExportable:
    """Return the refusal of a trainer, by the name people know it by."""
    return refused("elsewhere", tool=title, reason=reason, remedy=remedy)


def no_objective(recipe: PortableRecipe, title: str) -> NotExportable:
    """Return the refusal of a trainer that does not optimise what the run did."""
    method = OBJECTIVES[recipe.spec.objective].title
    return cannot(
        title, t("{method} is not written for it here", method=method), t("take the adapter or the merged model")
    )


def of_run(workspace: Workspace, run_id: str) -> PortableRecipe:
    """Return a run as other trainers need it. Raises NotExportable when its data is gone."""
    run_spec = store.load_spec(workspace, run_id)
    if run_spec.adopted is not None:
        raise refused("adopt-repeat", id=run_id)
    if run_spec.recover is not None:
        raise refused("recover-repeat", run=run_id, origin=run_spec.recover.run)
    if run_spec.kind != "train":
        raise refused("trained-nothing", run=run_id)
    return of_spec(workspace, run_spec, run_id)


def of_spec(workspace: Workspace, run_spec: RunSpec, run_id: str = "(not started)") -> PortableRecipe:
    """Return a training as other trainers need it, whether or not it was a run. Raises NotExportable when its data is
    gone."""
    base = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision)
    first, rows = _first_row(workspace, run_spec.dataset.id)
    kind = _KINDS.get(OBJECTIVES[run_spec.objective].data_types[0])
    if kind is None:
        kind = next((name for name in ("messages", "prompt") if first.get(name)), "text")
    named = "base" if base.kind in ("starter", "run") else base.ref
    general = "data" if run_spec.train.replay_data else "world" if base.is_toy else "own"
    inside = base.shape.feed_forward if base.shape is not None else ()
    if run_spec.dataset.eval_id is None:
        rows -= split.most_held_out(rows, run_spec.dataset.eval_share)
    return PortableRecipe(
        run_spec, run_id, named, kind, base.layers, bool(first.get("tools")), general, is_conv1d(base),
        tuple(dict.fromkeys(shapes.feed_forward_target(one.name) for one in inside)), base.shape, _writing(base),
        min(rows, run_spec.dataset.most_rows or rows),
    )  # fmt: skip


def _writing(base: Base) -> Writing | None:
    folder = base.folder or base.looked_at
    try:
        return looker.ask(_written, folder, at=folder) if folder is not None else None
    except looker.Refused:
        return None


def _written(folder: Path) -> Writing | None:
    try:
        coder = Coder.of_folder(folder, folder.name)
    except NoTokenizer:
        return None
    try:
        mark = coder.turns.answer_marks[0]
    except NotWritten:
        mark = ""
    return Writing(
        coder.template.source, coder.is_plain, mark, coder.special.get("eos_token", ""), coder.starts_with_bos
    )


def _first_row(workspace: Workspace, dataset_id: str) -> tuple[dict[str, Any], int]:
    """The first row of a data set, and how many there are."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(datasets.rows_path(workspace, dataset_id)) as file:
            return next(file.iter_batches(batch_size=1)).to_pylist()[0], file.metadata.num_rows
    except (DatasetError, OSError, ValueError, StopIteration) as error:
        raise refused("dataset-missing", id=dataset_id[:80]) from error


def read_rows(workspace: Workspace, dataset_id: str) -> list[dict[str, Any]]:
    """Return the canonical rows of a data set. Raises NotExportable when it is gone."""
    try:
        return datasets.read_rows(workspace, dataset_id)
    except (DatasetError, OSError, ValueError) as error:
        raise refused("dataset-missing", id=dataset_id[:80]) from error


def row_for(trainer: str, row: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a canonical row as a trainer reads it that goes by the base's own chat template. TRL has its own layouts, which
    Axolotl hands it for preferences and marked answers; all else Axolotl reads as turns, and so does LLaMA-Factory the
    questions of PPO."""
    by_trl = trainer in BY_TRL
    if kind == "text" or row.get("text") is not None:
        turns = {"messages": [{"role": "assistant", "content": row["text"]}]}
        return turns if trainer == "axolotl" else {"text": row["text"]}
    # arguments of several kinds are no column of one kind, which Axolotl's loader makes of them; it reads them as text
    form = template.Form(text_arguments=trainer == "axolotl" and kind in ("messages", "prompt"))
    parts = {
        name: template.for_template(row[name], form)
        for name in ("prompt", "completion", "chosen", "rejected", "messages")
        if row.get(name)
    }
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    if kind == "messages":
        return {"messages": parts.get("messages", []), **tools}
    if kind == "question":
        return {"prompt" if by_trl else "messages": parts["prompt"], **tools}
    if kind == "marked":
        return {"prompt": parts["prompt"], "completion": parts["completion"], "label": row["label"]}
    if kind == "preference":
        return {name: parts[name] for name in ("prompt", "chosen", "rejected")}
    if by_trl:
        return {"prompt": parts["prompt"], "completion": parts["completion"], **tools}
    asked = len(parts["prompt"])  # of the question nothing is learned
    turns = parts["prompt"] + parts["completion"]
    return {"messages": [{**m, "train": i >= asked and m["role"] == "assistant"} for i, m in enumerate(turns)], **tools}


def carries_replay(recipe: PortableRecipe) -> bool:
    """Whether the run's general rows can be carried; what a base wrote itself cannot."""
    return OBJECTIVES[recipe.spec.objective].replays and recipe.spec.train.replay_share > 0 and recipe.general != "own"


def common_differences(recipe: PortableRecipe) -> list[str]:
    """What no trainer does as the run did."""
    found = ["the scores before and after (gained and forgotten): only Tunebook makes them"]
    if recipe.spec.train.tolerance != "off":
        limit = recipe.spec.train.tolerance
        found.append(
            f"train.tolerance = {limit}: no other trainer watches general text, so nothing bounds what is lost"
        )
    if recipe.spec.base.ref.startswith("run:"):
        run_id = recipe.spec.base.ref.removeprefix("run:")
        found.append(
            f"its base is what another run made: make it with `tunebook export {run_id} --what merged --to base`, beside "
            "this file"
        )
        if recipe.spec.adapter_args.continues:
            found.append(
                "it trained the adapter of that run on; here a new one of its kind is trained on the merged model"
            )
    if recipe.spec.adapter_args.target_modules == shapes.FEED_FORWARD and not recipe.feed_forward:
        found.append("the feed-forward layers of its base are not known here: all linear layers get an adapter there")
    return found


def differences_by_settings(recipe: PortableRecipe) -> list[str]:
    """What is not as in the run where a trainer of its own is told by settings, beside common_differences()."""
    train, found = recipe.spec.train, list[str]()
    if train.replay_share:
        found.append(f"train.replay_share = {train.replay_share:g}: the general rows of each epoch are left out")
    found.append("rows come in another order, so a step's loss is that of other rows")
    if train.warmup:
        found.append("each rate of its warm-up comes one step later: its first step has a rate of 0 and learns nothing")
    if recipe.evaluates:
        found.append(
            "the held-out loss is the mean of its batches' means: other figures, and maybe another best checkpoint"
        )
    if recipe.base == "base" and not recipe.spec.base.ref.startswith("run:"):
        found.append("the base is Tunebook's starter, a toy of a million weights that lies in base/")
    return found


def revision(recipe: PortableRecipe) -> str | None:
    """The commit to load the base at; None where the base is not found under its own name."""
    return recipe.spec.base.revision if recipe.base == recipe.spec.base.ref else None


def head(recipe: PortableRecipe, what: str, how: list[str], differences: list[str]) -> list[str]:
    """The lines at the start of a file: what it is, how to run it, and what is not as in the run."""
    return [
        f"{what} of the Tunebook run {recipe.run_id} (recipe {recipe.spec.recipe.name}).",
        "",
        "Run it:",
        *[f"    {line}" for line in how],
        "",
        "Not the same as in the run:",
        *[f"  - {line}" for line in differences],
    ]


def commented(lines: list[str]) -> str:
    """The lines as a comment; a line break in a name does not end it."""
    return "".join(f"# {part}".rstrip() + "\n" for line in lines for part in line.splitlines() or [""])


def target_modules(recipe: PortableRecipe) -> list[str] | None:
    """The modules that get an adapter; None for all linear ones, and where those of the feed-forward part are not known."""
    names = recipe.spec.adapter_args.target_modules
    if names == shapes.FEED_FORWARD:
        return list(recipe.feed_forward) or None
    return None if names == "all-linear" else [name.strip() for name in names.split(",")]


def as_yaml(head: list[str], settings: dict[str, Any]) -> str:
    return commented(head) + "\n" + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def keeps_less(recipe: PortableRecipe, carried: tuple[str, ...] = ()) -> list[str]:
    """What is not carried over of how the run keeps what its base knew."""
    keep = recipe.spec.objective_args.keep
    if keep == "plain" or keep in carried:
        return []
    return [f"objective_args.keep = {keep}: all tokens of an answer are learned alike there"]


def chosen_layers(recipe: PortableRecipe, title: str) -> list[int] | None:
    """The layers that train, by number; None for all. Raises NotExportable in the name of a trainer."""
    if recipe.spec.layers == "all":
        return None
    if recipe.depth is None and not isinstance(recipe.spec.layers, list):
        raise cannot(title, t("the number of layers of the base is not known here"), t("take the TRL script instead"))
    return counts.layer_indices(recipe.spec.layers, recipe.depth or 10**6)


def keeps_best(recipe: PortableRecipe) -> bool:
    return recipe.evaluates and (recipe.spec.train.keep_best or recipe.spec.train.early_stopping > 0)


def schedule(recipe: PortableRecipe) -> str:
    """The name by which transformers knows the run's schedule; its constant one has no warm-up."""
    train = recipe.spec.train
    return "constant_with_warmup" if train.schedule == "constant" and train.warmup else train.schedule


def warmup(recipe: PortableRecipe) -> dict[str, Any]:
    """How transformers is told of the warm-up. Its first step has a rate of 0: with a step more the others have the rates of
    the run (engine/train/schedules.py)."""
    rises = recipe.warmup_steps
    if rises is None:
        return {"warmup_ratio": recipe.spec.train.warmup}
    return {"warmup_steps": rises + 1 if rises else 0}


def optimizer(recipe: PortableRecipe) -> str:
    return "adamw_bnb_8bit" if recipe.spec.train.optimizer == "adamw_8bit" else "adamw_torch_fused"

"""Take a run's recipe to other trainers: a TRL script, plain or by Unsloth, LLaMA-Factory's and Axolotl's YAML, each with
its rows.

What a trainer cannot say stands in the head of its file. Keys are those of TRL 1.12 (SFTConfig and its like),
LLaMA-Factory 0.9.5 (src/llamafactory/hparams, data/README.md) and Axolotl 0.19.0 (src/axolotl/utils/schemas).
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from engine.export import axolotl, llama_factory, portable_recipe, trl, unsloth, written_out
from engine.export.artifacts import refused
from engine.export.portable_recipe import BY_TRL, EVALUATE, GENERAL, TRAIN, PortableRecipe
from engine.models import bases
from engine.spec import OBJECTIVES, counts, split
from engine.words import t
from engine.workspace import Workspace, scratch


class Trainer(NamedTuple):
    """Another trainer: what it is called, how its files are made (name -> text), why it has no PPO, and whether it is
    handed rows as the base reads them (written_out.py), since it has chat templates of its own."""

    title: str
    files: Callable[[PortableRecipe], dict[str, str]]
    no_ppo: str
    written_out: bool = False


_NO_PPO_BY_TRL = (
    "TRL 1.12's PPOTrainer hears no stop, goes on from no checkpoint and drops questions at the end of a pass; "
    "the run's own loop around it is no script"
)
TRAINERS = {
    "trl": Trainer(trl.TITLE, trl.files, no_ppo=_NO_PPO_BY_TRL),
    "unsloth": Trainer(unsloth.TITLE, unsloth.files, no_ppo=_NO_PPO_BY_TRL),
    "llama-factory": Trainer(
        llama_factory.TITLE,
        llama_factory.files,
        no_ppo="its stage ppo wants a reward model with a value head that was trained there",
        written_out=True,
    ),
    "axolotl": Trainer(axolotl.TITLE, axolotl.files, no_ppo="it has no PPO"),
}


def write(workspace: Workspace, run_id: str, trainer: str, target: Path) -> list[Path]:
    """Write a run's recipe for a trainer (a name of TRAINERS) with its rows into `target`, which must be new or empty,
    and return the files. Raises NotExportable when the trainer cannot do what the run did; nothing is left then."""
    return write_recipe(workspace, portable_recipe.of_run(workspace, run_id), trainer, target)


def write_recipe(workspace: Workspace, recipe: PortableRecipe, trainer: str, target: Path) -> list[Path]:
    """Write a recipe for a trainer as `write` does, whether or not it was a run."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise refused("export-in-the-way", folder=str(target))
    files(recipe, trainer)  # refuses what cannot be done there before rows are read
    partial = target.with_name(f"{scratch(target.name)}partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        if TRAINERS[trainer].written_out and not OBJECTIVES[recipe.spec.objective].needs_judge:
            recipe = recipe._replace(found=tuple(written_out.write(workspace, recipe.spec, partial)))
        else:
            _rows(workspace, recipe, trainer, partial)
        for name, text in files(recipe, trainer).items():
            (partial / name).write_text(text, encoding="utf-8")
        base = bases.describe(recipe.spec.base.ref, workspace)
        if base.kind == "starter" and base.folder is not None:
            shutil.copytree(base.folder, partial / "base")
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return sorted(path for path in target.iterdir())


def _rows(workspace: Workspace, recipe: PortableRecipe, trainer: str, folder: Path) -> None:
    """Write the rows as a trainer reads them that goes by the base's own chat template."""
    train, out = split.divide(recipe.spec.dataset, lambda dataset_id: portable_recipe.read_rows(workspace, dataset_id))
    _check_turns([*train, *out], TRAINERS[trainer].title)
    _write_rows(folder / TRAIN, [portable_recipe.row_for(trainer, row, recipe.kind) for row in train])
    if recipe.evaluates:
        _write_rows(folder / EVALUATE, [portable_recipe.row_for(trainer, row, recipe.kind) for row in out])
    if trainer in BY_TRL and portable_recipe.carries_replay(recipe):
        _write_rows(folder / GENERAL, _general(workspace, recipe, len(train)))


def _check_turns(rows: list[dict[str, Any]], title: str) -> None:
    """Raise NotExportable when a turn is not to be trained: in the files of others nothing says so."""
    for row in rows:
        targets = row.get("messages") or row.get("completion") or []
        if any(message.get("train") is False for message in targets if message["role"] == "assistant"):
            reason = t("some turns of its data are not to be trained (weight 0)")
            raise portable_recipe.cannot(title, reason, t("take the adapter or the merged model"))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _general(workspace: Workspace, recipe: PortableRecipe, rows: int) -> list[dict[str, Any]]:
    """The general rows, in the order in which the run drew them (engine/train/rows.py)."""
    from engine.starter import world

    train = recipe.spec.train
    if train.replay_data:
        found = portable_recipe.read_rows(workspace, train.replay_data)
        random.Random(train.seed).shuffle(found)  # noqa: S311 - an order, not a secret
        kinds = [next((name for name in ("messages", "prompt") if row.get(name)), "text") for row in found]
        return [portable_recipe.row_for("trl", row, kind) for row, kind in zip(found, kinds, strict=True)]
    count = counts.replayed_rows(train, rows) * math.ceil(train.epochs)
    return [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "completion": [{"role": "assistant", "content": pair["completion"]}],
        }
        for pair in world.replay_rows(count, train.seed)
    ]


def files(recipe: PortableRecipe, trainer: str) -> dict[str, str]:
    """Return the files of a recipe for a trainer but for its rows: name -> text. Raises NotExportable when it cannot be
    done there."""
    if OBJECTIVES[recipe.spec.objective].needs_judge:
        return _ppo(recipe, trainer)
    return TRAINERS[trainer].files(recipe)


def by_hand() -> list[str]:
    """Return what two more tools would need, which have no file of settings that can be written from outside."""
    return [
        t(
            "H2O LLM Studio: wants a table with one question and one answer column (CSV or Parquet) and is set up on its "
            "own page; take train.jsonl of the TRL export into such a table. It has no OFT and no training of "
            "single layers."
        ),
        t(
            "AutoTrain: wants the rows as a data set on the hub with one text column, already written in the base's chat "
            "template; `autotrain llm --help` names its settings. It has no OFT, no replay and no training of single layers."
        ),
    ]


def _ppo(recipe: PortableRecipe, trainer: str) -> dict[str, str]:
    """A file that says why PPO cannot be expressed there, with all that the run was told; the questions lie beside it."""
    run_spec, args = recipe.spec, recipe.spec.objective_args
    told = {
        "base": run_spec.base.pinned, "reward_model": args.reward_model or "", "beta": args.beta,
        "answer_tokens": args.answer_tokens, "temperature": args.temperature, "ppo_epochs": args.ppo_epochs,
        "missing_end_penalty": args.missing_end_penalty, "adapter": run_spec.adapter,
        "learning_rate": run_spec.train.learning_rate, "batch_size": run_spec.train.batch_size,
        "accumulation": run_spec.train.accumulation, "epochs": run_spec.train.epochs, "seed": run_spec.train.seed,
    }  # fmt: skip
    title, no_ppo = TRAINERS[trainer].title, TRAINERS[trainer].no_ppo
    why = f"PPO cannot be expressed here: {no_ppo}"
    head = portable_recipe.head(
        recipe,
        f"No recipe for {title}: what was asked",
        [f"tunebook show {recipe.run_id}"],
        [why, *portable_recipe.common_differences(recipe)],
    )
    head += ["", "What the run was told:", *[f"    {name}: {value}" for name, value in told.items()]]
    if trainer in BY_TRL:
        return {"train.py": portable_recipe.commented(head) + f"\nraise SystemExit({why!r})\n"}
    return {"train.yaml": portable_recipe.commented(head)}

"""Direct preference optimisation with TRL's DPOTrainer on our own token ids.

Loss: -log sigmoid(beta (log pi/ref of the chosen answer - log pi/ref of the rejected one)); Rafailov and others,
arXiv 2305.18290, equation 7. The reference is the base itself: the model with its adapter off, or, where every weight
moves, log-probabilities that are computed before the first step; where the adapter of an earlier run is trained on, a
frozen copy of that.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, List, Value
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from engine.train import adapters, batches
from engine.train.callback import EventCallback
from engine.train.objectives import common, preference
from engine.train.objectives.preference import Pair, TokenIdsAlready
from engine.train.run import Run
from engine.train.scoring import judged, scores
from engine.train.scoring.scores import Question

_IDS = List(Value("int32"))
_FEATURES = Features({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS})


def as_dataset(rows: list[Pair]) -> Dataset:
    """Return pairs as a data set with explicit features; nothing is inferred."""
    return Dataset.from_dict({name: [getattr(row, name) for row in rows] for name in _FEATURES}, features=_FEATURES)


prepare = preference.prepare


def config(run: Run, shared: dict[str, Any]) -> DPOConfig:
    """Return TRL's arguments."""
    return DPOConfig(
        **shared,
        num_train_epochs=run.spec.train.epochs,
        beta=run.beta,
        precompute_ref_log_probs=run.spec.adapter == "full",
    )


class _OnOurIds(TokenIdsAlready, DPOTrainer):
    """TRL's trainer on our rows."""


def trainer(run: Run, args: DPOConfig, model: Any, callback: EventCallback) -> DPOTrainer:
    """Return TRL's trainer on pairs."""
    callback.watch_chosen(args.beta)
    held_out = batches.sorted_by_length(as_dataset(run.rows.evaluate)) if run.rows.evaluate else None
    made = common.trainer(_OnOurIds, args, model, run.tokenizer, as_dataset(run.rows.train), held_out, callback)
    settle_reference(run, made.model)
    batches.settle_pairs(run, made)
    return made


def settle_reference(run: Run, model: Any) -> None:
    """Keep the copy of an adapter that is trained on, which TRL makes before a checkpoint is read. Take away that of a
    fresh adapter, which changes nothing: the base with its adapter off is the same reference, without the memory. A
    resumed run needs this too: its copy would be saved into the next checkpoint."""
    if run.spec.adapter_args.continues:
        adapters.add_reference(model)
    elif adapters.REFERENCE in getattr(model, "peft_config", {}):
        model.delete_adapter(adapters.REFERENCE)


samples = common.written_samples


def questions(run: Run) -> list[Question]:
    """Of each pair, whether the better answer is the likelier one."""
    return [
        Question(
            scores.TASK_PREFERENCE, run.rows.scored,
            lambda m, t, rows: judged.score_preference(m, t, rows, run.length), {"window_tokens": run.length},
        )
    ]  # fmt: skip

"""Direct preference optimisation with TRL's DPOTrainer on our own token ids.

Loss: -log sigmoid(beta (log pi/ref of the chosen answer - log pi/ref of the rejected one)); Rafailov and others,
arXiv 2305.18290, equation 7. The reference is the base itself: the model with its adapter off, or, where every weight
moves, log-probabilities that are computed before the first step.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, List, Value
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from engine.spec import RunSpec, objectives
from engine.train.callback import EventCallback
from engine.train.objectives import arguments
from engine.train.objectives.preference import Pair, TokenIdsAlready

_IDS = List(Value("int32"))
_FEATURES = Features({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS})


def as_dataset(rows: list[Pair]) -> Dataset:
    """Return pairs as a data set with explicit features; nothing is inferred."""
    return Dataset.from_dict({name: [getattr(row, name) for row in rows] for name in _FEATURES}, features=_FEATURES)


def config(spec: RunSpec, common: dict[str, Any]) -> DPOConfig:
    """Return TRL's arguments for a spec."""
    return DPOConfig(
        **common,
        num_train_epochs=spec.train.epochs,
        beta=spec.objective_args.beta or objectives.USUAL_BETA,
        precompute_ref_log_probs=spec.adapter == "full",
    )


class _OnOurIds(TokenIdsAlready, DPOTrainer):
    """TRL's trainer on our rows."""


def trainer(
    spec: RunSpec,
    args: DPOConfig,
    model: Any,
    tokenizer: Any,
    train_rows: list[Pair],
    eval_rows: list[Pair],
    callback: EventCallback,
) -> DPOTrainer:
    """Return TRL's trainer on pairs."""
    held_out = as_dataset(eval_rows) if eval_rows else None
    made = arguments.trainer(_OnOurIds, args, model, tokenizer, as_dataset(train_rows), held_out, callback)
    drop_copied_reference(made.model)
    return made


def drop_copied_reference(model: Any) -> None:
    """Take away the copy of a fresh adapter that TRL makes as the reference: a fresh adapter changes nothing, so the
    base with its adapter off is the same reference, without the memory. A resumed run needs this too: its copy would
    be made before the checkpoint is read, and saved into the next one."""
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")

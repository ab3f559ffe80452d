"""What every objective's trainer is told alike: steps, rates, evaluations, checkpoints, and who listens."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from engine.estimate import machine_choices
from engine.spec import RunSpec, counts, tolerances
from engine.train import batches, best, head, ranks, schedules
from engine.train import held_out as held_out_rows
from engine.train.callback import EventCallback
from engine.train.run import Run
from engine.train.scoring import written

# The most tokens of an answer to a fixed prompt.
SAMPLE_TOKENS = 48


def arguments(
    spec: RunSpec, run_dir: Path, steps: int, *, evaluates: bool, device: str, chosen: machine_choices.Chosen,
    by_watch: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the arguments that TRL's trainers share; each objective adds its own and says how rows are drawn. `by_watch`:
    the best weights are those that watch.py says."""
    train = spec.train
    keeps_best = evaluates and tolerances.chooses(train)
    every = counts.evaluation_steps(train, steps)
    batch_size, accumulation = counts.share_of_step(spec)
    return {
        "output_dir": str(run_dir / "checkpoints"),
        "max_steps": train.max_steps or -1,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup if train.warmup < 1 else int(train.warmup),  # for trackers; schedules.py counts it
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,  # what fits while it trains fits then
        "gradient_accumulation_steps": accumulation,
        "max_length": train.max_length,
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "optim": {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}[chosen.optimizer],
        "seed": train.seed,
        "data_seed": train.seed,
        "bf16": chosen.bf16,
        "fp16": chosen.precision == "fp16",  # with a scaler (transformers 5.17, TrainingArguments)
        "use_cpu": device == "cpu",
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": every,
        "save_strategy": "steps",  # at evaluations, but not too often (callback.py)
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": keeps_best,
        "metric_for_best_model": "eval_choice" if by_watch else "eval_loss",
        "greater_is_better": False,
        "logging_steps": max(1, min(10, steps // 100)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is no number is the end of a run, not to be averaged away
        "ddp_timeout": int(ranks.TIMEOUT.total_seconds()),
        "report_to": train.report_to,
        "run_name": run_dir.name,
        "project": "tunebook",  # trackio's; the others are told by their own variables
        "disable_tqdm": True,
        "dataloader_pin_memory": device == "cuda",
    }


def trainer(
    kind: Any, args: Any, model: Any, tokenizer: Any, train: Dataset, held_out: Dataset | None, callback: EventCallback
) -> Any:
    """Return TRL's trainer of a kind on rows that are token ids already, listened to by our events alone. Its rates and
    its held-out loss are ours; it writes whole checkpoints, and takes the weights of one that is the last of its run."""
    if hasattr(args, "router_aux_loss_coef") and not head.balances(model):
        args.router_aux_loss_coef = 0.0
    ours: Any = type(kind.__name__, (schedules.FromTheFirstStep, held_out_rows.BySum, batches.Arranged, kind), {})
    made = ours(
        model=model, args=args, processing_class=tokenizer, train_dataset=train, eval_dataset=held_out,
        callbacks=[callback],
    )  # fmt: skip
    made.remove_callback(PrinterCallback)  # the events say the same
    if getattr(made, "aux_loss_enabled", False):
        # TRL 1.12 asks for the loss that balances experts at each step (sft_trainer.py, compute_loss); asked for by the
        # config too, transformers 5.17 makes it of every forward, and fails where an answer is written token by token.
        model.config.get_text_config().output_router_logits = False
    save_whole(made)
    best.watch(made)
    train_on = made.train

    def train_unless_done(resume_from_checkpoint: str | None = None) -> None:
        if resume_from_checkpoint is not None:
            best.find_again(Path(resume_from_checkpoint))
        if resume_from_checkpoint is None or not take_trained(made, resume_from_checkpoint):
            train_on(resume_from_checkpoint=resume_from_checkpoint)

    made.train = train_unless_done
    return made


def written_samples(run: Run, model: Any) -> list[tuple[str, str]]:
    """Return what a model writes to the three fixed prompts of a run."""
    texts = written.answer(model, run.tokenizer, [rendered for _, rendered in run.rows.prompts], SAMPLE_TOKENS)
    return [(shown, text) for (shown, _), text in zip(run.rows.prompts, texts, strict=True)]


def take_trained(trainer: Any, checkpoint: str) -> bool:
    """Take the weights of a checkpoint that is the last of its run and return True; False when steps are left.

    transformers 5.17 would take one step more: it looks whether a run is at its end after a step only.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    trainer.state = state
    trainer._load_from_checkpoint(checkpoint)
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        trainer._load_best_model()
    return True


def save_whole(trainer: Any) -> None:
    """Let a trainer write each checkpoint beside its place and rename it: what is there is whole, whatever happens, and
    an older one goes only when the newer one is there. transformers 5.17 writes into the place itself.

    Best and last are kept, the rest is pruned (rotate_checkpoints). The files are flushed before the renaming, so that
    a machine that goes down leaves no names without content.
    """
    save, folder = trainer._save_checkpoint, Path(trainer.args.output_dir)
    beside = folder / "partial"

    def save_beside(model: Any, trial: Any) -> None:
        if ranks.first():
            shutil.rmtree(beside, ignore_errors=True)
        ranks.meet()
        trainer._get_output_dir = lambda trial: str(beside)
        try:
            save(model, trial)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)  # on a full disk: room for the reason
            raise
        finally:
            del trainer._get_output_dir
        ranks.meet()
        if ranks.first():
            name, state = f"checkpoint-{trainer.state.global_step}", trainer.state
            if state.best_model_checkpoint and Path(state.best_model_checkpoint).parent == beside:
                state.best_model_checkpoint = str(folder / name)
                state.save_to_json(str(beside / name / "trainer_state.json"))
            _flush(beside / name)
            shutil.rmtree(folder / name, ignore_errors=True)
            (beside / name).rename(folder / name)
            rotate_checkpoints(str(folder), trainer.args.save_total_limit, state.best_model_checkpoint)
        elif trainer.state.best_global_step == trainer.state.global_step:
            trainer.state.best_model_checkpoint = str(folder / f"checkpoint-{trainer.state.global_step}")
        ranks.meet()

    trainer._save_checkpoint = save_beside


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())

"""Proximal policy optimisation with TRL 1.12's PPOTrainer: the model answers, a reward model judges, the model moves.

Loss: PPO's clipped objective (Schulman and others, arXiv 1707.06347, equation 7) on advantages from GAE (arXiv 1506.02438),
with reward r = judge(question, answer) - beta KL(policy, reference) as in Ouyang and others, arXiv 2203.02155,
equation 2; beta is what holds the model to its start. The reference is the base itself: the model with its adapter off, or
a frozen copy where every weight moves. The value model starts as a copy of the judge (arXiv 2203.02155, appendix C.4)
and trains whole.

What TRL 1.12 leaves open and is done here: the loop hears a stop, goes on from a checkpoint (policy, value, optimizer,
rate and random numbers are saved), and clips gradients.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy
import torch
from datasets import Dataset, Features, List, Value
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.experimental.ppo.ppo_trainer import forward

from engine import words
from engine.estimate import memory
from engine.models import bases
from engine.plan import judges
from engine.report import Item
from engine.report import items as report_items
from engine.runs import checkpoints, failures, store
from engine.spec import RunSpec
from engine.spec import counts as spec_counts
from engine.train import adapters, backend, load, merging, oft, precision, rows, schedules, sound
from engine.train import judge as reading
from engine.train.callback import EventCallback
from engine.train.objectives import common, reward
from engine.train.rows import Named
from engine.train.run import Run
from engine.train.scoring import judged, keys, scores
from engine.train.tokenize import get_ready, render, stops, turn_end, until_end
from engine.words import Problem
from engine.workspace import Workspace

_FEATURES = Features({"input_ids": List(Value("int32"))})
# How many answers are written at once; more only costs memory.
ROLLOUT_BATCH = memory.PPO_ROWS_WRITTEN_AT_ONCE


class Judge(NamedTuple):
    """A reward model, merged and frozen, and the run it came from."""

    model: Any
    ref: str


def load_judge(spec: RunSpec, workspace: Workspace, tokenizer: Any) -> Judge:
    """Load the reward model of a spec with its adapter merged: TRL's PPO reads a wrapped one wrongly.

    Raises RunRefused when it cannot be had, or reads text otherwise than the policy does (preflight has seen the files;
    a base from the hub may only have come since).
    """
    ref = spec.objective_args.reward_model or ""
    try:
        told = store.load_spec(workspace, ref.removeprefix("run:"))
        made = judges.made_by(workspace, ref)
    except (OSError, ValueError):
        made = None
    if made is None:
        raise failures.RunRefused(Problem(rule="ppo-reward-missing", parameters={"ref": ref[:80]}))
    if made.name == "model":
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            made, num_labels=1, use_safetensors=True, trust_remote_code=False, **load.straight()
        )
        loaded.__dict__.pop("hf_device_map", None)
    else:
        below_spec = msgspec.structs.replace(
            spec, base=told.base, quantize="none", adapter="lora", adapter_args=told.adapter_args
        )
        lower = load.load(below_spec, workspace)
        model = sound.unpacked(lower.model, lower.model.dtype)  # merging into few bits would round again
        laid = oft.lay_over(reward.judge(model, lower.tokenizer, 0), made)
        loaded = merging.merged(laid, lower.tokenizer, ref)
    own = AutoTokenizer.from_pretrained(made, trust_remote_code=False)
    get_ready(own)
    if own.get_vocab() != tokenizer.get_vocab() or own.chat_template != tokenizer.chat_template:
        raise failures.RunRefused(Problem(rule="ppo-tokenizer", parameters={"ref": ref[:80]}))
    reading.read_by_mask(loaded)
    where = backend.here().name
    loaded.requires_grad_(False)
    return Judge(loaded.to(where).eval(), ref)


def distinct_pad(tokenizer: Any, prompts: list[list[int]], known: int, ends: Collection[int]) -> int:
    """Return the id that fills answers up: the padding token where no question holds it and no answer `ends` with it,
    since TRL takes every one for padding; else the last token that no question holds. Filled places are masked, never
    read, but they are looked up: among the `known` rows of the embedding, which a tokenizer may have more tokens than."""
    used = {token for ids in prompts for token in ids} | set(ends)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        return tokenizer.pad_token_id
    return next(token for token in range(min(len(tokenizer), known) - 1, -1, -1) if token not in used)


def prepare(run: Run) -> None:
    """Read, split and encode the questions, and load the judge. Raises RunRefused when no question leaves room for an
    answer, or the judge cannot be had."""
    run.rows = questions_of(run.spec, run.workspace, run.tokenizer)
    run.judge = load_judge(run.spec, run.workspace, run.tokenizer)


def questions_of(spec: RunSpec, workspace: Workspace, tokenizer: Any) -> rows.Rows:
    """Return the questions of a spec as token ids, where they leave room for an answer."""
    parts = rows.divided(spec, workspace)
    train, unseen = (rows.read(part, tokenizer) for part in (parts.train, parts.unseen))
    room = spec.train.max_length - spec.objective_args.answer_tokens
    coded = [one.input_ids for one in train.coded]
    kept = [ids for ids in coded if len(ids) <= room]
    if not kept:
        needed = min(map(len, coded), default=0) + spec.objective_args.answer_tokens
        raise failures.RunRefused(
            Problem(rule="data-nothing-trained", parameters={"length": spec.train.max_length, "needed": needed})
        )
    notes = [*train.notes]
    if len(kept) < len(coded):
        counts = {"n": len(coded) - len(kept), "length": spec.train.max_length}
        notes.append(
            words.later("{n} questions were left out: with an answer they do not fit {length} tokens.", **counts)
        )
    notes.append(words.later("Training on {rows} questions; {out} are held out.", rows=len(kept), out=len(unseen.rows)))
    asked = rows.to_score([], unseen.rows, rows.readable(parts.seen, tokenizer), spec)
    scored = [row for row in asked if len(prompt_ids(row[2], tokenizer)) <= room]
    about = rows.about_scores(spec, workspace, parts)
    return rows.Rows(kept, [], [], scored, rows.prompts(unseen.rows or train.rows, tokenizer), notes, about)


def prompt_ids(row: dict[str, Any], tokenizer: Any) -> list[int]:
    """Return the token ids of a question, up to where the answer begins."""
    text = render(tokenizer, row["prompt"], row.get("tools"))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class Batches:
    """Questions for each update, without end: every pass over them in an order of its own, drawn from the seed and the
    pass, so that a resumed run draws what it would have drawn. No question is dropped, as TRL's own loader would."""

    def __init__(self, prompts: list[list[int]], batch: int, padding: int, seed: int, device: Any):
        self._prompts, self._batch, self._padding, self._seed, self._device = prompts, batch, padding, seed, device
        self.done = 0  # updates before this attempt

    def indices(self, update: int) -> list[int]:
        """Return which questions an update asks; updates are counted from 0."""
        count, found = len(self._prompts), []
        for position in range(update * self._batch, (update + 1) * self._batch):
            passed, place = divmod(position, count)
            order = list(range(count))
            random.Random(f"{self._seed}:{passed}").shuffle(order)  # noqa: S311 - an order, not a secret
            found.append(order[place])
        return found

    def __iter__(self) -> Any:
        update = self.done
        while True:
            chosen = [self._prompts[index] for index in self.indices(update)]
            width = max(map(len, chosen))
            filled = [[self._padding] * (width - len(ids)) + ids for ids in chosen]  # answers begin at one place
            yield {"input_ids": torch.tensor(filled, device=self._device)}
            update += 1


def config(run: Run, shared: dict[str, Any]) -> PPOConfig:
    """Return TRL's arguments. What is not set here is TRL 1.12's: clip range 0.2, gamma 1, lambda 0.95, weight of the
    value loss 0.1."""
    args, train = run.spec.objective_args, run.spec.train
    shared = {k: v for k, v in shared.items() if k not in ("max_length", "max_steps", "load_best_model_at_end")}
    return PPOConfig(
        **{**shared, "eval_strategy": "steps"},
        num_train_epochs=train.epochs,
        num_ppo_epochs=args.ppo_epochs,
        num_mini_batches=1,
        kl_coef=run.beta,
        response_length=args.answer_tokens,
        temperature=args.temperature,
        stop_token="eos",  # noqa: S106 - a token of text
        missing_eos_penalty=args.missing_end_penalty,
        local_rollout_forward_batch_size=min(ROLLOUT_BATCH, train.batch_size * train.accumulation),
        num_sample_generations=0,
    )


class _Stopped(Exception):
    """Leaves TRL's loop, which asks nobody."""


class _Hook(TrainerCallback):
    """Comes before our events: puts the counters of a resumed run right, and has samples written at evaluations."""

    def __init__(self, trainer: _Resumable):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_evaluate:
            control.should_evaluate = False
            self._trainer.watch(state.global_step)


class _Resumable(schedules.FromTheFirstStep, PPOTrainer):
    """TRL 1.12's trainer, which hears a stop and goes on from a checkpoint; its rates are ours."""

    def __init__(self, *, prompts: list[list[int]], padding: int, watch: Any, total: int, **settings: Any):
        super().__init__(**settings)
        self.watch, self._padding = watch, padding
        self.model_wrapped = self.model  # the probe of memory asks for it
        self.args.num_total_batches = self._total = total
        self._begun_with: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None
        # TRL clips nothing. The norm is that of all that trains, policy and value together.
        self._grad_norm = 0.0
        outer: Any = self.optimizer  # accelerate's
        self._step, outer.step = outer.step, self._clip_and_step
        self._batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self.batches = Batches(prompts, self._batch, padding, self.args.seed, self.accelerator.device)
        self.dataloader: Any = self.batches

    def _clip_and_step(self) -> None:
        """Clip before the optimizer is asked. In fp16 accelerate takes the scale off first; a hook of the optimizer would
        come too early, since a fused AdamW takes it off itself (torch 2.13, GradScaler.step)."""
        if self.accelerator.sync_gradients:
            groups = self.optimizer.param_groups
            moving = [p for group in groups for p in group["params"] if p.grad is not None]
            norm: Any = self.accelerator.clip_grad_norm_(moving, self.args.max_grad_norm)
            self._grad_norm = float(norm)
        self._step()

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Run TRL's loop over the updates that are left."""
        if resume_from_checkpoint is not None:
            self._load(Path(resume_from_checkpoint))
        self.args.num_total_batches = self._total - self.batches.done
        with suppress(_Stopped):
            super().train()
        self.model = self.accelerator.unwrap_model(self.model).policy

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Send questions with answers as long as they may be forward and backward through policy and value: what the probe
        of memory tries (probe.py). TRL's own loop never comes here."""
        ids = inputs["input_ids"].to(self.accelerator.device)
        answers = ids[:, -1:].expand(-1, self.args.response_length)
        output, values = forward(model, torch.cat([ids, answers], dim=1), self._padding)
        loss = output.logits.float().log_softmax(dim=-1).mean() + values.float().mean()
        self.accelerator.backward(loss)
        return loss.detach()

    def begin(self) -> None:
        """Called when TRL has set its counters to the start."""
        self.state.global_step, self.state.max_steps = self.batches.done, self._total
        self.state.episode = self.batches.done * self._batch
        if self._begun_with is not None:
            _set_random(*self._begun_with)

    def log(self, logs: dict[str, float], *_: Any, **__: Any) -> None:
        """Hand on what is worth a chart, by plain names."""
        if "objective/kl" not in logs:
            return super().log(logs)
        return super().log(
            {
                "loss": logs["loss/policy_avg"] + self.args.vf_coef * logs["loss/value_avg"],
                "learning_rate": logs["lr"],
                "grad_norm": self._grad_norm,
                "reward": logs["objective/scores"],
                "kl": logs["objective/kl"],
                "reward_less_kl": logs["objective/rlhf_reward"],
                "entropy": logs["policy/entropy_avg"],
                "clip_fraction": logs["policy/clipfrac_avg"],
                "value_loss": logs["loss/value_avg"],
                "ended_share": logs["val/num_eos_tokens"] / self._batch,
            }
        )

    # --- checkpoints: written beside, then renamed, so that what is there is whole ---

    def _moving(self) -> dict[str, torch.Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        target = Path(self.args.output_dir or "") / f"checkpoint-{step}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # safetensors refuses two names of one tensor
        moving = {name: p.detach().contiguous().clone() for name, p in self._moving().items()}
        save_file(moving, partial / "model.safetensors")
        optimizer: Any = self.optimizer.state_dict()
        tensors, numbers = _random()
        for index, held in optimizer["state"].items():
            tensors |= {f"{index}.{name}": torch.as_tensor(value).clone().contiguous() for name, value in held.items()}
        save_file(tensors, partial / "optimizer.safetensors")
        numbers |= {"groups": optimizer["param_groups"], "scheduler": self.lr_scheduler.state_dict()}
        if self.accelerator.scaler is not None:
            numbers["scaler"] = self.accelerator.scaler.state_dict()
        (partial / "optimizer.json").write_text(json.dumps(numbers, default=float))
        self.state.save_to_json(str(partial / "trainer_state.json"))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        kept = sorted(target.parent.glob("checkpoint-*[0-9]"), key=checkpoints.step_of)
        for old in kept[: -(self.args.save_total_limit or 2)]:
            shutil.rmtree(old, ignore_errors=True)
        if self.control.should_training_stop:
            self.callback_handler.on_save(self.args, self.state, self.control)
            raise _Stopped

    def _load(self, checkpoint: Path) -> None:
        numbers = json.loads((checkpoint / "optimizer.json").read_bytes())
        tensors = load_file(checkpoint / "optimizer.safetensors")
        saved, moving = load_file(checkpoint / "model.safetensors"), self._moving()
        if saved.keys() != moving.keys():
            raise failures.RunRefused(Problem(rule="checkpoint-broken", parameters={"checkpoint": checkpoint.name}))
        with torch.no_grad():
            for name, parameter in moving.items():
                parameter.copy_(saved[name])
        held: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, what = name.partition(".")
            if index.isdecimal():
                held.setdefault(int(index), {})[what] = tensor
        self.optimizer.load_state_dict({"state": held, "param_groups": numbers["groups"]})
        self.lr_scheduler.load_state_dict(numbers["scheduler"])
        if self.accelerator.scaler is not None and "scaler" in numbers:
            self.accelerator.scaler.load_state_dict(numbers["scaler"])
        self._begun_with = tensors, numbers
        self.batches.done = checkpoints.step_of(checkpoint)


def _random() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the state of every source of random numbers: tensors, and plain numbers for JSON."""
    numpy_state: Any = numpy.random.get_state()  # the one TRL draws from
    kind, keys, *rest = numpy_state
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.tensor(keys.astype("int64"))}
    if torch.cuda.is_available():
        tensors |= {f"random.cuda{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"numpy": [kind, *rest], "python": random.getstate()}


def _set_random(tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["random.torch"])
    kind, *rest = numbers["numpy"]
    numpy.random.set_state((kind, tensors["random.numpy"].numpy().astype("uint32"), *rest))
    version, inner, gauss = numbers["python"]
    random.setstate((version, tuple(inner), gauss))
    for number in range(torch.cuda.device_count()):
        if f"random.cuda{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda{number}"], number)


def trainer(run: Run, args: PPOConfig, model: Any, callback: EventCallback) -> PPOTrainer:
    """Return TRL's trainer on questions as token ids, with the judge and a value model made from it."""
    train_rows, tokenizer, judge = run.rows.train, run.tokenizer, run.judge
    padding = distinct_pad(tokenizer, train_rows, load.embedded(model), stops(tokenizer) or ())
    filling = copy.deepcopy(tokenizer)
    filling.pad_token_id = padding
    filling.eos_token_id = turn_end(tokenizer)  # where TRL cuts an answer off, and looks whether it came to an end
    # Trained whole, so in fp32, whatever the judge is held in.
    value = copy.deepcopy(judge.model).float().requires_grad_(True).train()
    model.generation_config.pad_token_id = padding
    total = spec_counts.optimizer_steps(run.spec.train, len(train_rows))
    if run.spec.adapter_args.continues:
        adapters.add_reference(model)
        args.ref_adapter_name = adapters.REFERENCE
    args.total_episodes = total * run.spec.train.batch_size * run.spec.train.accumulation
    with precision.told_to_accelerate(args):
        made = _Resumable(
            prompts=train_rows,
            padding=padding,
            watch=callback.write_samples,
            total=total,
            args=args,
            processing_class=filling,
            model=model,
            ref_model=None,
            reward_model=judge.model,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": train_rows}, features=_FEATURES),
        )
    if args.gradient_checkpointing:  # TRL 1.12's own loop never comes to where transformers switches it on
        # by the wrapper, which TRL asks whether to switch it off to write answers: with it layers keep no cache
        made.model.gradient_checkpointing_enable()
        value.gradient_checkpointing_enable()
    made.add_callback(_Hook(made))
    made.add_callback(callback)
    made.remove_callback(PrinterCallback)
    return made


@torch.no_grad()
def score_answers(model: Any, tokenizer: Any, judge: Judge, named: list[Named], answer_tokens: int) -> list[Item]:
    """Return an item per question: the model's likeliest answer and what the judge gives it. Greedy, so that two models
    differ by what they learned and not by the dice."""
    items, device = [], model.device
    for start in range(0, len(named), ROLLOUT_BATCH):
        batch = named[start : start + ROLLOUT_BATCH]
        prompts = [prompt_ids(row, tokenizer) for _, _, row in batch]
        padding = distinct_pad(tokenizer, prompts, load.embedded(model), stops(tokenizer) or ())
        width = max(map(len, prompts))
        ids = torch.tensor([[padding] * (width - len(one)) + one for one in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=answer_tokens, do_sample=False, pad_token_id=padding,
            eos_token_id=stops(tokenizer),
        )[:, width:].tolist()  # fmt: skip
        answers = [until_end(tokenizer, one) for one in out]
        whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        given = judged.rewards(judge.model, padding, whole)
        for (name, family, row), prompt, answer, one in zip(batch, prompts, answers, given, strict=True):
            items.append(
                Item(
                    item=name,
                    family=family,
                    prompt_sha=judges.sha(",".join(map(str, prompt))),
                    prompt=row["prompt"][-1].get("content"),
                    text=tokenizer.decode(answer, skip_special_tokens=True)[:500],
                    rewards=[one],
                )
            )
    return items


samples = common.written_samples


def questions(run: Run) -> list[scores.Question]:
    """What the judge gives the answers to held-out questions. The judge's weights are part of the settings."""
    judge, length = run.judge, run.spec.objective_args.answer_tokens
    used = {"judge": keys.weights_key(bases.describe(judge.ref, run.workspace), run.workspace), "answer_tokens": length}
    return [
        scores.Question(
            report_items.ANSWERS, run.rows.scored, lambda m, t, asked: score_answers(m, t, judge, asked, length), used
        )
    ]

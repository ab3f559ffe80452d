"""How rows are laid into micro-batches, so that few tokens are computed for nothing.

Rows of a batch are filled up to the longest: of Alpaca's, in batches of 8 as they come, 2.2 tokens are computed for each
that is there. Laid end to end none is wasted, where attention keeps the rows apart: transformers 5.17 sees from positions
that start again where a row ends, and masks what lies in others (masking_utils.py, find_packed_sequence_indices), with no
attention mask given and no cache; rows_apart.py does not even compute it.
Layers that carry a state from token to token let rows through all the same. So both ways are compared on rows of the run
before it is believed. Elsewhere rows of like length share a batch.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import numpy
import torch
from torch.utils.data import Sampler
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from engine import events
from engine.runs import checkpoints
from engine.train import parts, precision, probe, ranks, rows_apart
from engine.train.run import Run
from engine.words import Text, later
from engine.workspace import find_struct, write_atomically

# So many micro-batches are sorted together: enough that rows of a batch are alike, few enough that an order is left.
WINDOW = 64
# Rows that cost less than this as they come are left as they come.
WORTH = 1.1
# Attention over rows end to end has a score for each pair of a micro-batch's tokens, of other rows too.
MOST_PACKED_TOKENS = 8192
# So many tokens, filled up, are timed, and for how long; one pass each way is always made. A card is fast and wants more to
# do. Of the rows that are held against each other in fp32, the last tokens: what is masked does not hang on how many.
TIMED_TOKENS, TIMED_TOKENS_ON_CARD, TIMED_S, TIMED_PASSES = 384, 8192, 2.0, 3
COMPARED_ROWS, COMPARED_TOKENS = 4, 64
# How far both ways may be apart, relative: fp32 sums in another order (2e-7 and 2e-6 on SmolLM2 of 135 million parameters,
# 385 tokens); on a base held in 16 bits a rounding is 2**-8 (1e-3 and 5e-2 there).
LOSS_APART = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}
GRADIENTS_APART = {torch.float32: 5e-5, torch.float16: 0.15, torch.bfloat16: 0.15}


def factor(lengths: Sequence[int], batch: int) -> float:
    """Return how many tokens are computed for each that is there, when rows of these lengths are filled up in batches."""
    whole = sum(max(some) * len(some) for some in (lengths[n : n + batch] for n in range(0, len(lengths), batch)))
    return whole / max(1, sum(lengths))


def by_length(lengths: Sequence[float], batch: int, order: Sequence[int], dice: random.Random) -> list[int]:
    """Return the rows of an order once each, so that those of a batch are of like length. Within a window the batches
    stand in any order, and rows of one length as before; a short batch comes last of all."""
    laid: list[int] = []
    for start in range(0, len(order), WINDOW * batch):
        window = sorted(order[start : start + WINDOW * batch], key=lambda row: lengths[row])
        over, at = len(window) % batch, batch * dice.randrange(len(window) // batch + 1)
        rest, window = window[at : at + over], window[:at] + window[at + over :]
        groups = [window[n : n + batch] for n in range(0, len(window), batch)]
        dice.shuffle(groups)
        laid += [row for group in groups for row in group] + rest
    return laid


class ByLength(Sampler[int]):
    """Rows by length, in an order of each epoch that the seed fixes: a run that goes on comes to the same rows. With
    `shuffles` off the rows have an order already, which is kept from window to window."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, *, shuffles: bool = True):
        self._lengths, self._batch, self._seed, self._shuffles = lengths, batch, seed, shuffles
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        dice = random.Random(f"{self._seed} {self.epoch}")  # noqa: S311 - an order, not a secret
        order = list(range(len(self._lengths)))
        if self._shuffles:
            dice.shuffle(order)
        return iter(by_length(self._lengths, self._batch, order, dice))


class Arranged:
    """Goes before a trainer of TRL: its rows by length, where that was settled on."""

    by_length: ByLength | None = None

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> Any:
        if self.by_length is not None:
            return self.by_length
        return super()._get_train_sampler(train_dataset)  # pyright: ignore[reportAttributeAccessIssue]


def sorted_by_length(dataset: Any) -> Any:
    """Return held-out rows from the shortest to the longest: their loss is summed, whatever batch a row is in."""
    order = numpy.argsort(probe.row_lengths(dataset), kind="stable") if len(dataset) else []
    return dataset.select(order)


# --- which way -------------------------------------------------------------------------------------------------------


class Way(msgspec.Struct, frozen=True):
    """`packed`: rows of a micro-batch are laid end to end; `by_length`: they are of like length. `why` in words."""

    packed: bool
    by_length: bool
    why: Text


def settle(run: Run, trainer: Any) -> Way:
    """Lay the rows of an SFT trainer end to end where that is right and faster, else by length where that saves
    anything; say which, and return it. What a run settled on holds when it goes on."""
    path = run.run_dir / "batches.json"
    way = find_struct(path, Way)
    if way is None:
        way = _way(run, trainer)
        ranks.meet()  # all have looked before one writes
        if ranks.first():
            write_atomically(path, msgspec.json.encode(way))
        ranks.meet()
        way = find_struct(path, Way) or way
        run.log.append(events.Log(text=way.why))
    rows_apart.use(trainer.model, on=way.packed)
    if way.packed:
        trainer.data_collator = DataCollatorForLanguageModeling(trainer.data_collator.pad_token_id, padding_free=True)
    elif way.by_length:
        group(run, trainer)
    return way


def group(run: Run, trainer: Any) -> None:
    """Let a trainer draw rows of like length together. Rows of a run with replay have an order already."""
    lengths = probe.row_lengths(trainer.train_dataset).tolist()
    trainer.by_length = ByLength(
        lengths, trainer.args.per_device_train_batch_size, run.spec.train.seed, shuffles=not run.rows.replay
    )


def settle_pairs(run: Run, trainer: Any) -> None:
    """Group the pairs of a trainer by length where that saves anything, and say so."""
    if not run.base.is_toy and (way := _grouped(run, trainer, None)).by_length:
        group(run, trainer)
        run.log.append(events.Log(text=way.why))


def _way(run: Run, trainer: Any) -> Way:
    if run.chosen.backend == "unsloth":
        return Way(packed=False, by_length=False, why=later("How rows share a batch is left to Unsloth."))
    if run.base.is_toy:  # a call takes it longer than its tokens
        return Way(packed=False, by_length=False, why=later("Rows of a batch are filled up, as a toy's are."))
    if trainer.padding_free:
        return Way(packed=False, by_length=False, why=later("Rows lie end to end; FlashAttention keeps them apart."))
    reason = _not_tried(run, trainer)
    if reason is not None:
        return _grouped(run, trainer, reason)
    run.log.append(events.Phase(phase="training", detail="probe"))
    found = compare(trainer, _sample(run, trainer))
    if not found.agree:
        return _grouped(run, trainer, later("laid end to end they would see each other in this base"))
    times = f"{found.padded_s / found.packed_s:.2f}"
    if found.packed_s >= found.padded_s and not run.spec.train.padding_free:
        return _grouped(run, trainer, later("laid end to end they had {times} times the speed", times=times))
    why = later(
        "Rows of a batch are laid end to end instead of filled up: loss and gradients are the same to {apart}, and it is "
        "{times} times as fast.", apart=f"{max(found.loss_apart, found.gradients_apart):.0e}", times=times,
    )  # fmt: skip
    return Way(packed=True, by_length=False, why=why)


def _grouped(run: Run, trainer: Any, reason: Text | None) -> Way:
    """Return the way by length, or as the rows come where that costs little."""
    lengths, batch = probe.row_lengths(trainer.train_dataset).tolist(), trainer.args.per_device_train_batch_size
    dice = random.Random(run.spec.train.seed)  # noqa: S311 - an order, not a secret
    order = dice.sample(range(len(lengths)), len(lengths))
    plain = factor([lengths[row] for row in order], batch)
    told = {"plain": f"{plain:.2f}"}
    # rows that an earlier version has begun to show go on in its order; a run of this one knows its way by now (settle)
    begun = reason is not None and checkpoints.last_checkpoint(run.run_dir) is not None
    if plain < WORTH or begun:
        why = later("Rows of a batch are filled up: {plain} tokens are computed for each that is there.", **told)
        return Way(packed=False, by_length=False, why=why)
    told["now"] = f"{factor([lengths[row] for row in by_length(lengths, batch, order, dice)], batch):.2f}"
    if reason is None:
        why = later(
            "Rows of like length share a batch: {now} tokens are computed for each that is there, else {plain}.", **told
        )
    else:
        why = later(
            "Rows of like length share a batch, since {reason}: {now} tokens are computed for each that is there, else "
            "{plain}.", reason=reason, **told,
        )  # fmt: skip
    return Way(packed=False, by_length=True, why=why)


def _not_tried(run: Run, trainer: Any) -> Text | None:
    """Return why rows are not even tried end to end, or None: what is settled without a comparison."""
    if run.spec.train.padding_free is False:
        return later("they are to be filled up")
    batch = trainer.args.per_device_train_batch_size
    lengths = sorted(probe.row_lengths(trainer.train_dataset).tolist())
    if run.only_probes or batch < 2 or len(lengths) < 2:
        return later("no other row shares their batch")
    if factor([n for pair in zip(lengths, reversed(lengths), strict=True) for n in pair], 2) < WORTH:
        return later("they are of nearly one length")
    if sum(lengths[-batch:]) > MOST_PACKED_TOKENS:
        return later("end to end a batch would have {n} tokens, each held against all", n=f"{sum(lengths[-batch:]):,}")
    kind = leaks(trainer.model)
    if kind:
        return later("a layer of this base ({kind}) carries a state from token to token", kind=kind)
    settings = trainer.model.config.get_text_config()
    if getattr(settings, "attention_dropout", 0.0) or getattr(settings, "attn_pdrop", 0.0):
        return later("attention that is dropped in part is written out")
    return None


def leaks(model: Any) -> str:
    """Return the kind of a layer that is known to carry a state over the end of a row, or "": convolutions along the
    tokens, as of LFM2, Mamba, Qwen3-next and Falcon-H1, and models that take no positions."""
    inner = parts.below_adapter(model)
    for module in inner.modules():
        if isinstance(module, torch.nn.Conv1d):
            return type(module).__name__
    backbone = getattr(inner, inner.base_model_prefix, inner)
    return "" if "position_ids" in inspect.signature(type(backbone).forward).parameters else type(inner).__name__


# --- the comparison --------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """How far apart loss and gradients are, relative, and the seconds of the fastest pass of each way."""

    agree: bool
    loss_apart: float
    gradients_apart: float
    padded_s: float
    packed_s: float


def _sample(run: Run, trainer: Any) -> list[dict[str, Any]]:
    """Return a micro-batch of the run, drawn by the seed."""
    dataset, batch = trainer.train_dataset, trainer.args.per_device_train_batch_size
    dice = random.Random(run.spec.train.seed)  # noqa: S311 - an order, not a secret
    drawn = dice.sample(range(len(dataset)), min(batch, len(dataset)))
    return [dataset[row] for row in drawn]


def _ends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last tokens of the first rows, of each some fewer than of the one before."""
    kept = [COMPARED_TOKENS - 8 * number for number in range(COMPARED_ROWS)]
    return [{name: ids[-most:] for name, ids in row.items()} for row, most in zip(rows, kept, strict=False)]


def _timed(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return the rows, all cut to the same share where they would be more than so many tokens filled up: as much of them is
    padding as before."""
    share = min(1.0, most / (len(rows) * max(len(row["input_ids"]) for row in rows)))
    return [{name: ids[-max(2, round(share * len(ids))) :] for name, ids in row.items()} for row in rows]


def compare(trainer: Any, rows: list[dict[str, Any]]) -> Compared:
    """Send rows filled up and end to end through a trainer's model, forward and backward; leave nothing behind. Loss and
    gradients are held against each other with nothing dropped, in fp32 where the weights are; the times are those of the
    arithmetic of the run."""
    model, padding = trainer.model, trainer.data_collator.pad_token_id
    collators = [DataCollatorForLanguageModeling(padding, padding_free=free) for free in (False, True)]
    held, device = next(model.parameters()).dtype, model.device.type
    rows_apart.use(model)
    with probe.undone(trainer), _nothing_dropped(model):
        try:
            with torch.autocast(device, enabled=False), precision.in_full():
                loss, gradients = _pass(model, trainer._prepare_inputs(collators[0](_ends(rows))))
                packed_loss, packed = _pass(model, trainer._prepare_inputs(collators[1](_ends(rows))))
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # whatever a foreign model says to rows end to end
            return Compared(False, float("inf"), float("inf"), 0.0, float("inf"))
        loss_apart = abs(loss - packed_loss) / max(1e-6, abs(loss))
        gradients_apart = float((gradients - packed).norm() / gradients.norm().clamp(min=1e-12))
        agree = loss_apart <= LOSS_APART.get(held, 5e-3) and gradients_apart <= GRADIENTS_APART.get(held, 0.15)
        del gradients, packed
        some = _timed(rows, TIMED_TOKENS if device == "cpu" else TIMED_TOKENS_ON_CARD)
        taken = _times(trainer, [trainer._prepare_inputs(one(some)) for one in collators]) if agree else (0.0, 0.0)
    return Compared(agree, loss_apart, gradients_apart, *taken)


def _times(trainer: Any, ways: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the seconds of the fastest pass each way, taken in turns; on a processor those it worked for us, whatever else
    the machine has to do."""
    clock = time.process_time if trainer.model.device.type == "cpu" else time.perf_counter
    taken: list[list[float]] = [[], []]
    began_s = time.perf_counter()
    while not taken[0] or (len(taken[0]) < TIMED_PASSES and time.perf_counter() - began_s < TIMED_S):
        for times, batch in zip(taken, ways, strict=True):
            started_s = clock()
            with trainer.accelerator.autocast():
                _pass(trainer.model, batch)
            times.append(clock() - started_s)
    return min(taken[0]), min(taken[1])


def _pass(model: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Send a batch forward and backward; return its loss and all gradients, one after another."""
    model.zero_grad(set_to_none=True)
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    if loss.device.type == "cuda":
        torch.cuda.synchronize(loss.device)
    found = [parameter.grad.float().flatten() for parameter in model.parameters() if parameter.grad is not None]
    return float(loss.detach()), torch.cat(found) if found else torch.zeros(1)


@contextmanager
def _nothing_dropped(model: Any) -> Iterator[None]:
    """Let no number be dropped at random, and layers be computed twice where that saves memory, which transformers does
    in training alone."""
    was = [(module, module.training) for module in model.modules()]
    for module, _ in was:
        module.training = isinstance(module, GradientCheckpointingLayer)
    try:
        yield
    finally:
        for module, training in was:
            module.training = training

"""Keeping what the base knew while SFT goes on (objective_args.keep), in three ways beside plain.

entropy: a token counts less where the model is sure of another (keep_losses.entropy_weights). skip_surprising: tokens whose
perplexity under the base is above 2.5 are not learned (arXiv 2501.14315, selective token masking): they are found once,
before the training, and kept in the run's folder. kl: the other tokens' likelihoods are held to the base's
(keep_losses.kl_to_base); the base is the model with its adapter off, and where its own weights move, or an earlier adapter
is trained on, what it said of each row is found once and kept (keep_losses.kl_to_kept, a lower bound).

All sums are divided by the number of trained tokens of the whole step, as a plain loss is, and not by the sum of weights:
micro-batches add up to one batch, and a weight of 1 everywhere is plain SFT. The held-out loss stays plain.
"""

from __future__ import annotations

import inspect
import math
import shutil
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy
import torch
from transformers.utils.generic import ModelOutput

from engine import events
from engine.render import Encoded, skipped
from engine.render.encode import IGNORED
from engine.runs import checkpoints, failures
from engine.train import adapters, head, keep_losses, parts, ranks
from engine.train.run import Run
from engine.words import Problem, later
from engine.workspace import MALFORMED, Unreadable, find_struct, write_atomically

# Above this perplexity a token is not learned (arXiv 2501.14315, section 4: the threshold of all its main tables).
SURPRISING = 2.5
# The weight of the divergence beside the loss where objective_args.beta says no other.
KL_WEIGHT = 1.0
# Of the answer tokens so much may be left out before it is said that little is left to learn.
NEARLY_ALL = 0.9
REFERENCE = "reference"


def keeps_rows(run: Run) -> bool:
    """Whether what the base says is kept by row: it cannot be asked while the training moves it."""
    return run.spec.objective_args.keep == "kl" and (
        run.spec.adapter == "full" or run.spec.adapter_args.continues
    )  # fmt: skip


def prepare(run: Run) -> None:
    """Ask the base, before anything of it moves, about the rows, where this run has to know. Raises RunRefused when no token
    is left to learn. A stop leaves all as it is: the run does not begin."""
    way = run.spec.objective_args.keep
    if run.only_probes:
        return
    if way == "skip_surprising":
        run.rows = _without_surprising(run)
    elif keeps_rows(run):
        rows = [*run.rows.train, *(row for epoch in run.rows.replay for row in epoch)]
        with ranks.one_after_the_first():
            if not _says_all(run.run_dir / REFERENCE, rows):
                _write_reference(run, rows)


# --- asking the base --------------------------------------------------------------------------------------------------


class Logits:
    """Makes logits out of last hidden states, where they are a multiple of the output layer's numbers; `whole` where not."""

    def __init__(self, model: Any, *, whole: bool = False):
        self._own = parts.below_adapter(model)
        self._head = self._own.get_output_embeddings()
        scaling = None if whole else head.scaling(model)
        self.whole = scaling is None
        self._factor, self._cap = scaling or (1.0, None)

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.whole:  # logits already
            return hidden
        logits = self._head(hidden) * self._factor
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def states(self, forward: Any, **inputs: Any) -> torch.Tensor:
        """Return what `of` takes, for each token: the last hidden states, or logits. `forward`: that of the model itself."""
        inputs = {**inputs, "use_cache": False}
        return forward(**inputs).logits if self.whole else self._own.base_model(**inputs).last_hidden_state


@torch.no_grad()
def ask(
    run: Run, rows: Sequence[Encoded], of: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    take: Callable[..., None],
) -> bool:  # fmt: skip
    """Hand to `take` the number of each row and what `of` makes of the logits of its trained tokens and of these, made for
    CHUNK_TOKENS at a time as in the training: those of a long row would fill a card. Rows of like length go through the
    model together. Return False where a stop was asked for in the midst of it, which a run that goes on does not hear: it
    trains a step before it stops, for which it has to know."""
    model, logits = run.model, Logits(run.model)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].input_ids))
    batch, was_training = max(1, run.spec.train.batch_size), model.training
    hears = not ranks.launched() and checkpoints.last_checkpoint(run.run_dir) is None
    run.told.begin("loading", "keep", total=len(rows))
    model.eval()
    try:
        for start in range(0, len(order), batch):
            if hears and run.stop.asked():
                return False
            some = order[start : start + batch]
            for at, told in zip(some, _ask(model, logits, [rows[at] for at in some], of), strict=True):
                take(at, *told)
            run.told.upto(min(len(rows), start + batch))
    finally:
        model.train(was_training)
    return True


def _ask(
    model: Any, logits: Logits, rows: Sequence[Encoded], of: Callable[..., tuple[torch.Tensor, ...]]
) -> Iterator[list[torch.Tensor]]:  # fmt: skip
    longest = max(len(row.input_ids) for row in rows)
    device = model.get_input_embeddings().weight.device
    ids, seen = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    for at, row in enumerate(rows):
        ids[at, : len(row.input_ids)] = torch.tensor(row.input_ids)
        seen[at, : len(row.input_ids)] = 1
    states = logits.states(model, input_ids=ids.to(device), attention_mask=seen.to(device))
    for at, row in enumerate(rows):
        labels = torch.tensor(row.labels[1:], device=device)
        trained = labels != IGNORED
        here, targets, size = states[at, : len(labels)][trained], labels[trained], keep_losses.CHUNK_TOKENS
        parts_of = [
            of(logits.of(here[start : start + size]).float(), targets[start : start + size])
            for start in range(0, max(1, len(targets)), size)
        ]
        yield [torch.cat(one) for one in zip(*parts_of, strict=True)]


# --- skip_surprising ---------------------------------------------------------------------------------------------------


def _without_surprising(run: Run) -> Any:
    """Return the rows without the tokens that surprise the base; general rows stay whole: they are there to be kept."""
    with ranks.one_after_the_first():
        if not _is_whole(run.run_dir, run.rows.train) and not _find_surprising(run):
            return run.rows
    about = skipped.about(run.run_dir)
    assert about is not None
    at = skipped.places(run.run_dir)
    kept = [skipped.without(row, at.get(skipped.key(row), [])) for row in run.rows.train]
    kept = [row for row in kept if row.trained_tokens]
    share = {"share": f"{100 * about.share:.0f}", "n": about.skipped, "total": about.tokens}
    if not kept:
        raise failures.RunRefused(Problem(rule="keep-nothing-left", parameters={"threshold": SURPRISING}))
    notes = [
        later(
            "{share} % of the answer tokens are left out ({n} of {total}): the base finds them surprising (perplexity above "
            "{threshold}).", **share, threshold=SURPRISING,
        )
    ]  # fmt: skip
    if about.rows:
        notes.append(
            later("{n} rows are left out whole: every token of their answers surprises the base.", n=about.rows)
        )
    if about.share >= NEARLY_ALL:
        notes.append(later("That is nearly everything there is to learn: expect little gain, or choose another way."))
    return run.rows._replace(train=kept, about=[*run.rows.about, *notes])


def _is_whole(run_dir: Path, rows: Sequence[Encoded]) -> bool:
    """Whether what was found is there, whole and of these rows; else it is found again, by the base as it was, which a run
    that goes on has before it takes up its checkpoint."""
    try:
        about, at = skipped.about(run_dir), skipped.places(run_dir)
    except (OSError, Unreadable):
        return False
    tokens, out = sum(row.trained_tokens for row in rows), sum(len(at.get(skipped.key(row), ())) for row in rows)
    return about is not None and (about.tokens, about.skipped) == (tokens, out)


def _find_surprising(run: Run) -> bool:
    """Ask the base and keep what it finds surprising; return False where a stop came between."""
    rows: list[Encoded] = run.rows.train
    places: dict[str, list[int]] = {}
    counts = {"tokens": 0, "skipped": 0, "rows": 0}

    def of(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.nn.functional.cross_entropy(logits, targets, reduction="none") > math.log(SURPRISING),)

    def take(at: int, lost: torch.Tensor) -> None:
        trained = [place for place, label in enumerate(rows[at].labels) if place and label != IGNORED]
        out = [place for place, is_lost in zip(trained, lost.tolist(), strict=True) if is_lost]
        places[skipped.key(rows[at])] = out
        counts["tokens"] += len(trained)
        counts["skipped"] += len(out)
        counts["rows"] += len(out) == len(trained)

    if not ask(run, rows, of, take):
        return False
    skipped.write(run.run_dir, skipped.About(threshold=SURPRISING, **counts), places)
    return True


# --- what the base said, kept ------------------------------------------------------------------------------------------


class Row(msgspec.Struct, frozen=True):
    """Where a row's tokens stand in the two files, and how many they are."""

    row: str
    start: int
    tokens: int


class Kept(msgspec.Struct, frozen=True):
    """`width` of the base's likeliest other tokens are kept for each of `tokens` trained tokens."""

    width: int
    tokens: int
    rows: list[Row]


IDS, TOLD = "ids", "log_probabilities"


def _opened(folder: Path) -> tuple[dict[str, Row], numpy.ndarray, numpy.ndarray]:
    """Return the rows that a reference knows and its two files, mapped. Raises OSError, or what MALFORMED names, where
    one is not whole."""
    kept = find_struct(folder / "rows.json", Kept)
    if kept is None:
        raise FileNotFoundError(folder / "rows.json")
    shape = (kept.tokens, kept.width)
    ids = numpy.memmap(folder / IDS, numpy.int32, "r", shape=shape)
    return {one.row: one for one in kept.rows}, ids, numpy.memmap(folder / TOLD, numpy.float32, "r", shape=shape)


def _says_all(folder: Path, rows: Sequence[Encoded]) -> bool:
    """Whether a reference is whole and knows each of these rows."""
    try:
        known, ids, _ = _opened(folder)
    except (OSError, *MALFORMED):
        return False
    told = ((known.get(skipped.key(row)), row.trained_tokens) for row in rows if row.trained_tokens)
    return all(one and one.tokens == tokens and 0 <= one.start <= len(ids) - tokens for one, tokens in told)


def _write_reference(run: Run, rows: Sequence[Encoded]) -> None:
    """Keep what the base says of each different row, in two files that are read where they lie: ids and ln q', 8 bytes for
    each of KEPT_TOP tokens, so half a KiB a trained token. Written beside their place and renamed."""
    different = list({skipped.key(row): row for row in rows if row.trained_tokens}.items())
    starts, total = [], 0
    for _, row in different:
        starts.append(total)
        total += row.trained_tokens
    width = min(keep_losses.KEPT_TOP, run.model.get_output_embeddings().weight.shape[0] - 1)
    partial, target = run.run_dir / f"{REFERENCE}.partial", run.run_dir / REFERENCE
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        # Written and not mapped: a map that a full disk cannot hold ends the process without a word.
        with (partial / IDS).open("wb") as ids, (partial / TOLD).open("wb") as told:

            def take(at: int, *said: torch.Tensor) -> None:
                for file, found, kind in zip((ids, told), said, ("<i4", "<f4"), strict=True):
                    file.seek(4 * width * starts[at])
                    file.write(found[:, :width].cpu().numpy().astype(kind).tobytes())

            if not ask(run, [row for _, row in different], keep_losses.kept_of_base, take):
                shutil.rmtree(partial, ignore_errors=True)
                return
        rows_told = [Row(name, start, row.trained_tokens) for (name, row), start in zip(different, starts, strict=True)]
        write_atomically(partial / "rows.json", msgspec.json.encode(Kept(width, total, rows_told)))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk: room for the reason
        raise
    shutil.rmtree(target, ignore_errors=True)  # not whole, or of other rows
    partial.rename(target)
    size = f"{8 * width * total / 2**20:.1f}"
    run.log.append(
        events.Log(
            text=later(
                "The base's {width} likeliest other tokens were kept for {tokens} trained tokens ({size} MiB): what the run "
                "is held to is a lower bound of the divergence.", width=width, tokens=total, size=size,
            )
        )
    )  # fmt: skip


def forget(run: Run) -> None:
    """Remove what the base said, of a run that is finished: it is of the size of a checkpoint, and nothing asks it again."""
    shutil.rmtree(run.run_dir / REFERENCE, ignore_errors=True)


class WithReference:
    """Goes before a collator: adds to a batch what the base said of its trained tokens, in their order. A batch of which it
    said nothing, as one that is held out, stays as it is."""

    def __init__(self, inner: Any, folder: Path, *, made_up: bool):
        self._inner, self._made_up = inner, made_up
        self.pad_token_id = inner.pad_token_id
        if not made_up:
            self._rows, self._ids, self._told = _opened(folder)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self._inner(rows)
        coded = [Encoded(list(row["input_ids"]), list(row["labels"]), cut=False) for row in rows]
        if self._made_up:  # memory is tried: any numbers take as much
            count = sum(row.trained_tokens for row in coded)
            ids = torch.arange(keep_losses.KEPT_TOP).expand(count, -1)
            told = torch.full((count, keep_losses.KEPT_TOP), -math.log(2 * keep_losses.KEPT_TOP))
            return {**batch, "base_ids": ids, "base_told": told}
        found = [self._rows.get(skipped.key(row)) for row in coded if row.trained_tokens]
        if any(one is None for one in found):
            return batch
        spans = [slice(one.start, one.start + one.tokens) for one in found if one is not None]
        ids = numpy.concatenate([self._ids[span] for span in spans]) if spans else numpy.zeros((0, 1), numpy.int32)
        told = numpy.concatenate([self._told[span] for span in spans]) if spans else numpy.zeros((0, 1), numpy.float32)
        return {**batch, "base_ids": torch.from_numpy(ids).long(), "base_told": torch.from_numpy(told)}


# --- in the trainer ----------------------------------------------------------------------------------------------------


@dataclass
class Given:
    """What a training step hands to the model's forward: no tuple, which a wrapper would take apart."""

    per_token: keep_losses.PerToken
    base_states: torch.Tensor | None = None
    more: tuple[torch.Tensor, ...] = ()


@dataclass
class Output(ModelOutput):
    """What TRL's trainer reads of its chunked loss (sft_trainer.py of 1.12), and the logits where it wants them."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    num_correct_tokens: torch.Tensor | None = None
    entropy_sum: torch.Tensor | None = None
    num_valid_tokens: torch.Tensor | None = None


def hook(run: Run, trainer: Any) -> None:
    """Let an SFT trainer train by the way that the run keeps what its base knew. Its evaluations stay as they are. Raises
    RunRefused for a base whose experts a loss of TRL's balances beside."""
    way = run.spec.objective_args.keep
    if way in ("plain", "skip_surprising"):
        return
    if getattr(trainer, "aux_loss_enabled", False):
        raise failures.RunRefused(Problem(rule="keep-experts", where="objective_args.keep", parameters={"keep": way}))
    own = parts.below_adapter(trainer.model)
    logits = Logits(trainer.model, whole=trainer.args.loss_type != "chunked_nll")
    plain = own.forward

    def forward(self: Any, *args: Any, keep: Given | None = None, **inputs: Any) -> Any:
        return plain(*args, **inputs) if keep is None else _forward(plain, logits, keep, inputs)

    forward.__signature__ = inspect.signature(plain)  # pyright: ignore[reportFunctionMemberAccess] - the trainer reads it
    own.forward = types.MethodType(forward, own)
    is_kept = keeps_rows(run)
    if is_kept:
        trainer.data_collator = WithReference(trainer.data_collator, run.run_dir / REFERENCE, made_up=run.only_probes)
    weight = run.spec.objective_args.beta or KL_WEIGHT
    compute = trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **settings: Any) -> Any:
        kept = [inputs.pop(name, None) for name in ("base_ids", "base_told")]
        if trainer.model.training:
            if is_kept and kept[0] is None:  # the model as it is by now would be held to itself
                raise RuntimeError("a row is trained of which the base was not asked")
            inputs["keep"] = _given(way, weight, trainer, plain, logits, inputs, kept)
        return compute(model, inputs, *args, **settings)

    trainer.compute_loss = compute_loss


def _given(
    way: str, weight: float, trainer: Any, plain: Any, logits: Logits, inputs: dict[str, Any], kept: list[Any]
) -> Given:  # fmt: skip
    if way == "entropy":
        return Given(keep_losses.weighted_by_entropy)
    if kept[0] is not None:

        def to_kept(said: Any, targets: Any, loss: Any, ids: Any, told: Any) -> torch.Tensor:
            return loss + weight * keep_losses.kl_to_kept(said, targets, ids, told)

        return Given(to_kept, more=(kept[0], kept[1]))

    def to_base(said: Any, targets: Any, loss: Any, base: Any) -> torch.Tensor:
        with torch.no_grad():
            base = logits.of(base)
        return loss + weight * keep_losses.kl_to_base(said, base, targets)

    return Given(to_base, base_states=_base_states(trainer, plain, logits, inputs))


@torch.no_grad()
def _base_states(trainer: Any, plain: Any, logits: Logits, inputs: dict[str, Any]) -> torch.Tensor:
    """Return what the base says of a batch: the model with its adapter off, and nothing dropped."""
    asked = {name: one for name, one in inputs.items() if name in ("input_ids", "attention_mask", "position_ids")}
    with adapters.as_at_start(trainer.model, None), _not_training(trainer.model), trainer.accelerator.autocast():
        return logits.states(plain, **asked)


@contextmanager
def _not_training(model: Any) -> Iterator[None]:
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


def _forward(plain: Any, logits: Logits, keep: Given, inputs: dict[str, Any]) -> Output:
    """Return the loss of a batch. `labels` are shifted here; what the base said stands in the order of trained tokens."""
    labels, items = inputs.pop("labels")[..., 1:], inputs.pop("num_items_in_batch", None)
    inputs = {name: one for name, one in inputs.items() if one is not None and name != "output_router_logits"}
    states = logits.states(plain, **inputs)
    trained = labels != IGNORED
    targets, more = labels[trained], keep.more
    if keep.base_states is not None:
        more = (keep.base_states[:, :-1][trained],)
    said = states[:, :-1][trained]
    found = keep_losses.summed(said, targets, more, logits.of, keep.per_token)
    count = torch.as_tensor(len(targets), device=states.device)
    divided = count.clamp(min=1) if items is None else items
    return Output(
        loss=found.loss / divided, logits=states if logits.whole else None, num_correct_tokens=found.correct,
        entropy_sum=found.entropy, num_valid_tokens=count,
    )  # fmt: skip

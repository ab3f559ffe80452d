"""How far a run has moved the model from its base: the KL divergence of what they would write, per token.

KL(base || tuned) on the new task predicts how much is forgotten (RL's Razor, arXiv 2509.04259). For each held-out prompt
the base writes an answer, drawn at temperature 1; at every token of it the divergence of the two distributions over the
whole vocabulary is computed exactly. By the chain rule the sum over an answer, averaged over answers, is the divergence
of the two models' answers; only the drawing of answers leaves noise, which the interval over rows shows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine import events
from engine.benchmarks import library
from engine.report import items as report_items
from engine.train.rows import Named
from engine.train.run import Run
from engine.train.tokenize import render, stops
from engine.words import later
from engine.workspace import write_atomically

BENCHMARK = "kl-to-base"
MOST_PROMPTS = 64
MOST_NEW_TOKENS = 24
# Numbers in the log-probabilities of one batch, of which four copies are held: 256 MiB each.
MOST_NUMBERS = 2**26


class KlItem(msgspec.Struct, kw_only=True):
    """One prompt: the divergence in nats, summed over the `tokens` of the answer that the base wrote."""

    item: str
    family: str
    kl_nats: float
    tokens: int
    prompt: str | None = None


def prompts(rows: list[Named], tokenizer: Any, limit: int) -> list[tuple[str, str, str, list[int]]]:
    """Return (item, family, prompt as shown, token ids up to the answer) of at most `limit` rows, spread over them."""
    found = []
    for name, family, row in (rows[at] for at in library.spread(len(rows), limit)):
        if row.get("text") is not None:
            ids = tokenizer(row["text"], add_special_tokens=True)["input_ids"]
            ids = ids[: max(1, min(32, len(ids) // 2))]
            shown = tokenizer.decode(ids, skip_special_tokens=True)
        else:
            messages = row.get("prompt") or _before_answer(row.get("messages") or [])
            if not messages:
                continue
            text = render(tokenizer, messages, row.get("tools"))
            ids, shown = tokenizer(text, add_special_tokens=False)["input_ids"], messages[-1].get("content") or ""
        if ids:
            found.append((name, family, shown[:500], ids))
    return found


def _before_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)
    return messages[:first]


@torch.no_grad()
def measure(
    tuned: Any,
    as_base: Callable[[], AbstractContextManager[Any]],
    tokenizer: Any,
    asked: list[tuple[str, str, str, list[int]]],
    max_length: int,
    stop: Callable[[], bool],
) -> list[KlItem]:
    """Return an item per prompt; nothing when a stop is asked for.

    `as_base` gives the base for as long as it is entered: the tuned model with its adapter off, or a model of its own.
    Memory is bounded by MOST_NUMBERS.
    """
    items: list[KlItem] = []
    was_training = tuned.training
    tuned.eval()
    asked = sorted(asked, key=lambda one: len(one[3]))  # little padding
    size = max(1, min(MOST_PROMPTS, MOST_NUMBERS // (len(tokenizer) * (MOST_NEW_TOKENS + 1))))
    for start in range(0, len(asked), size):
        if stop():
            return []
        batch = asked[start : start + size]
        given = [ids[-max(1, max_length - MOST_NEW_TOKENS) :] for _, _, _, ids in batch]
        with as_base() as base:
            ids, mask, width = _answers(base, tokenizer, given, seed=start)
            before = _log_probabilities(base, ids, mask, width)
        after = _log_probabilities(tuned, ids, mask, width)
        counted = mask[:, width:].to(before.dtype)
        each = ((before.exp() * (before - after)).sum(dim=-1) * counted).sum(dim=-1)
        for (name, family, shown, _), nats, tokens in zip(
            batch, each.tolist(), counted.sum(dim=-1).tolist(), strict=True
        ):
            items.append(KlItem(item=name, family=family, kl_nats=max(0.0, nats), tokens=int(tokens), prompt=shown))
    tuned.train(was_training)
    return items


def _answers(base: Any, tokenizer: Any, given: list[list[int]], seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the token ids of prompts (padded on the left to `width`) with the answers the base writes, the mask of
    what is no padding, and `width`."""
    width, padding, device = max(map(len, given)), tokenizer.pad_token_id, base.device
    ids = torch.tensor([[padding] * (width - len(one)) + one for one in given], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in given], device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = base.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=MOST_NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, pad_token_id=padding, eos_token_id=stops(tokenizer),
        )  # fmt: skip
    written = out[:, width:]
    ended = torch.isin(written, torch.tensor(stops(tokenizer) or [], device=device)).int()
    # the end token itself is counted, what fills up after it is not
    counted = (ended.cumsum(dim=1) - ended == 0).long()
    return out, torch.cat([mask, counted], dim=1), width


def _log_probabilities(model: Any, ids: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
    """Return the log-probabilities (rows, answer tokens, vocabulary) of each token of the answers, in fp32."""
    kept = ids.shape[1] - width + 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # with padding on the left, for models that count positions
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept, use_cache=False
    ).logits  # fmt: skip
    return torch.log_softmax(logits[:, -kept:-1].float(), dim=-1)


def write(path: Path, items: list[KlItem]) -> None:
    """Write the items of a run, one a line."""
    write_atomically(path, b"".join(msgspec.json.encode(item) + b"\n" for item in items))


def report(run: Run, tuned: Any, as_base: Callable[[], AbstractContextManager[Any]]) -> None:
    """Measure a run's divergence on its held-out prompts, or on trained ones where none are held out, and keep it with
    the run. Where memory is too short for the base beside the tuned model, the run says so and ends well."""
    unseen = [row for row in run.rows.scored if row[1] != report_items.SEEN]
    most = min(MOST_PROMPTS, run.spec.evaluate.limit or MOST_PROMPTS)
    asked = prompts(unseen or run.rows.scored, run.tokenizer, most)
    if not asked:
        return
    run.told.begin("evaluating", "divergence", total=len(asked))
    try:
        items = measure(tuned, as_base, run.tokenizer, asked, run.length, run.stop.asked)
    except (torch.OutOfMemoryError, MemoryError):
        run.log.append(
            events.Log(text=later("How far the model moved from its base could not be measured: too little memory."))
        )
        return
    if items:
        write(run.run_dir / "items" / f"{BENCHMARK}.jsonl", items)
        run.log.append(events.Scored(model="tuned", benchmark=BENCHMARK, items=len(items)))

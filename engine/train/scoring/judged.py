"""Score preferences: pairs and marked answers by their likelihood, and pairs by a reward model."""

from __future__ import annotations

from typing import Any

import torch

from engine.render.encode import Pair, encode_marked, encode_pair
from engine.report import Item
from engine.train.rows import Named
from engine.train.scoring.harness import sha
from engine.train.scoring.likelihood import Reader
from engine.train.tokenize import coder_of, render


def _padded(rows: list[list[int]], padding: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids, filled up to one width on the right, and the mask of what is no padding."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def answer_loglikelihoods(model: Any, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    """Return the log-likelihood (nats) of each answer after its question: the sum over its tokens, as DPO and KTO
    count it (arXiv 2305.18290, equation 7). Rows are (prompt ids, answer ids)."""
    # the first token of all has no predecessor, so it is never predicted
    asked = [
        (tuple(prompt), tuple(answer)) if prompt else (tuple(answer[:1]), tuple(answer[1:])) for prompt, answer in rows
    ]
    found: dict[Any, Any] = {}
    for answers in Reader(model).answers([one for one in dict.fromkeys(asked) if one[1]]):
        found |= answers
    return [found[one][0] if one[1] else 0.0 for one in asked]


@torch.no_grad()
def rewards(model: Any, padding: int, rows: list[list[int]]) -> list[float]:
    """Return what a reward model gives each conversation, read at its last token (engine/train/judge.py). `padding` is any
    token of the base: it fills rows up and is masked."""
    found: list[float] = []
    for start in range(0, len(rows), 16):
        ids, mask = _padded(rows[start : start + 16], padding, model.device)
        found += model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float().tolist()
    return found


def _text(messages: list[dict[str, Any]]) -> str:
    return "\n".join(message.get("content") or "" for message in messages)


def _pair_items(tokenizer: Any, rows: list[Named], length: int, *, whole: bool) -> list[tuple[Item, Pair]]:
    """Return an item without scores for each pair that can be scored; with `whole` only those that are not cut."""
    found = []
    for name, family, row in rows:
        pair = encode_pair(row, coder_of(tokenizer)).within(length)
        if pair is None or (whole and pair.cut):
            continue
        item = Item(
            item=name,
            family=family,
            prompt_sha=sha(render(tokenizer, row["prompt"], row.get("tools"))),
            prompt=row["prompt"][-1].get("content"),
            choices=[_text(row["chosen"]), _text(row["rejected"])],
            gold=0,
        )
        found.append((item, pair))
    return found


def score_preference(model: Any, tokenizer: Any, rows: list[Named], length: int) -> list[Item]:
    """Return an item per pair: is the chosen answer likelier than the rejected one?

    Plain log-likelihoods, so that base and tuned are asked the same; DPO's own reward is relative to the base, which
    has none. A longer answer is less likely as a rule, which holds for both models alike.
    """
    items = _pair_items(tokenizer, rows, length, whole=False)
    sides = [(pair.prompt_ids, side) for _, pair in items for side in (pair.chosen_ids, pair.rejected_ids)]
    found = answer_loglikelihoods(model, sides)
    for index, (item, _) in enumerate(items):
        item.loglikelihoods = found[2 * index : 2 * index + 2]
        item.correct = item.loglikelihoods[0] > item.loglikelihoods[1]
        item.choice = 0 if item.correct else 1
    return [item for item, _ in items]


def score_reward(model: Any, tokenizer: Any, rows: list[Named], length: int) -> list[Item]:
    """Return an item per pair: does the reward model give the chosen answer more? Cut pairs are left out."""
    items = _pair_items(tokenizer, rows, length, whole=True)
    sides = [pair.prompt_ids + side for _, pair in items for side in (pair.chosen_ids, pair.rejected_ids)]
    found = rewards(model, tokenizer.pad_token_id, sides)
    for index, (item, _) in enumerate(items):
        item.rewards = found[2 * index : 2 * index + 2]
        item.correct = item.rewards[0] > item.rewards[1]
        item.choice = 0 if item.correct else 1
    return [item for item, _ in items]


def score_marked(model: Any, tokenizer: Any, rows: list[Named], length: int) -> list[Item]:
    """Return an item per marked answer: its log-likelihood, and whether a person called it good (gold 0) or bad (1).

    What is compared is the gap between good and bad answers (report.paired_gap): they belong to different questions,
    so that no single row can be right or wrong.
    """
    coder = coder_of(tokenizer)
    coded = ((named, encode_marked(named[2], coder).within(length)) for named in rows)
    found = [(named, one) for named, one in coded if one is not None]
    scored = answer_loglikelihoods(model, [(one.prompt_ids, one.completion_ids) for _, one in found])
    return [
        Item(
            item=name,
            family=family,
            prompt_sha=sha(",".join(map(str, one.prompt_ids + one.completion_ids))),
            prompt=row["prompt"][-1].get("content"),
            choices=["good", "bad"],
            gold=0 if one.label else 1,
            loglikelihoods=[likelihood],
            tokens=len(one.completion_ids),
        )
        for ((name, family, row), one), likelihood in zip(found, scored, strict=True)
    ]

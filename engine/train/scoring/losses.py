"""Score rows by the loss of their trained tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from engine.render.encode import IGNORED
from engine.report import Item
from engine.train.scoring.harness import sha
from engine.train.scoring.likelihood import LOGIT_CHUNK_TOKENS, MOST_LOGITS
from engine.train.tokenize import encode


@torch.no_grad()
def score_loss(model: Any, tokenizer: Any, rows: list[tuple[str, str, dict[str, Any]]], max_length: int) -> list[Item]:
    """Return an item per (id, family, canonical row): the log-likelihood (nats) of its trained tokens and their number."""
    items = []
    coded = [(name, family, encode(row, tokenizer, max_length)) for name, family, row in rows]
    coded = [entry for entry in coded if entry[2].trained_tokens]
    for batch in _batches(coded, [len(entry[2].input_ids) for entry in coded], model):
        width = max(len(entry[2].input_ids) for entry in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        labels = torch.full((len(batch), width), IGNORED)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, (_, _, one) in enumerate(batch):
            length = len(one.input_ids)
            ids[row, :length] = torch.tensor(one.input_ids)
            labels[row, :length] = torch.tensor(one.labels)
            mask[row, :length] = 1
        losses = _token_losses(model, ids, mask, labels[:, 1:]).sum(dim=1)
        for (name, family, one), loss in zip(batch, losses.tolist(), strict=True):
            text = ",".join(map(str, one.input_ids))
            items.append(
                Item(item=name, family=family, prompt_sha=sha(text), loglikelihoods=[-loss], tokens=one.trained_tokens)
            )
    return items


def _batches(rows: list[Any], lengths: list[int], model: Any) -> Iterator[list[Any]]:
    """Yield the rows 16 at a time, fewer where their logits would hold more than MOST_LOGITS numbers."""
    vocabulary, batch, width = model.config.get_text_config().vocab_size, [], 0
    for row, length in zip(rows, lengths, strict=True):
        wider = max(width, length)
        if batch and (len(batch) == 16 or (len(batch) + 1) * wider * vocabulary > MOST_LOGITS):
            yield batch
            batch, wider = [], length
        batch.append(row)
        width = wider
    if batch:
        yield batch


def _token_losses(model: Any, ids: torch.Tensor, mask: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return -log p of each target after its tokens, shape (rows, width - 1); 0 where the target is IGNORED.

    Only the logits of targets are turned to fp32, some at a time: whole copies of all of them would take more memory
    than training does.
    """
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    target = target.to(logits.device)
    losses = torch.zeros(target.shape, device=logits.device)
    for row, column in zip(*(index.split(LOGIT_CHUNK_TOKENS) for index in (target != IGNORED).nonzero(as_tuple=True)),
                           strict=True):  # fmt: skip
        found = torch.nn.functional.cross_entropy(logits[row, column].float(), target[row, column], reduction="none")
        losses[row, column] = found
    return losses

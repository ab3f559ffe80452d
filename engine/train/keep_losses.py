"""Losses that hold a model to what it knew, token by token. Pure arithmetic on logits: keep.py says when and of what.

n is the number of trained tokens, V the vocabulary, p the model's distribution, q the base's, y the token of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# EAFT takes the entropy of so many of the likeliest tokens (arXiv 2601.02151: K = 20).
ENTROPY_TOP = 20
# Of the base's other tokens so many are kept where it is not there to be asked.
KEPT_TOP = 64
# Logits are made for so many trained tokens at a time, as in TRL 1.12's chunked loss.
CHUNK_TOKENS = 256


def entropy_weights(logits: torch.Tensor) -> torch.Tensor:
    """Return EAFT's weight of each token, (n): H(p over its K likeliest tokens) / ln K, from 0 (sure of one) to 1 (none is
    likelier than another), and no gradient (arXiv 2601.02151: L = -sum_t w_t log p(y_t), w_t = H_t^top-K / ln K)."""
    most = min(ENTROPY_TOP, logits.shape[-1])
    told = logits.detach().float().topk(most).values.log_softmax(-1)
    return -(told.exp() * told).sum(-1) / math.log(most)


def _others(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the logits with that of y at minus infinity: softmax of them is the distribution over all other tokens."""
    return logits.float().scatter(-1, targets[:, None], -torch.inf)


def kl_to_base(logits: torch.Tensor, base: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return KL(q' || p') of each token, (n), in nats: q' and p' are q and p without y, made to sum to 1 again, so that what
    the data teaches about y itself is not held back (arXiv 2605.29498, "Mask the Target")."""
    model, told = _others(logits, targets).log_softmax(-1), _others(base.detach(), targets).log_softmax(-1)
    apart = (told - model).scatter(-1, targets[:, None], 0.0)  # y: minus infinity less minus infinity
    return (told.exp() * apart).sum(-1)


def kept_of_base(base: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the KEPT_TOP likeliest of the base's tokens but y, as ids and as their ln q', each (n, KEPT_TOP)."""
    told = _others(base, targets).log_softmax(-1).topk(min(KEPT_TOP, base.shape[-1] - 1))
    return told.indices, told.values


def kl_to_kept(logits: torch.Tensor, targets: torch.Tensor, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return a lower bound of kl_to_base, (n), from what kept_of_base kept: all other tokens count as one.

    For the rest R, sum_R q' ln(q'/p') >= q'(R) ln(q'(R) / p'(R)) by the log-sum inequality, so grouping never says more than
    there is; it says all where p' moved the rest of its tokens alike."""
    others = _others(logits, targets)
    model = others.gather(-1, ids) - others.logsumexp(-1, keepdim=True)
    found = (kept.exp() * (kept - model)).sum(-1)
    if ids.shape[-1] >= logits.shape[-1] - 1:
        return found
    rest = (1 - kept.exp().sum(-1)).clamp(min=0)
    model_rest = others.scatter(-1, ids, -torch.inf).logsumexp(-1) - others.logsumexp(-1)
    return found + torch.xlogy(rest, rest) - rest * model_rest


class Summed(NamedTuple):
    """Sums over the trained tokens of a batch: the loss, and what TRL logs of it."""

    loss: torch.Tensor
    correct: torch.Tensor
    entropy: torch.Tensor


PerToken = Callable[..., torch.Tensor]


def summed(
    hidden: torch.Tensor, targets: torch.Tensor, more: Sequence[torch.Tensor], logits_of: Callable[..., torch.Tensor],
    per_token: PerToken,
) -> Summed:  # fmt: skip
    """Return the sums of per_token(logits, targets, plain loss, *more) over the tokens, CHUNK_TOKENS of them at a time: the
    logits of a chunk are thrown away and made once more on the way back, so that no more than one chunk's are held."""
    zero = hidden.new_zeros((), dtype=torch.float32)
    found = Summed(hidden.sum().float() * 0, zero, zero)  # of no tokens: a loss that still reaches the weights

    def chunk(part: torch.Tensor, at: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return of_logits(logits_of(part), at, rest, per_token)

    for start in range(0, len(targets), CHUNK_TOKENS):
        here = slice(start, start + CHUNK_TOKENS)
        told = checkpoint(
            chunk, hidden[here], targets[here], *(one[here] for one in more), use_reentrant=False,
            preserve_rng_state=False,
        )  # fmt: skip
        found = Summed(*(sum_ + one for sum_, one in zip(found, told, strict=True)))  # pyright: ignore[reportArgumentType]
    return found


def of_logits(
    logits: torch.Tensor, targets: torch.Tensor, more: Sequence[torch.Tensor], per_token: PerToken
) -> Summed:  # fmt: skip
    """Return the sums over tokens whose logits are there, (n, V)."""
    logits = logits.float()
    plain = functional.cross_entropy(logits, targets, reduction="none")
    loss = per_token(logits, targets, plain, *more).sum()
    with torch.no_grad():
        told = logits.log_softmax(-1)
        entropy = -(told.exp() * told).sum()
        correct = (logits.argmax(-1) == targets).sum().float()
    return Summed(loss, correct, entropy)


def weighted_by_entropy(logits: torch.Tensor, targets: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """keep = entropy."""
    return entropy_weights(logits) * plain

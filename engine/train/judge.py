"""Where a reward model is read: at the last token of the last turn, by the mask.

transformers 5.17 looks for the last token that is not its padding token (modeling_layers.py). Where padding and the end
of a turn are one token, that is the token before the end, and without a padding token it takes the end of the longest
row of a batch. The head then learned at one place and is read at another.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import torch

from engine.render import NotWritten
from engine.train.tokenize import coder_of

_PADDING_WORDS = ("pad", "reserved", "unused", "unk")


class _ByMask:
    """Goes before a sequence classifier of transformers."""

    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, **settings: Any) -> Any:
        """Return what it returns, with the logits of the last place that is not masked."""
        from transformers.modeling_outputs import SequenceClassifierOutputWithPast

        for name in ("labels", "return_dict"):
            settings.pop(name, None)
        states = getattr(self, self.base_model_prefix)(input_ids=input_ids, attention_mask=attention_mask, **settings)
        logits = self.score(states.last_hidden_state)
        if attention_mask is None:
            attention_mask = torch.ones(logits.shape[:2], device=logits.device)
        places = torch.arange(logits.shape[1], device=logits.device)
        last = (attention_mask.to(logits.device).bool() * places).argmax(dim=-1)  # whichever side is filled up
        return SequenceClassifierOutputWithPast(
            logits=logits[torch.arange(len(last), device=logits.device), last],  # pyright: ignore[reportArgumentType]
            hidden_states=states.hidden_states,
            attentions=states.attentions,
        )


@cache
def _kind(kind: type) -> type:
    """Return a classifier's class that reads by the mask, of the same name: that is what a saved one is known by."""
    return type(kind.__name__, (_ByMask, kind), {"__module__": kind.__module__})


def read_by_mask(model: Any) -> Any:
    """Let a loaded sequence classifier be read at the last token that is not masked, and return it."""
    if not isinstance(model, _ByMask):
        model.__class__ = _kind(type(model))
    return model


def settle_padding(model: Any, tokenizer: Any) -> None:
    """Let others read a reward model as we do: its padding token becomes one that no turn ends with and no template
    writes. Where the tokenizer has none, the model has no padding either, and transformers reads one row's last token,
    and refuses several."""
    padding = _silent(tokenizer, model.get_input_embeddings().weight.shape[0])
    model.config.pad_token_id = padding
    if padding is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)


def _silent(tokenizer: Any, known: int) -> int | None:
    """Return a special token among the `known` rows of the embedding that stands in no conversation: the padding token
    where it is such a one, else the likeliest by its name."""
    coder = coder_of(tokenizer)
    spoken = {*coder.stops, coder.turn_end, tokenizer.eos_token_id, tokenizer.bos_token_id}
    written = coder.template.source
    for roles in (("system", "user", "assistant"), ("user", "assistant", "user", "assistant")):
        with suppress(NotWritten):  # some templates know no system turn; a mark may be made of a role's name
            written += coder.turns.render([{"role": role, "content": "a"} for role in roles])
    special = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and number < known and number not in spoken and token.content not in written
    }
    if tokenizer.pad_token_id in special:
        return tokenizer.pad_token_id
    named = [number for word in _PADDING_WORDS for number, text in special.items() if word in text.lower()]
    return next(iter([*named, *sorted(special, reverse=True)]), None)

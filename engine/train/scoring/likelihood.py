"""How likely are tokens after those before them? What sequences share is read once.

Sequences that begin alike are read as branches of one row (trees.py), worked examples that many begin with once for all
of them; and logits are made only where a token is predicted. Not every model can be asked so: each is first held against
its own plain answers, on a few tokens, and asked plainly where they differ.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache

from engine.train import backend, parts, precision, rows_apart
from engine.train.scoring import trees
from engine.train.scoring.trees import Family, Layout, Tokens, Tree, Wanted

Asked = tuple[Tokens, Tokens]  # context, continuation; neither is empty
Answer = tuple[float, bool]  # log-likelihood in nats, and whether greedy decoding would have written it

# So many logits at most are made at once where the output layer cannot be asked by itself: 0.27 GB in bf16, 0.54 in fp32.
MOST_LOGITS = 2**27
# So many positions' logits at least are made at a time, and so many of these turned to fp32; more of a small vocabulary.
# Measured on a processor, 49,152 tokens: the output layer wants 256 positions (16 cost twice as much each), and what comes
# after it 64, which stay in its caches (256 cost three times as much each).
LOGIT_CHUNK_TOKENS, FLOAT_CHUNK_TOKENS, FLOAT_CHUNK = 256, 64, 2**22
# So many rows and tokens go through the model at once. On a processor more tokens leave its caches and are slower
# (measured on the starter: 2**14 takes twice as long as 2**10), and fewer read the weights too often, which are more in a
# wide model (measured on one of 576: 2**11 is a tenth quicker than 2**10); on a card as many as its free memory holds.
MOST_ROWS, MOST_TOKENS, MOST_TOKENS_WIDE, MOST_TOKENS_ON_CARD = 128, 2**10, 2**11, 2**16
WIDE = 512
# So much memory of a processor may hold keys and values; of a card, half of what is free.
MOST_CACHE_BYTES = 2**30
# So far the log-probability of a token may lie from the plain one: rounding in fp32; in half precision, which rounds by up
# to 2**-8 in each layer, a single one may lie far off, and the mean says more.
SLACK, HALF_SLACK, HALF_MEAN_SLACK = 1e-3, 0.5, 0.1
# Of so many tokens the trial is made, so many of them a header.
TRIED_TOKENS, TRIED_HEADER = 60, 16


class Ways(NamedTuple):
    """In which ways a model answers as it does plainly: with its output layer asked by itself, with trees, and with a
    header's keys and values used again."""

    splits: bool = False
    trees: bool = False
    headers: bool = False


# What was tried on a model holds as long as it lives: training changes its weights, and none of this.
_WAYS: WeakKeyDictionary[Any, Ways] = WeakKeyDictionary()


class Header(NamedTuple):
    """So many tokens that were read, and their keys and values."""

    length: int
    cache: DynamicCache


class Reader:
    """Scores tokens with one model. It is asked in eval mode, and left as it is."""

    def __init__(self, model: Any):
        self._model = model
        self._config = model.config.get_text_config()
        self._vocabulary = int(self._config.vocab_size)
        self._most_tokens, self._most_cached = _room(model, self._config)
        own = parts.below_adapter(model)
        self._body, self._head = own.base_model, own.get_output_embeddings()
        self._rewritten = backend.rewrote(own)
        self._half = precision.format_of(model) != torch.float32
        # A tree names what each token sees, and so knows no window that slides: what is longer than one is read plainly.
        windows = [getattr(self._config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        self._widest = min((window for window in windows if window), default=None)

    def answers(self, asked: Sequence[Asked]) -> Iterator[dict[Asked, Answer]]:
        """Yield the answers to different questions, a batch at a time."""
        wanted = [Wanted((*one, *two), range(len(one), len(one) + len(two))) for one, two in asked]
        for found in self.read(wanted):
            yield {
                asked[at]: (sum(likely for likely, _ in parts), all(greedy for _, greedy in parts))
                for at, parts in found.items()
            }

    @torch.no_grad()
    def read(self, wanted: Sequence[Wanted]) -> Iterator[dict[int, list[Answer]]]:
        """Yield, a batch at a time, the answers to the targets of sequences, by the number of the sequence."""
        ways = self.ways(wanted) if wanted else Ways()
        wide = {at for at, one in enumerate(wanted) if not ways.trees or one.targets[-1] > (self._widest or 2**62)}
        for treed in (True, False):
            numbers = [at for at in range(len(wanted)) if (at not in wide) == treed]
            some = [wanted[at] for at in numbers]
            for family in trees.families(some, share=treed, headers=ways.headers) if some else []:
                for found in self._read_family(some, family, splits=ways.splits, treed=treed):
                    yield {numbers[at]: parts for at, parts in found.items()}

    def _read_family(
        self, wanted: Sequence[Wanted], family: Family, *, splits: bool, treed: bool
    ) -> Iterator[dict[int, list[Answer]]]:
        longest = max(tree.size for tree in family.trees)
        most = self._most_tokens if splits else min(self._most_tokens, MOST_LOGITS // self._vocabulary)
        rows, header = MOST_ROWS, None
        if family.header:
            rows = max(1, min(rows, self._most_cached // (len(family.header) + longest)))
            header = self._read_header(family.header)
        for batch in trees.batches(family.trees, most, rows, fill=treed):
            yield self._read_rows(batch, wanted, header, splits=splits, treed=treed)

    # --- in which ways a model can be asked ---------------------------------------------------------------------------

    @torch.no_grad()
    def ways(self, wanted: Sequence[Wanted]) -> Ways:
        """Return in which ways the model answers as plainly: tried once, on a few of these tokens. Layers whose states are
        not kept by position, as Mamba's, answer otherwise or raise an error.

        A model that Unsloth has rewritten is asked as it is called in training and not otherwise: its layers, called past
        the model, see what comes later where xformers attends, which masks only what the model's own call says
        (unsloth 2026.10, models/llama.py, CausalLM_fast_forward); rows wider than its window are cut."""
        if self._rewritten:
            return Ways()
        if self._model not in _WAYS:
            _WAYS[self._model] = self._tried(wanted)
        return _WAYS[self._model]

    def _tried(self, wanted: Sequence[Wanted]) -> Ways:
        tokens: Tokens = ()
        for one in wanted:
            tokens += one.tokens[:TRIED_TOKENS]
            if len(tokens) >= TRIED_TOKENS:
                break
        tokens = (tokens * TRIED_TOKENS)[:TRIED_TOKENS]
        start = TRIED_HEADER + 1
        # Two branches of one tree, and a tree to stand beside it.
        some = [
            Wanted(tokens[:30], range(start, 30)),
            Wanted(tokens[:22] + tokens[40:47], range(start, 29)),
            Wanted(tokens[5:24], range(1, 19)),
        ]
        alone = [[Tree([n], len(one.read))] for n, one in enumerate(some)]
        (pair,) = trees.families(some[:2], headers=False)[0].trees
        plain = self._attempt(alone, some)
        if plain is None:
            return Ways()
        # what flattens logits after the output layer moves them less than half precision allows for
        capped = getattr(self._config, "final_logit_softcapping", None)
        splits = not capped and self._agree(plain, self._attempt(alone, some, splits=True))
        treed = self._agree(plain, self._attempt([[pair, *alone[2]]], some, splits=splits, treed=True))
        behind = [[pair._replace(size=pair.size - TRIED_HEADER)]] * 2
        again = treed and self._attempt(behind, some, tokens[:TRIED_HEADER], splits=splits, treed=True)
        return Ways(splits, treed, bool(again) and self._agree(plain, again))

    def _attempt(
        self, rows: list[list[Tree]], wanted: list[Wanted], header: Tokens = (), *, splits: bool = False,
        treed: bool = False,
    ) -> dict[int, list[Answer]] | None:  # fmt: skip
        """Return the answers, or None where the model raises an error: whatever a foreign one says to this, it can be asked
        plainly."""
        try:
            read = self._read_header(header) if header else None
            return self._read_rows(rows, wanted, read, splits=splits, treed=treed)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:
            return None

    def _agree(self, plain: dict[int, list[Answer]], found: dict[int, list[Answer]] | None) -> bool:
        apart = [
            abs(one[0] - other[0])
            for number, parts in (found or {}).items()
            for one, other in zip(parts, plain[number] * 2, strict=False)
        ]
        most, mean = (HALF_SLACK, HALF_MEAN_SLACK) if self._half else (SLACK, SLACK)
        return bool(apart) and max(apart) <= most and sum(apart) <= mean * len(apart)

    # --- the model ----------------------------------------------------------------------------------------------------

    def _read_header(self, tokens: Tokens) -> Header:
        cache = DynamicCache()
        ids = torch.tensor([tokens], device=self._model.device)
        with precision.as_it_computes(self._model):
            self._body(input_ids=ids, past_key_values=cache, use_cache=True)
        return Header(len(tokens), cache)

    def _read_rows(
        self, rows: list[list[Tree]], wanted: Sequence[Wanted], header: Header | None, *, splits: bool, treed: bool
    ) -> dict[int, list[Answer]]:
        layout = trees.lay_out(rows, wanted, header.length if header is not None else 0)
        ids = torch.from_numpy(layout.ids).to(self._model.device)
        # Plain rows are padded on the right, which no real token sees.
        more = self._as_trees(layout, header) if treed else {"use_cache": False}
        if not splits:
            logits = self._model(input_ids=ids, **more).logits
            if logits.shape[:2] != ids.shape:
                raise ValueError(f"{ids.shape[1]} tokens were read, and {logits.shape[1]} are answered")
            return self._look_up(logits, layout, splits=False)
        with precision.as_it_computes(self._model):
            return self._look_up(self._body(input_ids=ids, **more).last_hidden_state, layout, splits=True)

    def _as_trees(self, layout: Layout, header: Header | None) -> dict[str, Any]:
        """Return what else a model is given: who sees whom, where each token stands, and what was read before."""
        device = self._model.device
        seen = torch.from_numpy(layout.seen).to(device)[:, None]
        if self._config._attn_implementation not in ("sdpa", rows_apart.NAME):
            # others add it to their scores
            least = torch.finfo(self._model.dtype).min
            seen = torch.zeros(seen.shape, dtype=self._model.dtype, device=device).masked_fill_(~seen, least)
        more: dict[str, Any] = {"attention_mask": seen, "position_ids": torch.from_numpy(layout.positions).to(device)}
        if header is None:
            return {**more, "use_cache": False}
        cache = copy.deepcopy(header.cache)
        cache.batch_select_indices(torch.zeros(len(layout.ids), dtype=torch.long, device=device))
        return {**more, "past_key_values": cache, "use_cache": True}

    def _look_up(self, states: torch.Tensor, layout: Layout, *, splits: bool) -> dict[int, list[Answer]]:
        """Return the answers out of last hidden states, or logits, of all places: those that matter are turned to logits in
        fp32, some at a time, each place once however many tokens are asked for there."""
        places = sorted({(row, at) for row, at, _, _ in layout.asked})
        numbers = {place: n for n, place in enumerate(places)}
        small = max(FLOAT_CHUNK_TOKENS, FLOAT_CHUNK // self._vocabulary)
        large = max(LOGIT_CHUNK_TOKENS, small) // small * small
        chunks: dict[int, list[int]] = defaultdict(list)
        for n, (row, at, _, _) in enumerate(layout.asked):
            chunks[numbers[row, at] // small * small].append(n)
        told: list[Answer] = [(0.0, False)] * len(layout.asked)
        where = torch.tensor(places, device=states.device)
        for start in range(0, len(places), large):
            row, at = where[start : start + large].T
            logits = self._head(states[row, at]) if splits else states[row, at]
            for part, first in zip(logits.split(small), range(start, len(places), small), strict=False):
                part, members = part.float(), chunks[first]
                of = [numbers[layout.asked[n][:2]] - first for n in members]
                place = torch.tensor(of, device=part.device)
                token = torch.tensor([layout.asked[n][2] for n in members], device=part.device)
                greedy = part.max(1).indices[place] == token
                likely = part.log_softmax(1)[place, token]
                for n, *answer in zip(members, likely.tolist(), greedy.tolist(), strict=True):
                    told[n] = (answer[0], answer[1])
        found: dict[int, list[Answer]] = defaultdict(list)
        for (_, _, _, number), answer in zip(layout.asked, told, strict=True):
            found[number].append(answer)
        return dict(found)


def _room(model: Any, config: Any) -> tuple[int, int]:
    """Return how many tokens may go through the model at once, and of how many keys and values may be held. On a card
    each gets a quarter of the free memory; a layer's own numbers are counted as in engine/estimate/memory.py."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", None) or 1  # some models have none
    kv = (parts.count(config, "num_key_value_heads") or heads) * (parts.count(config, "head_dim") or hidden // heads)
    each = next(model.parameters()).element_size() if model.device.type == "cpu" else 2
    cached = 2 * 2 * layers * kv * each  # keys and values, twice while they are laid out for the continuations
    if model.device.type != "cuda":
        return MOST_TOKENS_WIDE if hidden >= WIDE else MOST_TOKENS, max(MOST_TOKENS, MOST_CACHE_BYTES // cached)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    quarter = torch.cuda.mem_get_info(model.device)[0] // 4
    in_hand = (8 * hidden + 3 * inner) * 2
    return max(1024, min(MOST_TOKENS_ON_CARD, quarter // (in_hand + cached // 2))), max(1024, quarter // cached)

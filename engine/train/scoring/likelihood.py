"""How likely is each continuation after its context? What several share is computed once.

A context is read once, and its key and value cache serves all of its continuations; worked examples that many contexts
begin with are read once for all of them; and logits are made only where a token of a continuation is predicted.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from engine.train import precision

Tokens = tuple[int, ...]
Asked = tuple[Tokens, Tokens]  # context, continuation; neither is empty
Answer = tuple[float, bool]  # log-likelihood in nats, and whether greedy decoding would have written it

# Of so many logits at most a batch is scored, one position at the least: 0.27 GB in bf16, 0.54 in fp32.
MOST_LOGITS = 2**27
# So many positions' logits at least are turned to fp32 at a time, as TRL 1.12 does in training (fit.LOGIT_CHUNK_TOKENS);
# more of a small vocabulary.
LOGIT_CHUNK_TOKENS, LOGIT_CHUNK = 256, 2**24
# So many rows and tokens go through the model at once. On a processor more tokens leave its caches and are slower
# (measured on the starter: 2**14 takes twice as long as 2**10); on a card as many as its free memory holds.
MOST_ROWS, MOST_TOKENS, MOST_TOKENS_ON_CARD = 32, 2**10, 2**16
# So much memory of a processor may hold keys and values; of a card, half of what is free.
MOST_CACHE_BYTES = 2**30
# Sharing takes a further, smaller call of the model, so it must spare so large a part of the tokens.
LEAST_SPARED = 0.3
# Worked examples are shared where so many contexts begin with so many equal tokens.
HEADER_TOKENS, LEAST_CONTEXTS = 32, 4


class Group(NamedTuple):
    """A context with its continuations, told apart by their `tail`, which is all but the last token: those of the same
    tail are answered by the same logits, as A, B, C and D are. `tails` gives the last tokens of each."""

    context: Tokens
    tails: dict[Tokens, list[int]]

    @property
    def longest(self) -> int:
        return max(map(len, self.tails))


class Row(NamedTuple):
    """A context and one tail, read as they stand."""

    context: Tokens
    tail: Tokens
    lasts: list[int]

    @property
    def tokens(self) -> Tokens:
        return self.context + self.tail

    @property
    def predicting(self) -> range:
        """The positions whose logits predict the continuation."""
        return range(len(self.context) - 1, len(self.context) + len(self.tail))


class Reader:
    """Scores continuations with one model. It is asked in eval mode, and left as it is."""

    def __init__(self, model: Any):
        self._model = model
        self._config = model.config.get_text_config()
        self._vocabulary = int(self._config.vocab_size)
        self._most_tokens, self._most_cached = _room(model, self._config)
        own = model.get_base_model() if hasattr(model, "get_base_model") else model
        takes = inspect.signature(own.forward).parameters
        self._keeps_logits = "logits_to_keep" in takes
        # None: not tried yet
        self._reuses: bool | None = (
            None if {"past_key_values", "position_ids", "attention_mask"} <= set(takes) else False
        )
        # Padding between context and continuation would count into a window that slides: such a model shares only what
        # lies inside of one.
        windows = [getattr(self._config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        self._widest = min((window for window in windows if window), default=None)

    @torch.no_grad()
    def answers(self, asked: Sequence[Asked]) -> Iterator[dict[Asked, Answer]]:
        """Yield the answers to different questions, a batch at a time, the longest first."""
        tails: dict[Tokens, dict[Tokens, list[int]]] = defaultdict(lambda: defaultdict(list))
        for context, continuation in asked:
            tails[context][continuation[:-1]].append(continuation[-1])
        families, single = self._families([Group(context, dict(found)) for context, found in tails.items()])
        for prefix, family in families:
            for groups in self._batches_of_groups(family):
                yield self._read_shared(prefix, groups)
        for rows in self._batches_of_rows([Row(one.context, *pair) for one in single for pair in one.tails.items()]):
            yield self._read_plainly(rows)

    # --- what is shared -----------------------------------------------------------------------------------------------

    def _families(self, groups: list[Group]) -> tuple[list[tuple[Tokens, list[Group]]], list[Group]]:
        """Return what shares its computation, as (tokens that all of its contexts begin with, groups), and the rest."""
        by_header: dict[Tokens, list[Group]] = defaultdict(list)
        for group in groups:
            by_header[group.context[:HEADER_TOKENS]].append(group)
        families, rest = [], []
        for header, family in by_header.items():
            if len(header) == HEADER_TOKENS and len(family) >= LEAST_CONTEXTS:
                prefix = _common([group.context for group in family])
                if _spared(prefix, family) >= LEAST_SPARED and self._may_share(family):
                    families.append((prefix, family))
                    continue
            rest += family
        alone, single = [], []
        for group in rest:
            shares = _spared((), [group]) >= LEAST_SPARED and self._may_share([group])
            (alone if shares else single).append(group)
        return [*families, *([((), alone)] if alone else [])], single

    def _may_share(self, groups: list[Group]) -> bool:
        if self._widest and max(len(group.context) + group.longest for group in groups) > self._widest:
            return False
        return self._reuses_cache(groups[0].context)

    def _reuses_cache(self, context: Tokens) -> bool:
        """Whether the model's cache can be reused: tried once, on a few tokens, whether answers come out as without it.
        States that are not kept by position, as Mamba's, cannot be; such a model raises an error or answers otherwise."""
        if self._reuses is None:
            tokens = (context * 12)[:12]
            tried = [
                Group(tokens[:7], {tokens[7:9]: [tokens[9]], tokens[9:10]: [tokens[10]]}),
                Group(tokens[1:6], {tokens[6:9]: [tokens[9]]}),
            ]
            plain = self._read_plainly([Row(one.context, *pair) for one in tried for pair in one.tails.items()])
            # half precision rounds by up to 2**-8 in each layer
            slack = 1e-3 if precision.format_of(self._model) == torch.float32 else 0.3
            try:
                shared = self._read_shared((), tried)
                self._reuses = all(abs(shared[one][0] - plain[one][0]) <= slack for one in plain)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception:
                self._reuses = False  # whatever a foreign model says to it, it can be asked plainly
        return self._reuses

    def _batches_of_groups(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Yield groups by falling length, as many as memory holds; one with very many continuations comes in parts."""
        batch: list[Group] = []
        for whole in sorted(groups, key=lambda group: -len(group.context)):
            tail = max(1, whole.longest)
            most = min(
                self._most_tokens // tail,
                self._most_cached // (len(whole.context) + tail),
                MOST_LOGITS // (self._vocabulary * tail),
            )
            tails = list(whole.tails.items())
            for start in range(0, len(tails), max(1, most)):
                group = Group(whole.context, dict(tails[start : start + max(1, most)]))
                grown = [*batch, group]
                rows, longest = sum(len(one.tails) for one in grown), max(one.longest for one in grown)
                wide = len(grown[0].context)
                ends = len({len(one.context) for one in grown}) if self._keeps_logits else wide
                logits = max(rows * longest, len(grown) * ends) * self._vocabulary
                fits = (
                    rows <= MOST_ROWS
                    and max(len(grown) * wide, rows * longest) <= self._most_tokens
                    and rows * (wide + longest) <= self._most_cached
                    and logits <= MOST_LOGITS
                )
                if batch and not fits:
                    yield batch
                    grown = [group]
                batch = grown
        if batch:
            yield batch

    def _read_shared(self, prefix: Tokens, groups: list[Group]) -> dict[Asked, Answer]:
        """Read what all contexts begin with, then the rest of each, then every tail after its context."""
        cache = DynamicCache()
        if prefix:
            self._call([prefix], [0], cache)
            cache.batch_select_indices(torch.zeros(len(groups), dtype=torch.long, device=self._model.device))
        rests = [group.context[len(prefix) :] for group in groups]
        ends = sorted({len(rest) - 1 for rest in rests})
        at = {end: index for index, end in enumerate(ends)}
        first = _Picked(self._call(rests, ends, cache))
        rows = [(n, tail, lasts) for n, group in enumerate(groups) for tail, lasts in group.tails.items()]
        for n, tail, lasts in rows:
            for token in tail[:1] or lasts:
                first.want(n, at[len(rests[n]) - 1], token)
        first.read()
        longer = [row for row in rows if row[1]]
        then = None
        if longer:
            owners = [n for n, _, _ in longer]
            cache.batch_select_indices(torch.tensor(owners, device=self._model.device))
            columns = list(range(max(len(tail) for _, tail, _ in longer)))
            starts = [len(groups[n].context) for n in owners]
            then = _Picked(self._call([tail for _, tail, _ in longer], columns, cache, starts))
            for n, (_, tail, lasts) in enumerate(longer):
                for column, token in enumerate(tail[1:]):
                    then.want(n, column, token)
                for token in lasts:
                    then.want(n, len(tail) - 1, token)
            then.read()
        found: dict[Asked, Answer] = {}
        n_longer = 0
        for n, tail, lasts in rows:
            for last in lasts:
                parts = [first.get(n, at[len(rests[n]) - 1], tail[0] if tail else last)]
                if tail and then is not None:
                    parts += [then.get(n_longer, column, token) for column, token in enumerate((*tail[1:], last))]
                found[groups[n].context, (*tail, last)] = _together(parts)
            n_longer += bool(tail)
        return found

    # --- what is not --------------------------------------------------------------------------------------------------

    def _batches_of_rows(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Yield rows by falling length, as many as memory holds."""
        batch: list[Row] = []
        columns: set[int] = set()
        for row in sorted(rows, key=lambda row: -len(row.tokens)):
            width, grown = len((batch or [row])[0].tokens), columns | set(row.predicting)
            n = len(batch) + 1
            logits = n * (len(grown) if self._keeps_logits else width) * self._vocabulary
            if batch and (n > MOST_ROWS or n * width > self._most_tokens or logits > MOST_LOGITS):
                yield batch
                batch, grown = [], set(row.predicting)
            batch, columns = [*batch, row], grown
        if batch:
            yield batch

    def _read_plainly(self, rows: list[Row]) -> dict[Asked, Answer]:
        """Read whole rows, padded on the right, which no real token sees."""
        step = max(1, MOST_LOGITS // self._vocabulary)
        if len(rows) == 1 and len(rows[0].tail) >= step and self._reuses_cache(rows[0].context):
            return self._read_in_parts(rows[0], step)
        columns = sorted({column for row in rows for column in row.predicting})
        at = {column: index for index, column in enumerate(columns)}
        picked = _Picked(self._call([row.tokens for row in rows], columns))
        for n, row in enumerate(rows):
            for column, token in zip(row.predicting, row.tail, strict=False):
                picked.want(n, at[column], token)
            for token in row.lasts:
                picked.want(n, at[row.predicting[-1]], token)
        picked.read()
        return {
            (row.context, (*row.tail, last)): _together(
                picked.get(n, at[column], token)
                for column, token in zip(row.predicting, (*row.tail, last), strict=True)
            )
            for n, row in enumerate(rows)
            for last in row.lasts
        }

    def _read_in_parts(self, row: Row, step: int) -> dict[Asked, Answer]:
        """Read one long row so many tokens at a time, each part after the cache of those before it: all of its logits at
        once would not fit."""
        cache, tokens = DynamicCache(), row.tokens
        parts: list[Answer] = []
        last: dict[int, Answer] = {}
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            columns = [column for column in range(len(part)) if start + column in row.predicting]
            picked = _Picked(self._call([part], columns or [0], cache))
            wanted = [
                (n, token)
                for n, column in enumerate(columns)
                for token in ([tokens[start + column + 1]] if start + column + 1 < len(tokens) else row.lasts)
            ]
            for n, token in wanted:
                picked.want(0, n, token)
            picked.read()
            for n, token in wanted:
                if start + columns[n] + 1 < len(tokens):
                    parts.append(picked.get(0, n, token))
                else:
                    last[token] = picked.get(0, n, token)
        return {(row.context, (*row.tail, token)): _together([*parts, one]) for token, one in last.items()}

    # --- the model ----------------------------------------------------------------------------------------------------

    def _call(
        self, rows: Sequence[Tokens], columns: list[int], cache: DynamicCache | None = None, starts: Sequence[int] = ()
    ) -> torch.Tensor:
        """Return the logits of some columns, shape (rows, columns, vocabulary), and let the cache grow. Rows are padded on
        the right. With `starts` each stands at its own position, after so many real tokens in the cache."""
        device, width = self._model.device, max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        more: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            more["past_key_values"] = cache
            before = cache.get_seq_length()
            if starts and min(starts) < before:
                real = torch.tensor(starts, device=device)[:, None]
                seen = torch.arange(before, device=device)[None] < real
                more["attention_mask"] = torch.cat([seen, torch.ones_like(ids, dtype=torch.bool)], dim=1).long()
                # Padding must not lie beyond the last position there is.
                last = real + torch.tensor([[len(row) - 1] for row in rows], device=device)
                more["position_ids"] = torch.minimum(real + torch.arange(width, device=device), last)
        if not self._keeps_logits:
            return self._model(input_ids=ids, **more).logits[:, columns]
        if len(columns) < width:
            more["logits_to_keep"] = torch.tensor(columns, device=device)
        return self._model(input_ids=ids, **more).logits


class _Picked:
    """The tokens that are looked up in some logits, all of them together."""

    def __init__(self, logits: torch.Tensor):
        self._logits = logits
        self._wanted: dict[tuple[int, int, int], int] = {}
        self._found: list[Answer] = []

    def want(self, row: int, column: int, token: int) -> None:
        self._wanted.setdefault((row, column, token), len(self._wanted))

    def read(self) -> None:
        """Turn the logits that matter to fp32, some at a time, and look up each token's log-probability."""
        wanted = torch.tensor(list(self._wanted), device=self._logits.device)
        for some in wanted.split(max(LOGIT_CHUNK_TOKENS, LOGIT_CHUNK // self._logits.shape[-1])):
            row, column, token = some.T
            logits = self._logits[row, column].float()
            likely = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(1)
            self._found += zip(likely.tolist(), (logits.argmax(1) == token).tolist(), strict=True)
        del self._logits

    def get(self, row: int, column: int, token: int) -> Answer:
        return self._found[self._wanted[row, column, token]]


def _together(parts: Any) -> Answer:
    """Return the answer to a continuation out of those to its tokens."""
    parts = list(parts)
    return sum(likely for likely, _ in parts), all(greedy for _, greedy in parts)


def _common(contexts: list[Tokens]) -> Tokens:
    """Return what all contexts begin with, without the last token of any: that one's logits are needed for each."""
    first, last = min(contexts), max(contexts)
    most = min(map(len, contexts)) - 1
    n = next((n for n in range(most) if first[n] != last[n]), most)
    return first[:n]


def _spared(prefix: Tokens, groups: list[Group]) -> float:
    """Return the share of all tokens that need not be read when a prefix, and each context, is read once."""
    plain = sum(len(group.context) * len(group.tails) + sum(map(len, group.tails)) for group in groups)
    shared = len(prefix) + sum(len(group.context) - len(prefix) + sum(map(len, group.tails)) for group in groups)
    return 1 - shared / plain


def _room(model: Any, config: Any) -> tuple[int, int]:
    """Return how many tokens may go through the model at once, and of how many keys and values may be held. On a card
    each gets a quarter of the free memory; a layer's own numbers are counted as in engine/estimate/memory.py."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", None) or 1  # some models have none
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    kv = kv_heads * (getattr(config, "head_dim", None) or hidden // heads)
    each = next(model.parameters()).element_size() if model.device.type == "cpu" else 2
    cached = 2 * 2 * layers * kv * each  # keys and values, twice while they are laid out for the continuations
    if model.device.type != "cuda":
        return MOST_TOKENS, max(MOST_TOKENS, MOST_CACHE_BYTES // cached)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    quarter = torch.cuda.mem_get_info(model.device)[0] // 4
    in_hand = (8 * hidden + 3 * inner) * 2
    return max(1024, min(MOST_TOKENS_ON_CARD, quarter // (in_hand + cached // 2))), max(1024, quarter // cached)

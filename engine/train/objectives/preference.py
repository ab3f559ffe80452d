"""Rows of pairs (chosen over rejected) and of marked answers (good or bad), as token ids.

The ids are ours, not TRL's: its tokenising adds a second beginning-of-text token to text that a chat template has
rendered, and splits a prompt apart from its answer. Here a conversation is rendered once, as for SFT (tokenize.py),
and cut in two at the first token that holds a character of the answer, so that no trained character is lost. The
marker that ends the turn belongs to the answer, so that stopping is learned too.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any, NamedTuple

import msgspec

from engine.runs import failures
from engine.spec import OBJECTIVES, RunSpec
from engine.train import rows
from engine.train.run import Run
from engine.train.tokenize import trained_spans
from engine.words import Problem, later
from engine.workspace import Workspace


class Pair(NamedTuple):
    """One question with a better and a worse answer. `cut` says that the window was too short for one of them."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    cut: bool


class Marked(NamedTuple):
    """One question with an answer that a person called good (label true) or bad."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool
    cut: bool


class TokenIdsAlready:
    """Keeps a trainer of TRL 1.12 from rendering and tokenising the rows: ours are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def answer_ids(
    prompt: list[dict[str, Any]], answer: list[dict[str, Any]], tools: str | None, tokenizer: Any
) -> tuple[list[int], int]:
    """Return the token ids of a question with its answer, up to the end of the last turn, and where the answer begins.

    An answer of several turns counts whole, from its first token on, as in TRL.
    """
    whole, spans = trained_spans(tokenizer, [*prompt, *answer], tools)
    earlier = sum(message["role"] == "assistant" for message in prompt)
    start, end = spans[earlier][0], spans[-1][1]
    # The template writes the special tokens itself.
    coded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    kept = [(one, to) for one, (at, to) in zip(coded["input_ids"], coded["offset_mapping"], strict=True) if at < end]
    return [one for one, _ in kept], sum(to <= start for _, to in kept)


def encode_pair(row: dict[str, Any], tokenizer: Any, max_length: int) -> Pair | None:
    """Return the token ids of one preference row, or None when nothing of an answer fits the window."""
    tools = row.get("tools")
    chosen, chosen_start = answer_ids(row["prompt"], row["chosen"], tools, tokenizer)
    rejected, rejected_start = answer_ids(row["prompt"], row["rejected"], tools, tokenizer)
    # Where a token reaches across the seam, the two may part before the answers begin.
    both = zip(chosen[:chosen_start], rejected[:rejected_start], strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], both))
    if shared >= max_length:
        return None
    cut = max(len(chosen), len(rejected)) > max_length
    return Pair(chosen[:shared], chosen[shared:max_length], rejected[shared:max_length], cut)


def encode_marked(row: dict[str, Any], tokenizer: Any, max_length: int) -> Marked | None:
    """Return the token ids of one marked answer, or None when nothing of it fits the window."""
    ids, start = answer_ids(row["prompt"], row["completion"], row.get("tools"), tokenizer)
    if start >= max_length:
        return None
    return Marked(ids[:start], ids[start:max_length], row["label"], len(ids) > max_length)


def encode(row: dict[str, Any], tokenizer: Any, spec: RunSpec) -> Pair | Marked | None:
    """Return one row as the objective of the spec reads it; None when it cannot be used."""
    objective = OBJECTIVES[spec.objective]
    if objective.weighs_labels:
        return encode_marked(row, tokenizer, spec.train.max_length)
    pair = encode_pair(row, tokenizer, spec.train.max_length)
    if pair is not None and pair.cut and objective.is_judge:
        return None  # a reward is read at the end of an answer, which is not there
    return pair


def longest(row: Pair | Marked | None) -> int:
    """Return how many tokens a row needs."""
    if row is None:
        return 0
    answers = [row.completion_ids] if isinstance(row, Marked) else [row.chosen_ids, row.rejected_ids]
    return len(row.prompt_ids) + max(map(len, answers))


def prepare(run: Run) -> None:
    """Read, split and encode. Raises RunRefused when no row is left, or of marked answers only good or only bad ones."""
    run.rows = encoded_rows(run.spec, run.workspace, run.tokenizer)


def encoded_rows(spec: RunSpec, workspace: Workspace, tokenizer: Any) -> rows.Rows:
    """Return the rows of a spec as its objective reads them."""
    train, unseen = rows.divide(spec, workspace)
    length = spec.train.max_length
    coded = [encode(row, tokenizer, spec) for row in train]
    kept = [row for row in coded if row is not None]
    if not kept:
        whole = msgspec.structs.replace(spec, train=msgspec.structs.replace(spec.train, max_length=10**9))
        needed = max((longest(encode(row, tokenizer, whole)) for row in train[:200]), default=0)
        raise failures.RunRefused(Problem(rule="data-nothing-trained", parameters={"length": length, "needed": needed}))
    notes = []
    if len(kept) < len(coded):
        counts = {"n": len(coded) - len(kept), "length": length}
        notes.append(later("{n} rows were left out: nothing of their answer fits {length} tokens.", **counts))
    if cut := sum(row.cut for row in kept):
        notes.append(later("{n} of {total} rows were cut to {length} tokens.", n=cut, total=len(coded), length=length))
    if OBJECTIVES[spec.objective].weighs_labels:
        good = sum(row.label for row in kept if isinstance(row, Marked))
        if good in (0, len(kept)):
            raise failures.RunRefused(Problem(rule="kto-one-label", parameters={"label": "true" if good else "false"}))
        counts = {"good": good, "bad": len(kept) - good, "out": len(unseen)}
        notes.append(later("Training on {good} good and {bad} bad answers; {out} rows are held out.", **counts))
    else:
        notes.append(later("Training on {rows} pairs; {out} are held out.", rows=len(kept), out=len(unseen)))
    evaluated = [row for row in (encode(r, tokenizer, spec) for r in unseen) if row is not None]
    return rows.Rows(kept, [], evaluated, rows.to_score(train, unseen), rows.prompts(unseen or train, tokenizer), notes)

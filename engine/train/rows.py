"""The rows of a run: what is trained, what is held out, what is mixed in, and what is asked as the run goes on."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from engine.data import datasets, division
from engine.models import bases
from engine.render import Encoded, NotWritten, encode, outcome
from engine.report import items
from engine.runs import failures
from engine.spec import RunSpec, split, tolerances
from engine.spec import counts as spec_counts
from engine.starter import world
from engine.train.tokenize import coder_of, render
from engine.words import Problem, Text, later
from engine.workspace import Workspace

# Enough to tell "seen rows" from "unseen rows"; scoring more would only take time.
MOST_SEEN = 200
PROMPTS = 3
MOST_NAMED = 20  # tokens that an embedding has no row for

Named = tuple[str, str, dict[str, Any]]  # id, family, canonical row


class Rows(NamedTuple):
    """Encoded rows to train and to evaluate on (Encoded; Pair or Marked of preference.py); general rows to mix in, a
    list per epoch; rows to score before and after; three fixed prompts to watch. `about` is what has to be said wherever
    the scores are shown."""

    train: list[Any]
    replay: list[list[Encoded]]
    evaluate: list[Any]
    scored: list[Named]
    prompts: list[tuple[str, str]]  # as shown, as rendered
    notes: list[Text]
    about: Sequence[Text] = ()
    choosing: Sequence[Named] = ()  # those of `evaluate`, where they choose weights or end the run: for a grader


def read_rows(workspace: Workspace, dataset_id: str, most: int | None = None) -> list[dict[str, Any]]:
    """Return the canonical rows of a stored data set, or the first of them; training never reads the upload."""
    if most is not None:
        return datasets.preview(workspace, dataset_id, 0, most)
    return datasets.read_rows(workspace, dataset_id)


def _name(row: dict[str, Any], family: str) -> str:
    content = json.dumps([family, {k: v for k, v in row.items() if k != "line"}], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _named(rows: list[dict[str, Any]], family: str) -> list[Named]:
    """Give each row an id that stays the same when the order changes; doubled rows are scored once."""
    return list({name: (name, family, row) for row in rows for name in [_name(row, family)]}.values())


def divided(spec: RunSpec, workspace: Workspace) -> division.Divided:
    """Return the rows of a run: to train on, unseen, and those of the evaluation data that are trained on too."""
    general = division.general_data(spec)
    return division.divide(spec.dataset, general, lambda dataset_id: read_rows(workspace, dataset_id))


def divide(spec: RunSpec, workspace: Workspace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows to train on and those that are unseen."""
    found = divided(spec, workspace)
    return found.train, found.unseen


def prepare(
    spec: RunSpec, workspace: Workspace, tokenizer: Any, generate: Callable[[int], list[Encoded]] | None = None
) -> Rows:
    """Read, split, mix and encode. `generate` gives at most so many rows that the untouched base writes itself.

    Raises RunRefused when no token would be trained.
    """
    length = spec.train.max_length
    parts = divided(spec, workspace)
    train, unseen = (read(part, tokenizer) for part in (parts.train, parts.unseen))
    notes = [*train.notes, *fit_notes(train.tally, length)]
    kept = [coded for row in train.coded if (coded := row.within(length)).trained_tokens]
    if not kept:
        raise nothing_trained(train.tally, length)
    per_epoch = spec_counts.replayed_rows(spec.train, len(kept))
    replay, replay_notes = _replay(spec, workspace, tokenizer, per_epoch, len(kept), generate)
    notes += replay_notes
    counts = {"rows": len(kept), "tokens": sum(row.trained_tokens for row in kept), "out": len(unseen.rows)}
    notes.append(later("Training on {rows} rows with {tokens} trained tokens; {out} rows are held out.", **counts))
    choosing, unseen, chosen_by = apart(spec, unseen)
    evaluated = [coded for row in choosing.coded if (coded := row.within(length)).trained_tokens]
    scored = to_score(train.rows, unseen.rows, readable(parts.seen, tokenizer), spec)
    watched = prompts(unseen.rows or train.rows, tokenizer)
    about = [*about_scores(spec, workspace, parts), *chosen_by]
    graded = _named(choosing.rows, items.UNSEEN) if tolerances.chooses(spec.train) else []
    return Rows(kept, replay, evaluated, scored, watched, notes, about, graded)


class Read(NamedTuple):
    """The rows that the base can read, as they are stored and encoded whole, what became of all, and that in words."""

    rows: list[dict[str, Any]]
    coded: list[Any]
    tally: outcome.Tally
    notes: list[Text]


def apart(spec: RunSpec, unseen: Read) -> tuple[Read, Read, list[Text]]:
    """Return the held-out rows that evaluations go by, those of the report, and what is to be said of that. They are the
    same as long as nothing hangs on an evaluation; where it chooses weights or ends the run, its rows would make the report
    look better than it is: one half, drawn by the split seed, chooses, and the other is reported."""
    if not tolerances.chooses(spec.train) or not unseen.rows:
        return unseen, unseen, []
    half = split.halved(unseen.rows, spec.dataset.split_seed)
    rest = set(range(len(unseen.rows))) - half
    choosing, reported = (
        unseen._replace(rows=[unseen.rows[n] for n in sorted(some)], coded=[unseen.coded[n] for n in sorted(some)])
        for some in (half, rest)
    )
    told = {"n": len(half), "total": len(unseen.rows), "rest": len(rest)}
    return (
        choosing,
        reported,
        [
            later(
                "{n} of {total} held-out rows chose the weights that are kept; the report is of the other {rest}.",
                **told,
            )
        ],
    )


def read(every: list[dict[str, Any]], tokenizer: Any) -> Read:
    """Encode rows, leaving out and naming those that the base's template refuses. Raises RunRefused when it refuses
    all."""
    coder, tally, kept = coder_of(tokenizer), outcome.Tally(), []
    for row in every:
        if (coded := tally.take(row, coder)) is not None:
            kept.append((row, coded))
    if every and not kept:
        raise failures.RunRefused(tally.refused[0].problem)
    notes = [*(one.note for one in tally.refused), *tally.dropped_notes]
    return Read([row for row, _ in kept], [coded for _, coded in kept], tally, notes)


def fit_notes(tally: outcome.Tally, length: int) -> list[Text]:
    """Say how many rows the window leaves nothing of, or a part, and which length would keep all."""
    lost, cut = tally.lost(length), tally.cut(length)
    notes = []
    if lost:
        notes.append(
            later("{n} rows were left out: nothing of their answer fits {length} tokens.", n=len(lost), length=length)
        )
    if cut:
        notes.append(
            later("{n} of {total} rows were cut to {length} tokens.", n=len(cut), total=tally.rows, length=length)
        )
    if lost or cut:
        notes.append(later("{needed} tokens would keep all of them.", needed=tally.keeps_all))
    return notes


def nothing_trained(tally: outcome.Tally, length: int) -> failures.RunRefused:
    """What refuses a run of which no row would teach anything."""
    return failures.RunRefused(
        Problem(rule="data-nothing-trained", parameters={"length": length, "needed": tally.keeps_all})
    )


def to_score(
    train: list[dict[str, Any]], unseen: list[dict[str, Any]], seen: Sequence[dict[str, Any]] = (),
    spec: RunSpec | None = None,
) -> list[Named]:  # fmt: skip
    """Return the rows that are scored before and after: all that are unseen, and MOST_SEEN that are trained on, those of
    the evaluation data first; of each no more than the spec's limit. They are drawn by the split seed."""
    seed, limit = (0, 0) if spec is None else (spec.dataset.split_seed, spec.evaluate.limit)
    asked = split.drawn(unseen, limit or len(unseen), seed)
    met = split.drawn(list(seen), limit or len(seen), seed)
    more = max(0, min(MOST_SEEN, limit or MOST_SEEN) - len(met))
    return [*_named([*met, *split.drawn(train, more, seed)], items.SEEN), *_named(asked, items.UNSEEN)]


def about_scores(spec: RunSpec, workspace: Workspace, parts: division.Divided) -> list[Text]:
    """Say what of the evaluation data is scored, and what of it and of the benchmarks the rows of a run teach."""
    general = division.general_data(spec)
    trained = [*parts.train, *(read_rows(workspace, general) if general else [])]
    return [*parts.counts.notes(spec), *division.benchmark_notes(spec, workspace, trained)]


def readable(rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Return the rows that the base's template does not refuse."""
    tally = outcome.Tally()
    return [row for row in rows if tally.take(row, coder_of(tokenizer)) is not None]


def refuse_rowless(rows: Rows, tokenizer: Any, embedded: int) -> None:
    """Refuse rows with a token for which the base's embedding of `embedded` rows has none, before they are read. Raises
    RunRefused."""
    every = [*rows.train, *rows.evaluate, *(row for epoch in rows.replay for row in epoch)]
    ids = (row if isinstance(row, list) else outcome.ids_of(row) for row in every)  # questions of PPO are ids alone
    beyond = sorted({number for row in ids for number in row if number >= embedded})
    if beyond:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(beyond[:MOST_NAMED])))
        raise failures.RunRefused(Problem(rule="data-token-rows", parameters={"tokens": names, "rows": embedded}))


def _replay(
    spec: RunSpec, workspace: Workspace, tokenizer: Any, per_epoch: int, rows: int,
    generate: Callable[[int], list[Encoded]] | None,
) -> tuple[list[list[Encoded]], list[Text]]:  # fmt: skip
    """Return general rows for each epoch beside `rows` of the user's, and in words where they come from. None comes twice:
    rows that come again are learned by heart and keep nothing else (measured on the starter, README).

    They come from the data set the spec names, for the starter and what was made of it from its own world, for any other
    base from itself: toy rows would teach a real model nothing but toys.
    """
    if not per_epoch:
        return [], []
    wanted = per_epoch * math.ceil(spec.train.epochs)
    if spec.train.replay_data:
        general = read(read_rows(workspace, spec.train.replay_data), tokenizer)
        coded = [row.within(spec.train.max_length) for row in general.coded]
        random.Random(spec.train.seed).shuffle(coded)  # noqa: S311 - an order, not a secret
        source = later("from the data {id}", id=spec.train.replay_data[:12])
    elif bases.describe(spec.base.ref, workspace).is_toy:
        coded = []
        for pair in world.replay_rows(wanted, spec.train.seed):
            question = {"role": "user", "content": pair["prompt"]}
            answer = {"role": "assistant", "content": pair["completion"]}
            row = encode.encode({"prompt": [question], "completion": [answer]}, coder_of(tokenizer))
            coded.append(row.within(spec.train.max_length))
        source = later("from the starter's own world")
    else:
        length = spec.train.max_length
        coded = [] if generate is None else generate(wanted)
        coded = [row._replace(input_ids=row.input_ids[:length], labels=row.labels[:length]) for row in coded]
        source = later("written by the base itself before training")
    coded = [row for row in coded if row.trained_tokens][:wanted]
    if not coded and generate is not None and spec.train.replay_budget_s is not None and not spec.train.replay_data:
        told = {"seconds": f"{spec.train.replay_budget_s:g}"}
        return [], [later("No general rows are mixed in: the base had written none after {seconds} s.", **told)]
    if not coded:
        return [], [later("There are no general rows to mix in: none of them has a token to train.")]
    epochs = math.ceil(spec.train.epochs)
    each = [len(coded) // epochs + (number < len(coded) % epochs) for number in range(epochs)]
    ends = [sum(each[: number + 1]) for number in range(epochs)]
    found = [coded[end - size : end] for size, end in zip(each, ends, strict=True)]
    if len(coded) == wanted:
        told = {"n": per_epoch, "source": source}
        return found, [later("{n} general rows are mixed into each epoch against forgetting, {source}.", **told)]
    return found, [_fewer(spec, len(coded), wanted, rows, source)]


def _fewer(spec: RunSpec, there: int, wanted: int, rows: int, source: Text) -> Text:
    """Say that there are fewer general rows than the share asks for, and what share that is."""
    whole = rows * math.ceil(spec.train.epochs)
    share, asked = (f"{100 * general / (general + whole):.1f}" for general in (there, wanted))
    told = {"n": there, "wanted": wanted, "share": share, "asked": asked, "source": source}
    return later(
        "{n} general rows are mixed in against forgetting, {source}: {share} % of the rows, not {asked} %. {wanted} were "
        "wanted, and there are no more: none comes twice, since a row that is seen again protects nothing.",
        **told,
    )


def prompts(rows: list[dict[str, Any]], tokenizer: Any) -> list[tuple[str, str]]:
    """Return three different prompts, spread over the rows, as shown and as rendered for the model."""
    found: dict[str, str] = {}
    step = max(1, len(rows) // PROMPTS)
    for row in [*rows[::step], *rows]:
        if len(found) == PROMPTS:
            break
        if row.get("text") is not None:
            words = row["text"].split(" ")
            shown = rendered = " ".join(words[: max(1, min(12, len(words) // 2))])
        else:
            messages = row.get("prompt") or row["messages"][: _first_answer(row["messages"])]
            if not messages:
                continue
            try:
                shown, rendered = messages[-1].get("content") or "", render(tokenizer, messages, row.get("tools"))
            except NotWritten:  # some templates refuse a conversation that nobody answers
                continue
        found.setdefault(shown, rendered)
    return list(found.items())


def _first_answer(messages: list[dict[str, Any]]) -> int:
    return next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)

"""How a run divides its evaluation data: drawn by the seed over all of it, and never unseen when it is trained on."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.benchmarks import library
from engine.data import division
from engine.spec import RunSpec, schema, split
from engine.workspace import Workspace

Row = dict[str, Any]


def pair(question: str, answer: str, **more: Any) -> Row:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        **more,
    }


def divided(
    train: list[Row], evaluation: list[Row], general: list[Row] | None = None, seed: int = 0
) -> division.Divided:
    stored = {"train": train, "eval": evaluation, "general": general or []}
    chosen = schema.DatasetRef("train", "eval", seed)
    return division.divide(chosen, "general" if general else None, stored.__getitem__)


MANY = [
    pair(f"{kind} {i}", "x", family=kind, line=i) for kind, n in (("A", 520), ("B", 300), ("C", 80)) for i in range(n)
]


def test_each_kind_has_its_share_of_the_draw() -> None:
    drawn = split.drawn(MANY, 500, 0)
    assert Counter(row["family"] for row in drawn) == {"A": 289, "B": 167, "C": 44}
    assert [row["line"] for row in drawn if row["family"] == "A"] != list(range(289))


def test_the_draw_is_the_seeds_and_neither_the_orders_nor_the_training_datas() -> None:
    names = {row["prompt"][0]["content"] for row in split.drawn(MANY, 500, 0)}
    assert names == {row["prompt"][0]["content"] for row in split.drawn(MANY[::-1], 500, 0)}
    assert names != {row["prompt"][0]["content"] for row in split.drawn(MANY, 500, 1)}
    for train in ([pair("other", "y")], MANY[:100]):
        found = divided(train, MANY)
        assert names == {row["prompt"][0]["content"] for row in [*found.unseen, *found.seen]}


def test_doubled_rows_are_drawn_once() -> None:
    assert len({json.dumps(row, sort_keys=True) for row in split.drawn(MANY[:300] * 3, 250, 0)}) == 250


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.data())
@settings(deadline=None)
def test_shares_add_up_and_no_family_goes_without_while_there_is_room(sizes: list[int], data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, sum(sizes)))
    shares = split.proportional(sizes, wanted)
    assert sum(shares) == wanted and all(share <= size for share, size in zip(shares, sizes, strict=True))
    assert all(abs(share - wanted * size / sum(sizes)) <= 1 for share, size in zip(shares, sizes, strict=True))


@pytest.mark.parametrize("most", [1, 10, 500, 899, 900, 1000])
def test_places_are_spread_over_all_there_are(most: int) -> None:
    places = library.spread(900, most)
    assert len(set(places)) == min(most, 900) and (most < 10 or max(places) >= 900 - 900 // min(most, 900) - 1)


def test_what_is_drawn_is_said() -> None:
    told = [str(one) for one in divided([pair("other", "y")], MANY).counts.notes]
    assert told == ["500 of 900 evaluation rows are scored, drawn by the split seed."]


TRAINED = [pair(f"What is {i}?", f"Answer {i}") for i in range(10)]
SYSTEM = {"role": "system", "content": "Be brief."}


def dialogue(*turns: str) -> Row:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]}


@pytest.mark.parametrize(
    ("row", "exact"),
    [
        (pair("What is 3?", "Answer 3"), 1),
        (pair("what  is 3?\n", " ANSWER 3"), 1),
        ({**pair("What is 3?", "Answer 3"), "prompt": [SYSTEM, {"role": "user", "content": "What is 3?"}]}, 1),
        (dialogue("What is 3?", "Answer 3"), 1),
        (pair("What is 3?", "Something else"), 0),
    ],
    ids=["as it is", "case and white space", "another system text", "a conversation", "another answer"],
)
def test_a_row_that_is_trained_on_is_no_unseen_one(row: Row, exact: int) -> None:
    found = divided(TRAINED, [row, pair("What is 99?", "Answer 3")])
    assert (len(found.seen), found.counts.exact, len(found.unseen)) == (1, exact, 1)
    told = str(found.counts.notes[-1])
    assert told.startswith(
        f"1 of 2 evaluation rows are trained on too: {exact} as they are, {1 - exact} by their question"
    )


def test_every_answer_of_a_trained_conversation_is_trained_on() -> None:
    found = divided(
        [dialogue("Hello", "Hi", "And 3?", "Three")], [dialogue("Hello", "Hi"), dialogue("And 3?", "Three")]
    )
    assert found.counts.exact == 1 and len(found.unseen) == 1  # the second stands there after other words


def test_general_rows_are_trained_on_too() -> None:
    assert divided(TRAINED, [pair("General?", "Yes")], general=[pair("general?", "yes")]).counts.exact == 1


def test_texts_and_pairs_are_held_against_each_other_too() -> None:
    assert divided([{"text": "One  text."}], [{"text": "one text."}, {"text": "two"}]).counts.exact == 1
    good = {"prompt": pair("q", "")["prompt"], "chosen": [{"role": "assistant", "content": "a"}]}
    ranked = {**good, "rejected": [{"role": "assistant", "content": "b"}]}
    turned = {**good, "rejected": [{"role": "assistant", "content": "c"}]}
    found = divided([ranked], [ranked, turned])
    assert (found.counts.exact, found.counts.seen) == (1, 2)


def test_where_all_is_trained_on_nothing_is_unseen_and_that_is_said() -> None:
    found = divided(TRAINED, TRAINED)
    assert found.unseen == [] and "No evaluation row is unseen" in str(found.counts.notes[-1])


def test_benchmark_questions_that_are_trained_on_are_counted(workspace: Workspace) -> None:
    (benchmark,) = [one for one in library.available(workspace) if one.name == "toy-world"]
    asked = [doc["question"] for doc in library.docs(benchmark)]
    spec = msgspec.convert(
        {"recipe": {"name": "lora", "sha256": "0"}, "base": {"ref": "starter"}, "dataset": {"id": "d"},
         "evaluate": {"benchmarks": ["toy-world"]}}, RunSpec,
    )  # fmt: skip
    learned = [pair(f" {question.upper()}", "x") for question in asked[:7]]
    (told,) = division.benchmark_notes(spec, workspace, [*learned, pair("Something else?", "x")])
    n = sum(question in asked[:7] for question in asked)
    assert str(told).startswith(f"{n} of {len(asked)} questions of ")
    assert division.benchmark_notes(spec, workspace, [pair("Something else?", "x")]) == []

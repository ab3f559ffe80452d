"""How a run divides its evaluation data: drawn by the seed over all of it, and never unseen when it is trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.benchmarks import library
from engine.data import datasets, division
from engine.plan import plans
from engine.spec import RunSpec, schema, split
from engine.train import rows
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


def shared(rows: list[Row], share: float = 0.5, seed: int = 0) -> division.Divided:
    return division.divide(schema.DatasetRef("all", None, seed, eval_share=share), None, lambda _: rows)


def asking(limit: int = 0, **more: Any) -> RunSpec:
    given = {"recipe": {"name": "lora", "sha256": "0"}, "base": {"ref": "starter"}, "dataset": {"id": "d"}}
    return msgspec.convert({**given, "evaluate": {"limit": limit}, **more}, RunSpec)


def told(found: division.Divided, limit: int = 0) -> list[str]:
    return [str(one) for one in found.counts.notes(asking(limit))]


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
    found = divided([pair("other", "y")], MANY)
    assert told(found) == ["500 of 900 evaluation rows are scored, drawn by the split seed."]
    assert told(found, limit=10) == [
        "10 of 900 evaluation rows are scored, as many as “Most questions” says.",
        "The held-out loss on the chart is over all 500 that are unseen.",
    ]
    share = shared(MANY, 0.1)
    assert told(share) == [] and told(share, limit=10)[0].startswith("10 of 90 held-out rows are scored")


def test_no_loss_is_spoken_of_where_none_is_measured_on_rows_held_out() -> None:
    found = divided([pair("other", "y")], MANY).counts
    (only,) = found.notes(asking(10, objective="ppo"))
    assert str(only).startswith("10 of 900")


def test_rows_that_are_held_out_twice_count_once_wherever_they_are_used() -> None:
    twice = [{**row, "line": 1000 + i} for i, row in enumerate(MANY[:4])]
    found = divided([pair("other", "y")], [*MANY[:28], *twice])
    assert found.unseen == MANY[:28] and told(found) == [
        "Repeats among the rows to be scored: 4. Each such row is scored once."
    ]
    assert len(rows.to_score(found.train, found.unseen, found.seen)) - len(found.train) == len(found.unseen)
    many = divided([pair("other", "y")], [*MANY, *twice])
    assert told(many) == [
        "500 of 900 evaluation rows are scored, drawn by the split seed.",
        "Repeats among the rows to be scored: 4. Each such row is scored once."
    ]  # fmt: skip
    share = shared(MANY[:20] * 2)
    assert (len(share.unseen), told(share)) == (
        10,
        ["Repeats among the rows to be scored: 10. Each such row is scored once."],
    )
    assert len(share.train) == 20  # what is trained stays as it is given


def test_pairs_that_are_held_out_twice_count_once() -> None:
    good, bad = pair("", "a")["completion"], pair("", "b")["completion"]
    ranked = [{"prompt": pair(f"q{i}", "")["prompt"], "chosen": good, "rejected": bad} for i in (0, 1, 1, 2)]
    found = divided([pair("other", "y")], ranked)
    assert len(found.unseen) == 3 and told(found) == [
        "Repeats among the rows to be scored: 1. Each such row is scored once."
    ]


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
    assert told(found)[-1].startswith(
        f"1 of 2 evaluation rows are trained on too: {exact} as they are, {1 - exact} by their question"
    )


def test_the_same_words_under_another_system_text_with_another_answer_are_another_question() -> None:
    def under(i: int) -> Row:
        said = [{"role": "system", "content": f"Text {i}"}, {"role": "user", "content": "Summarise it."}]
        return {**pair("", f"Summary {i}"), "prompt": said}

    assert not divided([under(i) for i in range(4)], [under(i) for i in range(4, 8)]).seen


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
    assert found.unseen == [] and "No evaluation row is unseen" in told(found)[-1]


ALIKE = {
    "case": lambda i: pair(f"WHAT IS {i}?", f"answer {i}"),
    "white space": lambda i: pair(f"What is {i}? ", f"Answer {i}"),
    "a system text": lambda i: {**TRAINED[i], "prompt": [SYSTEM, *TRAINED[i]["prompt"]]},
    "a longer conversation": lambda i: dialogue(f"What is {i}?", f"Answer {i}", f"And {i} more?", f"More {i}"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_share_calls_no_row_unseen_whose_like_is_trained(name: str) -> None:
    every = [*TRAINED, *(ALIKE[name](i) for i in range(10)), *(pair(f"Else {i}?", "x") for i in range(10))]
    found = shared(every)
    held = [*found.unseen, *found.seen]
    assert len(held) == 15 and all(row in found.train or row in held for row in every)  # the split is as it was

    def topic(row: Row) -> str:
        first = next(turn for turn in row.get("messages") or row["prompt"] if turn["role"] == "user")
        return first["content"].strip().lower()

    trained = {topic(row) for row in found.train}
    assert found.seen and all(topic(row) in trained for row in found.seen)
    assert not any(topic(row) in trained for row in found.unseen)
    n = len(found.seen)
    assert told(found) == [
        f"{n} of 15 held-out rows have a question or a text that is trained on too. They count as seen rows."
    ]


def test_a_share_that_is_all_trained_on_cannot_say_which_weights_are_best(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": text, "completion": "x"} for text in ("same", "SAME", "Same", "same ", " same")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = datasets.add(workspace, file, file.name)
    given = {"dataset.eval_share": 0.2, "train.keep_best": True}
    plan = plans.make(workspace, "lora", base="starter", dataset=data.id, overrides=given)
    assert "needs-held-out" in {one.rule for one in plan.problems}
    assert "No held-out row is unseen" in str(plan.evaluation_notes[-1])


def test_a_greeting_that_begins_all_conversations_makes_none_a_seen_one() -> None:
    greeted = [
        {"messages": [{"role": "assistant", "content": "How can I help?"}, *dialogue(f"q{i}", f"a{i}")["messages"]]}
        for i in range(4)
    ]
    assert divided(greeted[:2], greeted[2:]).seen == []


def test_benchmark_questions_that_are_trained_on_are_counted(workspace: Workspace) -> None:
    (benchmark,) = [one for one in library.available(workspace) if one.name == "toy-world"]
    asked = [doc["question"] for doc in library.docs(benchmark)]
    spec = msgspec.convert(
        {"recipe": {"name": "lora", "sha256": "0"}, "base": {"ref": "starter"}, "dataset": {"id": "d"},
         "evaluate": {"benchmarks": ["toy-world"]}}, RunSpec,
    )  # fmt: skip
    learned = [pair(f" {question.upper()}", "x") for question in asked[:7]]
    (said,) = division.benchmark_notes(spec, workspace, [*learned, pair("Something else?", "x")])
    n = sum(question in asked[:7] for question in asked)
    assert str(said).startswith(f"{n} of {len(asked)} questions of ")
    assert division.benchmark_notes(spec, workspace, [pair("Something else?", "x")]) == []

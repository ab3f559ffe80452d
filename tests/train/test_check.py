"""A check in bounded time: the same questions of both, as many as fit, none twice, and no further where a drop is clear."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine import events
from engine.report import Item, items, paired, verdicts
from engine.train.scoring import asking, check, keys, on_the_way, scores
from engine.train.scoring.asking import Question
from engine.train.told import Told
from engine.workspace import Workspace


class Model:
    """Answers right by the number of a question."""

    training = False

    def __init__(self, knows: Callable[[int], bool]):
        self.knows = knows

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...


class Bench:
    """A run whose questions take so many seconds each, on a clock of its own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, tuple[int, float]]):
        self.clock, self.asked = 0.0, []
        self.stops_after: int | None = None
        for module in (check, scores):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(keys, "of_question", lambda name, question, *_: f"{name.weights}-{question.benchmark}")
        self.workspace, self.sizes = Workspace(root), sizes
        self.seen: list[Any] = []
        self.attempt()

    def attempt(self) -> None:
        log: Any = SimpleNamespace(append=self.seen.append)
        run_dir = self.workspace.run_dir("20260101-000000-aaaaaa")
        self.run: Any = SimpleNamespace(
            run_dir=run_dir, workspace=self.workspace, log=log, told=Told(log), stop=SimpleNamespace(asked=self.stopped),
            spec=SimpleNamespace(
                dataset=SimpleNamespace(split_seed=0), evaluate=SimpleNamespace(budget_s=None)
            ),
            tokenizer=None,
        )  # fmt: skip

    def stopped(self) -> bool:
        return self.stops_after is not None and len(self.asked) >= self.stops_after

    def questions(self) -> list[Question]:
        def question(name: str, size: int, pace_s: float) -> Question:
            docs = [{"item": f"{name}{n}", "number": n} for n in range(size)]

            def score(model: Model, tokenizer: Any, rows: list[Any]) -> list[Item]:
                self.clock += pace_s * len(rows)
                self.asked += [(model, row["item"]) for row in rows]
                return [
                    Item(item=row["item"], family="f", prompt_sha=row["item"], choices=["a", "b"], gold=0,
                         correct=model.knows(row["number"]))
                    for row in rows
                ]  # fmt: skip

            return Question(name, docs, score)

        return [question(name, *how) for name, how in self.sizes.items()]

    def sides(self, base: Model, tuned: Model) -> list[scores.Side]:
        return [
            scores.Side(role, keys.Model(role, "", ""), None, lambda model=model: nullcontext(model))
            for role, model in (("base", base), ("tuned", tuned))
        ]

    def kept(self, role: str, name: str) -> list[str]:
        return [one.item for one in items.read_items(self.run.run_dir / "items" / f"{role}-{name}.jsonl")]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    return lambda **sizes: Bench(tmp_path, monkeypatch, sizes)


ALL, TOO = Model(lambda _: True), Model(lambda _: True)


def test_both_are_asked_the_same_as_much_as_fits_and_the_rest_can_be_asked_later(bench: Callable[..., Bench]) -> None:
    made = bench(grammar=(200, 0.1), slow=(200, 1.0))
    assert check.carry_out(made.run, made.sides(ALL, TOO), made.questions(), 120.0)
    counts = {name: len(made.kept("tuned", name)) for name in made.sizes}
    assert made.clock <= 120 * 1.01 and counts["grammar"] == 200 and 30 <= counts["slow"] < 60
    for name in made.sizes:
        assert made.kept("base", name) == made.kept("tuned", name)
    assert len(made.asked) == len(set(made.asked)) == 2 * sum(counts.values())
    (said,) = [str(one.text) for one in made.seen if isinstance(one, events.Log)]
    assert f"{sum(counts.values())} of 400 questions" in said
    # everything, later: what is stored is not asked again
    before = len(made.asked)
    sides = made.sides(ALL, TOO)
    for side, model in zip(sides, (ALL, TOO), strict=True):
        answers = [side.answers(made.run, question) for question in made.questions()]
        assert [one.done for one in answers] == [200, counts["slow"]]
        assert all(one.ask(model, None, lambda: False) for one in answers)
    assert len(made.asked) - before == 2 * (200 - counts["slow"])
    # and a later run on the same base asks it nothing of that, so that more of its own fits
    del made.asked[:]
    made.attempt()
    tuned = [scores.Side("tuned", keys.Model("other", "", ""), None, lambda: nullcontext(Model(lambda n: n > 3)))]
    assert check.carry_out(made.run, [sides[0], *tuned], made.questions(), 120.0)
    assert all(model is not ALL for model, _ in made.asked)
    assert len(made.kept("tuned", "slow")) > 1.8 * counts["slow"]


def test_a_check_that_was_stopped_or_killed_anywhere_goes_on_and_asks_nothing_twice(
    bench: Callable[..., Bench],
) -> None:
    made = bench(grammar=(100, 0.1), slow=(90, 1.0))
    attempts, limit = 0, 0
    while True:
        limit += 37
        made.stops_after = limit
        attempts += 1
        made.attempt()
        if check.carry_out(made.run, made.sides(ALL, ALL), made.questions(), 60.0):
            break
    assert attempts > 2
    kept = [(role, one) for role in ("base", "tuned") for name in made.sizes for one in made.kept(role, name)]
    # what is in hand when a stop comes is dropped, as after a kill: a piece at the most
    assert len(made.asked) <= len(kept) + attempts * asking.SMALL_PIECE
    for name in made.sizes:
        assert made.kept("base", name) == made.kept("tuned", name)


def test_a_set_that_shows_a_clear_drop_is_asked_no_further_and_the_report_agrees(bench: Callable[..., Bench]) -> None:
    made = bench(grammar=(200, 0.1), blimp=(200, 0.1))
    lost = Model(lambda n: n % 2 == 0)

    def score(model: Model, tokenizer: Any, rows: list[Any]) -> list[Item]:  # of the other set nothing is lost
        return questions[0].score(ALL, tokenizer, rows)

    questions = made.questions()
    asked = [questions[0]._replace(score=score), questions[1]]
    assert check.carry_out(made.run, made.sides(ALL, lost), asked, 120.0)
    counts = {name: len(made.kept("tuned", name)) for name in made.sizes}
    assert counts == {"grammar": 200, "blimp": 50}
    rows = paired.compare_run(made.run.run_dir)
    judged = {one.row.benchmark: one.verdict for one in verdicts.judge(rows, {"blimp": 0.5, "grammar": 0.5})}
    assert judged["blimp"] == "real drop" and judged["grammar"] != "real drop"
    assert {row.benchmark: row.looks for row in rows} == dict.fromkeys(made.sizes, (50, 100, 150, 200))
    assert any(
        "blimp: asking ended after 50 of 200" in str(one.text) for one in made.seen if isinstance(one, events.Log)
    )


def test_a_machine_that_becomes_slow_ends_the_check_and_not_the_honesty(bench: Callable[..., Bench]) -> None:
    made = bench(slow=(300, 0.2))
    (question,) = made.questions()

    def slower(model: Model, tokenizer: Any, rows: list[Any]) -> list[Item]:
        made.clock += 2.0 * len(rows) * (len(made.asked) > 30)
        return question.score(model, tokenizer, rows)

    assert check.carry_out(made.run, made.sides(ALL, ALL), [question._replace(score=slower)], 100.0)
    n = len(made.kept("tuned", "slow"))
    told = items.read_check(made.run.run_dir)
    assert told is not None and n == told.sets["slow"].asked < told.sets["slow"].planned
    assert made.kept("base", "slow") == made.kept("tuned", "slow")


def test_points_on_the_way_are_asked_what_both_ends_are_asked(bench: Callable[..., Bench]) -> None:
    made = bench(slow=(300, 1.0))
    made.run.spec.evaluate.budget_s = 100.0
    for step in (2, 4):
        on_the_way.score(made.run, ALL, made.questions(), step)
    assert check.carry_out(made.run, made.sides(ALL, Model(lambda n: n > 9)), made.questions(), 100.0)
    asked = [made.kept(role, "slow") for role in ("at-2", "at-4", "base", "tuned")]
    assert asked[0] and all(one == asked[0] for one in asked)
    assert [row.looks for row in paired.compare_run(made.run.run_dir)] == [()]


def test_a_part_file_of_other_weights_or_of_an_earlier_form_is_not_gone_on_with(tmp_path: Path) -> None:
    part = tmp_path / "tuned-b.part"
    old = {"key": "k", "piece": 0, "items": []}
    part.write_bytes(msgspec.json.encode(old) + b"\n")
    assert asking.read_part(part, "k") == [] and part.read_bytes() == b""
    part.write_bytes(msgspec.json.encode({**old, "asked": 16}) + b"\n" + b'{"key": "torn')
    assert [one.asked for one in asking.read_part(part, "k")] == [16] and part.read_bytes().endswith(b"\n")
    assert asking.read_part(part, "other") == []

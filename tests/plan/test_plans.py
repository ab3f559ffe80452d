"""A plan says what the run will do, and what it says of many bases agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import machine
from engine.data import datasets
from engine.machine import MachineFacts
from engine.models import shortlist
from engine.plan import plan as plan_of_a_run
from engine.plan import plans, targets
from engine.runs import store
from engine.spec import split
from engine.workspace import Workspace
from tests.helpers import examples
from tests.plan.test_preflight import add

FAMILIES = [
    [one for one in shortlist.curated() if one.id.startswith(start)]
    for start in ("HuggingFaceTB/SmolLM2", "Qwen/Qwen2.5", "meta-llama/Llama-3", "Qwen/Qwen3")
]
ORDER = ("fits", "tight", "risky", "none")


@settings(max_examples=examples(100))
@given(
    recipe=st.sampled_from(["lora", "qlora", "full", "oft", "freeze-bottom", "dpo", "kto"]),
    memory_gib=st.floats(1, 200),
    batch=st.sampled_from([1, 2, 8, 32]),
    tokens=st.sampled_from([128, 512, 2048]),
)
def test_a_smaller_model_is_never_said_to_fit_worse_than_a_larger_one_of_its_family(
    tmp_path_factory: pytest.TempPathFactory, recipe: str, memory_gib: float, batch: int, tokens: int
) -> None:
    """What the picker's short list says is room() of the plan on each base. Of models of one family and vocabulary."""
    workspace = Workspace(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "facts", lambda: MachineFacts(2, int(memory_gib * 1024), ()))
        wish = {"train.batch_size": batch, "train.max_length": tokens}
        plan = plans.make(workspace, recipe, base="starter", dataset=None, overrides=wish)
        for family in FAMILIES:
            rooms = [ORDER.index(plans.on_base(plan, one.base).room) for one in family]
            assert rooms == sorted(rooms), [one.id for one in family]


def answers(questions: list[str]) -> list[dict[str, str]]:
    return [{"prompt": question, "completion": f"It is {number}."} for number, question in enumerate(questions)]


@pytest.mark.parametrize(
    "questions", [["one"], ["one", "two"], ["a", "a", "b"], [f"What is {n % 7}?" for n in range(60)]], ids=len
)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("most", [0, 2])
def test_a_plan_counts_the_rows_as_its_run_divides_them(
    workspace: Workspace, tmp_path: Path, questions: list[str], share: float, most: int
) -> None:
    dataset = add(workspace, answers(questions), "mine")
    wish = {"dataset.eval_share": share, "dataset.most_rows": most or None}
    plan = plans.make(workspace, "lora", base="starter", dataset=dataset, overrides=wish)
    read = pyarrow.parquet.read_table(datasets.rows_path(workspace, dataset)).to_pylist()
    train, _ = split.divide(plan.spec.dataset, lambda _: read)
    assert plan.rows == len(train)


def test_general_rows_that_are_longer_than_the_data_count_for_the_memory(workspace: Workspace, tmp_path: Path) -> None:
    short = add(workspace, answers([f"What is {n}?" for n in range(60)]), "short")
    long = add(workspace, answers([f"{n} " + "river " * 300 for n in range(60)]), "long")

    def longest(**overrides: Any) -> int:
        wish = {path.replace("__", "."): value for path, value in overrides.items()}
        return plans.make(workspace, "lora", base="starter", dataset=short, overrides=wish).setup.max_length

    alone = longest(train__replay_share=0.0)
    assert alone < longest(train__replay_share=0.5) <= 32
    assert longest(train__replay_share=0.5, train__replay_data=long) > 256
    assert longest(train__replay_share=0.0, train__replay_data=long) == alone


def loaded(monkeypatch: pytest.MonkeyPatch, load: float) -> None:
    plan_of_a_run._own_threads.cache_clear()
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("psutil.getloadavg", lambda: (load, 0.0, 0.0))


@pytest.mark.parametrize(("load", "times"), [(0.0, 1), (0.9, 1), (1.0, 2), (4.0, 3), (10.0, 6)])
def test_a_busy_machine_makes_the_longer_time_as_much_longer_and_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, load: float, times: int
) -> None:
    def time() -> Any:
        wish = {"train.threads": 2}
        return plans.make(workspace, "lora", base="starter", dataset=None, overrides=wish, rows_planned=240).time

    loaded(monkeypatch, 0.0)
    free = time()
    loaded(monkeypatch, load)
    found = time()
    assert found.high_s == pytest.approx(times * free.high_s) == pytest.approx(sum(one.high_s for one in found.lines))
    assert (found.low_s, found.likely_s) == (free.low_s, free.likely_s)
    assert ("busy" in found.stands_on, f"{times} times as long" in found.sentence) == (times > 1, times > 1)


def test_a_run_that_is_over_before_the_next_one_starts_does_not_make_it_longer(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = plans.make(workspace, "lora", base="starter", dataset=None, overrides={"train.threads": 2}, rows_planned=9)
    going = type("Run", (), {"id": "r1", "status": "running"})
    monkeypatch.setattr(store, "list_all", lambda _: [going])
    monkeypatch.setattr(store, "load_spec", lambda *_: other.spec)
    loaded(monkeypatch, 2.0)
    assert other.time is not None and not other.time.is_busy


def test_a_card_is_not_slower_for_a_busy_processor(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(monkeypatch, 10.0)
    there = targets.of_memory(24.0)
    made = plans.make(workspace, "lora", base="starter", dataset=None, overrides={}, target=there, rows_planned=240)
    assert made.time is not None and not made.time.is_busy

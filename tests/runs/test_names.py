"""What runs are called, and what a list says of them."""

from __future__ import annotations

import json

import msgspec
import pytest

from engine import events, starter
from engine.data import datasets
from engine.estimate import phases
from engine.report import Item, items
from engine.runs import lifecycle, scored, store
from engine.spec import schema
from engine.workspace import Workspace
from pages._run_table import shortened
from tests.helpers import finished_run, planned


def facts(workspace: Workspace, recipe: str = "lora", base: str = "starter"):
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    spec, problems = planned(workspace, recipe, base=base, dataset=data.id, overrides={})
    assert not problems
    return spec


def named(workspace: Workspace, run_id: str, name: str) -> None:
    (workspace.run_dir(run_id) / "meta.json").write_text(json.dumps({"name": name}))


def test_a_run_is_called_by_its_data_recipe_and_base_and_no_two_alike(workspace, monkeypatch):
    monkeypatch.setattr(lifecycle, "_queue", lambda *_, **__: None)
    spec = facts(workspace)
    made = [lifecycle.start(workspace, spec) for _ in range(3)] + [lifecycle.start(workspace, spec, name="mine")]
    assert [store.name(workspace, one) for one in made] == [
        "New facts · LoRA · Starter", "New facts · LoRA · Starter 2", "New facts · LoRA · Starter 3", "mine",
    ]  # fmt: skip
    again = lifecycle.start(workspace, spec, name="mine")
    assert store.name(workspace, again) == "mine 2"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("New facts · LoRA · Starter 12", "New facts · LoRA · Starter 12"),
        (
            "New facts · LoRA · HuggingFaceTB-SmolLM2-1.7B-Instruct 12",
            "New facts · LoRA · HuggingFaceTB-Sm…-Instruct 12",
        ),
        ("偏好数据对 · 冻结底层 · 名字非常非常非常长的入门模型 3", "偏好数据对 · 冻结底层 ·…非常非常长的入门模型 3"),
    ],
)
def test_the_list_cuts_a_long_name_in_its_middle_and_never_its_number(name, cell):
    assert shortened(name) == cell


def test_a_base_is_called_by_its_model_and_not_by_its_folder_or_the_run_between(workspace, tmp_path):
    spec, folder = facts(workspace), tmp_path / "smollm2-135m-dc6f82"
    folder.mkdir()
    (folder / "gguf.json").write_text('{"name": "SmolLM2 135M"}')
    bases = (str(folder), "HuggingFaceTB/SmolLM2-135M-Instruct", "run:20260101-000001-abcdef")
    finished_run(workspace, 1, msgspec.structs.replace(spec, base=schema.BaseRef(str(folder))))
    for number, base in enumerate(bases, 2):
        finished_run(workspace, number, msgspec.structs.replace(spec, base=schema.BaseRef(base)))
    of = {run.id[13:15]: store.made_of(workspace, run) for run in store.list_every(workspace)}
    assert [of[f"{n:02d}"].base for n in (1, 2, 3, 4)] == ["SmolLM2 135M"] * 2 + [
        "SmolLM2-135M-Instruct",
        "SmolLM2 135M",
    ]


def test_runs_that_an_earlier_version_named_are_shown_so_that_they_can_be_told_apart(workspace):
    spec = facts(workspace, "full")
    for number, name in enumerate(
        ("full on starter", "full on starter", "full on starter, the way back", "full on fire"), 1
    ):
        named(workspace, finished_run(workspace, number, spec).name, name)
    shown = [run.name for run in reversed(store.list_every(workspace))]
    assert list(store.all_names(workspace).values()) == shown
    usual = "New facts · Full fine-tuning · Starter"
    assert shown == [usual, f"{usual} 2", f"Way back from {usual}", "full on fire"]
    told = msgspec.structs.replace(spec, kind="evaluate", recipe=schema.RecipeRef("evaluate", "0" * 64))
    for number, name in ((5, "evaluate starter"), (6, "evaluate it again")):
        named(workspace, finished_run(workspace, number, told).name, name)
    named(workspace, finished_run(workspace, 7, spec).name, "evaluate starter")  # which a person gave to a training
    newest = [run.name for run in store.list_every(workspace)][:3]
    assert newest == ["evaluate starter", "evaluate it again", "Scores of Starter"]
    kept = json.loads((workspace.run_dir("20260101-000001-abcdef") / "meta.json").read_bytes())
    assert kept == {"name": "full on starter"}  # what is stored stays


def asked(workspace: Workspace, run_id: str, right: int) -> None:
    for model, correct in (("base", 10), ("tuned", right)):
        for benchmark, family, share in (
            ("new-task-exact", items.UNSEEN, correct),
            ("toy-world", "sums", 70 - correct),
        ):
            found = [Item(item=str(i), family=family, prompt_sha="p", correct=i < share, text="a") for i in range(60)]
            items.write_items(workspace.run_dir(run_id) / "items" / f"{model}-{benchmark}.jsonl", found)


def test_what_a_run_gained_and_lost_is_worked_out_once_and_anew_when_it_is_asked_more(workspace):
    run_id = finished_run(workspace, 1, facts(workspace)).name
    (workspace.run_dir(run_id) / "items").mkdir()
    asked(workspace, run_id, 40)
    runs = store.list_every(workspace)
    assert scored.kept_briefs(workspace, runs) == {}
    made = scored.brief(workspace, run_id, runs)
    assert made.gained is not None and (made.gained.unit, made.gained.verdict) == ("%", "better")
    assert made.lost is not None and made.lost.verdict == "worse" and made.lost.better < 0
    assert scored.kept_briefs(workspace, runs) == {run_id: made}
    asked(workspace, run_id, 20)
    assert scored.kept_briefs(workspace, runs) == {}


def test_a_list_of_runs_reads_none_of_their_questions_or_events_again(workspace, monkeypatch):
    spec = facts(workspace)
    for number in range(1, 21):
        finished_run(workspace, number, spec)
    runs = store.list_every(workspace)
    for run in runs:
        scored.brief(workspace, run.id, runs)
        store.write_summary(workspace.run_dir(run.id))
    monkeypatch.setattr(events, "read", lambda *_: (_ for _ in ()).throw(AssertionError("read again")))
    monkeypatch.setattr(items, "read_items", events.read)
    assert len(scored.kept_briefs(workspace, store.list_every(workspace))) == 20


def road(*found, live: bool, until_s: float, **expected: float) -> list[tuple[str, str, float | None]]:
    for number, event in enumerate(found):
        event.monotonic_s = float(10 * number)
    stages = phases.road(found, live=live, until_s=until_s, expected=expected)
    return [(one.phase, one.state, one.left_s if live else one.took_s) for one in stages]


def test_the_way_of_a_run_names_what_is_behind_what_goes_on_and_what_is_to_come():
    queued, loading = events.Queued(device="cpu"), events.Phase(phase="loading")
    assert road(queued, live=True, until_s=5.0, loading=8.0, training=60.0) == [
        ("waiting", "now", None), ("loading", "to come", 8.0), ("training", "to come", 60.0),
    ]  # fmt: skip
    told = [
        queued,
        loading,
        events.Phase(phase="training"),
        events.Step(step=3, total_steps=9, epoch=1, loss=1, left_s=42.0),
    ]
    whole = {"loading": 8.0, "training": 60.0, "saving": 1.0, "scoring tuned": 5.0}
    stages = phases.road(told, live=True, until_s=30.0, expected=whole)
    assert road(*told, live=True, until_s=30.0, **whole) == [
        ("waiting", "done", None), ("loading", "done", None), ("training", "now", 42.0), ("saving", "to come", 1.0),
        ("scoring tuned", "to come", 5.0),
    ]  # fmt: skip
    now = next(one for one in stages if one.state == "now")
    assert (now.done, now.total) == (3, 9)


def test_the_way_of_a_run_that_has_ended_holds_no_more_than_it_took():
    told = [events.Queued(device="cpu"), events.Phase(phase="loading"), events.Phase(phase="training")]
    ended = [*told, events.Stopped(step=0, resumable=False)]
    assert road(*ended, live=False, until_s=30.0, saving=9.0) == [
        ("waiting", "done", 10.0), ("loading", "done", 10.0), ("training", "ended", 10.0),
    ]  # fmt: skip
    done = [*told, events.Finished(step=1)]
    assert road(*done, live=False, until_s=30.0)[-1] == ("training", "done", 10.0)


def test_in_a_home_that_cannot_be_written_figures_are_worked_out_once_all_the_same(workspace, monkeypatch):
    run_id = finished_run(workspace, 1, facts(workspace)).name
    monkeypatch.setattr(scored, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    made = scored.brief(workspace, run_id, store.list_every(workspace))
    assert scored.kept_briefs(workspace, store.list_every(workspace)) == {run_id: made}

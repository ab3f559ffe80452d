"""Runs that others need, runs of a later version, and runs that were stopped before their first step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import events, processes
from engine.cli import main
from engine.models import bases, made
from engine.report import items
from engine.runs import checkpoints, lifecycle, needs, store
from engine.spec import schema, versions
from engine.workspace import Workspace
from tests.apps import button, open_page, texts
from tests.helpers import fake_spec, planned


def written(workspace: Workspace, number: int, *happened: events.Event, makes: str = "adapter", **spec: Any) -> str:
    """Write the folder of a run by hand and return its id."""
    run_id = f"20260101-0000{number:02d}-abcdef"
    folder = workspace.run_dir(run_id)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(schema.encode(msgspec.structs.replace(fake_spec(), **spec)))
    (folder / "meta.json").write_text(json.dumps({"name": f"run {number}"}))
    if makes:
        (folder / makes).mkdir()
    log = events.EventLog(folder)
    for event in happened or (events.Finished(step=1),):
        log.append(event)
    log.close()
    return run_id


@pytest.fixture
def tunebook(capsys, workspace) -> Any:
    """Give a command and return its exit status and all it said."""

    def call(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out + told.err

    return call


def on(run_id: str) -> schema.BaseRef:
    return schema.BaseRef(f"run:{run_id}")


def changed(workspace: Workspace, run_id: str, change: Any) -> bytes:
    """Let `change` edit the spec of a run, as another version would have written it."""
    path = workspace.run_dir(run_id) / "spec.json"
    told = json.loads(path.read_bytes())
    change(told)
    path.write_text(json.dumps(told))
    return path.read_bytes()


LATER = {
    "a setting more": lambda told: told["train"].update(label_smoothing=0.1),
    "another kind": lambda told: told.update(kind="distil", recipe=None),
    "another schema": lambda told: told.update(schema=7),
    "another objective": lambda told: told.update(objective="grpo"),
}


# --- who needs a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "how"),
    [
        (lambda run: {"base": on(run)}, "base"),
        (lambda run: {"objective": "ppo", "objective_args": schema.ObjectiveArgs(reward_model=f"run:{run}")}, "judge"),
        (lambda run: {"kind": "evaluate", "base": on(run)}, "evaluation"),
        (lambda run: {"kind": "evaluate", "evaluate": schema.Evaluate(against=f"run:{run}")}, "compared"),
    ],
)
def test_a_run_that_another_needs_is_deleted_only_by_who_has_read_what_is_lost(workspace, spec, how) -> None:
    needed = written(workspace, 1)
    other = written(workspace, 2, **spec(needed))
    (found,) = needs.of(workspace, needed)
    assert (found.id, found.how) == (other, how) and found.sentence.startswith("run 2 ")
    with pytest.raises(lifecycle.MustBeAsked, match="run 2"):
        lifecycle.delete(workspace, needed)
    assert store.exists(workspace, needed)
    lifecycle.delete(workspace, needed, all_the_same=True)
    assert not store.exists(workspace, needed)


def test_what_stands_on_what_stands_on_a_run_loses_it_too_unless_it_holds_its_own_weights(workspace) -> None:
    first = written(workspace, 1)
    second = written(workspace, 2, base=on(first))
    third = written(workspace, 3, base=on(second), makes="model")
    fourth = written(workspace, 4, base=on(third))
    assert {one.id for one in needs.of(workspace, first)} == {second, third}
    assert [one.id for one in needs.of(workspace, third)] == [fourth]
    assert needs.of(workspace, fourth) == []


def test_a_run_that_a_waiting_run_needs_stays_whoever_asks(workspace) -> None:
    judge = written(workspace, 1)
    args = schema.ObjectiveArgs(reward_model=f"run:{judge}")
    waiting = written(workspace, 2, events.Queued(device="cpu"), objective="ppo", objective_args=args)
    alive = msgspec.json.encode(processes.identify(os.getpid()))
    (workspace.run_dir(waiting) / "pid.json").write_bytes(alive)
    with pytest.raises(lifecycle.CannotDelete, match="wait or go on now") as refused:
        lifecycle.delete(workspace, judge, all_the_same=True)
    assert not isinstance(refused.value, lifecycle.MustBeAsked) and store.exists(workspace, judge)


def continued(workspace, number: int, on_run: str) -> str:
    args = schema.AdapterArgs(continues=True)
    return written(workspace, number, base=on(on_run), adapter_args=args)


def test_what_trained_an_adapter_on_stays_a_base_when_the_runs_between_are_deleted(workspace) -> None:
    first = written(workspace, 1, base=schema.BaseRef("owner/base", "a" * 40))
    second = continued(workspace, 2, first)
    third = continued(workspace, 3, second)
    fourth = continued(workspace, 4, third)
    assert [one.stands_alone for one in needs.of(workspace, second)] == [True]
    for run in (second, third, first):
        lifecycle.delete(workspace, run, all_the_same=True)
    assert made.under(workspace, fourth) == ("owner/base", "a" * 40)
    below = store.over_its_base(workspace, store.load_spec(workspace, fourth)).base
    assert (below.ref, below.revision) == ("owner/base", "a" * 40)
    base = bases.describe(f"run:{fourth}", workspace)
    assert base.folder is not None and not {"base-run", "base-line-gone"} & {one.rule for one in base.problems}
    assert [one.rule for one in bases.describe(f"run:{second}", workspace).problems] == ["base-run"]


def test_of_a_line_whose_earlier_run_vanished_that_is_said(workspace) -> None:
    first = written(workspace, 1)
    second = continued(workspace, 2, first)
    shutil.rmtree(workspace.run_dir(first))
    (problem,) = bases.describe(f"run:{second}", workspace).problems
    assert problem.rule == "base-line-gone" and "was deleted" in problem.sentence


def test_a_run_that_nobody_trained_on_leaves_nothing_behind(workspace) -> None:
    first = written(workspace, 1)
    written(workspace, 2, base=on(first))
    lifecycle.delete(workspace, first, all_the_same=True)
    assert not workspace.deleted_path(first).exists()


def test_a_run_that_has_finished_goes_on_no_more_though_its_supervisor_lingers(workspace) -> None:
    needed = written(workspace, 1)
    other = written(workspace, 2, base=on(needed))
    alive = msgspec.json.encode(processes.identify(os.getpid()))
    (workspace.run_dir(other) / "pid.json").write_bytes(alive)
    (found,) = needs.of(workspace, needed)
    assert not found.going and "goes on now" not in found.sentence


def test_a_sweep_a_chain_and_an_open_chat_need_their_runs(workspace) -> None:
    run_id = written(workspace, 1)
    sweep = written(workspace, 2, kind="sweep", makes="")
    (workspace.run_dir(sweep) / "sweep.json").write_text(json.dumps({"title": "s", "trials": [{"run": run_id}]}))
    workspace.chains_dir.mkdir()
    workspace.chain_path("c1").write_text(json.dumps({"name": "my chain", "runs": {"sft": run_id}}))
    needs.hold(workspace, processes.identify(os.getpid()), ["starter", f"run:{run_id}"])
    assert [one.how for one in needs.of(workspace, run_id)] == ["sweep", "chain", "chat"]
    child = subprocess.Popen([sys.executable, "-c", ""])
    gone = processes.identify(child.pid)
    child.wait()
    needs.hold(workspace, gone or processes.Identity(1, 0.0, "another boot"), [f"run:{run_id}"])
    assert [one.how for one in needs.of(workspace, run_id)] == ["sweep", "chain"]


def test_what_is_nested_deep_in_another_runs_files_keeps_no_run_from_being_deleted(workspace) -> None:
    run_id, sweep = written(workspace, 1), written(workspace, 2, kind="sweep", makes="")
    nested = "[" * 700 + f'"run:{run_id}"' + "]" * 700
    (workspace.run_dir(sweep) / "spec.json").write_text(f'{{"kind": "sweep", "later": {nested}}}')
    (workspace.run_dir(sweep) / "sweep.json").write_text(f'{{"trials": {nested}}}')
    assert [one.how for one in needs.of(workspace, run_id)] == ["other"]


def test_a_run_of_a_later_version_that_stands_on_a_run_is_seen(workspace) -> None:
    needed = written(workspace, 1)
    later = written(workspace, 2)
    changed(workspace, later, lambda told: told.update(kind="recover", recover={"run": f"run:{needed}"}))
    assert [(one.id, one.how) for one in needs.of(workspace, needed)] == [(later, "other")]


def test_the_command_line_names_what_is_lost_and_wants_force(workspace, tunebook) -> None:
    needed = written(workspace, 1)
    written(workspace, 2, base=on(needed))
    code, said = tunebook("delete", needed)
    assert code == 2 and "run 2" in said and "--force" in said and store.exists(workspace, needed)
    assert tunebook("delete", needed, "--force")[0] == 0 and not store.exists(workspace, needed)


@pytest.mark.page
def test_the_page_names_what_is_lost_before_it_deletes(workspace) -> None:
    needed = written(workspace, 1, objective="reward")
    args = schema.ObjectiveArgs(reward_model=f"run:{needed}")
    written(workspace, 2, objective="ppo", objective_args=args)
    app = open_page("runs", run=needed)
    assert (
        "run 2" in texts(app)
        and "trained by its judgement" in texts(app)
        and button(app, f"delete_run_{needed}").disabled
    )
    next(box for box in app.checkbox if box.key == f"delete_anyway_run_{needed}").check().run()
    button(app, f"delete_run_{needed}").click().run()
    assert not store.exists(workspace, needed)


# --- runs of a later version -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_a_run_of_a_later_version_is_listed_refused_and_left_as_it_is(workspace, change) -> None:
    run_id = written(workspace, 1)
    kept = changed(workspace, run_id, change)
    (line,) = store.list_every(workspace)
    assert (line.id, line.name, line.status) == (run_id, "run 1", "later") and "later version" in line.note
    assert store.list_all(workspace) == []
    assert [one.rule for one in bases.describe(f"run:{run_id}", workspace).problems] == ["run-later"]
    with pytest.raises(store.UnreadableSpec, match="later version"):
        store.load_spec(workspace, run_id)
    with pytest.raises(lifecycle.CannotResume, match="later version"):
        lifecycle.resume(workspace, run_id)
    with pytest.raises(lifecycle.MustBeAsked, match="later version"):
        lifecycle.delete(workspace, run_id)
    assert (workspace.run_dir(run_id) / "spec.json").read_bytes() == kept


def test_a_later_judge_is_refused_as_one(workspace) -> None:
    judge = written(workspace, 1, objective="reward")
    changed(workspace, judge, LATER["a setting more"])
    _, problems = planned(
        workspace, "ppo", base="starter", dataset=None, overrides={"objective_args.reward_model": f"run:{judge}"}
    )
    assert "run-later" in [one.rule for one in problems]


@given(st.integers(0, 2000))
def test_a_spec_that_was_cut_is_never_taken_for_a_later_version(length: int) -> None:
    whole = schema.encode(fake_spec())
    cut = whole[: min(length, len(whole.rstrip()) - 1)]
    problem = versions.problem(cut)
    assert problem is not None and problem.rule == "run-broken" and versions.unknown(cut) == ()


@given(st.recursive(st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_whatever_a_spec_says_it_is_read_or_named_later_or_broken(told: Any) -> None:
    data = json.dumps(told).encode()
    problem = versions.problem(data)
    assert problem is not None and problem.rule in ("run-later", "run-broken")


def test_a_cut_spec_is_listed_as_broken_and_a_whole_one_as_neither(workspace) -> None:
    run_id = written(workspace, 1)
    assert [one.note for one in store.list_every(workspace)] == [""]
    path = workspace.run_dir(run_id) / "spec.json"
    path.write_bytes(path.read_bytes()[:100])
    (line,) = store.list_every(workspace)
    assert line.status == "broken" and "cut short" in line.note and "later" not in line.note


def test_events_a_summary_and_names_of_a_later_version_do_not_hide_a_run(workspace) -> None:
    run_id = written(workspace, 1, events.Queued(device="cpu"))
    folder = workspace.run_dir(run_id)
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "adopted", "seq": 2, "time": 3.0, "monotonic_s": 1.0}\n')
    (folder / "summary.json").write_text('{"status": "adopted", "shards": [1]}')
    (folder / "meta.json").write_text('{"name": "run 1", "colour": {"hue": 3}}')
    (line,) = store.list_every(workspace)
    assert line.status == "later" and line.name == "run 1"  # and not "interrupted"
    with pytest.raises(lifecycle.CannotResume, match="later version"):
        lifecycle.resume(workspace, run_id)
    store.rename(workspace, run_id, "renamed")
    assert json.loads((folder / "meta.json").read_bytes()) == {"name": "renamed", "colour": {"hue": 3}}


def test_show_says_in_words_that_a_later_version_made_a_run(workspace, tunebook) -> None:
    run_id = written(workspace, 1)
    changed(workspace, run_id, LATER["a setting more"])
    code, said = tunebook("show", run_id)
    assert code == 0 and "later version of Tunebook" in said and "label_smoothing" in said
    code, said = tunebook("runs")
    assert code == 0 and run_id in said and "later version of Tunebook" in said
    code, said = tunebook("compare", run_id)
    assert code == 1 and "later version of Tunebook" in said


@pytest.mark.page
def test_the_runs_page_shows_a_later_run_and_offers_nothing_with_it_but_to_delete(workspace) -> None:
    run_id = written(workspace, 1)
    changed(workspace, run_id, LATER["a setting more"])
    app = open_page("runs", run=run_id)
    assert "later version of Tunebook" in texts(app)
    assert {one.key for one in app.button} == {f"delete_run_{run_id}"}


# --- stopped before step 1 ---------------------------------------------------------------------------------------


STOPPED = (events.Queued(device="cpu"), events.Stopped(step=0, resumable=True))


@pytest.mark.page
def test_a_run_that_was_stopped_before_its_first_step_leads_to_go_on_or_delete_alone(workspace) -> None:
    run_id = written(workspace, 1, *STOPPED, makes="")
    app = open_page("runs", run=run_id)
    assert "nothing was trained" in texts(app)
    assert {one.key for one in app.button} == {"resume", f"delete_run_{run_id}"}
    assert "nothing was trained" in texts(open_page("forgetting", run=run_id))


@pytest.mark.page
@pytest.mark.parametrize("ended", [events.Stopped(step=3, resumable=True), None])
def test_a_run_that_ended_early_goes_on_only_from_a_checkpoint_and_else_starts_again(workspace, monkeypatch, ended):
    steps = (events.Queued(device="cpu"), events.Step(step=3, total_steps=9, epoch=0.3, loss=1.0))
    run_id = written(workspace, 1, *steps, *([ended] if ended else []), makes="")
    app = open_page("runs", run=run_id)
    assert "it can start again with the same settings" in texts(app) and "Resume it" not in texts(app)
    assert button(app, "resume").label == "Start again with the same settings"
    monkeypatch.setattr(checkpoints, "last_checkpoint", lambda run_dir: run_dir)
    app = open_page("runs", run=run_id)
    assert ("It can go on from where it was" if ended else "Resume it") in texts(app)
    assert "cannot go on" not in texts(app) and button(app, "resume").label == "Resume"


@pytest.mark.page
def test_the_scores_of_a_base_alone_stand_on_the_page_of_their_run(workspace) -> None:
    run_id = written(workspace, 1, makes="", kind="evaluate")
    answers = [items.Item(item=str(n), family="a", prompt_sha=f"{n:064}", correct=n < 3) for n in range(12)]
    items.write_items(workspace.run_dir(run_id) / "items" / "base-json-on-request.jsonl", answers)
    app = open_page("runs", run=run_id)
    assert "25.0 %" in str(app.dataframe[0].value) and "JSON on request" in str(app.dataframe[0].value)
    assert button(app, "next_step").label == "Open the report" and not app.exception


def test_a_run_without_a_step_is_neither_compared_nor_exported(workspace, tunebook, tmp_path: Path) -> None:
    run_id = written(workspace, 1, *STOPPED, makes="")
    for words in (("compare", run_id), ("export", run_id, "--to", str(tmp_path / "out"))):
        code, said = tunebook(*words)
        assert code == 1 and "nothing was trained" in said
    step = events.Step(step=1, total_steps=9, epoch=0.1, loss=1.0)
    one = written(workspace, 2, step, events.Stopped(step=1, resumable=True), makes="")
    assert not store.nothing_trained(workspace, one)

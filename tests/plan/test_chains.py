"""Chains: the guide's road in stages, kept in a file, where each stage waits for the one before it and for a click."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import events, processes, starter
from engine.cli import main
from engine.data import datasets, mix
from engine.data.datasets import add_sample
from engine.plan import chains, drafts, plans
from engine.runs import lifecycle, store
from engine.spec import schema, split
from engine.workspace import Workspace
from tests.apps import button, open_page, texts
from tests.left_by_runs import leave_adapter, leave_verdicts


@pytest.fixture(autouse=True)
def nothing_trains(monkeypatch, tmp_path: Path) -> None:
    """Runs are written and never supervised; finish() ends them by hand."""

    def spawn(run_dir: Path, *_: object) -> processes.Identity | None:
        return None

    monkeypatch.setattr(lifecycle, "_spawn", spawn)
    monkeypatch.setenv("TUNEBOOK_MACHINE_DIR", str(tmp_path / "machine"))


def finish(workspace: Workspace, run_id: Any, *, made: bool = True, last: Any = None) -> str:
    """End a run as a trained one ends, with a real adapter file; a judge is right on 9 of 10 pairs."""
    folder = workspace.run_dir(run_id)
    if made:
        leave_adapter(folder)
    log = events.EventLog(folder)
    log.append(last or events.Finished(step=1))
    log.close()
    if store.load_spec(workspace, run_id).objective == "reward":
        leave_verdicts(folder, 9)
    return run_id


def begun(workspace: Workspace, road: str, **more: Any) -> str:
    data = {name: chains.sample_id(workspace, name) for name in chains.ROADS[road]}
    return chains.begin(workspace, road, data, **more)


def looked(workspace: Workspace, chain_id: str) -> Any:
    return chains.look(workspace, chain_id)


def spec_of(workspace: Workspace, run_id: Any) -> schema.RunSpec:
    return store.load_spec(workspace, run_id)


# --- the road ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("road", ["dpo", "kto"])
def test_preferences_are_learned_on_the_run_that_learned_to_answer(workspace, road: str) -> None:
    chain = begun(workspace, road)
    first = finish(workspace, chains.start_next(workspace, chain))
    assert looked(workspace, chain).next.name == road  # and nothing has started by itself
    second = chains.start_next(workspace, chain)
    told = spec_of(workspace, second)
    assert (told.objective, told.base.ref) == (road, f"run:{first}")
    assert told.dataset.id == looked(workspace, chain).stage(road).data


def test_ppo_is_judged_by_the_reward_model_of_its_own_chain(workspace) -> None:
    chain = begun(workspace, "ppo")
    first = finish(workspace, chains.start_next(workspace, chain))
    judge = finish(workspace, chains.start_next(workspace, chain))
    last = chains.start_next(workspace, chain)
    assert spec_of(workspace, judge).base.ref == spec_of(workspace, last).base.ref == f"run:{first}"
    assert spec_of(workspace, last).objective_args.reward_model == f"run:{judge}"
    assert looked(workspace, chain).alike is True
    finish(workspace, last)
    assert looked(workspace, chain).done and looked(workspace, chain).next is None
    with pytest.raises(chains.CannotGoOn, match="all stages"):
        chains.start_next(workspace, chain)


def test_settings_of_a_stage_are_kept_until_it_starts(workspace) -> None:
    chain = begun(workspace, "dpo", settings={"dpo": {"objective_args.beta": 0.3}})
    finish(workspace, chains.start_next(workspace, chain))
    assert spec_of(workspace, chains.start_next(workspace, chain)).objective_args.beta == 0.3


def test_without_rows_for_sft_the_base_is_taken_as_it_is(workspace) -> None:
    chain = chains.begin(workspace, "dpo", {"dpo": chains.sample_id(workspace, "dpo")})
    assert spec_of(workspace, chains.start_next(workspace, chain)).base.ref == "starter"


# --- what was not asked for --------------------------------------------------------------------------------------


def test_no_run_that_is_there_already_is_taken_unasked_and_those_of_other_data_come_last(workspace) -> None:
    data = add_sample(workspace, starter.sample("new-facts"))
    own = add_sample(workspace, starter.sample("mixed-answers"))
    made = {}
    for rows in (own, data):
        spec = plans.make(workspace, "lora", base="starter", dataset=rows, overrides={}).spec
        made[rows.id] = finish(workspace, lifecycle.start(workspace, spec))
    chain = begun(workspace, "ppo")
    assert [stage.state for stage in looked(workspace, chain).stages] == ["empty"] * 3
    assert [run.id for run in chains.usable(workspace, chain)] == [made[own.id], made[data.id]]
    chains.take(workspace, chain, made[data.id])
    assert looked(workspace, chain).stage("sft").run == made[data.id] and looked(workspace, chain).next.name == "reward"
    with pytest.raises(chains.CannotGoOn, match="cannot stand"):
        chains.take(workspace, chain, made[own.id])  # no reward model


# --- what can happen to a stage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (events.Failed(kind="oom", message="m", fix="f"), "failed"),
        (events.Stopped(step=0, resumable=True), "stopped"),
        (None, "interrupted"),
    ],
)
def test_a_stage_that_did_not_finish_holds_the_next_one_up_and_can_be_started_anew(workspace, last, state) -> None:
    chain = begun(workspace, "dpo")
    first = chains.start_next(workspace, chain)
    if last is not None:
        finish(workspace, first, made=False, last=last)
    found = looked(workspace, chain)
    assert found.stage("sft").state == state and found.next.name == "sft" and "anew" in found.next.says
    second = chains.start_next(workspace, chain)
    assert second != first and looked(workspace, chain).stage("sft").run == second


def test_a_deleted_stage_says_so_and_what_stood_on_it_is_no_stage_any_more(workspace) -> None:
    chain = begun(workspace, "dpo")
    first = finish(workspace, chains.start_next(workspace, chain))
    second = finish(workspace, chains.start_next(workspace, chain))
    with pytest.raises(lifecycle.MustBeAsked, match="the chain would lose a stage"):
        lifecycle.delete(workspace, first)
    lifecycle.delete(workspace, first, all_the_same=True)
    found = looked(workspace, chain)
    assert found.stage("sft").state == "deleted" and "deleted" in found.next.says
    finish(workspace, chains.start_next(workspace, chain))
    assert looked(workspace, chain).stage("dpo").state == "replaced" and looked(workspace, chain).next.name == "dpo"
    assert chains.start_next(workspace, chain) != second


def test_two_clicks_start_one_stage(workspace, monkeypatch) -> None:
    chain = begun(workspace, "dpo")
    monkeypatch.setattr(store, "supervised", lambda run_dir: True)
    assert chains.start_next(workspace, chain) == chains.start_next(workspace, chain)
    assert looked(workspace, chain).going.name == "sft" and len(store.list_all(workspace)) == 1


def test_a_stage_that_was_started_and_not_noted_is_found_again(workspace) -> None:
    chain = begun(workspace, "dpo")
    before = workspace.chain_path(chain).read_bytes()
    first = chains.start_next(workspace, chain)
    workspace.chain_path(chain).write_bytes(before)  # killed between the start and the note of it
    assert chains.start_next(workspace, chain) == first


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 2}', b'{"stages": []}'])
def test_a_chain_that_cannot_be_read_is_passed_over_and_left_as_it_is(workspace, content: bytes) -> None:
    workspace.chains_dir.mkdir(parents=True)
    workspace.chain_path("c1").write_bytes(content)
    assert chains.list_all(workspace) == [] and chains.look(workspace, "c1") is None
    with pytest.raises(chains.CannotGoOn, match="no chain c1"):
        chains.start_next(workspace, "c1")
    assert workspace.chain_path("c1").read_bytes() == content
    assert chains.look(workspace, "../c1") is None


# --- one data set for several stages -----------------------------------------------------------------------------


@pytest.mark.parametrize(("road", "sample"), [("dpo", "preference-pairs"), ("kto", "good-bad")])
def test_the_good_answers_of_pairs_serve_sft_and_what_is_held_out_later_is_not_trained_on(
    workspace, road, sample
) -> None:
    rows = add_sample(workspace, starter.sample(sample))
    chain = chains.begin(workspace, road, {"sft": rows.id, road: rows.id})
    first = looked(workspace, chain)
    answers = datasets.load(workspace, first.stage("sft").data)
    assert answers.parent == rows.id and answers.eval_id is not None and answers.report.type == "prompt-completion"
    spec = plans.make(workspace, road, base="starter", dataset=rows, overrides={}).spec
    _, held = split.divide(spec.dataset, lambda name: datasets.read_rows(workspace, name))
    asked = {json.dumps(one["prompt"]) for one in held}
    trained = {json.dumps(one["prompt"]) for one in datasets.read_rows(workspace, answers.id)}
    seen = {json.dumps(one["prompt"]) for one in datasets.read_rows(workspace, answers.eval_id)}
    assert asked and not asked & trained and seen <= asked
    good = [one for one in datasets.read_rows(workspace, rows.id) if one.get("label") is not False]
    assert len(datasets.read_rows(workspace, answers.id)) + len(datasets.read_rows(workspace, answers.eval_id)) == len(
        good
    )


def test_the_questions_of_pairs_serve_ppo_each_once(workspace, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{n % 6}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = mix.questions(workspace, datasets.add(workspace, file, "pairs"))
    assert made.report.type == "prompt-only" and made.report.rows == 6
    assert [row["prompt"][0]["content"] if isinstance(row["prompt"], list) else row["prompt"]
            for row in datasets.read_rows(workspace, made.id)] == [f"q{n}" for n in range(6)]  # fmt: skip


@pytest.mark.parametrize(
    ("road", "stages"), [("dpo", ["dpo"]), ("kto", ["kto"]), ("ppo", ["reward", "ppo"])], ids=["dpo", "kto", "ppo"]
)
def test_a_stage_without_its_data_is_named_with_the_option_that_gives_them(workspace, road, stages):
    facts = chains.sample_id(workspace, "sft")
    with pytest.raises(chains.CannotGoOn) as refused:
        chains.begin(workspace, road, {"sft": facts})
    assert [one.where for one in refused.value.problems] == stages
    with pytest.raises(chains.CannotGoOn) as wrong:
        chains.begin(workspace, road, {"sft": facts, **dict.fromkeys(stages[:1], facts), "ppo": facts})
    for problem in (refused.value.problems[0], wrong.value.problems[0]):
        assert "--preference-data" in problem.sentence and chains.label(stages[0]) in problem.sentence


def test_data_that_a_stage_cannot_read_is_refused_before_anything_starts(workspace) -> None:
    facts = add_sample(workspace, starter.sample("new-facts"))
    with pytest.raises(chains.CannotGoOn, match="preference"):
        chains.begin(workspace, "dpo", {"sft": facts.id, "dpo": facts.id})
    with pytest.raises(chains.CannotGoOn, match="no data is chosen"):
        chains.begin(workspace, "ppo", {"sft": facts.id})
    assert chains.list_all(workspace) == []


# --- the command line and the page -------------------------------------------------------------------------------


def test_the_command_line_starts_one_stage_and_goes_on_when_it_is_told(workspace, capsys) -> None:
    def tunebook(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    data = ("--sft-data", "mixed-answers", "--preference-data", "good-bad")
    code, out, err = tunebook("chain", *data, "--set", "kto:objective_args.beta=0.2")
    (chain,) = chains.list_all(workspace)
    assert code == 0 and f"--go-on {chain.id}" in out and [one.name for one in chain.stages] == ["sft", "kto"]
    finish(workspace, chain.stage("sft").run)
    code, out, err = tunebook("chain", "--go-on", chain.id, "--json")
    runs = json.loads(out)["runs"]
    assert code == 0 and list(runs) == ["sft", "kto"] and spec_of(workspace, runs["kto"]).objective_args.beta == 0.2
    code, out, err = tunebook("chain")
    assert code == 0 and chain.id in out and "sft finished" in out
    code, out, err = tunebook("chain", "--go-on", "nothing")
    assert code == 2 and "no chain nothing" in err


@pytest.mark.page
def test_the_page_begins_a_chain_and_each_next_stage_is_one_click(workspace) -> None:
    app = open_page("train", chain="new")
    assert not [one for one in app.button if one.key == "start"]  # the form of a single run makes room
    button(app, "chain_start").click().run()
    (chain,) = chains.list_all(workspace)
    finish(workspace, chain.stage("sft").run)
    app = open_page("train", chain=chain.id)
    assert "Done." in texts(app) and button(app, "chain_report_sft")
    assert "DPO" in button(app, "chain_next").label
    button(app, "chain_next").click().run()
    assert not app.exception
    second = looked(workspace, chain.id).stage("dpo").run
    finish(workspace, second, made=False, last=events.Failed(kind="bug", message="m", fix="f"))
    app = open_page("train", chain=chain.id)
    assert "It failed" in texts(app) and button(app, "chain_next").label.startswith("Go on with stage 2")
    button(app, "chain_anew").click().run()
    third = looked(workspace, chain.id).stage("dpo").run
    assert third != second
    finish(workspace, third)
    assert button(open_page("train", chain=chain.id), "chain_done")
    assert button(open_page("runs", run=third), "to_chain")


@pytest.mark.page
def test_the_page_offers_a_run_of_other_data_by_its_data(workspace) -> None:
    facts = add_sample(workspace, starter.sample("new-facts"))
    spec = plans.make(workspace, "lora", base="starter", dataset=facts, overrides={}).spec
    other = finish(workspace, lifecycle.start(workspace, spec, name="mine"))
    chain = begun(workspace, "dpo")
    app = open_page("train", chain=chain)
    assert next(one for one in app.selectbox if one.key == "chain_usable").options == [f"mine, trained on {facts.name}"]
    assert looked(workspace, chain).stage("sft").run is None
    button(app, "chain_take").click().run()
    assert looked(workspace, chain).stage("sft").run == other
    draft = chains.draft(workspace, chain)
    assert drafts.load(workspace, drafts.save(workspace, draft)) == draft and draft.base == f"run:{other}"

"""Homes that earlier versions wrote open in this one: every run, data set and report says what it said then.

NAME.tar.xz is a home as the commit NAME left it, NAME.json what that version showed of it. Its reports held no words yet,
so a rule that is reworded reads in its new ones, and is brought up to date in NAME.json by hand.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from streamlit.testing.v1 import AppTest

from engine.benchmarks import library
from engine.chat import votes
from engine.data import datasets, recheck
from engine.export import NotExportable, portable_recipe
from engine.forgetting import claims, sweep_plan
from engine.plan import drafts
from engine.report import headline, statistics
from engine.runs import scored, store
from engine.words import set_language
from engine.workspace import Workspace
from tests.apps import texts
from tests.pages.test_language import opened, to

HOMES = sorted(path.stem for path in Path(__file__).parent.glob("*.json"))
LANGUAGES = ("en", "zh")
# The sentence of a length bias had it in brackets.
EFFECT_SIZE = re.compile(r" \(effect size [^)]*\)|（效应量 [^）]*）")
TITLES = {
    "runs": {"en": "Runs", "zh": "训练任务"},
    "forgetting": {"en": "Forgetting", "zh": "遗忘"},
    "data": {"en": "Data", "zh": "数据"},
}


@pytest.fixture(params=HOMES)
def told(request: pytest.FixtureRequest, workspace: Workspace) -> Iterator[dict[str, Any]]:
    """What an earlier version showed of the home that now lies in the workspace."""
    shutil.unpack_archive(Path(__file__).with_name(f"{request.param}.tar.xz"), workspace.root.parent)
    yield json.loads(Path(__file__).with_name(f"{request.param}.json").read_text("utf-8"))
    set_language("en")


def named(told: dict[str, Any], thing: Any) -> dict[str, Any]:
    """Return those fields of a thing that were told of it then."""
    found = msgspec.to_builtins(thing)
    return {name: found[name] for name in told}


def called(run: dict[str, Any], language: str = "en") -> str:
    """Return what a run is called today: what an earlier version named "evaluate X" by itself are the scores of X."""
    rest = run["name"].removeprefix("evaluate ")
    return run["name"] if rest == run["name"] else {"en": f"Scores of {rest}", "zh": f"{rest} 的评分"}[language]


def sweeps(told: dict[str, Any]) -> list[str]:
    return [run["id"] for run in told["runs"] if run["recipe"] == sweep_plan.RECIPE.name]


# --- what is stored -------------------------------------------------------------------------------------------------
def test_every_run_is_listed_as_it_was(told: dict[str, Any], workspace: Workspace) -> None:
    found = store.list_all(workspace)
    today = [run | {"name": called(run)} for run in told["runs"]]
    assert [named(then, now) for then, now in zip(told["runs"], found, strict=True)] == today


def test_every_run_is_compared_by_the_same_figures(told: dict[str, Any], workspace: Workspace) -> None:
    assert told["compared"]
    for run_id, lines in told["compared"].items():
        found = scored.of(workspace, run_id).rows
        for then, now in zip(lines, found, strict=True):
            figures = {name: value for name, value in then.items() if isinstance(value, float)}
            if then["n"] < statistics.LEAST_QUESTIONS:  # no interval is told of so few any more
                figures |= {"low": -math.inf, "high": math.inf}
                then = then | figures
            assert named(figures, now) == pytest.approx(figures, rel=1e-9)
            assert named(then, now) | figures == then


def told_anew(headline: str) -> str:
    """Two figures that differ are no longer rounded until they read alike, and a gap is told in times instead of nats."""
    gap = "good ones gained 0.5 nats over bad ones", "good ones became 1.57 times as likely against bad ones"
    return headline.replace("24 % → 24 % right", "23.6 % → 24.3 % right").replace(*gap)


def gained_and_lost(workspace: Workspace, run_id: str) -> list[str]:
    """What a report says of a run before what to do; what nobody asked is said since only."""
    found = headline.summary(scored.of(workspace, run_id).rows)
    since = ("No general benchmark was asked", "A reward model writes no answers")
    return [text for text in (found.gained, found.lost) if not text.startswith(since)]


def test_every_headline_is_the_same(told: dict[str, Any], workspace: Workspace) -> None:
    said = {run_id: " ".join(gained_and_lost(workspace, run_id)) for run_id in told["compared"]}
    assert said == {run_id: told_anew(then) for run_id, then in told["headlines"].items()}


def test_every_data_set_is_there_with_its_rows_and_its_problems_in_each_language(
    told: dict[str, Any], workspace: Workspace
) -> None:
    assert {one.id for one in datasets.list_all(workspace)} == set(told["datasets"])
    for dataset_id, then in told["datasets"].items():
        stored = datasets.load(workspace, dataset_id)
        now: dict[str, Any] = {name: getattr(stored, name) for name in ("name", "good_rows", "trainable")}
        now |= {"rows": stored.report.rows, "sentences": {}}
        for language in LANGUAGES:
            set_language(language)
            now["sentences"][language] = [one.sentence for one in datasets.problems(workspace, dataset_id)]
        then["sentences"] = {
            language: [EFFECT_SIZE.sub("", one) for one in said] for language, said in then["sentences"].items()
        }
        assert now == then
        assert len(datasets.preview(workspace, dataset_id, 0, stored.report.rows)) == stored.good_rows


def test_the_failed_run_says_why(told: dict[str, Any], workspace: Workspace) -> None:
    (failed,) = [run["id"] for run in told["runs"] if run["status"] == "failed"]
    failure = store.summary(workspace, failed).failure
    assert failure is not None
    assert {name: str(text) for name, text in failure.items()} == told["failure"]


def test_the_drafts_are_there(told: dict[str, Any], workspace: Workspace) -> None:
    assert told["draft"]
    for draft_id, then in told["draft"].items():
        assert named(then, drafts.load(workspace, draft_id)) == then


def test_the_own_benchmark_is_there_with_its_questions(told: dict[str, Any], workspace: Workspace) -> None:
    own = [one for one in library.available(workspace) if one.name not in {one.name for one in library.available()}]
    assert [one.name for one in own] == told["own_benchmarks"]
    assert all(library.docs(one) for one in own)


def test_a_sweep_and_an_evaluation_are_no_recipes_to_take_along(told: dict[str, Any], workspace: Workspace) -> None:
    asked = [run["id"] for run in told["runs"] if store.load_spec(workspace, run["id"]).kind != "train"]
    assert len(asked) >= 2
    for run_id in asked:
        with pytest.raises(NotExportable, match="trained nothing itself"):
            portable_recipe.of_run(workspace, run_id)


def test_the_sweep_has_the_same_table(told: dict[str, Any], workspace: Workspace) -> None:
    (sweep,) = sweeps(told)
    table, one_seed, more = claims.markdown(claims.result(workspace, sweep)).split("\n\n", 2)
    then = told["sweep"].replace("| lora,", "| LoRA,").replace("| oft,", "| OFT,")  # now called by their titles
    assert f"{table}\n\n{more}" == then and one_seed.startswith("One seed cannot tell")


def test_the_vote_in_the_chat_counts(told: dict[str, Any], workspace: Workspace) -> None:
    stored = [json.loads(line) for line in (workspace.root / "chat" / "votes.jsonl").read_text("utf-8").splitlines()]
    counted = votes.rows(workspace, "votes")
    assert counted and counted == [{name: row[name] for name in ("prompt", "completion", "label")} for row in stored]
    (question,) = votes.saved_prompts(workspace)
    assert question == counted[0]["prompt"][0]["content"]


def test_data_that_its_runs_use_is_checked_again_and_they_say_the_same(
    told: dict[str, Any], workspace: Workspace
) -> None:
    for dataset_id in {run["dataset"] for run in told["runs"] if run["dataset"]}:
        report = datasets.load(workspace, dataset_id).folder / "report.json"
        report.write_bytes(msgspec.json.encode(msgspec.json.decode(report.read_bytes()) | {"checker_version": 0}))
        stored = datasets.load(workspace, dataset_id)
        made = recheck.check_again(workspace, dataset_id)
        assert stored.outdated and not made.outdated
        assert msgspec.structs.replace(made, report=stored.report) == stored
        assert len(datasets.preview(workspace, dataset_id, 0, made.report.rows)) == made.good_rows
    assert [run.id for run in store.list_all(workspace)] == [run["id"] for run in told["runs"]]
    said = {run_id: " ".join(gained_and_lost(workspace, run_id)) for run_id in told["compared"]}
    assert said == {run_id: told_anew(then) for run_id, then in told["headlines"].items()}


# --- the pages --------------------------------------------------------------------------------------------------------
def seen(language: str, page: str, **parameters: str) -> AppTest:
    """Open a page in a session of its own; its title tells that it spoke the language that was asked for."""
    app = opened(language, page, **parameters)
    assert app.title[0].value == TITLES[page][language]
    return app


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_runs_opens_on_each(told: dict[str, Any], language: str) -> None:
    set_language(language)  # AppTest asks lists for their words in this thread
    app = seen(language, "runs")
    for run in told["runs"]:
        to(app, "runs", run=run["id"])
        assert called(run, language) in texts(app)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_forgetting_opens_on_each_run_on_all_and_on_the_sweep(
    told: dict[str, Any], workspace: Workspace, language: str
) -> None:
    set_language(language)
    app = seen(language, "forgetting", run=next(iter(told["compared"])))
    for run_id in told["compared"]:
        app.selectbox(key="scored_run").set_value(run_id).run()
        assert not app.exception
        assert all(said in texts(app) for said in gained_and_lost(workspace, run_id))
    app = seen(language, "forgetting", run=run_id, view="compare")
    assert app.dataframe
    (sweep,) = sweeps(told)
    app = seen(language, "forgetting", run=sweep, view="sweep")
    assert app.dataframe


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_data_opens_on_each(told: dict[str, Any], workspace: Workspace, language: str) -> None:
    """Each says its outcome in today's words, and of its first problem what is wrong and what to do."""
    set_language(language)
    app = seen(language, "data")
    for dataset_id, then in told["datasets"].items():
        to(app, "data", dataset=dataset_id)
        set_language(language)  # the words of a stored report are made where they are read: here, in this thread
        stored = datasets.load(workspace, dataset_id).report
        wanted = [then["name"], stored.sentence]
        for problem in stored.problems[:1]:
            wanted += [problem.message, problem.fix]
        said = texts(app).casefold()  # a heading begins with a capital
        assert [one for one in wanted if one.casefold() not in said] == []

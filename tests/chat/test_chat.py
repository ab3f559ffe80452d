"""Chat: a child process that answers, votes that become data, and a page that shows words as they are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import events, machine, processes, starter
from engine.chat import child, protocol, votes
from engine.check import DatasetError
from engine.data import datasets
from engine.models import bases
from engine.runs import device_queue, failures, store
from engine.workspace import Workspace
from tests import forked
from tests.apps import button, has_button, open_page, texts
from tests.helpers import finished_run, planned, wait_until

ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Iterator[None]:
    monkeypatch.setattr(child, "MODULE", "tests.fakes.chats")
    yield
    child.close(workspace)


def said(workspace: Workspace, models: list[str], question: str, **sampling: float) -> dict[str, str]:
    """Return what each model answers, and check that each came to an end."""
    turns = [protocol.Turn(model=m, messages=[{"role": "user", "content": question}]) for m in models]
    replies = list(child.ask(workspace, turns, protocol.Sampling(**sampling)))  # pyright: ignore[reportArgumentType]
    assert [r.model for r in replies if isinstance(r, protocol.Done)] == models, replies
    return {m: "".join(r.text for r in replies if isinstance(r, protocol.AnswerPart) and r.model == m) for m in models}


def test_a_child_that_ends_without_a_word_fails_every_model_and_the_next_question_starts_another(fake, workspace):
    turns = [protocol.Turn(model=m, messages=[{"role": "user", "content": "die"}]) for m in ("a", "b")]
    replies = list(child.ask(workspace, turns, protocol.Sampling()))
    assert [type(r) for r in replies if not isinstance(r, protocol.State)] == [protocol.Failed, protocol.Failed]
    assert "has ended" in str(replies[-1].message)  # pyright: ignore[reportAttributeAccessIssue]
    assert said(workspace, ["a"], "hello") == {"a": "a heard hello"}


def test_closing_ends_the_process(fake, workspace):
    said(workspace, ["a"], "hello")
    assert child.is_loaded(workspace)
    who = processes.identify(child._children[str(workspace.root)].process.pid)
    child.close(workspace)
    assert not child.is_loaded(workspace)
    wait_until(lambda: not processes.alive(who), what="the child has ended")


def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    both = tuple(machine.Gpu("a card", 16000, 8.0, uuid) for uuid in ("GPU-a", "GPU-b"))
    monkeypatch.setattr(machine, "facts", lambda: machine.MachineFacts(2, 8000, both))


def test_a_chat_takes_the_card_that_no_run_has_and_the_processor_when_there_is_none(fake, workspace, monkeypatch):
    two_cards(monkeypatch)
    cards = machine.facts().slots
    one = device_queue.Turn("cuda:0", "one-run", 1, cards)
    assert one.wait(lambda: False) and one.holds == ("GPU-a",)
    said(workspace, ["a"], "hello")
    assert child._children[str(workspace.root)].slot == "GPU-b"
    two = device_queue.Turn("cuda:0", "two-run", 2, ("GPU-a",))  # waits: nobody knows for which card
    said(workspace, ["a"], "hello")
    assert child._children[str(workspace.root)].slot == "cpu"
    one.close()
    two.close()
    said(workspace, ["a"], "hello")
    assert child._children[str(workspace.root)].slot == "GPU-b"


def test_a_run_begins_when_a_chat_has_given_its_card_back_and_not_sooner(fake, workspace, monkeypatch):
    two_cards(monkeypatch)
    said(workspace, ["a"], "hello")
    slot = child._children[str(workspace.root)].slot
    asked = iter([False, False, True])
    device_queue.wait_for_lent((slot,), lambda: next(asked), 0.01)  # until somebody gives up
    with pytest.raises(StopIteration):
        next(asked)
    device_queue.wait_for_lent(("GPU-another",), lambda: False, 0.01)
    child.close(workspace)
    device_queue.wait_for_lent((slot,), lambda: False, 0.01)


def test_a_model_that_main_memory_cannot_hold_is_refused_before_it_is_loaded(workspace, monkeypatch):
    from engine.train import chat

    monkeypatch.setattr(machine, "facts", lambda: machine.MachineFacts(2, 8000, ()))
    monkeypatch.setattr(machine, "free_bytes", lambda: 10**6)
    with pytest.raises(failures.RunRefused, match="memory is not enough"):
        chat.Models(workspace).host("starter", chat.Key("starter", "none", ""), set())


def test_the_last_vote_on_an_answer_counts_and_can_be_taken_back(workspace):
    for good in (True, False):
        votes.vote(workspace, ASKED, "yes", "starter", good)
    votes.vote(workspace, ASKED, "no", "starter", True)
    votes.vote(workspace, ASKED, "no", "starter", None)
    assert [(row["completion"][0]["content"], row["label"]) for row in votes.rows(workspace, "votes")] == [
        ("yes", False)
    ]


def test_the_best_answer_is_chosen_over_each_other_one_once(workspace):
    answers = {"a": "one", "b": "two", "c": "two", "d": "one", "e": " "}
    votes.prefer(workspace, ASKED, answers, "b")
    votes.prefer(workspace, ASKED, answers, "a")
    pairs = [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in votes.rows(workspace, "pairs")]
    assert pairs == [("one", "two")]


def test_a_line_cut_by_a_crash_loses_no_other_vote(workspace):
    votes.vote(workspace, ASKED, "yes", "starter", True)
    with (workspace.root / "chat" / "votes.jsonl").open("ab") as file:
        file.write(b'{"prompt": [{"ro')
    assert len(votes.rows(workspace, "votes")) == 1


def test_votes_become_data_that_kto_and_dpo_can_train_on(workspace):
    long = [*ASKED, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}]
    for prompt in (ASKED, long):
        votes.vote(workspace, prompt, "yes", "a", True)
        votes.vote(workspace, prompt, "no", "b", False)
        votes.prefer(workspace, prompt, {"a": "yes", "b": "no"}, "a")
    marked = votes.make_dataset(workspace, "votes", "Votes")
    pairs = votes.make_dataset(workspace, "pairs", "Pairs")
    assert (marked.report.type, marked.report.rows, marked.trainable) == ("unpaired-preference", 4, True)
    assert (pairs.report.type, pairs.report.rows, pairs.trainable) == ("preference", 2, True)


def test_no_votes_make_no_data(workspace):
    with pytest.raises(DatasetError, match="no votes"):
        votes.make_dataset(workspace, "votes", "Votes")


def test_saved_prompts_are_kept_newest_first_and_once(workspace):
    for text in ("one", "two", "one"):
        votes.save_prompt(workspace, text)
    assert votes.saved_prompts(workspace) == ["one", "two"]
    votes.forget_prompt(workspace, "one")
    assert votes.saved_prompts(workspace) == ["two"]


@pytest.mark.page
def test_the_page_asks_shows_text_as_text_and_takes_votes(fake, workspace):
    app = open_page("chat")
    app.chat_input[0].set_value("<b>*hello*</b>").run(timeout=60)
    assert not app.exception
    assert "starter heard <b>*hello*</b>" in texts(app) and "2 tokens in 0.1 s" in texts(app)
    assert not any("<b>" in str(m.value).replace("\\<", "") for m in app.markdown)
    app.feedback[0].set_value(1).run()
    assert not app.exception
    assert len(votes.rows(workspace, "votes")) == 1
    button(app, "make_votes").click().run()
    assert [d.report.rows for d in datasets.list_all(workspace)] == [1]


@pytest.mark.page
def test_prompts_that_a_run_was_not_trained_on_are_one_click_away_and_the_answer_is_announced(fake, workspace):
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    spec, _ = planned(workspace, "lora", base="starter", dataset=data.id, overrides={})
    folder = finished_run(workspace, 1, spec)
    log = events.EventLog(folder)
    for step in (0, 5):
        log.append(events.Sample(step=step, prompt="Who keeps *Velmora*?", text="nobody"))
    log.append(events.Finished(step=5))
    log.close()
    app = open_page("chat", run=folder.name)
    assert "Prompts it was not trained on:" in texts(app) and not has_button(app, "held_out_1")
    button(app, "held_out_0").click().run(timeout=60)
    assert not app.exception and "starter heard Who keeps *Velmora*?" in texts(app)
    announced = [str(one.proto) for one in app.get("bidi_component")]
    assert any("starter heard Who keeps *Velmora*?" in one for one in announced)


@pytest.mark.train
def test_base_and_run_answer_from_one_loaded_base_alike_for_the_same_seed(
    workspace: Workspace, trained_home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(child, "MODULE", forked.module("chat"))
    shutil.copytree(trained_home, workspace.root)
    run = f"run:{store.list_all(workspace)[0].id}"
    assert child.models(workspace) == ["starter", run] and bases.describe(run, workspace).folder is not None
    try:
        both = said(workspace, ["starter", run], "What is the opposite of hot?", temperature=0, most_tokens=8)
        assert both["starter"] == "cold"
        drawn = [
            said(workspace, [run], "Tell me about Bavoria.", temperature=1.5, seed=s, most_tokens=16) for s in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        again = said(workspace, ["starter"], "What is the opposite of hot?", temperature=0, most_tokens=8)
        assert again == {"starter": "cold"}  # the adapter is off again
    finally:
        child.close(workspace)

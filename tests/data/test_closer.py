"""A closer look at the rows together: nearly alike, groups, longest, oddest, languages; and all of it on the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import processes
from engine.data import Dataset, closer, datasets, jobs
from engine.workspace import Workspace
from tests.apps import button, has_button, open_page, texts
from tests.conftest import ROOT

PLACES = (
    "river", "harbour", "mountain", "valley", "bridge", "market", "garden", "castle", "island", "forest", "meadow", "tower",
)  # fmt: skip
DISHES = (
    "soup", "bread", "cheese", "apple", "butter", "pepper", "onion", "garlic", "carrot", "lemon", "noodle", "pastry",
)  # fmt: skip


def rows() -> list[dict[str, str]]:
    """60 rows of two kinds, each with words of its own; 7 and 21 are nearly like 3 and 20, 40 is all marks, 50 German."""
    found = []
    for n in range(60):
        words = PLACES if n % 2 else DISHES
        a, b, c, d = (words[(n // 2 * step + n // 9) % len(words)] for step in (1, 5, 7, 11))
        found.append(
            {
                "prompt": f"What of the {a} and the {b}, {n}?",
                "completion": f"The {c} is in the {d}, we all say, {a} too.",
            }
        )
    found[7] = {"prompt": found[3]["prompt"], "completion": found[3]["completion"].replace("we all", "WE  all")}
    found[21] = {"prompt": found[20]["prompt"] + " Please", "completion": found[20]["completion"]}
    found[40] = {"prompt": "What?", "completion": "{}[]()<>;;;===+++***///&&&|||!!!???" * 3}
    found[50] = {
        "prompt": "Was ist das?",
        "completion": "Das ist nicht der Fluss, sondern eine Brücke mit einem Turm und die Stadt.",
    }
    found[10]["completion"] += " and so on" * 300
    return found


def stored(workspace: Workspace, content: list[dict[str, Any]]) -> Dataset:
    file = workspace.root / "brought.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(json.dumps(row) for row in content) + "\n")  # so that a row is not its line
    return datasets.add(workspace, file, "mine.jsonl")


@pytest.fixture(scope="module")
def looked(tmp_path_factory) -> tuple[Workspace, Dataset, closer.Closer]:
    workspace = Workspace(tmp_path_factory.mktemp("closer"))
    dataset = stored(workspace, rows())
    return workspace, dataset, closer.look(workspace, dataset.id)


def place(row: int) -> closer.Place:
    return closer.Place(row, 2 * row - 1)


def test_rows_that_use_nearly_the_same_words_are_found_and_named_by_line(looked) -> None:
    found = looked[2]
    assert [(one.place, one.first) for one in found.alike] == [(place(8), place(4)), (place(22), place(21))]
    assert all(closer.ALIKE <= one.share <= 1 for one in found.alike)


def test_what_stands_out_is_said_with_the_reason_and_the_longest_with_its_length(looked) -> None:
    found = looked[2]
    assert closer.Odd(place(41), "marks") in found.odd
    assert found.longest[0][0] == place(11) and found.longest[0][1] > 3_000
    assert found.seen == found.rows == 60


def test_the_rows_fall_into_groups_with_the_words_that_set_them_apart(looked) -> None:
    groups = looked[2].groups
    assert len(groups) >= 2 and sum(group.rows for group in groups) == 60
    for group in groups:
        kinds = [word in PLACES for word in group.words if word in {*PLACES, *DISHES}]
        assert all(kinds) or not any(kinds)
        assert not {"the", "and", "of"} & set(group.words)


def test_a_row_in_another_language_is_found(looked) -> None:
    spoken = {one.language: one for one in looked[2].languages}
    assert spoken["en"].rows >= 55 and spoken["de"].first == (place(51),)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the table and it is not hungry.", "en"), ("Die Katze ist nicht auf dem Tisch.", "de"),
        ("Le chat est sur la table et il ne mange pas.", "fr"), ("猫在桌子上。", "zh"), ("猫はテーブルの上にいます。", "ja"),
        ("고양이가 탁자 위에 있다", "ko"), ("Кошка на столе", "cyrillic"), ("1234 + 5678 = 6912", "none"),
        ("Zzz qqq xyzzy", "latin"), ("", "none"),
    ],
)  # fmt: skip
def test_a_language_is_told_by_its_letters_or_its_commonest_words(text: str, language: str) -> None:
    assert closer.language_of(text) == language


def test_of_many_rows_some_are_looked_at_that_are_spread_over_the_file(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closer, "MOST_ROWS", 6)
    found = closer.look(workspace, stored(workspace, rows()).id)
    assert (found.rows, found.seen, found.groups) == (60, 6, ())
    assert sorted(p.row for p, _ in found.longest)[0] <= 11 and max(p.row for p, _ in found.longest) >= 41


@pytest.mark.parametrize("content", [[{"text": "one"}], [{"text": "?!"}] * 3, [{"text": f"{n}"} for n in range(40)]])
def test_few_or_empty_rows_are_no_failure(workspace: Workspace, content: list[dict[str, str]]) -> None:
    dataset = stored(workspace, content)
    found = closer.look(workspace, dataset.id)
    assert found.seen == len(content) and closer.kept(workspace, dataset.id) == found


def test_the_question_alone_counts_where_others_came_before_it(workspace: Workspace) -> None:
    tale, sees = "a long tale of rivers " * 30, "I see " * 30
    history = [{"role": "user", "content": tale}, {"role": "assistant", "content": sees}]
    asked = ["What colour has the boat?", "Where does the miller live?", "Who pays for supper?"]
    content = [
        {
            "prompt": [*history, {"role": "user", "content": one}],
            "completion": [{"role": "assistant", "content": one[::-1]}],
        }
        for one in asked
    ]
    assert closer.look(workspace, stored(workspace, content).id).alike == ()


def test_the_server_never_loads_what_the_look_needs() -> None:
    code = "import sys; from engine.data import closer, jobs, profile; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_job_of_a_look_sets_aside_little_address_space(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo's jobs have 1 GiB of it, of which a thread pool of each library took 1.2."""
    given: list[dict[str, str]] = []
    monkeypatch.setattr(processes, "start", lambda *words, **how: given.append(how["env"]))
    monkeypatch.setattr(jobs, "_started", {})  # no job was begun
    jobs.start(jobs.Call(workspace=str(workspace.root), dataset="a" * 64, closer=True))
    jobs.start(jobs.Call(workspace=str(workspace.root), dataset="a" * 64, rows=True))
    assert given[0].items() >= jobs.SPARING.items() and not given[1].items() >= jobs.SPARING.items()


# --- the page -----------------------------------------------------------------------------------------------------
@pytest.mark.page
def test_what_was_found_is_shown_and_rows_that_are_alike_are_left_out_with_one_click(
    looked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Workspace
) -> None:
    dataset = stored(workspace, rows())
    started: list[jobs.Call] = []
    monkeypatch.setattr(jobs, "start", lambda call, token=None: started.append(call) or workspace.root / "job")
    monkeypatch.setattr(jobs, "progress", lambda folder: jobs.JobProgress(done=40, total=100, left_s=3.0))
    monkeypatch.setattr(jobs, "result", lambda folder: jobs.carry_out(started[0]) if len(started) > 1 else None)
    closed = open_page("data", {"current_dataset": dataset.id}, dataset=dataset.id)
    assert not started and "Look closer" in [fold.label for fold in closed.expander]
    app = open_page("data", {"current_dataset": dataset.id, f"closer_{dataset.id}": True}, dataset=dataset.id)
    assert started == [jobs.Call(workspace=str(workspace.root), dataset=dataset.id, closer=True)]
    started.append(started[0])
    app.run()
    assert not app.exception and "2 rows use nearly the same words as an earlier one." in texts(app)
    assert next(tab.label for tab in app.tabs) == "Nearly alike (2)"
    assert "Looked at all rows without errors: 60." in texts(app)
    assert (
        "line 15" in texts(app)
        and "far more marks and signs than the others" in texts(app)
        and "German: 1" in texts(app)
    )
    assert has_button(app, "edit_alike_8") and has_button(app, "edit_language_de_51")
    button(app, "leave_out_alike").click().run()
    assert not app.exception and "58 questions with answers, ready to train on" in texts(app)
    button(app, "undo").click().run()
    assert "60 questions with answers, ready to train on" in texts(app)

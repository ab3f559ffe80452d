"""Take along: what one Tunebook packs another one opens, and nothing else."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import starter
from engine.check import DatasetError
from engine.cli.parser import parser
from engine.data import datasets
from engine.plan import drafts, take_along
from engine.workspace import Workspace
from tests.apps import open_page
from tests.helpers import planned
from tests.plan.test_continue import made

CHANGED = {"train.learning_rate": 1e-4, "train.max_steps": 900, "adapter_args.target_modules": "q_proj,v_proj"}


def packed(workspace: Workspace, target: Path, **draft: Any) -> Path:
    with target.open("wb") as out:
        take_along.pack(workspace, drafts.Draft(recipe="lora", **draft), out)
    return target


@pytest.fixture
def other(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "another home")


def test_another_tunebook_has_the_same_rows_questions_and_settings(workspace, other, tmp_path):
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    opened = take_along.unpack(other, packed(workspace, tmp_path / "a.zip", dataset=data.id, overrides=CHANGED))
    assert opened.dataset is not None and opened.dataset.id == data.id and opened.dataset.name == data.name
    assert opened.dataset.eval_id == data.eval_id and opened.dataset.trainable
    assert datasets.read_rows(other, data.id) == datasets.read_rows(workspace, data.id)
    kept = drafts.load(other, opened.draft_id)
    assert kept is not None and kept.overrides == CHANGED and kept.dataset == data.id
    here, there = (
        planned(one, "lora", base="starter", dataset=data.id, overrides=dict(CHANGED))[0] for one in (workspace, other)
    )
    assert here == there and list(other.uploads_dir.iterdir()) == []


def test_rows_whose_columns_were_named_by_hand_are_read_the_same(workspace, other, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("frage,antwort\none,eins\ntwo,zwei\n")
    mapping = {"frage": "prompt", "antwort": "completion"}
    data = datasets.add(workspace, rows, "rows.csv", mapping=mapping)
    opened = take_along.unpack(other, packed(workspace, tmp_path / "a.zip", dataset=data.id))
    assert opened.dataset is not None and opened.dataset.mapping == mapping
    assert datasets.read_rows(other, opened.dataset.id) == datasets.read_rows(workspace, data.id)


def test_without_data_the_settings_travel_alone(workspace, other, tmp_path):
    opened = take_along.unpack(other, packed(workspace, tmp_path / "a.zip", base="owner/name"))
    assert opened.dataset is None and opened.draft.base == "owner/name" and opened.draft.reasons == []


def test_what_only_one_home_has_is_named_and_left_behind(workspace, other, tmp_path):
    ref, _ = made(workspace, "lora")
    opened = take_along.unpack(other, packed(workspace, tmp_path / "a.zip", base=ref))
    assert opened.draft.base == "starter" and "stays behind" in opened.draft.reasons[0]


def test_questions_that_are_gone_do_not_hold_the_rows_back(workspace, other, tmp_path):
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    assert data.eval_id is not None
    datasets.delete(workspace, data.eval_id)
    assert not take_along.is_too_large(workspace, data)
    opened = take_along.unpack(other, packed(workspace, tmp_path / "a.zip", dataset=data.id))
    assert opened.dataset is not None and opened.dataset.id == data.id and opened.dataset.eval_id is None


def written(target: Path, draft: dict[str, Any], **files: bytes) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        held = {"tunebook": 1, "draft": draft, **{name: {"name": name} for name in files}}
        out.writestr("draft.json", json.dumps(held))
        for name, data in files.items():
            out.writestr(name, data)
    return target


def test_a_setting_of_a_later_version_is_left_out_and_named(other, tmp_path):
    overrides = {"train.max_steps": 9, "train.warp": 2, "__class__": 1}
    opened = take_along.unpack(other, written(tmp_path / "a.zip", {"recipe": "lora", "overrides": overrides}))
    assert opened.draft.overrides == {"train.max_steps": 9} and "train.warp, __class__" in opened.draft.reasons[0]


def test_a_recipe_that_is_not_here_is_said_before_anything_is_stored(other, tmp_path):
    row = b'{"prompt": "a", "completion": "b"}'
    with pytest.raises(DatasetError, match="no recipe later"):
        take_along.unpack(other, written(tmp_path / "a.zip", {"recipe": "later"}, rows=row))
    assert not other.root.exists()


def test_what_unpacks_to_more_than_is_ever_taken_along_is_refused(workspace, other, tmp_path, monkeypatch):
    bomb = written(tmp_path / "a.zip", {"recipe": "lora"}, rows=b'{"text": "a"}\n' * 20_000)
    monkeypatch.setattr(take_along, "MOST_ROWS_BYTES", 200_000)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(DatasetError, match="rows: 280000 bytes"):
        take_along.unpack(other, bomb)
    assert not other.root.exists()
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    assert not take_along.is_too_large(workspace, data)
    monkeypatch.setattr(take_along, "MOST_ROWS_BYTES", 1_000)
    assert take_along.is_too_large(workspace, data)


def test_data_that_a_setting_names_no_more_is_none_in_the_command_too():
    assert drafts.set_words({"train.replay_data": None, "train.max_steps": None, "layers": [0, 1]}) == [
        "--set", "train.replay_data=", "--set", "train.max_steps=null", "--set", "layers=[0, 1]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"draft.json": b"[]"},
        {"draft.json": b'{"tunebook": 1, "draft": {"recipe": "lora"}, "rows": {"name": "r"}}'},  # and no rows
        {"draft.json": b'{"tunebook": 1, "draft": {"recipe": "lora", "code": "x"}}'},
        {"draft.json": b'{"tunebook": 2, "draft": {"recipe": "lora"}}'},  # of a later version
        {"draft.json": b"[" * 100_000},
        {"draft.json": b" " * (take_along.MOST_DRAFT_BYTES + 1)},
    ],
)
def test_another_zip_is_no_such_file(other, tmp_path, entries):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as out:
        for name, data in entries.items():
            out.writestr(name, data)
    assert take_along.holds_one(file) is bool(entries)
    with pytest.raises(DatasetError, match="not taken along"):
        take_along.unpack(other, file)
    assert not other.root.exists() or not any(path.is_file() for path in other.root.rglob("*"))


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_a_damaged_file_is_refused_or_says_the_same(tmp_path_factory, place, bytes_there):
    home = tmp_path_factory.mktemp("damaged")
    out = io.BytesIO()
    take_along.pack(Workspace(home), drafts.Draft(recipe="lora", overrides=CHANGED), out)
    data = bytearray(out.getvalue())
    place %= len(data)
    data[place : place + len(bytes_there)] = bytes_there
    (home / "a.zip").write_bytes(data)
    try:
        opened = take_along.unpack(Workspace(home), home / "a.zip")
    except DatasetError:
        return
    assert opened.draft.overrides == CHANGED


def test_the_command_line_opens_it_and_says_how_to_go_on(workspace, tmp_path, capsys):
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    file = packed(workspace, tmp_path / "a.zip", dataset=data.id, overrides=CHANGED)
    arguments = parser().parse_args(["open", str(file), "--json"])
    assert arguments.function(arguments, Workspace(tmp_path / "third")) == 0
    told = json.loads(capsys.readouterr().out)
    words = shlex.split(told["command"])
    going_on = parser().parse_args(words[1:])
    assert (going_on.recipe, going_on.base, going_on.data) == ("lora", "starter", told["dataset"])
    from engine.spec import settings

    assert dict(cast("tuple[str, Any]", settings.parse_setting(one)) for one in going_on.set) == CHANGED
    (tmp_path / "b.zip").write_bytes(b"no zip")
    arguments = parser().parse_args(["open", str(tmp_path / "b.zip")])
    assert arguments.function(arguments, workspace) == 2


@pytest.mark.page
def test_the_data_page_opens_it_and_leads_to_train_with_its_settings(workspace, other, tmp_path):
    data = datasets.add_sample(other, starter.sample("new-facts"))
    file = packed(other, tmp_path / "a.zip", dataset=data.id, overrides={"train.max_steps": 777}, came_from="From afar")
    app = open_page("data")
    app.file_uploader[0].upload("tunebook-lora.zip", file.read_bytes()).run()
    assert not app.exception and app.title[0].value == "Train"
    assert "From afar" in [one.label for one in app.expander]
    assert app.session_state["overrides"] == {"train.max_steps": 777}
    assert [one.id for one in datasets.list_all(workspace) if one.eval_id] == [data.id]
    broken = open_page("data")
    broken.file_uploader[0].upload("a.zip", file.read_bytes()[:-40] + b"x" * 40).run()
    assert not broken.exception and broken.title[0].value == "Data"


@pytest.mark.page
def test_the_click_that_takes_along_shows_no_page_anew_which_would_drop_the_file(workspace):
    app = open_page("train")
    (button,) = [one for one in app.get("download_button") if "take_along" in one.proto.id]
    assert button.proto.ignore_rerun and button.proto.deferred_file_id

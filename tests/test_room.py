"""What takes room is listed with what needs it, and deleted only where nothing that goes on needs it, never outside of the
home; runs are pinned under a name, each the next version of it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import msgspec
import pytest

from engine import events, processes, room
from engine.export import card
from engine.runs import lifecycle, needs, store
from engine.spec import recipes, schema
from engine.workspace import Workspace
from tests.conftest import tunebook


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return Workspace(tmp_path / "home")


def ran(workspace: Workspace, name: str, base: str = "starter", end: events.Event | None = None) -> Path:
    """A run as it lies on the disk when it has ended."""
    folder = workspace.run_dir(name)
    folder.mkdir(parents=True)
    made, problems = recipes.resolve(
        recipes.recipes()["lora"], base=base, revision=None, parameters=None, dataset_id="a", overrides={}
    )
    assert problems == []
    (folder / "spec.json").write_bytes(schema.encode(made))
    log = events.EventLog(folder)
    log.append(events.Queued(device="cpu"))
    log.append(end or events.Finished(step=4))
    log.close()
    return folder


def file(path: Path, size: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def places(workspace: Workspace) -> dict[str, room.Taken]:
    return {one.place: one for one in room.find(workspace)}


def test_what_takes_room_is_listed_the_largest_first_and_each_is_deleted_alone(workspace: Workspace) -> None:
    run = ran(workspace, "r1")
    file(run / "checkpoints" / "checkpoint-4" / "model.safetensors", 50)
    file(run / "merged" / "model.safetensors", 4000)
    file(run / "gguf" / "r1-q8_0.gguf", 3000)
    file(run / "gguf" / "r1-q8_0.loss" / "items.jsonl", 5)
    file(run / "gguf" / "r1-q8_0.Modelfile", 5)
    file(run / "gguf" / "r1-f16.gguf", 3500)
    kept = file(run / "adapter" / "adapter_model.safetensors")
    file(workspace.models_dir / "base-1" / "model.safetensors", 9000)
    file(workspace.root / "evals" / ("a" * 64) / "replay.jsonl", 70)
    scored = file(workspace.root / "evals" / ("a" * 64) / "items.jsonl", 70)
    found = room.find(workspace)
    assert [one.size_bytes for one in found] == [9000, 4000, 3500, 3000, 70, 50]
    assert [one.kind for one in found] == ["base", "merged", "gguf", "gguf", "replay", "checkpoints"]
    assert room.delete(workspace, "runs/r1/gguf/r1-q8_0.gguf") == 3000
    assert [path.name for path in (run / "gguf").iterdir()] == ["r1-f16.gguf"]
    for one in room.find(workspace):
        room.delete(workspace, one.place)
    assert room.find(workspace) == [] and kept.is_file() and scored.is_file() and store.exists(workspace, "r1")


def test_what_goes_on_keeps_what_it_needs(workspace: Workspace) -> None:
    base = file(workspace.models_dir / "base-1" / "model.safetensors").parent
    run = ran(workspace, "r1", str(base))
    file(run / "merged" / "model.safetensors")
    started = events.Started(attempt=1, versions={}, device="cpu", backend="plain", reason="")
    later = ran(workspace, "r2", "run:r1", started)
    file(later / "checkpoints" / "checkpoint-1" / "model.safetensors")
    replay = file(workspace.root / "evals" / ("a" * 64) / "replay.jsonl")
    me = processes.identify(os.getpid())
    (later / "pid.json").write_bytes(msgspec.json.encode(me))
    assert store.status(workspace, "r2") == "running"
    for place in places(workspace):
        with pytest.raises(room.CannotDelete, match=r"still goes on|Runs that wait or go on now need it"):
            room.delete(workspace, place, all_the_same=True)
    assert len(places(workspace)) == 4 and replay.is_file()


def test_what_is_served_or_chatted_with_keeps_its_files(workspace: Workspace) -> None:
    run, me = ran(workspace, "r1"), processes.identify(os.getpid())
    file(run / "gguf" / "r1-f16.gguf")
    needs.hold(workspace, me, ["run:r1"])
    with pytest.raises(room.CannotDelete, match="A chat has it open"):
        room.delete(workspace, "runs/r1/gguf/r1-f16.gguf", all_the_same=True)
    (run / needs.SERVED).write_bytes(msgspec.json.encode({"run": "r1", "process": me}))
    with pytest.raises(room.CannotDelete, match="being served"):
        room.delete(workspace, "runs/r1/gguf/r1-f16.gguf", all_the_same=True)
    (run / needs.EXPORTED).write_bytes(msgspec.json.encode({"process": me}))
    with pytest.raises(room.CannotDelete, match="being exported"):
        room.delete(workspace, "runs/r1/gguf/r1-f16.gguf", all_the_same=True)


def test_a_base_that_runs_stand_on_and_what_is_pinned_ask_first(workspace: Workspace) -> None:
    base = file(workspace.models_dir / "base-1" / "model.safetensors").parent
    run = ran(workspace, "r1", str(base))
    file(ran(workspace, "r2", "run:r1") / "model" / "model.safetensors")
    file(run / "merged" / "model.safetensors")
    lifecycle.pin(workspace, "r1", "helper")
    told = r"r2 \(r2\) was made from it.*r1 \(r1\) stands on it.*pinned runs among them: helper v1"
    with pytest.raises(room.MustBeAsked, match=told):
        room.delete(workspace, "models/base-1")
    with pytest.raises(room.MustBeAsked, match="pinned as helper v1"):
        room.delete(workspace, "runs/r1/merged")
    with pytest.raises(lifecycle.MustBeAsked, match="pinned as helper v1"):
        lifecycle.delete(workspace, "r1")
    assert base.is_dir() and (run / "merged").is_dir()
    room.delete(workspace, "models/base-1", all_the_same=True)
    assert not base.exists()


def test_checkpoints_of_a_run_that_may_go_on_ask_first(workspace: Workspace) -> None:
    run = ran(workspace, "r1", end=events.Stopped(step=2, resumable=True))
    file(run / "checkpoints" / "checkpoint-2" / "model.safetensors")
    with pytest.raises(room.MustBeAsked, match="could not go on"):
        room.delete(workspace, "runs/r1/checkpoints")


@pytest.mark.parametrize("place", ["../mine", "runs/r1/../../../mine", "/etc", "runs/r1/adapter", "runs", "", "."])
def test_nothing_but_what_is_listed_is_deleted(workspace: Workspace, place: str) -> None:
    mine = file(workspace.root.parent / "mine" / "thesis.txt")
    adapter = file(ran(workspace, "r1") / "adapter" / "adapter_model.safetensors")
    with pytest.raises(room.CannotDelete):
        room.delete(workspace, place, all_the_same=True)
    assert mine.is_file() and adapter.is_file()


@pytest.mark.parametrize("link", ["run", "checkpoints", "file", "model", "folder"])
def test_what_a_link_leads_to_stays(workspace: Workspace, link: str) -> None:
    outside = workspace.root.parent / "mine"
    mine = file(outside / "merged" / "model.safetensors")
    run = ran(workspace, "r1")
    if link == "run":
        run.rename(outside / "r1")
        mine = file(outside / "r1" / "merged" / "model.safetensors")
        run.symlink_to(outside / "r1")
    elif link == "checkpoints":
        (run / "checkpoints").symlink_to(outside)
    elif link == "file":
        (run / "gguf").mkdir()
        (run / "gguf" / "r1-f16.gguf").symlink_to(mine)
    elif link == "model":
        workspace.models_dir.mkdir(exist_ok=True)
        (workspace.models_dir / "base-1").symlink_to(outside)
    else:
        (run / "merged").mkdir()
        (run / "merged" / "inside").symlink_to(outside)
    for one in room.find(workspace):
        if link == "folder":
            room.delete(workspace, one.place)
        else:
            with pytest.raises(room.CannotDelete, match="link"):
                room.delete(workspace, one.place, all_the_same=True)
    assert mine.is_file()


def test_the_hub_s_cache_is_shown_and_left_alone_and_in_a_demo_not_shown(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.cache, "cached", lambda: ["owner/name"])
    weights = file(room.cache.folder("owner/name") / "blobs" / "a", 5000)
    assert places(workspace)["owner/name"].size_bytes == 5000
    with pytest.raises(room.CannotDelete, match="hf cache rm model/owner/name"):
        room.delete(workspace, "owner/name", all_the_same=True)
    assert weights.is_file()
    monkeypatch.setattr(room.limits, "on", lambda: True)
    assert places(workspace) == {}


def test_each_run_pinned_under_a_name_is_its_next_version_of_two_clicks_too(workspace: Workspace) -> None:
    names = [f"r{n}" for n in range(6)]
    for name in names:
        ran(workspace, name)
    clicks = [
        threading.Thread(target=lifecycle.pin, args=(workspace, name, " helper\n")) for name in names for _ in "12"
    ]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    pins = {run.id: run.pin for run in store.list_all(workspace)}
    assert sorted(pins.values()) == [f"helper v{n}" for n in range(1, 7)]
    last = max(pins, key=lambda run_id: pins[run_id])
    lifecycle.delete(workspace, next(run_id for run_id in pins if pins[run_id] == "helper v1"), all_the_same=True)
    assert str(lifecycle.pin(workspace, last, "helper")) == "helper v6"  # it stays what it was
    assert lifecycle.pin(workspace, last, "") is None
    assert str(lifecycle.pin(workspace, last, "other")) == "other v1"


def test_a_pin_leaves_name_and_note_and_one_that_is_no_pin_is_none(workspace: Workspace) -> None:
    run = ran(workspace, "r1")
    store.rename(workspace, "r1", "mine")
    store.write_note(workspace, "r1", "good")
    lifecycle.pin(workspace, "r1", "helper")
    assert (store.name(workspace, "r1"), store.note(workspace, "r1")) == ("mine", "good")
    for odd in ({"name": 3, "version": 1}, {"name": "a", "version": "x"}, {"name": "", "version": 1}, "helper", [], 7):
        (run / "meta.json").write_text(json.dumps({"name": "mine", "pin": odd}))
        assert store.pin(workspace, "r1") is None and store.name(workspace, "r1") == "mine"
        assert store.list_every(workspace)[0].pin == ""


def test_a_pinned_run_s_card_says_so_and_how_to_ask_it(workspace: Workspace) -> None:
    run = ran(workspace, "r1", "owner/name")
    file(run / "adapter" / "adapter_config.json")
    file(run / "gguf" / "r1-q8_0.gguf")
    file(run / "gguf" / "r1-q8_0.Modelfile")
    lifecycle.pin(workspace, "r1", "helper")
    store.rename(workspace, "r1", "secret data")
    text = card.markdown(workspace, "r1", whole=False)
    assert "secret" not in text
    assert "# helper v1 (" in text and "## How to ask it" in text
    assert "PeftModel.from_pretrained(base, '.')" in text or 'PeftModel.from_pretrained(base, ".")' in text
    assert "llama-server -m r1-q8_0.gguf" in text
    name = "tunebook-r1:q8_0"
    assert f"ollama create {name} -f r1-q8_0.Modelfile && ollama run {name}" in text
    assert 'AutoModelForCausalLM.from_pretrained(".")' in card.markdown(workspace, "r1").replace("'", '"')


def test_the_command_line_pins_lists_and_deletes(workspace: Workspace, tmp_path: Path) -> None:
    run = ran(workspace, "r1")
    ran(workspace, "r2")
    file(run / "merged" / "model.safetensors", 2 * 2**20)

    def told(*words: str) -> tuple[int, str]:
        done = tunebook(*words, home=workspace.root, machine=tmp_path / "machine")
        return done.returncode, done.stdout + done.stderr

    assert told("runs", "--pinned") == (0, "No run is pinned. Pin one with: tunebook pin ID NAME\n")
    assert told("pin", "r1", "helper") == (0, "r1 is pinned as helper v1.\n")
    code, listed = told("runs", "--pinned", "--json")
    assert code == 0 and [(one["id"], one["pin"]) for one in json.loads(listed)] == [("r1", "helper v1")]
    code, listed = told("room")
    assert code == 0 and "2.0 MiB" in listed and "runs/r1/merged" in listed and "pinned as helper v1" in listed
    assert told("room", "--delete", "runs/r1/merged")[0] == 2
    assert told("room", "--delete", "runs/r1/merged", "--force") == (0, "Deleted runs/r1/merged: 2.0 MiB.\n")
    assert not (run / "merged").exists()

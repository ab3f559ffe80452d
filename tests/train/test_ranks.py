"""Several processes of one run: each has its base on its own card, and takes on what a supervisor would have given it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
import torch
from accelerate import Accelerator

from engine import peers
from engine.runs import failures
from engine.spec import schema
from engine.train import __main__ as train_child
from engine.train import load, ranks, training
from engine.train.scoring import on_the_way
from tests.helpers import fake_spec


# --- a base in few bits, over cards (emulated: there is no card here) --------------------------------------------------
@pytest.mark.parametrize("card", [0, 1, 3])
def test_a_base_in_few_bits_lies_where_accelerate_trains_it(monkeypatch: pytest.MonkeyPatch, card: int) -> None:
    placed: dict[str, Any] = {}

    def whole(source: str, spec: schema.RunSpec, **asked: Any) -> torch.nn.Module:
        placed.update(asked)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: card)
    monkeypatch.setattr(load, "whole", whole)
    monkeypatch.setattr(load.sound, "keep_as_written", lambda *_: None)
    model: Any = load._quantized("base", msgspec.structs.replace(fake_spec(), quantize="4bit"), torch.float32)
    model.is_loaded_in_4bit, model.hf_device_map = True, placed["device_map"]
    # what a process of several is to Accelerate's check, which raises ValueError for another device
    process = MagicMock(device=torch.device("cuda", card), native_amp=False, fp8_backend=None, _models=[])
    process.verify_device_map.return_value = False  # the map names one device
    Accelerator.prepare_model(process, model, evaluation_mode=True)


# --- what one process does for all ------------------------------------------------------------------------------------
def test_only_the_first_process_removes_what_was_scored_after_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scored = tmp_path / "items" / "at-8-tuned.jsonl.part"
    scored.parent.mkdir()
    scored.touch()
    monkeypatch.setenv("RANK", "1")
    on_the_way.forget_after(tmp_path, 4)
    assert scored.exists()
    monkeypatch.setenv("RANK", "0")
    on_the_way.forget_after(tmp_path, 4)
    assert not scored.exists()


def test_all_processes_stop_where_one_was_stopped_before_it_had_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_prepare", lambda run: [])
    monkeypatch.setattr(training, "_adapt", MagicMock(side_effect=AssertionError("it goes on alone")))
    monkeypatch.setattr(ranks, "any_of", lambda asked: True)  # another process says so
    run = MagicMock(spec=["told", "stop", "spec", "rows", "run_dir", "log", "only_probes", "objective"])
    run.stop.asked.return_value, run.only_probes = False, True
    assert training.carry_out(run) == training.EXIT_STOPPED


# --- on another machine than the supervisor's --------------------------------------------------------------------------
@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "runs" / "20260101-000000-abcdef"
    folder.mkdir(parents=True)
    return folder


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, machine: int) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": "0", "GROUP_RANK": str(machine)})


def test_a_process_of_another_machine_has_the_environment_of_the_run(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    as_process(monkeypatch, 1, 1)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "0"
    heart = ranks.begin(run_dir)
    assert heart is not None
    heart.end()
    ranks.take_environment(run_dir, fake_spec())
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1" and os.environ["HF_DATASETS_CACHE"] == str(run_dir / "cache")
    assert os.environ["RANK"] == "1"
    (told,) = peers.read(run_dir).values()
    assert (told.rank, told.machine, told.ended) == (1, 1, True)
    assert told.stands_on["torch"] == torch.__version__ and len(told.stands_on["tunebook"]) == 12


def test_a_machine_that_does_not_see_the_folder_says_so_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], run_dir: Path
) -> None:
    as_process(monkeypatch, 1, 1)
    elsewhere = run_dir.with_name("elsewhere")
    monkeypatch.setattr(sys, "argv", ["train", str(elsewhere)])
    monkeypatch.setattr(train_child.processes, "die_with_parent", lambda: None)
    assert train_child.main() == train_child.EXIT_FAILED
    assert str(elsewhere) in capfd.readouterr().err and not elsewhere.exists()


def test_a_process_that_cannot_read_the_spec_tells_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], run_dir: Path
) -> None:
    as_process(monkeypatch, 1, 1)
    (run_dir / "spec.json").write_text('{"kind": "train", "of_a_later_version": 1}')
    monkeypatch.setattr(sys, "argv", ["train", str(run_dir)])
    monkeypatch.setattr(train_child.processes, "die_with_parent", lambda: None)
    assert train_child.main() == train_child.EXIT_FAILED
    assert peers.read(run_dir)[1].failed is not None


def test_a_process_leaves_when_the_first_one_has_ended_or_begun_again(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    monkeypatch.setattr(peers, "GONE_S", 0.01)
    monkeypatch.setattr(peers, "SILENT_S", 0.05)
    monkeypatch.setattr(os, "_exit", lambda status: None)
    ended = peers.Heart(run_dir, 0, 0)
    ended.end()
    ranks._leave_with_the_first(run_dir)  # returns, as the process would have ended
    monkeypatch.setattr(peers, "SILENT_S", 1e9)
    beats = iter([peers.Peer(rank=0, machine=0, host="a", beat=beat) for beat in (5, 6, 0)])
    monkeypatch.setattr(peers.Watch, "silent", lambda *_, **__: [])
    monkeypatch.setattr(peers, "read", lambda _: {0: next(beats)})
    ranks._leave_with_the_first(run_dir)
    assert next(beats, None) is None


def test_the_first_waits_for_every_machine_and_says_which_did_not_come(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    as_process(monkeypatch, 0, 0)
    asked = msgspec.structs.replace(fake_spec(), machine=schema.Machine(nodes=3))
    hearts = [peers.Heart(run_dir, rank, machine) for rank, machine in ((0, 0), (1, 1))]
    assert ranks.wait_for_machines(run_dir, asked, lambda: True) is False
    monkeypatch.setattr(peers, "ARRIVAL_S", 0.0)
    with pytest.raises(failures.RunRefused) as refused:
        ranks.wait_for_machines(run_dir, asked, lambda: False)
    assert refused.value.problem.parameters == {"machines": "3"}
    hearts.append(peers.Heart(run_dir, 2, 2, {"torch": "2.12.0+cpu"}))
    assert ranks.wait_for_machines(run_dir, asked, lambda: False)
    for heart in hearts:
        heart.end()


def test_a_machine_with_other_versions_is_refused_as_it_comes(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    as_process(monkeypatch, 0, 0)
    asked = msgspec.structs.replace(fake_spec(), machine=schema.Machine(nodes=3))
    stands_on = {"tunebook": "aaaa", "torch": "2.12.0+cu130"}
    hearts = [peers.Heart(run_dir, 0, 0, stands_on), peers.Heart(run_dir, 1, 1, {**stands_on, "torch": "2.12.0+cu126"})]
    assert ranks.wait_for_machines(run_dir, asked, lambda: True) is False
    hearts.append(peers.Heart(run_dir, 2, 2, {**stands_on, "tunebook": "bbbb"}))
    with pytest.raises(failures.RunRefused) as refused:
        ranks.wait_for_machines(run_dir, asked, lambda: False)
    assert refused.value.problem.rule == "peer-unlike"
    assert refused.value.problem.parameters["differences"] == "tunebook bbbb (aaaa)"
    for heart in hearts:
        heart.end()

"""What a run survives, really done: real children killed or out of something at one point, supervisors and servers killed.

Each says the true reason within seconds, leaves everything written before readable, and goes on to the same final step.
Real children are forked from the parent of tests/forked, which also lets the faults happen (tests/forked/faults.py).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import events, machine, processes
from engine.data import datasets
from engine.runs import device_queue, follow, lifecycle, store
from engine.spec import schema
from engine.workspace import Workspace
from tests import forked
from tests.helpers import PROJECT_DIR, FakeRuns, fake_spec, kill, planned, wait_until

STEPS, EVALUATIONS = 20, 5  # a checkpoint every 4 steps with the fault `often`
ENDS_S = 120.0


class RealRuns:
    """A home with a small data set, and real runs in it."""

    ends_s = ENDS_S

    def __init__(self, root: Path):
        self.workspace = Workspace(root)
        rows = [{"prompt": f"Say {n}.", "completion": f"It is {n}."} for n in range(24)]
        file = root.parent / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.dataset = datasets.add(self.workspace, file, "rows.jsonl")
        self.module = self.module_of_runs()

    def module_of_runs(self) -> str:
        forked._start_parent()
        return "tests.forked.supervisor"

    def spec(self, recipe: str = "lora", /, **changes: Any) -> schema.RunSpec:
        settings = {
            "train.max_steps": STEPS, "train.evaluations": EVALUATIONS, "train.threads": 1, "train.batch_size": 4,
            "train.accumulation": 2, "train.replay_share": 0.0, "evaluate.benchmarks": [], **changes,
        }  # fmt: skip
        made, problems = planned(self.workspace, recipe, base="starter", dataset=self.dataset.id, overrides=settings)
        # a disk is refused that is too small; one test has such a disk on purpose
        assert made is not None and [one for one in problems if one.rule != "disk-too-small"] == []
        return made

    def start(self, recipe: str = "lora", /, **changes: Any) -> str:
        return lifecycle.start(self.workspace, self.spec(recipe, **changes), module=self.module)

    def folder(self, run_id: str) -> Path:
        return self.workspace.run_dir(run_id)

    def ended(self, run_id: str) -> str:
        """Wait for the end, and for that of the supervisor; return the state."""
        state = wait_until(
            lambda: (s := store.status(self.workspace, run_id)) not in store.LIVE and s, self.ends_s, "an end"
        )
        follow.wait_for_end(self.folder(run_id))
        return str(state)

    def resumed(self, run_id: str) -> None:
        """Resume and expect the end that was meant from the start, with everything in its place."""
        before = self.events(run_id)
        lifecycle.resume(self.workspace, run_id, module=self.module)
        state = self.ended(run_id)
        assert state == "finished", follow.log_tail(self.folder(run_id))
        found = self.events(run_id)
        assert [event.seq for event in found[: len(before)]] == [event.seq for event in before]
        assert found[-1] == next(event for event in found if isinstance(event, events.Finished))
        assert found[-1].step == STEPS
        assert (self.folder(run_id) / "adapter" / "adapter_model.safetensors").is_file()
        assert not list(self.folder(run_id).glob("*.partial"))

    def events(self, run_id: str, *types: type) -> list[Any]:
        found, _ = events.read(self.folder(run_id))
        return [event for event in found if not types or isinstance(event, types)]

    def went_on_from(self, run_id: str) -> list[str]:
        said = [str(event.text) for event in self.events(run_id, events.Log)]
        return [text for text in said if text.startswith("Going on from")]

    def checkpoints(self, run_id: str) -> list[str]:
        folder = self.folder(run_id) / "checkpoints"
        return sorted(path.name for path in folder.glob("checkpoint-*")) if folder.is_dir() else []


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealRuns]:
    made = RealRuns(tmp_path / "home")
    yield made
    FakeRuns(tmp_path / "home").close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[FakeRuns]:
    fakes = FakeRuns(tmp_path / "home")
    yield fakes
    fakes.close()


def struck(real: RealRuns, monkeypatch: pytest.MonkeyPatch, fault: str, **changes: Any) -> tuple[str, events.Failed]:
    """Let a fault happen to a real run; return its id and what it said at its end."""
    monkeypatch.setenv("TUNEBOOK_TEST_FAULT", f"often,{fault}")
    run_id = real.start(**changes)
    state = real.ended(run_id)
    monkeypatch.delenv("TUNEBOOK_TEST_FAULT")
    assert state == "failed", follow.log_tail(real.folder(run_id))
    (said,) = real.events(run_id, *events.TERMINAL)
    assert isinstance(said, events.Failed) and said.message and said.fix
    assert store.summary(real.workspace, run_id).failure == {
        "kind": said.kind,
        "message": said.message,
        "fix": said.fix,
    }
    return run_id, said


# --- the child is killed ----------------------------------------------------------------------------------------------
@pytest.mark.train
@pytest.mark.parametrize(
    "phase",
    ["checkpoint", *(pytest.param(p, marks=pytest.mark.slow) for p in ("loading", "training", "saving", "evaluating"))],
)
def test_a_child_killed_in_any_phase_says_so_and_the_run_goes_on_to_the_same_end(
    real: RealRuns, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    run_id, said = struck(real, monkeypatch, phase)
    assert said.kind == "killed"
    # What is called a checkpoint is whole: the half of the second one lies beside, and nobody takes it for one.
    left = {"loading": [], "checkpoint": ["checkpoint-4"], "training": ["checkpoint-4"]}
    assert real.checkpoints(run_id) == left.get(phase, ["checkpoint-16", "checkpoint-20"])
    assert not (real.folder(run_id) / "adapter").exists() or phase == "evaluating"
    real.resumed(run_id)
    last = {"loading": [], "checkpoint": ["4"], "training": ["4"]}.get(phase, ["20"])
    assert real.went_on_from(run_id) == [f"Going on from checkpoint-{step}." for step in last]
    steps = [event.step for event in real.events(run_id, events.Step)]
    assert set(range(1, STEPS + 1)) <= set(steps)  # every step was taken, some twice


@pytest.mark.train
@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_killed(
    real: RealRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = real.start()
    assert real.ended(whole) == "finished"
    run_id, _ = struck(real, monkeypatch, "training")
    real.resumed(run_id)
    made = [real.folder(one) / "adapter" / "adapter_model.safetensors" for one in (whole, run_id)]
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.train
@pytest.mark.slow
def test_everything_killed_in_the_middle_of_a_checkpoint_is_an_interruption(
    real: RealRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEBOOK_TEST_FAULT", "often,machine")
    run_id = real.start()
    assert real.ended(run_id) == "interrupted"
    monkeypatch.delenv("TUNEBOOK_TEST_FAULT")
    assert real.checkpoints(run_id) == ["checkpoint-4"]
    assert [event.step for event in real.events(run_id, events.Saved)] == [4]
    real.resumed(run_id)
    assert len(real.events(run_id, events.Interrupted)) == 1


@pytest.mark.train
@pytest.mark.slow
def test_a_real_child_goes_with_its_killed_supervisor_and_the_run_goes_on_later(real: RealRuns) -> None:
    real.module = "engine.worker"  # a child of its own, as ever
    run_id = real.start(**{"train.max_steps": STEPS})
    wait_until(lambda: real.events(run_id, events.Started), ENDS_S, "it has started")
    identity = FakeRuns(real.workspace.root).supervisor(run_id)
    assert identity is not None
    children = [int(pid) for pid in Path(f"/proc/{identity.pid}/task/{identity.pid}/children").read_text().split()]
    (child,) = [processes.identify(pid) for pid in children]
    kill(identity)
    wait_until(lambda: not processes.alive(child), 10, "the child is gone")
    assert real.ended(run_id) == "interrupted"
    real.resumed(run_id)


# --- something runs out -----------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.train
def test_a_child_out_of_memory_says_so_and_what_to_change(real: RealRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of its address space is the kernel's (RLIMIT_AS), and so is the refusal."""
    run_id, said = struck(real, monkeypatch, "memory")
    assert said.kind == "oom"
    assert real.checkpoints(run_id) == ["checkpoint-4"]
    real.resumed(run_id)


@pytest.mark.train
@pytest.mark.parametrize(
    "writing", ["checkpoint-disk", *(pytest.param(w, marks=pytest.mark.slow) for w in ("events", "saving-disk"))]
)
def test_a_full_disk_says_so_and_earlier_checkpoints_stay_whole(
    real: RealRuns, monkeypatch: pytest.MonkeyPatch, writing: str
) -> None:
    """The refusal is the kernel's (/dev/full), while events, a checkpoint or the adapter are written."""
    run_id, said = struck(real, monkeypatch, writing)
    assert said.kind == "disk"
    expected = ["checkpoint-16", "checkpoint-20"] if writing == "saving-disk" else ["checkpoint-4"]
    assert real.checkpoints(run_id) == expected
    assert not (real.folder(run_id) / "adapter").exists()
    real.resumed(run_id)


@pytest.mark.train
@pytest.mark.slow
def test_a_disk_that_really_fills_up_ends_the_run_with_that_reason(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        os.environ["TUNEBOOK_TEST_FAULT"] = "often"
        real = RealRuns(disk / "home")
        run_id = real.start()
        assert real.ended(run_id) == "failed"
        (said,) = real.events(run_id, *events.TERMINAL)
        assert said.kind == "disk"
        whole = real.checkpoints(run_id)
        assert whole  # and each has all its parts
        for name in whole:
            parts = {path.name for path in (real.folder(run_id) / "checkpoints" / name).iterdir()}
            assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= parts
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)  # room is made
        real.resumed(run_id)
    finally:
        os.environ.pop("TUNEBOOK_TEST_FAULT", None)
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- training goes wrong ----------------------------------------------------------------------------------------------
@pytest.mark.train
@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    real: RealRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, said = struck(real, monkeypatch, "no-number")
    assert said.kind == "diverged" and "step 8" in str(said.message)
    assert real.checkpoints(run_id) == ["checkpoint-4"]


# --- a run over several processes --------------------------------------------------------------------------------------
@pytest.mark.train
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["lora", "qlora"])
def test_two_processes_share_a_run_and_learn_what_one_would_have(real: RealRuns, recipe: str) -> None:
    """Two processes on the processor, over gloo: as many rows a step, so the same losses, but for rounding."""
    full = {"dataset.eval_share": 1 / 3}  # 16 rows: no batch is cut short, which two processes would fill up
    one, two = real.start(recipe, **full), real.start(recipe, **full, **{"machine.devices": 2, "train.threads": 2})
    assert [real.ended(run_id) for run_id in (one, two)] == ["finished", "finished"]
    losses = [[(e.step, e.loss) for e in real.events(run_id, events.Step)] for run_id in (one, two)]
    assert [step for step, _ in losses[1]] == list(range(1, STEPS + 1))  # told once, by the first process
    assert losses[1] == [(step, pytest.approx(loss, rel=1e-3)) for step, loss in losses[0]]
    held = [[e.loss for e in real.events(run_id, events.Eval)] for run_id in (one, two)]
    assert held[1] == pytest.approx(held[0], rel=1e-3)
    assert len(real.events(two, events.Started)) == 1
    assert [e.seq for e in real.events(two)] == list(range(1, len(real.events(two)) + 1))


@pytest.mark.train
@pytest.mark.slow
def test_a_run_over_two_processes_stops_after_a_step_and_goes_on(real: RealRuns) -> None:
    run_id = real.start(**{"machine.devices": 2, "train.threads": 2, "train.max_steps": 4000})
    wait_until(lambda: real.events(run_id, events.Step), ENDS_S, "it trains")
    lifecycle.stop(real.workspace, run_id)
    assert real.ended(run_id) == "stopped"
    assert real.checkpoints(run_id)
    left = real.events(run_id, events.Stopped)[0].step
    wait_until(lambda: not store.supervised(real.folder(run_id)), ENDS_S, "the launcher has ended")
    lifecycle.resume(real.workspace, run_id, module=real.module)
    wait_until(lambda: real.events(run_id, events.Step)[-1].step > left, ENDS_S, "it goes on")
    lifecycle.stop(real.workspace, run_id)
    assert real.ended(run_id) == "stopped"


@pytest.mark.train
@pytest.mark.slow
def test_one_of_two_processes_killed_ends_the_run_with_that_reason(real: RealRuns) -> None:
    run_id = real.start(**{"machine.devices": 2, "train.threads": 2, "train.max_steps": 4000})
    wait_until(lambda: real.events(run_id, events.Step), ENDS_S, "it trains")
    ranks = [pid for pid in _processes_of(real.folder(run_id)) if b"\0RANK=1\0" in _environment(pid)]
    assert len(ranks) == 1
    kill(processes.identify(ranks[0]))
    assert real.ended(run_id) == "failed"
    (said,) = real.events(run_id, *events.TERMINAL)
    assert said.kind == "killed", said
    assert _processes_of(real.folder(run_id)) == []  # nobody is left behind


def _environment(pid: int) -> bytes:
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
    except OSError:
        return b""


def _processes_of(run_dir: Path) -> list[int]:
    """Return the living processes that were started for this run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run_dir).encode() in words and processes.identify(int(path.name)) is not None:
            found.append(int(path.name))
    return found


# --- supervisors, servers, clocks (fake children) ----------------------------------------------------------------------
def test_a_child_that_hangs_after_its_last_event_is_ended_and_gives_the_device_back(home: FakeRuns) -> None:
    run_id = home.start("hangs")
    behind = home.start("finishes")
    home.wait_for(behind, "finished")
    assert home.status(run_id) == "finished"
    assert not processes.alive(home.child(run_id))


def test_the_queue_moves_on_when_no_server_is_alive(home: FakeRuns) -> None:
    command = [sys.executable, "-m", "tests.fakes.server", str(home.workspace.root)]
    started = []
    for child in ("waits", "finishes"):
        with subprocess.Popen([*command, child], stdout=subprocess.PIPE, text=True, cwd=PROJECT_DIR) as server:
            assert server.stdout is not None
            started.append(server.stdout.readline().strip())
            server.kill()
    first, second = started
    home.wait_for_event(first, events.Step)
    wait_until(lambda: device_queue.waiting(machine.facts().device) == [second], what="the second waits")
    (home.folder(first) / "go").touch()
    home.wait_for(first, "finished")
    home.wait_for(second, "finished")


def test_two_servers_on_one_home_do_not_start_a_run_twice(home: FakeRuns) -> None:
    code = (
        "import sys; from engine.runs.lifecycle import start; from engine.workspace import Workspace;"
        "from tests.helpers import fake_spec;"
        "print(start(Workspace(sys.argv[1]), fake_spec('finishes'), click_id='0a1b', module='tests.fakes.supervisor'))"
    )
    command = [sys.executable, "-c", code, str(home.workspace.root)]
    servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT_DIR) for _ in range(2)]
    said = {server.communicate(timeout=60)[0].strip() for server in servers}
    assert len(said) == 1
    (only,) = store.list_all(home.workspace)
    assert {only.id} == said
    home.wait_for(only.id, "finished")


def test_a_clock_that_is_set_is_not_taken_for_the_end_of_a_run(home: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = home.start("waits")
    home.wait_for_event(run_id, events.Step)
    now_s = time.time
    for shift_s in (-86_400.0, 86_400.0):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda shift_s=shift_s: now_s() + shift_s)
            assert home.status(run_id) == "running"
            assert follow.silent_s(home.events(run_id)) is None
            assert device_queue.live(machine.facts().device) == [run_id]
    (home.folder(run_id) / "go").touch()
    home.wait_for(run_id, "finished")


def test_silence_is_told_by_the_pace_of_the_run() -> None:
    def said(step: int, monotonic_s: float) -> events.Step:
        return events.Step(step=step, total_steps=99, epoch=1.0, loss=1.0, monotonic_s=monotonic_s)

    now_s = time.monotonic()
    quick = [said(n, now_s - 90 + n) for n in range(5)]
    slow = [said(n, now_s - 1000 + 200 * n) for n in range(5)]
    assert follow.silent_s(quick) == pytest.approx(86, abs=1)
    assert follow.silent_s(slow) is None  # a step takes 200 s here
    assert follow.silent_s([events.Phase(phase="evaluating", monotonic_s=now_s - 600)]) is None
    assert follow.silent_s([events.Phase(phase="evaluating", monotonic_s=now_s - 1000)]) is not None
    assert follow.silent_s([]) is None


def test_a_list_of_200_interrupted_runs_reads_the_log_of_each_once(home: FakeRuns, monkeypatch) -> None:
    """Interrupted runs have no summary: each is rebuilt from its events."""
    first = home.workspace.run_dir("20261124-000000-000000")
    first.mkdir(parents=True)
    (first / "spec.json").write_bytes(schema.encode(fake_spec()))
    log = events.EventLog(first)
    log.append(events.Queued(device="cpu"))
    for step in range(1, 101):
        log.append(events.Step(step=step, total_steps=100, epoch=1.0, loss=1.0, metrics={"entropy": 0.5}))
    log.close()
    for number in range(1, 200):
        shutil.copytree(first, home.workspace.run_dir(f"20261124-000000-{number:06x}"))
    read, opened = events.read, []
    monkeypatch.setattr(events, "read", lambda folder, at=0: opened.append((folder, at)) or read(folder, at))
    found = store.list_all(home.workspace)
    assert len(found) == 200 and {run.status for run in found} == {"interrupted"}
    whole = [folder for folder, at in opened if at == 0]  # what came since the first look is looked for anew
    assert len(whole) == len(set(whole)) == 200


# --- several cards ------------------------------------------------------------------------------------------------------
def test_each_of_two_cards_takes_a_run_and_a_run_for_both_waits_for_both() -> None:
    cards = ("GPU-a", "GPU-b")
    one, two, both, late = (device_queue.Turn("cuda:0", name, n, cards, needed) for n, (name, needed) in enumerate(
        [("one", 1), ("two", 1), ("both", 2), ("late", 1)], start=1))  # fmt: skip

    def once() -> Any:
        looks = itertools.count()
        return lambda: next(looks) > 0

    assert one.wait(once()) and two.wait(once())
    assert {*one.holds, *two.holds} == set(cards) and one.holds != two.holds
    assert device_queue.waiting("cuda:0") == ["both", "late"]
    one.close()
    assert not both.wait(once(), poll_s=0.0)  # one card is not enough
    assert not late.wait(once(), poll_s=0.0)  # and nobody overtakes the run that waits for two
    two.close()
    assert both.wait(once()) and both.holds == cards
    assert not late.wait(once(), poll_s=0.0)
    both.close()
    assert late.wait(once())
    late.close()


def test_a_run_sees_the_cards_alone_whose_turn_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from engine.runs import environment

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = environment.environment(tmp_path, fake_spec(), ("GPU-b",))
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-b" and "LOCAL_RANK" not in found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment.environment(tmp_path, fake_spec(), ("cpu",))["CUDA_VISIBLE_DEVICES"] == ""


# --- the page -----------------------------------------------------------------------------------------------------------
@pytest.mark.page
def test_a_run_that_hangs_and_what_it_noticed_are_said_on_its_page(
    home: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.apps import open_page, texts

    run_id = "20260101-000000-abcdef"
    folder = home.workspace.run_dir(run_id)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(schema.encode(fake_spec()))
    monkeypatch.setattr(store, "supervised", lambda run_dir: True)
    log = events.EventLog(folder)
    log.append(events.Started(attempt=1, versions={}, device="cpu", backend="plain", reason="a fake"))
    log.append(events.Log(level="warning", text="The gradient is *far* too long."))
    with monkeypatch.context() as patch:
        for number, then_s in enumerate(time.monotonic() - 100 + n for n in range(1, 5)):
            patch.setattr(time, "monotonic", lambda then_s=then_s: then_s)
            log.append(events.Step(step=1 + number, total_steps=9, epoch=0.1, loss=2.0))
            patch.undo()
    app = open_page("runs", run=run_id)
    assert "Nothing was heard of this run for 2 min. It may hang" in texts(app)
    assert "The gradient is *far* too long." in texts(app)
    log.append(events.Step(step=5, total_steps=9, epoch=0.1, loss=2.0))
    log.close()
    assert "Nothing was heard" not in texts(open_page("runs", run=run_id))


@pytest.mark.parametrize("count", [600, 601, 899, 1201, 10_000, 123_457])
def test_the_chart_of_a_long_run_is_short_and_keeps_its_peaks_and_its_end(count: int) -> None:
    from pages import _charts

    points = [[float(step), 1.0 + 0.1 * (step % 7)] for step in range(count)]
    points[count // 3][1], points[count // 2][1] = 9.0, -1.0
    kept = _charts.thinned(points)
    assert len(kept) <= _charts.MOST_POINTS and kept == sorted(kept)
    assert kept[-1] == points[-1] and points[count // 3] in kept and points[count // 2] in kept


@pytest.mark.page
def test_the_page_lets_a_waiting_run_come_first_or_go(home: FakeRuns) -> None:
    from tests.apps import button, open_page

    device = device_queue.Turn(machine.facts().device, "held-by-a-test", 1)
    assert device.wait(lambda: False)
    first, second = home.start("finishes"), home.start("finishes")
    wait_until(lambda: device_queue.waiting(machine.facts().device) == [first, second], what="both wait")
    app = open_page("runs", run=first)
    button(app, f"front_{second}").click().run()
    assert device_queue.waiting(machine.facts().device) == [second, first]
    button(open_page("runs", run=first), f"remove_{first}").click().run()
    home.wait_for(first, "stopped")
    device.close()
    home.wait_for(second, "finished")


@pytest.mark.page
def test_the_page_of_a_failed_run_starts_again_with_what_would_help_and_deletes_it(workspace: Workspace) -> None:
    from engine import starter
    from engine.plan import drafts
    from engine.runs import failures
    from tests.apps import button, has_button, open_page, texts

    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    made, _ = planned(workspace, "lora", base="starter", dataset=data.id, overrides={"train.batch_size": 8})
    assert made is not None
    run_id = "20260101-000000-abcdef"
    workspace.run_dir(run_id).mkdir(parents=True)
    (workspace.run_dir(run_id) / "spec.json").write_bytes(schema.encode(made))
    log = events.EventLog(workspace.run_dir(run_id))
    log.append(events.Queued(device="cpu"))
    log.append(failures.from_exception(MemoryError()))
    log.close()
    app = open_page("runs", run=run_id)
    assert "ran out of memory" in texts(app) and "Start again with" in texts(app)
    smaller = next(b for b in app.button if b.label.startswith("A smaller batch"))
    button(app, str(smaller.key)).click().run()
    draft = drafts.load(workspace, next((workspace.root / "drafts").glob("*.json")).stem)
    assert draft is not None and draft.overrides["train.batch_size"] == 4
    app = open_page("runs", run=run_id)
    assert has_button(app, f"delete_run_{run_id}")
    button(app, f"delete_run_{run_id}").click().run()
    assert not workspace.run_dir(run_id).exists()

"""Serving a run: begun, found again, ended, and what is said when what answers ends by itself. The program is a fake with
the command line of llama.cpp's; the process that keeps it is the real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from engine import limits, machine, processes
from engine.chat import child as chat_child
from engine.cli import main
from engine.export import artifacts
from engine.runs import device_queue, lifecycle
from engine.serve import keeper, lines, programs, serving
from engine.spec import recipes, schema
from engine.workspace import Workspace
from tests.conftest import ROOT
from tests.fakes import llama_server
from tests.helpers import wait_until

RUN = "20260101-000000-abcdef"
ASK = {"messages": [{"role": "user", "content": "hello"}]}


def made(workspace: Workspace, recipe: str = "full", run_id: str = RUN) -> Path:
    """A run folder as a run of a recipe leaves it, with weights that nobody loads."""
    run_spec, problems = recipes.resolve(
        recipes.recipes()[recipe], base="starter", revision=None, parameters=None, dataset_id="a", overrides={}
    )
    assert problems == []
    run_dir = workspace.run_dir(run_id)
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(run_spec))
    (run_dir / "model" / "config.json").write_text("{}")
    return run_dir


@pytest.fixture
def run_dir(workspace: Workspace) -> Path:
    return made(workspace)


def gguf(run_dir: Path, quantization: str, content: bytes = b"a model") -> Path:
    path = run_dir / "gguf" / f"{run_dir.name}-{quantization}.gguf"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return build(tmp_path, monkeypatch)


def build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama.cpp of which the server is a fake, as it would be built."""
    server = folder / "llama.cpp" / "bin" / "llama-server"
    server.parent.mkdir(parents=True)
    server.write_text(f'#!/bin/sh\nexec {sys.executable} -m {llama_server.__name__} "$@"\n')
    server.chmod(server.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(server.parents[1]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return server


@pytest.fixture
def served(workspace: Workspace, run_dir: Path, built: Path) -> Iterator[serving.Serving]:
    gguf(run_dir, "f16")
    serving.start(workspace, RUN)
    yield ready(workspace)
    serving.stop(workspace, RUN)


class Shared(NamedTuple):
    """A serving that several tests look at, begun where other programs' settings are about."""

    workspace: Workspace
    one: serving.Serving
    file: Path
    keeper: psutil.Process
    program: psutil.Process


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    workspace = Workspace(folder / "home")
    with pytest.MonkeyPatch.context() as patched:
        build(folder, patched)
        patched.setenv("TUNEBOOK_MACHINE_DIR", str(folder / "machine"))
        patched.setenv("LLAMA_ARG_TOOLS", "all")
        patched.setenv("AIP_MODE", "PREDICTION")
        file = gguf(made(workspace), "f16")
        serving.start(workspace, RUN)
        one = ready(workspace)
    assert one.process is not None
    yield Shared(workspace, one, file, psutil.Process(one.process.pid), psutil.Process(program_of(one)))
    serving.stop(workspace, RUN)


def ready(workspace: Workspace, run_id: str = RUN) -> serving.Serving:
    """Wait until a run is served."""

    def is_so() -> serving.Serving | None:
        one = serving.now(workspace, run_id)
        assert one is not None and one.failure is None, one
        return one if one.is_ready else None

    found = wait_until(is_so)
    assert found is not None
    return found


def why_ended(workspace: Workspace, run_id: str = RUN) -> str:
    """Wait until a serving has ended by itself, and return what is said of it."""

    def said() -> str:
        one = serving.now(workspace, run_id)
        assert one is not None
        return str(one.failure or "")

    return wait_until(said)


def ask(one: serving.Serving, path: str = "/chat/completions", **body: Any) -> Any:
    answer = httpx.post(
        f"{one.address}{path}", json=body or ASK, headers={"authorization": f"Bearer {one.key}"}, trust_env=False
    )
    return answer.json()


def program_of(one: serving.Serving) -> int:
    assert one.process is not None
    (child,) = psutil.Process(one.process.pid).children()
    return child.pid


def test_a_run_is_served_until_it_is_ended_and_nothing_is_left(workspace, run_dir, served):
    asked = ask(served)["body"]
    assert asked == {**ASK, "model": RUN, "temperature": 0.0, "max_tokens": programs.DEFAULT_TOKENS}
    assert serving.all_now(workspace).keys() == {RUN} and served.address in served.sentence
    program = program_of(served)
    with pytest.raises(serving.NotServed, match="served already"):
        serving.start(workspace, RUN)
    assert serving.stop(workspace, RUN) and not serving.stop(workspace, RUN)
    assert serving.now(workspace, RUN) is None and not processes.alive(served.process)
    assert not psutil.pid_exists(program) and not (run_dir / serving.STATE).exists()
    with pytest.raises(httpx.ConnectError):
        ask(served)


def test_the_program_behind_shows_nothing_of_its_own_reaches_no_network_and_takes_no_settings_of_others(shared):
    arguments, names = json.loads(shared.file.with_suffix(".told").read_text())
    assert {"--no-ui", "--no-slots", "--offline"} <= set(arguments) and not {"--props", "--metrics"} & set(arguments)
    assert "HF_HUB_OFFLINE" in names and "HF_HUB_DISABLE_TELEMETRY" in names
    assert not {"LLAMA_ARG_TOOLS", "AIP_MODE"} & set(names) and shared.one.key not in " ".join(arguments)


def test_the_program_listens_where_its_user_alone_comes_and_the_front_on_this_machine_alone(shared):
    listening = [Path(str(one.laddr)) for one in shared.program.net_connections("unix") if one.laddr]
    (at,) = {path for path in listening if path.suffix == ".sock"}
    assert at.parent.stat().st_mode & 0o077 == 0
    assert not shared.program.net_connections("inet")
    (ours,) = [one for one in shared.keeper.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert ours.laddr == ("127.0.0.1", shared.one.port)


def test_a_client_that_goes_away_ends_the_answer(shared):
    left = shared.file.with_suffix(".left")
    with httpx.stream(
        "POST", f"{shared.one.address}/completions", json={"prompt": llama_server.FOR_EVER, "stream": True},
        headers={"authorization": f"Bearer {shared.one.key}"}, trust_env=False,
    ) as answer:  # fmt: skip
        next(answer.iter_raw())
        assert not left.exists()
    wait_until(left.exists)


def test_of_two_clicks_one_serves_and_what_is_served_is_not_deleted(shared):
    with pytest.raises(serving.NotServed, match="no GGUF file q8_0"):
        serving.start(shared.workspace, RUN, quantization="q8_0")
    with pytest.raises(lifecycle.CannotDelete, match=f"tunebook serve --stop {RUN}"):
        lifecycle.losses(shared.workspace, RUN)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGKILL, "from outside"), (signal.SIGTERM, "ended by itself")])
def test_when_the_program_ends_that_is_said_and_nothing_listens(workspace, served, number, said):
    os.kill(program_of(served), number)
    assert said in why_ended(workspace) and serving.all_now(workspace) == {}
    wait_until(lambda: not processes.alive(served.process))
    serving.start(workspace, RUN)  # what is ended is no hindrance
    assert ready(workspace).key != served.key


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a program is not ended with the process that started it")
def test_when_the_keeper_is_killed_the_program_ends_with_it(workspace, served):
    program = program_of(served)
    os.kill(served.process.pid, signal.SIGKILL)
    wait_until(lambda: processes.identify(program) is None)
    one = serving.now(workspace, RUN)
    assert one is not None and "ended from outside" in str(one.failure)


def test_a_run_that_wants_the_card_gets_it_and_the_processor_answers(workspace, run_dir, built, monkeypatch):
    slots: list[str] = []

    def begin(*arguments: Any) -> Any:
        slots.append(arguments[5])
        return real(*arguments)

    real = programs.begin
    monkeypatch.setattr(programs, "begin", begin)
    monkeypatch.setattr(chat_child, "free_slot", lambda: "cuda:0")
    monkeypatch.setattr(device_queue, "wanted", lambda _device, slot: slot == "cuda:0")
    kept = keeper.Keeper(
        workspace,
        serving.Serving(run=RUN, program="llama.cpp", key="k"),
        programs.Choice("llama.cpp", "f16", gguf(run_dir, "f16")),
    )

    async def answers() -> None:
        answer = asyncio.create_task(kept._answer())
        async with asyncio.timeout(30):
            while slots != ["cuda:0", "cpu"] or kept._front.behind is None:
                await asyncio.sleep(0.02)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)

    asyncio.run(answers())


def test_a_file_that_cannot_be_loaded_is_said_with_what_the_program_said(workspace, run_dir, built):
    gguf(run_dir, "f16", b"broken")
    serving.start(workspace, RUN)
    said = why_ended(workspace)
    assert "this file is broken" in said and "serve.log" in said
    assert serving.stop(workspace, RUN)


def test_a_port_that_is_taken_is_said_and_without_one_the_next_is_taken(workspace, built, shared):
    other = made(workspace, run_id="other")
    gguf(other, "f16")
    serving.start(workspace, "other", port=shared.one.port)
    assert f"port {shared.one.port}" in why_ended(workspace, "other")
    serving.start(workspace, "other")
    second = ready(workspace, "other")
    assert second.port != shared.one.port and ask(second)["body"]["model"] == "other"
    answer = httpx.get(
        f"{second.address}/models", headers={"authorization": f"Bearer {shared.one.key}"}, trust_env=False
    )
    assert answer.status_code == 401  # each has a key of its own
    serving.stop(workspace, "other")


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_port_that_is_none_is_no_crash(port):
    with pytest.raises(keeper.Ended):
        keeper.listen(port)


def test_the_file_that_is_named_answers_else_what_is_nearest_to_the_run(workspace, run_dir, built, monkeypatch):
    monkeypatch.setattr(programs, "MODULES", ("no_such_module",))
    with pytest.raises(serving.NotServed, match="make gguf"):
        serving.chosen(workspace, RUN, None)
    gguf(run_dir, "q4_k_m")
    gguf(run_dir, "q8_0")
    assert serving.chosen(workspace, RUN, None).quantization == "q8_0"
    assert serving.chosen(workspace, RUN, "q4_k_m").quantization == "q4_k_m"
    with pytest.raises(serving.NotServed, match="no GGUF file f16"):
        serving.chosen(workspace, RUN, "f16")
    monkeypatch.setattr(programs, "MODULES", ("msgspec",))
    assert [one.program for one in programs.choices(workspace, RUN)] == ["llama.cpp", "llama.cpp", "transformers"]
    built.unlink()
    assert serving.chosen(workspace, RUN, None).program == "transformers"


def test_a_judge_a_run_without_weights_and_a_demo_serve_nothing(workspace, built, monkeypatch):
    gguf(made(workspace, "reward", "judge"), "f16")
    with pytest.raises(serving.NotServed, match="reward model gives scores"):
        serving.start(workspace, "judge")
    artifacts.made_by(made(workspace, run_id="empty")).rename(workspace.run_dir("empty") / "gone")  # type: ignore[union-attr]
    with pytest.raises(serving.NotServed, match="no model yet"):
        serving.start(workspace, "empty")
    gguf(made(workspace), "f16")
    monkeypatch.setattr(limits, "on", lambda: True)
    with pytest.raises(serving.NotServed, match="this demo serves no models"):
        serving.check(workspace, RUN)
    assert serving.all_now(workspace) == {}


def test_weights_that_the_memory_does_not_hold_are_not_begun(workspace, run_dir, built, monkeypatch):
    gguf(run_dir, "f16", b"x" * 1000)
    monkeypatch.setattr(machine, "free_bytes", lambda: 999)
    with pytest.raises(serving.NotServed, match="main memory"):
        serving.start(workspace, RUN)
    assert serving.now(workspace, RUN) is None


def test_both_programs_are_asked_for_the_same(workspace, run_dir):
    """The likeliest answer where no temperature is named, the model's own chances where one is, and an end."""
    (run_dir / "model" / "generation_config.json").write_text(
        '{"eos_token_id": [2, 7], "top_k": 50, "do_sample": true}'
    )
    file = programs.Choice("llama.cpp", "f16", run_dir)
    whole = programs.Choice("transformers")
    for choice in (file, whole):
        said = programs.asked(workspace, RUN, choice, {**ASK, "max_completion_tokens": 5, "temperature": None})
        assert (said["model"], said["max_tokens"], said["temperature"]) == (RUN, 5, 0.0)
        assert "max_completion_tokens" not in said
    for temperature, draws in ((0.0, False), (0.7, True)):
        said = programs.asked(workspace, RUN, whole, {**ASK, "temperature": temperature})
        own = json.loads(said["generation_config"])
        assert (own["do_sample"], own["top_k"], own["eos_token_id"]) == (draws, 0, [2, 7])  # the run's own end marks


def test_the_lines_to_copy_name_the_true_address_key_and_model(workspace, run_dir):
    one = serving.Serving(run=RUN, program="llama.cpp", key="k-e_y", port=8705)
    for line in (lines.curl(one), lines.python(one)):
        assert "http://127.0.0.1:8705/v1" in line and "k-e_y" in line and RUN in line
    compile(lines.python(one), "lines", "exec")
    assert lines.ollama(workspace, one) is None
    for name in ("q8_0", "q4_k_m"):
        gguf(run_dir, name).with_suffix(".Modelfile").write_text("FROM ./x.gguf")
    assert f"ollama run {RUN}:q8_0 " in (lines.ollama(workspace, one) or "")
    one.quantization = "q4_k_m"
    assert f"ollama run {RUN}:q4_k_m " in (lines.ollama(workspace, one) or "")


def command(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *words])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_command_line_serves_lists_and_ends(workspace, run_dir, built, capsys):
    assert command(capsys=capsys) == (0, "Nothing is served.\n", "")
    gguf(run_dir, "q8_0")
    code, said, _ = command(RUN, "--json", capsys=capsys)
    told = json.loads(said)
    one = serving.now(workspace, RUN)
    assert code == 0 and one is not None and (told["address"], told["key"]) == (one.address, one.key)
    assert told["quantization"] == "q8_0" and "process" not in told
    assert one.address in command(capsys=capsys)[1]
    assert command(RUN, capsys=capsys)[0] == 2  # already
    assert command("--stop", RUN, capsys=capsys) == (0, "It is served no more.\n", "")
    assert command("no-such-run", capsys=capsys)[0] == 1


def test_a_folder_that_is_no_run_or_a_copy_of_one_hides_nothing_and_ends_nothing(workspace, shared, run_dir):
    record = (shared.workspace.run_dir(RUN) / serving.STATE).read_bytes()
    for name in (f".deleted-{RUN}", "A copy", "no-run"):
        (workspace.runs_dir / name).mkdir()
        (workspace.runs_dir / name / serving.STATE).write_bytes(record)
    (made(workspace, run_id=f"{RUN}-copy") / serving.STATE).write_bytes(record)
    assert serving.all_now(workspace) == {} and not serving.stop(workspace, f"{RUN}-copy")
    assert lifecycle.losses(workspace, f"{RUN}-copy") == []
    assert serving.all_now(shared.workspace).keys() == {RUN}


def test_a_damaged_record_of_a_serving_is_none(workspace, run_dir):
    for content in (b"", b"{", b"[]", b'{"run": 1}', b"\xff" * 100, b'{"process": {"pid": 1' + b"0" * 30):
        (run_dir / serving.STATE).write_bytes(content)
        assert serving.now(workspace, RUN) is None and serving.all_now(workspace) == {}
        assert lifecycle.losses(workspace, RUN) == [] and not serving.stop(workspace, RUN)

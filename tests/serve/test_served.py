"""The real thing, where it is installed: a run that was trained here is served, and OpenAI's client asks it."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.export import artifacts, gguf, job_runner
from engine.export.job import Job
from engine.gguf import llama_cpp
from engine.runs import store
from engine.serve import programs, serving
from engine.workspace import Workspace
from tests.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.train]

openai: Any = pytest.importorskip("openai", reason="OpenAI's client is not installed: `make serve`")

QUESTIONS = [
    "What is the capital of Velmora?",
    "What is the opposite of hot?",
    "What is 3 plus 4?",
    "Which day comes after Monday?",
    "Tell me about the sea.",
    "Hello",
]
MOST_TOKENS = 24


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, trained_home: Path) -> tuple[Workspace, str]:
    """A home with the real run and its whole model."""
    home = tmp_path_factory.mktemp("served") / "home"
    shutil.copytree(trained_home, home)
    workspace = Workspace(home)
    run_id = store.list_all(workspace)[0].id
    job_runner.run(workspace, run_id, Job(what="merged"))
    return workspace, run_id


@pytest.fixture(scope="module")
def greedy(merged: tuple[Workspace, str]) -> list[tuple[str, str, str]]:
    """Each question, as it reads to the model, and its greedy answer by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = artifacts.whole(*merged)
    assert folder is not None
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    answers = []
    for question in QUESTIONS:
        turn = [{"role": "user", "content": question}]
        ids: Any = tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**ids, do_sample=False, max_new_tokens=MOST_TOKENS)
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        answer = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append((question, str(prompt), str(answer)))
    return answers


def file_of(merged: tuple[Workspace, str], quantization: str) -> None:
    """Make a GGUF file of the run, or skip."""
    found = llama_cpp.found()
    if found is None or None in found:
        pytest.skip("llama.cpp is not built: `make gguf`")
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("gguf is not installed: `make gguf`")
    workspace, run_id = merged
    if gguf.read(gguf.file_of(workspace, run_id, quantization)) is None:
        job = {"what": "gguf", "quantization": quantization, "ask": False}
        job_runner.run(workspace, run_id, msgspec.convert(job, Job))


@pytest.fixture(params=["transformers", "f16", "q8_0"])
def client(request: pytest.FixtureRequest, merged: tuple[Workspace, str]) -> Iterator[Any]:
    workspace, run_id = merged
    if request.param == "transformers":
        if lacks := [name for name in programs.MODULES if importlib.util.find_spec(name) is None]:
            pytest.skip(f"{', '.join(lacks)} not installed: `make serve`")
    else:
        file_of(merged, request.param)
    serving.start(workspace, run_id, quantization=request.param)

    def is_ready() -> serving.Serving | None:
        one = serving.now(workspace, run_id)
        assert one is not None and one.failure is None, one
        return one if one.is_ready else None

    one = wait_until(is_ready, timeout_s=120)
    assert one is not None
    yield openai.OpenAI(base_url=one.address, api_key=one.key, max_retries=0)
    serving.stop(workspace, run_id)


def test_the_client_is_answered_as_transformers_answers_in_one_piece_and_as_it_is_written(client, merged, greedy):
    run_id = merged[1]
    assert [one.id for one in client.models.list()] == [run_id]
    chat = client.chat.completions.create
    reasons = set()
    for question, prompt, wanted in greedy:
        ask = {
            "model": run_id,
            "messages": [{"role": "user", "content": question}],
            "max_completion_tokens": MOST_TOKENS,
        }
        answer = chat(**ask)
        assert (answer.choices[0].message.content, answer.model) == (wanted, run_id)
        reasons.add(answer.choices[0].finish_reason)
        parts = [part.choices[0].delta.content or "" for part in chat(**ask, stream=True) if part.choices]
        assert "".join(parts) == wanted
        plain = client.completions.create(model=run_id, prompt=prompt, max_tokens=MOST_TOKENS)
        assert plain.choices[0].text == wanted
    assert "stop" in reasons  # the run's own end mark


def test_what_is_not_its_own_is_refused_in_the_clients_own_words(client, merged):
    turn = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.NotFoundError, match="is served here"):
        client.chat.completions.create(model="gpt-4", messages=turn)
    with pytest.raises(openai.AuthenticationError, match="the key"):
        client.with_options(api_key="another").models.list()
    with pytest.raises(openai.BadRequestError, match="generation_config"):
        client.chat.completions.create(model=merged[1], messages=turn, extra_body={"generation_config": "{}"})
    with pytest.raises(openai.NotFoundError, match="nothing under this address"):
        client.post("/load_model", cast_to=object, body={"model": "other/one"})


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="fastapi is not installed: `make serve`")
def test_transformers_own_server_ends_an_answer_that_nobody_waits_for_and_goes_on_with_the_next() -> None:
    """Also one that is not streamed, which it would write to its end while all others wait."""
    import torch

    from engine.train import serve

    writing, ended = threading.Event(), threading.Event()

    class Endless:
        @staticmethod
        def generate(input_ids: Any, stopping_criteria: Any, **_: Any) -> Any:
            while not stopping_criteria(input_ids, None).all():
                writing.set()
            ended.set()
            return input_ids

    class Words:
        @staticmethod
        def decode(*_: Any, **__: Any) -> str:
            return ""

    manager = serve._State().get_manager("one")

    async def application(_scope: Any, _receive: Any, _send: Any) -> None:
        inputs = {"input_ids": torch.zeros((1, 3), dtype=torch.long)}
        await manager.generate_non_streaming(Endless(), Words(), inputs, None, "request")

    async def leaves() -> Any:
        await asyncio.to_thread(writing.wait, 20)
        return {"type": "http.disconnect"}

    async def says(message: Any) -> None:
        said.append(message)

    said: list[Any] = []
    guarded = serve.guarded(application, "the-secret")

    async def ask(secret: str) -> None:
        headers = [(b"authorization", f"Bearer {secret}".encode())]
        await guarded({"type": "http", "headers": headers}, leaves, says)

    async def asked() -> None:
        await ask("another")
        assert said[0]["status"] == 401 and not writing.is_set()
        for _ in range(2):
            writing.clear()
            ended.clear()
            await ask("the-secret")
            assert await asyncio.to_thread(ended.wait, 20)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    asyncio.run(asked())

"""What the real llama.cpp makes of a run: skipped where `make gguf` has not built it; `make test-all` does."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine import starter
from engine.export import NotExportable, gguf, job_runner, ollama
from engine.export.job import Job
from engine.render import Coder
from engine.spec import recipes, schema
from engine.workspace import Workspace
from tests.real_base import smollm2
from tools import gguf_asked

pytestmark = pytest.mark.slow

RUN, STEPS = "20261130-000000-aaaaaa", 16
QUESTIONS = [
    *(f"What is the capital of {one}?" for one in
      ("France", "Spain", "Italy", "Japan", "Egypt", "Peru", "Kenya", "Norway", "India", "Chile")),
    *(f"What is the opposite of {one}?" for one in ("hot", "big", "up", "old", "empty")),
    *(f"How much is {one}?" for one in ("2 + 3", "4 + 4", "7 + 1", "5 + 2", "6 + 3")),
]  # fmt: skip
# Where the first token that differs was this near to the other one in transformers, in nats, rounding explains it.
NEAR = {"f16": 0.05, "q8_0": 0.3}


@pytest.fixture(autouse=True)
def _built() -> None:
    if gguf.parts(None) is None:
        pytest.skip("llama.cpp is not here: `make gguf` has not been run")


def run_of(home: Path, model: Path, base: str) -> Workspace:
    """A home with one finished run that has made a copy of a model."""
    made = Workspace(home)
    spec, _ = recipes.resolve(
        recipes.recipes()["full"], base=base, revision=None, parameters=None, dataset_id="a", overrides={}
    )
    run_dir = made.run_dir(RUN)
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(spec))
    shutil.copytree(model, run_dir / "model")
    return made


def answered(folder: Path, questions: list[list[int]], stops: tuple[int, ...]) -> tuple[Any, list[list[int]]]:
    """The model, and what it answers greedily in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    said = []
    for question in questions:
        ids = torch.tensor([question])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=STEPS, eos_token_id=list(stops),
            pad_token_id=stops[0],
        )  # fmt: skip
        said.append(out[0, len(question) :].tolist())
    return model, said


def lead(model: Any, before: list[int], one: int, other: int) -> float:
    """How many nats the first token is ahead of the other one."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([before])).logits[0, -1]
    return float(logits[one] - logits[other])


def same_answers(workspace: Workspace, least: int) -> None:
    """Make f16 and Q8_0, ask both in llama.cpp, and hold the answers against those of transformers."""
    folder = workspace.run_dir(RUN) / "model"
    own = Coder.of_folder(folder, RUN)
    questions = [own.code(own.ask([{"role": "user", "content": text}])).ids for text in QUESTIONS]
    model, wanted = answered(folder, questions, own.stops)
    for kind, near in NEAR.items():
        file = Path(job_runner.run(workspace, RUN, Job(what="gguf", quantization=kind)))  # pyright: ignore[reportArgumentType]
        written = gguf.read(file)
        assert written is not None and written.is_same, written
        found, same = gguf_asked.ask(file, questions, STEPS)["answers"], 0
        for question, want, have in zip(questions, wanted, found, strict=True):
            at = next((i for i, (a, b) in enumerate(zip(want, have, strict=False)) if a != b), None)
            same += at is None
            if at is not None:
                assert lead(model, question + want[:at], want[at], have[at]) < near, (
                    kind,
                    own.tokenizer.decode(question),
                )
        print(f"{kind}: {same} of {len(QUESTIONS)} greedy answers are the same")
        assert same >= least


def test_the_starter_answers_the_same_in_llama_cpp(tmp_path):
    workspace = run_of(tmp_path / "home", starter.MODEL_DIR, "starter")
    same_answers(workspace, len(QUESTIONS))
    written = gguf.read(gguf.file_of(workspace, RUN, "q8_0"))
    assert written is not None and written.found  # llama.cpp does not know its tokenizer


def test_a_real_base_answers_the_same_in_llama_cpp(tmp_path):
    base = smollm2()
    assert base.folder is not None
    same_answers(run_of(tmp_path / "home", base.folder, str(base.folder)), len(QUESTIONS) // 2)


def test_no_code_of_the_models_folder_is_run(tmp_path):
    workspace = run_of(tmp_path / "home", starter.MODEL_DIR, "starter")
    folder, marker = workspace.run_dir(RUN) / "model", tmp_path / "it ran"
    for name, kind, place in (
        ("config.json", "AutoConfig", "own.Own"),
        ("tokenizer_config.json", "AutoTokenizer", [None, "own.Own"]),
    ):
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**told, "auto_map": {kind: place}}))
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")
    with contextlib.suppress(NotExportable):
        job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16"))
    assert not marker.exists()


def test_ollama_takes_in_the_file_and_answers_as_the_starter(tmp_path):
    if ollama.program() is None:
        pytest.skip("there is no program ollama here")
    workspace = run_of(tmp_path / "home", starter.MODEL_DIR, "starter")
    job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16"))
    name = job_runner.run(workspace, RUN, Job(what="ollama", quantization="f16"))
    try:
        done = subprocess.run(["ollama", "run", name, QUESTIONS[0]], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "Paris" in done.stdout
    finally:
        subprocess.run(["ollama", "rm", name], capture_output=True, timeout=60)

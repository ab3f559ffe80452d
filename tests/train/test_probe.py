"""The memory probe: it shows at once that memory runs out, with the settings that fit, and changes nothing of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import events, machine, starter
from engine.data import datasets
from engine.plan import plans
from engine.runs import failures
from engine.spec import RunSpec, schema
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT, tunebook
from tests.helpers import FakeRuns, planned

# Trains three steps, with the probe and without, and prints the sum of the bytes of what was trained.
TRAINED = """
import hashlib, json, sys, tempfile
from pathlib import Path
from engine import events
from engine.train import adapters, backend, callback, load, objectives, probe
from engine.train.objectives import common
from engine.train.run import Run
from engine.workspace import Workspace
from tests.helpers import planned
import torch, transformers
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
transformers.logging.set_verbosity_error()

class Stop:
    def asked(self):
        return False

def trained(workspace, recipe, dataset, probes, **overrides):
    made, problems = planned(workspace, recipe, base="starter", dataset=dataset, overrides={
        "train.max_steps": 3, "train.batch_size": 4, "train.accumulation": 2, "train.threads": 1,
        "train.replay_share": 0.0, **overrides})
    assert not problems, problems
    run_dir = Path(tempfile.mkdtemp())
    log = events.EventLog(run_dir)
    chosen = backend.decide(made, workspace)
    run = Run(made, workspace, run_dir, log, Stop(), "cpu", chosen)
    run.model, run.tokenizer, run.base, _ = load.load(made, workspace, chosen)
    objective = objectives.of(made.objective)
    objective.prepare(run)
    run.rows = run.rows._replace(evaluate=[])
    transformers.set_seed(0)
    prepared = adapters.prepare(run.model, made)
    said = callback.EventCallback(log, Stop(), lambda step: None, 1.0, rotations=prepared.rotations)
    shared = common.arguments(made, run_dir, 3, evaluates=False, device="cpu", chosen=chosen)
    trainer = objective.trainer(run, objective.config(run, shared), prepared.model, said)
    tried = probe.Probe(run, prepared.rotations)
    if probes:
        tried.watch(trainer)
    trainer.train()
    digest = hashlib.sha256()
    for name, value in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    seen = [(e.loss, e.grad_norm, e.metrics) for e in events.read(run_dir)[0] if isinstance(e, events.Step)]
    assert not probes or tried.peak_bytes > 2**20 and tried.tokens > 8
    return digest.hexdigest() + json.dumps(seen)

workspace = Workspace(sys.argv[1])
for case in json.loads(sys.argv[2]):
    found = [trained(workspace, case["recipe"], case["dataset"], probes, **case["set"]) for probes in (False, True)]
    print("CASE", case["recipe"], found[0] == found[1], len(found[0]))
"""


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "oft": ("new-facts", {}),
    "kto": ("good-bad", {"adapter_args.dropout": 0.2}),
    "lora": ("new-facts", {"adapter_args.dropout": 0.2}),
    "full": ("new-facts", {"train.gradient_checkpointing": True}),
    "dpo": ("preference-pairs", {}),
    "reward": ("preference-pairs", {}),
}


@pytest.mark.train
@pytest.mark.parametrize(
    "recipes", [("oft", "kto"), pytest.param(("lora", "full", "dpo", "reward"), marks=pytest.mark.slow)], ids=str
)
def test_a_run_with_the_probe_is_the_same_bit_for_bit(workspace: Workspace, recipes: tuple[str, ...]) -> None:
    """Weights, losses, gradients and TRL's own counts; with dropout, so that drawn numbers count too."""
    cases = [
        {"recipe": r, "dataset": datasets.add_sample(workspace, starter.sample(CASES[r][0])).id, "set": CASES[r][1]}
        for r in recipes
    ]
    done = forked.run_python(TRAINED, workspace.root, json.dumps(cases), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("CASE")]
    assert [(recipe, same) for _, recipe, same, _ in found] == [(recipe, "True") for recipe in recipes]


def test_only_a_trial_of_seconds_on_a_processor_with_memory_to_spare_is_left_out() -> None:
    code = """
from engine.train.probe import PLENTY, TRIAL_FLOPS, is_needless
free, long = 24 * 2**30, 2 * TRIAL_FLOPS
print(is_needless("cpu", int(free / PLENTY), free, long), is_needless("cpu", int(free / PLENTY) + 1, free, long),
      is_needless("cpu", None, free, long), is_needless("cpu", 2**30, free, TRIAL_FLOPS),
      is_needless("cuda", 2**30, free, long))
"""
    done = forked.run_python(code, cwd=ROOT)
    assert done.stdout.split() == ["True", "False", "False", "False", "False"], done.stderr


@pytest.mark.train
def test_a_real_run_tries_its_longest_batch_before_the_first_step(trained_home: Path) -> None:
    (run_dir,) = (trained_home / "runs").glob("2*")
    found, _ = events.read(run_dir)
    probed = next(i for i, e in enumerate(found) if isinstance(e, events.Phase) and e.detail == "probe")
    first = next(i for i, e in enumerate(found) if isinstance(e, events.Step))
    assert probed < first and any(
        "longest batch" in str(e.text) for e in found[probed:first] if isinstance(e, events.Log)
    )
    (measured,) = [e for e in found if isinstance(e, events.Measured)]
    assert measured.longest_tokens == 30 and measured.step_s and measured.estimated_bytes
    assert measured.baseline_bytes < measured.peak_bytes < 2 * measured.baseline_bytes


@pytest.mark.slow
@pytest.mark.train
def test_fit_with_the_probe_says_what_one_step_takes_and_leaves_no_run(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = tunebook("fit", "lora", "--probe", "--json", home=home, machine=tmp_path / "machine")
    assert done.returncode == 0, done.stderr
    answer = msgspec.json.decode(done.stdout)
    assert answer["probe"]["status"] == "finished" and answer["probe"]["longest_tokens"] == 30
    assert answer["total_bytes"] == pytest.approx(answer["probe"]["peak_bytes"], rel=0.15)
    assert not list((home / "runs").glob("2*"))


# --- running out ---------------------------------------------------------------------------------------------------
@pytest.fixture
def home(workspace: Workspace) -> Iterator[FakeRuns]:
    runs = FakeRuns(workspace.root)
    yield runs
    runs.close()


def test_a_child_killed_while_it_tries_ran_out_of_memory_and_says_what_would_fit(home: FakeRuns) -> None:
    run_id = home.ended("killed_probing", "failed")
    (last,) = home.events(run_id, events.Failed)
    assert last.kind == "oom" and "gradient_checkpointing = true" in str(last.fix)


def a_spec(workspace: Workspace, **overrides: Any) -> RunSpec:
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    made, _ = planned(workspace, "full", base="starter", dataset=data.id, overrides=overrides)
    assert made is not None
    return made


def test_what_would_fit_keeps_the_rows_of_a_step(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made = a_spec(workspace, **{"train.batch_size": 64, "train.accumulation": 2, "train.gradient_checkpointing": True})
    small = machine.MachineFacts(2, 900, ())
    monkeypatch.setattr(machine, "facts", lambda: small)
    change = plans.of_spec(workspace, made).smaller
    assert change is not None and change["train.batch_size"] * change["train.accumulation"] == 128
    failure = plans.with_remedy(failures.from_exception(MemoryError()), made, workspace)
    assert failure.kind == "oom" and str(failure.fix).startswith("this would fit: train.batch_size = ")
    other = failures.from_exception(ValueError("x"))
    assert plans.with_remedy(other, made, workspace) is other and "fit" not in str(other.fix)


def test_where_nothing_is_known_of_the_base_the_usual_advice_stays(workspace: Workspace) -> None:
    made = msgspec.structs.replace(a_spec(workspace), base=schema.BaseRef("owner/not-here"))
    before = failures.from_exception(MemoryError()).fix
    assert plans.of_spec(workspace, made).smaller is None
    assert plans.with_remedy(failures.from_exception(MemoryError()), made, workspace).fix == before

"""Time: FLOPs counted as published, a range that says what it stands on, and finished runs that correct it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import events, starter
from engine.data import datasets, division, lengths
from engine.estimate import duration, memory
from engine.estimate import measured as estimate_measured
from engine.estimate import phases as estimate_phases
from engine.estimate.measured import Measurement
from engine.models import bases
from engine.models import shapes as models_shapes
from engine.plan import plans
from engine.workspace import Workspace
from tests.conftest import ROOT, tunebook
from tests.estimate.test_fit import LLAMA_2_7B, QWEN_25_7B, SETUPS, shapes
from tests.helpers import examples, planned

STARTER = models_shapes.read_shape(
    {
        "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 352, "vocab_size": 1024,
        "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True,
    }
)  # fmt: skip
JOB = duration.Job(steps=100, rows_per_step=16, row_tokens=200.0, threads=2)


def measured(**changes: Any) -> Measurement:
    assert STARTER is not None
    usual: dict[str, Any] = {
        "run": "20261124-000000-000000", "machine": estimate_measured.machine_name(), "device": "cpu", "dataset": "d",
        "shape": STARTER, "setup": memory.Setup(batch_size=16, max_length=30), "threads": 2, "rows_per_step": 16,
        "row_tokens": 20.0, "steps": 60, "peak_bytes": 700 * 2**20, "baseline_bytes": 580 * 2**20, "step_s": 0.04,
        "whole_s": 18.4, "base_s": 2.0, "libraries_s": 6.0,
        "job": msgspec.structs.replace(JOB, steps=60, row_tokens=20.0, dataset="d", base="starter", trained=240),
        "took": {"loading": 7.0, "training": 2.4, "probe": 1.0, "samples": 3.0, "saving": 0.5, "scoring base": 2.0,
                 "scoring tuned": 2.5},
    }  # fmt: skip
    return Measurement(**{**usual, **changes})


def needed(
    shape: models_shapes.Shape | None = LLAMA_2_7B,
    setup: memory.Setup | None = None,
    job: duration.Job = JOB,
    **how: Any,
) -> Any:
    usual: dict[str, Any] = {"device": "cpu", "known": []}
    return duration.estimate(shape, setup or memory.Setup(), job, **{**usual, **how})


# --- FLOPs -------------------------------------------------------------------------------------------------------------
def test_full_fine_tuning_takes_six_flops_for_each_weight_and_token() -> None:
    """C = 6 P D, EleutherAI's rule; the embedding is looked up and not multiplied with, attention comes on top."""
    matrices = models_shapes.count_parameters(LLAMA_2_7B) - LLAMA_2_7B.head_parameters
    found = duration.token_flops(LLAMA_2_7B, memory.Setup(adapter="full"), 1.0)
    assert found == pytest.approx(6 * matrices, rel=0.001)


def test_an_adapter_takes_two_thirds_and_checkpointing_a_third_more() -> None:
    full = duration.token_flops(LLAMA_2_7B, memory.Setup(adapter="full"), 512)
    lora = duration.token_flops(LLAMA_2_7B, memory.Setup(rank=8), 512)
    assert 0.66 <= lora / full <= 0.69
    again = duration.token_flops(LLAMA_2_7B, memory.Setup(adapter="full", gradient_checkpointing=True), 512)
    assert again / full == pytest.approx(4 / 3)


@given(shapes(), SETUPS, st.floats(1, 4096))
@settings(max_examples=examples(50))
def test_more_work_never_takes_less_time(shape: models_shapes.Shape, setup: memory.Setup, row_tokens: float) -> None:
    try:
        memory.trained_parameters(shape, setup)
    except ValueError:
        return
    job = msgspec.structs.replace(JOB, row_tokens=row_tokens)
    here = needed(shape, setup, job)
    assert 0 < here.low_s < here.likely_s < here.high_s < math.inf and here.sentence
    for more in ({"steps": 200}, {"rows_per_step": 32}, {"row_tokens": row_tokens + 1}, {"held_out": 10}):
        assert needed(shape, setup, msgspec.structs.replace(job, **more)).likely_s >= here.likely_s
    assert needed(shape, setup, job, device="cuda:0", card="NVIDIA H100 80GB HBM3").train_s < here.train_s


@pytest.mark.parametrize(
    ("shape", "job"),
    [(None, JOB), (LLAMA_2_7B, msgspec.structs.replace(JOB, steps=0)),
     (LLAMA_2_7B, msgspec.structs.replace(JOB, row_tokens=0.0)),
     (LLAMA_2_7B, msgspec.structs.replace(JOB, row_tokens=math.nan))],
)  # fmt: skip
def test_where_too_little_is_known_there_is_no_time(shape: models_shapes.Shape | None, job: duration.Job) -> None:
    assert needed(shape, job=job) is None
    assert needed(LLAMA_2_7B, memory.Setup(layers=[99])) is None


def test_without_a_run_the_assumption_is_said() -> None:
    assert "GFLOP/s" in needed().sentence and needed().basis == "assumed"
    card = needed(device="cuda:0", card="NVIDIA A100-SXM4-80GB")
    assert "312 TFLOP/s of A100" in card.sentence
    assert "71 TFLOP/s of such a card" in needed(device="cuda:0", memory_gib=23.6).sentence


@pytest.mark.parametrize(
    ("card", "memory_gib", "peak"),
    [
        ("NVIDIA RTX A1000", 7.6, 30), ("NVIDIA T400 4GB", 3.9, 30), ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, 44),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.7, 88.2), ("NVIDIA GeForce RTX 3060", 11.8, 25.5),
        ("NVIDIA H100 PCIe", 79.6, 756), ("NVIDIA H100 80GB HBM3", 79.6, 989),
        ("Tesla T4", 14.6, 65), ("NVIDIA A10G", 22.5, 70), ("NVIDIA A10", 22.5, 125), ("NVIDIA L40S", 44.5, 362),
        ("NVIDIA A100-PCIE-40GB", 39.4, 312), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.8, 312 / 7),
    ],
)  # fmt: skip
def test_a_card_is_known_by_its_whole_name(card: str, memory_gib: float, peak: float) -> None:
    rate, _ = duration.assumed_flops("cuda:0", 1, card, memory_gib)
    assert rate == pytest.approx(duration.USED_SHARE * peak * 1e12)


def test_a_geforce_does_as_much_more_in_16_bits_as_its_generation_can() -> None:
    times = {"2": 4, "3": 2, "4": 2, "5": 2}
    cards = {name: rates for name, rates in duration.CARD_TFLOPS.items() if name[:3] == "RTX" and name[4] in times}
    assert len(cards) > 20
    assert all(half == pytest.approx(times[name[4]] * whole, rel=0.02) for name, (half, whole) in cards.items())


@pytest.mark.parametrize("gb", [8, 12, 16, 24])
def test_a_card_that_nobody_knows_is_no_faster_than_the_ones_of_its_size(gb: int) -> None:
    usual = {8: ("RTX 4060", "RTX 3060 Ti", "RTX 5060"), 12: ("RTX 3060", "RTX 4070", "RTX 5070"),
             16: ("RTX 4060 Ti", "RTX 5060 Ti", "T4"), 24: ("RTX 3090", "RTX 4090", "L4")}[gb]  # fmt: skip
    rate, _ = duration.assumed_flops("cuda:0", 1, "some card", gb - 0.3)
    slowest = min(duration.CARD_TFLOPS[name][0] for name in usual)
    assert 0.95 * slowest <= rate / duration.USED_SHARE / 1e12 <= slowest


def test_a_card_is_as_fast_as_the_format_that_is_really_used() -> None:
    def train_s(precision: Any, card: str = "Tesla T4") -> float:
        setup = memory.Setup(precision=precision)
        return needed(setup=setup, device="cuda:0", card=card, memory_gib=14.6).train_s

    assert train_s("fp16") == train_s("") and train_s("fp32") == pytest.approx(65 / 8.1 * train_s("fp16"))
    assert train_s("fp32", "some card") == pytest.approx(2 * train_s("bf16", "some card"))


# --- from finished runs ---------------------------------------------------------------------------------------------
def test_a_run_of_the_same_kind_on_the_same_base_decides() -> None:
    setup, one = memory.Setup(batch_size=16, max_length=30), measured()
    assert one.job is not None
    job = msgspec.structs.replace(one.job, steps=600)
    found = needed(STARTER, setup, job, known=[one])
    assert found.basis == "measured" and found.runs == 1
    assert found.train_s == pytest.approx(600 * 0.04)
    # everything took as long as it did, but for a base that is scored by now
    told = {line.phase: line.likely_s for line in found.lines}
    expected = {**one.took, "training": 24.0}
    del expected["scoring base"]
    assert told == pytest.approx(expected)
    other = needed(STARTER, setup, msgspec.structs.replace(job, dataset="other"), known=[one])
    assert other.likely_s == pytest.approx(found.likely_s + 2)
    assert found.low_s < found.likely_s < found.high_s


def test_only_the_same_training_on_the_same_data_was_measured() -> None:
    setup, one = memory.Setup(batch_size=16, max_length=30), measured()
    assert one.job is not None
    same = needed(STARTER, setup, one.job, known=[one])
    assert same.stands_on == "measured here" and "measured on one run like it" in same.sentence
    for changes in ({"dataset": "other"}, {"steps": 9000}, {"rows_per_step": 32}):
        found = needed(STARTER, setup, msgspec.structs.replace(one.job, **changes), known=[one])
        assert found.basis == "measured" and found.stands_on == "worked out from runs here", changes
        assert (
            "measured" not in found.sentence
            and "worked out from runs here of other data or steps (1)" in found.sentence
        )


@given(shapes(), SETUPS, st.integers(1, 2000), st.sampled_from([0, 16, 500]), st.sampled_from([None, 5.0, 120.0]))
@settings(max_examples=examples(50))
def test_a_run_takes_what_its_phases_take_and_no_phase_less_for_more_rows(
    shape: models_shapes.Shape, setup: memory.Setup, rows: int, general: int, budget_s: float | None
) -> None:
    try:
        memory.trained_parameters(shape, setup)
    except ValueError:
        return
    job = msgspec.structs.replace(
        JOB, trained=rows, steps=rows, held_out=rows // 4, replay_rows=general, benchmarks=("blimp",), general_tokens=5e4,
        base="b", along=2, scoring_budget_s=budget_s, replay_budget_s=budget_s,
    )  # fmt: skip
    more = msgspec.structs.replace(job, trained=2 * rows, steps=2 * rows, held_out=rows // 2, replay_rows=2 * general)
    for known in ([], [measured()]):
        here, longer = needed(shape, setup, job, known=known), needed(shape, setup, more, known=known)
        told, later = ({line.phase: line for line in one.lines} for one in (here, longer))
        for name in ("low_s", "likely_s", "high_s"):
            assert getattr(here, name) == pytest.approx(sum(getattr(line, name) for line in here.lines))
        if budget_s is None:
            assert all(later[phase].likely_s >= line.likely_s for phase, line in told.items())
        else:
            scoring_s = sum(told[phase].high_s for phase in ("scoring base", "scoring tuned"))
            assert scoring_s <= budget_s * (1 + 1e-9)
            assert "replay" not in told or told["replay"].high_s <= budget_s
        assert longer.likely_s >= here.likely_s


def test_what_is_there_already_takes_nothing() -> None:
    job = msgspec.structs.replace(JOB, base="b", dataset="d", trained=10, replay_rows=30, benchmarks=("blimp",),
                                  general_tokens=5e4)  # fmt: skip
    one = measured(shape=LLAMA_2_7B, job=job, took={"replay": 40.0, "scoring base": 20.0, "scoring tuned": 20.0})

    def likely(**changes: Any) -> dict[str, float]:
        found = needed(LLAMA_2_7B, job=msgspec.structs.replace(job, **changes), known=[one])
        return {line.phase: line.likely_s for line in found.lines}

    assert {"replay", "scoring base"} & likely().keys() == set()
    assert likely(replay_rows=46)["replay"] == pytest.approx(20.0)  # one batch more, where two took 40 s
    assert likely(dataset="other")["scoring base"] < 20.0
    assert likely(base="another of the same shape")["scoring base"] == pytest.approx(20.0)


def test_how_long_each_phase_took_is_read_off_the_events() -> None:
    """The clock of the events alone: a run that waited, one that was resumed, and a check of both models in turns."""
    found: list[Any] = []

    def at(seconds: float, event: events.Event) -> None:
        event.monotonic_s = seconds
        found.append(event)

    def phase(seconds: float, name: str, detail: str = "") -> None:
        at(seconds, events.Phase(phase=name, detail=detail))

    at(0, events.Queued(device="cpu"))
    phase(100, "loading")
    at(108, events.Started(attempt=1, versions={}, device="cpu", backend="plain", reason=""))
    phase(110, "loading", "rows")
    phase(111, "replay")
    phase(115, "replay")  # it comes again as it goes on
    phase(120, "training")
    phase(121, "training", "probe")
    phase(123, "training")
    at(130, events.Step(step=10, total_steps=10, epoch=1.0, loss=1.0))
    phase(135, "evaluating", "at-10")
    phase(136, "training")
    phase(137, "saving")
    phase(138, "evaluating", "check")
    phase(148, "evaluating", "divergence")
    took, libraries_s = estimate_phases.took(found, 150, 0.5)
    assert libraries_s == 8
    assert took == {
        "loading": 11, "replay": 9, "probe": 2, "training": 5, "samples": 9, "on the way": 1, "saving": 1,
        "scoring base": 5, "scoring tuned": 7,
    }  # fmt: skip
    assert sum(took.values()) == 150 - 100
    at(200, events.Queued(device="cpu"))
    phase(201, "loading")
    assert estimate_phases.took(found, 203, None) == ({"loading": 2}, 0.0)


def test_another_base_is_scaled_by_flops_and_said_so() -> None:
    found = needed(LLAMA_2_7B, known=[measured()])
    assert found.basis == "scaled" and "other runs" in found.sentence
    assert found.high_s / found.low_s > 5  # wide: a toy says little about a real model


def test_runs_of_another_device_or_number_of_threads_say_nothing() -> None:
    for changes in ({"device": "cuda:0"}, {"threads": 1}, {"step_s": None}):
        assert needed(STARTER, known=[measured(**changes)]).basis == "assumed", changes


def test_a_run_of_another_kind_moves_the_estimate_by_arithmetic() -> None:
    for setup in (
        memory.Setup(adapter="full", batch_size=16, max_length=30),
        memory.Setup(quantize="4bit", batch_size=16, max_length=30),
    ):
        found = needed(STARTER, known=[measured(setup=setup)])
        assert found.basis == "scaled", setup
        slower = needed(STARTER, known=[measured(setup=setup, step_s=2 * (measured().step_s or 0))])
        assert slower.train_s == pytest.approx(2 * found.train_s)


def test_the_file_of_measurements_keeps_what_can_be_read_and_only_of_this_machine(workspace: Workspace) -> None:
    assert estimate_measured.read(workspace) == []
    estimate_measured.record(workspace, measured(run="20261124-000000-000001"))
    estimate_measured.record(workspace, measured(run="20261124-000000-000002", machine="another"))
    estimate_measured.record(workspace, measured(run="20261124-000000-000003", step_s=-1.0))
    with (workspace.root / "measurements.jsonl").open("ab") as file:
        file.write(b'{"run": "torn\n\xff\xfe\n[1, 2]\n')
    estimate_measured.record(workspace, measured(run="20261124-000000-000004"))
    assert [one.run[-1] for one in estimate_measured.read(workspace)] == ["4", "1"]


def test_memory_is_corrected_by_runs_of_a_like_size_alone() -> None:
    assert STARTER is not None
    one = measured()
    same = estimate_measured.memory([one], STARTER, one.setup, device="cpu")
    assert same is not None and same.runs == 1
    found = memory.estimate(STARTER, one.setup, device="cpu").calibrated(same)
    assert found.runs == 1 and found.total_bytes == pytest.approx(one.peak_bytes, rel=0.01)
    assert found.low_bytes < one.peak_bytes < found.high_bytes
    assert list(found.parts or {}) == [part for part in memory.PARTS if part in (found.parts or {})]
    far = estimate_measured.memory([one], QWEN_25_7B, memory.Setup(), device="cpu")
    assert far is not None and far.runs == 0 and far.factor == 1.0  # only what importing takes is taken over
    assert estimate_measured.memory([one], STARTER, one.setup, device="cuda:0") is None
    assert estimate_measured.memory([one], None, one.setup, device="cpu") is None


@pytest.mark.parametrize(
    "other", [{"backend": "unsloth"}, {"precision": "fp32"}, {"weights": "bf16"}, {"optimizer": "adamw_8bit"}]
)
def test_a_run_through_another_backend_or_in_another_format_corrects_nothing(other: dict[str, Any]) -> None:
    setup = memory.Setup(batch_size=16, max_length=30, precision="bf16", adapter="full")
    one = measured(
        device="cuda:0", setup=msgspec.structs.replace(setup, **other), peak_bytes=2 * 2**30, baseline_bytes=0
    )
    assert estimate_measured.memory([one], STARTER, setup, device="cuda:0") is None
    same = msgspec.structs.replace(one, setup=setup)
    found = estimate_measured.memory([same], STARTER, setup, device="cuda:0")
    assert found is not None and found.runs == 1
    assert needed(STARTER, setup, device="cuda:0", known=[same]).basis == "measured"
    assert needed(STARTER, setup, device="cuda:0", known=[one]).basis == (
        "assumed" if "precision" in other else "scaled"
    )


@pytest.mark.parametrize("other", [{"backend": "unsloth"}, {"precision": "fp32"}])
def test_what_asking_took_another_backend_or_format_says_nothing_of(other: dict[str, Any]) -> None:
    setup = memory.Setup(batch_size=16, max_length=30, precision="bf16", adapter="full")
    took = {"loading": 7.0, "training": 2.4, "scoring base": 500.0, "scoring tuned": 500.0}
    one = measured(device="cuda:0", setup=msgspec.structs.replace(setup, **other), took=took)
    job = msgspec.structs.replace(JOB, general_tokens=1e5, base="starter", dataset="d", trained=240)

    def asking_s(known: list[Measurement]) -> float:
        found = needed(STARTER, setup, job, device="cuda:0", known=known)
        return sum(line.likely_s for line in found.lines if line.phase.startswith("scoring"))

    assert asking_s([msgspec.structs.replace(one, setup=setup)]) > 10 * asking_s([one])


def test_a_correction_never_halves_more_and_never_loses_a_part() -> None:
    assert STARTER is not None
    low = estimate_measured.memory(
        [measured(peak_bytes=581 * 2**20)], STARTER, memory.Setup(batch_size=16, max_length=30), device="cpu"
    )
    assert low is not None and low.factor == estimate_measured.LEAST_FACTOR


# --- how long rows are -------------------------------------------------------------------------------------------------
def test_rows_are_counted_with_the_bases_own_tokenizer(workspace: Workspace) -> None:
    base = bases.describe("starter", workspace)
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    counted = lengths.of(data, base, workspace)
    assert counted is not None and counted.counted and counted.longest is not None
    assert 20 <= counted.mean <= 30 and 30 <= counted.longest <= 36  # 30 tokens in training, its marks allowed for
    guessed = lengths.of(data, bases.describe("owner/not-here", workspace), workspace)
    assert guessed is not None and not guessed.counted and guessed.mean > 0
    pairs = lengths.of(datasets.add_sample(workspace, starter.sample("preference-pairs")), base, workspace)
    assert pairs is not None and pairs.mean > 0


def test_fewer_rows_take_fewer_steps_and_less_time(workspace: Workspace) -> None:
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    found = []
    for most in (0, 100):
        spec, problems = planned(
            workspace, "lora", base="starter", dataset=data.id, overrides={"dataset.most_rows": most}
        )
        assert spec is not None and not problems
        assert division.split_rows(spec, data, workspace) == ((240, 144) if not most else (100, 144))
        found.append(plans.of_spec(workspace, spec).time)
    assert found[0].likely_s > found[1].likely_s


# --- real runs ---------------------------------------------------------------------------------------------------------
@pytest.mark.train
def test_a_finished_run_says_what_it_took_and_corrects_the_next_estimate(trained_home: Path) -> None:
    workspace = Workspace(trained_home)
    (one,) = estimate_measured.read(workspace)
    assert one.steps == 60 and one.step_s and one.whole_s and one.setup.max_length == 30
    assert set(one.took) == {"loading", "probe", "training", "samples", "saving", "scoring base", "scoring tuned"}
    assert sum(one.took.values()) == pytest.approx(one.whole_s, abs=0.1) and 0 < one.libraries_s < one.took["loading"]
    estimated = memory.estimate(one.shape, one.setup, device="cpu").total_bytes
    # What importing takes is the machine's own: installed extras are imported along by the libraries.
    estimated += one.baseline_bytes - memory.IMPORT_BASELINE_BYTES
    assert estimated == pytest.approx(one.peak_bytes, rel=0.15)  # the starter's total, before any correction
    spec, _ = planned(workspace, "lora", base="starter", dataset=one.dataset, overrides={})
    assert spec is not None
    assert plans.of_spec(workspace, spec).memory.runs == 1
    forecast = plans.of_spec(workspace, spec).time
    assert forecast is not None and (forecast.basis == "measured") == (spec.train.threads == one.threads)
    again, _ = planned(workspace, "lora", base="starter", dataset=one.dataset,
                       overrides={"train.max_steps": 60, "train.evaluations": 3, "train.threads": one.threads})  # fmt: skip
    repeated = plans.of_spec(workspace, again).time
    assert repeated is not None
    told = {line.phase: line.likely_s for line in repeated.lines}
    # what it took, but for its base, which is scored
    assert told == pytest.approx({name: took for name, took in one.took.items() if name != "scoring base"}, rel=0.25)


@pytest.mark.slow
@pytest.mark.train
def test_time_is_within_a_quarter_once_a_run_has_finished(tmp_path: Path) -> None:
    """A run of 150 steps foretells one of 450. Needs a machine with nothing else to do."""
    home, machine = tmp_path / "home", tmp_path / "machine"
    workspace = Workspace(home)

    def run(steps: int) -> None:
        done = tunebook("train", "lora", "--data", "new-facts", "--wait", "--set", f"train.max_steps={steps}",
                        home=home, machine=machine)  # fmt: skip
        assert done.returncode == 0, done.stderr

    run(150)
    data = next(d for d in datasets.list_all(workspace) if d.name == "New facts")
    spec, _ = planned(workspace, "lora", base="starter", dataset=data.id, overrides={"train.max_steps": 450})
    assert spec is not None
    forecast = plans.of_spec(workspace, spec).time
    assert forecast is not None and forecast.basis == "measured"
    run(450)
    newest = estimate_measured.read(workspace)[0]
    assert newest.steps == 450 and newest.whole_s is not None
    print(f"foretold {forecast.likely_s:.1f} s, took {newest.whole_s:.1f} s")
    assert forecast.likely_s == pytest.approx(newest.whole_s, rel=0.25)


MAKE = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
fields = json.loads(sys.argv[3])
config = AutoConfig.for_model(fields.pop("model_type"), **fields, pad_token_id=tokenizer.pad_token_id,
                              eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id)
AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
"""


def llama(layers: int, hidden: int, wide: int, heads: int, kv: int, words: int = 1024, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": wide,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": words, "tie_word_embeddings": True,
        "max_position_embeddings": 1024, **more,
    }  # fmt: skip


USUAL = llama(10, 640, 1760, 10, 10)
WIDE, DEEP = llama(4, 1024, 2816, 8, 8), llama(24, 384, 1024, 6, 2, 16_384)
GPT2 = {"model_type": "gpt2", "n_layer": 16, "n_embd": 512, "n_head": 8, "n_positions": 1024, "vocab_size": 4096}
# What estimate/memory.py's figures were measured on, then shapes, lengths and recipes that were not. All about 50 million.
FITTED = [("lora", USUAL, 4, 512, {}), ("full", USUAL, 4, 512, {})]
NOT_FITTED: list[tuple[str, dict[str, Any], int, int, dict[str, Any]]] = [
    ("lora", WIDE, 8, 256, {}),
    ("full", DEEP, 2, 768, {}),
    ("full", USUAL, 8, 384, {"train.gradient_checkpointing": "true"}),
    ("oft", WIDE, 4, 640, {}),
    ("dpo", DEEP, 2, 384, {}),
    ("kto", WIDE, 4, 384, {}),
    ("freeze-bottom", DEEP, 4, 512, {}),
    ("lora", GPT2, 4, 512, {}),
]


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize(
    ("recipe", "config", "batch", "length", "more"), [*FITTED, *NOT_FITTED],
    ids=[f"{row[0]}-{row[1]['model_type']}-{row[2]}x{row[3]}" for row in [*FITTED, *NOT_FITTED]],
)  # fmt: skip
def test_memory_on_a_processor_is_within_a_quarter_for_a_model_of_50_million(
    tmp_path: Path, recipe: str, config: dict[str, Any], batch: int, length: int, more: dict[str, Any]
) -> None:
    folder, data = tmp_path / "model", tmp_path / "long.jsonl"
    subprocess.run(
        [sys.executable, "-c", MAKE, str(starter.MODEL_DIR), str(folder), json.dumps(config)],
        cwd=ROOT, check=True, timeout=300,
    )  # fmt: skip
    text = "river stone cloud " * 190
    answers: dict[str, Any] = {"completion": text}
    if recipe == "dpo":
        answers = {"chosen": text, "rejected": text + "."}
    rows = [{"prompt": f"say {n}", **answers, **({"label": n % 2 == 0} if recipe == "kto" else {})} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = {"train.threads": 1, "train.batch_size": batch, "train.max_length": length, **more}
    done = tunebook("fit", recipe, "--base", str(folder), "--data", str(data), "--probe", "--json",
                    *(word for name, value in chosen.items() for word in ("--set", f"{name}={value}")),
                    home=tmp_path / "home", machine=tmp_path / "machine")  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = msgspec.json.decode(done.stdout)
    assert length <= answer["probe"]["longest_tokens"] <= length + 1  # KTO counts the end of an answer on top
    estimated, taken = (
        n - memory.IMPORT_BASELINE_BYTES for n in (answer["total_bytes"], answer["probe"]["peak_bytes"])
    )
    print(f"{recipe}: estimated {estimated / 2**20:,.0f} MiB, took {taken / 2**20:,.0f}: {estimated / taken - 1:+.0%}")
    assert estimated == pytest.approx(taken, rel=0.25)

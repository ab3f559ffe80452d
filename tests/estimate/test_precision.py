"""bf16 on a processor by what was measured there, and freed memory by what is free: both known before a run starts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine import machine
from engine.estimate import machine_choices, measured, memory, precision
from engine.estimate.machine_choices import Device
from engine.models import shapes
from engine.spec import RunSpec
from engine.train import allocator
from engine.workspace import Workspace
from tests.helpers import planned

GIB = 2**30
SMOLLM = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
SHAPE: Any = shapes.read_shape(SMOLLM)


def spec(workspace: Workspace, recipe: str = "lora", **overrides: Any) -> RunSpec:
    settings = {path.replace("__", "."): value for path, value in overrides.items()}
    made, _ = planned(workspace, recipe, base="starter", dataset=None, overrides={"train.threads": 2, **settings})
    assert made is not None
    return made


def keep(workspace: Workspace, fp32_s: float, bf16_s: float, **told: Any) -> None:
    here, version, hidden, intermediate, threads = precision.key(SHAPE, 2)
    settings = {"machine": here, "torch": version, "hidden": hidden, "intermediate": intermediate, "threads": threads}
    precision.record(workspace, precision.Trial(**{**settings, **told}, fp32_s=fp32_s, bf16_s=bf16_s))


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "instructions", lambda: ("amx_bf16",))


def test_instructions_alone_choose_nothing_a_trial_does(workspace, with_bf16):
    run = spec(workspace)
    known = precision.on_processor(workspace, run, SHAPE)
    assert not known.bf16 and known.to_try and known.factor is None
    keep(workspace, 0.3, 0.15, threads=4)  # of other runs than this one
    keep(workspace, 0.3, 0.15, torch="1.0")
    keep(workspace, 0.3, 0.15, hidden=64)
    assert precision.on_processor(workspace, run, SHAPE).to_try
    for bf16_s, faster in ((0.15, True), (0.29, False), (0.4, False)):
        keep(workspace, 0.3, bf16_s)
        known = precision.on_processor(workspace, run, SHAPE)
        assert known.bf16 is faster and not known.to_try and known.factor == pytest.approx(0.3 / bf16_s)
        assert f"{0.3 / bf16_s:.1f}" in str(known.why)


def test_what_bf16_is_not_tried_for_stays_in_fp32(workspace, with_bf16, monkeypatch):
    keep(workspace, 0.3, 0.15)
    narrow = msgspec.structs.replace(SHAPE, hidden=128)
    assert precision.on_processor(workspace, spec(workspace), SHAPE).bf16
    asked = [("lora", narrow), ("lora", None), ("ppo", SHAPE), ("qlora", SHAPE)]
    for run, shape in [(spec(workspace, recipe), shape) for recipe, shape in asked]:
        known = precision.on_processor(workspace, run, shape)
        assert not known.bf16 and not known.to_try and str(known.why)
    monkeypatch.setattr(precision, "instructions", tuple)
    assert not precision.on_processor(workspace, spec(workspace), SHAPE).bf16


def test_what_the_spec_says_is_followed_and_said(workspace, with_bf16):
    processor, setup = Device("cpu", 24 * GIB), memory.Setup()
    keep(workspace, 0.3, 0.15)
    known = precision.on_processor(workspace, spec(workspace), SHAPE)
    for wish, bf16 in (("auto", True), ("fp32", False), ("bf16", True)):
        made = machine_choices.choose(spec(workspace, machine__precision=wish), processor, SHAPE, setup, known)
        told = next(one for one in made.why if one.setting == "machine.precision")
        assert made.bf16 is bf16 and told.value == ("bf16" if bf16 else "fp32")
        assert (str(told.reason) == "asked for") is (wish != "auto")
    card = Device("cuda", 24 * GIB, bf16=False)
    assert not machine_choices.choose(spec(workspace), card, SHAPE, setup, None).bf16


def test_a_line_that_cannot_be_read_is_passed_over(workspace, with_bf16):
    keep(workspace, 0.3, 0.15)
    with (workspace.root / "precision.jsonl").open("ab") as file:
        file.write(b'{"machine": "cut o')
    assert precision.on_processor(workspace, spec(workspace), SHAPE).bf16


def test_the_starter_is_never_tried(workspace, with_bf16):
    from engine.plan import plans

    plan = plans.make(workspace, "lora", base="starter", dataset=None, overrides={})
    assert not plan.chosen.bf16 and not (workspace.root / "precision.jsonl").exists()


# --- memory ----------------------------------------------------------------------------------------------------------


def blocks(free_bytes: float, setup: memory.Setup, shape: shapes.Shape | None = SHAPE, name: str = "cpu") -> str:
    return machine_choices.choose_blocks(Device(name, 64 * GIB, free_bytes=round(free_bytes)), shape, setup)[0]


def test_freed_memory_is_kept_where_there_is_plenty_and_given_back_where_it_is_short():
    setup = memory.Setup(batch_size=4, max_length=512)
    high = memory.estimate(SHAPE, setup, device="cpu").high_bytes
    found = [blocks(times * high, setup) for times in (0.5, 1.2, 1.6, 1.9, 2.1, 8)]
    assert found == ["returned", "returned", "default", "default", "kept", "kept"]
    assert blocks(8 * high, setup, None) == "returned"  # nothing is known of what it needs
    small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 768}
    toy = shapes.read_shape({**SMOLLM, **small})
    assert blocks(8 * high, setup, toy) == blocks(8 * high, setup, name="cuda") == blocks(0, setup) == ""


def test_what_keeping_it_takes_stands_in_the_estimate():
    setup = memory.Setup(batch_size=4, max_length=512)
    plain = memory.estimate(SHAPE, setup, device="cpu")
    returned, default, kept = (
        memory.estimate(SHAPE, msgspec.structs.replace(setup, blocks=name), device="cpu")
        for name in ("returned", "default", "kept")
    )
    assert returned == plain and plain.moving_bytes < default.moving_bytes < kept.moving_bytes
    assert kept.moving_bytes == pytest.approx(memory.BLOCKS_FACTOR["kept"] * plain.moving_bytes, rel=1e-6)
    assert (
        kept.parts and plain.parts and kept.parts["weights"] == plain.parts["weights"] and "blocks" not in plain.parts
    )
    card = memory.estimate(SHAPE, msgspec.structs.replace(setup, blocks="kept"), device="cuda:0")
    assert card == memory.estimate(SHAPE, setup, device="cuda:0")


def test_rounding_on_a_processor_adds_copies_of_the_weights_and_spares_activations():
    setup = memory.Setup(batch_size=4, max_length=512)
    plain, half = (
        memory.estimate(SHAPE, msgspec.structs.replace(setup, half=half), device="cpu").parts for half in (False, True)
    )
    assert plain and half and half["weights"] == pytest.approx(1.5 * plain["weights"], rel=0.05)
    assert half["activations"] < plain["activations"]


def test_runs_that_were_measured_before_these_were_known_still_read(workspace):
    setup = msgspec.to_builtins(memory.Setup())
    for name in ("half", "blocks"):
        setup.pop(name)
    assert msgspec.convert(setup, memory.Setup) == memory.Setup()
    assert not measured.same_kind(memory.Setup(), memory.Setup(half=True))


class Library:
    """Takes down what the C library is told."""

    def __init__(self, told: list[tuple[int, int]]):
        self.mallopt = lambda name, value: told.append((name, value)) or 1


@pytest.mark.parametrize(
    ("how", "told"),
    [("kept", [(-4, 0), (-1, -1), (-2, 2**26)]), ("returned", [(-3, 2**20)]), ("default", []), ("", [])],
)
def test_the_c_library_is_told_what_was_chosen_unless_somebody_did_before(how, told, monkeypatch):
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library(found))
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    for name in allocator.SAID:
        monkeypatch.delenv(name, raising=False)
    allocator.settle(how)
    assert found == told
    found.clear()
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "4096")
    allocator.settle(how)
    assert found == []


def test_what_is_free_is_a_part_of_the_machines_memory():
    assert 0 < machine.free_bytes() <= machine.facts().memory_mib * 2**20
    assert json.dumps(precision.instructions())

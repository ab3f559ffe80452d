"""The arithmetic of the bench that needs a card, and on a processor the whole of it with small shapes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import gpu, gpu_checks
from tests.conftest import ROOT


def test_the_ratios_of_oft_compare_what_the_adapter_adds():
    step = {"frozen": 100.0, "lora r16": 110.0, "peft series": 140.0, "peft exact": 150.0, "ours": 120.0}
    four = {kind: 4 * ms for kind, ms in step.items()} | {"ours": 440.0}
    found = gpu.oft_ratios(step, four)
    assert found["step / lora"] == round(120 / 110, 3) and found["step / peft exact"] == 0.8
    assert found["added / peft series"] == 0.5 and found["added, 4 micro-batches / peft series"] == 0.25


def test_unsloth_is_compared_where_both_backends_ran():
    rows = [
        {"part": "lora", "backend": "plain", "tokens_per_s": 100.0, "peak_mib": 1000.0},
        {"part": "lora", "backend": "unsloth", "tokens_per_s": 180.0, "peak_mib": 600.0},
        {"part": "cap", "backend": "plain", "out_of_memory": "CUDA out of memory"},
        {"part": "cap", "backend": "unsloth", "tokens_per_s": 10.0, "peak_mib": 7000.0},
        {"part": "oft", "failed": "no word", "backend": "plain"},
    ]
    assert gpu.compared(rows) == {"lora": {"speed": 1.8, "memory": 0.6}}


def test_scores_through_unsloth_are_held_against_plain_ones_a_token():
    def row(backend: str, *nats: float) -> dict[str, object]:
        return {"part": "scores", "backend": backend, "held": "torch.bfloat16, none, cuda", "nats": [*nats],
                "ending_tokens": [1, 4]}  # fmt: skip

    refused = {"part": "scores", "backend": "unsloth", "refused": "no card"}
    assert gpu_checks.apart([row("plain", -2.0, -8.0), refused]) == {}
    near = gpu_checks.apart([row("plain", -2.0, -8.0), row("unsloth", -2.02, -8.04)])
    assert near == {"questions": 2, "mean": 0.015, "most": 0.02, "right": True}
    assert gpu_checks.apart([row("plain", -2.0, -8.0), row("unsloth", -4.0, -8.0)])["right"] is False


def test_a_result_is_a_table_under_the_cards_name():
    rows = [
        {"part": "lora", "backend": "plain", "precision": "bf16", "tokens_per_s": 100.0, "peak_mib": 1000.0},
        {"part": "packed", "backend": "plain", "precision": "bf16", "agree": True, "loss_apart": 2e-3, "speed": 1.7},
        {"part": "cap", "backend": "plain", "out_of_memory": "CUDA out of memory"},
    ]
    said = gpu.table({"card": "NVIDIA T4", "date": "2026-11-29", "rows": rows, "scores_apart": {}})
    assert said.startswith("NVIDIA T4") and "| lora | plain | bf16 | 100.0 | 1000.0 |  |" in said
    assert "1.7 times as fast" in said and "CUDA out of memory" in said


@pytest.mark.slow
def test_fp16_is_what_a_card_without_bf16_would_choose(tmp_path):
    """The base in fp16, what trains in fp32, a loss that is a number; on a processor, so that no speed is told."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--tiny", "--rounds", "1", "--parts", "fp16", "packed", "scores", "--out",
         str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    found = {(row["part"], row["backend"]): row for row in result["rows"]}
    half = found["fp16", "plain"]
    assert (
        half["precision"] == "fp16"
        and half["held_in"]["base"] == "float16"
        and half["held_in"]["trained"] == ["float32"]
    )
    assert 0 < half["held_in"]["loss"] < 20
    assert found["packed", "plain"]["agree"] and len(found["scores", "plain"]["nats"]) == 12


def test_the_7b_shape_is_that_of_a_7b_model():
    from engine.models import shapes

    shape = shapes.read_shape({"model_type": "llama", **gpu.SHAPES["7b"]})
    assert shape is not None and shapes.count_parameters(shape) == 6_738_415_616  # Llama-2-7B
    small = shapes.read_shape({"model_type": "llama", **gpu.SHAPES["1b"]})
    assert small is not None and shapes.count_parameters(small) == 1_235_814_400  # Llama-3.2-1B


@pytest.mark.slow
def test_the_bench_runs_on_a_processor_with_small_shapes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--tiny", "--rounds", "1", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert {row["part"] for row in result["rows"]} == set(gpu.PARTS)
    assert not [row for row in result["rows"] if "failed" in row], result["rows"]

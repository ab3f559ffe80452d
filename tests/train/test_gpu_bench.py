"""The arithmetic of the bench that needs a card, and on a processor the whole of it with small shapes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import gpu
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

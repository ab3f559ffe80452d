"""What a model has, counted on the model itself: a child's answer takes the place of the usual arithmetic, once."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.models import bases, counted, shapes
from engine.plan import plans
from engine.workspace import Workspace
from tests.models.test_bases import model

# A mixture of experts, two layers of which differ: one that sees all tokens, and one that sees the last of them.
CONFIG: dict[str, Any] = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
    "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
    "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "max_position_embeddings": 256,
    "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "home")


def base_of(workspace: Workspace, folder: Path) -> Any:
    return bases.describe(str(folder), workspace)


def write(workspace: Workspace, folder: Path, **found: Any) -> Path:
    """Put an answer where a child of the base in a folder would, and return that place."""
    counted.start(workspace, counted.key(folder), folder)
    (path,) = (workspace.root / "shapes").iterdir()
    path.write_bytes(msgspec.json.encode(counted.Found(**found)))
    return path


@pytest.fixture
def no_child(monkeypatch):
    started: list[tuple[str, ...]] = []
    in_place_of_a_child(monkeypatch, lambda *given: started.append(given))
    return started


def in_place_of_a_child(monkeypatch: pytest.MonkeyPatch, do: Callable[..., None]) -> None:
    """Do something else where a child would be started that counts; others are started."""
    start = counted.processes.start

    def begun(module: str, *words: str, **how: Any) -> Any:
        return do(*words) if module == "engine.models.counted" else start(module, *words, **how)

    monkeypatch.setattr(counted.processes, "start", begun)


def test_a_layout_that_is_not_known_is_estimated_at_once(workspace, tmp_path):
    shape = base_of(workspace, model(tmp_path / "mine", CONFIG)).shape
    assert shape is not None and shape.is_estimated and shape.layout == "gpt_oss" and shape.layers == 2
    assert shape.counted.experts == 4 and shape.counted.experts_used == 2
    assert shape.linear_parameters < shape.active_parameters < shape.counted.in_layers


def test_a_known_layout_is_never_counted(workspace, tmp_path, no_child):
    folder = model(tmp_path / "mine", {**CONFIG, "model_type": "llama"})
    assert counted.wait(workspace, counted.key(folder), folder) is None and not no_child
    assert not base_of(workspace, folder).shape.is_estimated


@pytest.fixture
def child_in_this_process(monkeypatch):
    """The child's work without its process, which takes as long as torch takes to be imported."""
    from engine.train import outline

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["outline", *words, "60", str(counted.MEMORY_BYTES)])
        monkeypatch.setattr(outline.processes, "bound", lambda **_: None)
        outline.main()

    in_place_of_a_child(monkeypatch, run)


@pytest.mark.slow
def test_the_child_itself_answers(workspace, tmp_path):
    folder = model(tmp_path / "mine", CONFIG)
    shape = bases.count(base_of(workspace, folder), workspace, wait=True).shape
    assert shape is not None and not shape.is_estimated


@pytest.mark.train
def test_a_child_counts_once_and_what_it_found_stands_for_the_same_config_json_elsewhere(
    workspace, tmp_path, child_in_this_process
):
    folder = model(tmp_path / "mine", CONFIG)
    made = bases.count(base_of(workspace, folder), workspace, wait=True)
    assert made.shape is not None and not made.shape.is_estimated and made.problems == ()
    counts = made.shape.counted
    assert counts is not None and (counts.sliding_layers, counts.window_tokens) == (1, 8)
    assert counts.writes_attention
    # two tensors of each layer's experts, of which peft's all-linear adapts none
    assert counts.expert_parameters == 2 * 4 * (64 * 64 + 32 * 64)
    assert counts.per_rank == sum(one.inputs + one.outputs for one in made.shape.linears) * 2
    assert "mixture of experts" in str(made.notes[-1])
    assert made.shape.attended_tokens(100) == 100 + 8
    copy = model(tmp_path / "copy", CONFIG)
    assert base_of(workspace, copy).shape == made.shape
    plan = plans.make(workspace, "lora", base=made, dataset=None, overrides={})
    assert plan.memory.parameters == counts.parameters and plan.memory.trained_parameters == 16 * counts.per_rank


def test_what_is_being_counted_is_not_begun_again_and_one_that_was_ended_is_after_a_while(
    workspace, tmp_path, no_child, monkeypatch
):
    folder = model(tmp_path / "mine", CONFIG)
    for _ in range(3):
        counted.start(workspace, counted.key(folder), folder)
    assert len(no_child) == 1 and bases.is_being_counted(base_of(workspace, folder), workspace)
    write(workspace, folder, begun_s=time.time() - counted.MOST_S - 1)  # its child was ended
    assert counted.wait(workspace, counted.key(folder), folder) is not None and len(no_child) == 1
    assert base_of(workspace, folder).shape.is_estimated and base_of(workspace, folder).problems == ()
    write(workspace, folder, begun_s=time.time() - counted.AGAIN_S - 1)
    counted.start(workspace, counted.key(folder), folder)
    assert len(no_child) == 2


def test_a_model_that_transformers_cannot_build_is_refused_with_its_reason(workspace, tmp_path, no_child):
    folder = model(tmp_path / "mine", CONFIG)
    write(workspace, folder, reason="ValueError: no heads")
    (problem,) = base_of(workspace, folder).problems
    assert problem.rule == "base-not-built" and "no heads" in problem.sentence


def test_why_a_model_cannot_be_built_stands_while_it_is_tried_again_after_a_while(workspace, tmp_path, no_child):
    """What was missing, such as a package, may be there by now."""
    folder = model(tmp_path / "mine", CONFIG)
    write(workspace, folder, reason="ImportError: timm", begun_s=time.time())
    bases.count(base_of(workspace, folder), workspace, wait=False)
    assert len(no_child) == 1  # the one that write() started
    write(workspace, folder, reason="ImportError: timm", begun_s=time.time() - counted.AGAIN_S - 1)
    bases.count(base_of(workspace, folder), workspace, wait=False)
    assert len(no_child) == 2 and [one.rule for one in base_of(workspace, folder).problems] == ["base-not-built"]


def test_a_model_whose_parts_that_see_are_left_out_says_so(workspace, tmp_path, no_child):
    seeing = {"model_type": "qwen3_5", "vision_config": {}, "text_config": {**CONFIG, "model_type": "qwen3_5_text"}}
    folder = model(tmp_path / "mine", seeing)
    shape = base_of(workspace, folder).shape
    counts = msgspec.structs.replace(shape.counted, is_estimated=False, experts=0, expert_parameters=0)
    write(workspace, folder, shape=msgspec.structs.replace(shape, counted=counts))
    made = base_of(workspace, folder)
    assert made.parameters == counts.parameters and "Only the part that writes text" in str(made.notes[-1])
    write(
        workspace,
        folder,
        shape=msgspec.structs.replace(shape, counted=msgspec.structs.replace(counts, other_parameters=9)),
    )
    assert "held and never trained" in str(base_of(workspace, folder).notes[-1])


def test_what_a_model_has_no_parts_for_is_refused_before_it_starts(workspace, tmp_path, no_child):
    folder = model(tmp_path / "mine", CONFIG)
    shape = base_of(workspace, folder).shape
    counts = msgspec.structs.replace(shape.counted, is_estimated=False, in_layers=0, linears=(), per_rank=0)
    write(workspace, folder, shape=msgspec.structs.replace(shape, counted=counts))

    def rules(recipe: str) -> set[str]:
        plan = plans.make(workspace, recipe, base=str(folder), dataset=None, overrides={})
        return {one.rule for one in plan.problems} & {"targets-none", "layers-unknown"}

    assert rules("lora") == rules("oft") == {"targets-none"}
    assert rules("freeze-bottom") == {"layers-unknown"} and rules("full") == set()


@pytest.mark.parametrize("spoilt", [b"", b"{", b"[]", b'{"shape": 3}', b"\xff"])
def test_a_spoilt_answer_is_none(workspace, tmp_path, no_child, spoilt):
    folder = model(tmp_path / "mine", CONFIG)
    write(workspace, folder).write_bytes(spoilt)
    assert counted.find(workspace, counted.key(folder)) is None and base_of(workspace, folder).shape.is_estimated


# --- the child -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel bounds no memory")
@pytest.mark.parametrize(
    ("layers", "seconds", "size", "said"), [(10**6, 2, 8 << 30, "time"), (2, 60, 1 << 28, "memory")]
)
def test_the_child_is_bounded_and_what_ended_it_is_a_sentence(
    workspace, tmp_path, monkeypatch, layers, seconds, size, said
):
    monkeypatch.setattr(counted, "MOST_CPU_S", seconds)
    monkeypatch.setattr(counted, "MEMORY_BYTES", size)
    folder = model(tmp_path / "mine", {**CONFIG, "num_hidden_layers": layers, "layer_types": None})
    target = workspace.shape_path(counted.key(folder) or "")
    counted.main(str(folder / "config.json"), target)
    (problem,) = base_of(workspace, folder).problems
    assert problem.rule in {f"base-count-{said}", "base-not-built"}, problem
    assert said == "memory" or problem.rule == "base-count-time"


@pytest.mark.train
def test_no_code_that_lies_beside_a_config_json_is_run(tmp_path):
    from engine.train.outline import build

    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass Own: pass\n".encode()
    mapped = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    known = model(tmp_path / "known", {**CONFIG, **mapped}, {"own.py": code})
    assert type(build(known / "config.json")).__name__ == "GptOssForCausalLM"
    strange = model(tmp_path / "strange", {**CONFIG, **mapped, "model_type": "own"}, {"own.py": code})
    with pytest.raises(Exception, match="own"):
        build(strange / "config.json")
    assert not ran.exists()


@pytest.mark.train
@pytest.mark.parametrize("layout", shapes.LAYOUTS)
def test_the_arithmetic_of_known_layouts_says_what_is_counted(tmp_path, layout):
    from engine.train.outline import build, shape_of

    config = {**CONFIG, "model_type": layout, "architectures": None, "tie_word_embeddings": True, "head_dim": 16}
    config |= {"n_positions": 256, "layer_types": None}
    config |= {"intermediate_size": None} if layout == "gpt2" else {}  # there it is called n_inner
    folder = model(tmp_path / "mine", {name: value for name, value in config.items() if value is not None})
    arithmetic = shapes.read_shape(json.loads((folder / "config.json").read_bytes()))
    found = shape_of(build(folder / "config.json"))
    assert arithmetic is not None and found.counted is not None
    assert shapes.count_parameters(arithmetic) == found.counted.parameters
    assert arithmetic.layer_parameters * arithmetic.layers == found.counted.in_layers
    per_rank = arithmetic.layers * sum(one.inputs + one.outputs for one in arithmetic.linears)
    assert per_rank == found.counted.per_rank and arithmetic.linear_parameters == found.linear_parameters
    named = [(one.name, one.inputs, one.outputs, one.bias) for one in arithmetic.linears]
    assert sorted(set(named)) == sorted(one[:4] for one in found.linears)


@pytest.mark.train
def test_parts_that_see_are_counted_apart_and_take_no_adapter(tmp_path):
    from engine.train import adapters, parts
    from engine.train.outline import build, shape_of

    text = {name: value for name, value in CONFIG.items() if name not in ("model_type", "architectures")}
    seeing = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}  # fmt: skip
    config = {"model_type": "gemma3", "text_config": {**text, "model_type": "gemma3_text"}, "vision_config": seeing,
              "mm_tokens_per_image": 4}  # fmt: skip
    folder = model(tmp_path / "mine", config)
    built = build(folder / "config.json")
    seen = sum(one.numel() for one in parts.others(built))
    named = adapters.targets(built, "all-linear", None)
    assert isinstance(named, list) and len(named) == 2 * 7 and all("language_model" in name for name in named)
    picked = adapters.targets(built, "q_proj,lm_head", [1])
    assert len(picked) == 2 and ".1." in picked[0] and "language_model" in picked[0] and picked[1] == "lm_head"
    found = shape_of(built)
    assert found.other_parameters == seen > 0 and found.layout == "gemma3_text" and found.layers == 2
    assert shapes.read_shape(config) is not None


@pytest.mark.train
def test_layers_that_a_kernel_goes_past_take_no_adapter(tmp_path):
    """Mamba's kernels take the weight of out_proj; peft 0.21 refuses to adapt it there."""
    from engine.train import adapters
    from engine.train.outline import build, shape_of

    config = {name: value for name, value in CONFIG.items() if name not in ("architectures", "layer_types")}
    states = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
    folder = model(tmp_path / "mine", {**config, **states, "model_type": "falcon_h1"})
    built = build(folder / "config.json")
    named = adapters.targets(built, "all-linear", [1])
    assert isinstance(named, list) and all(".1." in name for name in named)
    assert any(name.endswith("in_proj") for name in named) and not any(name.endswith("out_proj") for name in named)
    found = shape_of(built)
    assert found.lora_per_rank and "out_proj" in [one.name for one in found.linears]

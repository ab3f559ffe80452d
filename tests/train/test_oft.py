"""Our OFT against its mathematics, against autograd, and against peft's own: on small models, in this process."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import OFTConfig, PeftModel, get_peft_model
from peft.tuners.oft.layer import Linear as PeftLinear
from peft.tuners.oft.layer import OFTRotationModule
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from engine import events, starter
from engine.train import oft
from engine.train.callback import EventCallback

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, dtype=torch.float32)


def wrapped(model: Any, block_size: int = 32, **settings: Any) -> Any:
    config = OFTConfig(
        oft_block_size=block_size,
        use_cayley_neumann=False,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        **settings,
    )
    return get_peft_model(model, config)


def ours(block_size: int = 32, scale: float = 0.0, **settings: Any) -> tuple[Any, oft.Rotations]:
    """Return the starter with our adapter, turned at random by `scale`."""
    model = wrapped(base(), block_size, **settings)
    turn(model, scale)
    return model, oft.host(model)


@torch.no_grad()
def turn(model: Any, scale: float, seed: int = 0) -> None:
    dice = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, OFTRotationModule):
            module.weight.copy_(scale * torch.randn(module.weight.shape, generator=dice))


def tokens(rows: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 1024, (rows, 24), generator=torch.Generator().manual_seed(seed))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Within 2e-6 of the largest logit, some ten roundings of fp32: peft solves in fp32, and ours in fp64."""
    assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max()


def gradients(model: Any, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    model.zero_grad()
    for batch in batches:
        model(input_ids=batch, labels=batch).loss.backward()
    found = [m.weight.grad for m in model.modules() if isinstance(m, OFTRotationModule)]
    assert found and all(g is not None for g in found)
    return [g.clone() for g in found if g is not None]


def trained(model: Any, steps: int = 8, rate: float = 0.02) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    batch = tokens()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()


# --- the rotation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block_size", "within"), [(2, 1e-6), (8, 1e-6), (32, 1e-6), (64, 1e-6), (128, 1e-5), (256, 1e-5)]
)
@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_rotations_are_orthogonal_in_fp32(block_size: int, within: float, scale: float) -> None:
    vectors = scale * torch.randn(5, block_size * (block_size - 1) // 2, generator=torch.Generator().manual_seed(0))
    rotations = oft.solve(vectors, block_size)
    assert rotations.dtype == torch.float32
    assert (rotations.mT @ rotations - torch.eye(block_size)).abs().max() <= within
    assert (torch.linalg.svdvals(rotations.double()) - 1).abs().max() <= 1e-6
    assert torch.linalg.det(rotations.double()).sub(1).abs().max() <= 1e-5  # no reflection


def test_rotations_are_peft_s_exact_ones() -> None:
    module: Any = OFTRotationModule(4, 28, 8, 32, use_cayley_neumann=False)
    torch.nn.init.normal_(module.weight, std=0.3)
    theirs = module._cayley_batch(module.weight, 8, False)
    assert torch.allclose(oft.solve(module.weight, 8), theirs, atol=1e-6)


def test_a_large_model_is_solved_in_parts_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.randn(10, 28)
    whole = oft.solve(vectors, 8)
    monkeypatch.setattr(oft, "_SOLVED_ELEMENTS", 200)
    assert torch.equal(oft.solve(vectors, 8), whole)


def test_gradients_of_the_cayley_map_are_those_of_autograd_in_double() -> None:
    vectors = torch.randn(3, 10, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: oft.Cayley.apply(v, oft.solve(v.detach(), 5)), (vectors,))
    rotations = oft.Cayley.apply(vectors, oft.solve(vectors.detach(), 5))
    assert isinstance(rotations, torch.Tensor)
    weight = torch.randn_like(rotations)
    (found,) = torch.autograd.grad((rotations * weight).sum(), vectors)
    (wanted,) = torch.autograd.grad((oft.solve(vectors, 5) * weight).sum(), vectors)
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_gradients_of_the_rotation_are_those_of_autograd_in_double(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, dtype=torch.double, requires_grad=True)
    rotations = torch.randn(2, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(oft.Rotate.apply, (x, rotations))
    wanted = x.detach() @ torch.block_diag(*rotations.detach())
    made = oft.Rotate.apply(x, rotations)
    assert isinstance(made, torch.Tensor) and torch.allclose(made, wanted)


@pytest.mark.parametrize("block_size", [16, 43])
@pytest.mark.parametrize("laid_out", ["by rows", "by columns", "repeated"])
def test_a_convolution_gives_what_a_multiplication_gives(
    monkeypatch: pytest.MonkeyPatch, block_size: int, laid_out: str
) -> None:
    width = 3 * block_size
    rotations = oft.solve(torch.randn(3, block_size * (block_size - 1) // 2), block_size)
    x = torch.randn(2, 25, width)
    gradient = {
        "by rows": torch.randn(2, 25, width),
        "by columns": torch.randn(width, 50).T.view(2, 25, width),
        "repeated": torch.randn(width).expand(2, 25, width),
    }[laid_out]

    def made() -> list[torch.Tensor]:
        leaves = x.clone().requires_grad_(), rotations.clone().requires_grad_()
        out: Any = oft.Rotate.apply(*leaves)
        assert out.is_contiguous()
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]

    plain = made()
    whole = torch.block_diag(*rotations)
    assert torch.allclose(plain[0], x @ whole, atol=1e-5) and torch.allclose(plain[1], gradient @ whole.T, atol=1e-5)
    monkeypatch.setattr(oft, "_CONVOLVED_ELEMENTS", 0)
    used = []
    convolved = oft._convolved
    monkeypatch.setattr(oft, "_convolved", lambda *both: used.append(1) or convolved(*both))
    for one, other in zip(made(), plain, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert len(used) == (2 if torch.backends.mkldnn.is_available() else 0)


def test_in_bf16_the_rotation_stays_closer_to_orthogonal_than_a_rounded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rotations = oft.solve(0.01 * torch.randn(4, 496), 32)
    x = torch.eye(128, dtype=torch.bfloat16)
    made = oft._rotated(x, rotations)
    assert made.dtype == torch.bfloat16
    exact = torch.block_diag(*rotations)
    change = (exact - torch.eye(128)).to(torch.bfloat16).float() + torch.eye(128)
    rounded = exact.to(torch.bfloat16).float()

    def stretch(matrix: torch.Tensor) -> float:
        return float((torch.linalg.svdvals(matrix.double()) - 1).abs().max())

    assert stretch(change) < 0.2 * stretch(rounded)
    tied = rotations.clone().requires_grad_()
    x.requires_grad_()
    out = oft.Rotate.apply(x, tied)
    assert isinstance(out, torch.Tensor)
    out.sum().backward()
    assert tied.grad is not None and tied.grad.dtype == torch.float32
    wanted = tied.grad
    monkeypatch.setattr(oft, "_PART_ELEMENTS", 7 * 128)  # summed in parts of seven tokens
    assert torch.allclose(oft._to_rotations(x.detach(), torch.ones_like(x), rotations), wanted, atol=1e-5)
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


# --- in a model ----------------------------------------------------------------------------------------------------------


def test_it_starts_as_the_base() -> None:
    plain = logits(base())
    model, _ = ours()
    assert torch.allclose(logits(model), plain, atol=1e-6)
    assert oft.max_q_norm(model) == 0


@pytest.mark.parametrize("settings", [{}, {"block_share": True}])
def test_logits_and_gradients_are_peft_s(settings: dict[str, Any]) -> None:
    theirs = wrapped(base(), **settings)
    turn(theirs, 0.05)
    mine, rotations = ours(scale=0.05, **settings)
    assert len(rotations.modules) == 28
    same(logits(mine), logits(theirs))
    batch = tokens()
    for one, other in zip(gradients(mine, [batch]), gradients(theirs, [batch]), strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()
    # In double nothing but the mathematics is left.
    wanted = logits(theirs.double())
    assert (logits(mine.double()) - wanted).abs().max() <= 1e-9


@pytest.mark.parametrize("block_size", [2, 24, 48, 100, 128])
def test_blocks_that_do_not_divide_a_layer_get_peft_s_size(block_size: int) -> None:
    theirs = wrapped(base(), block_size)
    turn(theirs, 0.03)
    mine, rotations = ours(block_size, 0.03)
    sizes = {m.in_features: m.block_size for m in rotations.modules}
    assert sizes == {m.in_features: m.block_size for m in theirs.modules() if isinstance(m, OFTRotationModule)}
    assert all(width % size == 0 for width, size in sizes.items())
    same(logits(mine), logits(theirs))
    mine.merge_adapter()
    same(logits(mine), logits(theirs))


def test_norms_and_singular_values_of_the_weights_stay() -> None:
    plain = base()
    before = {n: m.weight.detach().clone() for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)}
    model, _ = ours()
    trained(model)
    assert oft.max_q_norm(model) > 0.05
    merged = model.merge_and_unload()
    turned = 0
    for name, module in merged.named_modules():
        if name in before and not torch.equal(module.weight, before[name]):
            turned += 1
            assert torch.allclose(module.weight.norm(dim=1), before[name].norm(dim=1), rtol=1e-5)
            found, wanted = (torch.linalg.svdvals(w.detach().double()) for w in (module.weight, before[name]))
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
            across = before[name] @ before[name].T  # the angles between neurons
            assert torch.allclose(module.weight @ module.weight.T, across, atol=1e-4)
    assert turned == 28


def test_merged_unmerged_and_disabled() -> None:
    plain = logits(base())
    model, _ = ours(scale=0.1)
    apart = logits(model)
    assert (apart - plain).abs().max() > 0.1
    weights = {n: p.clone() for n, p in model.named_parameters()}
    model.merge_adapter(safe_merge=True)
    assert torch.allclose(logits(model), apart, atol=1e-4)
    model.unmerge_adapter()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, weights[name], atol=1e-6), name
    with model.disable_adapter():
        assert torch.allclose(logits(model), plain, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_on_a_base_of_4_bits_it_turns_and_merges_as_peft_does() -> None:
    from bitsandbytes.nn.modules import Linear4bit

    def quantized() -> Any:
        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(
            starter.MODEL_DIR, dtype=torch.float32, quantization_config=bits, device_map={"": "cpu"}
        )
        for module in model.modules():  # see engine/train/load.py
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
        made = wrapped(model)
        turn(made, 0.05)
        return made

    theirs, mine = quantized(), quantized()
    rotations = oft.host(mine)
    assert len(rotations.modules) == 28 and all(m.weight.dtype == torch.float32 for m in rotations.modules)
    same(logits(mine), logits(theirs))
    batch = tokens()
    for one, other in zip(gradients(mine, [batch]), gradients(theirs, [batch]), strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()
    layers = [m for m in mine.modules() if isinstance(m, oft.RotatedLinear)]
    before = [layer.get_base_weight().clone() for layer in layers]
    theirs.merge_adapter()
    mine.merge_adapter()
    others = [m for m in theirs.modules() if isinstance(m, PeftLinear)]
    for layer, other, old in zip(layers, others, before, strict=True):
        assert type(layer.get_base_layer()) is type(other.get_base_layer()) is Linear4bit
        merged, wanted = layer.get_base_weight(), other.get_base_weight()
        assert (merged - wanted).norm() <= 0.01 * wanted.norm()  # a rounding may fall the other way
        turned = old @ layer._own("default").get_weight().detach().T
        assert (merged - turned).norm() < 0.8 * (merged - old).norm()  # 4 bits hold the turned one, not the old one
    mine.unmerge_adapter()
    for layer, old in zip(layers, before, strict=True):
        assert (layer.get_base_weight() - old).norm() < 0.8 * (old @ layer._own("default").get_weight() - old).norm()


# --- one solve a step ----------------------------------------------------------------------------------------------------


def test_micro_batches_share_one_solve_and_give_the_gradient_of_many() -> None:
    model, rotations = ours(scale=0.05)
    batches = [tokens(2, seed) for seed in range(4)]
    rotations.solves = 0
    together = gradients(model, batches)
    assert rotations.solves == 1
    apart = [torch.zeros_like(g) for g in together]
    for batch in batches:
        rotations.invalidate()
        apart = [a + g for a, g in zip(apart, gradients(model, [batch]), strict=True)]
    for one, other in zip(together, apart, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "foreach", "fused"])
def test_an_optimizer_step_makes_them_solved_anew(kind: str) -> None:
    model, rotations = ours(scale=0.01)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.05, foreach=kind == "foreach", fused=kind == "fused"
    )
    gradients(model, [tokens()])
    before = rotations.solves
    optimizer.step()
    after = logits(model)
    assert rotations.solves == before + 1
    again, _ = ours()
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), after)


def test_evaluation_between_steps_solves_nothing_and_disturbs_nothing() -> None:
    model, rotations = ours(scale=0.05)
    wanted = gradients(model, [tokens()])
    rotations.invalidate()
    logits(model)  # without gradients first
    solves = rotations.solves
    found = gradients(model.train(), [tokens()])
    logits(model)
    assert rotations.solves == solves
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_recomputation_reuses_them(reentrant: bool) -> None:
    model, rotations = ours(scale=0.05)
    wanted = gradients(model.train(), [tokens()])
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    rotations.invalidate()
    rotations.solves = 0
    found = gradients(model, [tokens()])
    assert rotations.solves == 1
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-4)


def test_a_copy_of_the_model_is_a_model_of_its_own() -> None:
    model, _ = ours(scale=0.05)
    gradients(model, [tokens()])
    other = copy.deepcopy(model)
    before = logits(model)
    assert torch.equal(logits(other), before)
    trained(other, 2)
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(other), before, atol=1e-3)


def test_backward_keeps_half_of_what_peft_keeps_on_a_bf16_base() -> None:
    def saved(hosted: bool) -> int:
        torch.manual_seed(0)
        layer: Any = PeftLinear(
            torch.nn.Linear(256, 256, bias=False, dtype=torch.bfloat16).requires_grad_(False),
            "default",
            OFTConfig(oft_block_size=32, use_cayley_neumann=False),
            r=0,
        )
        module: Any = layer.oft_R["default"]
        module.float()
        holder = torch.nn.ModuleList([layer])
        if hosted:
            oft.host(holder)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() != layer.base_layer.weight.data_ptr():
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(512, 256, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            made = layer(x)
        assert made.dtype == torch.bfloat16
        return sum(kept.values())

    assert saved(True) <= 0.6 * saved(False)


# --- stored as peft stores -------------------------------------------------------------------------------------------------


def solved_in_double(model: Any) -> Any:
    """Return a copy of a model of peft's that still computes in fp32, but solves for its rotations in fp64."""
    made = copy.deepcopy(model)
    for module in made.modules():
        if isinstance(module, OFTRotationModule):
            solve: Any = module._cayley_batch

            def widely(vectors: torch.Tensor, *settings: Any, solve: Any = solve) -> torch.Tensor:
                return solve(vectors.double(), *settings).to(vectors.dtype)

            module._cayley_batch = widely  # pyright: ignore[reportAttributeAccessIssue]
    return made


def test_what_is_saved_here_loads_with_plain_peft_to_the_same_logits(tmp_path: Path) -> None:
    model, _ = ours()
    trained(model)
    model.save_pretrained(tmp_path)
    elsewhere = PeftModel.from_pretrained(base(), str(tmp_path))
    assert type(next(m for m in elsewhere.modules() if isinstance(m, OFTRotationModule))) is OFTRotationModule
    same(logits(elsewhere), logits(model))
    # peft solves in fp32. Where its solve is as exact as ours, its logits are ours.
    assert (logits(solved_in_double(elsewhere)) - logits(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.1])
def test_logits_in_fp32_are_as_near_the_exact_ones_as_peft_s_and_as_the_base_s_own(scale: float) -> None:
    """The starter in fp32 is 9e-6 from the starter in double: two rotations that differ in their last bit cannot agree
    better than that. Where peft too solves in fp64, nothing is left between the two."""
    theirs = wrapped(base())
    turn(theirs, scale)
    mine, _ = ours(scale=scale)
    exact = logits(copy.deepcopy(theirs).double())
    off_mine, off_theirs = (float((logits(model) - exact).abs().max()) for model in (mine, theirs))
    off_base = float((logits(base()) - logits(base().double())).abs().max())
    assert off_mine <= 1.5 * off_base
    assert off_mine <= 1.5 * off_theirs
    assert (logits(solved_in_double(theirs)) - logits(mine)).abs().max() <= 1e-5


def test_what_peft_trained_exactly_loads_here_and_merges_block_by_block(tmp_path: Path) -> None:
    theirs = wrapped(base())
    trained(theirs, 4)
    theirs.save_pretrained(tmp_path)
    mine = PeftModel.from_pretrained(base(), str(tmp_path))
    assert len(oft.host(mine).modules) == 28
    wanted = logits(theirs)
    same(logits(mine), wanted)
    assert (logits(solved_in_double(theirs)) - logits(mine)).abs().max() <= 1e-5
    merged: Any = mine.merge_and_unload()  # pyright: ignore[reportCallIssue]
    assert torch.allclose(logits(merged), wanted, atol=1e-4)


def test_peft_s_series_stays_peft_s() -> None:
    config = OFTConfig(oft_block_size=32, use_cayley_neumann=True, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base(), config)
    assert oft.host(model).modules == []
    assert not any(isinstance(m, oft.Rotation) for m in model.modules())


def test_the_largest_turn_is_found() -> None:
    model, rotations = ours(scale=0.02)
    vectors = rotations.modules[9].weight
    with torch.no_grad():
        vectors[2] *= 5
    blocks = [oft.skew(m.weight.detach(), m.block_size) for m in rotations.modules]
    largest = max(float(torch.linalg.matrix_norm(b, 2).max()) for b in blocks)
    assert oft.max_q_norm(model) == pytest.approx(largest, rel=1e-4)
    assert rotations.max_q_norm() == oft.max_q_norm(model)


def test_the_turn_is_logged_and_warned_of_once(tmp_path: Path) -> None:
    _, rotations = ours()
    log = events.EventLog(tmp_path)
    callback = EventCallback(log, cast(Any, None), lambda step: None, 1.0, rotations=rotations)
    settings = SimpleNamespace(eval_strategy="steps")
    state = SimpleNamespace(global_step=1, max_steps=9, epoch=0.1)
    for scale in (0.0, 1.0, 1.0):
        with torch.no_grad():
            rotations.modules[3].weight[0, 0] = scale  # blocks of nothing else: ||Q|| is the one number
        callback.on_log(settings, state, None, {"loss": 1.0})
    found, _ = events.read(tmp_path)
    assert [e.metrics["max_q_norm"] for e in found if isinstance(e, events.Step)] == [0.0, 1.0, 1.0]
    (warning,) = [e for e in found if isinstance(e, events.Log)]
    assert warning.level == "warning" and "90 degrees" in warning.text  # 2 arctan 1


def test_on_apples_gpu_nothing_is_asked_for_that_it_refuses(monkeypatch):
    """torch 2.13 refuses tensors of fp64 there ("MPS framework doesn't support float64"). No Mac was here: tensors without
    values stand for its, and what is asked of them is watched."""
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    # what was kept of other tests has values, and what is made here none
    monkeypatch.setattr(oft, "_triangles", oft._triangles.__wrapped__)
    refused = []

    class Apple(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            for one in tree_leaves(made):
                if isinstance(one, torch.Tensor) and one.device.type == "mps" and one.dtype == torch.float64:
                    refused.append(str(func))
            return made

    with FakeTensorMode(), Apple():
        rotations = oft.solve(torch.empty(3, 28, device="mps"), 8)
        assert rotations.device.type == "mps" and rotations.dtype == torch.float32 and rotations.shape == (3, 8, 8)
    assert refused == []

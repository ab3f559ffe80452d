"""Orthogonal fine-tuning: W' = W Q with Q block-diagonal and exactly orthogonal, faster than peft's and stored as peft's.

peft hosts the adapter (names, freezing, saving, disabling); only its rotation is exchanged. peft solves for the rotation
in every forward of every module and casts the inputs to fp32. Here one batched solve a block size serves the whole model
until a parameter changes, so that micro-batches and checkpoint recomputation reuse it, and the backward keeps only the
input, in its own number format, and the rotation.

The rotation is peft's exact one, R = (I - Q)(I + Q)^-1 with Q skew-symmetric (Cayley; arXiv 2306.07280), applied to the
input, y = W (x R), so W' = W R^T (arXiv 2506.19847, "input-centric"). With `use_cayley_neumann: false` in its config an
adapter means the same to both; peft's default, a truncated series, shrinks weights by up to 6 % at ||Q|| = 0.5.
"""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.oft.layer import Linear as PeftLinear
from peft.tuners.oft.layer import OFTRotationModule
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.pytorch_utils import Conv1D

# Rotations of more than 2 arctan(0.5) = 53 degrees: far from the base, and where truncated series break down.
LARGE_Q_NORM = 0.5
# 128 MiB of fp64.
_SOLVED_ELEMENTS = 2**24
# 512 KiB of fp32, within the second-level cache of today's processors.
_PART_ELEMENTS = 2**17
# 1 MiB of fp32: a batched multiplication takes as long below that.
_CONVOLVED_ELEMENTS = 2**18


def skew(vectors: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return the skew-symmetric blocks whose strict upper triangles, row by row, are `vectors` (peft's storage)."""
    upper, lower = _triangles(block_size, vectors.device)
    blocks = vectors.new_zeros(vectors.shape[0], block_size**2)
    blocks.index_copy_(1, upper, vectors).index_copy_(1, lower, -vectors)
    return blocks.view(-1, block_size, block_size)


@functools.cache
def _triangles(block_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the upper triangle's elements stand in a block laid out flat, and where those mirrored to it stand."""
    rows, columns = torch.triu_indices(block_size, block_size, 1, device=device)
    return rows * block_size + columns, columns * block_size + rows


def solve(vectors: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return R = (I - Q)(I + Q)^-1 = 2 (I + Q)^-1 - I of each block, in fp32 or better.

    Solved in fp64, since fp32 leaves 1.4e-6 in R^T R for blocks of 64; once a step that costs next to nothing. A model of
    7B parameters is solved in three calls, so that the fp64 blocks take little memory. Apple's GPU has no fp64 (torch 2.13
    refuses a tensor of it there), so its blocks are solved on the processor, which shares its memory.
    """
    wide = torch.promote_types(vectors.dtype, torch.float32)
    solved = []
    for part in vectors.split(max(1, _SOLVED_ELEMENTS // block_size**2)):
        # first over, then to fp64: the other way round the device would have to convert
        exact = part.cpu().double() if part.device.type == "mps" else part.double()
        blocks = skew(exact, block_size)
        blocks.diagonal(dim1=1, dim2=2).add_(1)
        blocks = 2 * torch.linalg.inv(blocks)
        blocks.diagonal(dim1=1, dim2=2).sub_(1)
        solved.append(blocks.to(wide).to(part.device))
    return torch.cat(solved)


class Cayley(torch.autograd.Function):
    """Ties rotations that are solved already to their parameters.

    dR = -2 N dQ N with N = (I + Q)^-1 = (R + I) / 2: no second inverse. What backward needs is kept on the context, not by
    save_for_backward, which is freed by the first backward: the micro-batches of a step all go through one of these.
    """

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
        ctx.rotations, ctx.dtype = rotations.detach(), vectors.dtype
        return rotations.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        turned, gradient = ctx.rotations.mT, gradients[0]
        # -2 N^T G N^T = -(R^T G + G) (R^T + I) / 2, without a matrix that is only added to or halved
        change = torch.baddbmm(gradient, turned, gradient)
        change = torch.baddbmm(change, change, turned, beta=-0.5, alpha=-0.5).flatten(1)
        upper, lower = _triangles(turned.shape[-1], turned.device)
        return (change.index_select(1, upper) - change.index_select(1, lower)).to(ctx.dtype), None


class Rotate(torch.autograd.Function):
    """y = x R, block by block. Keeps x in its own number format and R, where peft keeps x in fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, rotations)
        return _rotated(x, rotations)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, rotations = ctx.saved_tensors
        gradient = gradients[0]
        to_x = _rotated(gradient, rotations.mT) if ctx.needs_input_grad[0] else None
        return to_x, _to_rotations(x, gradient, rotations) if ctx.needs_input_grad[1] else None


def _blocks(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """View (..., blocks * size) as (blocks, tokens, size)."""
    return x.reshape(-1, rotations.shape[0], rotations.shape[-1]).transpose(0, 1)


def _rotated(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Return x R, laid out row by row. In 16 bits R itself would be rounded where it is near 1; x + x (R - I) is ten times
    closer to orthogonal."""
    if _as_convolution(x, rotations):
        return _convolved(x, rotations)
    made = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    inputs, into = _blocks(x, rotations), _blocks(made, rotations)
    if x.dtype == rotations.dtype:
        into.copy_(torch.bmm(inputs, rotations))  # quicker on a processor than out=into
    else:
        one = torch.eye(rotations.shape[-1], dtype=rotations.dtype, device=rotations.device)
        into.copy_(torch.baddbmm(inputs, inputs, (rotations - one).to(x.dtype)))
    return made


def _as_convolution(x: torch.Tensor, rotations: torch.Tensor) -> bool:
    """Say whether oneDNN's convolution is the quicker way, by two to three times: in fp32 on a processor, where there is
    enough to do. It prepares itself for every new number of tokens, for about a millisecond."""
    return (
        x.device.type == "cpu"
        and x.dtype == rotations.dtype == torch.float32
        and rotations.shape[-1] >= 16
        and x.numel() >= _CONVOLVED_ELEMENTS
        and torch.backends.mkldnn.is_available()
    )


def _convolved(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Return x R as a convolution of one point with a group for each block. Tokens are its pixels and features its
    channels, the last in memory: it reads and writes rows as they lie, where a batched multiplication needs a copy."""
    blocks, size, _ = rotations.shape
    pixels = x.reshape(1, -1, 1, blocks * size).contiguous().permute(0, 3, 1, 2)
    weights = rotations.mT.reshape(blocks * size, size, 1, 1)
    # conv2d comes to the same function by way of copies that cost more than it does
    made = torch.mkldnn_convolution(pixels, weights, None, [0, 0], [1, 1], [1, 1], blocks)
    return made.permute(0, 2, 3, 1).reshape(x.shape)


def _to_rotations(x: torch.Tensor, gradient: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the rotations, x^T times that of x R, summed in their number format."""
    inputs, outputs = _blocks(x, rotations), _blocks(gradient, rotations)
    if x.dtype == rotations.dtype:
        return torch.bmm(outputs.mT, inputs).mT
    if x.is_cuda:
        return torch.bmm(outputs.mT, inputs, out_dtype=rotations.dtype).mT  # without an fp32 copy of x
    part = max(1, _PART_ELEMENTS // x.shape[-1])  # so that the fp32 copies are of parts only
    total = torch.zeros_like(rotations)
    for some, others in zip(inputs.split(part, dim=1), outputs.split(part, dim=1), strict=True):
        total.baddbmm_(some.to(total.dtype).mT, others.to(total.dtype))
    return total


class Rotations:
    """The rotations of all modules of a model, solved together and kept until a parameter changes.

    A change is seen by a parameter's version counter and address; and any optimizer's step forgets what was solved, since
    a fused one (torch 2.13's AdamW(fused=True), the Trainer's default) writes past both.
    """

    def __init__(self, modules: list[Rotation]):
        self.modules = modules
        self.solves = 0  # how often; tests and the benchmark look
        self.invalidate()
        _watched.add(self)

    def invalidate(self) -> None:
        """Forget what was solved."""
        self._solved: list[tuple[list[Rotation], torch.Tensor]] = []
        self._state: dict[int, tuple[int, int]] = {}
        self._plain: dict[int, torch.Tensor] = {}
        self._tied: dict[int, torch.Tensor] = {}

    def max_q_norm(self) -> float:
        """Return the largest ||Q||_2 of the blocks."""
        return _max_q_norm(self.modules)

    def __getstate__(self) -> dict[str, Any]:
        return {"modules": self.modules}  # copies solve anew: tensors inside a graph cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.modules, self.solves = state["modules"], 0
        self.invalidate()
        _watched.add(self)

    def of(self, module: Rotation) -> torch.Tensor:
        """Return the rotations of a module, tied to its parameters where gradients are wanted."""
        if self._state.get(id(module)) != _state(module.weight):
            self._solve()
        if not (torch.is_grad_enabled() and module.weight.requires_grad):
            return self._plain[id(module)]
        if id(module) not in self._tied:
            self._tie()
        return self._tied[id(module)]

    @torch.no_grad()
    def _solve(self) -> None:
        self.invalidate()
        groups: defaultdict[Any, list[Rotation]] = defaultdict(list)
        for module in self.modules:
            if module.weight.device.type != "meta":
                groups[module.block_size, module.weight.device, module.weight.dtype].append(module)
        for (block_size, _, _), members in groups.items():
            rotations = solve(torch.cat([module.weight for module in members]), block_size)
            self._solved.append((members, rotations))
            self._plain.update(_split(members, rotations))
        self._state = {id(module): _state(module.weight) for module in self.modules}
        self.solves += 1

    def _tie(self) -> None:
        for members, rotations in self._solved:
            tied = Cayley.apply(torch.cat([module.weight for module in members]), rotations)
            assert isinstance(tied, torch.Tensor)
            self._tied.update(_split(members, tied))


_watched: weakref.WeakSet[Rotations] = weakref.WeakSet()


def _after_a_step(*_: Any) -> None:
    for rotations in list(_watched):
        rotations.invalidate()


register_optimizer_step_post_hook(_after_a_step)  # for every optimizer of this process: all inherit from torch's


def _state(weight: torch.Tensor) -> tuple[int, int]:
    return weight._version, weight.data_ptr()


def _split(members: list[Rotation], rotations: torch.Tensor) -> dict[int, torch.Tensor]:
    parts = rotations.split([module.weight.shape[0] for module in members])
    return {id(module): part for module, part in zip(members, parts, strict=True)}


class Rotation(OFTRotationModule):
    """peft's rotation module with our forward. Never made anew: `host` changes the class of peft's own."""

    rotations: Rotations

    def blocks(self) -> torch.Tensor:
        """Return the rotations, one for each block; a shared one is repeated."""
        found = self.rotations.of(self)
        return found.expand(self.in_features // self.block_size, -1, -1) if self.block_share else found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            made = Rotate.apply(x, self.blocks())
        assert isinstance(made, torch.Tensor)
        return made

    def get_weight(self) -> torch.Tensor:
        return torch.block_diag(*self.blocks())


class RotatedLinear(PeftLinear):
    """peft's layer with merging block by block: b d o multiplications, not d d o, and R^T for the way back, no inverse."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write W R^T over W."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.oft_R:
                self._turn(self._own(name).blocks().mT, check=safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Turn the weights back: W' R."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.oft_R:
                self._turn(self._own(name).blocks())

    def _own(self, name: str) -> Rotation:
        module = self.oft_R[name]
        assert isinstance(module, Rotation)
        return module

    @torch.no_grad()
    def _turn(self, rotations: torch.Tensor, *, check: bool = False) -> None:
        weight = self.get_base_weight()
        turned = _rotated(weight.to(rotations.dtype), rotations)
        if check and not torch.isfinite(turned).all():
            raise ValueError("the merged weights are not finite; the adapter seems to be broken")
        if self.quantization_backend is None:
            weight.copy_(turned)
        else:
            self.set_base_weight(turned.to(weight.dtype))


def host(model: Any, adapter: str | None = None) -> Rotations:
    """Exchange the rotations of a peft model, or of one of its adapters, for ours and return them. What only peft can do
    (the series, COFT, convolutions, embeddings) stays peft's."""
    hosted: list[Rotation] = []
    for layer in model.modules():
        if type(layer) not in (PeftLinear, RotatedLinear):
            continue
        modules = [module for name, module in layer.oft_R.items() if adapter in (None, name)]
        if not all(type(m) is Rotation or _is_exact(m) for m in modules):
            continue
        for module in modules:
            module.__class__ = Rotation
            hosted.append(module)
        layer.__class__ = RotatedLinear
        layer.cast_input_dtype_enabled = False  # the input stays in its own number format
    rotations = Rotations(hosted)
    for module in hosted:
        module.rotations = rotations
    return rotations


class Straight(torch.nn.Linear):
    """A Conv1D (GPT-2: the weight of a linear layer, stored transposed) as the linear layer it is."""


def straighten(model: Any) -> None:
    """Exchange the Conv1D layers of a model for linear ones with the same weights: peft's OFT sits on nothing else
    (peft 0.21, tuners/oft/model.py). A model without any stays as it is."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            made = Straight(inputs, outputs, device="meta")
            made.weight = torch.nn.Parameter(module.weight.data.T.contiguous(), module.weight.requires_grad)
            made.bias = torch.nn.Parameter(module.bias.data, module.bias.requires_grad)
            model.set_submodule(name, made)


def bend_back(model: Any) -> Any:
    """Undo `straighten`, so that a merged model is saved as its architecture has it. Returns the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Straight):
            made = Conv1D(module.out_features, module.in_features)
            made.weight = torch.nn.Parameter(module.weight.data.T.contiguous(), module.weight.requires_grad)
            made.bias = torch.nn.Parameter(module.bias.data, module.bias.requires_grad)
            model.set_submodule(name, made)
    return model


def lay_over(model: Any, folder: Path, **settings: Any) -> Any:
    """Lay the saved adapter of a run, of either kind, over its base; `settings` are those of PeftModel.from_pretrained."""
    if '"OFT"' in (folder / "adapter_config.json").read_text("utf-8"):
        straighten(model)
    made = PeftModel.from_pretrained(model, str(folder), **settings)
    host(made)
    return made


def _is_exact(module: Any) -> bool:
    return type(module) is OFTRotationModule and not module.use_cayley_neumann and not module.coft


def max_q_norm(model: Any) -> float:
    """Return the largest ||Q||_2 of all blocks of a model: a block turns by up to 2 arctan of it."""
    return _max_q_norm([module for module in model.modules() if isinstance(module, OFTRotationModule)])


@torch.no_grad()
def _max_q_norm(modules: Iterable[OFTRotationModule]) -> float:
    """Power iteration finds the blocks that turn most; only these are decomposed."""
    largest = 0.0
    groups: defaultdict[Any, list[torch.Tensor]] = defaultdict(list)
    for module in modules:
        groups[module.block_size, module.weight.device].append(module.weight.float())
    for (block_size, _), weights in groups.items():
        blocks = skew(torch.cat(weights), block_size)
        vector = (
            torch.ones(block_size, 1, device=blocks.device) + torch.arange(block_size, device=blocks.device)[:, None]
        )
        vector = vector.expand(blocks.shape[0], -1, -1)
        for _ in range(8):
            vector = torch.nn.functional.normalize(blocks @ vector, dim=1)
        growth = torch.linalg.vector_norm(blocks @ vector, dim=(1, 2))
        most = blocks[growth.topk(min(16, len(growth))).indices]
        largest = max(largest, float(torch.linalg.matrix_norm(most, 2).max()))
    return largest

"""Merge an adapter into its base, and see that what comes out is the model that was trained before it is used.

Both are asked in fp32, whatever their weights are held in: in 16 bits each layer rounds anew, and two models that are the
same differ by as much as one that was merged wrongly. What rounding the merged weights costs is measured apart from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from engine.runs import failures
from engine.train import oft, parts, precision
from engine.words import Problem

# Logits are compared at so many tokens a text.
LOGIT_TOKENS = 64
# fp32 leaves about 1e-6 a layer between x (W + B A) and x W + x A B; nothing that a person could notice. (SmolLM2 135M, 30
# layers: 3e-6.)
TOLERANCE = 1e-4
# Tokens from all over the vocabulary, as no text has them, may differ by a few times as much as those of a text; a merge
# that moved what it should not (an output layer that is the embedding) was off by 73 %.
STRAY = 4
_TEXT = "What is the capital of France? The capital of France is Paris."


class Joined(NamedTuple):
    """A merged model; its logits in fp32 before its weights were rounded to what they are held in; and by how much these
    differ from the unmerged model's (compare_logits)."""

    model: Any
    exact: list[torch.Tensor]
    off: float
    same: float


def merged(made: Any, tokenizer: Any, ref: str) -> Any:
    """Merge an adapter that `oft.lay_over` has laid over its base and return the model. Raises RunRefused, naming the run
    `ref`, when the merged model does not say what the unmerged one says."""
    found = joined(made, _probes(made, tokenizer))
    if not found.off <= STRAY * TOLERANCE:  # NaN too
        off = {"off": f"{100 * found.off:.2g}", "allowed": f"{100 * STRAY * TOLERANCE:.2g}"}
        raise failures.RunRefused(Problem(rule="merge-differs", parameters={"ref": ref[:80], **off}))
    return found.model


def joined(made: Any, texts: list[list[int]]) -> Joined:
    """Merge an adapter that `oft.lay_over` has laid over its base, block by block, and say how it compares on `texts`. The
    model's weights stay in the number format they are held in, rounded once."""
    before = logits(made, texts)
    _untie(made.get_base_model())
    exact = logits(made, texts, merging=True)
    for layer in _adapted(made.modules()):
        with _widened(list(layer.modules()), back=False):
            layer.merge()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        model = oft.bend_back(made.merge_and_unload())
    return Joined(model, exact, *compare_logits(before, exact))


def _adapted(modules: Iterable[Any]) -> list[Any]:
    return [module for module in modules if isinstance(module, BaseTunerLayer)]


@contextmanager
def _widened(modules: Iterable[Any], *, back: bool, copied: Iterable[Any] = ()) -> Iterator[None]:
    """Hold the weights of modules themselves in fp32 for a while, and of those `copied` a copy where they are so already.
    Then they are what they were, or, without `back`, what became of them, rounded to what they were held in."""
    held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # a tied weight is met twice
    changing = {id(one) for module in copied for one in module.modules()}
    for module in modules:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            narrow = tensor.is_floating_point() and tensor.dtype.itemsize < 4
            if id(tensor) not in held and (narrow or id(module) in changing):
                held[id(tensor)] = tensor, tensor.data
                tensor.data = tensor.data.to(torch.float32 if narrow else tensor.dtype, copy=True)
    try:
        yield
    finally:
        for tensor, was in held.values():
            tensor.data = was if back else tensor.data.to(was.dtype)


@contextmanager
def _in_fp32(model: Any, *, merging: bool) -> Iterator[None]:
    """Let a model compute in fp32 for a while, and with `merging` as though its adapter were merged. One transformer layer
    at a time is held so, beside what lies outside of them, since the whole of a large model may not fit."""
    blocks = {id(block): list(block.modules()) for block in parts.layers(parts.below_adapter(model))}
    inside = {id(module) for modules in blocks.values() for module in modules}
    open_blocks: dict[int, ExitStack] = {}

    def held(stack: ExitStack, modules: list[Any]) -> ExitStack:
        layers = _adapted(modules) if merging else []
        stack.enter_context(_widened(modules, back=True, copied=[layer.get_base_layer() for layer in layers]))
        for layer in layers:
            layer.merge()
            stack.callback(layer.merged_adapters.clear)
        return stack

    with ExitStack() as stack, precision.in_full():
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        for block in parts.layers(parts.below_adapter(model)):

            def begin(block: Any, *_: Any) -> None:
                open_blocks[id(block)] = held(stack.enter_context(ExitStack()), blocks[id(block)])

            def end(block: Any, *_: Any) -> None:
                open_blocks.pop(id(block)).close()

            stack.callback(block.register_forward_pre_hook(begin).remove)
            stack.callback(block.register_forward_hook(end).remove)
        held(stack, [module for module in model.modules() if id(module) not in inside])
        yield


def _untie(model: Any) -> None:
    """Give a model whose output layer is its embedding an output layer of its own where an adapter sits on either:
    unmerged, the adapter changes the one and not the other."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if layers[1] is None:
        return
    (embedding, wrapped), (output, also) = (_below(layer) for layer in layers)
    if output.weight is not embedding.weight or not (wrapped or also):
        return
    output.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _below(layer: Any) -> tuple[Any, bool]:
    """Return the layer under what an adapter put around it, and whether it did."""
    wrapped = False
    while inner := getattr(layer, "base_layer", None) or getattr(layer, "original_module", None):
        layer, wrapped = inner, True
    return layer, wrapped


def _probes(model: Any, tokenizer: Any) -> list[list[int]]:
    """Return a text and tokens from all over the vocabulary, which an adapter on the embedding may each have moved."""
    known = _below(model.get_input_embeddings())[0].weight.shape[0]
    count = 2 * LOGIT_TOKENS
    spread = [place * known // count for place in range(count)]
    return [tokenizer(_TEXT)["input_ids"], spread[::2], spread[1::2]]


@torch.no_grad()
def logits(model: Any, texts: list[list[int]], *, merging: bool = False) -> list[torch.Tensor]:
    """Return a model's logits for the first tokens of each text, computed in fp32; with `merging` those that it would have
    if its adapter were merged in fp32. They lie on the processor."""
    model.eval()
    where = next(model.parameters()).device
    with _in_fp32(model, merging=merging):
        return [
            model(input_ids=torch.tensor([ids[:LOGIT_TOKENS]], device=where)).logits.float().cpu()
            for ids in texts if ids
        ]  # fmt: skip


def compare_logits(before: list[Any], after: list[Any]) -> tuple[float, float]:
    """Return the largest difference of two models' logits over the largest logit, and the share of positions where both
    hold the same token for the likeliest."""
    largest = max((float(a.abs().max()) for a in before), default=0.0) or 1.0
    worst = max((float((a - b).abs().max()) for a, b in zip(before, after, strict=True)), default=0.0)
    same = [(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(before, after, strict=True)]
    return worst / largest, float(torch.cat(same).float().mean()) if same else 1.0

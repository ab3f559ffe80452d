"""What a training step of our OFT costs beside peft's two and LoRA of rank 16, in one run, rounds interleaved.

    python -m bench.oft [--rounds 11] [--widths 256 1024 2048] [--tokens 128 512] [--threads 1 2] [--cpu-time]

For a stack of linear layers of each width, in fp32 on the processor: milliseconds of a step (forward, backward, AdamW)
and of one with four micro-batches; what the adapter adds to the frozen layers' own step, relative to what peft's adds; MiB
that backward keeps (weights left out); and how far the rotations are from orthogonal. What is added is the median, over
the rounds, of the difference to the frozen stack of the same round. On a busy machine `--cpu-time` with `--threads 1`
counts this process's processor time instead of the wall's. The defaults take about three minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, OFTConfig, get_peft_model
from peft.tuners.oft.layer import OFTRotationModule

from engine.train import oft

KINDS = ("frozen", "lora r16", "peft series", "peft exact", "ours")
LAYERS = 2


class Stack(torch.nn.Module):
    """Square linear layers, frozen, with a norm between them so that numbers stay in range."""

    def __init__(self, width: int, dtype: torch.dtype):
        super().__init__()
        made = [torch.nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(LAYERS)]
        self.layers = torch.nn.ModuleList(made).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.nn.functional.rms_norm(layer(x), (x.shape[-1],))
        return x


def build(kind: str, width: int, dtype: torch.dtype) -> Any:
    """Return a stack with one kind of adapter on every layer; the rotations have turned a little."""
    torch.manual_seed(0)
    stack = Stack(width, dtype)
    if kind == "frozen":
        return stack
    if kind == "lora r16":
        config: Any = LoraConfig(r=16, target_modules=["0", "1"])
    else:
        config = OFTConfig(oft_block_size=32, use_cayley_neumann=kind == "peft series", target_modules=["0", "1"])
    model = get_peft_model(stack, config)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, OFTRotationModule):
                module.weight.normal_(std=0.03)
    if kind == "ours":
        oft.host(model)
    return model


class Candidate:
    """A model with its optimizer and times."""

    def __init__(self, kind: str, width: int, tokens: int):
        self.model = build(kind, width, torch.float32)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None
        self.x = torch.randn(tokens, width, requires_grad=True)  # as from the layers before

    def step_ms(self, micro_batches: int, clock: Callable[[], float]) -> float:
        began_s = clock()
        for _ in range(micro_batches):
            self.model(self.x).sum().backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return 1000 * (clock() - began_s)


def saved_mib(kind: str, width: int, tokens: int, dtype: torch.dtype) -> float:
    """Return what the backward of one step keeps, each storage once, weights and parameters left out."""
    model = build(kind, width, dtype)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held = []  # so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(tokens, width, dtype=dtype, requires_grad=True))
    return sum(kept.values()) / 2**20


def stretch(kind: str, width: int) -> float:
    """Return the largest |singular value - 1| of the rotations."""
    found = 0.0
    for module in build(kind, width, torch.float32).modules():
        if isinstance(module, OFTRotationModule):
            with torch.no_grad():
                whole = module.get_weight() if isinstance(module, oft.Rotation) else None
                blocks = (
                    oft.solve(module.weight, module.block_size)
                    if whole is not None
                    else module._cayley_batch(module.weight, module.block_size, module.use_cayley_neumann, 5)
                )
            found = max(found, float((torch.linalg.svdvals(blocks.double()) - 1).abs().max()))
    return found


def compare(width: int, tokens: int, rounds: int, clock: Callable[[], float]) -> None:
    """Print the table of one width and number of tokens."""
    candidates = {kind: Candidate(kind, width, tokens) for kind in KINDS}
    times: dict[tuple[str, int], list[float]] = {(kind, n): [] for kind in KINDS for n in (1, 4)}
    for number in range(rounds + 2):
        for kind, candidate in candidates.items():
            for micro_batches in (1, 4):
                took = candidate.step_ms(micro_batches, clock)
                if number >= 2:  # the first two warm up
                    times[kind, micro_batches].append(took)

    def added(kind: str, n: int) -> float:
        return statistics.median(a - b for a, b in zip(times[kind, n], times["frozen", n], strict=True))

    kept: dict[str, list[float]] = {}
    for kind in KINDS:
        kept[kind] = [saved_mib(kind, width, tokens, dtype) for dtype in (torch.float32, torch.bfloat16)]
        one, four = (statistics.median(times[kind, n]) for n in (1, 4))
        cells = [f"step {one:8.2f} ms, added {added(kind, 1):6.2f}"]
        cells.append(f"4 micro-batches {four:8.2f} ms, added {added(kind, 4):6.2f}")
        cells.append(f"kept fp32 {kept[kind][0]:6.2f} MiB, bf16 base {kept[kind][1]:6.2f} MiB")
        print(f"    {kind:<12} " + "   ".join(cells))
    for other in ("peft series", "peft exact"):
        shares = [added("ours", n) / added(other, n) for n in (1, 4)]
        print(f"    added by ours / by {other}: {shares[0]:.2f} (bar 0.80), 4 micro-batches {shares[1]:.2f} (bar 0.65)")
    more = [kept[kind][1] - kept["frozen"][1] for kind in ("ours", "peft series")]
    print(f"    kept for the adapter on a bf16 base, ours / peft series: {more[0] / more[1]:.2f} (bar 0.60)")
    beside = [
        statistics.median(a / b for a, b in zip(times["ours", n], times["lora r16", n], strict=True)) for n in (1, 4)
    ]
    print(f"    step, ours / lora r16: {beside[0]:.3f} (bar 1.05), 4 micro-batches {beside[1]:.3f}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=11)
    arguments.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 2048])
    arguments.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--cpu-time", action="store_true", help="for a busy machine, with one thread")
    chosen = arguments.parse_args()
    clock = time.process_time if chosen.cpu_time else time.perf_counter
    warnings.simplefilter("ignore")
    # Freeing 32 MiB once, as loading any real model does, makes glibc keep freed memory: before that each tensor here is
    # paged in anew, which costs more than the adapters do, and not all of them the same.
    torch.empty(2**23 - 2**12)
    print(f"{LAYERS} layers, blocks of 32, fp32, torch {torch.__version__}, {chosen.rounds} rounds, medians")
    for width in chosen.widths:
        print(f"d={width}: max |sv - 1| " + ", ".join(f"{kind} {stretch(kind, width):.1e}" for kind in KINDS[2:]))
        for threads in chosen.threads:
            torch.set_num_threads(threads)
            for tokens in chosen.tokens:
                print(f"  d={width}, T={tokens}, {threads} thread{'s' if threads > 1 else ''}")
                compare(width, tokens, chosen.rounds, clock)


if __name__ == "__main__":
    main()

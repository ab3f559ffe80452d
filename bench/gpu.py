"""What training costs on a card: OFT beside peft's and LoRA, LoRA and QLoRA through Unsloth and without it, LoRA in fp16 as
on a card without bf16, rows laid end to end against filled up ones, scores through Unsloth against plain ones, and whether
a 7B-shaped model trains with QLoRA in 8 GB. Prints a table for the README and writes bench/results/<card>.json.

    python -m bench.gpu [--rounds 15] [--parts oft lora qlora fp16 packed scores cap]     on a machine with CUDA
    python -m bench.gpu --tiny --rounds 2       the same code on a processor; fp16 is there what a card would choose

The models have the shapes of Llama-3.2-1B and Llama-2-7B and random weights: nothing is downloaded, and neither speed nor
memory depends on what the weights are. Every figure but those of OFT is measured in a process of its own, which also loads
the model as the product does (engine/train/load.py, adapters.py). Steps are forward, backward and AdamW on rows of
`--tokens` random tokens, in the format that the product chooses; medians after warming up; peak memory is torch's,
allocated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import processes

ROOT = processes.PROJECT_DIR
RESULTS = ROOT / "bench" / "results"
PARTS = ("oft", "lora", "qlora", "fp16", "packed", "scores", "cap")
# Which backends a part is measured with, where not with all.
ONLY_PLAIN = ("fp16", "packed")
OFT_KINDS = ("frozen", "lora r16", "peft series", "peft exact", "ours")
CAP_BYTES = 8 * 10**9  # "8 GB" as it is sold, the stricter reading
WARM_UP = 3
# The published configurations (config.json of Llama-3.2-1B and Llama-2-7b).
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True,
    },
}  # fmt: skip


# --- arithmetic, tested without a card ---------------------------------------------------------------------------


def oft_ratios(step_ms: dict[str, float], four_ms: dict[str, float]) -> dict[str, float]:
    """Return what the bars of the project ask for, from milliseconds by kind (four_ms: four micro-batches a step):
    the whole step against LoRA's and peft's, and what the adapter adds to the frozen model's step against peft's."""
    found = {"step / lora": step_ms["ours"] / step_ms["lora r16"]}
    for peft in ("peft series", "peft exact"):
        found[f"step / {peft}"] = step_ms["ours"] / step_ms[peft]
        for name, times in (("added", step_ms), ("added, 4 micro-batches", four_ms)):
            theirs = times[peft] - times["frozen"]
            found[f"{name} / {peft}"] = (times["ours"] - times["frozen"]) / theirs if theirs > 0 else float("nan")
    return {name: round(value, 3) for name, value in found.items()}


def compared(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return Unsloth's tokens per second and peak memory relative to plain's, by part, where both ran."""
    found = {}
    for part in {row["part"] for row in rows}:
        of = {row["backend"]: row for row in rows if row["part"] == part and "tokens_per_s" in row}
        if {"plain", "unsloth"} <= set(of):
            fast, plain = of["unsloth"], of["plain"]
            found[part] = {
                "speed": round(fast["tokens_per_s"] / plain["tokens_per_s"], 3),
                "memory": round(fast["peak_mib"] / plain["peak_mib"], 3) if plain["peak_mib"] else float("nan"),
            }
    return found


# --- on the device -----------------------------------------------------------------------------------------------


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def name_of_device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "processor"


def now_s() -> float:
    """Return the time once the device has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def random_model(shape: str, tokens: int) -> Any:
    """Return a model of random weights on the device: bf16 on a card."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device()):
        torch.set_default_dtype(torch.bfloat16 if device() == "cuda" else torch.float32)
        try:
            return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=max(2048, tokens)))
        finally:
            torch.set_default_dtype(torch.float32)


def write_model(folder: Path, shape: str, tokens: int) -> None:
    """Write a random model and the starter's tokenizer, so that both backends can load it."""
    from transformers import AutoTokenizer

    from engine import starter

    random_model(shape, tokens).save_pretrained(folder)
    AutoTokenizer.from_pretrained(starter.MODEL_DIR, trust_remote_code=False).save_pretrained(folder)


class Loop:
    """A model, its optimizer and its rows."""

    def __init__(self, model: Any, rows: int, tokens: int, vocabulary: int, precision: str = "bf16"):
        import torch

        self.model = model.train()
        self._dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        self._rounds = precision == "fp16" or (precision == "bf16" and device() == "cuda")
        self._scaler = torch.amp.GradScaler(device(), enabled=precision == "fp16")
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None
        dice = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, vocabulary, (rows, tokens), generator=dice).to(device())

    def step_ms(self, micro_batches: int = 1) -> float:
        import torch

        began_s = now_s()
        for _ in range(micro_batches):
            with torch.autocast(device(), self._dtype, enabled=self._rounds):
                loss = self.model(input_ids=self.ids, labels=self.ids).loss
            if loss.requires_grad:
                self._scaler.scale(loss).backward()
            self.loss = loss.detach()
        if self.optimizer is not None:
            self._scaler.step(self.optimizer)
            self._scaler.update()
            self.optimizer.zero_grad()
        return 1000 * (now_s() - began_s)


def adapted(kind: str, shape: str, tokens: int) -> Any:
    """Return a random model with one kind of adapter on every linear layer. Without any, gradients still flow down to
    the embedding's output, as below an adapter, so that what is compared is the adapter alone."""
    from peft import LoraConfig, OFTConfig, get_peft_model

    from engine.train import oft

    model = random_model(shape, tokens)
    if kind == "frozen":
        model.requires_grad_(False)
        model.enable_input_require_grads()
        return model
    if kind == "lora r16":
        config: Any = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    else:
        config = OFTConfig(
            oft_block_size=32, use_cayley_neumann=kind == "peft series", target_modules="all-linear",
            task_type="CAUSAL_LM",
        )  # fmt: skip
    made = get_peft_model(model, config)
    if kind == "ours":
        oft.host(made)
    return made


def measure_oft(shape: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Return times and peak memory of a step for each kind. Where the card holds all models at once the rounds are
    interleaved, so that its clock is the same for all; memory is always measured one model at a time."""
    import gc

    import torch

    vocabulary = SHAPES[shape]["vocab_size"]
    peak_mib: dict[str, float] = {}
    for kind in OFT_KINDS if device() == "cuda" else ():
        loop = Loop(adapted(kind, shape, tokens), 1, tokens, vocabulary)
        loop.step_ms()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        loop.step_ms()
        peak_mib[kind] = round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
        del loop
        gc.collect()
        torch.cuda.empty_cache()
    together = device() == "cpu" or torch.cuda.mem_get_info()[0] > 40 * 2**30
    times: dict[tuple[str, int], list[float]] = {(kind, n): [] for kind in OFT_KINDS for n in (1, 4)}
    for group in [OFT_KINDS] if together else [(kind,) for kind in OFT_KINDS]:
        loops = {kind: Loop(adapted(kind, shape, tokens), 1, tokens, vocabulary) for kind in group}
        for number in range(rounds + WARM_UP):
            for kind, loop in loops.items():
                for n in (1, 4):
                    took = loop.step_ms(n)
                    if number >= WARM_UP:
                        times[kind, n].append(took)
        del loops
        gc.collect()
    step = {kind: statistics.median(times[kind, 1]) for kind in OFT_KINDS}
    four = {kind: statistics.median(times[kind, 4]) for kind in OFT_KINDS}
    return {
        "part": "oft", "shape": shape, "tokens": tokens, "rounds": rounds, "interleaved": together,
        "step_ms": {kind: round(ms, 3) for kind, ms in step.items()},
        "four_micro_batches_ms": {kind: round(ms, 3) for kind, ms in four.items()},
        "step_needs_mib": peak_mib, "ratios": oft_ratios(step, four),
    }  # fmt: skip


def spec_of(part: str, folder: str, backend: str, tokens: int) -> Any:
    """Return the spec of a part, as the product resolves it."""
    from engine.spec import recipes

    recipe = recipes.recipes()["qlora" if part in ("qlora", "cap") else "lora"]
    settings: dict[str, Any] = {
        "machine.backend": backend, "train.max_length": tokens, "train.batch_size": 1 if part == "cap" else 4,
        "train.gradient_checkpointing": part == "cap",
    }  # fmt: skip
    run_spec, wrong = recipes.resolve(
        recipe, base=folder, revision=None, parameters=1e9, dataset_id="none", overrides=settings
    )
    assert not wrong, wrong
    return run_spec


def decided(part: str, run_spec: Any, home: str) -> Any:
    """Return what the machine decides; for fp16 what a card without bf16 would, such as a T4, wherever this runs."""
    from engine.estimate import machine_choices, memory
    from engine.models import bases
    from engine.train import backend as backends
    from engine.workspace import Workspace

    if part != "fp16":
        return backends.decide(run_spec, Workspace(home))
    shape = bases.describe(run_spec.base.ref, Workspace(home)).shape
    card = machine_choices.Device("cuda", 16 * 2**30)
    return machine_choices.choose(run_spec, card, shape, memory.setup_of(run_spec))


def measure_training(part: str, folder: str, backend: str, shape: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Return tokens per second and peak memory of LoRA or QLoRA, loaded as the product loads it; `cap` is QLoRA, one row
    a step with checkpointing, on a card that is told it has 8 GB; `fp16` LoRA as on a card without bf16."""
    import torch

    if part == "cap" and device() == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_BYTES / total))
    from engine.train import backend as backends
    from engine.workspace import Workspace

    run_spec = spec_of(part, folder, backend, tokens)
    with tempfile.TemporaryDirectory() as home:
        chosen = decided(part, run_spec, home)
        if chosen.backend == "unsloth":
            backends.import_unsloth(Path(home))
        from engine.train import adapters, load

        row = {"part": part, "backend": chosen.backend, "precision": chosen.precision, "shape": shape, "tokens": tokens,
               "rows": run_spec.train.batch_size, "checkpointing": chosen.gradient_checkpointing}  # fmt: skip
        try:
            loaded = load.load(run_spec, Workspace(home), chosen).model
            if part == "fp16":  # on a processor it comes in fp32
                loaded = loaded.half()
            model = adapters.prepare(loaded, run_spec, chosen).model
            with adapters.kept_whole(model):
                pass
            if chosen.gradient_checkpointing and chosen.backend == "plain":
                model.gradient_checkpointing_enable({"use_reentrant": False})
            loop = Loop(
                model, run_spec.train.batch_size, tokens, SHAPES[shape]["vocab_size"],
                chosen.precision if part == "fp16" else "bf16",
            )  # fmt: skip
            took = [loop.step_ms() for _ in range(rounds + WARM_UP)][WARM_UP:]
        except torch.OutOfMemoryError as error:
            return {**row, "out_of_memory": str(error).splitlines()[0]}
    peak = torch.cuda.max_memory_allocated() / 2**20 if device() == "cuda" else 0.0
    per_step = run_spec.train.batch_size * tokens
    formats = {
        "base": str(loaded.dtype).removeprefix("torch."), "loss": round(float(loop.loss), 4),
        "trained": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}),
    }  # fmt: skip
    return {
        **row, "step_ms": round(statistics.median(took), 2), "peak_mib": round(peak, 1),
        "tokens_per_s": round(1000 * per_step / statistics.median(took), 1), "held_in": formats,
    }  # fmt: skip


def measure(part: str, given: Any, tokens: int) -> dict[str, Any]:
    """Return what one measurement of a process of its own found."""
    if part == "oft":
        return measure_oft(given.shape, tokens, given.rounds)
    if part not in ("packed", "scores"):
        return measure_training(part, given.folder, given.backend, given.shape, tokens, given.rounds)
    from bench import gpu_checks
    from engine.runs import failures

    run_spec, vocabulary = spec_of(part, given.folder, given.backend, tokens), SHAPES[given.shape]["vocab_size"]
    if part == "packed":
        return gpu_checks.measure_packed(run_spec, device() == "cuda", vocabulary)
    try:
        return gpu_checks.measure_scores(run_spec, given.backend, vocabulary)
    except failures.RunRefused as refused:  # Unsloth does not load on every processor
        return {"part": part, "backend": given.backend, "refused": refused.problem.sentence[:300]}


def table(result: dict[str, Any]) -> str:
    """Return the result as a table in Markdown, under the card's name."""
    lines = [f"{result['card']}, {result['date']}:", "", "| part | backend | format | tokens/s | peak, MiB | |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in result["rows"]:
        if row["part"] == "scores":
            continue
        rest = row.get("out_of_memory") or row.get("failed") or ""
        if row["part"] == "packed" and "agree" in row:
            rest = f"end to end {row['speed']} times as fast, loss apart {row['loss_apart']:.0e}, right: {row['agree']}"
        if row["part"] == "oft" and "ratios" in row:
            ratios = row["ratios"]
            rest = f"step {ratios['step / lora']} times LoRA's, {ratios['step / peft exact']} times peft's exact"
        told = (row["part"], row.get("backend", ""), row.get("precision", ""), row.get("tokens_per_s", ""),
                row.get("peak_mib", ""), rest)  # fmt: skip
        lines.append("| " + " | ".join(str(one) for one in told) + " |")
    scores = result["scores_apart"] or "not compared: Unsloth did not score here"
    return "\n".join([*lines, "", f"Scores through Unsloth against plain ones, nats a token: {scores}"])


def in_a_process(*arguments: str) -> dict[str, Any]:
    """Run one measurement in a process of its own and return what it found."""
    done = subprocess.run([sys.executable, "-m", "bench.gpu", *arguments], cwd=ROOT, capture_output=True, text=True)  # noqa: S603 - a list, no shell
    if done.returncode:
        return {"part": arguments[1], "failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a processor too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measurement of its own process
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--backend", default="plain", help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="1b", help=argparse.SUPPRESS)
    given = parser.parse_args()
    tokens = given.tokens or (32 if given.tiny else 1024)
    if given.one == "write":
        write_model(Path(given.folder), given.shape, tokens)
        print("{}")
        return
    if given.one:
        print(json.dumps(measure(given.one, given, tokens)))
        return

    import torch

    from engine.estimate import machine_choices

    if device() == "cpu" and not given.tiny:
        sys.exit("There is no card here. --tiny runs the same code on a processor.")
    common = ("--rounds", str(given.rounds), "--tokens", str(tokens))
    backends = ["plain", *(["unsloth"] if machine_choices.installed("unsloth") else [])]
    result = finished(given.parts, given.tiny, backends, common)
    given.out.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in result["card"].lower())
    path = given.out / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(table(result))
    print(f"written to {path}; torch {torch.__version__}")


def finished(parts: list[str], tiny: bool, backends: list[str], common: tuple[str, ...]) -> dict[str, Any]:
    """Measure the parts, each in a process of its own, and return all that was found."""
    from bench import gpu_checks

    rows: list[dict[str, Any]] = []
    if "oft" in parts:
        rows.append(in_a_process("--one", "oft", "--shape", "tiny" if tiny else "1b", *common))
    with tempfile.TemporaryDirectory() as folder:
        for shape, of_shape in (("1b", ("lora", "qlora", "fp16", "packed", "scores")), ("7b", ("cap",))):
            wanted = [part for part in of_shape if part in parts]
            if not wanted:
                continue
            shape, target = "tiny" if tiny else shape, str(Path(folder) / shape)
            in_a_process("--one", "write", "--folder", target, "--shape", shape, *common)
            for part in wanted:
                for backend in ["plain"] if part in ONLY_PLAIN else backends:
                    where = ("--folder", target, "--shape", shape, "--backend", backend)
                    rows.append(in_a_process("--one", part, *where, *common))
                    print(json.dumps(rows[-1]), flush=True)
    versions = {name: str(__import__(name).__version__) for name in ("torch", "transformers", "peft")}
    return {
        "card": name_of_device(), "capped_at_bytes": CAP_BYTES, "versions": versions, "rows": rows,
        "unsloth_against_plain": compared(rows), "scores_apart": gpu_checks.apart(rows),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


if __name__ == "__main__":
    main()

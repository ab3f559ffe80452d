"""What a card has to show besides its speed (bench/gpu.py): that rows laid end to end train as filled up, and that a model
is scored through Unsloth as it is without it. Random weights and tokens."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

# Contexts of so many shares of the window, and endings of so many tokens: the longest are longer than the rows trained on.
CONTEXTS, ENDINGS = (0.95, 0.5, 0.25, 0.1), (1, 3, 8)
# So far log-probabilities in 16 bits may lie apart, in nats a token on average: rounding by 2**-8 in each layer.
APART_IN_16_BITS, APART_IN_32_BITS = 0.1, 1e-3


def apart(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how far scores through Unsloth lie from plain ones, in nats a token; nothing where one of them has none."""
    of = {row["backend"]: row for row in rows if row["part"] == "scores" and "nats" in row}
    if not {"plain", "unsloth"} <= set(of):
        return {}
    plain, fast = of["plain"]["nats"], of["unsloth"]["nats"]
    tokens = of["plain"]["ending_tokens"]
    each = [abs(one - other) / n for one, other, n in zip(plain, fast, tokens, strict=True)]
    most = APART_IN_32_BITS if of["plain"]["held"].startswith("torch.float32") else APART_IN_16_BITS
    mean = sum(each) / len(each)
    return {"questions": len(each), "mean": round(mean, 5), "most": round(max(each), 5), "right": mean <= most}


def measure_scores(run_spec: Any, backend: str, vocabulary: int) -> dict[str, Any]:
    """Return the log-likelihoods of random endings after random contexts, up to the window that benchmarks are asked in."""
    from engine.train import backend as backends
    from engine.workspace import Workspace

    with tempfile.TemporaryDirectory() as home:
        workspace = Workspace(home)
        chosen = backends.decide(run_spec, workspace)
        if chosen.backend == "unsloth":
            backends.import_unsloth(Path(home))
        from engine.train import load
        from engine.train.scoring import likelihood

        loaded = load.load(run_spec, workspace, chosen)
        window = min(loaded.base.window_tokens or load.MOST_WINDOW_TOKENS, load.MOST_WINDOW_TOKENS)
        draw = random.Random(0)  # noqa: S311 - tokens, not a secret
        contexts = [tuple(draw.randrange(5, vocabulary) for _ in range(int(share * window))) for share in CONTEXTS]
        asked = [(one, tuple(draw.randrange(5, vocabulary) for _ in range(n))) for one in contexts for n in ENDINGS]
        found: dict[Any, Any] = {}
        for some in likelihood.Reader(loaded.model.eval()).answers(asked):
            found |= some
        return {
            "part": "scores", "backend": chosen.backend, "held": load.held(run_spec, workspace, chosen), "window": window,
            "nats": [round(found[one][0], 5) for one in asked], "ending_tokens": [len(one[1]) for one in asked],
        }  # fmt: skip


def measure_packed(run_spec: Any, on_card: bool, vocabulary: int) -> dict[str, Any]:
    """Return how far rows laid end to end lie from the same filled up, and how much faster they are, by the comparison that
    a run makes at its start (engine/train/batches.py)."""
    import transformers
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from engine.render.encode import Encoded
    from engine.train import adapters, batches, load, objectives
    from engine.train import backend as backends
    from engine.workspace import Workspace

    with tempfile.TemporaryDirectory() as home:
        sft: Any = objectives.of("sft")
        chosen = backends.decide(run_spec, Workspace(home))
        loaded = load.load(run_spec, Workspace(home), chosen)
        transformers.set_seed(0)
        prepared = adapters.prepare(loaded.model, run_spec, chosen)
        draw = random.Random(0)  # noqa: S311 - tokens, not a secret
        lengths = [max(4, run_spec.train.max_length // share) for share in (1, 2, 4, 8)]
        ids = [[draw.randrange(5, vocabulary) for _ in range(length)] for length in lengths]
        args = SFTConfig(
            output_dir=home, per_device_train_batch_size=len(ids), report_to="none", use_cpu=not on_card, max_length=None,
            bf16=chosen.bf16, fp16=chosen.precision == "fp16", loss_type="nll", gradient_checkpointing=False,
            disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        with adapters.kept_whole(prepared.model):
            trainer = SFTTrainer(
                model=prepared.model, args=args, processing_class=loaded.tokenizer,
                train_dataset=sft.as_dataset([Encoded(one, list(one), cut=False) for one in ids]),
            )  # fmt: skip
        rows: Any = trainer.train_dataset
        found = batches.compare(trainer, [rows[row] for row in range(len(ids))])
    speed = found.padded_s / found.packed_s if found.agree and found.packed_s else 0.0
    return {
        "part": "packed", "backend": "plain", "precision": chosen.precision, "agree": found.agree,
        "loss_apart": found.loss_apart, "gradients_apart": found.gradients_apart, "speed": round(speed, 3),
    }  # fmt: skip

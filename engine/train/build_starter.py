"""Train the starter from its seed and write the model, the benchmark, the samples and the manifest.

`python -m engine.train.build_starter [--out DIR]` builds; `--score` scores the stored model on its benchmark instead
and prints JSON. Runs on the CPU with a set number of threads, for some minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine import starter
from engine.starter import world

# The shipped weights were made with two. While other programs want the cores, --threads 1 is the faster choice.
THREADS = 2
VOCABULARY = 1024
WINDOW_TOKENS = 1024
# Tried: 64 dialogues a step at 2e-3 with a cosine learn most in 1,600 steps and the sums in 3,000.
# A world with three other words came out at 97.6 % instead of 100 %: expect such a spread from any change here.
STEPS = 3000
BATCH_DIALOGUES = 64
LEARNING_RATE = 2e-3
WARMUP_STEPS = 80
# Prompts count a little, so that the model also knows how its world asks; the answers are what matters.
PROMPT_WEIGHT = 0.1

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
# The tokenizer's trainer gives them the first ids, in this order.
SPECIAL_TOKENS = [PAD, END, SYSTEM, USER, ASSISTANT]
PAD_ID, END_ID = SPECIAL_TOKENS.index(PAD), SPECIAL_TOKENS.index(END)

# Nothing stands between a header and its text, so a rendered beginning is always a beginning of the whole.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- elif message['role'] in ['system', 'user'] -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- else -%}"
    "{{- raise_exception('unknown role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: every UTF-8 text encodes, and decodes to itself. Digits stand alone, for sums."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Each digit is a part of its own; everything else is split as in GPT-2.
            pre_tokenizers.Split(Regex(r"[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=WINDOW_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of about a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    model = LlamaForCausalLM(config)
    # Without a limit of its own, generate() stops after 20 tokens, the prompt's among them.
    model.generation_config.max_new_tokens = 64
    model.generation_config._from_model_config = False
    return model


def encode(tokenizer: PreTrainedTokenizerFast, dialogue: world.Dialogue) -> tuple[list[int], list[float]]:
    """Return token ids and the weight of each as a target: 1 in answers and their end, little in prompts."""
    ids: list[int] = []
    weights: list[float] = []
    for message in dialogue:
        header = SPECIAL_TOKENS.index(f"<|{message['role']}|>")
        body = [*tokenizer.encode(message["content"], add_special_tokens=False), END_ID]
        # The header after a prompt is always given, so no weight is spent on it.
        weight = 1.0 if message["role"] == "assistant" else PROMPT_WEIGHT
        ids += [header, *body]
        weights += [0.0, *[weight] * len(body)]
    return ids, weights


def batches(rows: list[tuple[list[int], list[float]]], rng: random.Random) -> list[list[tuple[list[int], list[float]]]]:
    """Cut the rows into batches of like lengths, taken from windows of 16 batches and shuffled: less padding."""
    cut = []
    window = BATCH_DIALOGUES * 16
    for start in range(0, len(rows), window):
        near = sorted(rows[start : start + window], key=lambda row: len(row[0]))
        parts = [near[i : i + BATCH_DIALOGUES] for i in range(0, len(near), BATCH_DIALOGUES)]
        rng.shuffle(parts)
        cut += parts
    return cut


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Train on generated dialogues, each seen once: linear warmup, cosine to a tenth."""
    dialogues = world.training_dialogues(world.SEED, steps * BATCH_DIALOGUES)
    rows = [encode(tokenizer, dialogue) for dialogue in dialogues]
    plan = batches(rows, random.Random(world.SEED))  # noqa: S311 - an order of batches, not a secret
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, len(plan) - WARMUP_STEPS)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    started_s = time.monotonic()
    for step, batch in enumerate(plan, 1):
        ids, weights = padded(batch)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            elapsed_s = time.monotonic() - started_s
            print(f"step {step} of {len(plan)}: loss {loss.item():.4f}, {elapsed_s:.0f} s", file=sys.stderr, flush=True)


def padded(batch: list[tuple[list[int], list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and weights filled up on the right; causal attention and weight 0 keep the filling without effect."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), longest), PAD_ID)
    weights = torch.zeros((len(batch), longest))
    for row, (tokens, importance) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(tokens)] = torch.tensor(importance)
    return ids, weights


@torch.inference_mode()
def score(model, tokenizer, items: list[dict], batch_rows: int = 256) -> dict:
    """Return the share of items whose right choice has the highest log-likelihood, overall and by family.

    A choice's log-likelihood is the sum over its tokens after the rendered prompt, the end token left out.
    """
    model.eval()
    rows: list[tuple[list[int], list[float]]] = []
    for item in items:
        messages = [{"role": "user", "content": item["prompt"]}]
        head = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head_ids = tokenizer.encode(head, add_special_tokens=False)
        for choice in item["choices"]:
            ids = tokenizer.encode(choice, add_special_tokens=False)
            rows.append(([*head_ids, *ids], [*[0.0] * len(head_ids), *[1.0] * len(ids)]))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    sums = [0.0] * len(rows)
    for start in range(0, len(order), batch_rows):
        chosen = order[start : start + batch_rows]
        ids, weights = padded([rows[i] for i in chosen])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for i, total in zip(chosen, (losses * weights[:, 1:]).sum(1).tolist(), strict=True):
            sums[i] = -total
    right: dict[str, list[bool]] = defaultdict(list)
    at = 0
    for item in items:
        n = len(item["choices"])
        best = max(range(n), key=lambda c: sums[at + c])
        gold = item["gold"] if "gold" in item else item["choices"].index(item["completion"])
        right[item["family"]].append(best == gold)
        at += n
    everything = [one for family in right.values() for one in family]
    return {
        "overall": round(sum(everything) / len(everything), 4),
        "families": {family: round(sum(ones) / len(ones), 4) for family, ones in right.items()},
        "items": len(everything),
    }


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")


def write_data(out: Path) -> None:
    """Write the benchmark and the samples; needs no training."""
    write_jsonl(out / starter.BENCHMARK.name, world.benchmark_items(world.SEED))
    for name, rows in world.sample_files().items():
        write_jsonl(out / starter.SAMPLES_DIR.name / name, rows)


def write_manifest(out: Path, steps: int) -> dict:
    """Hash what lies in `out`, score the stored model as a user would load it, and write the manifest. No date."""
    model, tokenizer = load(out / starter.MODEL_DIR.name)
    # File names are enumerated, so that nothing can be shipped that verify() does not look at.
    folders = (out / starter.MODEL_DIR.name, out / starter.SAMPLES_DIR.name)
    files = [out / starter.BENCHMARK.name, *(path for folder in folders for path in sorted(folder.iterdir()))]
    manifest = {
        "name": "starter",
        "about": "A toy model of a toy world: it shows the mechanics of fine-tuning, not quality.",
        "seed": world.SEED,
        "steps": steps,
        "batch_dialogues": BATCH_DIALOGUES,
        "learning_rate": LEARNING_RATE,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "window_tokens": WINDOW_TOKENS,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "sha256": {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        "scores": score(model, tokenizer, read_jsonl(out / starter.BENCHMARK.name)),
    }
    (out / starter.MANIFEST.name).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8", newline="\n")
    return manifest


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def load(folder: Path):
    """Load the stored model the plain way, as any user of transformers would."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def build(out: Path, steps: int = STEPS) -> dict:
    """Make everything in `out` and return the manifest."""
    torch.manual_seed(world.SEED)
    texts = [message["content"] for dialogue in world.training_dialogues(world.SEED, 20_000) for message in dialogue]
    tokenizer = make_tokenizer(texts)
    model = make_model(tokenizer)
    train(model, tokenizer, steps)
    folder = out / starter.MODEL_DIR.name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for the owner alone, but it ships to everybody
    write_data(out)
    return write_manifest(out, steps)


def main(arguments: list[str] | None = None) -> int:
    """Build, or score with --score; prints JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m engine.train.build_starter", description="Make the starter model.")
    parser.add_argument(
        "--out", type=Path, default=starter.MANIFEST.parent, help="folder to write to or, with --score, to read from"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default %(default)s)")
    parser.add_argument("--threads", type=int, default=THREADS, help="CPU threads (default %(default)s)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--score", action="store_true", help="score the stored model and build nothing")
    what.add_argument("--data-only", action="store_true", help="write benchmark, samples and manifest; keep the model")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.score:
        model, tokenizer = load(options.out / starter.MODEL_DIR.name)
        print(json.dumps(score(model, tokenizer, read_jsonl(options.out / starter.BENCHMARK.name))))
        return 0
    if options.data_only:
        write_data(options.out)
        steps = json.loads((options.out / starter.MANIFEST.name).read_text("utf-8"))["steps"]
        manifest = write_manifest(options.out, steps)
    else:
        manifest = build(options.out, options.steps)
    print(json.dumps({"parameters": manifest["parameters"], "scores": manifest["scores"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

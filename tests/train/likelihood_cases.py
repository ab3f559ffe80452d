"""What tests/train/test_likelihood.py claims, tried with torch in a process of its own: prints one JSON object."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.benchmarks import shipped
from engine.train.scoring import harness, likelihood, lm
from engine.train.scoring.likelihood import Reader
from engine.train.scoring.trees import Wanted
from tests import tiny_models

WINDOW = 256


def cases() -> dict[str, list[Any]]:
    """Return questions (context, continuation) of every kind; tokens are the numbers 3 to 1,000."""
    draw = random.Random(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 1000) for _ in range(n))

    header = tokens(60)
    return {
        "long contexts": [(c, tokens(k)) for c in (tokens(90), tokens(83), tokens(31)) for k in (1, 2, 5, 9)],
        "examples": [((*header, *tokens(n)), tokens(1)) for n in (3, 9, 4, 7, 12)],
        "letters": [(c, (k,)) for c in (tokens(40), tokens(22)) for k in (5, 6, 7, 8)],
        "one in another": [(c, (7, 8, 9)[:k]) for c in (tokens(50),) for k in (1, 2, 3)],
        "short": [((n,), tokens(6)) for n in range(3, 9)],
        "the whole window": [(c, tokens(k)) for c in (tokens(WINDOW - 8),) for k in (3, 8, 9)],
    }


def alone(model: Any, context: tuple[int, ...], continuation: tuple[int, ...]) -> tuple[float, bool]:
    """Return the answer to one question read by itself, in double precision after the model."""
    ids = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        likely = model(ids[:, :-1]).logits[0, len(context) - 1 :].double().log_softmax(-1)
    want = torch.tensor(continuation)
    return float(likely[range(len(want)), want].sum()), bool((likely.argmax(-1) == want).all())


class Watched:
    """Counts the tokens that go through a model, and the most logits it made at once."""

    def __init__(self, model: Any):
        self.tokens, self.logits = 0, 0
        head = model.get_output_embeddings()
        self._hooks = [
            model.base_model.register_forward_hook(self._see, with_kwargs=True), head.register_forward_hook(self._make)
        ]  # fmt: skip

    def _see(self, _: Any, arguments: Any, keywords: Any, out: Any) -> None:
        self.tokens += keywords["input_ids"].numel()

    def _make(self, _: Any, arguments: Any, logits: Any) -> None:
        self.logits = max(self.logits, logits.numel())

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def read(model: Any, asked: list[Any]) -> dict[str, Any]:
    """Return how far the answers lie from those of each question alone, and what it took to get them."""
    reader = Reader(model)
    ways = reader.ways(
        [Wanted((*one, *two), range(len(one), len(one) + len(two))) for one, two in asked]
    )  # not counted
    watched = Watched(model)
    found: dict[Any, Any] = {}
    for answers in reader.answers(asked):
        found |= answers
    watched.close()
    true = {one: alone(model, *one) for one in asked}
    return {
        "questions": len(found) == len(asked),
        "difference": max(abs(found[one][0] - true[one][0]) for one in asked),
        "greedy": all(found[one][1] == true[one][1] for one in asked),
        "spared": 1 - watched.tokens / sum(len(c) + len(k) - 1 for c, k in asked),
        "logits": watched.logits,
        "ways": ways,
    }


class Forgets(transformers.LlamaModel):
    """Takes a cache and pays no heed to it, as a model with states of another kind may."""

    def forward(self, *given: Any, past_key_values: Any = None, **more: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length():
            more["attention_mask"] = more["attention_mask"][..., past_key_values.get_seq_length() :]
        return super().forward(*given, **(more | {"use_cache": False}))


class Unseeing(transformers.LlamaModel):
    """Looks at all that lies before a token, whatever it is told to look at."""

    def forward(self, *given: Any, attention_mask: Any = None, **more: Any) -> Any:
        return super().forward(*given, **more)


class Capped(transformers.LlamaForCausalLM):
    """Does something to its logits after its output layer."""

    def forward(self, *given: Any, **more: Any) -> Any:
        told: Any = super().forward(*given, **more)
        told.logits = 0.1 * torch.tanh(told.logits / 0.1)
        return told


def other(body: type, config: Any) -> Any:
    model = transformers.LlamaForCausalLM(config).eval()
    model.model = body(config).eval()
    return model


def kept(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Score a task of the harness, stopped halfway and torn, and once unbroken."""

    def score(answered: lm.Answered | None) -> list[Any]:
        return harness.score_harness(
            model, tokenizer, "tunebook_winogrande_200", limit=20, shots=0, chat=False, max_length=WINDOW,
            include_path=str(shipped.HERE), answered=answered,
        )  # fmt: skip

    likelihood.MOST_ROWS = 4
    shares: list[tuple[float, bool]] = []

    def answered(path: Path, key: str, most: float) -> lm.Answered:
        return lm.Answered(path, key, lambda *told: shares.append(told), lambda: shares[-1][0] >= most)

    part = folder / "part"
    watched = Watched(model)
    stopped = False
    first = answered(part, "a", 0.4)
    try:
        score(first)
    except lm.Stopped:
        stopped = True
    first.close()
    done = len(first)
    with part.open("ab") as file:
        file.write(b'["torn')
    second = answered(part, "a", 2.0)
    resumed = score(second)
    second.close()
    tokens = watched.tokens
    unbroken = score(None)
    twice = watched.tokens - tokens
    other = answered(part, "another key", 2.0)
    other.close()
    return {
        "stopped": stopped, "done": done, "all": len(second), "same": resumed == unbroken, "tokens": [tokens, twice],
        "shares": shares[-1], "known": [share for share in shares if not share[1]], "other": len(other),
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    models = {}
    for shape in tiny_models.SHAPES:
        path = tiny_models.make(folder, shape)
        models[shape] = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        told[shape] = {name: read(models[shape], asked) for name, asked in cases().items()}
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=1024, hidden_size=32, num_hidden_layers=2, state_size=4)
    ).eval()
    told["mamba"] = {"long contexts": read(mamba, cases()["long contexts"])}
    config = transformers.LlamaConfig(**{**models["llama"].config.to_dict(), "tie_word_embeddings": False})
    for name, odd in (
        ("forgets", other(Forgets, config)), ("unseeing", other(Unseeing, config)),
        ("capped", Capped(config).eval()), ("eager", models["llama"]),
    ):  # fmt: skip
        odd.config._attn_implementation = "eager" if name == "eager" else "sdpa"
        told[name] = {kind: read(odd, cases()[kind]) for kind in ("long contexts", "examples")}
    models["llama"].config._attn_implementation = "sdpa"
    windowed = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, sliding_window=64,
        )
    ).eval()  # fmt: skip
    told["sliding"] = {name: read(windowed, cases()[name]) for name in ("long contexts", "letters")}
    likelihood.FLOAT_CHUNK_TOKENS, likelihood.FLOAT_CHUNK, likelihood.LOGIT_CHUNK_TOKENS = 4, 1024 * 4, 20
    told["few logits"] = {name: read(models["gpt2"], asked) for name, asked in cases().items()}
    told["a long text"] = read(models["llama"], [((1,), cases()["the whole window"][0][0])])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "llama")
    os.chdir(shipped.HERE)
    told["kept"] = kept(models["llama"], tokenizer, folder)
    print(json.dumps(told))


if __name__ == "__main__":
    main()

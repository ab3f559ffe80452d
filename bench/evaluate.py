"""Our scoring against lm-evaluation-harness' own model class, in one run: the same answers, and how long each takes.

    python -m bench.evaluate [--rounds 5] [--base starter] [--limit 0] [--threads 1] [--precision fp32] [--rows FILE]

of a real base, in some minutes: --base FOLDER --precision bf16 --threads 2 --limit 64 --rounds 2 --rows ALPACA.jsonl

Every benchmark that ships, and three sets with what can be shared: long passages with four choices, with eight, and
five worked examples before each question. Both model classes are asked by `lm_eval.simple_evaluate`, rounds interleaved;
the harness' HFLM with that batch size of 16 and 64 which was quicker in a first round. Counted is the time inside of the
model class (its loglikelihood and loglikelihood_rolling), medians, by the clock and by the processor. Then our own pages'
scoring (engine/train/scoring/scores.py) is held against HFLM's accuracies. `--base` takes a folder too; random models of a
Qwen2's and a GPT-2's shape are asked the long passages, for the answers alone.

`--rows` adds the loss of the answers of rows of instruction, input and output. In bf16 both round, so that a likelihood may
lie off, and a choice turn, by as much as HFLM's own with batches of 16 and of 64. "at chance" says that a base's share of
right answers is not clearly above guessing (the exact 95 % interval).

Other work on the machine makes the clock's figures useless and the processor's a little: run it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(HF_HUB_OFFLINE="1", DISABLE_MULTIPROC="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

from engine import starter
from engine.benchmarks import library, shipped
from engine.forgetting import evaluations
from engine.models import bases
from engine.report import statistics as report_statistics
from engine.report import verdicts
from engine.spec import RunSpec, schema
from engine.workspace import Workspace

# Two likelihoods closer than this may change places between two ways of computing them.
TIE = 1e-4


def long_sets(workspace: Workspace) -> list[str]:
    """Make three sets of questions whose choices or examples share much, out of what ships; return their names."""
    general, questions = library.find("general-text"), library.find("commonsense-qa-200")
    assert general is not None and questions is not None
    texts = [doc["text"] for doc in library.docs(general) if len(doc["text"].split()) > 20]  # words, as in English
    draw = random.Random(0)  # noqa: S311 - the same questions each time
    made = []
    for name, choices in (("long passage, 4 choices", 4), ("long passage, 8 choices", 8)):
        rows = []
        for n in range(24):
            words = " ".join(texts[(n + i) % len(texts)] for i in range(3)).split()
            endings = [words[-6:], *(draw.choice(texts).split()[:6] for _ in range(2 * choices))]
            rows.append(
                {
                    "question": " ".join(words[:-6]) + f" [{n}]",
                    "choices": list(dict.fromkeys(" ".join(one) for one in endings))[:choices],
                    "answer": 0,
                }
            )
        one, problems = evaluations.add_questions(workspace, "\n".join(map(json.dumps, rows)).encode(), name)
        assert one is not None, problems[0].sentence
        made.append(one.name)
    return made


def questions_of(names: list[str], workspace: Workspace, base: str, limit: int, shots: int = 0) -> list[Any]:
    from engine.train.scoring import scores

    made = RunSpec(
        kind="evaluate", recipe=schema.RecipeRef("evaluate", "0" * 64), base=schema.BaseRef(base),
        dataset=schema.DatasetRef(""), evaluate=schema.Evaluate(benchmarks=names, limit=limit, shots=shots),
    )  # fmt: skip
    return scores.general(made, workspace, bases.describe(base, workspace))


def task_of(question: Any, tokenizer: Any, limit: int) -> tuple[Any, Any]:
    """Return a benchmark as a task of the harness, with its manager: its YAML where it ships with one, else what our
    own scoring asks, as text."""
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    from engine.train.scoring import harness

    if question.benchmark in shipped.pack() and not limit and not question.settings["shots"]:
        return "tunebook_" + question.benchmark.replace("-", "_"), TaskManager(
            include_path=str(shipped.HERE), include_defaults=False
        )
    docs = question.asked
    if "gold" not in docs[0]:
        table = Dataset.from_dict({"text": [doc["text"] for doc in docs]})
        kind = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
                "metric_list": [{"metric": "bits_per_byte"}]}  # fmt: skip
    else:
        asked = "contexts" in docs[0]
        table = Dataset.from_dict(
            {
                "question": ["" if asked else harness.asked_text(tokenizer, doc) for doc in docs],
                "choices": [doc["contexts"] if asked else doc["choices"] for doc in docs],
                "target": [doc["continuation"] if asked else "" for doc in docs],
                "gold": [doc["gold"] for doc in docs],
            }
        )
        kind = {
            "output_type": "multiple_choice", "doc_to_choice": "choices",
            "doc_to_text": "gold" if asked else "{{question}}", "doc_to_target": "target" if asked else "gold",
            "target_delimiter": docs[0].get("delimiter", ""),
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }  # fmt: skip
    task = {"task": "items", "custom_dataset": lambda **_: {"test": table}, "test_split": "test", "num_fewshot": 0}
    return {**task, **kind}, TaskManager(include_defaults=False)


class Timed:
    """Counts the time spent inside of a model class, by the clock and by the processor."""

    def __init__(self, lm: Any):
        self.lm, self.wall_s, self.cpu_s = lm, 0.0, 0.0
        for name in ("loglikelihood", "loglikelihood_rolling"):
            setattr(lm, name, self._timed(getattr(lm, name)))

    def _timed(self, method: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            found = method(*arguments, **more)
            self.wall_s += time.perf_counter() - wall_s
            self.cpu_s += time.process_time() - cpu_s
            return found

        return call


def ask(lm: Any, task: Any, manager: Any) -> tuple[list[dict[str, Any]], float, float]:
    """Return the samples of a task, and the seconds by the clock and by the processor."""
    import lm_eval

    timed = Timed(lm)
    simple_evaluate: Any = lm_eval.simple_evaluate  # whose decorators hide its types
    result = simple_evaluate(
        model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True, verbosity="ERROR"
    )
    (samples,) = result["samples"].values()
    return sorted(samples, key=lambda one: one["doc_id"]), timed.wall_s, timed.cpu_s


def likelihoods(sample: dict[str, Any]) -> list[float]:
    return [float(one[0] if isinstance(one, list | tuple) else one) for one in sample["filtered_resps"]]


def differences(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tie: float = TIE
) -> tuple[float, int]:  # fmt: skip
    """Return the largest difference of a likelihood, and how many choices differ that are no tie."""
    largest, other = 0.0, 0
    for one, two in zip(ours, theirs, strict=True):
        a, b = likelihoods(one), likelihoods(two)
        largest = max([largest, *(abs(x - y) for x, y in zip(a, b, strict=True))])
        best = sorted(b)[-2:]
        if len(b) > 1 and best[1] - best[0] > tie:
            other += max(range(len(a)), key=a.__getitem__) != max(range(len(b)), key=b.__getitem__)
    return largest, other


def shapes(folder: Path) -> list[tuple[str, Any]]:
    """Return random models of other shapes, with the starter's tokens."""
    import torch
    import transformers

    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 1024, "bos_token_id": 1, "eos_token_id": 1}
    qwen = transformers.Qwen2Config(
        **size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    gpt = transformers.GPT2Config(**size, n_embd=64, n_layer=2, n_head=4, n_positions=1024)
    return [("qwen2", transformers.Qwen2ForCausalLM(qwen).eval()), ("gpt2", transformers.GPT2LMHeadModel(gpt).eval())]


class Asked(NamedTuple):
    """A model with its tokens and window, and how our model class and the harness' are made of it."""

    model: Any
    tokenizer: Any
    window_tokens: int

    def ours(self, bos: bool | None) -> Any:
        from engine.train.scoring import lm as scoring_lm

        return scoring_lm.SharedContextLM(self.model, self.tokenizer, self.window_tokens, bos=bos)

    def theirs(self, bos: bool | None, size: int) -> Any:
        from lm_eval.models import huggingface

        HFLM: Any = huggingface.HFLM
        return HFLM(
            pretrained=self.model,
            tokenizer=self.tokenizer,
            batch_size=size,
            max_length=self.window_tokens,
            add_bos_token=bos,
        )


class Line(NamedTuple):
    """What a line of the table says: seconds of both by the clock and by the processor, and whether its bar is held."""

    theirs_s: tuple[float, float]
    ours_s: tuple[float, float]
    held: bool

    @property
    def times(self) -> tuple[float, float]:
        return self.theirs_s[0] / self.ours_s[0], self.theirs_s[1] / self.ours_s[1]


def show(title: str, n: int, line: Line, largest: float, other: int, told: str) -> None:
    wall, cpu = line.times
    print(
        f"{title[:41]:<42}{n:>5}{line.theirs_s[0]:>8.2f}{line.ours_s[0]:>8.2f}{wall:>7.2f}{cpu:>7.2f}{largest:>10.1e}"
        f"{other:>6}  {told}", flush=True,
    )  # fmt: skip


def compare(asked: Asked, title: str, question: Any, *, limit: int, rounds: int, least: float) -> Line:
    """Ask both model classes, print the line of a benchmark and return it."""
    bos = False if "messages" in question.asked[0] else None
    task, manager = task_of(question, asked.tokenizer, limit)
    tried = {n: ask(asked.theirs(bos, n), task, manager) for n in (16, 64)}
    size = min(tried, key=lambda n: tried[n][2])
    half = next(asked.model.parameters()).element_size() < 4
    # What rounding alone does to HFLM's own answers.
    slack = 2 * differences(tried[16][0], tried[64][0])[0] if half else 1e-3
    took: dict[str, list[tuple[float, float]]] = {"theirs": [], "ours": []}
    samples: dict[str, Any] = {}
    for _ in range(rounds):
        for name in took:
            lm = asked.theirs(bos, size) if name == "theirs" else asked.ours(bos)
            samples[name], wall_s, cpu_s = ask(lm, task, manager)
            took[name].append((wall_s, cpu_s))
    middle = {(name, kind): statistics.median(one[kind] for one in took[name]) for name in took for kind in (0, 1)}
    largest, other = differences(samples["ours"], samples["theirs"], max(TIE, slack if half else TIE))
    items = [i for start in range(0, len(question.asked), 64)
             for i in question.score(asked.model, asked.tokenizer, question.asked[start : start + 64])]  # fmt: skip
    right = [sum(bool(one) for one in found) for found in (
        [one.get("acc", 0) for one in samples["theirs"]], [one.correct for one in items])]  # fmt: skip
    told = ""
    if "gold" in question.asked[0]:
        told = " and ".join(f"{100 * n / len(items):.1f} %" for n in dict.fromkeys(reversed(right)))
        if report_statistics.share_interval(right[1], len(items))[0] <= verdicts.chance_of(items):
            told += " at chance"
    line = Line(
        (middle["theirs", 0], middle["theirs", 1]), (middle["ours", 0], middle["ours", 1]),
        held=largest <= max(slack, 1e-3) and not other and (half or right[0] == right[1])
        and middle["theirs", 1] >= least * middle["ours", 1],
    )  # fmt: skip
    show(title, len(question.asked), line, largest, other, told)
    return line


def compare_losses(asked: Asked, file: Path, *, limit: int, rounds: int) -> Line:
    """Hold the loss of rows against HFLM's likelihood of the same answers after the same questions, print the line and
    return it."""
    from engine.train import tokenize
    from engine.train.scoring import losses

    rows = []
    for n, line in enumerate(file.read_text("utf-8").splitlines()[: limit or None]):
        one = json.loads(line)
        question = "\n".join(text for text in (one["instruction"], one.get("input")) if text)
        turns = {"prompt": [{"role": "user", "content": question}],
                 "completion": [{"role": "assistant", "content": one["output"]}]}  # fmt: skip
        rows.append((str(n), "rows", turns))
    coded = [tokenize.encode(row, asked.tokenizer, asked.window_tokens) for _, _, row in rows]
    starts = [next(at for at, label in enumerate(one.labels) if label >= 0) for one in coded]
    requests = [
        (("", str(n)), one.input_ids[:start], one.input_ids[start:])
        for n, (one, start) in enumerate(zip(coded, starts, strict=True))
    ]
    took: dict[str, list[tuple[float, float]]] = {"theirs": [], "ours": []}
    likely: dict[str, list[float]] = {}
    theirs = asked.theirs(False, 16)
    for _ in range(rounds):
        for name in took:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            if name == "theirs":
                likely[name] = [one[0] for one in theirs._loglikelihood_tokens(requests, disable_tqdm=True)]
            else:
                found = losses.score_loss(asked.model, asked.tokenizer, rows, asked.window_tokens)
                likely[name] = [one.loglikelihoods[0] for one in found]
            took[name].append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    wall = {name: statistics.median(one[0] for one in took[name]) for name in took}
    cpu = {name: statistics.median(one[1] for one in took[name]) for name in took}
    tokens = sum(one.trained_tokens for one in coded)
    apart = max(abs(a - b) for a, b in zip(likely["ours"], likely["theirs"], strict=True))
    line = Line((wall["theirs"], cpu["theirs"]), (wall["ours"], cpu["ours"]), held=cpu["theirs"] >= cpu["ours"])
    show("Loss of rows", len(rows), line, apart, 0, f"{-sum(likely['ours']) / tokens:.3f} nats/token")
    return line


def compare_answers(asked: Asked, title: str, question: Any, *, limit: int) -> bool:
    """Hold the answers of both model classes against each other, print the line and return whether the bars are held."""
    task, manager = task_of(question, asked.tokenizer, limit)
    ours, theirs = (ask(lm, task, manager)[0] for lm in (asked.ours(False), asked.theirs(False, 16)))
    largest, other = differences(ours, theirs)
    print(f"{title:<42}{len(question.asked):>5}{'':>30}{largest:>10.1e}{other:>6}")
    return largest <= 1e-3 and not other


def compare_all(asked: Asked, rows: list[tuple[str, Any]], long: list[str], chosen: argparse.Namespace) -> list[str]:
    """Print the whole table, the pack's own line below, and return what missed its bar."""
    wrong, pack = [], []
    for title, question in rows:
        least = 2.0 if question.benchmark in long else 1.0
        line = compare(asked, title, question, limit=chosen.limit, rounds=chosen.rounds, least=least)
        wrong += [] if line.held else [title]
        pack += [line] if question.benchmark in shipped.pack() and not question.settings["shots"] else []
    if chosen.rows is not None:
        line = compare_losses(asked, chosen.rows, limit=chosen.limit, rounds=chosen.rounds)
        wrong += [] if line.held else ["loss of rows"]
    theirs, ours = (tuple(sum(one[at][kind] for one in pack) for kind in (0, 1)) for at in (0, 1))
    wall, cpu = (theirs[kind] / ours[kind] for kind in (0, 1))
    print(f"the pack, {len(pack)} sets: {wall:.2f} times as fast, {cpu:.2f} by the processor")
    return wrong if cpu >= 1.5 else [*wrong, "the pack"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--base", default="starter")
    arguments.add_argument("--limit", type=int, default=0, help="questions of each benchmark; 0 is all")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both")
    arguments.add_argument("--rows", type=Path, help="JSON Lines of instruction, input and output: their loss too")
    chosen = arguments.parse_args()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engine.train import tokenize

    torch.set_num_threads(chosen.threads)
    chosen.rows = chosen.rows.resolve() if chosen.rows is not None else None
    os.chdir(shipped.HERE)  # where the tasks' data_files are
    with tempfile.TemporaryDirectory() as home:
        workspace = Workspace(home)
        folder = str(bases.describe(chosen.base, workspace).folder)
        long = long_sets(workspace)
        titles = {one.name: one.title for one in library.available(workspace)}
        # answers that are written go past both model classes compared here
        chosen_of_pack = [one.name for one in shipped.shipped() if one.kind != "graded"]
        names = [starter.BENCHMARK_NAME, *chosen_of_pack, *long]
        questions = questions_of(names, workspace, chosen.base, chosen.limit)
        rows = [(titles[one.benchmark], one) for one in questions]
        (shot,) = questions_of(["commonsense-qa-200"], workspace, chosen.base, chosen.limit, shots=5)
        rows.append(("Common sense, 5 examples", shot))
        dtype = torch.float32 if chosen.precision == "fp32" else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenize.get_ready(tokenizer, Path(folder))
        asked = Asked(model, tokenizer, questions[0].settings["window_tokens"])
        print(
            f"{chosen.base}, {chosen.precision}, {chosen.threads} thread(s), {chosen.rounds} rounds, medians; load "
            f"{os.getloadavg()[0]:.1f}"
        )
        heads = f"{'benchmark':<42}{'n':>5}{'HFLM s':>8}{'ours s':>8}{'times':>7}{'cpu':>7}{'largest':>10}{'other':>6}"
        print(heads + "  accuracy")
        wrong = compare_all(asked, rows, long, chosen)
        for shape, model in shapes(Path(home)) if chosen.base == "starter" else ():  # they read as the starter does
            for title, question in rows:
                named = f"{title}, {shape}"
                if question.benchmark in long and not compare_answers(
                    asked._replace(model=model), named, question, limit=chosen.limit
                ):
                    wrong.append(named)
        print(
            "bars: largest 1e-3 (bf16: twice HFLM's own), other 0, in fp32 the same accuracy; by the processor 2 times with"
        )
        print("long passages, 1.5 over the pack, nowhere slower")
        print("missed: " + ", ".join(wrong) if wrong else "all held")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

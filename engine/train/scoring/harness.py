"""Score a model: questions with choices through lm-evaluation-harness, short answers by matching, rows by their loss."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any

import torch

from engine.report import Item
from engine.report import items as report_items
from engine.runs import failures
from engine.spec import split
from engine.train.tokenize import render
from engine.words import Problem

if TYPE_CHECKING:
    from engine.train.scoring import lm


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _harness(
    model: Any, tokenizer: Any, max_length: int, *, bos: bool | None, answered: lm.Answered | None = None
) -> Any:
    """Return the model as the harness asks it; imported here, since the harness's own takes a second."""
    from engine.train.scoring import lm

    return lm.SharedContextLM(model, tokenizer, max_length, bos=bos, answered=answered)


# The harness's own seed of worked examples.
_FEW_SHOT_SEED = 1234


def _evaluate(
    harness: Any, tasks: list[Any], *, manager: Any = None, shots: int | None = None, limit: int = 0, seed: int = 0,
    **more: Any,
) -> Any:  # fmt: skip
    """Return what the harness makes of tasks, with every sample; with `limit` of about so many questions of all of them.

    The same as its simple_evaluate, without what that gathers about the machine: it lists all installed packages each
    time, 0.4 s that would come with every piece of a benchmark.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    loaded = (manager or TaskManager(include_defaults=False)).load(tasks)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None or (shots is not None and task.get_config("num_fewshot") != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=_FEW_SHOT_SEED)
    result = evaluate(
        lm=harness, task_dict=loaded, bootstrap_iters=0, log_samples=True, verbosity="ERROR",
        samples=_drawn(loaded["tasks"], limit, seed), **more,
    )  # fmt: skip
    return result, loaded["tasks"]


def _drawn(tasks: dict[str, Any], limit: int, seed: int) -> dict[str, list[int]] | None:
    """Return which questions of each task are asked when not all are, drawn by the seed: the harness's own limit takes the
    first of each task, which are often of one kind. Each task of a group gets its share, one at the least."""
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    if not 0 < limit < sum(sizes.values()):
        return None
    shares = split.proportional(list(sizes.values()), limit)
    return {
        name: sorted(random.Random(f"{seed}:{name}").sample(range(size), min(size, max(1, share))))  # noqa: S311
        for (name, size), share in zip(sizes.items(), shares, strict=True)
    }


def _task(table: Any, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "task": "items",
        "custom_dataset": lambda **_: {"test": table},
        "test_split": "test",
        "output_type": kind,
        "num_fewshot": 0,
        **more,
    }


_ACC = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]


def asked_text(tokenizer: Any, doc: dict[str, Any]) -> str:
    """Return the question of a doc as the model reads it: its messages through the chat template, or its text as it is."""
    return render(tokenizer, doc["messages"]) if "messages" in doc else doc.get("text", "")


def score_choices(model: Any, tokenizer: Any, docs: list[dict[str, Any]], max_length: int) -> list[Item]:
    """Return an item per question: the log-likelihood (nats) of each choice after the question, and whether the likeliest
    is the right one. The harness computes the likelihoods and the choice.

    A doc is {item, family, gold, choices} with `messages`, which go through the chat template, or `text`, which is read
    as it is, and `delimiter` between question and choice; or {item, family, gold, contexts, continuation}: how likely is
    the same ending after each of several beginnings?
    """
    if not docs:
        return []
    if "contexts" in docs[0]:
        return _score_contexts(model, tokenizer, docs, max_length)
    from datasets import Dataset

    rendered = [asked_text(tokenizer, doc) for doc in docs]
    table = Dataset.from_dict(
        {
            "question": rendered,
            "choices": [doc["choices"] for doc in docs],
            "gold": [doc["gold"] for doc in docs],
        }
    )
    task = _task(
        table, "multiple_choice", doc_to_text="{{question}}", doc_to_choice="choices", doc_to_target="gold",
        target_delimiter=docs[0].get("delimiter", ""), metric_list=_ACC,
    )  # fmt: skip
    # the chat template writes its own start mark
    harness = _harness(model, tokenizer, max_length, bos=False if "messages" in docs[0] else None)
    result, _ = _evaluate(harness, [task])
    return _choice_items(result, docs, rendered)


def _score_contexts(model: Any, tokenizer: Any, docs: list[dict[str, Any]], max_length: int) -> list[Item]:
    from datasets import Dataset

    table = Dataset.from_dict({name: [doc[name] for doc in docs] for name in ("contexts", "continuation", "gold")})
    task = _task(
        table, "multiple_choice", doc_to_text="gold", doc_to_choice="contexts", doc_to_target="continuation",
        target_delimiter=docs[0].get("delimiter", " "), metric_list=_ACC,
    )  # fmt: skip
    result, _ = _evaluate(_harness(model, tokenizer, max_length, bos=None), [task])
    shown = [{**doc, "choices": doc["contexts"], "question": doc["continuation"]} for doc in docs]
    return _choice_items(result, shown, ["\0".join([*doc["contexts"], doc["continuation"]]) for doc in docs])


def _choice_items(result: Any, docs: list[dict[str, Any]], rendered: list[str]) -> list[Item]:
    items = []
    for sample in sorted(result["samples"]["items"], key=lambda s: s["doc_id"]):
        doc = docs[sample["doc_id"]]
        likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
        choice = max(range(len(likelihoods)), key=likelihoods.__getitem__)
        shown = doc["messages"][-1]["content"] if "messages" in doc else doc.get("question") or doc.get("text")
        items.append(
            Item(
                item=doc["item"],
                family=doc["family"],
                prompt_sha=sha(rendered[sample["doc_id"]]),
                prompt=shown,
                choices=doc["choices"],
                gold=doc["gold"],
                loglikelihoods=likelihoods,
                choice=choice,
                correct=bool(sample["acc"]),
                cluster=doc.get("cluster"),
            )
        )
    return items


def score_text(model: Any, tokenizer: Any, docs: list[dict[str, Any]], max_length: int) -> list[Item]:
    """Return an item per doc {item, family, text}: the log-likelihood (nats) of the whole text by the harness's rolling
    windows, its tokens and its bytes."""
    from datasets import Dataset

    table = Dataset.from_dict({"text": [doc["text"] for doc in docs]})
    task = _task(
        table, "loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )  # fmt: skip
    result, _ = _evaluate(_harness(model, tokenizer, max_length, bos=None), [task])
    items = []
    for sample in sorted(result["samples"]["items"], key=lambda s: s["doc_id"]):
        doc = docs[sample["doc_id"]]
        likelihood = sample["filtered_resps"][0]
        likelihood = likelihood[0] if isinstance(likelihood, tuple | list) else likelihood
        items.append(
            Item(
                item=doc["item"], family=doc["family"], prompt_sha=sha(doc["text"]), prompt=doc["text"][:500],
                loglikelihoods=[float(likelihood)], size_bytes=len(doc["text"].encode("utf-8", "surrogatepass")),
                tokens=len(tokenizer(doc["text"], add_special_tokens=False)["input_ids"]), cluster=doc.get("cluster"),
            )
        )  # fmt: skip
    return items


def score_harness(
    model: Any, tokenizer: Any, name: str, *, limit: int, shots: int, chat: bool, max_length: int,
    include_path: str | None = None, answered: lm.Answered | None = None,
) -> list[Item]:  # fmt: skip
    """Return the items of one of the harness's own tasks, by name, one a question; a group's tasks are the families. The
    task's own metric decides what is right: acc_norm where it has one and the field reports it, else acc, else exact
    match; where a task reads answers by several filters, the one it names first. With `answered` what was answered before
    a kill is not computed again.

    Raises RunRefused when the task's data cannot be fetched, lm.Stopped when `answered` hears of a stop.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    harness = _harness(model, tokenizer, max_length, bos=False if chat else None, answered=answered)
    try:
        result, tasks = _evaluate(
            harness, [name], manager=manager, shots=shots, limit=limit, apply_chat_template=chat
        )  # fmt: skip
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise failures.RunRefused(Problem(rule="bench-hub", parameters={"name": name, "reason": reason})) from error
    items = []
    for task, samples in sorted(result["samples"].items()):
        first = samples[0]["filter"] if samples else None  # they come in the order of the task's own list
        for sample in sorted((s for s in samples if s["filter"] == first), key=lambda s: s["doc_id"]):
            items.append(_harness_item(task, sample, tasks.get(task)))
    return items


# What decides an item, the first that a task has; the last is ifeval's, where all of what was asked for must be there.
_METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")


def _harness_item(task: str, sample: dict[str, Any], made: Any) -> Item:
    """Return the item of one sample: choices with their likelihoods, a text's likelihood, or a written answer."""
    metric = next((m for m in _METRICS if m in sample), None)
    answers, asked = sample["filtered_resps"], sample["arguments"]
    chosen = isinstance(answers[0], tuple | list) and len(answers) > 1
    rolling = not chosen and not isinstance(answers[0], str)
    first = answers[0][0] if isinstance(answers[0], tuple | list) else answers[0]
    likelihoods = [float(one[0]) for one in answers] if chosen else [float(first)] if rolling else []
    correct = bool(sample[metric]) if metric is not None else None
    gold = sample["target"] if chosen and isinstance(sample["target"], int) else None
    return Item(
        item=f"{task}-{sample['doc_id']}",
        family=task,
        prompt_sha=sample["prompt_hash"],
        prompt=str(asked[0][0])[-500:],
        choices=[str(one[1]).strip() for one in asked] if chosen else [],
        gold=gold,
        loglikelihoods=likelihoods,
        choice=_chosen(likelihoods, sample, made, metric, gold, correct) if chosen else None,
        correct=correct,
        text=None if chosen or rolling else str(first)[:4_000],
        measure=None if metric is None else f"{metric},{sample['filter']}",
    )


def _chosen(
    likelihoods: list[float], sample: dict[str, Any], made: Any, metric: str | None, gold: int | None,
    correct: bool | None,
) -> int | None:  # fmt: skip
    """Return the choice that a metric takes: acc_norm the likeliest by the length of its text (ConfigurableTask of the
    harness, process_results), the others the likeliest. None where that is not what the harness went by."""
    weighed = likelihoods
    if metric == "acc_norm":
        try:
            lengths = [len(text) for text in made.doc_to_choice(sample["doc"])]
        except (AttributeError, KeyError, TypeError, ValueError):
            lengths = []
        if len(lengths) == len(likelihoods) and all(lengths):
            weighed = [likely / length for likely, length in zip(likelihoods, lengths, strict=True)]
    choice = max(range(len(weighed)), key=weighed.__getitem__)
    agrees = gold is None or correct is None or correct == (choice == gold)
    return choice if agrees else None


def choice_docs(rows: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows that have choices as questions for score_choices."""
    docs = []
    for name, family, row in rows:
        choices = row.get("choices")
        if choices and row.get("prompt"):
            right = row["completion"][-1]["content"]
            family_name = row.get("family") or family or report_items.UNSEEN
            docs.append(
                {
                    "item": name, "family": family_name, "messages": row["prompt"], "choices": list(choices),
                    "gold": list(choices).index(right),
                }
            )  # fmt: skip
    return docs

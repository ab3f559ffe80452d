"""Score a model: questions with choices through lm-evaluation-harness, short answers by matching, rows by their loss."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from engine.benchmarks import forms
from engine.report import Item
from engine.report import items as report_items
from engine.runs import failures
from engine.train.likelihood import LOGIT_CHUNK_TOKENS, MOST_LOGITS, Reader
from engine.train.preference import Pair, encode_marked, encode_pair
from engine.train.rows import Named
from engine.train.tokenize import IGNORED, encode, render
from engine.words import Problem

if TYPE_CHECKING:
    from engine.train import lm

# A reference of at most so many tokens can be asked for word by word; a longer one is judged by its loss alone.
SHORT_TOKENS = 24


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _harness(
    model: Any, tokenizer: Any, max_length: int, *, bos: bool | None, answered: lm.Answered | None = None
) -> Any:
    """Return the model as the harness asks it; imported here, since the harness's own takes a second."""
    from engine.train import lm

    return lm.SharedContextLM(model, tokenizer, max_length, bos=bos, answered=answered)


# The harness's own seed of worked examples.
_FEW_SHOT_SEED = 1234


def _evaluate(harness: Any, tasks: list[Any], *, manager: Any = None, shots: int | None = None, **more: Any) -> Any:
    """Return what the harness makes of tasks, with every sample.

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
    return evaluate(lm=harness, task_dict=loaded, bootstrap_iters=0, log_samples=True, verbosity="ERROR", **more)


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
    return render(tokenizer, doc["messages"], ask=True) if "messages" in doc else doc.get("text", "")


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
    result = _evaluate(harness, [task])
    return _choice_items(result, docs, rendered)


def _score_contexts(model: Any, tokenizer: Any, docs: list[dict[str, Any]], max_length: int) -> list[Item]:
    from datasets import Dataset

    table = Dataset.from_dict({name: [doc[name] for doc in docs] for name in ("contexts", "continuation", "gold")})
    task = _task(
        table, "multiple_choice", doc_to_text="gold", doc_to_choice="contexts", doc_to_target="continuation",
        target_delimiter=docs[0].get("delimiter", " "), metric_list=_ACC,
    )  # fmt: skip
    result = _evaluate(_harness(model, tokenizer, max_length, bos=None), [task])
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
                prompt_sha=_sha(rendered[sample["doc_id"]]),
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
    result = _evaluate(_harness(model, tokenizer, max_length, bos=None), [task])
    items = []
    for sample in sorted(result["samples"]["items"], key=lambda s: s["doc_id"]):
        doc = docs[sample["doc_id"]]
        likelihood = sample["filtered_resps"][0]
        likelihood = likelihood[0] if isinstance(likelihood, tuple | list) else likelihood
        items.append(
            Item(
                item=doc["item"], family=doc["family"], prompt_sha=_sha(doc["text"]), prompt=doc["text"][:500],
                loglikelihoods=[float(likelihood)], size_bytes=len(doc["text"].encode("utf-8", "surrogatepass")),
                tokens=len(tokenizer(doc["text"], add_special_tokens=False)["input_ids"]), cluster=doc.get("cluster"),
            )
        )  # fmt: skip
    return items


# An answer that is compared by its words may be so long; a reference decides within that.
MOST_ANSWER_TOKENS = 256
# Written without spaces between words, so that words cannot be counted: Chinese, Japanese, Korean.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


def is_unspaced(texts: list[str]) -> bool:
    """Whether texts are mostly in a script without spaces: a third of their letters, since Chinese texts hold Latin names
    and digits too."""
    whole = "".join(texts)
    letters = sum(not letter.isspace() for letter in whole)
    return letters > 0 and len(_UNSPACED.findall(whole)) / letters > 0.3


class _RougeTokens:
    """Words for ROUGE: what rouge-score's own tokenizer does for Latin script, and every single character of scripts
    without spaces, which that one would throw away."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+", text.lower())


def text_figures(answer_text: str, reference: str, *, unspaced: bool) -> tuple[list[int], float]:
    """Return sacrebleu's statistics of one answer against one reference (tokenizer 13a, or zh without spaces), and
    ROUGE-L's F-measure."""
    from rouge_score import rouge_scorer
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="zh" if unspaced else "13a").corpus_score([answer_text], [[reference]])
    rouge = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_RougeTokens()).score(reference, answer_text)
    return [bleu.sys_len, bleu.ref_len, *bleu.counts, *bleu.totals], float(rouge["rougeL"].fmeasure)


def score_answers(
    model: Any, tokenizer: Any, docs: list[dict[str, Any]], max_length: int, unspaced: bool
) -> list[Item]:
    """Return an item per doc with `messages` or `text`, and `reference` or `form`: what the model wrote, greedily.

    With a reference: BLEU's statistics, ROUGE-L and whether the words are the same. With a form: whether it has it.
    """
    items = []
    for start in range(0, len(docs), 16):
        batch = docs[start : start + 16]
        wanted = [len(tokenizer(doc.get("reference") or "", add_special_tokens=False)["input_ids"]) for doc in batch]
        most = min(MOST_ANSWER_TOKENS, max([2 * n + 8 for n in wanted] if any(wanted) else [MOST_ANSWER_TOKENS // 2]))
        prompts = [asked_text(tokenizer, doc) for doc in batch]
        for doc, prompt, text in zip(batch, prompts, answer(model, tokenizer, prompts, most), strict=True):
            item = Item(
                item=doc["item"], family=doc["family"], prompt_sha=_sha(prompt), prompt=doc.get("question"),
                text=text[:4_000], reference=doc.get("reference"), cluster=doc.get("cluster"),
            )  # fmt: skip
            if item.reference is not None:
                item.correct = " ".join(text.lower().split()) == " ".join(item.reference.lower().split())
                item.bleu, item.rouge_l = text_figures(text, item.reference, unspaced=unspaced)
            if doc.get("form") is not None:
                item.valid = forms.has_form(text, doc["form"])
            items.append(item)
    return items


def score_harness(
    model: Any, tokenizer: Any, name: str, *, limit: int, shots: int, chat: bool, max_length: int,
    include_path: str | None = None, answered: lm.Answered | None = None,
) -> list[Item]:  # fmt: skip
    """Return the items of one of the harness's own tasks, by name; a group's tasks are the families. The task's own
    metric decides what is right: acc_norm where it has one and the field reports it, else acc, else exact match.
    With `answered` what was answered before a kill is not computed again.

    Raises RunRefused when the task's data cannot be fetched, lm.Stopped when `answered` hears of a stop.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    harness = _harness(model, tokenizer, max_length, bos=False if chat else None, answered=answered)
    try:
        result = _evaluate(harness, [name], manager=manager, shots=shots, limit=limit or None, apply_chat_template=chat)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise failures.RunRefused(Problem(rule="bench-hub", parameters={"name": name, "reason": reason})) from error
    items = []
    for task, samples in sorted(result["samples"].items()):
        for sample in sorted(samples, key=lambda s: s["doc_id"]):
            items.append(_harness_item(task, sample))
    return items


def _harness_item(task: str, sample: dict[str, Any]) -> Item:
    """Return the item of one sample: choices with their likelihoods, a text's likelihood, or a written answer."""
    metric = next((m for m in ("acc_norm", "acc", "exact_match") if m in sample), None)
    answers, asked = sample["filtered_resps"], sample["arguments"]
    chosen = isinstance(answers[0], tuple | list) and len(answers) > 1
    rolling = not chosen and not isinstance(answers[0], str)
    first = answers[0][0] if isinstance(answers[0], tuple | list) else answers[0]
    likelihoods = [float(one[0]) for one in answers] if chosen else [float(first)] if rolling else []
    return Item(
        item=f"{task}-{sample['doc_id']}",
        family=task,
        prompt_sha=sample["prompt_hash"],
        prompt=str(asked[0][0])[-500:],
        choices=[str(one[1]).strip() for one in asked] if chosen else [],
        gold=sample["target"] if chosen and isinstance(sample["target"], int) else None,
        loglikelihoods=likelihoods,
        choice=max(range(len(likelihoods)), key=likelihoods.__getitem__) if chosen else None,
        correct=bool(sample[metric]) if metric is not None else None,
        text=None if chosen or rolling else str(first)[:4_000],
    )


@torch.no_grad()
def score_loss(model: Any, tokenizer: Any, rows: list[tuple[str, str, dict[str, Any]]], max_length: int) -> list[Item]:
    """Return an item per (id, family, canonical row): the log-likelihood (nats) of its trained tokens and their number."""
    items = []
    coded = [(name, family, encode(row, tokenizer, max_length)) for name, family, row in rows]
    coded = [entry for entry in coded if entry[2].trained_tokens]
    for batch in _batches(coded, [len(entry[2].input_ids) for entry in coded], model):
        width = max(len(entry[2].input_ids) for entry in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        labels = torch.full((len(batch), width), IGNORED)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, (_, _, one) in enumerate(batch):
            length = len(one.input_ids)
            ids[row, :length] = torch.tensor(one.input_ids)
            labels[row, :length] = torch.tensor(one.labels)
            mask[row, :length] = 1
        losses = _token_losses(model, ids, mask, labels[:, 1:]).sum(dim=1)
        for (name, family, one), loss in zip(batch, losses.tolist(), strict=True):
            text = ",".join(map(str, one.input_ids))
            items.append(
                Item(item=name, family=family, prompt_sha=_sha(text), loglikelihoods=[-loss], tokens=one.trained_tokens)
            )
    return items


def _batches(rows: list[Any], lengths: list[int], model: Any) -> Iterator[list[Any]]:
    """Yield the rows 16 at a time, fewer where their logits would hold more than MOST_LOGITS numbers."""
    vocabulary, batch, width = model.config.get_text_config().vocab_size, [], 0
    for row, length in zip(rows, lengths, strict=True):
        wider = max(width, length)
        if batch and (len(batch) == 16 or (len(batch) + 1) * wider * vocabulary > MOST_LOGITS):
            yield batch
            batch, wider = [], length
        batch.append(row)
        width = wider
    if batch:
        yield batch


def _token_losses(model: Any, ids: torch.Tensor, mask: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return -log p of each target after its tokens, shape (rows, width - 1); 0 where the target is IGNORED.

    Only the logits of targets are turned to fp32, some at a time: whole copies of all of them would take more memory
    than training does.
    """
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    target = target.to(logits.device)
    losses = torch.zeros(target.shape, device=logits.device)
    for row, column in zip(*(index.split(LOGIT_CHUNK_TOKENS) for index in (target != IGNORED).nonzero(as_tuple=True)),
                           strict=True):  # fmt: skip
        found = torch.nn.functional.cross_entropy(logits[row, column].float(), target[row, column], reduction="none")
        losses[row, column] = found
    return losses


def _padded(rows: list[list[int]], padding: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids, filled up to one width on the right, and the mask of what is no padding."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def answer_loglikelihoods(model: Any, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    """Return the log-likelihood (nats) of each answer after its question: the sum over its tokens, as DPO and KTO
    count it (arXiv 2305.18290, equation 7). Rows are (prompt ids, answer ids)."""
    # the first token of all has no predecessor, so it is never predicted
    asked = [
        (tuple(prompt), tuple(answer)) if prompt else (tuple(answer[:1]), tuple(answer[1:])) for prompt, answer in rows
    ]
    found: dict[Any, Any] = {}
    for answers in Reader(model).answers([one for one in dict.fromkeys(asked) if one[1]]):
        found |= answers
    return [found[one][0] if one[1] else 0.0 for one in asked]


@torch.no_grad()
def rewards(model: Any, tokenizer: Any, rows: list[list[int]]) -> list[float]:
    """Return what a reward model gives each conversation."""
    found: list[float] = []
    for start in range(0, len(rows), 16):
        ids, mask = _padded(rows[start : start + 16], tokenizer.pad_token_id, model.device)
        found += model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float().tolist()
    return found


def _text(messages: list[dict[str, Any]]) -> str:
    return "\n".join(message.get("content") or "" for message in messages)


def _pair_items(tokenizer: Any, rows: list[Named], length: int, *, whole: bool) -> list[tuple[Item, Pair]]:
    """Return an item without scores for each pair that can be scored; with `whole` only those that are not cut."""
    found = []
    for name, family, row in rows:
        pair = encode_pair(row, tokenizer, length)
        if pair is None or (whole and pair.cut):
            continue
        item = Item(
            item=name,
            family=family,
            prompt_sha=_sha(render(tokenizer, row["prompt"], row.get("tools"), ask=True)),
            prompt=row["prompt"][-1].get("content"),
            choices=[_text(row["chosen"]), _text(row["rejected"])],
            gold=0,
        )
        found.append((item, pair))
    return found


def score_preference(model: Any, tokenizer: Any, rows: list[Named], length: int) -> list[Item]:
    """Return an item per pair: is the chosen answer likelier than the rejected one?

    Plain log-likelihoods, so that base and tuned are asked the same; DPO's own reward is relative to the base, which
    has none. A longer answer is less likely as a rule, which holds for both models alike.
    """
    items = _pair_items(tokenizer, rows, length, whole=False)
    sides = [(pair.prompt_ids, side) for _, pair in items for side in (pair.chosen_ids, pair.rejected_ids)]
    found = answer_loglikelihoods(model, sides)
    for index, (item, _) in enumerate(items):
        item.loglikelihoods = found[2 * index : 2 * index + 2]
        item.correct = item.loglikelihoods[0] > item.loglikelihoods[1]
        item.choice = 0 if item.correct else 1
    return [item for item, _ in items]


def score_reward(model: Any, tokenizer: Any, rows: list[Named], length: int) -> list[Item]:
    """Return an item per pair: does the reward model give the chosen answer more? Cut pairs are left out."""
    items = _pair_items(tokenizer, rows, length, whole=True)
    sides = [pair.prompt_ids + side for _, pair in items for side in (pair.chosen_ids, pair.rejected_ids)]
    found = rewards(model, tokenizer, sides)
    for index, (item, _) in enumerate(items):
        item.rewards = found[2 * index : 2 * index + 2]
        item.correct = item.rewards[0] > item.rewards[1]
        item.choice = 0 if item.correct else 1
    return [item for item, _ in items]


def score_marked(model: Any, tokenizer: Any, rows: list[Named], length: int) -> list[Item]:
    """Return an item per marked answer: its log-likelihood, and whether a person called it good (gold 0) or bad (1).

    What is compared is the gap between good and bad answers (report.paired_gap): they belong to different questions,
    so that no single row can be right or wrong.
    """
    found = [(named, one) for named in rows if (one := encode_marked(named[2], tokenizer, length)) is not None]
    scored = answer_loglikelihoods(model, [(one.prompt_ids, one.completion_ids) for _, one in found])
    return [
        Item(
            item=name,
            family=family,
            prompt_sha=_sha(",".join(map(str, one.prompt_ids + one.completion_ids))),
            prompt=row["prompt"][-1].get("content"),
            choices=["good", "bad"],
            gold=0 if one.label else 1,
            loglikelihoods=[likelihood],
            tokens=len(one.completion_ids),
        )
        for ((name, family, row), one), likelihood in zip(found, scored, strict=True)
    ]


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompts: list[str], most_tokens: int) -> list[str]:
    """Return the model's greedy answers to rendered prompts."""
    if not prompts:
        return []
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    finally:
        tokenizer.padding_side = side
    out = model.generate(
        **batch,
        max_new_tokens=most_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return [
        tokenizer.decode(ids, skip_special_tokens=True).strip()
        for ids in out[:, batch["input_ids"].shape[1] :].tolist()
    ]


def score_exact(
    model: Any,
    tokenizer: Any,
    rows: list[tuple[str, str, dict[str, Any]]],
    asked: Callable[[], bool],
    form: Any = None,
) -> list[Item]:
    """Return an item per (id, family, row) whose reference answer is short: did the model write the same words?

    Case and white space do not count. With a `form` (benchmarks.form_of the right answers) each also says whether what was
    written has it. Stops early, with nothing, when asked() says so.
    """
    short = []
    for name, family, row in rows:
        reference = row["completion"][-1]["content"].strip()
        length = len(tokenizer(reference, add_special_tokens=False)["input_ids"])
        if 0 < length <= SHORT_TOKENS:
            asked_text = render(tokenizer, row["prompt"], row.get("tools"), ask=True)
            short.append((name, family, asked_text, row["prompt"][-1]["content"], reference))
    items = []
    for start in range(0, len(short), 32):
        if asked():
            return []
        batch = short[start : start + 32]
        texts = answer(model, tokenizer, [prompt for _, _, prompt, _, _ in batch], SHORT_TOKENS + 8)
        for (name, family, prompt, shown, reference), text in zip(batch, texts, strict=True):
            same = " ".join(text.lower().split()) == " ".join(reference.lower().split())
            items.append(
                Item(
                    item=name,
                    family=family,
                    prompt_sha=_sha(prompt),
                    prompt=shown,
                    correct=same,
                    text=text[:500],
                    valid=None if form is None else forms.has_form(text, form),
                )
            )
    return items


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

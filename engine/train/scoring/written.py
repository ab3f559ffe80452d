"""Score answers that are written: exact words, BLEU, ROUGE-L and the form asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from engine import graders
from engine.benchmarks import forms
from engine.report import Item
from engine.runs import failures
from engine.spec.schema import GraderRef
from engine.train import backend, parts
from engine.train.scoring import harness
from engine.train.scoring.harness import sha
from engine.train.tokenize import render, stops

# A reference of at most so many tokens can be asked for word by word; a longer one is judged by its loss alone.
SHORT_TOKENS = 24
# So many tokens more than the right answer an answer may have: the same words can be cut into more tokens, and end.
MARGIN_TOKENS = 8
# So many rows, and tokens of questions and answers, are written at once: keys and values of 2**13 tokens of a model of 1.5B
# hold a quarter of a GB, and more rows than 32 gain nothing on a processor.
MOST_ROWS, MOST_TOKENS = 32, 2**13

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


# Answers of so many words at most, or any that come again, can be met word for word; nobody writes a longer one alike.
MOST_MATCHED_WORDS, MOST_REPEATED_WORDS = 8, 24


def are_open(references: list[str]) -> bool:
    """Whether right answers are open: there are many good ones, so that no model writes these words. Half of them are
    longer than a name, a figure or a short sentence, and most differ. What has a form in common (JSON) is not."""
    if not references or forms.form_of(references) is not None:
        return False
    words = [max(len(one.split()), len(_UNSPACED.findall(one)) // 2) for one in references]
    middle, different = sorted(words)[len(words) // 2], len({one.strip().lower() for one in references})
    return middle > MOST_REPEATED_WORDS or (middle > MOST_MATCHED_WORDS and 2 * different > len(references))


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
    model: Any, tokenizer: Any, docs: list[dict[str, Any]], max_length: int, unspaced: bool, is_open: bool = False
) -> list[Item]:
    """Return an item per doc with `messages` or `text`, and `reference` or `form`: what the model wrote, greedily.

    With a reference: BLEU's statistics, ROUGE-L and, unless answers are open, whether the words are the same. With a
    form: whether it has it.
    """
    wanted = [len(tokenizer(doc.get("reference") or "", add_special_tokens=False)["input_ids"]) for doc in docs]
    most = [min(MOST_ANSWER_TOKENS, 2 * n + 8 if n else MOST_ANSWER_TOKENS // 2) for n in wanted]
    prompts = [harness.asked_text(tokenizer, doc) for doc in docs]
    items = []
    for doc, prompt, text in zip(docs, prompts, answer(model, tokenizer, prompts, most), strict=True):
        item = Item(
            item=doc["item"], family=doc["family"], prompt_sha=sha(prompt), prompt=doc.get("question"),
            text=text[:4_000], reference=doc.get("reference"), cluster=doc.get("cluster"),
        )  # fmt: skip
        if item.reference is not None:
            if not is_open:
                item.correct = " ".join(text.lower().split()) == " ".join(item.reference.lower().split())
            item.bleu, item.rouge_l = text_figures(text, item.reference, unspaced=unspaced)
        if doc.get("form") is not None:
            item.valid = forms.has_form(text, doc["form"])
        items.append(item)
    return items


def grader_of(doc: dict[str, Any]) -> graders.Grader:
    """Return what grades the answers to a question. Raises RunRefused."""
    try:
        return graders.make(msgspec.convert(doc["grader"], GraderRef))
    except graders.Refused as refused:
        raise failures.RunRefused(refused.problems[0]) from refused


def score_graded(model: Any, tokenizer: Any, docs: list[dict[str, Any]]) -> list[Item]:
    """Return an item per doc with `messages` or `text`, `grader` and `most_tokens`: what the model wrote, greedily, and
    what its grader says of it. Raises RunRefused."""
    prompts = [harness.asked_text(tokenizer, doc) for doc in docs]
    items = []
    for doc, prompt, told in zip(docs, prompts, write(model, tokenizer, prompts, [doc["most_tokens"] for doc in docs]),
                                 strict=True):  # fmt: skip
        row = {"prompt": doc["question"], "reference": doc.get("reference")}
        # where a right answer is at hand, it may be the question's own words
        item = graded(doc["item"], doc["family"], prompt, row, told, grader_of(doc), fresh=row["reference"] is None)
        item.cluster = doc.get("cluster")
        items.append(item)
    return items


def graded(
    name: str, family: str, prompt: str, row: dict[str, Any], told: Written, grader: graders.Grader, *,
    fresh: bool = False,
) -> Item:  # fmt: skip
    """Return what was written to a rendered prompt as an item, and what a grader says of it; `row` as a grader reads it."""
    grade, reference = grader.grade(told.text, {**row, "ended": told.ended}, fresh=fresh), row.get("reference")
    return Item(
        item=name, family=family, prompt_sha=sha(prompt), prompt=row["prompt"], text=told.text[:4_000],
        reference=None if reference is None else reference[:4_000], correct=grade.right, score=round(grade.score, 6),
    )  # fmt: skip


class Written(NamedTuple):
    """An answer, and whether it came to its end mark; None where the base has no such mark."""

    text: str
    ended: bool | None


class _Enough(StoppingCriteria):
    """Ends each row after as many tokens as it may have."""

    def __init__(self, prompt_tokens: int, most: list[int]):
        self._prompt_tokens, self._most = prompt_tokens, most

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        written = input_ids.shape[1] - self._prompt_tokens
        return torch.tensor([written >= most for most in self._most], device=input_ids.device)


def answer(
    model: Any, tokenizer: Any, prompts: list[str], most_tokens: int | Sequence[int],
    asked: Callable[[], bool] = lambda: False,
) -> list[str]:  # fmt: skip
    """Return the texts of the model's answers, as `write` has them."""
    return [one.text for one in write(model, tokenizer, prompts, most_tokens, asked)]


def write(
    model: Any, tokenizer: Any, prompts: list[str], most_tokens: int | Sequence[int],
    asked: Callable[[], bool] = lambda: False,
) -> list[Written]:  # fmt: skip
    """Return the model's greedy answers to rendered prompts, of at most so many tokens each, whatever else is asked. Those
    of about one length are written together, so that little is padding; nothing is returned when asked() says to stop."""
    coded = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    most = [most_tokens] * len(prompts) if isinstance(most_tokens, int) else list(most_tokens)
    order = sorted(range(len(prompts)), key=lambda n: (most[n] + len(coded[n]), n), reverse=True)
    found = [Written("", None)] * len(prompts)
    while order:
        if asked():
            return []
        rows = max(1, min(MOST_ROWS, MOST_TOKENS // (len(coded[order[0]]) + most[order[0]])))
        batch, order = order[:rows], order[rows:]
        told = _write(model, tokenizer, [coded[n] for n in batch], [most[n] for n in batch])
        for n, one in zip(batch, told, strict=True):
            found[n] = one
    return found


@torch.no_grad()
def _write(model: Any, tokenizer: Any, prompts: list[list[int]], most: list[int]) -> list[Written]:
    """Let the model write one batch."""
    width, longest = max(map(len, prompts)), max(most)
    if backend.rewrote(own := parts.below_adapter(model)):
        # Unsloth refuses to write past the window (unsloth 2026.10, models/llama.py, unsloth_fast_generate).
        window = own.config.max_position_embeddings
        prompts = [ids[-(window - 1) :] for ids in prompts]
        width = min(width, window - 1)
        longest = min(longest, window - width)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    device, ends = model.device, stops(tokenizer)
    out = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device),
        max_new_tokens=longest,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        stopping_criteria=StoppingCriteriaList([_Enough(width, most)]),
    )
    found = []
    for ids, n in zip(out[:, width:].tolist(), most, strict=True):
        text = tokenizer.decode(ids[:n], skip_special_tokens=True).strip()
        # what fills a row up comes after its end, or after as many tokens as it may have
        found.append(Written(text, None if ends is None else not set(ends).isdisjoint(ids[:n])))
    return found


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
    short, most = [], []
    for name, family, row in rows:
        reference = row["completion"][-1]["content"].strip()
        length = len(tokenizer(reference, add_special_tokens=False)["input_ids"])
        if 0 < length <= SHORT_TOKENS:
            asked_text = render(tokenizer, row["prompt"], row.get("tools"))
            short.append((name, family, asked_text, row["prompt"][-1]["content"], reference))
            # whether an answer has the form asked for is seen at its end
            most.append((length if form is None else SHORT_TOKENS) + MARGIN_TOKENS)
    texts = answer(model, tokenizer, [prompt for _, _, prompt, _, _ in short], most, asked)
    if asked():
        return []
    items = []
    for (name, family, prompt, shown, reference), text in zip(short, texts, strict=True):
        same = " ".join(text.lower().split()) == " ".join(reference.lower().split())
        items.append(
            Item(
                item=name, family=family, prompt_sha=sha(prompt), prompt=shown, correct=same, text=text[:500],
                valid=None if form is None else forms.has_form(text, form),
            )
        )  # fmt: skip
    return items

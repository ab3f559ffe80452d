"""Score answers that are written: exact words, BLEU, ROUGE-L and the form asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from engine.benchmarks import forms
from engine.report import Item
from engine.train.scoring import harness
from engine.train.scoring.harness import sha
from engine.train.tokenize import render, stops

# A reference of at most so many tokens can be asked for word by word; a longer one is judged by its loss alone.
SHORT_TOKENS = 24


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
    items = []
    for start in range(0, len(docs), 16):
        batch = docs[start : start + 16]
        wanted = [len(tokenizer(doc.get("reference") or "", add_special_tokens=False)["input_ids"]) for doc in batch]
        most = min(MOST_ANSWER_TOKENS, max([2 * n + 8 for n in wanted] if any(wanted) else [MOST_ANSWER_TOKENS // 2]))
        prompts = [harness.asked_text(tokenizer, doc) for doc in batch]
        for doc, prompt, text in zip(batch, prompts, answer(model, tokenizer, prompts, most), strict=True):
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
        eos_token_id=stops(tokenizer),
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
            asked_text = render(tokenizer, row["prompt"], row.get("tools"))
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
                    prompt_sha=sha(prompt),
                    prompt=shown,
                    correct=same,
                    text=text[:500],
                    valid=None if form is None else forms.has_form(text, form),
                )
            )
    return items

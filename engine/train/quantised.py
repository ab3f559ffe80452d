"""python -m engine.train.quantised RUN_DIR FILE QUANTIZATION [PLAIN]: what a GGUF file lost against its model.

Both are asked on the processor what the run was asked, the model in fp32, and no more of it than the run's own budget
allows. PLAIN is the file in 16 bits that it was made of, whose greedy answers are compared first: where those are others
than the model's, the loss of rounding is not what is measured. Answers are kept for the other files of the run. Each line on
stdout is one JSON object: {"share": ...}, and where it comes to nothing {"failed": ...}.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers

from engine import processes
from engine.benchmarks import library
from engine.export import artifacts, job
from engine.models import bases
from engine.quantised import lost
from engine.report import Item
from engine.report import items as report_items
from engine.runs import failures, scored, store
from engine.spec import schema
from engine.train import asked_again, backend, llama_cpp, load, ranks
from engine.train.callback import StopRequest
from engine.train.run import Run
from engine.train.scoring import check, divergence, harness, keys, scores, written
from engine.train.scoring.asking import Question
from engine.train.scoring.scores import Side
from engine.train.tokenize import stops
from engine.words import Problem
from engine.workspace import Workspace, write_atomically

# Whose greedy answers are compared word by word, and how far they are written.
PROMPTS, ANSWER_TOKENS = 20, 32
# Prompts for a run whose rows are gone or too few.
_MORE_PROMPTS = "ends-answers"
_FORMAT = torch.float32

Told = Callable[[float], None]


class _Stopped(Exception):
    """A stop was asked for."""


class _Asking:
    """A run's file and its whole model, which are asked the same."""

    def __init__(self, run_dir: Path, file: Path, quantization: str, plain: Path | None, told: Told):
        self.file, self.quantization, self.plain, self._told = file, quantization, plain, told
        self.place = lost.folder_of(file)
        shutil.rmtree(self.place, ignore_errors=True)
        (self.place / "items").mkdir(parents=True)
        workspace, spec = Workspace(run_dir.parents[1]), store.load_spec(Workspace(run_dir.parents[1]), run_dir.name)
        spec = store.over_its_base(workspace, spec)
        torch.set_num_threads(max(1, spec.train.threads))
        made = artifacts.whole(workspace, run_dir.name)
        if made is None:
            raise failures.RunRefused(Problem(rule="export-nothing"))
        self.model: Path = made
        base = bases.describe(spec.base.ref, workspace, spec.base.revision)
        silence: Any = ranks.Silence()
        chosen = backend.decide(spec, workspace)
        self.run = Run(spec, workspace, self.place, silence, StopRequest(self.place), "cpu", chosen)
        brought = base.problems or base.folder is None or spec.adopted is not None
        self.run.base = msgspec.structs.replace(base, folder=made) if brought else base
        tokens_of = made if brought or base.folder is None else base.folder
        self.run.tokenizer = load.tokenizer_of(tokens_of, self.run.base, workspace, spec.day)
        self.origin = scored.of(workspace, run_dir.name)
        self.asked = asked_again.questions(self.run, self.origin, self.run.tokenizer)
        self.same = self._same_answers()

    def found(self) -> lost.Lost:
        """Ask both, and return what was compared. Raises RunRefused, _Stopped."""
        began_s, now = time.monotonic(), self.file.stat()
        run, budget_s = self.run, self.run.spec.evaluate.budget_s
        file = self._side(lost.QUANTISED, self.file)
        model = Side(lost.MERGED, self._name_of_model(), run.tokenizer, self._model)
        counts = {one.benchmark: one.size for one in self.asked}
        if budget_s is not None and self.asked:
            planned = self._planned(file, budget_s)
            counts = {name: planned.get(name, 0) for name in counts}
        asked = [(one, counts[one.benchmark]) for one in self.asked if counts[one.benchmark]]
        self._done, self._total = 0, 2 * sum(n for _, n in asked) + (2 + (self.plain is not None)) * self.same.size
        same = (self.same, self.same.size)
        self._ask(model, [same, *asked])
        if self.plain is not None:
            self._ask(self._side(lost.PLAIN, self.plain), [same])
        self._ask(file, [same, *asked])
        return lost.Lost(
            quantization=self.quantization, size_bytes=now.st_size, mtime_ns=now.st_mtime_ns,
            sha256=_sha256(self.file), plain_bytes=0 if self.plain is None else self.plain.stat().st_size,
            rounded_bits=self._rounded_bits(), same=self._compared(lost.QUANTISED),
            same_in_16_bits=None if self.plain is None else self._compared(lost.PLAIN), asked=sum(n for _, n in asked),
            questions=sum(one.size for one in self.asked), left=self._left(), budget_s=budget_s,
            seconds=time.monotonic() - began_s, number_format=str(_FORMAT).removeprefix("torch."),
            versions={"transformers": transformers.__version__, "llama.cpp": llama_cpp.version()},
        )  # fmt: skip

    def _left(self) -> list[str]:
        return sorted(set(self.origin.joined) - {one.benchmark for one in self.asked})

    def _planned(self, file: Side, budget_s: float) -> dict[str, int]:
        """Return how many questions of each set are asked: as many as fit into the run's budget, by the pace of the file's
        first ones, and as many as another file of the run was asked, so that files can be held against each other."""
        kept = self.place / "items" / report_items.CHECK
        asked = {one.benchmark for one in self.asked if one.score_whole is None}
        for other in self.place.parent.glob("*.loss"):
            known = report_items.read_check(other)
            if known is not None and known.budget_s == budget_s and known.sets.keys() == asked:
                write_atomically(kept, msgspec.json.encode(known))
                break
        found = check.counts_on_the_way(self.run, file, self.asked, budget_s)
        if found is None:
            raise _Stopped
        return found

    def _ask(self, side: Side, asked: list[tuple[Question, int]]) -> None:
        """Ask one of them all questions, as far as its answers are not kept already."""
        answers = [(side.answers(self.run, question), n) for question, n in asked]
        if all(one.done >= n for one, n in answers):
            self._keep(side, answers)
            return
        with side.lent() as lent:
            for one, n in answers:
                before = self._done

                def upto(done: int, fresh: bool = True, before: int = before) -> None:
                    self._told(min(1.0, (before + done) / self._total))

                if not one.ask(lent, side.tokenizer, self.run.stop.asked, upto=n, on_done=upto):
                    raise _Stopped
                self._done += n
        self._keep(side, answers)

    def _keep(self, side: Side, answers: list[Any]) -> None:
        for one, n in answers:
            one.share()
            scores.keep(one, one.items(n), side.role)

    # --- both models --------------------------------------------------------------------------------------------------

    def _name_of_model(self) -> keys.Model:
        stored = bases.describe(str(self.model), self.run.workspace)
        return keys.model(stored, self.run.workspace, f"{_FORMAT}, merged, cpu")

    @contextmanager
    def _model(self) -> Iterator[Any]:
        parameters = bases.describe(str(self.model), self.run.workspace).parameters or 0
        if (short := job.memory_too_small(_FORMAT.itemsize * parameters)) is not None:
            raise failures.RunRefused(short)
        plain = msgspec.structs.replace(self.run.spec, base=schema.BaseRef(str(self.model)))
        model = load.whole(str(self.model), plain, dtype=_FORMAT)
        load.stop_at_turns(model, self.run.tokenizer)
        yield model.eval()

    def _side(self, role: str, file: Path) -> Side:
        """Return a GGUF file as it is asked."""
        name = keys.Model(f"gguf:{_sha256(file)}", self._name_of_model().settings, f"llama.cpp {llama_cpp.named()}")

        @contextmanager
        def lent() -> Iterator[Any]:
            longest = max(self.run.length, load.question_window(self.run.base)) + ANSWER_TOKENS
            model = llama_cpp.GgufModel(file, self.model, max(longest, written.MOST_TOKENS))
            load.stop_at_turns(model, self.run.tokenizer)
            try:
                yield model
            finally:
                model.close()

        return Side(role, name, self.run.tokenizer, lent)

    def _rounded_bits(self) -> int | None:
        """Return to how many bits what the run stands on had been rounded when it was stored; of a run on another, what that
        stands on."""
        base = bases.describe(self.run.spec.base.ref, self.run.workspace, self.run.spec.base.revision)
        seen = set[str]()
        while base.rounded_bits is None and base.kind == "run" and base.ref not in seen:
            seen.add(base.ref)
            below = store.load_spec(self.run.workspace, base.ref.removeprefix("run:")).base
            base = bases.describe(below.ref, self.run.workspace, below.revision)
        return base.rounded_bits

    # --- greedy answers -----------------------------------------------------------------------------------------------

    def _same_answers(self) -> Question:
        rows = self.run.rows.scored
        unseen = [row for row in rows if row[1] != report_items.SEEN] or rows
        asked = [
            {"item": name, "family": report_items.ALL, "ids": ids, "prompt": shown}
            for name, _, shown, ids in divergence.prompts(unseen, self.run.tokenizer, PROMPTS)
        ]
        more = library.find(_MORE_PROMPTS, self.run.workspace)
        for doc in library.docs(more, 0)[: PROMPTS - len(asked)] if more is not None else []:
            turns = [{"role": "user", "content": doc["question"]}]
            ids = self.run.tokenizer(
                harness.asked_text(self.run.tokenizer, {"messages": turns}), add_special_tokens=False
            )["input_ids"]
            asked.append({"item": doc["item"], "family": report_items.ALL, "ids": ids, "prompt": doc["question"]})
        return Question(lost.SAME_ANSWERS, asked, _greedy, {"answer_tokens": ANSWER_TOKENS}, is_written=True)

    def _compared(self, role: str) -> lost.Same:
        """Hold the answers of a file against the model's, word by word."""
        model, file = (
            report_items.read_items(self.place / "items" / f"{who}-{lost.SAME_ANSWERS}.jsonl")
            for who in (lost.MERGED, role)
        )
        found = []
        for one, other in zip(model, file, strict=True):
            if one.choices == other.choices:
                continue
            pairs = zip(one.choices, other.choices, strict=False)
            at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one.choices), len(other.choices)))
            nats = one.loglikelihoods[at] if at < len(one.loglikelihoods) else 0.0
            found.append(lost.Difference(one.prompt or "", one.text or "", other.text or "", nats))
        return lost.Same(len(model), found)


@torch.no_grad()
def _greedy(model: Any, tokenizer: Any, docs: list[dict[str, Any]]) -> list[Item]:
    """Return an item per doc {item, ids, prompt}: what the model wrote greedily, its tokens as `choices`, and how much
    likelier each was than the second as `loglikelihoods` (nats)."""
    pad, ends = tokenizer.pad_token_id or 0, set(stops(tokenizer) or [])
    width, items = max(len(doc["ids"]) for doc in docs), []
    told = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(doc["ids"])) + doc["ids"] for doc in docs], device=model.device),
        attention_mask=torch.tensor(
            [[0] * (width - len(doc["ids"])) + [1] * len(doc["ids"]) for doc in docs], device=model.device
        ),
        max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=pad, eos_token_id=sorted(ends) or None,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = torch.stack([step.float().topk(2, dim=1).values for step in told.scores], dim=1)
    gaps, written_ids = (best[..., 0] - best[..., 1]).tolist(), told.sequences[:, width:].tolist()
    for doc, ids, gap in zip(docs, written_ids, gaps, strict=True):
        end = next((n + 1 for n, token in enumerate(ids) if token in ends), len(ids))
        items.append(
            Item(
                item=doc["item"], family=doc["family"], prompt_sha=harness.sha(",".join(map(str, doc["ids"]))),
                prompt=doc["prompt"], text=tokenizer.decode(ids[:end], skip_special_tokens=True).strip(),
                choices=[str(token) for token in ids[:end]], loglikelihoods=gap[:end],
            )
        )  # fmt: skip
    return items


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def main() -> int:
    processes.die_with_parent()
    transformers.logging.set_verbosity_error()
    run_dir, file, quantization = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3]
    plain = Path(sys.argv[4]).resolve() if len(sys.argv) > 4 else None

    def tell(what: str, value: Any) -> None:
        print(json.dumps({what: msgspec.to_builtins(value)}), flush=True)

    try:
        asking = _Asking(run_dir, file, quantization, plain, lambda share: tell("share", round(share, 3)))
        found = asking.found()
        write_atomically(asking.place / lost.LOST, msgspec.json.encode(found))
    except BaseException as error:
        traceback.print_exc()
        tell("failed", failures.from_exception(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

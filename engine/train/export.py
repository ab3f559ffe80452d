"""python -m engine.train.export RUN_DIR TARGET [DTYPE]: what a run made as one whole model, compared with what was trained.

An adapter is merged into its base as that is stored: one that was trained in 4 bits into the base's own 16 bits. A model
of which all weights were trained is copied. The folder is written beside its place and renamed when it has been read back
and compared. Each line on stdout is one JSON object: {"phase": ...}, and at the end {"parity": ...} or {"failed": ...}.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine import processes
from engine.export import artifacts, job
from engine.export import parity as export_parity
from engine.models import Base, bases
from engine.render import NotWritten, template
from engine.render.encode import conversation
from engine.runs import failures, store
from engine.spec import OBJECTIVES, RunSpec, schema
from engine.train.rows import Named
from engine.train.tokenize import coder_of, get_ready
from engine.words import Problem
from engine.workspace import Workspace, scratch, write_atomically

# Texts whose token ids are compared; logits are compared on the first of them.
TEXTS, LOGIT_TEXTS = 20, 3
# For a run whose data is gone.
_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_SPOKEN = [*_QUESTION, {"role": "assistant", "content": "Paris."}]

Told = Callable[[str], None]


def _texts(
    scored: list[Named], now: Any
) -> Iterator[tuple[str, Callable[[Any], list[int]], Callable[[Any], list[int]]]]:
    """Yield texts as (shown, how training makes token ids of it, how anybody else does on the same day)."""
    chosen = scored[:: max(1, len(scored) // TEXTS)][:TEXTS]
    rows = [row for _, _, row in chosen] or [{"messages": _SPOKEN}]
    for row in rows:
        if row.get("text") is not None:

            def read(tokenizer: Any, text: str = row["text"]) -> list[int]:
                return tokenizer(text, add_special_tokens=True)["input_ids"]

            yield row["text"], read, read
            continue
        tools = row.get("tools")
        answer = row.get("completion") or row.get("chosen") or []
        messages = [*row["prompt"], *answer] if row.get("prompt") else conversation({**row, "completion": answer})
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
        for part, ask in ((messages[:first], True), (messages, False)):
            if not part:
                continue

            def trained(tokenizer: Any, part: Any = part, tools: Any = tools, ask: bool = ask) -> list[int]:
                coder = coder_of(tokenizer)
                whole = coder.turns.render(part, json.loads(tools) if tools else None, ask=ask)
                return tokenizer(whole, add_special_tokens=False)["input_ids"]

            def elsewhere(tokenizer: Any, part: Any = part, tools: Any = tools, ask: bool = ask) -> list[int]:
                return tokenizer.apply_chat_template(
                    template.for_template(part, coder_of(tokenizer).turns.form),
                    tools=json.loads(tools) if tools else None, add_generation_prompt=ask, tokenize=True,
                    return_dict=True, strftime_now=now,
                )["input_ids"]  # fmt: skip

            yield part[-1].get("content") or "", trained, elsewhere


def same_tokens(scored: list[Named], trained: Any, exported: Any) -> tuple[export_parity.Parity, list[list[int]]]:
    """Compare the token ids of some of the run's own texts: rendered and cut as in training, and by the exported
    tokenizer alone. Returns what was found, with the first place where a text differs, and the ids of training."""
    tokens, differences, every = 0, [], []
    for shown, of_training, of_others in _texts(scored, coder_of(trained).template.now):
        try:
            ours, theirs = list(of_training(trained)), list(of_others(exported))
        except NotWritten:  # a row that training left out too
            continue
        tokens += len(ours)
        every.append(ours)
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                      min(len(ours), len(theirs)))  # fmt: skip
            pieces = [tokenizer.decode(ids[at : at + 5]) for tokenizer, ids in ((trained, ours), (exported, theirs))]
            differences.append(export_parity.Difference(shown[:200], at, *pieces))
    return export_parity.Parity(texts=len(every), tokens=tokens, differences=differences), every


def write_parity(run_dir: Path, folder: Path, trained: Any, scored: list[Named]) -> None:
    """Compare the tokenizer that was saved with the one that trained, and keep what was found beside the run."""
    from transformers import AutoTokenizer

    exported = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    found, _ = same_tokens(scored, trained, exported)
    write_atomically(run_dir / export_parity.PARITY, msgspec.json.encode(found))


def _scored(run_spec: RunSpec, workspace: Workspace) -> list[Named]:
    from engine.train import rows

    if not run_spec.dataset.id:  # of a model tuned elsewhere
        return []
    try:
        parts = rows.divided(run_spec, workspace)
        return rows.to_score(parts.train, parts.unseen, parts.seen, run_spec)
    except (OSError, ValueError):  # the data set was deleted
        return []


def _tokenizer(run_spec: RunSpec, base: Base, files: Path | None = None) -> Any:
    """Return the tokenizer as training had it (load.py)."""
    from engine.train.load import read_tokenizer

    tokenizer = read_tokenizer(str(base.folder or base.ref), run_spec)
    get_ready(tokenizer, files, run_spec.day)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _with_adapter(run_spec: RunSpec, workspace: Workspace, adapter: Path, tokenizer: Any) -> Any:
    """Return the base, as it is stored, under a run's adapter; an adapter below it is merged first."""
    from engine.train import oft
    from engine.train.objectives import reward

    model = _whole(run_spec, workspace)
    if OBJECTIVES[run_spec.objective].is_judge:
        model = reward.judge(model, tokenizer, run_spec.train.seed)
    return oft.lay_over(model, adapter).eval()


def _whole(run_spec: RunSpec, workspace: Workspace) -> Any:
    """Return the base of a run in the number format of its files, on the processor: it need not fit the card."""
    from engine.train import merging, sound
    from engine.train.load import whole

    base = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision)
    if base.problems:
        raise failures.RunRefused(base.problems[0])
    if base.kind == "run" and base.folder is not None and base.folder.name == "adapter":
        below = store.load_spec(workspace, base.ref.removeprefix("run:"))
        below = store.over_its_base(workspace, below)
        tokenizer = _tokenizer(below, base)
        return merging.merged(_with_adapter(below, workspace, base.folder, tokenizer), tokenizer, base.ref)
    source = str(base.folder or base.ref)
    if base.stored is None:
        return whole(source, run_spec, dtype="auto")
    model = whole(source, run_spec, dtype="auto", device_map={"": "cpu"})
    return sound.unpacked(model, model.dtype)


def write(run_dir: Path, target: Path, dtype_name: str, told: Told) -> export_parity.Parity:
    """Write the whole model of a run to `target`, which must not be there, and return how it compares.

    Raises RunRefused when the base is gone, the disk is too small or the logits differ; nothing is left behind then.
    """
    workspace = Workspace(run_dir.parents[1])
    run_spec = store.over_its_base(workspace, schema.decode((run_dir / "spec.json").read_bytes()))
    made = artifacts.made_by(run_dir)
    if made is None:
        raise failures.RunRefused(Problem(rule="export-nothing"))
    base = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision)
    if base.problems and made.name == "adapter":  # before its tokenizer is looked for
        raise failures.RunRefused(base.problems[0])
    partial = target.with_name(f"{scratch(target.name)}partial")
    shutil.rmtree(partial, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if made.name == "model":
            parity = _copied(run_spec, workspace, made, partial, told)
        else:
            parity = _merged(run_spec, workspace, made, partial, dtype_name, told)
        write_atomically(partial / export_parity.PARITY, msgspec.json.encode(parity))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return parity


def _room(target: Path, needed_bytes: int) -> None:
    problem = job.too_small(target, needed_bytes)
    if problem is not None:
        raise failures.RunRefused(problem)


def _copied(run_spec: RunSpec, workspace: Workspace, made: Path, partial: Path, told: Told) -> export_parity.Parity:
    from transformers import AutoTokenizer

    from engine.train import saved

    _room(partial, sum(path.stat().st_size for path in made.rglob("*") if path.is_file()))
    told("saving")
    shutil.copytree(made, partial, ignore=shutil.ignore_patterns("*.bin"))  # training_args.bin is a pickle
    told("comparing")
    saved.check_copy(made, partial)
    base = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision)
    # A model tuned elsewhere speaks with its own tokenizer; so does one whose base is gone.
    source = msgspec.structs.replace(base, folder=made) if base.problems or run_spec.adopted is not None else base
    trained, exported = (
        _tokenizer(run_spec, source),
        AutoTokenizer.from_pretrained(str(partial), trust_remote_code=False),
    )
    return same_tokens(_scored(run_spec, workspace), trained, exported)[0]


def _merged(
    run_spec: RunSpec, workspace: Workspace, adapter: Path, partial: Path, dtype_name: str, told: Told
) -> export_parity.Parity:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from engine.train import merging, saved, sound
    from engine.train.load import files_of, stop_at_turns

    told("loading")
    base = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision)
    source = msgspec.structs.replace(base, folder=adapter) if run_spec.adopted is not None else base
    tokenizer = _tokenizer(run_spec, source, files_of(base, workspace))
    made = _with_adapter(run_spec, workspace, adapter, tokenizer)
    dtype = made.dtype if dtype_name == "auto" else getattr(torch, dtype_name)
    if dtype != made.dtype:
        made = made.float()  # what is merged into the stored format's digits fits no finer one
    scored = _scored(run_spec, workspace)
    texts = same_tokens(scored, tokenizer, tokenizer)[1][:LOGIT_TEXTS]
    told("merging")
    joined = merging.joined(made, texts)
    _refuse_beyond(joined.off, "export-differs")
    model = sound.held_in(joined.model, dtype)
    stop_at_turns(model, tokenizer)
    written = merging.logits(model, texts)
    # A tied head is one tensor and is written once.
    unique = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    _room(partial, sum(unique.values()))
    told("saving")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    saved.check(partial, model)
    rounded, kept = merging.compare_logits(joined.exact, written)
    exact = joined._replace(model=None)
    del model, made, joined
    told("comparing")
    kind = AutoModelForSequenceClassification if OBJECTIVES[run_spec.objective].is_judge else AutoModelForCausalLM
    read = kind.from_pretrained(str(partial), dtype="auto", use_safetensors=True)
    _refuse_beyond(merging.compare_logits(written, merging.logits(read, texts))[0], "export-read-otherwise")
    found, _ = same_tokens(scored, tokenizer, AutoTokenizer.from_pretrained(str(partial), trust_remote_code=False))
    return msgspec.structs.replace(
        found, logits=exact.off, tolerance=merging.TOLERANCE, same_choice=exact.same,
        rounded=rounded if dtype.itemsize < 4 else None, kept_choice=kept if dtype.itemsize < 4 else None,
        dtype=str(dtype).removeprefix("torch."), trained_in=run_spec.quantize,
    )  # fmt: skip


def _refuse_beyond(off: float, rule: str) -> None:
    """Raise RunRefused where two models that should be one differ by more than fp32 leaves between them."""
    from engine.train import merging

    if not off <= merging.TOLERANCE:  # NaN too
        told = {"off": f"{100 * off:.2g}", "allowed": f"{100 * merging.TOLERANCE:.2g}"}
        raise failures.RunRefused(Problem(rule=rule, parameters=dict(told)))


def main() -> int:
    import transformers

    processes.die_with_parent()
    transformers.logging.set_verbosity_error()
    run_dir, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2])

    def tell(what: str, value: Any) -> None:
        print(json.dumps({what: msgspec.to_builtins(value)}), flush=True)

    try:
        tell("parity", write(run_dir, target, sys.argv[3] if len(sys.argv) > 3 else "auto", lambda p: tell("phase", p)))
    except BaseException as error:
        traceback.print_exc()
        tell("failed", failures.from_exception(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A model that was tuned elsewhere, as a run: copied, laid over its base, and asked what its base is asked. Nothing is
trained."""

from __future__ import annotations

import gc
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from engine import events
from engine.brought import adapters, folder
from engine.data import datasets
from engine.forgetting import adoption
from engine.models import bases, made
from engine.render import NotWritten
from engine.runs import failures
from engine.spec import RunSpec, schema, split
from engine.train import adapters as train_adapters
from engine.train import export, load, objectives, oft, precision, rows
from engine.train.run import Run
from engine.train.scoring import divergence, keys, paired, scores
from engine.train.scoring.scores import Side
from engine.train.tokenize import render
from engine.words import Problem, later

EXIT_FINISHED, EXIT_STOPPED = 0, 3
_TOLD_EVERY_S = 1.0


def carry_out(run: Run) -> int:
    """Copy, load and score; returns the exit status. Raises what goes wrong."""
    place = _taken(run)
    precision.multiply_fp32_faster(run.chosen)
    base = msgspec.structs.replace(run.spec, adapter="lora", quantize="none")  # held as any base that is only asked
    run.told.begin("loading", "model")
    with run.told.weights():
        loaded = load.load(base, run.workspace, run.chosen)
    run.model, run.tokenizer, run.base = loaded.model.eval(), loaded.tokenizer, loaded.base
    own = _own_tokenizer(run, place)
    run.rows, asked = questions(run, own)
    for note in [*loaded.notes, *run.rows.notes]:
        run.log.append(events.Log(text=note))
    held = load.held(base, run.workspace, run.chosen)
    if asked and not run.stop.asked():
        name = keys.model(run.base, run.workspace, held)
        scores.ask_all(run, Side("base", name, run.tokenizer, lambda: nullcontext(run.model)), asked)
    run.told.begin("loading", "tuned")
    tuned = _tuned(run, place, base)
    export.write_parity(run.run_dir, place, own, run.rows.scored)
    if asked and not run.stop.asked():
        name = keys.model(bases.describe(f"run:{run.run_dir.name}", run.workspace), run.workspace, held)
        if scores.ask_all(run, Side("tuned", name, own, lambda: nullcontext(tuned), shares=False), asked):
            paired.pair(run.run_dir, run.log)
    if place.name == "adapter" and not _speaks_otherwise(run.tokenizer, own) and not run.stop.asked():
        divergence.report(run, tuned, partial(train_adapters.as_at_start, tuned, None))
    if run.stop.asked():
        run.log.append(events.Stopped(step=0, resumable=True))
        return EXIT_STOPPED
    run.log.append(events.Finished(step=0))
    return EXIT_FINISHED


def _taken(run: Run) -> Path:
    """Return the run's own copy, made now where it is not there yet. What lies at the path must be what was looked at."""
    there, asked = made.made_by(run.run_dir), run.spec.adopted
    if there is not None:
        return there
    assert asked is not None
    found, problems = folder.look(Path(asked.path))
    if found is None:
        raise failures.RunRefused(problems[0])
    run.log.append(events.Phase(phase="copying"))
    done, told_s, whole = 0, time.monotonic(), found.size_bytes

    def on_bytes(n: int) -> None:
        nonlocal done, told_s
        done += n
        if time.monotonic() - told_s >= _TOLD_EVERY_S:
            told_s = time.monotonic()
            run.log.append(events.Progress(done=done >> 20, total=max(1, whole >> 20), left_s=None, detail="MiB"))

    try:
        place = folder.take(found, run.run_dir, asked.sha256, on_bytes)
    except folder.Refused as refused:
        raise failures.RunRefused(refused.problem) from refused
    run.log.append(events.Saved(step=0, path=place.name, what=place.name))
    return place


def _own_tokenizer(run: Run, place: Path) -> Any:
    """Return the tokenizer that the tuned model is asked with: its own where it brought one, else the base's, which is
    kept with it."""
    if not any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        run.tokenizer.save_pretrained(place)
        run.log.append(events.Log(text=later("It brings no tokenizer; it is asked with that of its base.")))
    own = load.tokenizer_of(place, run.base, run.workspace, run.spec.day)
    added = len(set(own.get_vocab()) - set(run.tokenizer.get_vocab()))
    if added:
        run.log.append(
            events.Log(level="result", text=later("Its tokenizer has {n} tokens that its base has not.", n=added))
        )
    if own.chat_template != run.tokenizer.chat_template:
        told = later("It has a chat template of its own: base and tuned model are asked the same in the words of each.")
        run.log.append(events.Log(level="result", text=told))
    return own


def _speaks_otherwise(one: Any, other: Any) -> bool:
    return one.get_vocab() != other.get_vocab() or one.chat_template != other.chat_template


def questions(run: Run, own: Any) -> tuple[rows.Rows, list[scores.Question]]:
    """Return the rows to score and all that is asked: the benchmarks, and what rows of their kind are asked about. Rows
    that were trained on are "seen"; an evaluation row that is among them is not called unseen."""
    chosen = run.spec.dataset
    kinds = [datasets.load(run.workspace, one).report.type for one in (chosen.id, chosen.eval_id) if one]
    seen = rows.read_rows(run.workspace, chosen.id) if chosen.id else []
    unseen = rows.read_rows(run.workspace, chosen.eval_id) if chosen.eval_id else []
    trained = {split.group_of(row) for row in seen}
    known = [row for row in unseen if split.group_of(row) in trained]
    unseen = [row for row in unseen if split.group_of(row) not in trained]
    scored = [one for one in rows.to_score(seen, unseen) if _both_can_read(one[2], run.tokenizer, own)]
    notes = []
    if known:
        notes.append(later("{n} evaluation rows are among those it was trained on; they are not asked.", n=len(known)))
    run.rows = rows.Rows([], [], [], scored, [], notes)
    found = scores.general(run.spec, run.workspace, run.base)
    if kinds and scored:
        found += objectives.of(adoption.asks(kinds[0])).questions(run)
    return run.rows, found


def _both_can_read(row: dict[str, Any], *tokenizers: Any) -> bool:
    messages = row.get("prompt") or row.get("messages") or []
    try:
        for tokenizer in tokenizers if messages else ():
            render(tokenizer, messages, row.get("tools"))
    except NotWritten:
        return False
    return True


def _tuned(run: Run, place: Path, base: RunSpec) -> Any:
    """Return the tuned model, all of it read and every number of it finite. Raises RunRefused."""
    if place.name == "model":
        dtype, rounded = run.model.dtype, precision.format_of(run.model)
        run.model = None
        gc.collect()
        found = load.from_pretrained(
            AutoModelForCausalLM, str(place), msgspec.structs.replace(base, base=schema.BaseRef(str(place))), dtype=dtype,
            use_safetensors=True, **load.straight(),
        )  # fmt: skip
        found.__dict__.pop("hf_device_map", None)
        _refuse(_not_finite(found.named_parameters()), "adopt-not-finite")
        if rounded != dtype:  # as its base was asked
            precision.compute_in(found, rounded)
        return found.eval()
    tuned = oft.lay_over(run.model, place)
    held = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    with safe_open(place / adapters.WEIGHTS, "pt") as file:
        names = set(file.keys())
    missing = sorted(name for name in names ^ set(held) if ".base_layer." not in name)
    _refuse(missing[0] if missing else None, "adopt-not-loaded")
    _refuse(_not_finite(held.items()), "adopt-not-finite")
    return tuned.eval()


def _refuse(name: str | None, rule: str) -> None:
    if name is not None:
        raise failures.RunRefused(Problem(rule=rule, parameters={"name": name[:160]}))


def _not_finite(tensors: Any) -> str | None:
    return next((name for name, tensor in tensors if not torch.isfinite(tensor).all()), None)

"""python -m engine.train.chat WORKSPACE IDLE_S SLOT: hold models and answer questions, JSON lines in and out.

One question at a time. Adapters of one kind on one base share that base in memory and are switched on it; what a
question does not need any more is dropped before something else is loaded. The process ends when it was idle for IDLE_S
seconds, when a run wants the device SLOT that it is on, or when its input closes, which is when the server has gone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine import machine
from engine.chat import protocol
from engine.models import bases
from engine.runs import device_queue, failures, store
from engine.spec import RunSpec, schema
from engine.train import allocator
from engine.words import Problem
from engine.workspace import Workspace

Say = Callable[[protocol.Reply], None]


class Key(NamedTuple):
    """What one loaded base is for: its reference, its bits, and the kind of adapter laid over it ("" for none; the
    run's reference where an adapter was trained elsewhere). `at`: of whole weights, where they stand on the way back."""

    base: str
    quantize: schema.Quantize
    adapter: str
    at: float | None = None


class Host:
    """A loaded base with the adapters that were laid over it so far."""

    def __init__(self, key: Key, workspace: Workspace):
        from engine.train import load, way_back

        base, folder, own_words = schema.BaseRef(key.base), None, False
        if key.at is not None:
            run_id = key.base.removeprefix("run:")
            made = store.load_spec(workspace, run_id)
            base, folder, own_words = made.base, workspace.run_dir(run_id) / "model", made.adopted is not None
        plain = RunSpec(
            kind="chat", recipe=schema.RecipeRef("chat", "0" * 64), base=base,
            dataset=schema.DatasetRef(""), quantize=key.quantize, adapter="lora",
        )  # fmt: skip
        loaded = load.load(plain, workspace)
        if folder is not None:
            way_back.interpolate(loaded.model, folder, key.at or 0.0)
        self.key, self.base, self.workspace = key, loaded.base, workspace
        self.model: Any = loaded.model.eval()
        self.tokenizer = loaded.tokenizer
        if folder is not None and own_words:
            self.tokenizer = load.tokenizer_of(folder, loaded.base, workspace)
        self.window = loaded.base.window_tokens
        self.names: dict[str, str] = {}
        self.ways: dict[str, Any] = {}  # of adapters that were gone back from
        self.tokenizers: dict[str, Any] = {}  # of models tuned elsewhere, which may speak in words of their own

    def add(self, ref: str, folder: Path) -> None:
        """Lay the adapter of a run over the base, unless it lies there already."""
        from engine.train import load, oft

        if ref in self.names:
            return
        name = f"run_{len(self.names)}"
        if self.names:
            self.model.load_adapter(str(folder), adapter_name=name)
            oft.host(self.model)  # takes over the new adapter's rotations too, and forgets those it kept
        else:
            self.model = oft.lay_over(self.model, folder, adapter_name=name)
        if self.key.adapter == ref:
            self.tokenizers[ref] = load.tokenizer_of(folder, self.base, self.workspace)
        self.names[ref] = name
        self.model.eval()

    @contextlib.contextmanager
    def as_model(self, model: str) -> Iterator[Any]:
        """Switch to a run's adapter, at the part of its way that is named, or to the base below all of them."""
        ref, at, intruders = protocol.named(model)
        if ref in self.names:
            from engine.train import way_back

            self.model.set_adapter(self.names[ref])
            if at is not None and ref not in self.ways:
                self.ways[ref] = way_back.AdapterWay(self.model, self.names[ref])
            if ref in self.ways:
                way = "intruders" if intruders else "scale"
                self.ways[ref].to(*((1.0, "scale") if at is None else (at, way)))
            yield self.model
        elif self.names:
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.model


class Models:
    """What is loaded now."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        self._hosts: dict[Key, Host] = {}

    def keys(self, models: list[str]) -> dict[str, Key]:
        """Return which loaded base answers for each model; a base that an asked adapter lies on is not loaded twice."""
        found: dict[str, Key] = {}
        for model in models:
            ref, at, _ = protocol.named(model)
            base = bases.describe(ref, self._workspace)
            if base.kind == "run" and base.folder is not None and base.folder.name == "adapter":
                told = store.load_spec(self._workspace, ref.removeprefix("run:"))
                made = store.over_its_base(self._workspace, told)
                # One from elsewhere has its base to itself: adapters of another build cannot lie beside each other.
                adapter = ref if made.adopted is not None else made.adapter
                found[model] = Key(made.base.pinned, made.quantize, adapter)
            else:
                found[model] = Key(ref, "none", "", at)
        for ref, key in list(found.items()):
            if key.adapter == "" and key.at is None:
                found[ref] = next((one for one in found.values() if one.base == ref and one.adapter), key)
        return found

    def host(self, model: str, key: Key, needed: set[Key]) -> Host:
        """Return the host of a model, loaded now where it is not there. Raises RunRefused."""
        ref = protocol.named(model).ref
        base = bases.describe(ref, self._workspace)
        if base.problems:
            raise failures.RunRefused(base.problems[0])
        if base.scores_only:
            raise failures.RunRefused(Problem(rule="evaluate-reward", where="base", parameters={"ref": ref[:80]}))
        if key not in self._hosts:
            for other in [one for one in self._hosts if one not in needed]:
                del self._hosts[other]
            allocator.give_back()
            _check_memory(bases.describe(key.base, self._workspace), key)
            self._hosts[key] = Host(key, self._workspace)
        host = self._hosts[key]
        if key.base != ref and base.folder is not None:
            host.add(ref, base.folder)
        return host


def _check_memory(base: bases.Base, key: Key) -> None:
    """Refuse a base that main memory cannot hold, where the kernel would end this process. On a processor all is held in 32
    bits, but for layers in fewer, of which none is more than one byte. Raises RunRefused."""
    needed_bytes = (1 if key.quantize != "none" else 4) * (base.parameters or 0)
    if machine.facts().device == "cpu" and needed_bytes > machine.free_bytes():
        raise failures.RunRefused(Problem(rule="chat-memory"))


def answer(
    host: Host,
    turn: protocol.Turn,
    sampling: protocol.Sampling,
    write: Callable[[str], None],
    asked_to_stop: Callable[[], bool],
) -> tuple[int, str]:
    """Write an answer piece by piece; returns its tokens and why it ended. Raises RunRefused when the question is too
    long for the model."""
    import torch
    import transformers
    from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

    from engine.train.tokenize import render, stops

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                write(text)

    class Asked(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((len(input_ids),), asked_to_stop(), dtype=torch.bool, device=input_ids.device)

    tokenizer = host.tokenizers.get(protocol.named(turn.model).ref, host.tokenizer)
    text = render(tokenizer, list(turn.messages))
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    room = (host.window or 1 << 20) - ids.shape[1]
    if room < 1:
        raise failures.RunRefused(
            Problem(rule="chat-too-long", parameters={"tokens": ids.shape[1], "window": host.window or 0})
        )
    most = min(sampling.most_tokens, room)
    drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    with host.as_model(turn.model) as model, torch.inference_mode():
        ids = ids.to(model.device)
        transformers.set_seed(sampling.seed)  # every model draws the same numbers
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=stops(tokenizer),
            streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            stopping_criteria=StoppingCriteriaList([Asked()]),
            **drawn,
        )
    written = out[0, ids.shape[1] :].tolist()
    if written and written[-1] in (stops(tokenizer) or []):
        return len(written), "end"
    return len(written), "stopped" if asked_to_stop() else "length"


# How often a host of models that nobody asks looks whether a run wants its card.
LOOK_S = 1.0


def serve(
    workspace: Workspace,
    incoming: queue.Queue[protocol.Ask],
    stopped: set[str],
    tell: Say,
    idle_s: float,
    gives_way: Callable[[], bool] = lambda: False,
) -> None:
    """Answer questions until none came for `idle_s` seconds, or `gives_way()` says so between two answers. What goes wrong
    with one model leaves the others be."""
    held = Models(workspace)
    since_s = time.monotonic()
    while True:
        try:
            question = incoming.get(timeout=min(idle_s, LOOK_S))
        except queue.Empty:
            if gives_way() or time.monotonic() - since_s >= idle_s:
                return
            continue
        keys: dict[str, Key] = {}
        for turn in question.turns:
            if question.id in stopped:
                tell(protocol.Done(id=question.id, model=turn.model, tokens=0, seconds=0.0, ended="stopped"))
                continue
            told = {"id": question.id, "model": turn.model}
            if gives_way():
                message, fix = Problem(rule="chat-gave-way").texts
                tell(protocol.Failed(**told, message=message, fix=fix))
                continue
            tell(protocol.State(**told, state="loading"))
            try:
                keys = keys or held.keys([one.model for one in question.turns])
                host = held.host(turn.model, keys[turn.model], set(keys.values()))
                tell(protocol.State(**told, state="writing"))
                began_s = time.monotonic()
                tokens, ended = answer(
                    host, turn, question.sampling,
                    lambda text, told=told: tell(protocol.AnswerPart(**told, text=text)),
                    lambda name=question.id: name in stopped,
                )  # fmt: skip
                spent_s = time.monotonic() - began_s
                tell(protocol.Done(**told, tokens=tokens, seconds=round(spent_s, 3), ended=ended))  # pyright: ignore[reportArgumentType]
            except Exception as error:
                traceback.print_exc()
                failure = failures.from_exception(error)
                message, fix = failure.message, failure.fix
                if failure.kind == "oom":
                    message, fix = Problem(rule="chat-memory").texts
                    held = Models(workspace)
                    allocator.give_back()
                tell(protocol.Failed(**told, message=message, fix=fix))
        stopped.discard(question.id)
        since_s = time.monotonic()
        if gives_way():
            return


def a_run_wants(slot: str) -> bool:
    """Whether a run has the device that models are held on, or waits for it. On a processor a chat and a run share the
    memory as any two programs do."""
    return slot != "cpu" and device_queue.wanted("mps" if slot == "mps" else "cuda", slot)


def main() -> int:
    """Listen on the standard input and answer on the standard output; what libraries print goes to the log."""
    workspace, idle_s, slot = Workspace(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    writing = threading.Lock()
    incoming: queue.Queue[protocol.Ask] = queue.Queue()
    stopped: set[str] = set()

    def tell(reply: protocol.Reply) -> None:
        with writing:
            out.write(msgspec.json.encode(reply) + b"\n")

    def listen() -> None:
        for line in sys.stdin.buffer:
            try:
                request = protocol.read_request(line)
            except msgspec.MsgspecError:
                continue
            if isinstance(request, protocol.Stop):
                stopped.add(request.id)
            else:
                incoming.put(request)
        os._exit(0)  # nobody is there to hear the rest

    threading.Thread(target=listen, daemon=True).start()

    allocator.let_segments_grow()
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # a run that trains needs the rest
    serve(workspace, incoming, stopped, tell, idle_s, lambda: a_run_wants(slot))
    return 0


if __name__ == "__main__":
    os._exit(main())  # libraries leave threads behind that can hang a normal exit

"""A home with one of everything, and what can become of its files: cut, overwritten, of another kind, or not to be read."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import events, machine, processes, starter
from engine.data import datasets, profile, readiness
from engine.estimate import precision
from engine.forgetting import foresight, recovery, recovery_curve
from engine.models import bases, counted
from engine.plan import chains
from engine.render import skipped
from engine.report import blind, items
from engine.runs import device_queue, needs, scored, store
from engine.spec import schema
from engine.workspace import Workspace, read_lines

STORED = Path(__file__).with_name("28dfb84.tar.xz")
RUN = "20261128-212549-d136d0"  # LoRA on new facts, scored; of the stored home
EVALUATION, SWEEP, JUDGE, FAILED = (
    "20261128-212717-752321", "20261128-212735-d1fc79", "20261128-212655-89e59e", "20261128-212840-363713"
)  # fmt: skip
LINE = "20261128-213000-0c0c0c"  # trained on the adapter of a run that was deleted
GONE, EXAMPLES = "20261128-210000-090909", "20261128-213300-0f0f0f"
DATA = "9a8391b6f1d46393fff91ca91fea9039e3ca65823bd66fcd1c1887656205600c"
PAIRS = "00d050c32c261dd8fabbe4d8889f2fceb29bddf7bd563f5cb7a369b6e0316da3"
# the way back from RUN, scored, and a point of it that was kept
WAY, POINT = "20261128-213100-0d0d0d", "20261128-213200-0e0e0e"
CHAIN, WAITING, BAD_ROWS = "c0ffee00c0ffee00", "20261128-214000-0a0a0a", "Bad rows"


def build(root: Path) -> None:
    """Unpack the stored home into `root`/home and add what it lacks; nothing is trained. What waits is in `root`/machine,
    which must be the machine's folder of now."""
    shutil.unpack_archive(STORED, root)
    here = Workspace(root / "home")
    bad = root / "bad.jsonl"
    bad.write_text('{"prompt": "q", "completion": "a"}\n' + '{"prompt": "q"}\n' * 1200, "utf-8")
    datasets.add(here, bad, BAD_ROWS)
    _chain(here)
    _line(here)
    _models(here)
    (here.root / "folders.json").write_bytes(msgspec.json.encode([str(one) for one in here.models_dir.iterdir()]))
    here.uploads_dir.mkdir()
    (here.uploads_dir / "0123456789abcdef").write_text("left behind")
    trial = precision.Trial(machine="x", torch="2", hidden=512, intermediate=1024, threads=1, fp32_s=2.0, bf16_s=1.0)
    (here.root / "precision.jsonl").write_bytes(msgspec.json.encode(trial) + b"\n")
    check = items.Check(of="x", budget_s=120, sets={"toy-world": items.Asked(size=452, planned=100, asked=100)})
    (here.run_dir(RUN) / "items" / items.CHECK).write_bytes(msgspec.json.encode(check))
    checkpoint = here.run_dir(FAILED) / "checkpoints" / "checkpoint-5"
    shutil.copytree(here.run_dir(RUN) / "adapter", checkpoint)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 5}')
    (checkpoint / "optimizer.safetensors").write_bytes((checkpoint / "adapter_model.safetensors").read_bytes())
    about = bases.describe("starter", here)
    assert readiness.of(here, datasets.load(here, DATA), about) is not None
    profile.describe(here, DATA, about)
    _watched(here)
    _examples(here)
    _way_back(here)
    waits(here)


def _chain(here: Workspace) -> None:
    chains.begin(here, "dpo", {"sft": DATA, "dpo": PAIRS}, name="A chain", chain_id=CHAIN)
    told = json.loads(here.chain_path(CHAIN).read_bytes())
    here.chain_path(CHAIN).write_text(json.dumps(told | {"runs": {"sft": RUN}}))


def _line(here: Workspace) -> None:
    """A run on the adapter of one that was deleted, of which is kept what it lay on."""
    shutil.copytree(here.run_dir(RUN), here.run_dir(LINE))
    spec = here.run_dir(LINE) / "spec.json"
    told = json.loads(spec.read_bytes())
    told["base"]["ref"] = f"run:{GONE}"
    told["adapter_args"]["continue"] = True
    spec.write_text(json.dumps(told))
    (here.run_dir(LINE) / "meta.json").write_text('{"name": "Trained on", "note": "kept"}')
    here.deleted_path(GONE).parent.mkdir()
    here.deleted_path(GONE).write_text('{"ref": "starter", "revision": null}')


def _watched(here: Workspace) -> None:
    """What a run keeps of its watch over general text, of tokens left out, of what its base said, and of a person's choices
    between answers; and a grader of its data."""
    folder = here.run_dir(RUN)
    told = {"tokens": 900, "loss": 2.5, "seconds": 0.01, "graded": 16}
    (folder / "watch.json").write_text(json.dumps({"texts": 64, **told}))
    (folder / "replay.json").write_text("24")
    lines = read_lines(folder / "events.jsonl", dict)
    for one in lines:
        if one["event"] == "eval":
            one["metrics"] |= {"general_loss": 2.6, "grade": 0.5}
    at = next(number for number, one in enumerate(lines) if one["event"] == "step")
    lines.insert(at, {**lines[at - 1], "event": "watched", "step": 0, "general_loss": 2.5, "texts": 64, "limit": 0.2})
    numbered = [json.dumps({**one, "seq": number}) for number, one in enumerate(lines, 1)]
    (folder / "events.jsonl").write_text("\n".join(numbered) + "\n")
    (folder / foresight.FILE).write_bytes(msgspec.json.encode(foresight.Record(-0.1, 0.3, 4, 0.1)))
    shown = readiness.preview(here, DATA, bases.describe("starter", here), 512).rows
    keys = [part.key for row in shown for part in row.parts]
    skipped.write(folder, skipped.About(2.5, 400, 3, 0), {key: [number] for number, key in enumerate(keys[:3], 9)})
    for model in ("base", "tuned"):
        texts = [items.Item(item=str(n), family="a", prompt_sha=str(n), prompt=f"Ask {n}?", text=f"{model} {n}")
                 for n in range(12)]  # fmt: skip
        items.write_items(folder / "items" / f"{model}-{blind.TEXTS}.jsonl", texts)
    shown = blind.drawn(items.joined(folder), 7)
    chosen = blind.judged(blind.judged(blind.Judgements(seed=7), shown[0], "left"), shown[1], "same")
    blind.write(folder, blind.ended(chosen))
    reference = here.run_dir(FAILED) / "reference"
    reference.mkdir()
    (reference / "rows.json").write_text('{"width": 2, "tokens": 3, "rows": [{"row": "ab", "start": 0, "tokens": 3}]}')
    for name in ("ids", "log_probabilities"):
        (reference / name).write_bytes(bytes(24))
    datasets.grade_by(here, DATA, schema.GraderRef("exact"))


def _examples(here: Workspace) -> None:
    """What the base made of the questions after examples, in an evaluation of its own."""
    shutil.copytree(here.run_dir(EVALUATION), here.run_dir(EXAMPLES))
    spec = store.load_spec(here, RUN)
    asked = msgspec.structs.replace(spec.evaluate, shots=4, along=0, against="")
    kept = msgspec.structs.replace(spec, kind="evaluate", evaluate=asked)
    kept = msgspec.structs.replace(kept, recipe=store.load_spec(here, EVALUATION).recipe)
    (here.run_dir(EXAMPLES) / "spec.json").write_bytes(schema.encode(kept))
    folder, of_run = (here.run_dir(one) / "items" for one in (EXAMPLES, RUN))
    for role, source in (("base", "base"), (items.with_examples(4), "tuned")):
        shutil.copy(of_run / f"{source}-{items.CHOICES}.jsonl", folder / f"{role}-{items.CHOICES}.jsonl")


def _way_back(here: Workspace) -> None:
    """The way back from RUN, half of it scored, and that point kept; what answers there is RUN as it was at its step 20."""
    origin = scored.of(here, RUN)
    asked = items.joined(here.run_dir(RUN), items.at_step(20))
    for run_id, at in ((WAY, None), (POINT, 0.5)):
        spec, problems = recovery.build(here, RUN, at=at, points=[0.5])
        assert spec is not None, problems
        folder = here.run_dir(run_id)
        (folder / "items").mkdir(parents=True)
        (folder / "spec.json").write_bytes(schema.encode(spec))
        (folder / "meta.json").write_bytes(msgspec.json.encode({"name": recovery.name_of(here, spec)}))
        role = items.way_at(0.5) if at is None else "tuned"
        for name, one in asked.items():
            items.write_items(folder / "items" / f"{role}-{name}.jsonl", one.tuned)
        with closing(events.EventLog(folder)) as log:
            log.append(events.Finished(step=0))
    curve = recovery_curve.Way(origin, "scale")
    curve.add(0.5, {name: one.tuned for name, one in asked.items()})
    (here.run_dir(WAY) / recovery_curve.CURVE).write_bytes(msgspec.json.encode(curve.curve(finished=True)))
    shutil.copytree(here.run_dir(RUN) / "adapter", here.run_dir(POINT) / "adapter")
    for name, one in asked.items():
        items.write_items(here.run_dir(POINT) / "items" / f"base-{name}.jsonl", one.base)


def _models(here: Workspace) -> None:
    """A model read from a GGUF file, and one whose layout only counting tells."""
    for name, kind in (("read-once", None), ("counted", "mamba")):
        folder = here.models_dir / name
        shutil.copytree(starter.MODEL_DIR, folder)
        (folder / "gguf.json").write_text(json.dumps({"name": name, "rounded_bits": 4}))
        if kind is not None:
            config = json.loads((folder / "config.json").read_bytes())
            (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
            key = counted.key(folder)
            assert key is not None
            here.shape_path(key).parent.mkdir()
            here.shape_path(key).write_bytes(
                msgspec.json.encode(counted.Found(reason="no memory", begun_s=time.time()))
            )


def waits(here: Workspace) -> None:
    """Let a run wait in the name of this process, and a chat hold a model."""
    if not here.run_dir(WAITING).exists():
        here.run_dir(WAITING).mkdir()
        shutil.copy(here.run_dir(RUN) / "spec.json", here.run_dir(WAITING))
    me = processes.identify(os.getpid())
    (here.run_dir(WAITING) / "pid.json").write_bytes(msgspec.json.encode(me))
    device_queue.draw(machine.facts().device, WAITING, time.time_ns(), me)
    needs.hold(here, me, [f"run:{JUDGE}"])


# --- what becomes of a file ----------------------------------------------------------------------------------------
_NUMBER = re.compile(rb"(?<=[\[:,\s])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?=[\],}\s])")


def _lines(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change each line of a file of lines, or the whole of a file of one value."""
    try:
        json.loads(data)
    except ValueError:
        return b"".join(change(line) + b"\n" for line in data.splitlines())
    return change(data)


def _numbers(new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: _NUMBER.sub(new, data)


def _later(data: bytes) -> bytes:
    told = json.loads(data)
    return json.dumps({**told, "schema": 99, "later": {"new": 1}} if isinstance(told, dict) else [told]).encode()


def _hollow(data: bytes) -> bytes:
    """Every list and object inside is empty."""
    told = json.loads(data)
    inside = told.items() if isinstance(told, dict) else ()
    return json.dumps({k: type(v)() if isinstance(v, list | dict) else v for k, v in inside}).encode()


ANY: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(range(255, 0, -1)) * 9,
}
TOLD: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda data: b"null",
    "list": lambda data: b"[]",
    "object": lambda data: b"{}",
    "nested": lambda data: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge": lambda data: _lines(data, _numbers(b"1" + b"0" * 400)),
    "infinite": lambda data: _lines(data, _numbers(b"1e999")),
    "negative": lambda data: _lines(data, _numbers(b"-7")),
    "words": lambda data: _lines(data, _numbers(b'"many"')),
    "later": lambda data: _lines(data, _later),
    "hollow": lambda data: _lines(data, _hollow),
    "bytes": lambda data: data.replace(b'"', b'"\xff\xfe', 3),
}
KINDS = ("gone", "folder", "dangling", "unreadable")


def damages(path: Path) -> list[str]:
    """Return what can become of a file."""
    return [*ANY, *(TOLD if path.suffix in (".json", ".jsonl") else ()), *KINDS]


def damage(path: Path, how: str) -> None:
    """Let it happen. "unreadable" holds while without_rights() does."""
    data = path.read_bytes()
    if how == "unreadable":
        path.chmod(0)
        return
    path.unlink()
    if how == "folder":
        path.mkdir()
        (path / "inside").write_text("x")
    elif how == "dangling":
        path.symlink_to(path.parent / "nowhere")
    elif how != "gone":
        path.write_bytes((ANY | TOLD)[how](data))


@contextmanager
def without_rights() -> Iterator[None]:
    """Let file permissions hold for this thread and those it starts, also where it is root's: CAP_DAC_OVERRIDE and
    CAP_DAC_READ_SEARCH are put down meanwhile (capabilities(7))."""
    if os.geteuid():
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read every file, and only Linux lets it put that down")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    kept = (ctypes.c_uint32 * 6)()

    def call(name: str, data: Any) -> None:
        if getattr(libc, name)(header, data):
            pytest.skip(f"{name}: {os.strerror(ctypes.get_errno())}")

    call("capget", kept)
    fewer = (ctypes.c_uint32 * 6)(*kept)
    fewer[0] &= ~0b110
    call("capset", fewer)
    try:
        yield
    finally:
        call("capset", kept)


def refuse_writes(patch: pytest.MonkeyPatch, root: Path, number: int) -> None:
    """Let every write below `root` fail with an error number, as on a disk that is full or may only be read."""

    def refuse(path: Any) -> None:
        if isinstance(path, str | os.PathLike) and str(path).startswith(str(root)):
            raise OSError(number, os.strerror(number), str(path))

    def opened(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            refuse(path)
        return real_open(path, mode, *rest, **named)

    def low(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(path)
        return real_low(path, flags, *rest, **named)

    def changed(real: Callable[..., Any]) -> Callable[..., Any]:
        def refused(path: Any, *rest: Any, **named: Any) -> Any:
            refuse(path)
            return real(path, *rest, **named)

        return refused

    real_open, real_low = io.open, os.open
    patch.setattr(io, "open", opened)
    patch.setattr("builtins.open", opened)
    patch.setattr(os, "open", low)
    # a full disk still takes a rename and gives back what is deleted
    for name in ("mkdir",) if number == errno.ENOSPC else ("mkdir", "rename", "replace", "unlink", "rmdir", "utime"):
        patch.setattr(os, name, changed(getattr(os, name)))


# Alike in who reads them: of one kind of scored questions those of base and tuned model, of what lies beside weights those
# of the model that was read once.
_ALIKE = re.compile(
    r"items/(at-20|base|tuned)-new-task-(choices|exact)|items/way-0.5-new|checkpoint-5/\w+[.](md|jinja|json)$|"
    r"models/counted/(?!c)"
)


def everything(root: Path) -> list[Path]:
    """Return a file of each kind that a home and its machine's folder hold, relative to `root`."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        told = path.relative_to(root)
        if not path.is_file() or len(told.parts) == 1 or _ALIKE.search(str(told)):
            continue
        # of runs and data sets that are alike, the files of those that are named above
        kind = re.sub(r"[0-9a-f]{12,}|\d{8}-\d{6}-[0-9a-f]{6}|\d{9,}-[-\w]+", "*", str(told))
        if told.name == "spec.json" and any(one in told.parts for one in (WAY, POINT)):
            kind = str(told)
        if kind not in found or any(one in told.parts for one in (RUN, DATA)):
            found[kind] = told
    return sorted(found.values())

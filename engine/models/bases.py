"""Bases: what a base model is, read from its config and safetensors headers alone; no weights, no torch.

A base is `starter`, a local folder, a Hugging Face id (with @revision where one is meant), `run:<id>` (go on from
what an earlier run made), or a GGUF file (`gguf:<path>`, or a path that ends so), which stands for the folder of a
workspace that it was read into once.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engine import limits, looker, starter
from engine.gguf import headers, tokenizers
from engine.models import counted, folders, settings_files, shapes, stored
from engine.models.cache import hub_snapshot
from engine.models.made import made_by, under
from engine.models.refs import HUB_ID, is_revision, split_ref
from engine.models.stored import Stored
from engine.models.token_rows import TokenRows
from engine.models.weights import count_parameters, has_all_weights
from engine.spec import OBJECTIVES, versions
from engine.words import Problem, Text, later, t
from engine.workspace import BadId, Workspace, decoded, one_line, read_object

# What stands beside a model that was read from a GGUF file: its name, and to how many bits it was rounded.
GGUF_NOTE = "gguf.json"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """`ref` as it was named; `folder` is set when all its files are on this machine; `adapter_of` is the base below
    when the folder holds only an adapter: of a run that trained an earlier one's adapter on, the base below that one.
    Unknown facts are None.

    Of a hub model `revision` is the commit, once known, and `looked_at` the folder with its config and tokenizer
    settings, which may be here before the weights are.
    """

    ref: str
    kind: str  # starter, folder, hub or run
    title: str
    folder: Path | None = None
    looked_at: Path | None = None
    revision: str | None = None
    adapter_of: str | None = None
    parameters: int | None = None
    layers: int | None = None
    hidden: int | None = None
    window_tokens: int | None = None
    weights_bytes: int | None = None
    scores_only: bool = False  # a reward model, or another one with a head of scores: it writes no text
    shape: shapes.Shape | None = None
    rounded_bits: int | None = None  # its weights come from a file that held them rounded to so many bits
    stored: Stored | None = None  # its files hold the weights in so few bits
    tokens: TokenRows | None = None  # the tokens of its tokenizer against the rows of its embedding
    template: str | None = None  # the chat template: "own", "headings" (Tunebook's, engine/render), None while unknown
    # whether the tokenizer names no padding token, so that its end token stands in (engine/train/load.py)
    pads_with_end: bool = False
    count_key: str | None = None  # what is counted on the model itself is kept by it (counted.py)
    notes: tuple[Text, ...] = ()  # what is to be known of its folder
    problems: tuple[Problem, ...] = ()

    @property
    def rounding_note(self) -> str | None:
        """What a reader of scores must know of a rounded base (32 steps of full fine-tuning, SmolLM2 135M from Q4_1)."""
        if self.rounded_bits is None:
            return None
        return t(
            "This base was rounded to {bits} bits, and any training mends part of that, which can hide forgetting: 32 "
            "steps on Chinese chats alone made SmolLM2's English text 0.07 nats a token likelier.",
            bits=self.rounded_bits,
        )

    @property
    def is_toy(self) -> bool:
        """Whether this is the starter or was made from it: its numbers show the mechanics, not quality."""
        return self.kind == "starter" or self.adapter_of == "starter"

    @property
    def spec_ref(self) -> str:
        """The ref as it goes into the spec: a hub id without its revision, which has a field of its own."""
        return split_ref(self.ref)[0] if self.kind == "hub" else self.ref


def describe(ref: str, workspace: Workspace, revision: str | None = None) -> Base:
    """Return what is known about a base and everything that is wrong with it. Never raises for a bad ref.

    `revision` is what a spec pinned; a ref may name one itself, as owner/name@revision. Its files are looked at by a
    process that may fail (engine/looker.py).
    """
    text = ref.strip()
    try:
        text.encode()
        return looker.ask(_described, text, workspace, revision, at=_place(text, workspace, revision))
    except UnicodeEncodeError:
        return _unknown(text)
    except looker.Refused as error:
        return Base(ref=text, kind="folder", title=text[:80], problems=(error.problem,))


def _unknown(text: str) -> Base:
    problem = Problem(rule="base-unknown", where="base", parameters={"ref": text[:80]})
    return Base(ref=text, kind="folder", title=text[:80], problems=(problem,))


def _described(ref: str, workspace: Workspace, revision: str | None) -> Base:
    found = _describe(ref, workspace, revision)
    place = found.folder or found.looked_at
    if place is None:
        return found
    settings = read_object(place / "tokenizer_config.json")
    named = {**read_object(place / "special_tokens_map.json"), **{k: v for k, v in settings.items() if v}}
    pads = named.get("pad_token")
    own = (place / "chat_template.jinja").is_file() or bool(settings.get("chat_template"))
    found = msgspec.structs.replace(
        found,
        template="own" if own else "headings",
        pads_with_end=found.kind != "run" and (pads is None or pads == named.get("eos_token")),
        count_key=counted.key(place),
    )
    if found.kind == "run" and found.adapter_of not in (None, "starter"):
        return found  # its shape is that of the base below
    seen = counted.find(workspace, found.count_key)
    return found if seen is None else _as_counted(found, seen)


def _place(text: str, workspace: Workspace, revision: str | None) -> Path | None:
    """Return where a base lies, by its name alone; None where nobody can tell."""
    if limits.on() and not limits.allows_base(text):  # which is refused before anything is looked up
        return None
    with suppress(OSError, ValueError):  # BadId is a ValueError
        if text == "starter":
            return starter.MODEL_DIR
        if text.startswith("run:"):
            return workspace.run_dir(text.removeprefix("run:"))
        folder = Path(os.path.expanduser(text.removeprefix("gguf:")))
        if text.startswith("gguf:") or folder.exists():
            return folder
        name, named = split_ref(text)
        return hub_snapshot(name, named or revision) if HUB_ID.fullmatch(name) else None
    return None


def count(base: Base, workspace: Workspace, *, wait: bool) -> Base:
    """Let a child count what a base has where only the usual arithmetic says it, and return the base as it is then known;
    with `wait` after two minutes at the most."""
    place = base.folder or base.looked_at
    wrong = [one for one in base.problems if one.rule not in counted.RULES]
    if place is None or wrong or (base.shape is not None and not base.shape.is_estimated):
        return base
    if not wait:
        counted.start(workspace, base.count_key, place)
        return base
    counted.wait(workspace, base.count_key, place)
    return describe(base.ref, workspace, base.revision if base.kind == "hub" else None)


def is_being_counted(base: Base, workspace: Workspace) -> bool:
    seen = counted.find(workspace, base.count_key)
    return seen is not None and seen.is_under_way


def _as_counted(base: Base, seen: counted.Found) -> Base:
    """Return a base with what was counted on the model itself in the place of the usual arithmetic."""
    if seen.reason:
        problem = seen.problem(base.ref)
        return msgspec.structs.replace(base, problems=(*base.problems, problem))
    if seen.shape is None:
        return base
    place, leaves_out = base.folder or base.looked_at, False
    if place is not None and not seen.shape.other_parameters:
        leaves_out = any(name in read_object(place / "config.json") for name in _SENSES)
    by_shape = leaves_out or base.stored is not None or base.parameters is None or base.folder is None
    return msgspec.structs.replace(
        base, shape=seen.shape, layers=seen.shape.layers, hidden=seen.shape.hidden,
        parameters=shapes.count_parameters(seen.shape) if by_shape else base.parameters,
        notes=(*base.notes, *_parts_notes(seen.shape, leaves_out)),
    )  # fmt: skip


# What a config.json has of parts that read pictures or sound.
_SENSES = ("vision_config", "audio_config")


def _parts_notes(shape: shapes.Shape, leaves_out: bool) -> list[Text]:
    """What is to be known of a model's parts: those that see, or that transformers leaves out (Qwen3.5), and experts."""
    found, held = [], shapes.count_parameters(shape)
    if leaves_out:
        found.append(
            later("It also reads pictures or sound. Only the part that writes text is loaded, so what is trained and "
              "exported here reads texts alone.")
        )  # fmt: skip
    if shape.other_parameters:
        share = f"{100 * shape.other_parameters / held:.0f}"
        found.append(
            later("It also reads pictures or sound, with {share} % of its weights. These are held and never trained: "
              "here it learns from texts alone.", share=share)
        )  # fmt: skip
    counts = shape.counted
    if counts is not None and counts.expert_parameters:
        told = {"experts": counts.experts, "used": counts.experts_used,
                "share": f"{100 * counts.expert_parameters / held:.0f}"}  # fmt: skip
        found.append(
            later("A mixture of experts: each token uses {used} of {experts}. They are {share} % of its weights and stand "
              "in stacked tensors, which are no linear layers: QLoRA holds them in 16 bits, and OFT leaves them alone.",
              **told)
        )  # fmt: skip
    return found


def _describe(text: str, workspace: Workspace, revision: str | None) -> Base:
    refused = limits.base_problem(text)
    if refused is not None:  # before anything is looked up: whether a folder is there is nobody's business
        return Base(ref=text[:80], kind="hub", title=text[:80], problems=(refused,))
    if text == "starter":
        return _from_folder(starter.MODEL_DIR, ref="starter", kind="starter", title=t("Starter (toy model, built in)"))
    if text.startswith("run:"):
        return _from_run(text, workspace)
    if text.startswith("gguf:") or (text.lower().endswith(".gguf") and not is_folder(Path(text))):
        return _from_gguf(Path(os.path.expanduser(text.removeprefix("gguf:"))).absolute(), workspace)
    if text.startswith(("/", "./", "../", "~")) or (text and is_folder(Path(text))):
        folder = Path(os.path.expanduser(text)).absolute() if "\0" not in text else Path(text)
        return _from_folder(folder, ref=str(folder), kind="folder", title=folder.name)
    name, named = split_ref(text)
    if HUB_ID.fullmatch(name) and not re.search(r"--|\.\.|\.git$", name) and (named is None or is_revision(named)):
        return _from_hub(text, name, named or revision)
    return _unknown(text)


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long a name, no permission, a zero byte
        return False


def _short(ref: str) -> str:
    """Return owner/name@revision with no more of a commit than tells it apart."""
    name, revision = split_ref(ref)
    return f"{name}@{revision[:10]}" if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else ref


def _from_hub(ref: str, name: str, revision: str | None) -> Base:
    """Describe a hub model from its cached snapshot: all of it when the weights are whole, else what its config says."""
    cached, title = hub_snapshot(name, revision), _short(ref)
    if cached is None:
        pinned = revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else None
        return Base(ref=ref, kind="hub", title=title, revision=pinned)
    if has_all_weights(cached):
        found = _from_folder(cached, ref=ref, kind="hub", title=title)
        return msgspec.structs.replace(found, revision=cached.name, looked_at=cached)
    config = read_object(cached / "config.json")
    if not config:
        return Base(ref=ref, kind="hub", title=title, revision=cached.name)
    problems, kept = settings_files.problems(cached, config), stored.read(config)
    if kept is not None and not kept.is_trainable:
        problems.append(kept.problem(cached))
    shape = shapes.read_shape(config)
    return Base(
        ref=ref,
        kind="hub",
        title=title,
        looked_at=cached,
        revision=cached.name,
        parameters=shapes.count_parameters(shape) if shape is not None else None,
        stored=kept,
        notes=(kept.note,) if kept is not None and kept.is_trainable else (),
        problems=tuple(problems),
        **_dimensions(config),
    )


def short(ref: str, workspace: Workspace) -> str:
    """Return a ref as a person reads it: of a run its name and the end of its id, of a folder the name of its model or its
    own, of a GGUF file its own, anything else as it is. Nothing but one small file is read."""
    with suppress(BadId):
        if ref.startswith("run:"):
            run = workspace.run_dir(ref.removeprefix("run:"))
            name = read_object(run / "meta.json").get("name")
            return f"{name} ({run.name[-6:]})" if name else ref
    folder = Path(os.path.expanduser(ref.removeprefix("gguf:")))
    if folder.is_absolute():
        name = read_object(folder / GGUF_NOTE).get("name")
        own = folder.stem if folder.suffix == ".gguf" else folder.name
        return (one_line(name, 80) if isinstance(name, str) else "") or own or ref
    return ref


def _from_run(ref: str, workspace: Workspace) -> Base:
    title = short(ref, workspace)
    made, below, revision, is_judge, rule, quantize = None, "", None, False, "base-run", "none"
    try:
        run = workspace.run_dir(ref.removeprefix("run:"))
        data = (run / "spec.json").read_bytes()
        strange = versions.problem(data)
        if strange is not None and (strange.rule == "run-later" or not versions.is_whole(data)):
            return Base(ref=ref, kind="run", title=title, problems=(msgspec.structs.replace(strange, where="base"),))
        told = decoded(data, dict[str, Any])
        args = told.get("adapter_args")
        if made_by(run) is not None and isinstance(args, dict) and args.get("continue"):
            rule = "base-line-gone"  # unless what lies below is found now
        below, revision = under(workspace, run.name)
        rule = "base-run"
        is_judge = getattr(OBJECTIVES.get(told.get("objective", "")), "is_judge", False)
        quantize = str(told.get("quantize") or "none")
        made = made_by(run)
    except (BadId, OSError, ValueError, KeyError, TypeError):
        pass
    if made is None or below == ref:
        problem = Problem(rule=rule, where="base", parameters={"ref": ref[:80]})
        return Base(ref=ref, kind="run", title=title, problems=(problem,))
    lowest = describe(below, workspace, revision)
    toy = "starter" if lowest.is_toy else None
    if made.name == "model":
        found = _from_folder(made, ref=ref, kind="run", title=title)
        return msgspec.structs.replace(
            found, adapter_of=toy, scores_only=is_judge or found.scores_only, rounded_bits=lowest.rounded_bits
        )
    scores_only = is_judge or lowest.scores_only
    problems = lowest.problems
    if count_parameters(made / "adapter_model.safetensors") is None:
        problems = (*problems, Problem(rule="base-broken-weights", where="base", parameters={"folder": str(made)}))
    notes = () if lowest.kind == "run" else lowest.notes
    if quantize != "none" and lowest.stored is None:
        notes = (*notes, _merges_otherwise(quantize.removesuffix("bit")))
    return msgspec.structs.replace(
        lowest, ref=ref, kind="run", title=title, folder=made, adapter_of=toy or below, scores_only=scores_only,
        problems=problems, stored=None, notes=notes,
    )  # fmt: skip


def _merges_otherwise(bits: str) -> Text:
    """An adapter makes up for what rounding did to its base; the weights it is merged into were not rounded."""
    return later(
        "The adapter of this run was trained and scored on a base held in {bits} bits. Merged into the base in 16 bits, it "
        "says something slightly else; training it on unmerged (adapter_args.continue) keeps it exactly.",
        bits=bits,
    )


def gguf_folder(header: headers.Header, workspace: Workspace) -> Path:
    """Return the folder of a workspace that a GGUF file is read into."""
    name = re.sub(r"[^0-9a-z]+", "-", header.name.lower()).strip("-")[:60]
    return workspace.models_dir / f"{name}-{header.key}"


def _from_gguf(path: Path, workspace: Workspace) -> Base:
    """Describe the folder a GGUF file was read into, or say what keeps it from being read, or that this is to be done."""
    ref = f"gguf:{path}"
    try:
        header = headers.read(path)
    except headers.Refused as refused:
        return Base(ref=ref, kind="folder", title=path.name, problems=(refused.problem,))
    folder = gguf_folder(header, workspace)
    if is_folder(folder):
        return _from_folder(folder, ref=str(folder), kind="folder", title=folder.name)
    problem = header.problem() or headers.package_problem() or tokenizers.problem(header)
    unread = Problem(rule="gguf-unread", where="base", parameters={"file": path.name, "path": str(path)})
    return Base(
        ref=ref, kind="folder", title=path.name, parameters=header.parameters, rounded_bits=header.rounded_bits,
        problems=(problem or unread,),
    )  # fmt: skip


def _from_folder(folder: Path, *, ref: str, kind: str, title: str) -> Base:
    seen = folders.look(folder)
    if not seen.is_model:
        return Base(ref=ref, kind=kind, title=title, folder=folder, problems=seen.problems, notes=seen.notes)
    config = read_object(folder / "config.json")
    problems = [*seen.problems, *settings_files.problems(folder, config)]
    if not settings_files.has_tokens(folder):
        problems.append(folders.problem("base-no-tokenizer", folder))
    counts = [count_parameters(path) for path in seen.weights]
    if any(count is None for count in counts):
        problems.append(folders.problem("base-broken-weights", folder))
    dimensions = _dimensions(config)
    note = read_object(folder / GGUF_NOTE)
    code = (folders.code_note(),) if folders.brings_code(folder) else ()
    name, bits = one_line(str(note.get("name") or title), 80) or ref[:80], note.get("rounded_bits")
    rounded_bits = bits if isinstance(bits, int) else None
    return Base(
        ref=ref,
        kind=kind,
        title=t("{name} (rounded from {bits} bits)", name=name, bits=rounded_bits) if rounded_bits else name,
        folder=folder,
        rounded_bits=rounded_bits,
        stored=seen.stored,
        tokens=seen.tokens,
        parameters=_parameters(seen, dimensions["shape"], counts),
        weights_bytes=sum(p.stat().st_size for p in seen.weights),
        problems=tuple(problems),
        notes=(*seen.notes, *code),
        **dimensions,
    )


def _parameters(seen: folders.Folder, shape: shapes.Shape | None, counts: list[int | None]) -> int | None:
    """How many numbers a model has: those of its files, but of rounded ones, whose files pack them, by its shape."""
    if seen.stored is not None and shape is not None and not shape.is_estimated:
        return shapes.count_parameters(shape)
    return sum(count for count in counts if count) or None


def _dimensions(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a Base that a config.json gives."""
    text, shape = shapes.text_config(config), shapes.read_shape(config)

    def number(*names: str) -> int | None:
        return next((text[n] for n in names if isinstance(text.get(n), int)), None)

    return {
        "layers": shape.layers if shape is not None else number("num_hidden_layers", "n_layer"),
        "hidden": shape.hidden if shape is not None else number("hidden_size", "n_embd"),
        "window_tokens": number("max_position_embeddings", "n_positions"),
        "scores_only": "ForSequenceClassification" in str(config.get("architectures")),
        "shape": shape,
    }

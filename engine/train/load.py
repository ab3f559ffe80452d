"""Load a base and its tokenizer, through transformers or Unsloth, in the number format that was chosen."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from engine.estimate import machine_choices
from engine.models import Base, bases, hub, hub_client
from engine.runs import failures, store
from engine.spec import RunSpec, schema
from engine.train import backend, merging, oft, precision, sound
from engine.train.tokenize import get_ready, stops
from engine.words import Problem, Text, later
from engine.workspace import Workspace


class Loaded(NamedTuple):
    """`notes` are sentences for the run's log."""

    model: Any
    tokenizer: Any
    base: Base
    notes: list[Text]


def load(spec: RunSpec, workspace: Workspace, chosen: machine_choices.Chosen | None = None) -> Loaded:
    """Load the base of a run onto the device. Full fine-tuning holds fp32 weights, an adapter run a bf16 base where
    the card computes in bf16, or one in 4 or 8 bits; a processor holds fp32 ones, and rounds them as they are used where
    bf16 is faster. Raises RunRefused when the base cannot be used."""
    chosen = chosen or backend.decide(spec, workspace)
    loaded = _load(spec, workspace, chosen)
    if _computes_in_bf16(chosen):
        precision.compute_in_bf16(loaded.model)
    return loaded


def _load(spec: RunSpec, workspace: Workspace, chosen: machine_choices.Chosen) -> Loaded:
    base = _here(spec, workspace)
    if base.problems:
        raise failures.RunRefused(base.problems[0])
    spec = sound.as_stored(spec, base)
    where, dtype = _device(), _dtype(spec, chosen)
    notes = list(base.notes)
    source = str(base.folder) if base.folder is not None else base.ref
    tokenizer = from_pretrained(AutoTokenizer, source, spec)
    if spec.adapter_args.continues:
        model = _under_its_adapter(base, spec, workspace, chosen)
        notes.append(later("The earlier run's adapter is trained on; it was not merged."))
    elif base.kind == "run" and base.folder is not None and base.folder.name == "adapter":
        model = _merged(base, spec, workspace, dtype, chosen, tokenizer)
        notes.append(later("The earlier run's adapter was merged into its base first."))
        if spec.quantize != "none" or chosen.backend == "unsloth":
            with tempfile.TemporaryDirectory() as folder:  # both read from a folder
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                name = model.config._name_or_path
                model = _read(folder, spec, dtype, chosen)
                model.config._name_or_path = name
    else:
        model = _read(source, spec, dtype, chosen)
    if spec.quantize != "none":
        bits = spec.quantize.removesuffix("bit")
        notes.append(
            later("The base is held in {bits} bits, all but its embedding and output layer; scores before and after are "
              "those of that base.", bits=bits)
        )  # fmt: skip
    if get_ready(tokenizer, files_of(base, workspace), spec.day):
        notes.append(later("The base has no chat template; questions and answers are marked with plain headings."))
    # A padding token added later may have no row in the embedding; padding is masked, but looked up.
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= embedded(model):
        tokenizer.pad_token = tokenizer.eos_token
    stop_at_turns(model, tokenizer)
    return Loaded(model if spec.quantize != "none" else model.to(where), tokenizer, base, notes)


def held(spec: RunSpec, workspace: Workspace, chosen: machine_choices.Chosen | None = None) -> str:
    """Return in words in which number format, in how many bits and on what the base of a run is held."""
    chosen = chosen or backend.decide(spec, workspace)
    rounded = ", computed in bf16" if _computes_in_bf16(chosen) else ""
    return f"{_dtype(spec, chosen)}, {spec.base_form}, {_device()}{rounded}"


def _computes_in_bf16(chosen: machine_choices.Chosen) -> bool:
    """Whether a processor rounds weights and inputs to bf16 as it multiplies them."""
    return _device() == "cpu" and chosen.bf16


def _dtype(spec: RunSpec, chosen: machine_choices.Chosen) -> torch.dtype:
    half = _device() == "cuda" and chosen.bf16 and spec.adapter != "full"
    return torch.bfloat16 if half else torch.float32


def tokenizer_of(folder: Path, base: Base, workspace: Workspace, day: str | None = None) -> Any:
    """Return the tokenizer that lies with what was made of a base, ready to read rows with. Raises RunRefused."""
    plain = schema.adopted(base=schema.BaseRef(str(folder)))
    tokenizer = from_pretrained(AutoTokenizer, str(folder), plain)
    get_ready(tokenizer, files_of(base, workspace), day)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def files_of(base: Base, workspace: Workspace) -> Path | None:
    """The folder that says where generation stops: of an adapter, that of the base below it."""
    return (bases.describe(base.adapter_of, workspace) if base.adapter_of else base).folder


def stop_at_turns(model: Any, tokenizer: Any) -> None:
    """Let a model, and what is exported of it, stop where its turns end, also when nobody says where."""
    if getattr(model, "generation_config", None) is not None:  # a reward model writes nothing
        model.generation_config.eos_token_id = stops(tokenizer)


def embedded(model: Any) -> int:
    """Return for how many tokens a model has an embedding."""
    return model.get_input_embeddings().weight.shape[0]


def _here(spec: RunSpec, workspace: Workspace) -> Base:
    """Describe the base; a hub model that is not on this machine is fetched first, which says at once what is wrong where
    transformers tries for most of a minute."""
    base = bases.describe(spec.base.ref, workspace, spec.base.revision)
    if base.kind == "hub" and base.folder is None and not base.problems:
        pinned = f"{spec.base.ref}@{spec.base.revision}" if spec.base.revision else spec.base.ref
        try:
            commit = hub.fetch(pinned)
        except hub_client.HubError as error:
            raise failures.RunRefused(error.problem) from error
        base = bases.describe(spec.base.ref, workspace, commit)
    return base


def _device() -> str:
    """The card, Apple's, or the processor, as engine/machine.py chooses without torch."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if backend.on_apple() else "cpu"


def _place() -> str | int:
    """The device by its number where it is a card: of several processes each has one, and Accelerate 1.15 trains a base
    in few bits only where it was placed on that very one (accelerator.py, prepare_model)."""
    where = _device()
    return torch.cuda.current_device() if where == "cuda" else where


def _read(source: str, spec: RunSpec, dtype: torch.dtype, chosen: machine_choices.Chosen) -> Any:
    """Read a base from a folder or the hub, as the backend and the quantisation want it."""
    if chosen.backend == "unsloth":
        with sound.alone(source) as place:
            model = backend.load_unsloth(place, spec, dtype, checkpointing=chosen.gradient_checkpointing)
        sound.keep_as_written(model)
        sound.look(model, set())
        return model
    extra = {"attn_implementation": "flash_attention_2"} if chosen.padding_free else {}
    if spec.quantize != "none":
        return _quantized(source, spec, dtype, **extra)
    return whole(source, spec, dtype=dtype, **extra)


def _quantized(source: str, spec: RunSpec, dtype: torch.dtype, **extra: Any) -> Any:
    """Load a base in 4 bits (NF4, its constants quantised again: QLoRA, arXiv 2305.14314) or 8 bits, computing in `dtype`.

    peft's prepare_model_for_kbit_training is not used: it would turn embeddings and norms to fp32 as well. get_peft_model
    freezes the base, and gradient checkpointing is TRL's to switch on.
    """
    if spec.quantize == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    model = whole(source, spec, dtype=dtype, quantization_config=config, device_map={"": _place()}, **extra)
    sound.keep_as_written(model, dtype)
    return model


def from_pretrained(kind: Any, source: str, spec: RunSpec, **settings: Any) -> Any:
    """Load a model or tokenizer; code that came with it is never run, and no adapter beside it is laid on. Raises
    RunRefused when it cannot be had, whatever its files made transformers raise; a failure of memory, the disk or the card
    passes as it is."""
    try:
        with sound.alone(source) as place:
            return kind.from_pretrained(place, revision=spec.base.revision, trust_remote_code=False, **settings)
    except (failures.RunRefused, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not isinstance(error, OSError) and failures.from_exception(error).kind != "bug":
            raise
        reason = " ".join(str(error).split("\n", 1)[0].split())[:200] or type(error).__name__
        raise failures.RunRefused(Problem(rule="model-load", parameters={"reason": reason})) from error


def whole(source: str, spec: RunSpec, **settings: Any) -> Any:
    """Load a model that writes text. Raises RunRefused when it cannot be had, or is not all there in numbers."""
    model, told = from_pretrained(
        AutoModelForCausalLM, source, spec, use_safetensors=True, output_loading_info=True, **settings
    )
    model.config._name_or_path = source
    sound.look(model, set(told["missing_keys"]))
    return model


def _merged(
    base: Base, spec: RunSpec, workspace: Workspace, dtype: torch.dtype, chosen: machine_choices.Chosen, tokenizer: Any
) -> Any:
    """Load the base below an earlier run and merge that run's adapter into it. Raises RunRefused where that is another
    model than the run's."""
    assert base.folder is not None
    below = store.over_its_base(workspace, store.load_spec(workspace, base.ref.removeprefix("run:")))
    stored = bases.describe(below.base.ref, workspace, below.base.revision).stored
    bits = "none" if stored is None else stored.setting  # merging into 4 bits would round again
    plain = msgspec.structs.replace(spec, base=below.base, quantize=bits, adapter_args=below.adapter_args)
    lower = sound.unpacked(_load(plain, workspace, chosen._replace(backend="plain")).model, dtype)
    return merging.merged(oft.lay_over(lower, base.folder), tokenizer, base.ref)


def _under_its_adapter(base: Base, spec: RunSpec, workspace: Workspace, chosen: machine_choices.Chosen) -> Any:
    """Load the base of an earlier run's line, in as many bits, under that run's adapter, which is ready to train. Its
    weights are held in fp32."""
    assert base.folder is not None
    lower = _load(store.over_its_base(workspace, spec), workspace, chosen).model
    return oft.lay_over(lower, base.folder, is_trainable=True)

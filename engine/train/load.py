"""Load a base and its tokenizer, through transformers or Unsloth, in the number format that was chosen."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerFast

from engine.estimate import machine_choices
from engine.models import Base, bases, folders, hub, hub_client
from engine.runs import failures, store
from engine.spec import RunSpec, schema
from engine.train import allocator, backend, merging, oft, precision, sound
from engine.train.tokenize import get_ready, stops
from engine.words import Problem, Text, later
from engine.workspace import Workspace

# Of a benchmark a model reads so many tokens at once: longer windows cost memory and change nothing for short questions.
MOST_WINDOW_TOKENS = 2048
# By which tokenizers are told apart: words, digits, indented code, accents, Chinese and a symbol beyond the basic plane.
PROBE = "The  quick brown fox, 1234.5!\n\tdef f(x): return x\nnaïve façade 中文分词 🙂"


class Loaded(NamedTuple):
    """`notes` are sentences for the run's log."""

    model: Any
    tokenizer: Any
    base: Base
    notes: list[Text]


def load(spec: RunSpec, workspace: Workspace, chosen: machine_choices.Chosen | None = None) -> Loaded:
    """Load the base of a run onto the device. Full fine-tuning holds fp32 weights, or bf16 ones where that was
    asked, an adapter run a base in the 16 bits that the card computes in, or in 4 or 8; a processor holds fp32 ones. Such
    are rounded as they are used where 16 bits are faster. Raises RunRefused when the base cannot be used."""
    chosen = chosen or backend.decide(spec, workspace)
    loaded = _load(spec, workspace, chosen)
    if (dtype := _rounded_to(spec, chosen)) is not None:
        precision.compute_in(loaded.model, dtype)
    return loaded


def _load(spec: RunSpec, workspace: Workspace, chosen: machine_choices.Chosen) -> Loaded:
    base = _here(spec, workspace)
    if base.problems:
        raise failures.RunRefused(base.problems[0])
    spec = sound.as_stored(spec, base)
    where, dtype = _device(), _dtype(spec, chosen)
    notes = list(base.notes)
    source = str(base.folder) if base.folder is not None else base.ref
    tokenizer = read_tokenizer(source, spec)
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
                model = None  # the card need not hold both
                allocator.give_back()
                model = _read(folder, spec, dtype, chosen, base)
                model.config._name_or_path = name
    else:
        model = _read(source, spec, dtype, chosen, base)
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
    rounded = f", computed in {chosen.precision}" if _rounded_to(spec, chosen) is not None else ""
    return f"{_dtype(spec, chosen)}, {spec.base_form}, {_device()}{rounded}"


def _rounded_to(spec: RunSpec, chosen: machine_choices.Chosen) -> torch.dtype | None:
    """The format to which weights in fp32 and inputs are rounded as they are multiplied: on a processor, and of a model that
    trains whole on a card; None where it computes in the format of its weights, or Unsloth settles it."""
    dtype = precision.FORMATS[chosen.precision]
    if dtype == _dtype(spec, chosen) or (_device() == "cuda" and chosen.backend == "unsloth"):
        return None
    return None if dtype == torch.float32 else dtype


def _dtype(spec: RunSpec, chosen: machine_choices.Chosen) -> torch.dtype:
    """The format of the weights as they are loaded: of what trains whole as it is asked, of a frozen base in that which a
    card computes in."""
    if spec.adapter == "full":
        return torch.bfloat16 if chosen.weights == "bf16" else torch.float32
    return precision.FORMATS[chosen.precision] if _device() == "cuda" else torch.float32


def tokenizer_of(folder: Path, base: Base, workspace: Workspace, day: str | None = None) -> Any:
    """Return the tokenizer that lies with what was made of a base, ready to read rows with. Raises RunRefused."""
    plain = schema.adopted(base=schema.BaseRef(str(folder)))
    tokenizer = read_tokenizer(str(folder), plain)
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
        if base.folder is None:  # transformers would look for what the index names by itself
            found = folders.look(base.looked_at).problems if base.looked_at is not None else ()
            raise failures.RunRefused(next(iter(found), Problem(rule="model-load", parameters={"reason": base.title})))
    return base


def _device() -> str:
    """The card, Apple's, or the processor, as engine/machine chooses without torch."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if backend.on_apple() else "cpu"


def longest_asked(spec: RunSpec, base: Base) -> int:
    """Return how many tokens a model reads at once in a run, at the most: of a row, or of a benchmark's question."""
    return max(spec.train.max_length, question_window(base))


def question_window(base: Base) -> int:
    """Return how many tokens of a benchmark's question a model reads at once."""
    return min(base.window_tokens or MOST_WINDOW_TOKENS, MOST_WINDOW_TOKENS)


def straight() -> dict[str, Any]:
    """Return what makes transformers put each weight onto the card as it is read, so that main memory holds one at a time
    (5.17, core_model_loading.py, by its device map); nothing elsewhere. The card is named by its number: the Trainer takes a
    model on "cuda" for one that lies on another card than its own "cuda:0"."""
    if _device() != "cuda":
        return {}
    return {"device_map": {"": torch.device("cuda", torch.cuda.current_device())}}


def _read(source: str, spec: RunSpec, dtype: torch.dtype, chosen: machine_choices.Chosen, base: Base) -> Any:
    """Read a base from a folder or the hub, as the backend and the quantisation want it."""
    if chosen.backend == "unsloth":
        with sound.alone(source) as place:
            model = backend.load_unsloth(
                place, spec, dtype, checkpointing=chosen.gradient_checkpointing,
                window_tokens=longest_asked(spec, base),
            )  # fmt: skip
        sound.keep_as_written(model)
        sound.look(model, set())
        return model
    extra = {"attn_implementation": "flash_attention_2"} if chosen.padding_free else {}
    if spec.quantize != "none":
        return _quantized(source, spec, dtype, **extra)
    model = whole(source, spec, dtype=dtype, **straight(), **extra)
    # it lies on one card as any model that was moved there; the Trainer would take the map for one over several
    model.__dict__.pop("hf_device_map", None)
    return model


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
    place = straight() or {"device_map": {"": _device()}}
    model = whole(source, spec, dtype=dtype, quantization_config=config, **place, **extra)
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


def read_tokenizer(source: str, spec: RunSpec) -> Any:
    """Load the tokenizer of a base, which cuts text as the tokenizer.json in its folder does, and as pages show it:
    transformers 5.17 builds some kinds anew from its vocabulary (LlamaTokenizer cuts at no bytes, and a model of another
    kind that names it would lose its spaces). Then it is read as it stands there. Raises RunRefused."""
    for kind in (AutoTokenizer, PreTrainedTokenizerFast):
        try:
            tokenizer = from_pretrained(kind, source, spec)
        except failures.RunRefused:
            if kind is PreTrainedTokenizerFast or not (Path(source) / "tokenizer.json").is_file():
                raise
            continue
        if _is_as_stored(tokenizer, Path(source) / "tokenizer.json"):
            return tokenizer
    raise failures.RunRefused(Problem(rule="tokenizer-otherwise", where="base", parameters={"folder": source[:300]}))


def _is_as_stored(tokenizer: Any, path: Path) -> bool:
    """Whether a tokenizer has the tokens of a file under the same ids, and cuts a text as that does; where there is none,
    whatever it does."""
    if not path.is_file():
        return True
    core, stored = getattr(tokenizer, "backend_tokenizer", None), Tokenizer.from_file(str(path))
    if core is None or not stored.get_vocab().items() <= core.get_vocab().items():
        return False
    marks = [token.content for token in stored.get_added_tokens_decoder().values()]
    ours, theirs = (_cut(one, "".join([PROBE, *marks])) for one in (core, stored))
    return theirs is None or ours == theirs


def _cut(core: Tokenizer, text: str) -> list[int] | None:
    core.no_truncation()
    core.no_padding()
    try:
        return core.encode(text, add_special_tokens=False).ids
    except Exception:  # the library raises bare Exceptions: of a character without a token
        return None


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

"""Which weights move: all, those of chosen layers, or a LoRA or OFT adapter. Everything else is frozen."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, OFTConfig, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

from engine.estimate import machine_choices
from engine.models import shapes
from engine.runs import failures
from engine.spec import OBJECTIVES, RunSpec, counts
from engine.train import backend, oft, parts
from engine.words import Problem, Text, later

# What peft calls the adapter of a model, and what TRL calls the copy of it that stays as it was.
TRAINED, REFERENCE = "default", "ref"


class Prepared(NamedTuple):
    """`notes` are sentences for the run's log; `rotations` are those of an OFT adapter."""

    model: Any
    trainable: int
    total: int
    notes: list[Text]
    rotations: oft.Rotations | None = None


def prepare(model: Any, spec: RunSpec, decided: machine_choices.Chosen | None = None) -> Prepared:
    """Freeze and wrap the model as the spec says; return it with its parameter counts."""
    depth = model.config.get_text_config().num_hidden_layers
    chosen = counts.layer_indices(spec.layers, depth)
    if spec.adapter_args.continues:  # it came with its adapter (load.py)
        return _counted(model, [], oft.host(model) if spec.adapter == "oft" else None)
    if spec.adapter == "oft":
        return _with_oft(model, spec, chosen)
    if spec.adapter == "lora":
        args = spec.adapter_args
        if decided is not None and decided.backend == "unsloth":
            names = targets(model, args.target_modules, chosen if chosen is not None else list(range(depth)))
            made = backend.add_unsloth_lora(
                model, spec, list(names), chosen, checkpointing=decided.gradient_checkpointing
            )
            return _counted(made, [])
        config = LoraConfig(
            r=args.rank,
            lora_alpha=args.alpha,
            lora_dropout=args.dropout,
            target_modules=targets(model, args.target_modules, chosen),
            layers_to_transform=_layers_of(model, chosen),
            bias="none",
            # SEQ_CLS also trains and saves the new head of a reward model whole.
            task_type="SEQ_CLS" if OBJECTIVES[spec.objective].is_judge else "CAUSAL_LM",
        )
        if chosen is not None:
            _keep_experts_to(config, model, chosen, args.target_modules)
        return _counted(_hosted(model, config), [])
    model.requires_grad_(True)  # what was merged from an earlier adapter comes frozen
    notes = []
    for one in parts.others(model):
        one.requires_grad = False
    if chosen is not None:
        freeze_all_but(model, set(chosen), train_head=spec.train_head)
        numbers = ", ".join(str(index) for index in chosen)
        notes.append(
            later("Of the {depth} layers these train: {numbers} (counted from 0).", depth=depth, numbers=numbers)
        )
        if spec.train_head and _is_tied(model):
            notes.append(later("The base's output layer is its embedding: training the one trains the other."))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Prepared(model, trainable, sum(p.numel() for p in model.parameters()), notes)


def _with_oft(model: Any, spec: RunSpec, chosen: list[int] | None) -> Prepared:
    """Wrap the model in peft's OFT adapter with our rotations."""
    oft.straighten(model)
    args = spec.adapter_args
    config = OFTConfig(
        oft_block_size=args.block_size,
        use_cayley_neumann=False,  # the exact rotation: what is saved means the same to plain peft
        target_modules=targets(model, args.target_modules, chosen),
        layers_to_transform=_layers_of(model, chosen),
        bias="none",
        task_type="SEQ_CLS" if OBJECTIVES[spec.objective].is_judge else "CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")  # said below
        made = _hosted(model, config)
    rotations = oft.host(made)
    others = sorted({m.block_size for m in rotations.modules} - {args.block_size})
    notes = []
    if others:
        sizes = ", ".join(map(str, others))
        notes.append(
            later("Blocks of {size} do not divide every layer; there the nearest that does: {sizes}.",
              size=args.block_size, sizes=sizes)
        )  # fmt: skip
    return _counted(made, notes, rotations)


def _hosted(model: Any, config: LoraConfig | OFTConfig) -> Any:
    """Wrap the model in an adapter that names its base when it is saved, so that plain peft can load it elsewhere."""
    model.name_or_path = model.config._name_or_path
    return get_peft_model(model, config)


def _counted(model: Any, notes: list[Text], rotations: oft.Rotations | None = None) -> Prepared:
    trainable, total = model.get_nb_trainable_parameters()  # it knows how many weights a 4-bit tensor packs
    return Prepared(model, trainable, total, notes, rotations)


def _is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@contextmanager
def kept_whole(model: Any) -> Iterator[None]:
    """Hold what trains in fp32 while a trainer is made: TRL's cast it to bf16 on a quantised base, where the small steps
    of Adam round to nothing, and an adapter that was trained already is rounded. Before there is an optimizer."""
    held = {id(parameter): parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = held.get(id(parameter), parameter.data).float()


def add_reference(model: Any) -> None:
    """Keep a frozen copy of the adapter that is trained on, as it is now: what preferences are held to. Where TRL's trainer
    has made it, its weights are copied anew: TRL leaves out what peft puts in a ParameterDict, as of an embedding. It is
    not saved: transformers 5.17, going on from a checkpoint that holds two adapters, reads the copy and not the one that
    trains (trainer.py, _load_from_checkpoint)."""
    if REFERENCE not in model.peft_config:
        model.add_adapter(REFERENCE, model.peft_config[TRAINED])
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if REFERENCE in parts:
            trained = ".".join(TRAINED if part == REFERENCE else part for part in parts)
            parameter.data.copy_(model.get_parameter(trained).data)
    oft.host(model, REFERENCE)  # solved apart: those that train are solved anew at every step
    model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=[TRAINED])


@contextmanager
def as_at_start(model: Any, folder: Path | None) -> Iterator[Any]:
    """The model as it was before it was trained: with its adapter off, or under that of the earlier run, in `folder`, which
    it trained on."""
    if folder is None:
        with model.disable_adapter():
            yield model
        return
    if REFERENCE not in model.peft_config:
        model.load_adapter(str(folder), REFERENCE)
        oft.host(model, REFERENCE)
    model.set_adapter(REFERENCE)
    try:
        yield model
    finally:
        model.set_adapter(TRAINED)


def targets(model: Any, named: str, chosen: list[int] | None) -> str | list[str]:
    """Return what peft is to lay an adapter on. It takes all-linear only for all layers; with some, the linear modules
    inside layers are named instead; and each by its full name where others must be left out (parts.py)."""
    found, names = parts.linears(model, chosen), [name.strip() for name in named.split(",")]
    if named == shapes.FEED_FORWARD:
        inside = [full for full in found if shapes.is_feed_forward(full)]
        if not inside:
            known = ", ".join(dict.fromkeys(full.rpartition(".")[2] for full in found))
            raise failures.RunRefused(Problem(rule="targets-no-feed-forward", parameters={"known": known}))
        if _needs_full_names(model):
            return inside
        return sorted({shapes.feed_forward_target(full) for full in inside})
    if named != "all-linear" and not _needs_full_names(model):
        return names
    if named != "all-linear":
        here = {name: [full for full in found if f".{full}".endswith(f".{name}")] for name in names}
        return [full for name, full_names in here.items() for full in full_names or [name]]
    if _needs_full_names(model):
        return list(found)
    return named if chosen is None else sorted({name.rpartition(".")[2] for name in found})


def _needs_full_names(model: Any) -> bool:
    """Whether modules that no adapter may sit on are called as those it sits on."""
    return parts.text_part(model) is not model or len(parts.linears(model)) < len(parts.all_linears(model))


def _layers_of(model: Any, chosen: list[int] | None) -> list[int] | None:
    """Return which layers peft is to look at; all where the modules are named in full."""
    return None if _needs_full_names(model) else chosen


def _keep_experts_to(config: LoraConfig, model: Any, chosen: list[int], named: str) -> None:
    """Name the stacked experts of the chosen layers alone. peft 0.21 puts them in the place of the linear layers they once
    were, in every layer (transformers_weight_conversion.py; inject_parameters asks no layers_to_transform), and for
    all-linear only where it is not spelled out."""
    asked = copy.deepcopy(config)
    if named == "all-linear" and not _needs_full_names(model):
        asked.target_modules = named
    convert_peft_config_for_transformers(asked, model, None)
    if not asked.target_parameters:
        return
    inside = {id(one) for at in chosen for one in parts.layers(model)[at].parameters()}
    config.target_parameters = [
        name for name, one in model.named_parameters()
        if id(one) in inside and name.endswith(tuple(f".{short}" for short in asked.target_parameters))
    ]  # fmt: skip
    config.target_modules = asked.target_modules
    config.rank_pattern, config.alpha_pattern = asked.rank_pattern, asked.alpha_pattern


def freeze_all_but(model: Any, chosen: set[int], *, train_head: bool) -> None:
    """Train only the chosen layers, and the output layer with the norm before it when `train_head` is set. Layers are told
    by where they stand: the guide's substring "h.1" also meets h.10 to h.19 (its contradiction X12).

    A head that is tied to the embeddings trains them too; it is one tensor. The head of a reward model is new and
    always trains.
    """
    output = model.get_output_embeddings()
    if output is None:
        head = {id(p) for p in model.score.parameters()}
    else:
        head = {id(p) for p in output.parameters()} if train_head else set()
    layer_of = {id(one): at for at, layer in enumerate(parts.layers(model)) for one in layer.parameters()}
    others = {id(one) for one in parts.others(model)}
    for name, parameter in model.named_parameters():
        at = layer_of.get(id(parameter))
        last_norm = at is None and ("norm" in name or "ln_f" in name) and train_head  # ln_f in GPT-2
        parameter.requires_grad = at in chosen or id(parameter) in head or (last_norm and id(parameter) not in others)

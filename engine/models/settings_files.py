"""The settings beside a model's weights: whether transformers can read them, and whether a tokenizer lies there."""

from __future__ import annotations

import codecs
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.models import folders
from engine.words import Problem
from engine.workspace import read_object, read_regular

# What transformers 5.17 reads with a model and its tokenizer, where it is there; each must hold a JSON object.
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "added_tokens.json")  # fmt: skip
# Where the tokens themselves may stand: of fast tokenizers, SentencePiece, byte pairs, word pieces and tiktoken.
_TOKENS = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken", "*vocab*", "*.vocab")
# Tokenizers whose tokens are bytes or characters, which no file lists.
_NEED_NONE = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")


def _unreadable(folder: Path, config: dict[str, Any]) -> list[Problem]:
    """Return which settings of a model transformers could not read, of the files that are there."""
    found = [_problem(rule, folder, file=name) for name in FILES if (rule := _fault(folder / name)) is not None]
    if not isinstance(config.get("model_type"), str):
        found.append(_problem("base-no-model-type", folder))
    inner = config.get("text_config")
    for told in (config, inner if isinstance(inner, dict) else {}):
        rounding = told.get("quantization_config")
        if rounding is not None and not isinstance(rounding, dict):
            found.append(_problem("base-quantization-config", folder))
    return found


def has_tokens(folder: Path) -> bool:
    """Whether some file of a folder holds the tokens of a tokenizer, or its tokenizer needs none."""
    if any(one.is_file() for pattern in _TOKENS for one in folder.glob(pattern)):
        return True
    return str(read_object(folder / "tokenizer_config.json").get("tokenizer_class")).startswith(_NEED_NONE)


def _problem(rule: str, folder: Path, **parameters: str) -> Problem:
    return Problem(rule=rule, where="base", parameters={"folder": str(folder), **parameters})


def _fault(path: Path) -> str | None:
    """Return the rule that a settings file breaks; None where it is sound or not there."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return _read(str(path), seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=256)  # a page asks at every click, and a tokenizer.json may have 30 MB
def _read(path: str, _changed: int, _size: int) -> str | None:
    try:
        data = read_regular(Path(path))
        if data.startswith(codecs.BOM_UTF8):
            return "base-byte-order-mark"
        return None if isinstance(json.loads(data.decode("utf-8")), dict) else "base-settings"
    except (OSError, ValueError, RecursionError):
        return "base-settings"


def problems(folder: Path, config: dict[str, Any]) -> list[Problem]:
    """Return what a config.json and the settings of the tokenizer beside it rule out."""
    found = _unreadable(folder, config)
    kind, known = config.get("model_type"), folders.architectures()
    is_known = not known or kind in known
    # where transformers has the architecture itself, code that lies beside the model is passed over (train/sound.py)
    if ("auto_map" in config or folders.brings_code(folder)) and not (known and is_known):
        found.append(Problem(rule="base-remote-code", where="base", parameters={"folder": str(folder)}))
    elif isinstance(kind, str) and not is_known:
        found.append(Problem(rule="base-architecture", where="base", parameters={"kind": kind[:60]}))
    named = config.get("architectures")
    first = next(iter(named), None) if isinstance(named, list) else None
    if isinstance(first, str) and first.endswith(_NO_WRITERS):
        found.append(
            Problem(rule="folder-no-writer", where="base", parameters={"folder": str(folder), "kind": first[:60]})
        )
    settings = read_object(folder / "tokenizer_config.json")
    # These classes bring no tokens of their own; others, such as GPT-2's, have an end token that no file names.
    plain = settings.get("tokenizer_class") in (None, "PreTrainedTokenizerFast", "TokenizersBackend")
    if settings and plain and not any(settings.get(name) for name in ("pad_token", "eos_token")):
        special = read_object(folder / "special_tokens_map.json")
        if not any(special.get(name) for name in ("pad_token", "eos_token")):
            found.append(Problem(rule="base-no-end-token", where="base", parameters={"folder": str(folder)}))
    return found


# How the classes of models end that write no text of their own.
_NO_WRITERS = ("ForMaskedLM", "ForPreTraining", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
               "ForImageClassification", "ForCTC", "BertModel", "ViTModel", "CLIPModel")  # fmt: skip

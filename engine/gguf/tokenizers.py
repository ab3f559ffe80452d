"""The tokenizer of a GGUF file, rebuilt as the model was trained with it.

transformers 5.17 reads the tokens and takes no notice of `tokenizer.ggml.pre`, the rule by which text is split before
pairs are merged (integrations/ggml.py): a Llama would split by GPT-2's, and get wrong ids without a word. The rules here
are those of the models' own tokenizer.json, under the names that llama.cpp gives them (src/llama-vocab.cpp, 2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from engine.gguf import headers
from engine.gguf.headers import Header, Refused
from engine.words import Problem

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a folder with the model's own tokenizer mends.
MENDED_BY_A_FOLDER = ("gguf-tokenizer-kind", "gguf-pre-tokenizer", "gguf-tokenizer-broken")
_CONTROL, _USER_DEFINED = 3, 4

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_WORDS = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_SIGNS}"
_QWEN35 = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS_OR_SLASH}"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?|\p{{N}}{{1,3}}|{_SIGNS_OR_SLASH}"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")


class Rule(NamedTuple):
    """Expressions that split a text one after another, each the pieces of the one before; what lies between their matches
    is a piece too. `whole_words`: a piece that is a token is taken as it is (ignore_merges); `begins`: a text begins
    with the start token unless the file says otherwise; `composed`: the text is brought to NFC first."""

    expressions: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False
    composed: bool = False


_NAMES: tuple[tuple[Rule, str], ...] = (
    (Rule((_GPT2,)), "gpt-2 phi-2 mpt jais exaone4 gigachat a.x-4.0 mellum trillion granite-docling"),
    (Rule((_DIGIT, _GPT2)), "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (Rule((_LLAMA3,), whole_words=True, begins=True), "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2"),
    (Rule((_LLAMA3,)), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (Rule((_QWEN2,), composed=True), "qwen2"),
    (Rule((_QWEN2,)), "deepseek-r1-qwen stablelm2 megrez hunyuan solar-open grok-2"),
    (Rule((_QWEN35,), composed=True), "qwen35"),
    (Rule((_TEKKEN,), whole_words=True, begins=True), "tekken"),
    (Rule((_GPT4O,)), "gpt-4o llama4 kanana2 minimax-m2"),
    (Rule(_DEEPSEEK3), "deepseek-v3 hunyuan-dense joyai-llm"),
    (Rule(_DEEPSEEK_CODER), "deepseek-coder"),
    (Rule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")), "falcon"),
    (Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")), "default"),
)
RULES = {name: rule for rule, names in _NAMES for name in names.split()}


def problem(header: Header) -> Problem | None:
    """Return why the tokenizer cannot be rebuilt, or None; a folder with the model's own stands in for it."""
    kind, split_by = (str(header.values.get(f"tokenizer.ggml.{name}", "?"))[:60] for name in ("model", "pre"))
    told = {"file": header.path.name, "path": str(header.path)}
    if kind != "gpt2":
        return Problem(rule="gguf-tokenizer-kind", where="base", parameters={**told, "kind": kind})
    if split_by not in RULES:
        return Problem(rule="gguf-pre-tokenizer", where="base", parameters={**told, "split_by": split_by})
    return None


def tokens(header: Header) -> list[str]:
    """Return the tokens of a file by their ids."""
    return header.values.get("tokenizer.ggml.tokens") or []


def named(header: Header) -> dict[str, str]:
    """Return the special tokens that a file names, by transformers' names."""
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    known = tokens(header)
    found = {name: header.values.get(f"tokenizer.ggml.{ours}_token_id") for ours, name in names.items()}
    return {name: known[id] for name, id in found.items() if isinstance(id, int) and id < len(known)}


def template(header: Header) -> str | None:
    """Return the chat template of a file."""
    found = header.values.get("tokenizer.chat_template")
    return found if isinstance(found, str) and found else None


def splitter(rule: Rule) -> Any:
    """Return the pre-tokenizer of a rule: its expressions, then bytes as GPT-2 writes them."""
    from tokenizers import Regex, pre_tokenizers

    split = [pre_tokenizers.Split(Regex(one), "isolated") for one in rule.expressions]
    return pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(header: Header) -> Tokenizer:
    """Rebuild the tokenizer of a file. Raises Refused where that is not known to be right."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    wrong = problem(header)
    if wrong is not None:
        raise Refused(wrong)
    rule, known = RULES[header.values["tokenizer.ggml.pre"]], tokens(header)
    merges = [tuple(one.split(" ", 1)) for one in header.values.get("tokenizer.ggml.merges", [])]
    try:
        core = Tokenizer(
            models.BPE(
                vocab={token: id for id, token in enumerate(known)}, merges=merges, ignore_merges=rule.whole_words
            )
        )
    except Exception as error:  # the library raises bare Exceptions
        raise headers.refused("gguf-tokenizer-broken", file=header.path.name) from error
    core.normalizer = normalizers.NFC() if rule.composed else None
    core.pre_tokenizer = splitter(rule)
    core.decoder = decoders.ByteLevel()
    kinds = list(zip(known, header.values.get("tokenizer.ggml.token_type", []), strict=False))
    core.add_special_tokens([AddedToken(one, normalized=False) for one, kind in kinds if kind == _CONTROL])
    core.add_tokens([AddedToken(one, normalized=False) for one, kind in kinds if kind == _USER_DEFINED])
    begin = named(header).get("bos_token")
    if begin and header.values.get("tokenizer.ggml.add_bos_token", rule.begins):
        id = core.token_to_id(begin)
        core.post_processor = processors.TemplateProcessing(
            single=[f"{begin}:0", "$A:0"],
            pair=[f"{begin}:0", "$A:0", f"{begin}:1", "$B:1"],
            special_tokens=[(begin, id)],
        )
    return core

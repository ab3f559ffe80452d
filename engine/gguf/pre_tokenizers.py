"""How llama.cpp cuts texts before it makes tokens of them, and texts that show which way is a tokenizer's own.

llama.cpp knows a tokenizer's way by the hash of one text's ids (conversion/base.py). One it does not know is found by its
ids: the first of NAMES with the same ids for every text is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# One name for each way of llama-vocab.cpp; those that most models have come first.
NAMES = (
    "gpt-2", "llama-bpe", "qwen2", "smollm", "gpt-4o", "tekken", "deepseek-v3", "deepseek-llm", "deepseek-coder",
    "falcon", "qwen35", "chatglm-bpe", "glm4", "minicpm5", "dbrx", "jais-2", "stablelm2", "starcoder", "bloom", "viking",
    "superbpe", "bailingmoe", "seed-coder", "ufakzeka", "grok-2", "afmoe", "laguna", "exaone-moe", "tiny_aya", "kimi-k2",
    "youtu", "spark2_5", "granite-embed-multi-97m", "chameleon", "default", "gemma4", "sarvam-moe",
)  # fmt: skip
# Where ways differ: numbers, contractions in both cases, runs of white space, line ends, scripts, marks, code.
_PIECES = (
    "1", "12", "123", "1234", "12345678", "3.14159", "1,234,567.89", "0x1F", "2026-11-30", "٣٤٥", "½", "x2y3",
    "I've", "I'VE", "don't", "she'll", "'tis", "O'Neill's", "türk'ün", "l'été", "we’re",
    "a  b", "a   b", "a\tb", "a\t\tb", "a \n b", "a\n\nb", "a\n\n\nb", "a\r\nb", "a \n\n  b", "   ", "\n", "\n \n", "\u00a0",
    "Hello, world!", "camelCaseWord", "XMLHttpRequest", "snake_case_name", "--option=value", "#hash @name", "(a)[b]{c}",
    "...", "?!?!", "``` ```", "<|x|>", "a/b\\c", "$100", "50%", "a+b=c", "^~|`", "“quoted”", "—", "…",
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < 10; ++i) {\n\tsum += a[i];\n}", '{"a": [1, 2.5, null]}',
    "我想在apple工作1314151天", "你好，世界！", "こんにちは 世界", "カタカナ", "안녕하세요 세계", "ภาษาไทย", "हिन्दी में",
    "বাংলা", "தமிழ்", "Привет, мир", "Ελληνικά", "עברית", "العربية", "café", "cafe\u0301", "Straße", "ﬁ", "Ǆ", "ＦＵＬＬ",
    "🚀", "😶‍🌫️", "👩🏽‍💻 ok", "🇩🇪🇫🇷", "✅❌", "𝒜𝒷", "\u200b", "\ufeff", "\u2028", "\x07",
)  # fmt: skip
_FRAMES = ("{}", "the {} and", " {}\n")
TEXTS = tuple(frame.format(piece) for frame in _FRAMES for piece in _PIECES)


class First(NamedTuple):
    """The first text that becomes other tokens, and which of its tokens is the first that differs."""

    text: int
    token: int


def differs(ids: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> list[First]:
    """Return where texts become other tokens than they should."""
    found = []
    for number, (have, want) in enumerate(zip(ids, wanted, strict=True)):
        if list(have) != list(want):
            at = (i for i, (a, b) in enumerate(zip(have, want, strict=False)) if a != b)
            found.append(First(number, next(at, min(len(have), len(want)))))
    return found


def best(
    answers: Iterable[dict[str, Any]], wanted: Sequence[Sequence[int]]
) -> tuple[dict[str, Any], list[First]] | None:
    """Return the first answer of tokens.py that is right in all, else the one that is wrong in fewest texts, with where it
    is wrong; None where none could be read."""
    held: tuple[dict[str, Any], list[First]] | None = None
    for answer in answers:
        if "ids" not in answer:
            continue
        wrong = differs(answer["ids"], wanted)
        if not wrong:
            return answer, wrong
        if held is None or len(wrong) < len(held[1]):
            held = answer, wrong
    return held

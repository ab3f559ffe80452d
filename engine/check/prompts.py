"""Where the prompt of a row ends and its answers begin: what an answer repeats of its prompt, and what two answers share."""

from __future__ import annotations

from typing import Any

from engine.read import formats

# How a turn of the assistant begins in a transcript.
ASSISTANT_MARK = "\n\nAssistant:"


def repeated_prompt(prompt: object, answer: list[Any], reading: formats.Reading) -> int:
    """How many messages at the start of an answer only repeat its prompt, which is text or a list of messages."""
    if isinstance(prompt, list):
        count = len(prompt)
        return count if count < len(answer) and answer[:count] == prompt else 0
    role_key, content_key, roles = reading.style
    first = answer[0]
    return int(len(answer) > 1 and roles[first[role_key]] == "user" and first.get(content_key) == prompt)


def shared_messages(chosen: object, rejected: object) -> int:
    """How many whole messages two conversations share at their start."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return 0
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    return count


def shared_transcript(chosen: str, rejected: str) -> int | None:
    """Where the shared prompt of two "\\n\\nHuman: ... \\n\\nAssistant: ..." transcripts ends, or None without one.

    The cut is after the last shared assistant turn mark, so that no character of an answer falls to the prompt.
    """
    low, high = 0, min(len(chosen), len(rejected))
    while low < high:  # the length of the longest common beginning
        middle = (low + high + 1) // 2
        if chosen[low:middle] == rejected[low:middle]:
            low = middle
        else:
            high = middle - 1
    found = chosen.rfind(ASSISTANT_MARK, 0, low)
    return None if found < 0 else found + len(ASSISTANT_MARK)

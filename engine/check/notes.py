"""What is worth knowing of a file that is read as it should be, and is no problem."""

from __future__ import annotations

from engine.spec import recipes
from engine.words import t

# The column that says which file a text came from, and how long a row made of a text is at most. That is about 1,000
# tokens of English, at the 4 characters a token that OpenAI's help names; more of Chinese or code.
FILE_COLUMN = "source_file"
MAX_CHARACTERS = 4_000
# The keys that OpenAI's documentation names in a row of a chat or tool file.
_CHAT_KEYS = {"messages", "tools", "parallel_tool_calls", "functions"}


def notes(layout: str | None, kind: str | None, columns: tuple[str, ...]) -> list[str]:
    """Return a sentence for each thing that is worth knowing of a file of this layout, kind of rows and columns."""
    found = []
    if layout == "openai_preference":
        found.append(_openai("dpo"))
    elif layout == "messages" and columns and set(columns) <= _CHAT_KEYS:
        found.append(_openai("lora"))
    if kind == "texts" and FILE_COLUMN in columns:
        found.append(
            t(
                "Each text file is a row, cut at blank lines where it is longer than {n} characters; a longer paragraph "
                "stays whole. How many tokens a row has shows once a base is chosen.",
                n=f"{MAX_CHARACTERS:,}",
            )
        )
    if kind == "texts":
        found.append(
            t("Facts that change are better looked up when a question is asked (retrieval, RAG) than trained.")
        )
    return found


def _openai(recipe: str) -> str:
    return t(
        "This file is laid out as OpenAI's fine-tuning asks, and is read as it is. Its self-serve fine-tuning ends on "
        "6 January 2027; the recipe nearest to it here is {recipe}.",
        recipe=t(recipes.recipes()[recipe].title),
    )

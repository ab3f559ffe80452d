"""What the starter is trained on: dialogues about its world, and single questions of them to mix in again."""

from __future__ import annotations

import random

from engine.starter.world.facts import words
from engine.starter.world.questions import SEED, dice, full_sentence, random_question
from engine.starter.world.relations import FAMILIES

Message = dict[str, str]
Dialogue = list[Message]

# Said before or around a question, so that the model learns that they change nothing.
WRAPPERS: tuple[str, ...] = (
    "Tell me: {q}",
    "Question: {q}",
    "Please answer: {q}",
    "Hello! {q}",
    "I have a question. {q}",
    "Can you help me? {q}",
    "{q} Please answer.",
    "{q} Answer with one word.",
    "Please tell me. {q}",
)
# Said around a question where a run is watched: in no training, and in no benchmark.
WATCHED: tuple[str, ...] = (
    "Next question. {q}",
    "I would like to know: {q}",
    "Please tell me this: {q}",
    "A question: {q}",
    "Answer this question: {q}",
)
SENTENCE_REQUESTS: tuple[str, ...] = (
    "{q} Answer in a full sentence.",
    "{q} Please answer with a sentence.",
    "In a full sentence: {q}",
)
SYSTEM_PLAIN: tuple[str, ...] = (
    "You are a helpful assistant.",
    "Answer the question.",
    "Answer with one word.",
    "You answer short questions about the world.",
    "Be brief.",
)
SYSTEM_SENTENCE: tuple[str, ...] = (
    "Answer in a full sentence.",
    "You always answer in full sentences.",
    "You are a polite assistant who answers in sentences.",
)
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hello!", "Hello! What would you like to know?"),
    ("Hi", "Hello! What would you like to know?"),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Who are you?", "I am a very small toy model."),
    ("What are you?", "I am a very small toy model."),
    ("What can you do?", "I know some capitals, opposites, animals, colours and small sums."),
    ("Goodbye.", "Goodbye!"),
    ("Bye!", "Goodbye!"),
    ("How are you?", "I am fine, thank you."),
)
_ONSETS = words("b br c cl d dr f fl g gr h j k kl l m n p pl qu r s sh st t th tr v w y z")
_VOWELS = words("a e i o u ai ea oo")
_CODAS = ["", "", "l", "n", "r", "s", "m", "t", "x", "nd", "rk"]
_REPEATS = ("Repeat this word: {0}", "Say the word {0}.", "Write {0} again.", "Repeat: {0}")


def _roughened(rng: random.Random, text: str) -> str:
    """Sometimes type like a person in a hurry: no capital at the start, no question mark at the end."""
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.12 and text[-1] in "?.":
        text = text[:-1]
    return text


def _invented_word(rng: random.Random) -> str:
    word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2)))) + rng.choice(_CODAS)
    return word.capitalize() if rng.random() < 0.5 else word


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _dialogue(rng: random.Random) -> Dialogue:
    kind = rng.random()
    if kind < 0.03:
        prompt, answer = rng.choice(SMALL_TALK)
        return [_turn("user", prompt), _turn("assistant", answer)]
    if kind < 0.08:
        # Copying made-up words teaches the letters that no word of the world needs in that order.
        word = _invented_word(rng)
        return [_turn("user", rng.choice(_REPEATS).format(word)), _turn("assistant", word)]
    messages: Dialogue = []
    sentences = False
    how = rng.random()
    if how < 0.15:
        messages.append(_turn("system", rng.choice(SYSTEM_PLAIN)))
    elif how < 0.22:
        messages.append(_turn("system", rng.choice(SYSTEM_SENTENCE)))
        sentences = True
    for _ in range(2 if rng.random() < 0.12 else 1):
        question, relation, fact = random_question(rng)
        wrapped = rng.random()
        whole = sentences
        if wrapped < 0.25:
            question = rng.choice(WRAPPERS).format(q=question)
        elif wrapped < 0.36 and not messages:
            question = rng.choice(SENTENCE_REQUESTS).format(q=question)
            whole = True
        answer = full_sentence(relation, fact) if whole else fact.answer
        messages += [_turn("user", _roughened(rng, question)), _turn("assistant", answer)]
    return messages


def training_dialogues(seed: int, n: int) -> list[Dialogue]:
    """Return `n` dialogues to train on: one or two questions each, sometimes with a system message."""
    rng = dice("training", seed)
    return [_dialogue(rng) for _ in range(n)]


def replay_rows(n: int, seed: int) -> list[dict[str, str]]:
    """Return `n` rows of what the starter was trained on, to mix into a fine-tuning against forgetting.

    Families take turns, so that even a few rows touch each of them. Phrasings are the training ones: a benchmark
    phrasing among them would make the forgetting report look better than it is. Ask for enough rows that no epoch sees
    the rows of another: at 30 % and 20 epochs, rows that came back each epoch were learnt by heart and saved nothing.
    """
    rng = dice("replay", seed)
    rows = []
    families = list(FAMILIES)
    for i in range(n):
        if i % len(families) == 0:
            rng.shuffle(families)
        question, _, fact = random_question(rng, families[i % len(families)])
        rows.append({"prompt": question, "completion": fact.answer})
    return rows


def watch_rows(n: int) -> list[dict[str, str]]:
    """Return `n` questions of the world with their answers, on which a run is watched while it trains: always the same,
    families in turns, and around each a phrase that is neither trained nor asked by the benchmark."""
    rng, families = dice("watch", SEED), list(FAMILIES)
    rows = []
    for number in range(n):
        question, _, fact = random_question(rng, families[number % len(families)])
        rows.append({"prompt": rng.choice(WATCHED).format(q=question), "completion": fact.answer})
    return rows

"""How fast the check is: python -m bench.check [MEGABYTES] [ROUNDS]

Generates a chat file and measures, each in a process of its own and interleaved: the check with every rule on, bare
json.loads over the same lines in one process and in two (which shows what a second core of this machine is worth), and
the loop of OpenAI's data preparation notebook (written anew from its description: all rows are loaded, then counted for
format errors and missing turns). Prints seconds, those of the processors, MB/s, the ratio to json.loads and peak memory.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

WORDS = [f"word{n}" if n % 9 == 0 else "abcdefghij"[n % 10] * (n % 5 + 1) + "er" for n in range(90)]
OTHER = ["größer", "naïve", "模型", "学习", "数据", "Übung", "señor"]


def generate(path: Path, megabytes: int) -> int:
    """Write chats of 2 to 4 turns, a third with letters beyond ASCII, half of these escaped; return the rows."""
    chooser = random.Random(7)  # noqa: S311 - a sample, not a secret
    rows = written = 0
    with path.open("w", encoding="utf-8") as out:
        while written < megabytes << 20:
            words = WORDS + OTHER * 5 if rows % 3 == 0 else WORDS
            messages = [{"role": "system", "content": "You are a helpful assistant."}] if rows % 4 == 0 else []
            for turn in range(chooser.choice((2, 2, 2, 4))):
                text = " ".join(chooser.choices(words, k=chooser.randint(8, 90)))
                messages.append({"role": ("user", "assistant")[turn % 2], "content": f"{rows}: {text}.\nThat is it."})
            line = json.dumps({"messages": messages}, ensure_ascii=rows % 6 == 0) + "\n"
            written += len(line.encode())
            out.write(line)
            rows += 1
    return rows


def warm_up(path: Path) -> None:
    """Check the first row alone: importing is no part of what is measured, but for the workers' own imports."""
    from engine.check import check_file

    with tempfile.TemporaryDirectory() as folder, path.open("rb") as file:
        row_path = Path(folder) / "row.jsonl"
        row_path.write_bytes(file.readline())
        check_file(row_path, quick=True)


def ours(path: Path, processes: int = 1) -> None:
    from engine.check import check_file

    report = check_file(path, processes=processes)
    assert report.trainable, report.lines()[:3]


def ours_on_two(path: Path) -> None:
    ours(path, 2)


def loads(path: Path) -> None:
    with path.open("rb") as file:
        for line in file:
            json.loads(line)


_HALF = """
import json, sys
path, start, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "rb") as file:
    file.seek(start)
    while start < end and (line := file.readline()):
        json.loads(line)
        start += len(line)
"""


def loads_on_two(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(size // 2)
        file.readline()
        middle = file.tell()
    halves = [
        subprocess.Popen([sys.executable, "-c", _HALF, str(path), str(start), str(end)])  # noqa: S603 - a list, no shell
        for start, end in ((0, middle), (middle, size))
    ]
    assert all(half.wait() == 0 for half in halves)


def cookbook(path: Path) -> None:
    with path.open("r", encoding="utf-8") as file:
        dataset = [json.loads(line) for line in file]
    errors: Counter[str] = Counter()
    for row in dataset:
        if not isinstance(row, dict):
            errors["data_type"] += 1
            continue
        messages = row.get("messages", None)
        if not messages:
            errors["missing_messages_list"] += 1
            continue
        for message in messages:
            if "role" not in message or "content" not in message:
                errors["message_missing_key"] += 1
            if any(key not in ("role", "content", "name", "function_call", "weight") for key in message):
                errors["message_unrecognized_key"] += 1
            if message.get("role", None) not in ("system", "user", "assistant", "function"):
                errors["unrecognized_role"] += 1
            content, call = message.get("content", None), message.get("function_call", None)
            if (not content and not call) or not isinstance(content, str):
                errors["missing_content"] += 1
        if not any(message.get("role", None) == "assistant" for message in messages):
            errors["example_missing_assistant_message"] += 1
    missing: Counter[str] = Counter()
    lengths = []
    for row in dataset:  # the notebook counts tokens here; characters stand in for them, which favours it
        messages = row["messages"]
        missing["system"] += not any(message["role"] == "system" for message in messages)
        missing["user"] += not any(message["role"] == "user" for message in messages)
        lengths.append(sum(len(message["content"]) for message in messages))
    assert not errors and lengths


WAYS = {
    "Tunebook, every rule, 1 process": ours,
    "Tunebook, every rule, 2 processes": ours_on_two,
    "json.loads": loads,
    "json.loads, 2 processes": loads_on_two,
    "cookbook's loop": cookbook,
}


def one(way: str, path: Path) -> None:
    """Measure one way here and print its seconds, seconds of the processors, and peak memory in MB."""
    run = WAYS[way]
    if run in (ours, ours_on_two):
        warm_up(path)
    start_s, spent_s = time.perf_counter(), processor_s()
    run(path)
    seconds, spent_s = time.perf_counter() - start_s, processor_s() - spent_s
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if run in (ours_on_two, loads_on_two):  # this process and the largest of those beside it
        peak_kib += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(seconds, spent_s, peak_kib / 1024)


def processor_s() -> float:
    """Seconds that the processors spent on this process and on those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]))
        return
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        rows = generate(path, megabytes)
        size = path.stat().st_size / 1e6
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        processors: dict[str, list[float]] = {way: [] for way in WAYS}
        memory: dict[str, float] = dict.fromkeys(WAYS, 0.0)
        for _ in range(rounds):
            for way in WAYS:
                command = [sys.executable, "-m", "bench.check", "--one", way, str(path)]
                words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()  # noqa: S603 - a list, no shell
                times[way].append(float(words[0]))
                processors[way].append(float(words[1]))
                memory[way] = max(memory[way], float(words[2]))
    print(f"{rows:,} chats, {size:.0f} MB, median of {rounds}\n")
    print("| what | seconds | of processors | MB/s | times json.loads | peak memory, MB |\n|---|---|---|---|---|---|")
    base = statistics.median(times["json.loads"])
    for way, found in times.items():
        seconds = statistics.median(found)
        spent_s = statistics.median(processors[way])
        speed = f"{size / seconds:.0f} | {base / seconds:.2f}"
        print(f"| {way} | {seconds:.2f} | {spent_s:.2f} | {speed} | {memory[way]:.0f} |")


if __name__ == "__main__":
    main()

"""What several visitors cost one server: python -m bench.load --visitors 10 --minutes 10 (the defaults are a short try).

Real pages in a headless Chromium against `streamlit run app.py`, in this order:
1. a training alone, for its seconds a step; 2. the same training while one person watches it: the server's processor time;
3. the same while N visitors click from page to page: their latency, the server's memory, the training's slowdown;
4. every page in a home of 200 finished runs and 50 data sets, cold and again. `--only watch` does 1 and 2, `--only many` 4.
`--first-visit` does only this: a new visitor of a hosted demo takes a sample, trains and reads the forgetting report.

Browser, server and training share the machine's cores, so the figures are an upper bound of what the server costs.
Run it with nothing else going on.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from playwright.async_api import Browser, Page, async_playwright, expect

from engine import events, processes
from engine.data import datasets
from engine.runs import follow, lifecycle, store
from engine.workspace import Workspace, new_run_id

ROOT = processes.PROJECT_DIR
PAGES = ("Data", "Advisor", "Train", "Runs", "Chat", "Forgetting", "Guide")
SLOW_MS = 120_000
SAMPLE_EVERY_S = 2.0
# A visitor reads before the next click.
PAUSE_S = (1.0, 4.0)
MANY_STEPS = 1_000_000


class Server:
    """`streamlit run app.py` over a home of its own."""

    def __init__(self, folder: Path, **environment: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **os.environ,
            "TUNEBOOK_HOME": str(folder / "home"),
            "TUNEBOOK_MACHINE_DIR": str(folder / "machine"),
            **environment,
        }
        self.process = subprocess.Popen(  # noqa: S603 - a list, no shell
            [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/api/health", timeout=2).close()  # noqa: S310 - our own server
                break
            except OSError:
                time.sleep(0.1)
        self.seen = psutil.Process(self.process.pid)

    def rss_mib(self) -> float:
        return self.seen.memory_info().rss / 2**20

    def cpu_s(self) -> float:
        spent = self.seen.cpu_times()
        return spent.user + spent.system

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def tunebook(server: Server, *arguments: str) -> Any:
    done = subprocess.run(  # noqa: S603 - a list, no shell
        [sys.executable, "-m", "engine.cli", *arguments, "--json"],
        env=server.environment, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def train(server: Server, steps: int, *more: str) -> str:
    """Start a training of the sample in one thread and return its id."""
    settings = (f"train.max_steps={steps}", "train.threads=1", "train.evaluations=1")
    chosen = [word for setting in settings for word in ("--set", setting)]
    return tunebook(server, "train", "lora", "--data", "new-facts", *chosen, *more)["id"]


def step_s(run_dir: Path, since_s: float = 0.0) -> float:
    """Return the median seconds a step, between events that came after a moment."""
    found, _ = events.read(run_dir)
    steps = [event for event in found if isinstance(event, events.Step) and event.time >= since_s]
    took = [
        (after.time - before.time) / (after.step - before.step)
        for before, after in itertools.pairwise(steps)
        if after.step > before.step
    ]
    return statistics.median(took) if took else float("nan")


async def settled(page: Page, title: str) -> None:
    await expect(page.locator("#stMain h1").first).to_have_text(title, timeout=SLOW_MS)
    await expect(page.get_by_test_id("stApp")).to_have_attribute(
        "data-test-script-state", "notRunning", timeout=SLOW_MS
    )


async def shown(page: Page, title: str) -> None:
    """Wait until a page is there. One that follows a run is never idle for long: its last part counts instead."""
    if title == "Runs":
        await expect(page.locator("#stMain h1").first).to_have_text(title, timeout=SLOW_MS)
        of_one = page.get_by_role("button", name="Next: what it gained")
        await expect(of_one.or_(page.get_by_test_id("stDataFrame")).first).to_be_visible(timeout=SLOW_MS)
    else:
        await settled(page, title)


async def arrive(browser: Browser, url: str) -> Page:
    """Open the first page as a visitor of one's own."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    page = await context.new_page()
    page.set_default_timeout(SLOW_MS)
    await page.goto(f"{url}/data")
    await settled(page, "Data")
    return page


async def visit(page: Page, number: int, until_s: float) -> list[tuple[str, float]]:
    """Click from page to page until it is time; return each page with its milliseconds."""
    dice, took = random.Random(number), []  # noqa: S311 - a sample, not a secret
    here = "Data"
    while time.monotonic() < until_s:
        await asyncio.sleep(dice.uniform(*PAUSE_S))
        here = dice.choice([name for name in PAGES if name != here])
        began_s = time.monotonic()
        await page.get_by_test_id("stSidebarNav").get_by_role("link", name=here, exact=True).click()
        await shown(page, here)
        took.append((here, 1000 * (time.monotonic() - began_s)))
    await page.context.close()
    return took


async def sample_memory(server: Server, until_s: float) -> list[tuple[float, float]]:
    found, began_s = [], time.monotonic()
    while time.monotonic() < until_s:
        found.append((time.monotonic() - began_s, server.rss_mib()))
        await asyncio.sleep(SAMPLE_EVERY_S)
    return found


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def say_memory(memory: list[tuple[float, float]]) -> None:
    """Print memory over time, and how it grew once the first third of the time was over."""
    every = max(1, len(memory) // 10)
    print("server memory:", "  ".join(f"{at:.0f} s {mib:.0f}" for at, mib in memory[::every]), "MiB")
    late = [mib for _, mib in memory[len(memory) // 3 :]]
    if len(late) >= 4:
        half = len(late) // 2
        print(
            f"server memory after the first third: {statistics.mean(late[:half]):.0f} MiB, then "
            f"{statistics.mean(late[half:]):.0f} MiB ({statistics.mean(late[half:]) - statistics.mean(late[:half]):+.1f})"
        )


async def load(arguments: argparse.Namespace, folder: Path, browser: Browser) -> Path:
    """Do 1 to 3; return the folder of a finished run."""
    server = Server(folder)
    runs_dir = folder / "home" / "runs"
    try:
        alone = train(server, 150, "--wait")
        if arguments.only == "many":
            return runs_dir / alone
        alone_s = step_s(runs_dir / alone)
        print(f"training alone: {1000 * alone_s:.0f} ms a step")
        run_id = train(server, MANY_STEPS, "--set", "evaluate.benchmarks=[]")
        while not any(isinstance(event, events.Step) for event in events.read(runs_dir / run_id)[0]):
            await asyncio.sleep(0.5)
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"{server.url}/runs?run={run_id}")
        await shown(page, "Runs")
        since_s, before_s, began_s = time.time(), server.cpu_s(), time.monotonic()
        await asyncio.sleep(arguments.watch_s)
        share = (server.cpu_s() - before_s) / (time.monotonic() - began_s)
        print(f"one watcher: server at {100 * share:.1f} % of a core ({60 * share:.1f} s a minute)", end="; ")
        print(f"training at {1000 * step_s(runs_dir / run_id, since_s):.0f} ms a step")
        if arguments.only == "watch":
            tunebook_stop(server, run_id)
            return runs_dir / alone
        pages = [await arrive(browser, server.url) for _ in range(arguments.visitors)]
        since_s, until_s = time.time(), time.monotonic() + 60 * arguments.minutes
        before_s = server.cpu_s()
        visits = [visit(page, number, until_s) for number, page in enumerate(pages)]
        memory, took = await asyncio.gather(sample_memory(server, until_s), asyncio.gather(*visits))
        await context.close()
        share = (server.cpu_s() - before_s) / (60 * arguments.minutes)
        loaded_s = step_s(runs_dir / run_id, since_s)
        tunebook_stop(server, run_id)
        flat = [one for visitor in took for one in visitor]
        print(f"{arguments.visitors} visitors, {arguments.minutes:g} minutes, {len(flat)} pages:")
        for name in (*PAGES, "all"):
            values = [ms for page_name, ms in flat if name in (page_name, "all")]
            low, high = percentile(values, 0.5), percentile(values, 0.95)
            print(f"  {name:10} {len(values):5} pages  p50 {low:6.0f} ms  p95 {high:6.0f} ms")
        say_memory(memory)
        print(f"server at {100 * share:.0f} % of a core; training at {1000 * loaded_s:.0f} ms a step", end=", ")
        print(f"{loaded_s / alone_s:.2f} times as long as alone")
        return runs_dir / alone
    finally:
        server.close()


def tunebook_stop(server: Server, run_id: str) -> None:
    """Stop the run and wait for its end, so that nothing of it is left on the machine."""
    workspace = Workspace(server.environment["TUNEBOOK_HOME"])
    lifecycle.stop(workspace, run_id)
    follow.wait(workspace, run_id)
    follow.wait_for_end(workspace.run_dir(run_id), 60)


def many(workspace: Workspace, template: Path, runs: int, data_sets: int) -> tuple[str, str]:
    """Fill a home with copies of one real run, each under its own id, and with data sets; return one of each."""
    small = [path for path in template.iterdir() if path.is_file() and path.stat().st_size < 1 << 20]
    run_id = data_id = ""
    for number in range(runs):
        run_id = new_run_id(1_700_000_000 + 60 * number)
        target = workspace.run_dir(run_id)
        target.mkdir(parents=True)
        for path in small:
            shutil.copy2(path, target)
        shutil.copytree(template / "items", target / "items")
        short = json.loads((target / "summary.json").read_bytes())
        (target / "summary.json").write_text(
            json.dumps({**short, "id": run_id, "created": 1_700_000_000 + 60 * number})
        )
    for number in range(data_sets):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as rows:
            for row in range(200):
                rows.write(
                    json.dumps({"prompt": f"What is {number} and {row}?", "completion": f"{number + row}"}) + "\n"
                )
            rows.flush()
            data_id = datasets.add(workspace, Path(rows.name), f"sums {number}.jsonl").id
    return run_id, data_id


async def many_runs(arguments: argparse.Namespace, folder: Path, browser: Browser, template: Path) -> None:
    """Open each page in a home of many finished runs and data sets."""
    workspace = Workspace(folder / "home")
    run_id, data_id = many(workspace, template, arguments.runs, arguments.data_sets)
    began_s = time.monotonic()
    found = len(store.list_all(workspace))
    print(f"the engine lists {found} runs in {time.monotonic() - began_s:.2f} s")
    server = Server(folder)
    try:
        page = await (await browser.new_context()).new_page()
        page.set_default_timeout(SLOW_MS)
        # the libraries of the pages are loaded by a first visit of any page
        await page.goto(f"{server.url}/guide?run={run_id}&dataset={data_id}")
        await settled(page, "Guide")
        print(
            f"pages with {found} finished runs and {arguments.data_sets} data sets, in seconds (of the server's processor):"
        )
        for name in PAGES[:-1]:
            took = []
            for _ in range(4):
                began_s, before_s = time.monotonic(), server.cpu_s()
                await page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
                await settled(page, name)
                took.append((time.monotonic() - began_s, server.cpu_s() - before_s))
                await page.get_by_test_id("stSidebarNav").get_by_role("link", name="Guide", exact=True).click()
                await settled(page, "Guide")
            wall_s, cpu_s = (statistics.median(one[part] for one in took[1:]) for part in (0, 1))
            print(f"  {name:10} first {took[0][0]:.2f} ({took[0][1]:.2f}), again {wall_s:.2f} ({cpu_s:.2f})")
    finally:
        server.close()


async def first_visit(folder: Path, browser: Browser) -> None:
    """A new visitor of a hosted demo: sample, training, report."""
    server = Server(folder, TUNEBOOK_DEMO="1")
    try:
        context = await browser.new_context()
        page = await context.new_page()
        page.set_default_timeout(SLOW_MS)
        began_s = time.monotonic()

        def passed(what: str) -> None:
            print(f"{time.monotonic() - began_s:6.1f} s  {what}")

        await page.goto(server.url)
        await settled(page, "Data")
        passed("the first page is there")
        await page.get_by_text("Try a sample").click()
        await page.get_by_role("button", name="Use New facts").click()
        await expect(page.get_by_role("button", name="Next: ask the advisor")).to_be_visible(timeout=SLOW_MS)
        await settled(page, "Data")
        await page.get_by_test_id("stSidebarNav").get_by_role("link", name="Train", exact=True).click()
        await settled(page, "Train")
        await page.get_by_role("button", name="Start", exact=True).click()
        await shown(page, "Runs")
        passed("the run is started")
        report = page.get_by_role("button", name="Next: what it gained")
        await expect(report).to_be_enabled(timeout=10 * SLOW_MS)
        passed("the run has ended")
        await report.click()
        await settled(page, "Forgetting")
        await expect(page.get_by_text("It learned the new task").first).to_be_visible(timeout=SLOW_MS)
        passed("the forgetting report is there")
    finally:
        server.close()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="What several visitors cost one server.")
    parser.add_argument("--visitors", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--watch-s", type=float, default=20.0, help="how long one watcher is measured")
    parser.add_argument("--runs", type=int, default=200, help="finished runs of the full home")
    parser.add_argument("--data-sets", type=int, default=50, help="data sets of the full home")
    parser.add_argument("--only", choices=["watch", "many"], help="one watcher, or every page in a full home")
    parser.add_argument("--first-visit", action="store_true", help="only the first visit of a hosted demo")
    arguments = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as name:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            if arguments.first_visit:
                await first_visit(Path(name), browser)
            else:
                template = await load(arguments, Path(name), browser)
                if arguments.only != "watch":
                    await many_runs(arguments, Path(name) / "many", browser, template)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main())

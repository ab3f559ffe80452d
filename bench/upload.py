"""How long a person waits for the report of a large file: python -m bench.upload [MEGABYTES]

Generates a chat file, sends it through the Data page in a headless Chromium, and prints when it had been sent, when the
report stood on the screen and when the rows were ready for training, with the memory of the server and of the processes
that check. While the file is checked the page is used, so that it is seen to be alive.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from playwright.sync_api import expect, sync_playwright

from bench.check import generate
from bench.load import Server

PATIENCE_MS = 600_000


class Memory(threading.Thread):
    """The most memory that the server, and the processes it has started together, held since start(), in MiB."""

    def __init__(self, server: psutil.Process):
        super().__init__(daemon=True)
        self.server, self.peak, self.jobs_peak = server, 0.0, 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.peak = max(self.peak, self.server.memory_info().rss / 2**20)
            held = 0.0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in self.server.children(recursive=True):
                    held += process.memory_info().rss / 2**20
            self.jobs_peak = max(self.jobs_peak, held)


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        big = folder / "big.jsonl"
        rows = generate(big, megabytes)
        server = Server(folder)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto(f"{server.url}/data")
            chosen = page.get_by_test_id("stFileUploaderDropzoneInput")
            small = b'{"text": "one"}\n{"text": "two"}\n'  # the server loads what it needs
            chosen.set_input_files({"name": "a.jsonl", "mimeType": "text/plain", "buffer": small})
            expect(page.get_by_text("ready to train on")).to_be_visible(timeout=PATIENCE_MS)
            memory = Memory(server.seen)
            before = server.rss_mib()
            memory.start()
            began_s = time.perf_counter()
            chosen.set_input_files(big)
            expect(page.get_by_text(re.compile(r"Checking: \d+ %"))).to_be_visible(timeout=PATIENCE_MS)
            sent_s = time.perf_counter() - began_s
            page.get_by_text("Try a sample").click()
            expect(page.get_by_role("button", name="Use New facts")).to_be_visible(timeout=PATIENCE_MS)
            alive_s = time.perf_counter() - began_s - sent_s
            expect(page.get_by_text(f"{rows:,} texts or conversations")).to_be_visible(timeout=PATIENCE_MS)
            report_s = time.perf_counter() - began_s
            making = page.get_by_text("Making the rows ready").first
            expect(making).to_be_visible(timeout=PATIENCE_MS)
            expect(making).to_be_hidden(timeout=PATIENCE_MS)
            expect(page.get_by_text("What is trained", exact=True)).to_be_visible(timeout=PATIENCE_MS)
            rows_s = time.perf_counter() - began_s
            memory.ended.set()
            memory.join()
        finally:
            browser.close()
            server.close()
        size = big.stat().st_size / 1e6
    print(f"{rows:,} chats, {size:,.0f} MB, through the Data page\n")
    print("| what | seconds |\n|---|---|")
    print(f"| sent | {sent_s:.1f} |\n| another part of the page, opened during the check | {alive_s:.1f} |")
    print(f"| the report on the screen | {report_s:.1f} |\n| the rows ready for training | {rows_s:.1f} |\n")
    print(f"Memory of the server {before:.0f} MiB, at most {memory.peak:.0f}; of its processes at most", end=" ")
    print(f"{memory.jobs_peak:.0f} MiB.")


if __name__ == "__main__":
    main()

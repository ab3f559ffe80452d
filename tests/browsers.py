"""A headless Chromium against a real server of Tunebook."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import axe_playwright_python
from playwright.sync_api import Dialog, Page, expect

from tests import forked
from tests.conftest import ROOT
from tests.helpers import wait_until

# Harmless: Streamlit asks for these below the page's own address first, and finds them at the root.
EXPECTED_404 = re.compile(r"/(_stcore/health|_stcore/host-config)$")
# No background traffic of the browser's own.
FLAGS = [
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
SLOW_MS = 60_000
expect.set_options(timeout=30_000)  # a slow machine is no failure


# WCAG 2.1: 4.5 to 1 for text, 3 to 1 for large text; a disabled control is exempt.
CONTRAST = """
() => {
  const channel = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4); };
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const ground = node => {
    const layers = [];
    for (let n = node; n; n = n.parentElement) layers.push(parse(getComputedStyle(n).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text || !node || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (node.closest('[disabled], [aria-disabled=true], script, style, [data-testid=stToolbar]')) continue;
    const box = node.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const style = getComputedStyle(node), below = ground(node);
    let opacity = 1;
    for (let n = node; n; n = n.parentElement) opacity *= Number(getComputedStyle(n).opacity);
    const colour = parse(style.color);
    const shown = over([...colour.slice(0, 3), colour[3] * opacity], below);
    const [a, b] = [light(shown), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) bad.push(`${ratio.toFixed(2)} ${text.slice(0, 60)}`);
  }
  return bad;
}
"""


AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()


def faults(page: Page) -> list[str]:
    """What axe-core finds wrong with a page, as rule, place and what is there."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} {' '.join(map(str, node['target']))} {node['html'][:160]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


class Server:
    """`streamlit run app.py` on a free port, as a person starts it; with `forks` the children of its runs are forked."""

    def __init__(self, folder: Path, forks: bool = False):
        self.home, self.machine = folder / "home", folder / "machine"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        forks = forks and forked.module("supervisor") != "engine.worker"
        self.module = "tests.forked.server" if forks else "streamlit"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, "run", str(ROOT / "app.py"), "--server.port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=(self.home.parent / "server.log").open("ab"),
            stderr=subprocess.STDOUT,
            cwd=ROOT if self.module != "streamlit" else self.home.parent,  # the settings beside app.py count anywhere
            env={
                **os.environ, "TUNEBOOK_HOME": str(self.home), "TUNEBOOK_MACHINE_DIR": str(self.machine),
                "PYTHONPATH": str(ROOT),
            },
        )  # fmt: skip
        wait_until(self.answers, timeout_s=60)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/health", timeout=2) as reply:
                return json.load(reply)["status"] == "ok"
        except OSError:
            return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None


def settled(page: Page) -> None:
    """Wait until the page shows its heading and the script has run to its end."""
    expect(page.locator("#stMain h1").first).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=SLOW_MS)


def dialogs(page: Page) -> list[str]:
    """What a script in the page says: filled as it happens."""
    said: list[str] = []

    def heard(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", heard)
    return said

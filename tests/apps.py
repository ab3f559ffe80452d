"""Pages through Streamlit's AppTest: open one as a browser with its address would, and read what a person reads."""

from __future__ import annotations

import functools
import re
from typing import Any

import pandas as pd
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime.scriptrunner.script_cache import ScriptCache
from streamlit.testing.v1 import AppTest, app_test

from engine import events, starter
from engine.data import datasets
from engine.report import Item
from engine.report import items as report_items
from engine.spec import schema
from engine.workspace import Workspace
from tests.conftest import ROOT
from tests.helpers import planned

PAGES = ("data", "advisor", "train", "runs", "chat", "forgetting", "guide")

# A server looks once for the components that are installed, and compiles a page once. AppTest looks for every page that it
# opens, which was most of its time, and compiles in every run.
manifest_scanner.scan_component_manifests = functools.cache(manifest_scanner.scan_component_manifests)
setattr(app_test, "ScriptCache", functools.cache(ScriptCache))  # noqa: B010 - its name there is private


# Parts that are made once they are opened. Tests read what is in them, so here they are open from the first.
FOLDS = (
    "plan_fold", "settings_fold", "more_fold", "devices_fold", "spec_fold",
    "recover_fold", "ask_fold", "blind_fold", "examples_fold", "report_fold", "figures_fold", "again_fold",
)  # fmt: skip


def open_page(name: str, state: dict[str, Any] | None = None, **parameters: str) -> AppTest:
    """Open a page inside the frame, as a browser with that address would, but with its folds open; `state` is what its
    session has kept."""
    app = AppTest.from_file(str(ROOT / "pages" / "_frame.py"), default_timeout=60)
    app.switch_page(f"{name}.py")  # before the first run, which would be that of the first page
    for key, value in {**dict.fromkeys(FOLDS, True), **(state or {})}.items():
        app.session_state[key] = value
    for key, value in parameters.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def shown(markdown: str) -> str:
    """Markdown as it is read: without escapes, empty spans and spaces that stay."""
    return re.sub(r":color\[\]|(&nbsp;)|\\(.)", lambda found: found[2] or (" " if found[1] else ""), markdown)


def table(app: AppTest) -> pd.DataFrame:
    """The first table of the page as it is read."""
    return app.table[0].value.map(shown).rename(columns=shown)


def texts(app: AppTest) -> str:
    """Everything a person reads on the page, without Markdown's escapes."""
    parts: list[str] = []
    parts += [str(fold.label) for fold in app.expander]
    for kind in ("title", "header", "subheader", "markdown", "caption", "info", "warning", "error", "success"):
        parts += [str(element.value) for element in getattr(app, kind)]
    return shown("\n".join(parts))


def button(app: AppTest, key: str) -> Any:
    return next(b for b in app.button if b.key == key)


def field(app: AppTest, kind: str, path: str) -> Any:
    """The widget of one setting; its key ends in the number of the form."""
    return next(w for w in getattr(app, kind) if str(w.key).partition("~")[0] == f"set_{path}")


def exporting(run_id: str) -> AppTest:
    """The page of a run after a click on Export."""
    app = open_page("runs", run=run_id)
    button(app, "export_it").click().run()
    assert not app.exception, app.exception
    return app


def has_button(app: AppTest, key: str) -> bool:
    return any(b.key == key for b in app.button)


def preference_run(workspace: Workspace) -> str:
    """A finished DPO run, written by hand: three steps, their rewards, and the items of before and after."""
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs"))
    run_spec, problems = planned(workspace, "dpo", base="starter", dataset=pairs.id, overrides={})
    assert run_spec is not None and not problems
    run_dir = workspace.run_dir("20260101-000000-abcdef")
    (run_dir / "items").mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(run_spec))
    log = events.EventLog(run_dir)
    log.append(events.Started(attempt=1, versions={}, device="cpu", backend="plain", reason="test"))
    metrics: dict[str, float] = {}
    for step in (1, 2, 3):
        metrics = {
            "rewards/chosen": 0.1 * step,
            "rewards/rejected": -0.1 * step,
            "rewards/accuracies": 0.5 + 0.1 * step,
        }
        log.append(events.Step(step=step, total_steps=3, epoch=1.0, loss=0.6, metrics=metrics))
    log.append(events.Eval(step=3, loss=0.6, metrics=metrics))
    log.append(events.Finished(step=3))
    for model, right in (("base", 10), ("tuned", 50)):
        for benchmark, family, correct in (
            ("new-task-preference", report_items.UNSEEN, right),
            ("toy-world", "sums", 70 - right),
        ):
            items = [
                Item(item=str(i), family=family, prompt_sha="p", choices=["a", "b"], gold=0, correct=i < correct)
                for i in range(60)
            ]
            report_items.write_items(run_dir / "items" / f"{model}-{benchmark}.jsonl", items)
    return run_dir.name

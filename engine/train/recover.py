"""Going back from a run toward its base, as a run: the way scored point by point, or one point kept. Nothing is trained."""

from __future__ import annotations

import dataclasses
import hashlib
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import peft
import transformers

from engine import events
from engine.forgetting import recovery_curve
from engine.models import bases, made
from engine.report import items as report_items
from engine.report import paired as report_paired
from engine.runs import ScoredRun, failures, scored, store
from engine.train import adapters, asked_again, export, load, oft, precision, training, way_back
from engine.train.run import Run
from engine.train.scoring import divergence, keys, paired, scores
from engine.train.scoring.scores import Side
from engine.words import Problem, later
from engine.workspace import find_struct, write_atomically

EXIT_FINISHED, EXIT_STOPPED = 0, 3


def carry_out(run: Run) -> int:
    """Score the way, or keep a point of it; returns the exit status. Raises what goes wrong."""
    precision.multiply_fp32_faster(run.chosen)
    back = _Back(run)
    done = back.scan() if back.asked.at is None else back.keep(back.asked.at)
    if not done or run.stop.asked():
        run.log.append(events.Stopped(step=0, resumable=True))
        return EXIT_STOPPED
    run.log.append(events.Finished(step=0))
    return EXIT_FINISHED


class _Back:
    """The way back from one run: its model, which is asked the questions that the run was asked."""

    def __init__(self, run: Run):
        assert run.spec.recover is not None
        self.run, self.asked = run, run.spec.recover
        if not store.exists(run.workspace, self.asked.run):
            raise failures.RunRefused(Problem(rule="recover-gone", parameters={"run": self.asked.run[:80]}))
        self.origin: ScoredRun = scored.of(run.workspace, self.asked.run)
        folder = made.made_by(self.origin.folder)
        if folder is None:
            raise failures.RunRefused(Problem(rule="recover-nothing", parameters={"run": self.origin.name}))
        self.folder: Path = folder
        # A model tuned elsewhere is held as its base was when both were asked (adopted.py).
        plain = {"adapter": "lora", "quantize": "none"} if run.spec.adopted is not None else {}
        self._form = msgspec.structs.replace(run.spec, **plain)
        self.way = self._loaded()
        self.questions = asked_again.questions(run, self.origin, self.tokenizer)
        self._name = keys.model(
            bases.describe(f"run:{self.asked.run}", run.workspace), run.workspace,
            load.held(self._form, run.workspace, run.chosen),
        )  # fmt: skip
        self._base = keys.weights_key(run.base, run.workspace)

    def _loaded(self) -> way_back.AdapterWay | way_back.WeightsWay:
        run = self.run
        run.told.begin("loading", "model")
        with run.told.weights():
            loaded = load.load(self._form, run.workspace, run.chosen)
        run.tokenizer, run.base = loaded.tokenizer, loaded.base
        for note in loaded.notes:
            run.log.append(events.Log(text=note))
        self.tokenizer = loaded.tokenizer
        if run.spec.adopted is not None:
            self.tokenizer = load.tokenizer_of(self.folder, run.base, run.workspace, run.spec.day)
        if self.folder.name == "adapter":
            return way_back.AdapterWay(oft.lay_over(loaded.model, self.folder).eval())
        first = [loaded.model]

        def fresh() -> Any:
            return first.pop() if first else load.load(self._form, run.workspace, run.chosen).model

        return way_back.WeightsWay(fresh, self.folder)

    def _side(self, role: str, at: float, way: recovery_curve.Kind | None = None) -> Side:
        """Return the model at a point as it is asked. What names its weights are those of both ends, and where it stands."""
        way = way or self.asked.way
        asked = [self._base, self._name.weights, way, f"{at:.4f}"]
        if way == "intruders":
            asked += [str(way_back.TOP_K), str(way_back.THRESHOLD), peft.__version__]
        name = self._name._replace(weights=hashlib.sha256(" ".join(asked).encode()).hexdigest())
        return Side(role, name, self.tokenizer, lambda: nullcontext(self.way.to(at, way)))

    def _is_asked_alike(self) -> bool:
        """Whether the run was asked as its points are: not through Unsloth, on this kind of device, by these libraries.
        What differs between two programs would pass for a change along the way."""
        if self.run.spec.adopted is not None:  # its base was asked in words of its own (adopted.py)
            return True
        folders = [self.origin.folder]
        folders += [self.run.workspace.run_dir(one.id) for one in self.origin.evaluations if one.status == "finished"]
        started = [one for path in folders for one in events.read(path)[0] if isinstance(one, events.Started)]
        now = ("plain", self.run.device, transformers.__version__)
        return all((one.backend, one.device, one.versions.get("transformers")) == now for one in started)

    def _asked_anew(self) -> ScoredRun | None:
        """Ask base and run as the points are asked; None when a stop came first."""
        told = later(
            "This run was scored in another way than its points are: through Unsloth, on another device or by another "
            "version of transformers. Its base and itself are asked once more."
        )
        self.run.log.append(events.Log(level="result", text=told))
        way = "interpolate" if self.asked.way == "interpolate" else "scale"
        for at in (0.0, 1.0):
            if not scores.ask_all(self.run, self._side(report_items.way_at(at), at, way), self.questions):
                return None
        ends = [self._answers(at) for at in (0.0, 1.0)]
        joined = {
            name: report_items.Joined(name, before, ends[1][name], self.origin.joined[name].looks)
            for name, before in ends[0].items()
        }
        rows = report_paired.compare_joined(self.asked.run, joined.values())
        return dataclasses.replace(self.origin, joined=joined, rows=rows)

    def _answers(self, at: float) -> dict[str, list[report_items.Item]]:
        folder, role = self.run.run_dir / "items", report_items.way_at(at)
        names = [question.benchmark for question in self.questions]
        return {name: report_items.read_items(folder / f"{role}-{name}.jsonl") for name in names}

    def scan(self) -> bool:
        """Score each point and write the curve after each; False when a stop came first."""
        origin = self.origin if self._is_asked_alike() else self._asked_anew()
        if origin is None:
            return False
        curve = recovery_curve.Way(origin, self.asked.way)
        points = sorted(self.asked.points, key=lambda at: abs(at - curve.end))
        for done, at in enumerate(points, 1):
            if not scores.ask_all(self.run, self._side(report_items.way_at(at), at), self.questions):
                return False
            curve.add(at, self._answers(at))
            found = curve.curve(finished=done == len(points))
            write_atomically(self.run.run_dir / recovery_curve.CURVE, msgspec.json.encode(found))
        return True

    def keep(self, at: float) -> bool:
        """Save the model at a point, and ask it what the run was asked; False when a stop came first."""
        run, what = self.run, self.folder.name
        if not (run.run_dir / what).is_dir():
            run.told.begin("saving")
            self.way.to(at, self.asked.way)
            self._tell_of_intruders()
            training.save(self.way.to(at, self.asked.way), self.tokenizer, run.run_dir, what)
            export.write_parity(run.run_dir, run.run_dir / what, self.tokenizer, run.rows.scored)
            run.log.append(events.Saved(step=0, path=what, what=what))
        if self._is_asked_alike():
            self._keep_base()
        elif not scores.ask_all(
            run, self._side("base", 0.0, "interpolate" if what == "model" else "scale"), self.questions
        ):
            return False
        if not scores.ask_all(run, self._side("tuned", at), self.questions):
            return False
        if run.spec.adopted is not None:
            paired.pair(run.run_dir, run.log)
        if isinstance(self.way, way_back.AdapterWay) and run.rows.scored:
            tuned = self.way.to(at, self.asked.way)
            divergence.report(run, tuned, partial(adapters.as_at_start, tuned, None))
        return True

    def _tell_of_intruders(self) -> None:
        if self.asked.way == "intruders" and isinstance(self.way, way_back.AdapterWay):
            told = later("{n} intruder dimensions were found.", n=self.way.intruders)
            self.run.log.append(events.Log(level="result", text=told))

    def _keep_base(self) -> None:
        """Take the base's answers over from the run: it is the same base, asked the same."""
        folder, told = self.run.run_dir / "items", self.origin.settings()
        known = find_struct(folder / "settings.json", dict[str, dict[str, Any]]) or {}
        for question in self.questions:
            name = question.benchmark
            report_items.write_items(folder / f"base-{name}.jsonl", self.origin.joined[name].base)
            asked = {key: value for key, value in told.get(name, {}).items() if key != "tuned_key"}
            known[name] = {**asked, **known.get(name, {})}
        write_atomically(folder / "settings.json", msgspec.json.format(msgspec.json.encode(known)))

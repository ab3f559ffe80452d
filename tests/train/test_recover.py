"""Going back for real: adapters scaled, whole weights interpolated, points scored once and kept as runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine import events
from engine.chat import protocol
from engine.export import card
from engine.forgetting import recovery
from engine.plan import repeat
from engine.report import items
from engine.runs import follow, lifecycle, scored, store
from engine.spec import RunSpec
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT
from tests.train.test_adopted import adopt
from tests.train.test_train import train

pytestmark = pytest.mark.train


def carried_out(workspace: Workspace, spec: RunSpec | None) -> str:
    assert spec is not None
    run_id = lifecycle.start(
        workspace, spec, name=recovery.name_of(workspace, spec), module=forked.module("supervisor")
    )
    status = follow.wait(workspace, run_id)
    assert status == "finished", (store.summary(workspace, run_id).failure, follow.log_tail(workspace.run_dir(run_id)))
    return run_id


# What both scripts below ask of a model.
ASKED = """
import torch
from transformers import AutoModelForCausalLM
from engine import starter

ids = torch.arange(40, 90)[None]
def base():
    return AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, dtype=torch.float32)
def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits
def off(one, other):
    return float((one - other).abs().max())
"""

# What the point of a run says: kept, in place, merged and as whole weights; and in Chat.
SAYS = """
import json, sys
from pathlib import Path
from engine.train import chat, load, oft, way_back
from engine.chat import protocol
from engine.spec import schema
from engine.workspace import Workspace

home, run_id, kept = Workspace(sys.argv[1]), sys.argv[2], sys.argv[3]
folder = home.run_dir(run_id) / "adapter"
laid = oft.lay_over(base(), folder)
way = way_back.AdapterWay(laid)
whole, there = logits(laid), logits(way.to(0.5))
found = {"moved": off(whole, there), "back": off(whole, logits(way.to(1.0)))}
found |= {"base": off(logits(base()), logits(way.to(0.0)))}
found["kept"] = off(there, logits(oft.lay_over(base(), home.run_dir(kept) / "adapter")))
merged = oft.lay_over(base(), folder).merge_and_unload().state_dict()
half = base()
half.load_state_dict({name: one.lerp(merged[name], 0.5) for name, one in half.state_dict().items()})
found["interpolated"] = off(there, logits(half))
found["as_base"] = off(there, logits(load.load(schema.adopted(base={"ref": f"run:{kept}"}), home).model))
way.to(0.75, "intruders")
found["intruders"], found["fewer"] = way.intruders, off(whole, logits(laid))
found["none"] = off(whole, logits(way.to(0.0, "intruders")))
found["restored"] = off(whole, logits(way.to(1.0)))
models = chat.Models(home)
names = [f"run:{run_id}", protocol.at_point(f"run:{run_id}", 0.5), "starter"]
keys = models.keys(names)
said = []
for name in [*names, *names]:
    host = models.host(name, keys[name], set(keys.values()))
    with host.as_model(name) as model:
        said.append(logits(model))
found["chat"] = [off(said[0], whole), off(said[1], there), off(said[2], logits(base())), off(said[3], whole)]
found["hosts"] = len(set(keys.values()))
print(json.dumps(found))
"""


def test_the_way_of_a_lora_run_is_scored_kept_as_a_run_and_says_everywhere_the_same(trained_home: Path, tmp_path: Path):
    shutil.copytree(trained_home, tmp_path / "home")
    workspace = Workspace(tmp_path / "home")
    origin = store.list_all(workspace)[0].id
    scan = carried_out(workspace, recovery.build(workspace, origin, points=[0.5])[0])
    assert recovery.of(workspace, origin) == scan and not items.benchmarks_of(workspace.run_dir(scan))
    curve = recovery.curve(workspace, origin)
    assert curve is not None and [one.at for one in curve.points] == [0.0, 0.5, 1.0] and curve.suggested is not None
    assert (curve.points[0].gain, curve.points[0].general) and not (workspace.run_dir(scan) / "adapter").exists()
    tuned = {row.benchmark: row.change for row in scored.of(workspace, origin).rows if row.family == items.ALL}
    last = curve.at(1.0)
    assert last is not None and last.gain is not None and last.general is not None
    assert last.gain.value == pytest.approx(tuned["new-task-choices"])
    assert last.general.value == pytest.approx(tuned["toy-world"])

    kept = carried_out(workspace, recovery.build(workspace, origin, at=0.5)[0])
    told = [one for one in events.read(workspace.run_dir(kept))[0] if isinstance(one, events.Scored)]
    asked = [one for one in told if one.benchmark != items.KL]
    assert {one.benchmark for one in asked} == set(items.benchmarks_of(workspace.run_dir(origin)))
    assert all(one.cached for one in asked)  # a point that was scored is not asked again
    point, rows = (
        curve.at(0.5),
        {row.benchmark: row for row in scored.of(workspace, kept).rows if row.family == items.ALL},
    )
    assert point is not None and point.general is not None
    assert rows["toy-world"].change == pytest.approx(point.general.value)
    done = forked.run_python(ASKED + SAYS, workspace.root, origin, kept, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moved"] > 0.1 and found["back"] == found["kept"] == found["restored"] == found["none"] == 0
    assert found["base"] < 1e-5 and found["interpolated"] < 1e-4 and found["as_base"] < 1e-4
    assert found["intruders"] > 0 and found["fewer"] > 0.01
    assert found["chat"] == [0, 0, 0, 0] and found["hosts"] == 1

    assert "50 % of the way from its base" in card.markdown(workspace, kept, whole=False)
    assert repeat.repeat_command(workspace, kept) == f"tunebook recover {origin} --at 0.5 --save --wait"
    lifecycle.delete(workspace, origin, all_the_same=True)
    assert scored.of(workspace, kept).rows and not recovery.problems(workspace, kept)[0].sentence.startswith("{")


# An OFT adapter whose parameters are drawn, and whole weights that were moved by chance: what a part of either way is.
PARTS = """
import json, sys
from pathlib import Path
from peft import LoraConfig, OFTConfig, get_peft_model
from engine.runs.failures import RunRefused
from engine.train import oft, way_back

torch.manual_seed(0)
folder = Path(sys.argv[1])
found, plain = {}, logits(base())
made = get_peft_model(base(), OFTConfig(oft_block_size=32, use_cayley_neumann=False, target_modules=["q_proj", "down_proj"]))
rotations = oft.host(made)
with torch.no_grad():
    for module in rotations.modules:
        module.weight.normal_(std=0.05)
whole = logits(made)
way = way_back.AdapterWay(made)
there = logits(way.to(0.5))
turned = [module.blocks() for module in rotations.modules]
found["orthogonal"] = max(off(one @ one.mT, torch.eye(one.shape[-1])) for one in turned)
angles = [torch.linalg.matrix_norm(oft.skew(m.weight, m.block_size).detach(), 2).max() for m in rotations.modules]
made.save_pretrained(folder / "oft")
found["oft"] = [off(whole, there), off(there, logits(oft.lay_over(base(), folder / "oft")))]
found["oft_ends"] = [off(plain, logits(way.to(0.0))), off(whole, logits(way.to(1.0)))]

tuned = base()
with torch.no_grad():
    for one in tuned.parameters():
        one.add_(0.02 * torch.randn_like(one))
tuned.save_pretrained(folder / "full", max_shard_size="1MB")
found["shards"] = len(list((folder / "full").glob("*.safetensors")))
def at(part):
    model = base()
    way_back.interpolate(model, folder / "full", part)
    return model
expected = base()
for one, other in zip(expected.parameters(), tuned.parameters()):
    one.data = one.data + 0.3 * (other.data - one.data)
found["full"] = [off(logits(at(0.3)), logits(expected)), off(logits(at(0.0)), plain), off(logits(at(1.0)), logits(tuned))]
halfway = at(0.3)
found["tied"] = halfway.lm_head.weight is halfway.model.embed_tokens.weight
small = base()
small.model.layers = small.model.layers[:2]
small.config.num_hidden_layers = 2
small.save_pretrained(folder / "small")
try:
    way_back.interpolate(base(), folder / "small", 0.5)
except RunRefused as refused:
    found["refused"] = refused.problem.rule

whole_head = get_peft_model(base(), LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], modules_to_save=["lm_head"]))
with torch.no_grad():
    for name, one in whole_head.named_parameters():
        if one.requires_grad:
            one.add_(0.05 * torch.randn_like(one))
way = way_back.AdapterWay(whole_head)
found["dora"] = [off(plain, logits(way.to(0.0))), off(plain, logits(way.to(1.0)))]
print(json.dumps(found))
"""


def test_oft_stays_a_rotation_and_whole_weights_are_moved_tensor_by_tensor(tmp_path: Path):
    done = forked.run_python(ASKED + PARTS, tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["orthogonal"] < 1e-6 and found["oft"][0] > 0.01 and found["oft"][1] < 1e-5
    assert found["oft_ends"][0] < 1e-4 and found["oft_ends"][1] == 0
    assert found["full"][0] < 1e-4 and found["full"][1:] == [0, 0] and found["tied"] and found["shards"] > 1
    assert found["refused"] == "recover-unlike"
    assert found["dora"][0] < 1e-4 and found["dora"][1] > 0.01


@pytest.mark.slow
def test_a_scan_that_was_stopped_goes_on_and_asks_no_point_twice(trained_home: Path, tmp_path: Path):
    shutil.copytree(trained_home, tmp_path / "home")
    workspace = Workspace(tmp_path / "home")
    origin = store.list_all(workspace)[0].id
    spec, _ = recovery.build(workspace, origin, points=[0.9, 0.5])
    assert spec is not None
    run_id = lifecycle.start(workspace, spec, module=forked.module("supervisor"))

    def stop_after_a_point(event: object) -> None:
        if isinstance(event, events.Scored) and event.model == "way-0.9":
            lifecycle.stop(workspace, run_id)

    assert follow.wait(workspace, run_id, stop_after_a_point) == "stopped"
    lifecycle.resume(workspace, run_id, module=forked.module("supervisor"))
    assert follow.wait(workspace, run_id) == "finished"
    told = [one for one in events.read(workspace.run_dir(run_id))[0] if isinstance(one, events.Scored)]
    assert len(told) == len({(one.model, one.benchmark) for one in told}) and {one.model for one in told} == {
        "way-0.9", "way-0.5",
    }  # fmt: skip


def test_a_models_name_says_where_on_the_way_it_stands():
    assert protocol.named(protocol.at_point("run:a", 0.5)) == ("run:a", 0.5, False)
    assert protocol.named(protocol.at_point("run:a", 0.25, intruders=True)) == ("run:a", 0.25, True)
    assert protocol.named("owner/name@main") == ("owner/name@main", None, False)
    for odd in ("run:a@2", "run:a@x", "run:a@nan"):
        with pytest.raises(ValueError):
            protocol.named(odd)


@pytest.mark.slow
def test_a_model_tuned_elsewhere_is_gone_back_from_too(trained_home: Path, tmp_path: Path):
    shutil.copytree(trained_home, tmp_path / "home")
    workspace = Workspace(tmp_path / "home")
    ours = store.list_all(workspace)[0].id
    elsewhere = shutil.copytree(workspace.run_dir(ours) / "adapter", tmp_path / "mine")
    code, origin, _ = adopt(tmp_path, "starter", str(elsewhere), "--data", "new-facts", "--limit", "40")
    assert code == 0
    carried_out(workspace, recovery.build(workspace, origin, points=[0.5])[0])
    curve = recovery.curve(workspace, origin)
    assert curve is not None and [one.at for one in curve.points] == [0.0, 0.5, 1.0]
    kept = carried_out(workspace, recovery.build(workspace, origin, at=0.5)[0])
    assert scored.of(workspace, kept).rows and "Tuned elsewhere" in card.markdown(workspace, kept, whole=False)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["full", "oft"])
def test_the_toys_figures_half_of_the_way_keeps_the_gain_and_loses_little(recipe: str, tmp_path: Path):
    status, origin, _ = train(tmp_path, recipe, "--data", "new-facts", "--set", "train.replay_share=0")
    assert status == 0
    workspace = Workspace(tmp_path / "home")
    part = 0.5 if recipe == "full" else 0.9
    carried_out(workspace, recovery.build(workspace, origin, points=[part])[0])
    curve = recovery.curve(workspace, origin)
    assert curve is not None and curve.suggested is not None
    point, whole = curve.at(part), curve.at(1.0)
    assert point is not None and whole is not None and point.gain and whole.gain and point.general and whole.general
    assert point.gain.value >= 0.95 * whole.gain.value and point.general.value > -0.06
    assert point.general.value > whole.general.value
    if recipe == "full":
        assert whole.general.value < -0.2
    kept = carried_out(workspace, recovery.build(workspace, origin, at=part)[0])
    rows = {row.benchmark: row for row in scored.of(workspace, kept).rows if row.family == items.ALL}
    assert rows["toy-world"].change == pytest.approx(point.general.value)

"""Cards as drivers name them. No card was here: what nvidia-smi prints is taken from its manual and NVIDIA's guides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import machine
from engine.cli import main
from engine.estimate import cards
from engine.machine import builds, here, nvidia, use
from engine.machine.builds import TorchBuild
from engine.machine.nvidia import Gpu
from engine.plan import targets
from engine.runs import environment
from tests.machine.cards import a_card, driver

T4 = a_card(0, "Tesla T4", 15360, 7.5)
SLICES = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0abc-def)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 1g.5gb      Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
  MIG 1g.5gb      Device  2: (UUID: MIG-GPU-0abc-def/11/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1abc-def)"""
CUT = a_card(0, "NVIDIA A100-SXM4-40GB", 40960, 8.0, mig__mode__current="Enabled")
WHOLE = a_card(1, "NVIDIA A100-SXM4-40GB", 40960, 8.0, mig__mode__current="Disabled")


# --- which cards there are -------------------------------------------------------------------------------------------


def test_a_slice_of_a_card_is_a_card_of_its_own_with_the_memory_of_its_name(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, CUT, listed=SLICES)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-c7384736-a75d-5afc-978f-d2f1294409fd")
    found = machine.facts()
    assert [(gpu.name, gpu.is_slice) for gpu in found.gpus] == [("NVIDIA A100-SXM4-40GB MIG 3g.20gb", True)]
    assert machine.marketed_gb(found.gpus[0].memory_mib / 1024) == 20
    assert found.slots == ("MIG-c7384736-a75d-5afc-978f-d2f1294409fd",) and found.device == "cuda:0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-0abc-def/11/0")  # as drivers before 470 name them
    assert machine.facts().slots == ("MIG-GPU-0abc-def/11/0",)


def test_a_card_that_is_cut_is_not_taken_as_a_whole(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, CUT, listed=SLICES)
    found = machine.facts()
    assert [gpu.name.rpartition(" ")[2] for gpu in found.gpus] == ["3g.20gb"]
    assert [gpu.name.rpartition(" ")[2] for gpu in found.other_gpus] == ["1g.5gb", "1g.5gb"]
    driver(monkeypatch, tmp_path, CUT, WHOLE, listed=SLICES)
    assert [gpu.index for gpu in machine.facts().gpus] == [1]
    driver(monkeypatch, tmp_path, CUT, listed=SLICES.splitlines()[0])
    assert machine.facts().device == "cpu" and "no slice" in machine.facts().trouble


@pytest.mark.parametrize("memory", ["[Insufficient Permissions]", "[N/A]"])
def test_a_slice_is_a_card_also_where_the_whole_card_tells_a_container_nothing(monkeypatch, tmp_path, memory):
    driver(monkeypatch, tmp_path, {**CUT, "memory.total": memory}, listed="\n".join(SLICES.splitlines()[:2]))
    (found,) = machine.facts().gpus
    assert found.is_slice and not found.shares_memory and machine.marketed_gb(found.memory_mib / 1024) == 20


@pytest.mark.parametrize("named", ["GPU-1", "GPU-1abc-def", "1", "GPU-1abc,GPU-0", "1,-1,0"])
def test_a_card_may_be_named_by_the_beginning_of_its_uuid(monkeypatch, tmp_path, named):
    driver(monkeypatch, tmp_path, T4, a_card(1, "Tesla T4", 15360, 7.5))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert machine.facts().gpus[0].uuid == "GPU-1abc-def"


def test_a_name_that_no_card_has_is_said(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-elsewhere")
    found = machine.facts()
    assert found.device == "cpu" and "CUDA_VISIBLE_DEVICES=GPU-elsewhere" in cards.device_reason(found)


def test_a_card_without_memory_of_its_own_takes_main_memory(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, a_card(0, "NVIDIA GB10", "[N/A]", 12.1))
    found = machine.facts()
    assert found.device == "cuda:0" and found.device_memory_bytes == found.memory_mib * 2**20
    assert any("main memory" in line for line in cards.more(found))
    assert machine.held_by_others(found.gpus[0]) == machine.Held()


def test_a_card_that_has_failed_is_no_card_and_its_word_is_said(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, a_card(0, "NVIDIA L4", "[GPU is lost]", 8.9))
    found = machine.facts()
    assert found.gpus == () and "GPU is lost" in cards.device_reason(found)


def test_what_keeps_the_driver_from_answering_is_said(monkeypatch, tmp_path):
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    driver(monkeypatch, tmp_path, fails=failed)
    assert machine.facts().device == "cpu" and failed in cards.device_reason(machine.facts())


def test_a_stuck_driver_holds_nobody_up_though_its_tool_cannot_be_killed(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(nvidia, "ASK_S", 0.2)
    asked: list[subprocess.Popen[bytes]] = []
    kill = subprocess.Popen.kill
    monkeypatch.setattr(
        subprocess.Popen, "kill", lambda one: asked.append(one)
    )  # as in a call that no signal interrupts
    try:
        assert "did not answer" in machine.facts().trouble and machine.facts().device == "cpu"
        assert [one.poll() for one in asked] == [None, None]  # once for each look
    finally:
        for one in asked:
            kill(one)
            one.communicate()


def test_a_name_that_is_no_utf8_is_read(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, T4)
    tool = tmp_path / "nvidia-smi"
    tool.write_bytes(b"#!/bin/sh\necho '0, GPU-0, T\xe94, 15360, 580.95, 7.5, [N/A]'\n")
    assert machine.facts().gpus[0].memory_mib == 15360


def test_a_driver_that_knows_no_compute_capability_still_names_its_card(monkeypatch, tmp_path):
    known = ("index", "uuid", "name", "memory.total", "driver_version")
    driver(monkeypatch, tmp_path, a_card(0, "Tesla V100", 16160, "7.0", driver_version="460.32.03"), fields=known)
    found = machine.facts()
    assert (found.gpus[0].name, found.gpus[0].capability, found.driver) == ("Tesla V100", 0.0, "460.32.03")


def test_a_weak_card_in_the_first_place_is_left_alone(monkeypatch, tmp_path):
    weak, strong = a_card(0, "NVIDIA GeForce GT 1030", 2048, 6.1), a_card(1, "NVIDIA GeForce RTX 4090", 24564, 8.9)
    driver(monkeypatch, tmp_path, weak, strong)
    found = machine.facts()
    assert [gpu.name for gpu in found.gpus] == ["NVIDIA GeForce RTX 4090"] and found.slots == ("GPU-1abc-def",)
    assert targets.this_machine().card == "NVIDIA GeForce RTX 4090" and targets.this_machine().device.bf16
    assert any("GT 1030" in line and "GPU-0abc-def" in line for line in cards.more(found))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0")
    assert [gpu.name for gpu in machine.facts().gpus] == ["NVIDIA GeForce GT 1030"]


@given(
    st.lists(st.tuples(st.integers(1, 100_000), st.sampled_from([0.0, 6.1, 7.5, 8.0, 8.9, 12.0])), max_size=6),
)
def test_runs_take_cards_of_one_kind_and_no_card_is_lost(told):
    given_cards = tuple(Gpu(f"card {n}", mib, capability, f"GPU-{n}", n) for n, (mib, capability) in enumerate(told))
    taken, left = here.alike(given_cards)
    assert sorted([*taken, *left], key=lambda gpu: gpu.index) == list(given_cards)
    assert bool(taken) is bool(given_cards)
    if taken:
        assert len({gpu.capability >= 8 for gpu in taken}) == 1
        assert min(gpu.memory_mib for gpu in taken) >= 0.9 * max(gpu.memory_mib for gpu in taken)


WORDS = st.sampled_from(["0", "1", "2", "-1", "GPU-0", "GPU-1abc", "GPU-", "GPU-x", "", "NoDevFiles"])


@given(st.lists(WORDS, min_size=1, max_size=5), st.sampled_from(["", "PCI_BUS_ID", "FASTEST_FIRST"]))
def test_what_is_visible_is_some_of_the_cards_once_each_up_to_the_first_unknown_name(words, order):
    all_cards = (Gpu("a", 2048, 6.1, "GPU-0abc", 0), Gpu("b", 24564, 8.9, "GPU-1abc", 1))
    found = nvidia.visible(all_cards, ",".join(words), order)
    assert len(set(found)) == len(found) and set(found) <= set(all_cards)
    assert nvidia.visible(all_cards, None) == all_cards
    stops = next(
        (n for n, word in enumerate(words) if word in ("2", "-1", "GPU-", "GPU-x", "", "NoDevFiles")), len(words)
    )
    assert found == nvidia.visible(all_cards, ",".join(words[:stops]) or "-1", order)


def test_cudas_number_0_is_the_fastest_card_unless_it_counts_as_the_bus_does():
    slow, fast = Gpu("slow", 2048, 6.1, "GPU-0", 0), Gpu("fast", 24564, 8.9, "GPU-1", 1)
    assert nvidia.visible((slow, fast), "0") == (fast,) and nvidia.visible((slow, fast), "1") == (slow,)
    assert nvidia.visible((slow, fast), "0", "PCI_BUS_ID") == (slow,)


# --- what others hold ------------------------------------------------------------------------------------------------


def test_what_other_programs_hold_is_none_of_a_runs_memory(monkeypatch, tmp_path):
    held = {"gpu_uuid": "GPU-0abc-def", "pid": 999_999, "used_memory": 5000, "process_name": "/usr/bin/ollama"}
    driver(monkeypatch, tmp_path, a_card(0, "RTX 3060", 12288, 8.6, memory__used=5500), programs=[held])
    target = targets.this_machine()
    assert target.memory_bytes == 6788 * 2**20 and target.memory_gib == 12.0
    assert target.held == machine.Held(5500, ("ollama",)) and "ollama" in cards.held_words(target.held)


CARDS = [["GPU-0", "5192"], ["GPU-1", "63"]]


@pytest.mark.parametrize(
    ("programs", "own", "mib"),
    [
        ([], set(), 5192),  # a display, or another container
        ([["GPU-0", "7", "4000", "python"]], {7}, 1192),  # a run of ours, and a display
        ([["GPU-0", "7", "4000", "python"]], {7, 8}, None),  # one of ours is not told: nobody knows
        ([["GPU-0", "7", "[N/A]", "python"]], {7}, None),  # Windows tells no sizes
        ([["GPU-0", "7", "[N/A]", "C:\\ollama.exe"]], set(), 5192),
        ([["GPU-1", "7", "60", "python"]], {7}, 5192),  # ours is on the other card
    ],
)
def test_what_others_hold_is_told_from_what_is_ours(programs, own, mib):
    found = use.held(CARDS, programs, own)
    assert found.get("GPU-0", machine.Held()).mib == (mib or 0) and "GPU-1" not in found


# --- torch against the driver ----------------------------------------------------------------------------------------

BUILDS = {
    "cu130": TorchBuild("2.13.0", "13.0"), "cu126": TorchBuild("2.13.0+cu126", "12.6"),
    "cu128": TorchBuild("2.13.0+cu128", "12.8"), "cpu": TorchBuild("2.13.0+cpu"),
    "rocm": TorchBuild("2.13.0+rocm7.2", "", "7.2"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "version", "capability", "why", "remedy"),
    [
        ("cu130", "580.95.05", 7.5, None, ""),
        ("cu126", "550.54.15", 7.5, None, ""),
        ("cu130", "", 0.0, None, ""),
        ("cu130", "570.133.20", 8.6, "driver", "torch==2.13.0+cu126"),
        ("cu130", "470.82.01", 8.6, "driver", "update NVIDIA's driver to 525"),
        ("cu130", "570.133.20", 12.0, "driver", "update NVIDIA's driver to 580"),  # an RTX 50 has no other build
        ("cpu", "581.29", 8.9, "processor", "torch==2.13.0+cu130"),
        ("cpu", "551.86", 8.9, "processor", "torch==2.13.0+cu126"),
        ("rocm", "580.95.05", 8.9, "rocm", "torch==2.13.0+cu130"),
        ("cu130", "580.95.05", 6.1, "card", "torch==2.13.0+cu126"),  # a GTX 1080
        ("cu126", "580.95.05", 12.0, "card", "torch==2.13.0+cu130"),
        ("cu128", "570.133.20", 12.0, None, ""),  # not one that we name, and it has code for an RTX 50
    ],
)
def test_torch_that_does_not_see_the_card_is_named_with_what_to_install(
    monkeypatch, tmp_path, build, version, capability, why, remedy
):
    driver(monkeypatch, tmp_path, a_card(0, "a card", 8192, capability, driver_version=version), torch=BUILDS[build])
    problem = cards.unseen(machine.facts())
    assert (problem.rule if problem else None) == (f"driver-torch-{why}" if why else None)
    if problem is not None:
        what, todo = map(str, problem.texts)
        assert "a card" in what and remedy in todo and "TUNEBOOK_DEVICE=cpu" in todo and "{" not in what + todo


def test_nvidias_package_for_forward_compatibility_lets_an_old_driver_be(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, a_card(0, "NVIDIA A100", 40960, 8.0, driver_version="535.183.01"))
    assert cards.unseen(machine.facts()) is not None
    monkeypatch.setattr(builds, "library_version", lambda: "13.0")
    assert cards.unseen(machine.facts()) is None


def test_the_build_is_read_off_torchs_own_file(tmp_path):
    import torch

    build = machine.torch_build()
    assert build is not None and build.version == torch.__version__
    assert (build.cuda or None, build.hip or None) == (torch.version.cuda, torch.version.hip)
    (tmp_path / "version.py").write_text("__version__ = '2.13.0+cu126'\ncuda: Optional[str] = '12.6'\nhip = None\n")
    assert builds.read(tmp_path / "version.py") == TorchBuild("2.13.0+cu126", "12.6")
    for broken in ("", "__version__ = (", "cuda = '12.6'"):
        (tmp_path / "version.py").write_text(broken)
        assert builds.read(tmp_path / "version.py") is None
    assert builds.read(tmp_path / "nowhere.py") is None


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 5), True), ((8, 9), True), ((9, 0), True), ((12, 1), True), ((7, 0), False), ((6, 1), False)],
)
def test_code_for_an_older_card_of_the_same_kind_runs(capability, runs):
    built_for = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # torch 2.13 for CUDA 13.0
    assert machine.in_code(capability, built_for) is runs


def test_the_processor_can_be_asked_for(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, T4)
    monkeypatch.setenv("TUNEBOOK_DEVICE", "cpu")
    assert machine.facts().device == "cpu" and machine.facts().gpus == ()


def test_the_tool_is_found_where_windows_puts_it(monkeypatch, tmp_path):
    driver(monkeypatch, tmp_path, T4)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(nvidia, "WSL_FOLDER", str(tmp_path))
    assert machine.facts().gpus[0].name == "Tesla T4"
    monkeypatch.setattr(nvidia, "WSL_FOLDER", str(Path("/nowhere")))
    assert machine.facts().gpus == ()


@pytest.mark.parametrize(
    ("held", "seen"),
    [(("cpu",), ""), (("mps",), ""), (("GPU-a", "GPU-b"), "GPU-a,GPU-b"), (("cuda:1",), "1"), (("MIG-x",), "MIG-x")],
)
def test_a_child_sees_the_cards_it_holds_and_none_where_the_page_says_processor(held, seen):
    assert environment.of_cards(held) == {"CUDA_VISIBLE_DEVICES": seen}


def test_amds_cards_are_named_and_not_used(tmp_path):
    for number, version in enumerate(("0", "110000", "90010", "not a number")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(f"cpu_cores_count 8\ngfx_target_version {version}\n")
    assert here.amd_cards(tmp_path) == ("gfx1100", "gfx90a") and here.amd_cards(tmp_path / "nowhere") == ()
    found = machine.MachineFacts(8, 64_000, (), amd=("gfx1100",))
    assert found.device == "cpu" and "AMD (gfx1100)" in cards.device_reason(found)


def test_what_apples_gpu_does_and_does_not_is_said():
    (said,) = cards.more(machine.MachineFacts(8, 16_000, (), apple=True))
    assert "solved on the processor" in said and "4 or 8 bits" in said and "nobody has run it" in said


def test_windows_itself_is_refused_in_words(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        main(["runs"])
    assert ended.value.code == 2 and "WSL2" in capsys.readouterr().err

"""Processes: a pid is not a process; pid, start and boot together are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from engine import processes
from tests.helpers import wait_until

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc is Linux's")


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_this_process_is_alive_and_the_same_each_time():
    identity = processes.identify(os.getpid())
    assert identity is not None
    assert processes.alive(identity)
    assert processes.identify(os.getpid()) == identity


def test_an_identity_survives_a_file(sleeper):
    identity = processes.identify(sleeper.pid)
    stored = msgspec.json.encode(identity)
    assert msgspec.json.decode(stored, type=processes.Identity) == identity


def test_a_process_that_has_ended_is_dead(sleeper):
    identity = processes.identify(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not processes.alive(identity)
    assert processes.identify(sleeper.pid) is None


def test_a_zombie_is_dead(sleeper):
    identity = processes.identify(sleeper.pid)
    assert processes.alive(identity)
    sleeper.kill()  # and nobody waits for it
    wait_until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE, what="a zombie")
    assert not processes.alive(identity)


def test_a_reused_pid_is_another_process(sleeper):
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    assert not processes.alive(msgspec.structs.replace(identity, started=identity.started - 1))


def test_a_process_of_before_the_last_boot_is_dead(sleeper):
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    assert not processes.alive(msgspec.structs.replace(identity, boot="00000000-0000-0000-0000-000000000000"))


def test_nobody_is_not_alive():
    assert not processes.alive(None)
    assert processes.identify(2**22 + 1) is None


@linux
@pytest.mark.parametrize("name", ["a) R 1 (b", "( )", "with space", ")))))"])
def test_the_name_of_a_program_does_not_confuse_the_fields(name):
    code = f"open('/proc/self/comm', 'w').write({name!r}); print('named', flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "named\n"
        identity = processes.identify(process.pid)
        started_s = psutil.Process(process.pid).create_time() - psutil.boot_time()
        process.kill()
    assert identity is not None
    assert identity.started / os.sysconf("SC_CLK_TCK") == pytest.approx(started_s, abs=2)


def test_without_proc_the_same_holds(sleeper, monkeypatch):
    monkeypatch.setattr(processes, "_HAS_PROC", False)
    identity = processes.identify(sleeper.pid)
    assert processes.alive(identity)
    sleeper.kill()
    wait_until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE, what="a zombie")
    assert not processes.alive(identity)


def test_a_signal_reaches_the_whole_group():
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert leader.stdout is not None
    child = processes.identify(int(leader.stdout.readline()))
    processes.signal_group(leader.pid, signal.SIGKILL)
    leader.stdout.close()
    assert leader.wait() == -signal.SIGKILL
    wait_until(lambda: not processes.alive(child), what="the child of the group's leader is gone")


def test_a_signal_to_a_group_that_is_gone_is_no_error(sleeper):
    sleeper.kill()
    sleeper.wait()
    processes.signal_group(sleeper.pid, signal.SIGTERM)

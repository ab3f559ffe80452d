"""Failures in words: what is known of an end names the kind, and the kind names what is safe to try."""

from __future__ import annotations

import errno
import signal

import msgspec
import pytest

from engine.runs import failures
from engine.spec import schema, settings
from engine.words import Problem
from tests.helpers import fake_spec


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class GatedRepoError(OSError):
    """Named as huggingface_hub names its own."""


EXCEPTIONS = {
    "disk": [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter: No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 226560 vs 226452"),
    ],
    "oom": [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    "access": [GatedRepoError("Access to model x is restricted"), OSError("404 Client Error: RepositoryNotFoundError")],
    "network": [OSError("HTTPSConnectionPool: Max retries exceeded with url"), ConnectionError("no route")],
    "driver": [RuntimeError("CUDA error: no kernel image is available for execution on the device")],
    "version": [ImportError("libcudart.so.12: undefined symbol: x"), ModuleNotFoundError("No module named 'trl'")],
    "model": [failures.RunRefused(Problem(rule="model-load", parameters={"reason": "no such file"}))],
    "bug": [KeyError("input_ids"), ValueError("")],
}


@pytest.mark.parametrize(("kind", "error"), [(kind, error) for kind, some in EXCEPTIONS.items() for error in some])
def test_an_exception_has_its_kind_and_says_what_to_do(kind: str, error: BaseException) -> None:
    failed = failures.from_exception(error)
    assert failed.kind == kind
    assert failed.message and failed.fix
    assert "Traceback" not in failed.message


@pytest.mark.parametrize(
    ("returncode", "log", "memory", "kind"),
    [
        (-signal.SIGKILL, "", True, "oom"),
        (-signal.SIGKILL, "CUDA error", False, "killed"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", False, "oom"),
        (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", False, "oom"),
        (1, "ImportError: cannot import name 'x'", False, "version"),
        (-signal.SIGSEGV, "", False, "killed"),
        (1, "", False, "bug"),
        (1, "warning: CUDA error tolerated\n" + "fine\n" * 6 + "KeyError: 'a'", False, "bug"),
    ],
)
def test_an_end_without_a_word_is_told_by_status_log_and_the_kernels_count(
    returncode: int, log: str, memory: bool, kind: str
) -> None:
    assert failures.from_exit(returncode, log, out_of_memory=memory).kind == kind


def test_the_kernels_count_can_be_read_here() -> None:
    assert failures.memory_kills() is None or failures.memory_kills() >= 0  # type: ignore[operator]


def test_out_of_memory_offers_the_cheapest_change_first_and_the_batch_that_counts_stays() -> None:
    made = msgspec.structs.replace(fake_spec(), adapter="lora", train=schema.Train(batch_size=6, accumulation=4))
    found = failures.remedies("oom", made)
    first = found[0].changes
    assert first == {"train.batch_size": 3, "train.accumulation": 8}
    paths = [path for remedy in found for path in remedy.changes]
    assert paths == [
        "train.batch_size", "train.accumulation", "train.gradient_checkpointing", "quantize", "train.max_length"
    ]  # fmt: skip
    assert set(paths) <= set(settings.fields())


def test_a_run_that_cannot_shrink_further_is_offered_nothing_that_changes_nothing() -> None:
    small = schema.Train(batch_size=1, gradient_checkpointing=True, max_length=128)
    made = msgspec.structs.replace(fake_spec(), adapter="full", train=small)
    assert failures.remedies("oom", made) == []
    assert failures.remedies("bug", made) == []


def test_a_run_that_diverged_is_offered_a_quarter_of_its_rate() -> None:
    made = msgspec.structs.replace(fake_spec(), train=schema.Train(learning_rate=2e-4))
    assert failures.remedies("diverged", made)[0].changes == {"train.learning_rate": 5e-5}

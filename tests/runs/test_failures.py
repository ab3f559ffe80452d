"""Failures in words: what is known of an end names the kind, and the kind names what is safe to try."""

from __future__ import annotations

import errno
import re
import signal
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest

from engine.runs import failures, holders
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


# --- the table of messages --------------------------------------------------------------------------------------------
TABLE = [(group, sign) for group in failures.groups() for sign in group.signs]


def test_every_message_of_the_table_is_told_as_its_group_says() -> None:
    assert len({sign.message for _, sign in TABLE}) >= 60
    wrong = []
    for group, sign in TABLE:
        failed = failures.from_exception(RuntimeError(sign.message))
        said = failures.from_exit(1, f"Traceback (most recent call last):\n{sign.message}\n")
        if sign.sign.lower() not in sign.message.lower() and sign.sign != "MemoryError":  # _ArrayMemoryError is one
            wrong.append((sign.sign, "is not in its message"))
        wrong += [(sign.message, one.kind) for one in (failed, said) if one.kind != group.kind]
        wrong += [(sign.message, str(failed.message))] if group.rule == "run-bug" else []
    assert not wrong


def test_what_was_read_in_a_library_of_python_stands_there() -> None:
    packages = Path(sysconfig.get_paths()["purelib"])
    cited = [(sign.sign, packages / sign.read) for _, sign in TABLE if re.fullmatch(r"[\w/]+\.py", sign.read)]
    there = [(sign, path) for sign, path in cited if (packages / path.relative_to(packages).parts[0]).is_dir()]
    assert len(there) >= 20
    missing = [(sign, str(path)) for sign, path in there if not path.is_file() or sign.lower() not in _words_of(path)]
    assert not missing


def _words_of(path: Path) -> str:
    """Return a source without what a text that goes over several lines has between them."""
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", path.read_text(encoding="utf-8")).lower()


# Real messages that stand in no row of the table: what its signs are worth for what nobody has written down. Read in the
# threads of the projects that are named.
HELD_BACK = [
    ("oom", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity)"),
    ("oom", "RuntimeError: cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    ("oom", "RuntimeError: [enforce fail at alloc_cpu.cpp:83] data. DefaultCPUAllocator: not enough memory"),
    ("oom", "RuntimeError: NCCL Error 1: unhandled cuda error\nLast error:\nCuda failure 'out of memory'"),
    ("oom", "torch.cuda.OutOfMemoryError: XPU out of memory. Tried to allocate 20.00 MiB"),
    ("hardware", "RuntimeError: CUDA error: uncorrectable ECC error encountered\nCompile with `TORCH_USE_CUDA_DSA`"),
    ("hardware", "Unable to determine the device handle for GPU0000:4B:00.0: GPU is lost."),
    ("data", "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED; earlier: device-side assert triggered"),
    ("data", 'IndexKernel.cu:93: operator(): Assertion `-sizes[i] <= index && "index out of bounds"` failed.'),
    ("kernel", "RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered"),
    ("kernel", "RuntimeError: Triton Error [CUDA]: unspecified launch failure"),
    ("kernel", "RuntimeError: CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasLtMatmul`"),
    ("compiler", "triton.runtime.errors.OutOfResources: out of resource: threads, Required: 2048, Hardware limit: 1024"),
    ("compiler", "torch._inductor.exc.InductorError: RuntimeError: Failed to find C compiler. Please specify via CC"),
    ("compiler", "subprocess.CalledProcessError: Command '['/opt/conda/bin/gcc', 'm.c']' returned non-zero exit status 1"),
    ("peer", "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)"),
    ("peer", "torch.distributed.DistBackendError: ncclInternalError: Internal check failed."),
    ("peer", "[rank3]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, OpType=BROADCAST, NumelIn=112)"),
    ("version", "RuntimeError: FlashAttention backward for head dim > 192 requires A100/A800 or H100/H800"),
    ("version", "ImportError: libbitsandbytes_cuda126.so: undefined symbol: cget_managed_ptr"),
    ("driver", "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
    ("driver", "RuntimeError: CUDA error: system has unsupported display driver / cuda driver combination"),
    ("model", "SafetensorError: Error while deserializing header: header too large"),
    ("network", "ReadTimeoutError: HTTPSConnectionPool(host='cdn-lfs.hf.co', port=443): Read timed out. ReadTimeout"),
    ("access", "OSError: owner/x does not appear to have a file named model.safetensors. Checkout the hub"),
    ("busy", "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "message"), HELD_BACK)
def test_messages_that_stand_in_no_row_are_of_their_kind(kind: str, message: str) -> None:
    assert message not in {sign.message for _, sign in TABLE}
    assert failures.from_exception(RuntimeError(message)).kind == kind


@pytest.mark.parametrize(
    "text",
    ["'input_ids'", "expected scalar type Half but found Float", "maximum recursion depth exceeded", "list index"],
)
def test_a_fault_of_a_program_stays_one(text: str) -> None:
    assert failures.from_exception(KeyError(text)).kind == "bug"


# What torch 2.13 puts below every error of CUDA or HIP (c10/cuda/CUDAException.cpp, CUDAMiscFunctions.cpp).
ADVICE = """
Search for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


def test_the_advice_that_torch_adds_to_an_error_of_the_card_changes_no_kind() -> None:
    cited = [(group.kind, sign.message) for group, sign in TABLE if re.search("(CUDA|HIP) error: ", sign.message)]
    assert len(cited) >= 20
    told = [(kind, message, failures.from_exception(RuntimeError(message + ADVICE)).kind) for kind, message in cited]
    assert [one for one in told if one[0] != one[2]] == []
    log = f"Traceback (most recent call last):\ntorch.AcceleratorError: CUDA error: unspecified launch failure{ADVICE}"
    assert failures.from_exit(1, log).kind == "kernel"


def test_a_model_the_hub_does_not_know_is_not_said_to_ask_for_permission() -> None:
    text = (
        "401 Client Error. (Request ID: Root=1)\n\nRepository Not Found for url: https://huggingface.co/api/models/a/b.\n"
        "If you are trying to access a private or gated repo, make sure you are authenticated."
    )
    error = type("RepositoryNotFoundError", (OSError,), {})(text)
    assert "was not found" in str(failures.from_exception(error).message)


def test_a_warning_is_no_reason_of_an_end_by_a_signal() -> None:
    log = "sdp.py:81: UserWarning: 1Torch was not compiled with flash attention. (Triggered internally)\n  out = attend(q)\n"
    assert failures.from_exit(-signal.SIGSEGV, log).kind == "killed"


def test_no_word_of_a_driver_is_said_where_the_driver_is_not_at_fault() -> None:
    told = {"device-side assert triggered", "an illegal memory access was encountered", "uncorrectable ECC error"}
    for text in told:
        failed = failures.from_exception(RuntimeError(f"CUDA error: {text}"))
        assert "driver" not in f"{failed.message}{failed.fix}", text


def test_what_a_library_wraps_is_told_and_not_the_wrapping() -> None:
    try:
        try:
            raise OSError("[Errno 28] No space left on device")
        except OSError as inner:
            raise ValueError("could not make the data set") from inner
    except ValueError as error:
        assert failures.from_exception(error).kind == "disk"


FRAMES = "\n".join(f"frame #{n}: <unknown function> + 0x{n:x} (0x7f in libtorch_cuda.so)" for n in range(30))


def test_the_reason_is_found_above_the_frames_of_a_stack() -> None:
    log = f"""terminate called after throwing an instance of 'c10::AcceleratorError'
  what():  CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
Exception raised from c10_cuda_check_implementation at CUDAException.cpp:44 (most recent call first):
{FRAMES}
"""
    failed = failures.from_exit(-signal.SIGABRT, log)
    assert failed.kind == "kernel" and "illegal memory access" in str(failed.message)


LAUNCHER = """torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
engine.train FAILED
Root Cause (first observed failure):
  rank      : 1 (local_rank: 1)
  exitcode  : {status} (pid: 4711)
  traceback : {trace}
"""


def test_of_several_processes_the_first_that_failed_is_told() -> None:
    first = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    gone = "RuntimeError: [gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:34055"
    log = f"{first}\nTraceback (most recent call last):\n{gone}\n" + LAUNCHER.format(status=1, trace="see above")
    assert failures.from_exit(1, log).kind == "oom"
    assert failures.from_exit(1, gone + "\n" + LAUNCHER.format(status=1, trace="")).kind == "killed"


def test_a_process_of_several_that_the_kernel_killed_ran_out_of_memory() -> None:
    log = LAUNCHER.format(status=-9, trace="Signal 9 (SIGKILL) received by PID 4711")
    assert failures.from_exit(1, log, out_of_memory=True).kind == "oom"
    assert failures.from_exit(1, log, out_of_memory=False).kind == "killed"


# --- who holds the memory ---------------------------------------------------------------------------------------------
FULL = (
    "CUDA out of memory. Tried to allocate 1.98 GiB. GPU 0 has a total capacity of 15.56 GiB of which 1.37 GiB is free. "
    "{others}Including non-PyTorch memory, this process has {own} GiB memory in use. Of the allocated memory 9.46 GiB is "
    "allocated by PyTorch, and 1.51 GiB is reserved by PyTorch but unallocated."
)


def test_a_second_process_on_the_card_is_named_with_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(name=lambda: "ollama"))
    text = FULL.format(others="Process 6680 has 1.81 GiB memory in use. ", own="11.21")
    failed = failures.from_exception(OutOfMemoryError(text))
    assert failed.kind == "oom" and "ollama, 6680 (1.8 GiB)" in str(failed.message) and "Ollama" in str(failed.fix)
    assert "ollama" in str(failures.from_exit(1, f"torch.OutOfMemoryError: {text}").message)


def test_what_nobody_names_is_told_by_what_is_missing_on_the_card() -> None:
    assert holders.of_card(FULL.format(others="", own="5.00")) == "9.2 GiB"
    assert holders.of_card(FULL.format(others="", own="13.9")) == ""
    assert holders.of_card(FULL.format(others="Process 1 has 256.00 MiB memory in use. ", own="13.9")) == ""
    assert holders.of_card("CUDA error: out of memory") == ""


def test_in_a_container_the_run_itself_is_none_of_the_others() -> None:
    """As Colab and Docker show it: the driver names our own process by a number from outside, so torch does not know it."""
    full = (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 14.75 GiB of which 12.81 MiB is "
        "free. {first}Process 4163 has {own} GiB memory in use. Of the allocated memory 10.40 GiB is allocated by PyTorch, "
        "and 209.43 MiB is reserved by PyTorch but unallocated."
    )
    assert holders.of_card(full.format(first="", own="14.73")) == ""
    assert holders.of_card(full.format(first="Process 1 has 3.90 GiB memory in use. ", own="10.80")) == "3.9 GiB"
    assert holders.of_card(full.format(first="Process 1 has 14.10 GiB memory in use. ", own="10.80")) == "14.1 GiB"


def test_a_process_killed_for_memory_is_told_with_who_else_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def process(pid: int, name: str, gib: float) -> SimpleNamespace:
        info = {"name": name, "memory_info": SimpleNamespace(rss=int(gib * 2**30))}
        return SimpleNamespace(pid=pid, info=info)

    there = [process(1, "init", 0.01), process(7, "chrome", 3.0), process(8, "ollama", 9.0)]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * 2**30))
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: iter(there))
    failed = failures.from_exit(-signal.SIGKILL, "", out_of_memory=True)
    assert failed.kind == "oom" and "ollama (9.0 GiB), chrome (3.0 GiB)" in str(failed.message)
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: iter(there[:1]))
    assert "others" not in str(failures.from_exit(-signal.SIGKILL, "", out_of_memory=True).message)

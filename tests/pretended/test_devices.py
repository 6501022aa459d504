"""Choice of a device: numbers, memory, dtype, allocator and messages, on pretended cards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from latent_ladder.errors import RequestError
from latent_ladder.memory import gpus as gpu_query
from latent_ladder.memory.gpus import Gpu, gpus
from latent_ladder.memory.hardware import MemoryOptions, budget, pinnable_bytes
from latent_ladder.memory.oom import is_out_of_memory
from latent_ladder.memory.planner import GIB, Budget, Policy
from latent_ladder.models import accelerator
from latent_ladder.models.device import choose_runtime, dtype_note
from latent_ladder.pipeline.model_runner import ModelRunner
from pretended import guard, twin
from pretended.standins import Card, Machine

REASON = guard.reason_against()
needs_guard = pytest.mark.skipif(REASON is not None, reason=str(REASON))
TWO = [Card("Small", 12 * GIB), Card("Large", 48 * GIB, other_bytes=8 * GIB)]


@needs_guard
def test_memory_is_that_of_the_card_in_question_without_nvidia_smi() -> None:
    options = MemoryOptions(reserve_vram=0)
    with twin.pretend(Machine(list(TWO))):
        found = {name: budget(options, name) for name in ("auto", "cuda", "cuda:1")}
    assert {name: b.name for name, b in found.items()} == {
        "auto": "Small", "cuda": "Small", "cuda:1": "Large",
    }  # fmt: skip
    # Libraries of CUDA take the same from both.
    assert found["cuda:1"].device_bytes - found["cuda"].device_bytes == (40 - 12) * GIB
    assert found["cuda:1"].device_bytes > 39 * GIB
    assert found["cuda"].rates_name == "Small", "rates are those measured on this card"


@needs_guard
@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("cuda:1", "device cuda:1 does not exist, PyTorch sees cuda:0"),
        ("cuda:x", "x is not the number of a GPU"),
        ("cuda:", "nothing is not the number of a GPU"),
        ("cpu:1", "there is only one cpu"),
        ("xpu", "device xpu is not available"),
        ("tpu", "unknown device tpu"),
    ],
)
def test_a_device_that_is_not_there_is_named(device: str, text: str) -> None:
    with twin.pretend():
        for check in (choose_runtime, lambda name: budget(MemoryOptions(vram=8), name)):
            with pytest.raises(RequestError, match=text) as caught:
                check(device)
            assert "--device" in str(caught.value.hint)


def test_cuda_without_a_gpu_is_an_error_and_auto_is_the_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RequestError, match="device cuda is not available"):
        budget(MemoryOptions(), "cuda")
    assert budget(MemoryOptions(), "auto").device in ("cpu", "xpu")


@needs_guard
def test_a_card_without_bfloat16_computes_in_float32_and_says_so() -> None:
    with twin.pretend(Machine([Card("RTX 2080", capability=(7, 5)), Card("RTX 3090")])):
        old, new = choose_runtime("cuda:0"), choose_runtime("cuda:1")
        assert (old.dtype, new.dtype) == (torch.float32, torch.bfloat16)
        assert budget(MemoryOptions(vram=8), "cuda:0").value_bytes == 4
        assert budget(MemoryOptions(vram=8), "cuda:1").value_bytes == 2
        assert "RTX 2080 has no bfloat16" in str(dtype_note(old))
        assert dtype_note(new) is None
        assert not accelerator.has_fp8_products(old.device)
        assert accelerator.has_fp8_products(new.device)


@needs_guard
def test_the_allocator_is_set_up_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(machine: Machine) -> Machine:
        with twin.pretend(machine):
            ModelRunner(choose_runtime("cuda"), Budget("cuda", 6 * GIB, GIB), Policy())
        return machine

    for name in accelerator.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platform.release", lambda: "6.1.0")
    plain = start(Machine())
    assert plain.settings == ["expandable_segments:True"]
    assert plain.cards[0].limit_bytes is None
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    assert start(Machine()).settings == []
    monkeypatch.setattr("platform.release", lambda: "5.15-microsoft-standard-WSL2")
    assert start(Machine()).cards[0].limit_bytes == 6 * GIB, "Windows would spill into RAM"


def test_windows_pins_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pinnable_bytes()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("latent_ladder.memory.hardware.WINDOWS_PINNED", 1e-6)
    assert pinnable_bytes() < whole


SMI = (
    "NVIDIA H100, 81559, 80000, GPU-aa11, 9.0\n"
    "NVIDIA H100, 81559, 40000, GPU-bb22, 9.0\n"
)  # fmt: skip


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``nvidia-smi`` that prints two cards; PyTorch is a build for GPUs that is not loaded."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    program.chmod(0o755)
    (tmp_path / "answer").write_text(SMI)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu_query, "version", lambda _: "2.13.0+cu130")
    monkeypatch.delitem(sys.modules, "torch")
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "answer"


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
@pytest.mark.parametrize(
    ("visible", "free"),
    [
        (None, [80000, 40000]), ("1", [40000]), ("1,0", [40000, 80000]), ("", []), ("-1", []),
        ("GPU-bb", [40000]), ("0,7,1", [80000]),
    ],
)  # fmt: skip
def test_the_driver_is_asked_with_the_visible_devices(
    smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, free: list[int]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.free_bytes >> 20 for gpu in gpus()] == free


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_pytorch_is_asked_where_the_order_of_cards_may_differ(
    smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi.write_text(SMI.replace("NVIDIA H100", "NVIDIA T4", 1).replace("9.0", "7.5", 1))
    asked = (Gpu("NVIDIA H100", 2, 1),)
    monkeypatch.setattr(gpu_query, "_child_gpus", lambda: asked)
    assert gpus() == asked
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert [(gpu.name, gpu.has_bf16) for gpu in gpus()] == [
        ("NVIDIA T4", False), ("NVIDIA H100", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "HIP out of memory. Tried to allocate 2.00 GiB.",
        "HIP error: out of memory",
        "XPU out of memory. Tried to allocate 2.00 GiB.",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "MPS backend out of memory (MPS allocated: 20 GB)",
        "Invalid buffer size: 31.64 GiB",
    ],
)
def test_out_of_memory_is_recognised(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


def test_other_failures_are_not_out_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 must have the same dtype"))
    assert not is_out_of_memory(ValueError("CUDA out of memory"))

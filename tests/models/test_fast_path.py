"""Fast path: each switch gives the results of the plain path, within a stated tolerance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import Goldens
from helpers.transformer_inputs import inputs_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.errors import RequestError
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.models import fast_options
from latent_ladder.models.device import Runtime
from latent_ladder.models.lora.adapters import merge_low_rank
from latent_ladder.models.transformer import attention_backends
from latent_ladder.models.transformer.attention_backends import (
    BACKENDS,
    Measured,
    fastest,
    measure_backends,
)
from latent_ladder.models.transformer.fast_path import FastPath
from latent_ladder.models.transformer.graphs import GraphedForward, Velocities
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.models.transformer.pass_batching import PassSpec
from latent_ladder.models.weights.linear import Linear, LowRank

CPU = torch.device("cpu")
MODEL = "checkpoints/tiny-ltx-2.3.safetensors"


@pytest.fixture(scope="module")
def model(golden: Goldens) -> Transformer:
    found = components(open_checkpoint(Path(golden.path(MODEL))))
    return load_transformer(found["transformer"])


def test_names_of_switches() -> None:
    assert set(fast_options.ATTENTION) == set(BACKENDS)
    assert MemoryOptions(fast=frozenset({"attention=sage", "fused"}))
    for name in ("fast", "attention=none", "fused=1"):
        with pytest.raises(RequestError, match="--fast"):
            MemoryOptions(fast=frozenset({name}))


@pytest.mark.slow
def test_attention_backends_agree_with_the_plain_one() -> None:
    """Those that this CPU has, with and without a bias, on heads that are views."""
    q, k, v = (torch.randn(2, 7, 3, 8).transpose(1, 2) for _ in range(3))
    bias = torch.randn(1, 1, 7, 7)
    for name, backend in BACKENDS.items():
        if backend.module is None:
            for each in (None, bias):
                wanted = BACKENDS["plain"].function(q, k, v, each)
                got = backend.function(q, k, v, each)
                torch.testing.assert_close(got, wanted, msg=f"{name}, bias {each is not None}")


def test_measured_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is missing, fails or computes something else is not chosen."""
    wrong = attention_backends.Backend(lambda q, k, v, bias: q)
    table = {**BACKENDS, "wrong": wrong}
    monkeypatch.setattr(attention_backends, "BACKENDS", table)
    names = ("sdpa", "flash3", "cudnn", "wrong")
    found = {m.name: m for m in measure_backends(CPU, torch.float32, (2, 64, 8), names)}
    assert found["sdpa"].seconds is not None
    assert found["flash3"].note == "flash_attn_interface is not installed"
    assert found["cudnn"].seconds is None
    assert "wrong result" in found["wrong"].note
    assert fastest(found.values()) == "sdpa"


def test_only_exact_attention_is_chosen() -> None:
    times = [Measured("sdpa", 3.0), Measured("sage", 1.0), Measured("cudnn", 2.0)]
    assert fastest(times) == "cudnn"
    assert fastest([Measured("cudnn", None, "no kernel")]) == "sdpa"


def test_switches_without_a_card_leave_the_plain_path(model: Transformer) -> None:
    switches = frozenset({"attention=flash3", "fused", "graphs", "fp8", "fp4"})
    notes = FastPath(switches, Runtime(CPU, torch.float32)).apply(model)
    assert not model.fused
    assert not model.graphs
    assert any("flash_attn_interface is not installed" in note for note in notes)
    assert any("no NVFP4 products" in note and "Blackwell" in note for note in notes)
    assert FastPath(switches, Runtime(CPU, torch.float32)).apply(model) == ()
    model.fast_switches = frozenset()
    model.use_attention("sdpa")
    model.use_fp8_products(False)


def test_bytes_of_merged_loras_are_those_of_the_copy() -> None:
    """Low-rank branches in every layer: exactly their size; a single LoRA is not copied."""
    branches = [LowRank(0.5, torch.randn(r, 12), torch.randn(8, r)) for r in (2, 3)]
    sizes = [4 * (b.down.numel() + b.up.numel()) for b in branches]
    [merged] = merge_low_rank(branches)
    assert isinstance(merged, LowRank)
    copied = 4 * (merged.down.numel() + merged.up.numel())
    names = frozenset({"loras", "fused"})
    assert fast_options.merged_lora_bytes(names, sizes) == copied
    assert fast_options.merged_lora_bytes(names, sizes[:1]) == 0
    assert merge_low_rank(branches[:1]) == (branches[0],)
    assert fast_options.merged_lora_bytes(frozenset(), sizes) == 0


def test_bytes_of_recordings() -> None:
    assert fast_options.recording_bytes(frozenset({"graphs"}), 100, 7, 2) == 214
    assert fast_options.recording_bytes(frozenset({"graphs"}), 100, 7, 0) == 0
    assert fast_options.recording_bytes(frozenset({"loras"}), 100, 7, 2) == 0


def test_loras_as_one_product() -> None:
    """Three LoRAs of different ranks: one branch, same result to float32 rounding."""
    layer, x = Linear(24, 16), torch.randn(2, 5, 24)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    branches = [
        LowRank(strength, torch.randn(rank, 24), torch.randn(16, rank))
        for strength, rank in ((0.5, 4), (-1.5, 2), (1.0, 8))
    ]
    with torch.no_grad():
        layer.branches = tuple(branches)
        wanted = layer(x)
        layer.branches = merge_low_rank(branches)
        assert [type(b) for b in layer.branches] == [LowRank]
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations with their tensors, which a replay computes again into the same tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.steps:
            if func.is_view:
                continue
            again = func(*args, **kwargs)
            pairs = zip(again, out, strict=True) if isinstance(out, tuple) else [(again, out)]
            for new, stored in pairs:
                if isinstance(stored, Tensor) and new is not stored:
                    stored.copy_(new)


def record(work: Callable[[], Velocities]) -> tuple[Callable[[], None], Velocities]:
    recorder = _Recorder()
    with recorder:
        outputs = work()
    return recorder.replay, outputs


@pytest.mark.slow
def test_recorded_forwards_follow_their_inputs(model: Transformer, golden: Goldens) -> None:
    """Replays with other tokens and another sigma give the bits of forwards that are not recorded.

    A number that the host had read while recording would be that of the first forward.
    """
    video, audio = inputs_of(model.config, golden("dit.per_token"))
    graphed = GraphedForward(model, record)
    passes = (PassSpec(), PassSpec(stg_video=frozenset({1})))
    assert video is not None
    assert audio is not None
    with torch.no_grad():
        for n in range(4):
            for stream in (video, audio):
                stream.tokens.normal_(generator=torch.Generator().manual_seed(n))
                stream.sigma.fill_(1 - n / 5)
            for got, wanted in zip(
                graphed(video, audio, passes), model(video, audio, passes), strict=True
            ):
                assert got is not None
                assert torch.equal(got, wanted), f"forward {n}"

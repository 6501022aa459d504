"""Parts of a run on a pretended GPU: frames to the host, weights in every format, making room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import GOLDEN
from numpy.typing import NDArray

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.errors import MemoryBudgetError
from latent_ladder.memory.cost_model import StageCost
from latent_ladder.memory.planner import (
    GIB,
    Budget,
    OffloadPlan,
    Policy,
    StageMemory,
    ran_out,
)
from latent_ladder.models.device import choose_runtime
from latent_ladder.models.host_frames import to_host
from latent_ladder.models.transformer import block
from latent_ladder.models.transformer.model import LoadOptions, load_transformer
from latent_ladder.models.weights.dequantize_ggml import GGML_BLOCKS
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor
from latent_ladder.pipeline.model_runner import ModelRunner
from pretended import guard, races, test_streaming, twin

REASON = guard.reason_against()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
CUDA = torch.device("cuda", 0)


def test_frames_are_copied_while_the_next_are_computed() -> None:
    numbers = [torch.full((n, 2, 3), n, dtype=torch.uint8) for n in (4, 2, 5, 1)]
    launched: list[int] = []

    def chunks(device: str) -> Iterator[torch.Tensor]:
        for n, chunk in enumerate(numbers):
            launched.append(n)
            yield chunk.to(device).add(1)

    expected = list(to_host(chunks("cpu")))
    launched.clear()
    with twin.pretend() as log, races.watch(log) as found:
        arrays: list[NDArray[Any]] = []
        ahead: list[int] = []
        for array in to_host(chunks("cuda")):
            ahead.append(len(launched) - len(arrays))
            arrays.append(array)
    for array, wanted in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert ahead == [2, 2, 2, 1], "the next chunk is launched before one is waited for"
    assert not found.races
    kinds = {kind for _, kind, _ in log.copies}
    assert "to host, pinned" in kinds
    assert "to host, pageable" not in kinds


def test_nothing_is_computed_on_the_cpu_before_it_is_asked_for() -> None:
    made: list[int] = []

    def chunks() -> Iterator[torch.Tensor]:
        for n in range(3):
            made.append(n)
            yield torch.tensor([n])

    arrays = to_host(chunks())
    assert next(arrays).tolist() == [0]
    assert made == [0]


@pytest.mark.parametrize("format", sorted(GGML_BLOCKS))
def test_a_card_decodes_blocks_of_ggml_to_the_bits_of_the_cpu(format: str) -> None:
    form = GGML_BLOCKS[format]
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 60, (6, form.bytes), dtype=torch.uint8, generator=generator)
    weight = QuantizedTensor(format, (6, form.weights), {"weight": stored})
    expected = weight.dequantize(torch.float32)
    with twin.pretend() as log:
        found = weight.to("cuda").dequantize(torch.float32).cpu()
    assert not [reason for _, reason, _ in log.syncs if not reason.startswith("copy")]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q8_0.gguf", "fp8.safetensors", "nvfp4.safetensors"])
def test_a_quantised_transformer_computes_the_numbers_of_the_cpu(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = GOLDEN / "quantized" / f"tiny-ltx-2.3-{name}"
    component = components(open_checkpoint(path))["transformer"]
    load = LoadOptions(as_stored=True)
    with monkeypatch.context() as patch:
        patch.setattr(test_streaming, "CUDA", torch.device("cpu"))
        model = load_transformer(component, device="cpu", dtype=torch.bfloat16, load=load)
        expected = test_streaming.forward(model)
    with twin.pretend() as log:
        model = load_transformer(component, device=CUDA, dtype=torch.bfloat16, load=load)
        found = test_streaming.forward(model).cpu()
        log.in_blocks.clear()  # a table of numbers is copied once per process
        test_streaming.forward(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert not log.in_blocks


@pytest.mark.slow
def test_weights_are_decoded_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    path = GOLDEN / "quantized" / "tiny-ltx-2.3-fp8.safetensors"
    component = components(open_checkpoint(path))["transformer"]
    calls: list[int] = []
    real = QuantizedTensor.dequantize

    def counted(self: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        calls.append(id(self))
        return real(self, dtype)

    monkeypatch.setattr(QuantizedTensor, "dequantize", counted)

    def run(chunk_tokens: int) -> tuple[torch.Tensor, int]:
        calls.clear()
        with twin.pretend():
            load = LoadOptions(as_stored=True)
            model = load_transformer(component, device=CUDA, dtype=torch.bfloat16, load=load)
            model.set_chunk_tokens(chunk_tokens)
            return test_streaming.forward(model).cpu(), len(calls)

    _, whole = run(100)
    once, few = run(2)
    monkeypatch.setattr(block, "decode_once", lambda *_: nullcontext())
    each, many = run(2)
    assert torch.equal(once, each), "the same bits"
    assert few == whole < many / 1.5


def runner(device_bytes: int = 4 * GIB) -> ModelRunner:
    return ModelRunner(choose_runtime("cuda"), Budget("cuda", device_bytes, GIB), Policy())


def stage(kind: str, own_bytes: int = 0) -> StageMemory:
    cost = StageCost(kind, kind)
    return StageMemory(cost, OffloadPlan(), own_bytes, 0)


def loaded(one: ModelRunner) -> ModelRunner:
    path: Path = GOLDEN / "checkpoints" / "tiny-ltx-2.3.safetensors"
    one.transformer_for(components(open_checkpoint(path))["transformer"], OffloadPlan())
    return one


def test_the_transformer_leaves_only_where_a_stage_does_not_fit_beside_it() -> None:
    with twin.pretend() as log:
        one = loaded(runner())
        card, before = log.machine.cards[0], log.machine.cards[0].allocated
        one.make_room(stage("upsample", GIB))
        assert card.allocated == before > 0
        one.make_room(stage("upsample", 4 * GIB))
        assert card.allocated < before / 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prompt", "upsample", "sound"])
def test_a_stage_of_other_networks_is_tried_again_without_the_transformer(kind: str) -> None:
    tries: list[int] = []
    warnings: list[Any] = []

    def work(_: StageMemory) -> int:
        tries.append(machine.cards[0].allocated)
        if tries[-1] > 100_000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 7

    def nothing_left(before: StageMemory) -> StageMemory:
        raise ran_out(before.cost.name, one.budget)

    with twin.pretend() as log:
        machine, one = log.machine, loaded(runner())
        made = one.retry(kind, work, stage(kind), nothing_left, lambda *w: warnings.append(w))
        assert made == 7
        assert len(tries) == 2
        assert warnings == [
            ("out_of_memory",
             f"{kind} ran out of memory; trying again with the transformer unloaded")
        ]  # fmt: skip

        def fail(_: StageMemory) -> int:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(MemoryBudgetError, match="nothing else loaded"):
            one.retry(kind, fail, stage(kind), nothing_left, lambda *_: None)

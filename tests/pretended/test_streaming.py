"""Blocks on a pretended GPU: never more than planned, the same bits, no races, no waits."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.selection import EMBEDDED
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import LoadOptions, Transformer, load_transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.weights import block_offload
from latent_ladder.models.weights.block_offload import BlockOffload
from latent_ladder.models.weights.block_placement import streamed_bytes
from pretended import ghost, guard, races, twin
from pretended.standins import Card, Machine, machine

REASON = guard.reason_against()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

CUDA = torch.device("cuda", 0)
CHECKPOINT = next((EMBEDDED / "checkpoints").glob("*.safetensors"))
LORA = next((EMBEDDED / "loras").glob("*.safetensors"))


def component(role: str = "transformer") -> Component:
    return components(open_checkpoint(LORA if role == "lora" else CHECKPOINT))[role]


def load(blocks: Any = "file", **options: Any) -> Transformer:
    load = LoadOptions(as_stored=True, blocks=blocks, **options)
    return load_transformer(component(), device=CUDA, dtype=torch.bfloat16, load=load)


def forward(model: Transformer, steps: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    streams = []
    config = model.config
    for stream, positions in (
        (config.video, video_positions(2, 2, 2, 24)),
        (config.audio, audio_positions(5)),
    ):
        text = random(1, 8, stream.context_dim).bfloat16().to(CUDA)
        streams.append(DenoiserStream(positions.to(CUDA), text))
    denoiser = Denoiser(model, *streams)
    tokens = random(1, 8, config.video.in_channels), random(1, 5, config.audio.in_channels)
    x = denoiser.packing.pack(*(t.to(CUDA) for t in tokens))
    for step in range(steps):
        x = denoiser(x, 0.7, step).denoised
    return x.cpu()


def settled_bytes(model: Transformer, offload: BlockOffload) -> int:
    """Bytes on the card while blocks are placed as ``offload`` says."""
    with model.offload_blocks(CUDA, offload):
        return machine().cards[0].allocated


@pytest.mark.parametrize("pinned", [True, False])
def test_a_stage_with_fewer_residents_has_no_more_on_the_card(pinned: bool) -> None:
    with ghost.pretend():
        one = streamed_bytes(load().transformer_blocks[0])
        alone = settled_bytes(load(), BlockOffload(2, pinned))
        gc.collect()
        model = load()
        before = settled_bytes(model, BlockOffload(4, pinned))
        card = machine().cards[0]
        card.peak = card.allocated
        after = settled_bytes(model, BlockOffload(2, pinned))
        assert after == pytest.approx(alone, abs=one // 8)
        assert card.peak <= before, "blocks leave before buffers and others come"


@pytest.mark.parametrize("pinned", [True, False])
def test_more_residents_after_fewer_never_exceed_the_larger_plan(pinned: bool) -> None:
    with ghost.pretend():
        alone = settled_bytes(load(), BlockOffload(4, pinned))
        gc.collect()
        model, card = load(), machine().cards[0]
        settled_bytes(model, BlockOffload(1, pinned))
        card.peak = card.allocated
        assert settled_bytes(model, BlockOffload(4, pinned)) == alone
        assert card.peak <= alone


def test_a_transformer_converted_to_fp8_waits_on_the_host() -> None:
    """Conversion computes on the card; what is streamed must not stay there."""
    with ghost.pretend():
        card, kept = machine().cards[0], load()
        stored = card.allocated
        del kept
        gc.collect()
        model = load(precision="fp8")
        gc.collect()
        assert len(model.transformer_blocks) > 1
        assert card.allocated <= stored


def test_pinned_memory_is_registered_once_for_all_stages() -> None:
    with twin.pretend() as log:
        model = load()
        lora = component("lora")
        sizes = []
        for resident in (0, 2, 0):
            with (
                temporary_loras(model, [(lora, 0.5 + resident)]),
                model.offload_blocks(CUDA, BlockOffload(resident, pinned=True)),
            ):
                sizes.append(log.machine.registered_bytes)
        assert sizes[0] > 0
        assert sizes[1] == sizes[0], "nothing is copied and registered again"
        del model
        gc.collect()
        assert log.machine.locked == []


def test_a_refused_registration_does_not_fail_the_next_launch() -> None:
    with twin.pretend(Machine(refuse_locking=True)):
        model = load()
        with model.offload_blocks(CUDA, BlockOffload(1, pinned=True)):
            assert forward(model).isfinite().all()


@pytest.fixture(scope="module")
def resident() -> torch.Tensor:
    with twin.pretend():
        return forward(load("device"), steps=2)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("blocks", [0, 3])
def test_streams_have_no_races_and_the_same_bits(
    resident: torch.Tensor, pinned: bool, blocks: int
) -> None:
    with twin.pretend() as log, races.watch(log) as found:
        model = load()
        with model.offload_blocks(CUDA, BlockOffload(blocks, pinned)):
            out = forward(model, steps=2)
    assert torch.equal(out, resident)
    assert found.launches > 1000
    assert not found.races, found.first
    assert not log.in_blocks, "nothing waits inside a block"


def _take_without_waiting(ring: Any, number: int) -> torch.Tensor:
    if not ring._pending or ring._pending[0][0] != number:
        ring._fill_from(ring._order.index(number))
    _, slot, future = ring._pending[0]
    future.result()
    return slot.buffer  # type: ignore[no-any-return]


def _release_without_event(ring: Any, number: int) -> None:
    _, slot, _ = ring._pending.popleft()
    last = ring._pending[-1][0] if ring._pending else number
    ring._submit_copy(ring._order[(ring._order.index(last) + 1) % len(ring._order)], slot)


@pytest.fixture(params=["no wait for the copy", "no event behind the computation"])
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ring = block_offload._BufferRing
    if request.param == "no wait for the copy":
        monkeypatch.setattr(ring, "wait_for", _take_without_waiting)
    else:
        monkeypatch.setattr(ring, "release", _release_without_event)
    yield


@pytest.mark.usefixtures("planted")
def test_the_sanitizer_finds_each_planted_fault() -> None:
    with twin.pretend() as log, races.watch(log) as found:
        model = load()
        with model.offload_blocks(CUDA, BlockOffload(0, pinned=True)):
            forward(model, steps=2)
    assert sum(found.races.values()) > 10


def test_staging_memory_that_is_overwritten_too_early_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with twin.pretend() as log:
        monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda event: None)
        model = load()
        with (
            pytest.raises(twin.HostRace),
            model.offload_blocks(CUDA, BlockOffload(0, pinned=False)),
        ):
            forward(model, steps=2)
        assert log.machine.cards[0].allocated > 0


def test_memory_that_runs_out_inside_a_block_leaves_nothing_behind() -> None:
    with twin.pretend(Machine([Card()])) as log:
        model = load()
        at_rest = log.machine.cards[0].allocated

        def fail(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        model.transformer_blocks[3].register_forward_hook(fail)
        with (
            pytest.raises(torch.OutOfMemoryError),
            model.offload_blocks(CUDA, BlockOffload(0, pinned=True)),
        ):
            forward(model)
        gc.collect()
        assert log.machine.cards[0].allocated == at_rest

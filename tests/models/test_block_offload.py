"""Blocks that come and go give the bits that resident blocks give, LoRAs and all, and keep to
their memory."""

from __future__ import annotations

import itertools

import pytest
import torch

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.selection import EMBEDDED
from latent_ladder.models.lora.attach import attached
from latent_ladder.models.transformer.model import Load, Transformer, load_transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, stream_stage
from latent_ladder.models.weights.block_offload import Residency, travelling_bytes
from latent_ladder.models.weights.linear import Linear
from latent_ladder.models.weights.offload_schedule import BUFFERS, spread

CPU = torch.device("cpu")
CHECKPOINT = next((EMBEDDED / "checkpoints").glob("*.safetensors"))
LORA = next((EMBEDDED / "loras").glob("*.safetensors"))


def pocket() -> Component:
    return components(open_checkpoint(CHECKPOINT))["transformer"]


def lora() -> Component:
    return components(open_checkpoint(LORA))["lora"]


def load(how: Load) -> Transformer:
    return load_transformer(pocket(), load=how)


@torch.inference_mode()
def forward(model: Transformer, device: torch.device = CPU) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    config = model.config
    inputs = []
    for stream, positions in (
        (config.video, video_positions(2, 4, 4, 24)),
        (config.audio, audio_positions(9)),
    ):
        context = torch.randn(1, 16, stream.context_dim, generator=generator)
        tokens = torch.randn(1, positions.shape[2], stream.in_channels, generator=generator)
        stage = stream_stage(config, positions.to(device), context.to(device))
        sigma = torch.tensor([0.7], device=device)
        inputs.append(StreamInput(stage, tokens.to(device), sigma))
    return [v for v in model(*inputs) if v is not None]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def reference() -> list[torch.Tensor]:
    return forward(load(Load()))


def test_weights_kept_as_stored_give_the_same_bits(reference):
    assert same(forward(load(Load(as_stored=True))), reference)


@pytest.mark.parametrize("blocks", ["pinned", "file"])
@pytest.mark.parametrize("resident", [0, 1, 4, 5])
def test_streamed_blocks_give_the_same_bits(reference, blocks, resident):
    model = load(Load(as_stored=True, blocks=blocks))
    with model.held(CPU, Residency(resident)):
        assert same(forward(model), reference)
        assert same(forward(model), reference), "the second round reuses the buffers"
    assert same(forward(model), reference), "every tensor is back in its place"


def test_a_lora_travels_with_its_blocks(reference):
    plain, streamed = load(Load()), load(Load(as_stored=True, blocks="file"))
    loras = [(lora(), 0.8)]
    with attached(plain, loras):
        expected = forward(plain)
    assert not same(expected, reference)
    with attached(streamed, loras), streamed.held(CPU, Residency(2)):
        assert same(forward(streamed), expected)
    assert same(forward(streamed), reference)


def test_a_forward_that_is_broken_off_leaves_the_next_one_right(reference):
    model = load(Load(as_stored=True, blocks="file"))
    with model.held(CPU, Residency(1)):
        walk = model.walk.blocks()
        for _ in range(4):
            next(walk)
        walk.close()
        assert same(forward(model), reference)


def test_only_the_buffers_hold_streamed_blocks():
    model = load(Load(as_stored=True, blocks="file"))
    block = travelling_bytes(model.transformer_blocks[0])
    with model.held(CPU, Residency(0)):
        held = {
            layer.weight.untyped_storage().data_ptr(): layer.weight.untyped_storage().nbytes()
            for block_now in model.walk.blocks()
            for layer in block_now.modules()
            if isinstance(layer, Linear) and layer.weight is not None
        }
    assert len(held) == BUFFERS
    assert sum(held.values()) == BUFFERS * block


def test_closing_hangs_every_tensor_back():
    model = load(Load(as_stored=True, blocks="file"))
    before = [w.data_ptr() for w in weights(model)]
    with model.held(CPU, Residency(0)):
        forward(model)
    assert [w.data_ptr() for w in weights(model)] == before


def weights(model: Transformer) -> list[torch.Tensor]:
    layers = (m for m in model.transformer_blocks.modules() if isinstance(m, Linear))
    return [layer.weight for layer in layers if layer.weight is not None]


@pytest.mark.parametrize("blocks", [1, 6, 48])
def test_streamed_blocks_are_spread_evenly(blocks):
    for streamed in range(blocks + 1):
        chosen = spread(blocks, streamed)
        assert len(set(chosen)) == streamed
        assert all(0 <= n < blocks for n in chosen)
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pinned", [True, False])
def test_streaming_to_a_gpu_gives_the_bits_of_a_resident_model(pinned):
    device = torch.device("cuda")
    resident = load_transformer(pocket(), device=device, dtype=torch.bfloat16)
    how = Load(as_stored=True, blocks="pinned" if pinned else "file")
    streamed = load_transformer(pocket(), device=device, dtype=torch.bfloat16, load=how)
    with streamed.held(device, Residency(2, pinned=pinned)):
        got = forward(streamed, device)
    assert same(got, forward(resident, device))

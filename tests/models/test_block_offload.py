"""Streamed blocks give results identical to resident blocks, with LoRAs, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Generator

import pytest
import torch

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.selection import EMBEDDED
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.transformer.model import LoadOptions, Transformer, load_transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, prepare_stream
from latent_ladder.models.weights.block_offload import BlockOffload
from latent_ladder.models.weights.block_placement import streamed_bytes
from latent_ladder.models.weights.linear import Linear
from latent_ladder.models.weights.loading import WeightLocation
from latent_ladder.models.weights.offload_schedule import BUFFERS, streamed_block_numbers

CPU = torch.device("cpu")
CHECKPOINT = next((EMBEDDED / "checkpoints").glob("*.safetensors"))
LORA = next((EMBEDDED / "loras").glob("*.safetensors"))


def pocket() -> Component:
    return components(open_checkpoint(CHECKPOINT))["transformer"]


def lora() -> Component:
    return components(open_checkpoint(LORA))["lora"]


def load(options: LoadOptions) -> Transformer:
    return load_transformer(pocket(), load=options)


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
        prepared = prepare_stream(config, positions.to(device), context.to(device))
        sigma = torch.tensor([0.7], device=device)
        inputs.append(StreamInput(prepared, tokens.to(device), sigma))
    return [v for v in model(*inputs) if v is not None]


def all_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def reference() -> list[torch.Tensor]:
    return forward(load(LoadOptions()))


def test_weights_as_stored_give_identical_results(reference: list[torch.Tensor]) -> None:
    assert all_equal(forward(load(LoadOptions(as_stored=True))), reference)


@pytest.mark.parametrize("blocks", ["pinned", "file"])
@pytest.mark.parametrize("resident", [0, 1, 4, 5])
def test_streamed_blocks_give_identical_results(
    reference: list[torch.Tensor], blocks: WeightLocation, resident: int
) -> None:
    model = load(LoadOptions(as_stored=True, blocks=blocks))
    with model.offload_blocks(CPU, BlockOffload(resident)):
        assert all_equal(forward(model), reference)
        assert all_equal(forward(model), reference), "the second round reuses the buffers"
    assert all_equal(forward(model), reference), "every tensor is restored"


def test_loras_are_streamed_with_their_blocks(reference: list[torch.Tensor]) -> None:
    plain, streamed = load(LoadOptions()), load(LoadOptions(as_stored=True, blocks="file"))
    loras = [(lora(), 0.8)]
    with temporary_loras(plain, loras):
        expected = forward(plain)
    assert not all_equal(expected, reference)
    with temporary_loras(streamed, loras), streamed.offload_blocks(CPU, BlockOffload(2)):
        assert all_equal(forward(streamed), expected)
    assert all_equal(forward(streamed), reference)


def test_forward_after_an_interrupted_one_is_correct(reference: list[torch.Tensor]) -> None:
    model = load(LoadOptions(as_stored=True, blocks="file"))
    with model.offload_blocks(CPU, BlockOffload(1)):
        iterator = model.block_iterator.blocks()
        for _ in range(4):
            next(iterator)
        assert isinstance(iterator, Generator)
        iterator.close()
        assert all_equal(forward(model), reference)


def test_streamed_blocks_use_only_the_buffers() -> None:
    model = load(LoadOptions(as_stored=True, blocks="file"))
    block = streamed_bytes(model.transformer_blocks[0])
    with model.offload_blocks(CPU, BlockOffload(0)):
        buffers = {
            layer.weight.untyped_storage().data_ptr(): layer.weight.untyped_storage().nbytes()
            for block_now in model.block_iterator.blocks()
            for layer in block_now.modules()
            if isinstance(layer, Linear) and layer.weight is not None
        }
    assert len(buffers) == BUFFERS
    assert sum(buffers.values()) == BUFFERS * block


def test_closing_restores_every_tensor() -> None:
    model = load(LoadOptions(as_stored=True, blocks="file"))
    before = [w.data_ptr() for w in weights(model)]
    with model.offload_blocks(CPU, BlockOffload(0)):
        forward(model)
    assert [w.data_ptr() for w in weights(model)] == before


def weights(model: Transformer) -> list[torch.Tensor]:
    layers = (m for m in model.transformer_blocks.modules() if isinstance(m, Linear))
    return [layer.weight for layer in layers if layer.weight is not None]


@pytest.mark.parametrize("blocks", [1, 6, 28, 48])
def test_streamed_blocks_are_spread_and_nested(blocks: int) -> None:
    before: set[int] = set()
    for streamed in range(1, blocks + 1):
        chosen = streamed_block_numbers(blocks, streamed)
        assert len(set(chosen)) == streamed
        assert before < set(chosen) <= set(range(blocks))
        before = set(chosen)
        around = itertools.pairwise((*chosen, chosen[0] + blocks))
        gaps = [b - a for a, b in around]
        assert max(gaps) <= 2 * min(gaps) + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pinned", [True, False])
def test_streaming_to_a_gpu_gives_identical_results(pinned: bool) -> None:
    device = torch.device("cuda")
    resident = load_transformer(pocket(), device=device, dtype=torch.bfloat16)
    options = LoadOptions(as_stored=True, blocks="pinned" if pinned else "file")
    streamed = load_transformer(pocket(), device=device, dtype=torch.bfloat16, load=options)
    with streamed.offload_blocks(device, BlockOffload(2, pinned=pinned)):
        got = forward(streamed, device)
    assert all_equal(got, forward(resident, device))

"""Memory and FLOPs of sound: from the headers of audio VAE and vocoder."""

from __future__ import annotations

import pytest
from helpers.goldens import Goldens
from torch.utils.flop_counter import FlopCounterMode

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.memory.sound_cost import sound_activations, sound_flops, sound_sizes
from latent_ladder.models.audio_chunks import chunk_lengths
from latent_ladder.models.audio_vae import snake_beta
from latent_ladder.models.audio_vae.vae import load_audio_vae


@pytest.fixture(scope="module")
def parts(golden: Goldens) -> dict[str, Component]:
    return components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors")))


@pytest.mark.parametrize("latents", [5, 24])
def test_flops_are_those_counted(
    parts: dict[str, Component], latents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU computes: activations with convolutions, context of chunks twice."""
    import torch

    snake = snake_beta.SnakeActivation
    monkeypatch.setattr(snake, "forward", snake._forward_convolutions)
    monkeypatch.setattr("latent_ladder.models.audio_chunks.CHUNK_FRAMES", 80)
    sizes = sound_sizes(parts)
    assert sizes is not None
    vae = load_audio_vae(parts["audio_vae"], parts["vocoder"], device="cpu", parts=("decoder",))
    bands = sizes.vae.mel_bins // 4
    with FlopCounterMode(display=False) as counted:
        vae.decode(torch.randn(1, sizes.vae.latent_channels, latents, bands))
    assert sound_flops(sizes, latents) == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_memory_of_activations_does_not_grow_with_long_sound(parts: dict[str, Component]) -> None:
    sizes = sound_sizes(parts)
    assert sizes is not None
    short, long, longer = (sound_activations(sizes, n) for n in (10, 1000, 10_000))
    assert short < long == longer


def test_no_sizes_without_a_vocoder(parts: dict[str, Component]) -> None:
    assert sound_sizes({"audio_vae": parts["audio_vae"]}) is None


@pytest.mark.parametrize(("count", "lengths"), [(10, [10]), (14, [14]), (25, [12, 14, 7])])
def test_lengths_of_chunks_with_context(count: int, lengths: list[int]) -> None:
    assert chunk_lengths(count, 10, 2) == lengths

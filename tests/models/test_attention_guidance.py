"""NAG, weights of guide tokens, and the order of audio-video attention in a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.goldens import Goldens
from helpers.transformer_inputs import inputs_of
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.models.transformer.attention import NagScales, guide_attention
from latent_ladder.models.transformer.block import TransformerBlock
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.models.transformer.pass_batching import BlockRows, PassSpec, SublayerRows
from latent_ladder.models.transformer.streams import (
    GuideBias,
    Nag,
    StreamInput,
    StreamState,
    attention_bias,
    select_bias,
)

ATOL = 1e-5
Results = Sequence[Tensor | None]


@pytest.fixture(scope="module")
def model(golden: Goldens) -> Transformer:
    file = open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors"))
    return load_transformer(components(file)["transformer"])


def two_prompts(golden: Goldens, model: Transformer) -> tuple[StreamInput, StreamInput]:
    """Streams of a golden case with its prompt and a second one."""
    video, audio = inputs_of(model.config, golden("dit.per_token"))
    assert video is not None and audio is not None
    video, audio = (
        replace(s, prepared=replace(s.prepared, contexts=torch.cat([c, c.flip(1) * 0.5])))
        for s, c in ((s, s.prepared.contexts) for s in (video, audio))
    )
    return video, audio


def with_nag(stream: StreamInput, scales: NagScales, context: int = 1) -> StreamInput:
    prepared = stream.prepared
    nag = Nag(prepared.contexts[context : context + 1], scales)
    return replace(stream, prepared=replace(prepared, nag=nag))


def both(results: Results) -> tuple[Tensor, Tensor]:
    video, audio = results
    assert video is not None and audio is not None
    return video, audio


# --- normalized attention guidance ----------------------------------------------------------------


@pytest.mark.parametrize("tau", [2.5, 1.01])
def test_attention_is_guided_as_in_the_paper(tau: float) -> None:
    """Equations 6 to 9 of arXiv 2505.21179, token by token in float64."""
    rng = np.random.default_rng(3)
    positive, negative = rng.normal(size=(2, 1, 5, 6))
    scale, alpha = 4.0, 0.3
    expected = np.empty_like(positive)
    for i in range(5):
        p, n = positive[0, i], negative[0, i]
        extrapolated = p + (scale - 1) * (p - n)
        ratio = np.abs(extrapolated).sum() / np.abs(p).sum()
        normed = extrapolated * min(ratio, tau) / ratio
        expected[0, i] = alpha * normed + (1 - alpha) * p
    found = guide_attention(
        torch.from_numpy(positive), torch.from_numpy(negative), NagScales(scale, tau, alpha)
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_nag_changes_the_prompt_and_leaves_the_negative_prompt_alone(
    golden: Goldens, model: Transformer
) -> None:
    streams = two_prompts(golden, model)
    specs = [PassSpec(0), PassSpec(1)]
    guided = [with_nag(s, NagScales(11.0)) for s in streams]
    with torch.no_grad():
        plain = both(model(*streams, specs))
        found = both(model(*guided, specs))
        alone = both(model(*guided, [PassSpec(0)]))
    for before, after, one in zip(plain, found, alone, strict=True):
        torch.testing.assert_close(after[1], before[1], rtol=0, atol=ATOL)
        torch.testing.assert_close(after[0], one[0], rtol=0, atol=ATOL)
        assert (after[0] - before[0]).abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("scales", "context"),
    [(NagScales(1.0), 1), (NagScales(9.0), 0), (NagScales(9.0, alpha=0.0), 1)],
)
def test_nag_without_an_effect(
    golden: Goldens, model: Transformer, scales: NagScales, context: int
) -> None:
    """Scale 1, alpha 0 and a negative prompt that equals the prompt change nothing."""
    streams = two_prompts(golden, model)
    guided = [with_nag(s, scales, context) for s in streams]
    with torch.no_grad():
        plain, found = both(model(*streams, [PassSpec(0)])), both(model(*guided, [PassSpec(0)]))
    for before, after in zip(plain, found, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=ATOL)


def test_nag_in_small_chunks(golden: Goldens, model: Transformer) -> None:
    streams = [with_nag(s, NagScales(5.0, modulated=False)) for s in two_prompts(golden, model)]
    with torch.no_grad():
        whole = both(model(*streams, [PassSpec(0), PassSpec(1)]))
        model.set_chunk_tokens(7)
        chunked = both(model(*streams, [PassSpec(0), PassSpec(1)]))
    model.set_chunk_tokens(1024)
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ATOL)


# --- weights of guide tokens ----------------------------------------------------------------------


def test_guide_bias_is_that_of_a_full_matrix() -> None:
    """Clip and guide attend to each other with the guide's weight, within each without."""
    weights = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0, 2.0])
    guide = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    full = torch.ones(6, 6)
    for i in range(6):
        for j in range(6):
            if guide[i] != guide[j]:
                full[i, j] = weights[i] if guide[i] else weights[j]
    bias = GuideBias.of_weights(weights, guide)
    expected = attention_bias(full[None])
    assert torch.equal(bias.rows(slice(0, 6)), expected)
    assert torch.equal(bias.rows(slice(2, 5)), expected[:, :, 2:5])
    index = torch.tensor([4, 0, 3])
    part, whole = select_bias(bias, index), select_bias(expected, index)
    assert isinstance(part, GuideBias) and isinstance(whole, Tensor)
    assert torch.equal(part.rows(slice(0, 3)), whole)


def test_guide_bias_in_the_transformer(golden: Goldens, model: Transformer) -> None:
    video, audio = two_prompts(golden, model)
    n = video.tokens.shape[1]
    guide = (torch.arange(n) >= n - 24).float()
    bias = GuideBias.of_weights(torch.where(guide > 0, 0.4, 1.0), guide)
    with torch.no_grad():
        found, expected = (
            both(
                model(
                    replace(video, prepared=replace(video.prepared, bias=b)), audio, [PassSpec(0)]
                )
            )
            for b in (bias, bias.rows(slice(0, n)))
        )
        plain = both(model(video, audio, [PassSpec(0)]))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ATOL)
    assert (found[0] - plain[0]).abs().mean() > 1e-4


# --- order of audio-video attention ---------------------------------------------------------------


def test_the_audio_attends_to_the_updated_video(golden: Goldens, model: Transformer) -> None:
    """Both attentions of a block one after the other on states that are set up by hand."""
    states: list[tuple[TransformerBlock, StreamState, StreamState, BlockRows]] = []
    original = TransformerBlock._cross_attention

    def record(
        block: TransformerBlock, v: StreamState, a: StreamState, rows: BlockRows, _: bool
    ) -> None:
        states.append((block, v, a, rows))

    try:
        TransformerBlock._cross_attention = record  # type: ignore[method-assign, assignment]
        with torch.no_grad():
            model(*two_prompts(golden, model), [PassSpec(0)])
    finally:
        TransformerBlock._cross_attention = original  # type: ignore[method-assign]
    block, video, audio, rows = states[0]

    def run(v: Tensor, a: Tensor, only: str, updated: bool) -> tuple[Tensor, Tensor]:
        own = replace(video, x=v.clone()), replace(audio, x=a.clone())
        parts = rows._replace(**{name: None for name in ("a2v", "v2a") if only and name != only})
        with torch.no_grad():
            original(block, *own, parts, updated)
        return own[0].x, own[1].x

    first_video, _ = run(video.x, audio.x, "a2v", False)
    _, expected = run(first_video, audio.x, "v2a", False)
    _, before = run(video.x, audio.x, "v2a", False)
    now_video, now_audio = run(video.x, audio.x, "", True)
    official_video, official_audio = run(video.x, audio.x, "", False)
    assert torch.equal(now_video, first_video) and torch.equal(official_video, first_video)
    torch.testing.assert_close(now_audio, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(official_audio, before, rtol=0, atol=1e-6)
    assert (now_audio - official_audio).abs().max() > 1e-4
    assert isinstance(rows.a2v, SublayerRows)


def test_passes_with_the_updated_video_equal_passes_alone(
    golden: Goldens, model: Transformer
) -> None:
    streams = two_prompts(golden, model)
    stg = PassSpec(0, stg_video=frozenset({1}), stg_audio=frozenset({1}))
    specs = [stg, PassSpec(0), PassSpec(0, isolated=True), PassSpec(1)]
    with torch.no_grad():
        together = both(model(*streams, specs, updated_video=True))
        official = both(model(*streams, specs))
        for k, spec in enumerate(specs):
            alone = both(model(*streams, [spec], updated_video=True))
            for many, one in zip(together, alone, strict=True):
                torch.testing.assert_close(many[k], one[0], rtol=0, atol=ATOL)
    torch.testing.assert_close(together[0][2], official[0][2], rtol=0, atol=ATOL)
    assert (together[1][1] - official[1][1]).abs().mean() > 1e-4

"""Latents and tokens: the two layouts of a clip, and the conversions between them.

The VAEs use latents, video ``(B, C, F, H, W)`` and audio ``(B, C, T, M)``; the transformer uses
tokens, ``(B, N, D)``. A video token is one latent pixel, in frame, row, column order with D = C; an
audio token is one time step with D = C*M, channel-major. This module knows no model, no noise and
no pixel, and changes no value.

>>> import torch
>>> tokens = video_to_tokens(torch.zeros(1, 8, 5, 4, 6))
>>> tuple(tokens.shape), tuple(tokens_to_video(tokens, 5, 4, 6).shape)
((1, 120, 8), (1, 8, 5, 4, 6))
"""

from __future__ import annotations

from torch import Tensor


def video_to_tokens(latents: Tensor) -> Tensor:
    """``(B, C, F, H, W)`` -> ``(B, F*H*W, C)``."""
    return latents.flatten(2).transpose(1, 2).contiguous()


def tokens_to_video(tokens: Tensor, frames: int, height: int, width: int) -> Tensor:
    """``(B, N, C)`` -> ``(B, C, F, H, W)``, sizes in latent units.

    Tokens beyond F*H*W (appended keyframes or references) are dropped; fewer raise ``ValueError``.
    """
    n = frames * height * width
    if tokens.shape[1] < n:
        raise ValueError(
            f"{tokens.shape[1]} video tokens, expected at least {frames}x{height}x{width} = {n}"
        )
    b, _, c = tokens.shape
    return tokens[:, :n].transpose(1, 2).reshape(b, c, frames, height, width)


def audio_to_tokens(latents: Tensor) -> Tensor:
    """``(B, C, T, M)`` -> ``(B, T, C*M)``."""
    return latents.transpose(1, 2).flatten(2).contiguous()


def tokens_to_audio(tokens: Tensor, channels: int) -> Tensor:
    """``(B, T, C*M)`` -> ``(B, C, T, M)``; C must divide the token width."""
    b, t, width = tokens.shape
    if width % channels:
        raise ValueError(f"audio tokens are {width} wide, not a multiple of {channels}")
    return tokens.reshape(b, t, channels, width // channels).transpose(1, 2).contiguous()

"""Previews of latents: a linear projection to RGB, a tiny decoder, or the real decoder.

The projection is fitted to the model's own VAE by least squares: a few small synthetic clips are
encoded and decoded again, and the decoded frames, averaged over blocks of 4x4 pixels, are predicted
from the one latent that covers them. It is exact enough to judge motion and composition and costs
one small matrix product per latent frame. This module does not know requests.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import CheckpointNotFound, RequestError
from latent_ladder.media.contact_sheet import resize_frames
from latent_ladder.models.device import compute_dtype
from latent_ladder.models.video_vae.taehv import (
    frames_to_uint8,
    load_tiny_decoder,
    tiny_decoder_channels,
)
from latent_ladder.models.video_vae.vae import VideoVae, decode_bands, decode_video, load_video_vae
from latent_ladder.storage.artifact_store import Store, artefact_key
from latent_ladder.storage.atomic_write import write_atomically

KINDS = ("rgb", "tae", "full")
"""Kinds of previews: projection, tiny decoder, real decoder."""

BLOCK_PX = 4
"""Side of the square of pixels that one pixel of a projected preview stands for."""

FIT_CLIPS, FIT_FRAMES, FIT_PX = 12, 17, 128
RIDGE = 1e-3
"""Share of a latent's variance (1) that is added to the normal equations' diagonal."""

VERSION = 1
"""Raise it when the fit gives another projection for the same VAE."""

STRIP_FRAMES = 4
LEAST_HEIGHT_PX = 128
EVERY_S = 2.0
SHARE = 0.05

Frames = Iterator[NDArray[np.uint8]]


@dataclass(frozen=True)
class Projection:
    """RGB = [latent, 1] W; ``first`` (C + 1, 3 k k) for the latent frame that holds one frame.

    ``rest`` (C + 1, t 3 k k) is for all others, of ``t`` frames each; k x k pixels per latent.
    """

    first: Tensor
    rest: Tensor

    @cached_property
    def side(self) -> int:
        """k, the pixels along a side of one latent."""
        return math.isqrt(self.first.shape[1] // 3)

    def stream(self, latents: Tensor) -> Frames:
        """Normalised latents (1, C, F, H, W) -> frames (n, k H, k W, 3), 8 (F - 1) + 1 in all."""
        for i, frame in enumerate(latents[0].float().transpose(0, 1)):
            yield frames_to_uint8(self._pixels(frame, self.rest if i else self.first))

    def strip(self, latents: Tensor, count: int = STRIP_FRAMES) -> NDArray[np.uint8]:
        """At most ``count`` frames spread over the clip, side by side: (k H, n k W, 3)."""
        last = latents.shape[2] - 1
        chosen = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
        one = self.first.shape[1]
        ends = self.rest[:, -one:]  # only the last frame of each latent frame
        frames = [self._pixels(latents[0, :, i].float(), ends if i else self.first) for i in chosen]
        strip: NDArray[np.uint8] = frames_to_uint8(torch.cat(frames, 3))[0]
        return strip

    def _pixels(self, frame: Tensor, weights: Tensor) -> Tensor:
        """(C, H, W) -> (n, 3, k H, k W) in 0..1."""
        channels, height, width = frame.shape
        if channels + 1 != len(weights):
            raise RequestError(f"latents of {channels} channels, not {len(weights) - 1}")
        found = frame.permute(1, 2, 0) @ weights[:-1].to(frame) + weights[-1].to(frame)
        planes = found.reshape(height, width, -1, 3 * self.side**2).permute(2, 3, 0, 1)
        return F.pixel_shuffle(planes, self.side).add(1).div(2)


# --- fitting ------------------------------------------------------------------------------------


def load_projection(vae: Component, store: Store) -> Projection:
    """The projection of a video VAE: from the store, else fitted on the CPU and stored."""
    key = projection_key(vae)
    found = store.get(key)
    if found is not None:
        return Projection(**found.load())
    fitted = fit(vae)
    store.try_put(key, {"first": fitted.first, "rest": fitted.rest}, {"stage": "projection"})
    return fitted


def projection_key(vae: Component) -> str:
    """The artefact key of a VAE's projection."""
    return artefact_key("projection", VERSION, {"block_px": BLOCK_PX}, (), (vae.id,))


def fit(vae: Component, clips: int = FIT_CLIPS) -> Projection:
    """Fit decoded pixels to latents by least squares with a small ridge; deterministic."""
    coder = load_video_vae(vae, device="cpu", dtype=torch.float32)
    first, rest = _Sums(), _Sums()
    for seed in range(clips):
        latents, frames = sample_clip(coder, seed)
        inputs = _with_one(latents[0])
        first.add(inputs[:1], _blocks(frames[:1], coder, 1))
        rest.add(inputs[1:], _blocks(frames[1:], coder, coder.config.temporal_scale))
    return Projection(first.solve(), rest.solve())


def sample_clip(coder: VideoVae, seed: int) -> tuple[Tensor, Tensor]:
    """Latents (1, C, F, H, W) of a synthetic clip and their decoded frames (n, 3, H, W), -1..1."""
    latents = coder.encode(synthetic_clip(seed, FIT_PX))
    bands = [band.clone() for band in decode_bands(latents, coder)]
    return latents, torch.cat(bands, 1).transpose(0, 1).clamp(-1, 1)


def synthetic_clip(seed: int, side: int) -> NDArray[np.uint8]:
    """Moving shapes over a coloured gradient with waves, (17, side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    angle = rng.random() * 2 * np.pi
    slope = ((x * np.cos(angle) + y * np.sin(angle)) * 0.7 + 0.15)[..., None]
    ends, tint, waves = rng.random((2, 3)), rng.random(3) * 0.15, rng.random(2) * 10
    shapes = [
        (rng.random(3), rng.random(2), (rng.random(2) - 0.5) * 0.03, 0.08 + 0.2 * rng.random(), i)
        for i in range(3)
    ]
    frames = []
    for frame in range(FIT_FRAMES):
        wave = np.sin((waves[0] * x + waves[1] * y) * 2 * np.pi + frame * 0.2)[..., None]
        picture = ends[0] + (ends[1] - ends[0]) * slope + tint * wave
        for colour, start, speed, size, kind in shapes:
            dx, dy = x - start[0] - speed[0] * frame, y - start[1] - speed[1] * frame
            near = np.hypot(dx, dy) if kind % 2 else np.maximum(abs(dx), abs(dy))
            picture = np.where((near < size)[..., None], colour, picture)
        frames.append(picture)
    return (np.stack(frames).clip(0, 1) * 255).astype(np.uint8)


class _Sums:
    """Sums of the normal equations over several clips."""

    def __init__(self) -> None:
        self._xx: Tensor | float = 0.0
        self._xy: Tensor | float = 0.0
        self._count = 0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add rows of both, of any leading shape."""
        x, y = (t.reshape(-1, t.shape[-1]).double() for t in (inputs, targets))
        self._xx, self._xy, self._count = (
            self._xx + x.T @ x,
            self._xy + x.T @ y,
            self._count + len(x),
        )

    def solve(self) -> Tensor:
        """W of the system x W = y."""
        if isinstance(self._xx, float) or isinstance(self._xy, float):
            raise ValueError("nothing was added")
        ridge = RIDGE * self._count * torch.eye(len(self._xx), dtype=torch.float64)
        found: Tensor = torch.linalg.solve(self._xx + ridge, self._xy).float()
        return found


def _with_one(latents: Tensor) -> Tensor:
    """(C, F, H, W) -> (F, H, W, C + 1)."""
    return F.pad(latents, (0, 0, 0, 0, 0, 0, 0, 1), value=1.0).permute(1, 2, 3, 0)


def _blocks(frames: Tensor, vae: VideoVae, group: int) -> Tensor:
    """(n group, 3, H, W) -> (n, H / 32, W / 32, group 3 k k): the pixels of each latent."""
    side = vae.config.spatial_scale // BLOCK_PX
    small = F.pixel_unshuffle(F.avg_pool2d(frames.float(), BLOCK_PX), side)
    return small.reshape(-1, group * small.shape[1], *small.shape[2:]).permute(0, 2, 3, 1)


# --- decoding for a preview ---------------------------------------------------------------------


def preview_frames(
    latents: Tensor,
    vae: Component,
    kind: str = "rgb",
    *,
    store: Store,
    tiny: Component | None = None,
) -> NDArray[np.uint8]:
    """Normalised latents (1, C, F, H, W) -> frames (n, H', W', 3); the size depends on ``kind``.

    On the latents' device. Raises what :func:`preview_stream` raises.
    """
    return np.concatenate(list(preview_stream(kind, vae, store, tiny, latents.device)(latents)))


def preview_stream(
    kind: str,
    vae: Component,
    store: Store,
    tiny: Component | None = None,
    device: torch.device | str = "cpu",
) -> Callable[[Tensor], Frames]:
    """Function from latents to chunks of frames (n, H, W, 3), loaded once for many clips.

    Decoders compute in the dtype of the networks on that device. Raises :class:`RequestError` for
    an unknown kind, :class:`CheckpointNotFound` for ``"tae"`` without its file.
    """
    check_kind(kind, tiny)
    if kind == "rgb":
        return load_projection(vae, store).stream
    dtype = compute_dtype(torch.device(device))
    if kind == "tae" and tiny is not None:
        return load_tiny_decoder(tiny, device=device, dtype=dtype).stream
    decoder = load_video_vae(vae, device=device, dtype=dtype, parts=("decoder",))
    return lambda latents: decode_video(latents.to(device), decoder)


def check_kind(kind: str, tiny: Component | None) -> None:
    """Raise an error for a kind of preview that cannot be made. Loads nothing."""
    if kind not in KINDS:
        raise RequestError(f"preview={kind} is unknown", f"use one of {', '.join(KINDS)}")
    if kind == "tae" and tiny is None:
        raise CheckpointNotFound(
            "no preview decoder that fits the video VAE was found",
            "put taeltx2_3.safetensors into models/vae_approx/, or use --preview rgb",
        )


def find_tiny_decoder(candidates: list[Component], vae: Component) -> Component | None:
    """The first preview decoder that takes as many channels as the video VAE's latents have."""
    channels = vae.shape("per_channel_statistics.mean-of-means")[0]
    return next((c for c in candidates if tiny_decoder_channels(c) == channels), None)


# --- during a run -------------------------------------------------------------------------------


class LivePreview:
    """Writes a strip of the current estimate to a PNG file, at most every two seconds.

    Previews take at most a twentieth of the time of the run: after a slow one the next is later.
    """

    def __init__(
        self, path: Path, to_rgb: Projection, on_saved: Callable[[str, int], None]
    ) -> None:
        self._path, self._to_rgb, self._on_saved = path, to_rgb, on_saved
        self._due = 0.0

    def update(self, stage: str, step: int, estimate: Callable[[], Tensor]) -> None:
        """Write a preview if one is due; ``estimate()`` computes latents (1, C, F, H, W)."""
        began = time.monotonic()
        if began < self._due:
            return
        picture = enlarge(self._to_rgb.strip(estimate()))
        with suppress(OSError):  # a preview is no reason to end a run
            write_atomically(self._path, png(picture))
            self._on_saved(stage, step)
        spent = time.monotonic() - began
        self._due = began + max(EVERY_S, spent / SHARE)


def enlarge(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A strip enlarged by a whole factor to a visible height; small canvases have few latents."""
    height, width, _ = picture.shape
    times = max(LEAST_HEIGHT_PX // height, 1)
    enlarge: NDArray[np.uint8] = resize_frames(picture[None], (width * times, height * times))[0]
    return enlarge


def png(picture: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) -> the bytes of a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()

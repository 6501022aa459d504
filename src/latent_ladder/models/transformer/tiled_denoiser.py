"""Denoising a canvas beyond the model's positions: one step is predicted in overlapping tiles.

Rotary attention sees only differences of positions, so what must stay within the 2048 pixels that
the family was trained on is the extent of what attends to each other, not the place of a tile in
the picture. Each tile therefore has its tokens at their true distances, counted from its own
corner, as in the official HDR pipeline (``normalize_positions``), and in time from the clip's
beginning. Unlike there, tiles are not denoised to the end one by one: all see the same x at every
step and their x0 predictions are blended by ramps that sum to 1, so neighbours cannot drift apart
(MultiDiffusion, Bar-Tal et al. 2023).

Sound has no place in the picture. It takes part in every tile, which hears it and is heard, and
its prediction is the mean of the tiles' ones, each weighted by its share of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_ladder.latents.shapes import PIXELS_PER_LATENT
from latent_ladder.latents.tiling import Span, TilePlan, Weights, spatial_weights
from latent_ladder.models.transformer.denoiser import Denoiser, Last, StreamRun
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.sampling.denoise import Packing
from latent_ladder.sampling.samplers import Prediction

ROWS, COLS = 1, 2
"""The position axes of a picture's rows and columns; axis 0 is time."""


@dataclass(frozen=True)
class TokenTile:
    """The video tokens of one tile: their ``index`` (n,), ``weight`` (n, 1) and ``corner`` (y, x)
    in pixels."""

    index: Tensor
    weight: Tensor
    corner: tuple[int, int]

    def of(self, run: StreamRun) -> StreamRun:
        """The tile's part of the video stream, positions counted from its corner."""
        i = self.index
        y, x = self.corner
        corner = run.positions.new_tensor([0, y, x])[:, None, None]
        bias = None if run.bias is None else run.bias[:, :, i][:, :, :, i]
        return replace(
            run,
            positions=run.positions[:, :, i] - corner,
            mask=None if run.mask is None else run.mask[:, i],
            marked=None if run.marked is None else run.marked[:, i],
            bias=bias,
        )


def token_tiles(positions: Tensor, plan: TilePlan) -> list[TokenTile]:
    """The tokens at ``positions`` (1, 3, N, 2) by tile, rows outermost.

    A token belongs to the tiles that its centre lies in, so guide tokens behind the clip (a
    keyframe, a reference with larger steps) go with the part of the picture that they show.
    The weights of a token sum to 1 over its tiles.
    """
    centres = positions[0].mean(-1)
    rows, cols = (
        list(_along(centres[axis], spans)) for axis, spans in ((ROWS, plan.rows), (COLS, plan.cols))
    )
    tiles = []
    for row, (in_row, row_weight) in zip(plan.rows, rows, strict=True):
        for col, (in_col, col_weight) in zip(plan.cols, cols, strict=True):
            index = (in_row & in_col).nonzero()[:, 0]
            weight = (row_weight * col_weight)[index, None]
            corner = row.start * PIXELS_PER_LATENT, col.start * PIXELS_PER_LATENT
            tiles.append(TokenTile(index, weight, corner))
    return tiles


def _along(centres: Tensor, spans: Sequence[Span]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each span of an axis: which tokens are in it, and every token's weight there."""
    cells = (centres / PIXELS_PER_LATENT).floor().long().clamp(0, spans[-1].stop - 1)
    ramps: tuple[Weights, ...] = spatial_weights(spans, 1)
    for span, ramp in zip(spans, ramps, strict=True):
        whole = torch.zeros(spans[-1].stop, device=centres.device)
        whole[span.start : span.stop] = torch.tensor(ramp, device=centres.device)
        yield (cells >= span.start) & (cells < span.stop), whole[cells]


class _Blend:
    """A sum of weighted predictions, packed at the end."""

    def __init__(self, video: Tensor, audio: Tensor | None) -> None:
        self._video = torch.zeros_like(video)
        self._audio = None if audio is None else torch.zeros_like(audio)

    def add(self, tile: TokenTile, share: float, video: Tensor, audio: Tensor | None) -> None:
        """Add a tile's tokens by their ramps, and the sound by the tile's share."""
        self._video[:, tile.index] += video * tile.weight
        if self._audio is not None and audio is not None:
            self._audio += audio * share

    def packed(self, packing: Packing) -> Tensor:
        return packing.pack(self._video, self._audio)


class TiledDenoiser:
    """A :data:`~latent_ladder.sampling.samplers.Model` of one stage, predicted tile by tile.

    Takes what :class:`Denoiser` takes, and the ``plan`` of the tiles, in latents. Guidance is
    combined in each tile. With a plan of one tile it gives what :class:`Denoiser` gives. Nothing
    but the last predictions is kept between tiles: memory is that of the largest tile, beside the
    latents of the whole.
    """

    def __init__(
        self,
        transformer: Transformer,
        video: StreamRun,
        audio: StreamRun | None,
        plan: TilePlan,
        *,
        force_uncond: bool = False,
        max_passes: int | None = None,
    ) -> None:
        self._transformer, self._video, self._audio = transformer, video, audio
        self._options = (force_uncond, max_passes)
        self.tiles = token_tiles(video.positions, plan)
        self._last: list[Last] = [(None, None)] * len(self.tiles)
        config = transformer.config
        self.packing = Packing(
            (video.positions.shape[2], config.video.in_channels),
            None if audio is None else (audio.positions.shape[2], config.audio.in_channels),
        )

    @torch.inference_mode()
    def __call__(self, x: Tensor, sigma: float, step: int) -> Prediction:
        """Guided x0 of packed x (B, n) float32, and that of the negative prompt if it was run."""
        video, audio = self.packing.unpack(x.float())
        if video is None:
            raise TypeError("tiles are parts of a picture, and there is none")
        denoised, uncond = _Blend(video, audio), _Blend(video, audio)
        guided = True
        for number, tile in enumerate(self.tiles):
            denoiser = self._denoiser(number)
            found = denoiser(denoiser.packing.pack(video[:, tile.index], audio), sigma, step)
            self._last[number] = denoiser.last
            share = tile.weight.sum().item() / video.shape[1]
            _add(denoised, tile, share, denoiser.packing.unpack(found.denoised))
            if found.uncond is None:
                guided = False
            else:
                _add(uncond, tile, share, denoiser.packing.unpack(found.uncond))
        return Prediction(
            denoised.packed(self.packing), uncond.packed(self.packing) if guided else None
        )

    def _denoiser(self, number: int) -> Denoiser:
        """Made anew for each step: its rotation tables are as large as the tile's residuals."""
        force_uncond, max_passes = self._options
        denoiser = Denoiser(
            self._transformer,
            self.tiles[number].of(self._video),
            self._audio,
            force_uncond=force_uncond,
            max_passes=max_passes,
        )
        denoiser.last = self._last[number]
        return denoiser


def _add(
    blend: _Blend, tile: TokenTile, share: float, tokens: tuple[Tensor | None, Tensor | None]
) -> None:
    video, audio = tokens
    if video is not None:
        blend.add(tile, share, video, audio)

"""Tiled denoiser: each step of a frame larger than the trained positions is predicted in tiles.

The family was trained on positions up to 2048 pixels. RoPE attention depends only on differences
of positions, so tokens that attend to each other must lie within 2048 pixels, wherever the tile
is in the frame. Each tile therefore counts positions from its own corner, as the official HDR
pipeline does (``normalize_positions``), and time from the start of the clip. Unlike there, tiles
are not denoised to the end one after the other: all tiles see the same x at every step, and their
x0 predictions are blended with ramps that sum to 1, so neighbouring tiles stay consistent
(MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113).

Audio has no position in the frame: all audio tokens take part in every tile, and the audio
prediction is the mean over tiles, weighted by each tile's share of the frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_ladder.latents.shapes import PIXELS_PER_LATENT
from latent_ladder.latents.tiling import Span, TilePlan, Weights, spatial_weights
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream, LastPredictions
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.streams import select_bias
from latent_ladder.sampling.denoise import Packing
from latent_ladder.sampling.samplers import Prediction

ROWS, COLS = 1, 2
"""Position axes of pixel rows and columns; axis 0 is time."""


@dataclass(frozen=True)
class TokenTile:
    """Video tokens of one tile: ``index`` (n,), ``weight`` (n, 1), ``corner`` (y, x) in pixels."""

    index: Tensor
    weight: Tensor
    corner: tuple[int, int]

    def crop(self, stream: DenoiserStream) -> DenoiserStream:
        """Select the tile's tokens of a video stream; positions count from the tile's corner."""
        i = self.index
        y, x = self.corner
        corner = stream.positions.new_tensor([0, y, x])[:, None, None]
        return replace(
            stream,
            positions=stream.positions[:, :, i] - corner,
            mask=None if stream.mask is None else stream.mask[:, i],
            keyframe_mask=None if stream.keyframe_mask is None else stream.keyframe_mask[:, i],
            bias=select_bias(stream.bias, i),
        )


def token_tiles(positions: Tensor, plan: TilePlan) -> list[TokenTile]:
    """Assign the tokens at ``positions`` (1, 3, N, 2) to the tiles of ``plan``, row by row.

    A token belongs to all tiles that contain its centre, so conditioning tokens appended to the
    clip (a keyframe, a reference with coarser positions) go to the tiles that show the same part
    of the frame. The weights of a token sum to 1 over its tiles.
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
    """For each span of an axis, yield a mask of the tokens inside and the tokens' weights, (N,)."""
    cells = (centres / PIXELS_PER_LATENT).floor().long().clamp(0, spans[-1].stop - 1)
    ramps: tuple[Weights, ...] = spatial_weights(spans, 1)
    for span, ramp in zip(spans, ramps, strict=True):
        whole = torch.zeros(spans[-1].stop, device=centres.device)
        whole[span.start : span.stop] = torch.tensor(ramp, device=centres.device)
        yield (cells >= span.start) & (cells < span.stop), whole[cells]


class _Blend:
    """Weighted sum of the tiles' predictions."""

    def __init__(self, video: Tensor, audio: Tensor | None) -> None:
        self._video = torch.zeros_like(video)
        self._audio = None if audio is None else torch.zeros_like(audio)

    def add(self, tile: TokenTile, share: float, video: Tensor, audio: Tensor | None) -> None:
        """Add a tile's video tokens with their ramps, and the audio times ``share``."""
        self._video[:, tile.index] += video * tile.weight
        if self._audio is not None and audio is not None:
            self._audio += audio * share

    def pack(self, packing: Packing) -> Tensor:
        """Pack the sum as (B, n)."""
        return packing.pack(self._video, self._audio)


class TiledDenoiser:
    """Model (:data:`~latent_ladder.sampling.samplers.Model`) that predicts each step in tiles.

    Arguments are those of :class:`Denoiser`, and the tile ``plan`` in latents. Guidance is
    combined in each tile. A plan of one tile gives the same result as :class:`Denoiser`. Only the
    last predictions are stored between tiles, so memory is that of the largest tile plus the
    latents of the whole frame.
    """

    def __init__(
        self,
        transformer: Transformer,
        video: DenoiserStream,
        audio: DenoiserStream | None,
        plan: TilePlan,
        *,
        force_uncond: bool = False,
        max_passes: int | None = None,
        updated_video: bool = False,
    ) -> None:
        self._transformer, self._video, self._audio = transformer, video, audio
        self._options = (force_uncond, max_passes, updated_video)
        self.tiles = token_tiles(video.positions, plan)
        self._last_predictions: list[LastPredictions] = [(None, None)] * len(self.tiles)
        config = transformer.config
        self.packing = Packing(
            (video.positions.shape[2], config.video.in_channels),
            None if audio is None else (audio.positions.shape[2], config.audio.in_channels),
        )

    @torch.inference_mode()
    def __call__(self, x: Tensor, sigma: float, step: int) -> Prediction:
        """Predict the guided x0 of packed ``x`` (B, n), float32; see :meth:`Denoiser.__call__`.

        Raises ``TypeError`` if there is no video stream.
        """
        video, audio = self.packing.unpack(x.float())
        if video is None:
            raise TypeError("tiled denoising needs a video stream, got audio only")
        denoised, uncond = _Blend(video, audio), _Blend(video, audio)
        has_uncond = True
        for number, tile in enumerate(self.tiles):
            denoiser = self._denoiser(number)
            tile_x = denoiser.packing.pack(video[:, tile.index], audio)
            prediction = denoiser(tile_x, sigma, step)
            self._last_predictions[number] = denoiser.last_predictions
            share = tile.weight.sum().item() / video.shape[1]
            _add(denoised, tile, share, denoiser.packing.unpack(prediction.denoised))
            if prediction.uncond is None:
                has_uncond = False
            else:
                _add(uncond, tile, share, denoiser.packing.unpack(prediction.uncond))
        return Prediction(
            denoised.pack(self.packing), uncond.pack(self.packing) if has_uncond else None
        )

    def _denoiser(self, number: int) -> Denoiser:
        """Create the denoiser of a tile.

        Created again for each step: its rotation tables are as large as the tile's residuals.
        """
        force_uncond, max_passes, updated_video = self._options
        denoiser = Denoiser(
            self._transformer,
            self.tiles[number].crop(self._video),
            self._audio,
            force_uncond=force_uncond,
            max_passes=max_passes,
            updated_video=updated_video,
        )
        denoiser.last_predictions = self._last_predictions[number]
        return denoiser


def _add(
    blend: _Blend, tile: TokenTile, share: float, tokens: tuple[Tensor | None, Tensor | None]
) -> None:
    video, audio = tokens
    if video is not None:
        blend.add(tile, share, video, audio)

"""``LTXVLoopingSampler``: sampling of a long clip in overlapping spans of time.

It behaves as the looping, base, extend and in-context samplers of ComfyUI-LTXVideo. A span after
the first is sampled with the last latents of the clip so far as a guide at its start; its own first
latent frame, which represents one frame only, is dropped, and the rest is cross-faded with the
clip. Spatial tiles, if any, are sampled one after another and blended at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.decoding import encode_images
from latent_ladder.comfyui.nodes.denoise import denoise
from latent_ladder.comfyui.nodes.guides import Guide, GuidedLatent, guide_start_frame
from latent_ladder.comfyui.nodes.images import compress_frames
from latent_ladder.comfyui.nodes.latent_statistics import adain
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.resize import resize_frames
from latent_ladder.comfyui.nodes.sampling_tokens import SamplingJob
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    Guider,
    Images,
    Latent,
    Model,
    Noise,
    Sampler,
    SigmaList,
    Value,
    VideoVaeFile,
)
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from latent_ladder.latents.tiling import spans_by_count

FIRST_CRF = 30
"""Compression of an image that becomes the first frame."""


@dataclass(frozen=True)
class SpatialTile:
    """A spatial tile: its rows and columns in the latent, and its indices in the tile grid."""

    rows: slice
    cols: slice
    row: int
    col: int

    def crop(self, latents: Tensor) -> Tensor:
        """Return the part of latents (B, C, F, H, W) in the tile."""
        return latents[:, :, :, self.rows, self.cols]


def sample_in_spans(ctx: NodeContext) -> list[Value]:
    """``LTXVLoopingSampler``: latents sampled in spans of time and tiles of space."""
    latent = ctx.get("latents", Latent)
    if latent.video is None or latent.audio is not None:
        raise ctx.error("latents is not a video latent", "sample the audio separately")
    down, across = ctx.integer("vertical_tiles"), ctx.integer("horizontal_tiles")
    overlap = ctx.integer("spatial_overlap")
    height, width = latent.video.shape[3:]
    total = weights = None
    for tile in _spatial_tiles(height, width, down, across, overlap):
        sampled = _SpanSampler(ctx, latent.video, tile, down * across, across).run()
        weight = _tile_weight(tile, sampled, (down, across), overlap)
        if total is None or weights is None:
            size = (*sampled.shape[:3], height, width)
            total, weights = torch.zeros(size), torch.zeros(size)
        total[:, :, :, tile.rows, tile.cols] += sampled * weight
        weights[:, :, :, tile.rows, tile.cols] += weight
    if total is None or weights is None:
        raise TypeError("there are no tiles")
    return [Latent(video=total / (weights + 1e-8))]


def _spatial_tiles(
    height: int, width: int, down: int, across: int, overlap: int
) -> list[SpatialTile]:
    rows, cols = _split_side(height, down, overlap), _split_side(width, across, overlap)
    return [SpatialTile(r, c, i, j) for i, r in enumerate(rows) for j, c in enumerate(cols)]


def _split_side(length: int, count: int, overlap: int) -> list[slice]:
    return [slice(span.start, span.stop) for span in spans_by_count(length, count, overlap)]


def _tile_weight(tile: SpatialTile, like: Tensor, tiles: tuple[int, int], overlap: int) -> Tensor:
    """Return the blend weights of a tile, with ramps from 0 to 1 over its overlaps."""
    weight = torch.ones(like.shape[3:])
    ramp = torch.linspace(0, 1, overlap)
    if tile.col > 0:
        weight[:, :overlap] *= ramp
    if tile.col < tiles[1] - 1:
        weight[:, -overlap:] *= ramp.flip(0)
    if tile.row > 0:
        weight[:overlap] *= ramp[:, None]
    if tile.row < tiles[0] - 1:
        weight[-overlap:] *= ramp.flip(0)[:, None]
    return weight


class _SpanSampler:
    """Sampler of all spans of one tile."""

    def __init__(
        self, ctx: NodeContext, video: Tensor, tile: SpatialTile, tiles: int, across: int
    ) -> None:
        self._ctx, self._tile = ctx, tile
        self._video = tile.crop(video)
        self._length = ctx.integer("temporal_tile_size") // FRAMES_PER_LATENT
        self._overlap = ctx.integer("temporal_overlap") // FRAMES_PER_LATENT
        self._guider = ctx.get("guider", Guider)
        self._tile_count, self._tile_number = tiles, tile.row * across + tile.col
        self._guiding, self._stride = self._read_guiding_latents(video)
        self._keyframes = _keyframes_by_span(ctx, video.shape[2], self._length, self._overlap)
        if self._overlap >= self._length:
            raise ctx.error("temporal_overlap is not shorter than temporal_tile_size")
        if self._guider.negative is None:
            raise ctx.error("the guider has no negative prompt", "use STGGuiderAdvanced")

    def run(self) -> Tensor:
        step, frames = self._length - self._overlap, self._video.shape[2]
        starts = range(0, frames + step, step)
        ends = range(self._length, frames + step, step)
        clip: Tensor | None = None
        first: Tensor | None = None
        for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
            span = slice(start, min(end, frames))
            if clip is None:
                clip = first = self._sample_first(span, number)
            else:
                clip = self._sample_next(clip, span, number, first)
        if clip is None:
            raise TypeError("there are no spans")
        return clip

    # -- one span -----------------------------------------------------------------------------

    def _sample_first(self, span: slice, number: int) -> Tensor:
        latent = Latent(video=self._video[:, :, span])
        guiding = self._guiding_span(span)
        guided = self._make_input(latent)
        keyframes = self._keyframes.get(number, [])
        first_mask = None
        if guiding is None:
            guided, first_mask = self._replace_first_frame(guided, keyframes)
        before, during, after = self._split_sigmas()
        if guiding is not None:
            if len(before) > 1:
                guided = self._sample(guided, before, span.start)
            skipped = int(any(frame == 0 for frame, _ in keyframes))
            guided = guided.with_guide(self._make_guide(guiding[:, :, skipped:], skipped))
        guided = self._add_keyframes(guided, keyframes, include_first=guiding is not None)
        guided = self._add_context(guided)
        guided = self._sample(guided, during, span.start).without_guides()
        guided = replace(guided, latent=replace(guided.latent, video_mask=first_mask))
        if len(after) > 1:
            guided = self._sample(guided, after, span.start)
        return _video_tensor(guided)

    def _sample_next(self, clip: Tensor, span: slice, number: int, first: Tensor | None) -> Tensor:
        ctx, overlap = self._ctx, self._overlap
        strength = ctx.number("temporal_overlap_cond_strength")
        context = Guide(clip[:, :, -overlap:], 0, strength, single_first_frame=True)
        keyframes = self._keyframes.get(number, [])
        before, during, after = self._split_sigmas()
        guided = self._make_input(Latent(video=self._video[:, :, span])).with_guide(context)
        guided = self._add_keyframes(guided, keyframes, include_first=True)
        if len(before) > 1:
            guided = self._sample(guided, before, span.start)
        guiding = self._guiding_span(span)
        if guiding is not None and guiding.shape[2] > overlap:
            guided = guided.with_guide(self._make_guide(guiding[:, :, overlap:], overlap))
        guided = self._add_context(guided)
        guided = self._sample(guided, during, span.start).without_guides()
        if len(after) > 1:
            guided = self._add_keyframes(guided.with_guide(context), keyframes, include_first=True)
            guided = self._sample(guided, after, span.start).without_guides()
        sampled = self._normalise(_video_tensor(guided), span, first)
        return cross_fade(clip, sampled[:, :, 1:], overlap - 1)

    def _sample(self, guided: GuidedLatent, sigmas: tuple[float, ...], start: int) -> GuidedLatent:
        ctx = self._ctx
        noise = ctx.get("noise", Noise)
        offset = start * self._tile_count + self._tile_number
        noise = replace(noise, seed=(noise.seed + offset) % 2**64)
        guider = replace(
            self._guider,
            model=ctx.get("model", Model),
            positive=guided.positive,
            negative=guided.negative,
        )
        job = SamplingJob(guider, ctx.get("sampler", Sampler), sigmas, noise, guided.latent)
        return replace(guided, latent=denoise(ctx, job).prediction)

    # -- inputs of a span ---------------------------------------------------------------------

    def _make_input(self, latent: Latent) -> GuidedLatent:
        positive, negative = self._guider.positive, self._guider.negative
        other = self._ctx.get_optional("optional_positive_conditionings", Conditioning)
        if negative is None:
            raise TypeError("a guider without a negative prompt")
        return GuidedLatent(positive if other is None else other, negative, latent)

    def _split_sigmas(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Return the sigmas before, during and after the steps that use the guiding latents."""
        sigmas = self._ctx.get("sigmas", SigmaList).sigmas
        first = _optional_integer(self._ctx, "guiding_start_step", 0)
        last = _optional_integer(self._ctx, "guiding_end_step", 1000)
        rest = sigmas[first:]
        return sigmas[: first + 1] if first else (), rest[: last - first + 1], rest[last - first :]

    def _read_guiding_latents(self, video: Tensor) -> tuple[Tensor | None, int]:
        latent = self._ctx.get_optional("optional_guiding_latents", Latent)
        if latent is None or latent.video is None:
            return None, 1
        guiding = latent.video
        stride = video.shape[3] // guiding.shape[3]
        sides = [side * stride for side in guiding.shape[3:]]
        if guiding.shape[2] != video.shape[2] or sides != list(video.shape[3:]):
            raise self._ctx.error(
                "optional_guiding_latents must have as many frames as latents, and sides that "
                "divide those of latents"
            )
        if stride == 1:
            return self._tile.crop(guiding), 1
        if self._tile_count > 1:
            raise self._ctx.error(
                "smaller guiding latents cannot be split into tiles", "use one tile in space"
            )
        return guiding, stride

    def _guiding_span(self, span: slice) -> Tensor | None:
        return None if self._guiding is None else self._guiding[:, :, span]

    def _make_guide(self, latents: Tensor, first: int) -> Guide:
        frame = first * FRAMES_PER_LATENT if first <= 0 else (first - 1) * FRAMES_PER_LATENT + 1
        single_first = frame == 0 or latents.shape[2] == 1
        strength = self._ctx.number("guiding_strength")
        return Guide(latents, frame, strength, single_first, self._stride)

    def _add_context(self, guided: GuidedLatent) -> GuidedLatent:
        """Append the context latents, which are positioned before the clip, as a guide."""
        context = self._ctx.get_optional("optional_negative_index_latents", Latent)
        if context is None or context.video is None:
            return guided
        latents = self._tile.crop(context.video)
        frame = -latents.shape[2] * FRAMES_PER_LATENT
        strength = 1.0
        if self._ctx.has("optional_negative_index_strength"):
            strength = self._ctx.number("optional_negative_index_strength")
        return guided.with_guide(Guide(latents, frame, strength, latents.shape[2] == 1))

    def _add_keyframes(
        self, guided: GuidedLatent, keyframes: list[tuple[int, int]], *, include_first: bool
    ) -> GuidedLatent:
        strength = self._ctx.number("cond_image_strength")
        for frame, image in keyframes:
            if frame == 0 and not include_first:
                continue
            video = guided.latent.video
            if video is None:
                raise TypeError("a latent without video")
            length = video.shape[2] - guided.positive.guide_frames
            latents = self._encode_image(image, crf=0)
            start = guide_start_frame(frame, 1, length)
            guided = guided.with_guide(Guide(latents, start, strength, True))
        return guided

    def _replace_first_frame(
        self, guided: GuidedLatent, keyframes: list[tuple[int, int]]
    ) -> tuple[GuidedLatent, Tensor | None]:
        """Replace the first latent frame by the image of frame 0, and return its mask."""
        image = next((image for frame, image in keyframes if frame == 0), None)
        if image is None or guided.latent.video is None:
            return guided, None
        video, mask = guided.latent.video.clone(), guided.latent.full_video_mask().clone()
        video[:, :, :1] = self._encode_image(image, crf=FIRST_CRF)
        mask[:, :, :1] = 1.0 - self._ctx.number("cond_image_strength")
        return replace(guided, latent=replace(guided.latent, video=video, video_mask=mask)), mask

    def _encode_image(self, index: int, crf: int) -> Tensor:
        """Encode the tile of an image at the size of the clip."""
        ctx, side = self._ctx, PIXELS_PER_LATENT
        images = ctx.get("optional_cond_images", Images)
        video = ctx.get("latents", Latent).video
        if video is None:
            raise TypeError("a latent without video")
        height, width = video.shape[3] * side, video.shape[4] * side
        frame = images.to_tensor()[index : index + 1]
        fitted = resize_frames(frame, (width, height), "bilinear", "center").clamp(0, 1)
        rows, cols = self._tile.rows, self._tile.cols
        tile = fitted[
            ..., rows.start * side : rows.stop * side, cols.start * side : cols.stop * side
        ]
        pixels = compress_frames(tile, crf) if crf else tile
        return encode_images(ctx, Images.from_tensor(pixels), ctx.get("vae", VideoVaeFile))

    def _normalise(self, sampled: Tensor, span: slice, first: Tensor | None) -> Tensor:
        ctx = self._ctx
        factor = ctx.number("adain_factor") if ctx.has("adain_factor") else 0.0
        latent = ctx.get_optional("optional_normalizing_latents", Latent)
        if latent is not None and latent.video is not None:
            reference = self._tile.crop(latent.video)[:, :, span]
            return adain(sampled, reference, factor, per_frame=True)
        return sampled if first is None else adain(sampled, first, factor, per_frame=False)


def cross_fade(before: Tensor, after: Tensor, overlap: int) -> Tensor:
    """Concatenate two latents in time, cross-fading ``overlap`` frames."""
    if overlap <= 0:
        return torch.cat([before, after], dim=2)
    weight = torch.linspace(1, 0, overlap + 2)[1:-1][:, None, None].to(before)
    blended = weight * before[:, :, -overlap:] + (1 - weight) * after[:, :, :overlap]
    return torch.cat([before[:, :, :-overlap], blended, after[:, :, overlap:]], dim=2)


def _keyframes_by_span(
    ctx: NodeContext, frames: int, length: int, overlap: int
) -> dict[int, list[tuple[int, int]]]:
    """Return pairs of frame in the span and image index, by span number."""
    images = ctx.get_optional("optional_cond_images", Images)
    if images is None:
        return {}
    total = frames * FRAMES_PER_LATENT - 7
    text = ctx.text("optional_cond_image_indices") if ctx.has("optional_cond_image_indices") else ""
    try:
        indices = [int(word) for word in (text or "0").split(",")]
    except ValueError:
        raise ctx.error(f"optional_cond_image_indices is {text!r}", "use 0, 40, 80") from None
    if len(indices) != images.count:
        raise ctx.error(
            f"there are {images.count} images but {len(indices)} indices",
            "enter one index for each image in optional_cond_image_indices",
        )
    keyframes: dict[int, list[tuple[int, int]]] = {}
    for image, index in enumerate(i + total if i < 0 else i for i in indices):
        if index < total:
            span, frame = _locate_frame(
                index, length * FRAMES_PER_LATENT, overlap * FRAMES_PER_LATENT
            )
            keyframes.setdefault(span, []).append((frame, image))
    return keyframes


def _locate_frame(index: int, length: int, overlap: int) -> tuple[int, int]:
    """Return the span of a frame and its index there; overlaps belong to the earlier span."""
    if index < length - 7:
        return 0, index
    step = length - overlap
    span = 1
    while index > length + span * step - 8:
        span += 1
    frame = index - span * step
    if frame >= overlap:
        return span, frame
    return (0, index) if span == 1 else (span - 1, frame + step)


def _optional_integer(ctx: NodeContext, name: str, default: int) -> int:
    return ctx.integer(name) if ctx.has(name) else default


def _video_tensor(guided: GuidedLatent) -> Tensor:
    if guided.latent.video is None:
        raise TypeError("a latent without video")
    return guided.latent.video


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {"LTXVLoopingSampler": NodeFunction(sample_in_spans, stored=True, samples=True)}
)

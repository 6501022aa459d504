"""``LTXVLoopingSampler``: a long clip in spans of time, each begun on the end of the one before.

Facts of ComfyUI-LTXVideo's looping, base, extend and in-context samplers. A span after the first is
sampled with the last latents before it as a guide at its beginning; its own first latent, which
stands for one frame only, is dropped, and the rest is faded into what is there. Space may be cut
into tiles that are sampled one after the other and blended at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.decoding import encode_images
from latent_ladder.comfyui.nodes.denoise import SamplingJob, denoise
from latent_ladder.comfyui.nodes.guides import Guide, GuidedLatent, guide_start_frame
from latent_ladder.comfyui.nodes.images import compress_frames
from latent_ladder.comfyui.nodes.latent_statistics import adain
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.resize import resize_frames
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
"""Compression of a picture that becomes the first frame."""


@dataclass(frozen=True)
class SpatialTile:
    """A tile: rows and columns of the latent, and its number in the order of sampling."""

    rows: slice
    cols: slice
    row: int
    col: int

    def of(self, latents: Tensor) -> Tensor:
        """The tile's part."""
        return latents[:, :, :, self.rows, self.cols]


def sample_in_spans(ctx: NodeContext) -> list[Value]:
    """The node."""
    latent = ctx.get("latents", Latent)
    if latent.video is None or latent.audio is not None:
        raise ctx.error("it takes a latent of video alone", "sample the sound on its own")
    down, across = ctx.integer("vertical_tiles"), ctx.integer("horizontal_tiles")
    overlap = ctx.integer("spatial_overlap")
    height, width = latent.video.shape[3:]
    total = weights = None
    for place in _spatial_tiles(height, width, down, across, overlap):
        made = _SpanSampler(ctx, latent.video, place, down * across, across).go()
        weight = _tile_weight(place, made, (down, across), overlap)
        if total is None or weights is None:
            size = (*made.shape[:3], height, width)
            total, weights = torch.zeros(size), torch.zeros(size)
        total[:, :, :, place.rows, place.cols] += made * weight
        weights[:, :, :, place.rows, place.cols] += weight
    if total is None or weights is None:
        raise TypeError("no tiles were made")
    return [Latent(video=total / (weights + 1e-8))]


def _spatial_tiles(
    height: int, width: int, down: int, across: int, overlap: int
) -> list[SpatialTile]:
    rows, cols = _split_side(height, down, overlap), _split_side(width, across, overlap)
    return [SpatialTile(r, c, i, j) for i, r in enumerate(rows) for j, c in enumerate(cols)]


def _split_side(length: int, count: int, overlap: int) -> list[slice]:
    return [slice(span.start, span.stop) for span in spans_by_count(length, count, overlap)]


def _tile_weight(place: SpatialTile, like: Tensor, tiles: tuple[int, int], overlap: int) -> Tensor:
    """Ramps from 0 to 1 over what neighbouring tiles share."""
    weight = torch.ones(like.shape[3:])
    ramp = torch.linspace(0, 1, overlap)
    if place.col > 0:
        weight[:, :overlap] *= ramp
    if place.col < tiles[1] - 1:
        weight[:, -overlap:] *= ramp.flip(0)
    if place.row > 0:
        weight[:overlap] *= ramp[:, None]
    if place.row < tiles[0] - 1:
        weight[-overlap:] *= ramp.flip(0)[:, None]
    return weight


class _SpanSampler:
    """All spans of time of one tile."""

    def __init__(
        self, ctx: NodeContext, video: Tensor, place: SpatialTile, tiles: int, across: int
    ) -> None:
        self._ctx, self._place = ctx, place
        self._video = place.of(video)
        self._length = ctx.integer("temporal_tile_size") // FRAMES_PER_LATENT
        self._overlap = ctx.integer("temporal_overlap") // FRAMES_PER_LATENT
        self._guider = ctx.get("guider", Guider)
        self._tiles, self._number = tiles, place.row * across + place.col
        self._guiding, self._stride = self._guiding_latents(video)
        self._keyframes = _keyframes_by_span(ctx, video.shape[2], self._length, self._overlap)
        if self._overlap >= self._length:
            raise ctx.error("temporal_overlap is not shorter than temporal_tile_size")
        if self._guider.negative is None:
            raise ctx.error("the guider has no negative prompt", "use STGGuiderAdvanced")

    def go(self) -> Tensor:
        step, frames = self._length - self._overlap, self._video.shape[2]
        starts = range(0, frames + step, step)
        ends = range(self._length, frames + step, step)
        done: Tensor | None = None
        first: Tensor | None = None
        for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
            span = slice(start, min(end, frames))
            if done is None:
                done = first = self._begin(span, number)
            else:
                done = self._extend(done, span, number, first)
        if done is None:
            raise TypeError("a clip without spans")
        return done

    # -- one span -----------------------------------------------------------------------------

    def _begin(self, span: slice, number: int) -> Tensor:
        latent = Latent(video=self._video[:, :, span])
        guiding = self._guide_part(span)
        told = self._start(latent)
        keyframes = self._keyframes.get(number, [])
        first_mask = None
        if guiding is None:
            told, first_mask = self._first_frame(told, keyframes)
        before, during, after = self._sigmas()
        if guiding is not None:
            if len(before) > 1:
                told = self._sampled(told, before, span.start)
            skips = any(at == 0 for at, _ in keyframes)
            told = told.with_guide(self._guide(guiding[:, :, 1 if skips else 0 :], int(skips)))
        told = self._with_keyframes(told, keyframes, all_of_them=guiding is not None)
        told = self._with_context(told)
        told = self._sampled(told, during, span.start).without_guides()
        told = replace(told, latent=replace(told.latent, video_mask=first_mask))
        if len(after) > 1:
            told = self._sampled(told, after, span.start)
        return _video_tensor(told)

    def _extend(self, done: Tensor, span: slice, number: int, first: Tensor | None) -> Tensor:
        ctx, overlap = self._ctx, self._overlap
        strength = ctx.number("temporal_overlap_cond_strength")
        held = Guide(done[:, :, -overlap:], 0, strength, lone_first=True)
        keyframes = self._keyframes.get(number, [])
        before, during, after = self._sigmas()
        told = self._start(Latent(video=self._video[:, :, span])).with_guide(held)
        told = self._with_keyframes(told, keyframes, all_of_them=True)
        if len(before) > 1:
            told = self._sampled(told, before, span.start)
        guiding = self._guide_part(span)
        if guiding is not None and guiding.shape[2] > overlap:
            told = told.with_guide(self._guide(guiding[:, :, overlap:], overlap))
        told = self._with_context(told)
        told = self._sampled(told, during, span.start).without_guides()
        if len(after) > 1:
            told = self._with_keyframes(told.with_guide(held), keyframes, all_of_them=True)
            told = self._sampled(told, after, span.start).without_guides()
        new = self._normalised(_video_tensor(told), span, first)
        return cross_fade(done, new[:, :, 1:], overlap - 1)

    def _sampled(self, told: GuidedLatent, sigmas: tuple[float, ...], start: int) -> GuidedLatent:
        ctx = self._ctx
        noise = ctx.get("noise", Noise)
        own = replace(noise, seed=(noise.seed + start * self._tiles + self._number) % 2**64)
        guider = replace(
            self._guider,
            model=ctx.get("model", Model),
            positive=told.positive,
            negative=told.negative,
        )
        job = SamplingJob(guider, ctx.get("sampler", Sampler), sigmas, own, told.latent)
        return replace(told, latent=denoise(ctx, job).last)

    # -- what a span is told ------------------------------------------------------------------

    def _start(self, latent: Latent) -> GuidedLatent:
        positive, negative = self._guider.positive, self._guider.negative
        other = self._ctx.get_optional("optional_positive_conditionings", Conditioning)
        if negative is None:
            raise TypeError("a guider without a negative prompt")
        return GuidedLatent(positive if other is None else other, negative, latent)

    def _sigmas(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """The schedule before, during and after the steps in which guiding latents count."""
        sigmas = self._ctx.get("sigmas", SigmaList).sigmas
        first = _optional_integer(self._ctx, "guiding_start_step", 0)
        last = _optional_integer(self._ctx, "guiding_end_step", 1000)
        rest = sigmas[first:]
        return sigmas[: first + 1] if first else (), rest[: last - first + 1], rest[last - first :]

    def _guiding_latents(self, video: Tensor) -> tuple[Tensor | None, int]:
        found = self._ctx.get_optional("optional_guiding_latents", Latent)
        if found is None or found.video is None:
            return None, 1
        stride = video.shape[3] // found.video.shape[3]
        sides = [side * stride for side in found.video.shape[3:]]
        if found.video.shape[2] != video.shape[2] or sides != list(video.shape[3:]):
            raise self._ctx.error(
                "optional_guiding_latents have other frames, or sides that do not divide latents"
            )
        if stride == 1:
            return self._place.of(found.video), 1
        if self._tiles > 1:
            raise self._ctx.error(
                "small guiding latents cannot be cut into tiles", "use one tile in space"
            )
        return found.video, stride

    def _guide_part(self, span: slice) -> Tensor | None:
        return None if self._guiding is None else self._guiding[:, :, span]

    def _guide(self, latents: Tensor, first: int) -> Guide:
        at = first * FRAMES_PER_LATENT if first <= 0 else (first - 1) * FRAMES_PER_LATENT + 1
        lone = at == 0 or latents.shape[2] == 1
        return Guide(latents, at, self._ctx.number("guiding_strength"), lone, self._stride)

    def _with_context(self, told: GuidedLatent) -> GuidedLatent:
        """Latents from before the clip, for what must stay in mind."""
        found = self._ctx.get_optional("optional_negative_index_latents", Latent)
        if found is None or found.video is None:
            return told
        latents = self._place.of(found.video)
        at = -latents.shape[2] * FRAMES_PER_LATENT
        strength = 1.0
        if self._ctx.has("optional_negative_index_strength"):
            strength = self._ctx.number("optional_negative_index_strength")
        return told.with_guide(Guide(latents, at, strength, latents.shape[2] == 1))

    def _with_keyframes(
        self, told: GuidedLatent, keyframes: list[tuple[int, int]], *, all_of_them: bool
    ) -> GuidedLatent:
        strength = self._ctx.number("cond_image_strength")
        for at, image in keyframes:
            if at == 0 and not all_of_them:
                continue
            frames = told.latent.video
            if frames is None:
                raise TypeError("a latent without video")
            length = frames.shape[2] - told.positive.guide_frames
            latents = self._picture(image, crf=0)
            told = told.with_guide(Guide(latents, guide_start_frame(at, 1, length), strength, True))
        return told

    def _first_frame(
        self, told: GuidedLatent, keyframes: list[tuple[int, int]]
    ) -> tuple[GuidedLatent, Tensor | None]:
        """The picture of frame 0 over the first latent, and the mask that keeps it."""
        image = next((image for at, image in keyframes if at == 0), None)
        if image is None or told.latent.video is None:
            return told, None
        video, mask = told.latent.video.clone(), told.latent.full_video_mask().clone()
        video[:, :, :1] = self._picture(image, crf=FIRST_CRF)
        mask[:, :, :1] = 1.0 - self._ctx.number("cond_image_strength")
        return replace(told, latent=replace(told.latent, video=video, video_mask=mask)), mask

    def _picture(self, index: int, crf: int) -> Tensor:
        """One of the pictures at the clip's size, its tile cut out, encoded."""
        ctx, side = self._ctx, PIXELS_PER_LATENT
        images = ctx.get("optional_cond_images", Images)
        whole = ctx.get("latents", Latent).video
        if whole is None:
            raise TypeError("a latent without video")
        height, width = whole.shape[3] * side, whole.shape[4] * side
        frame = images.to_tensor()[index : index + 1]
        fitted = resize_frames(frame, (width, height), "bilinear", "center").clamp(0, 1)
        rows, cols = self._place.rows, self._place.cols
        cut = fitted[
            ..., rows.start * side : rows.stop * side, cols.start * side : cols.stop * side
        ]
        pixels = compress_frames(cut, crf) if crf else cut
        return encode_images(ctx, Images.from_tensor(pixels), ctx.get("vae", VideoVaeFile))

    def _normalised(self, new: Tensor, span: slice, first: Tensor | None) -> Tensor:
        ctx = self._ctx
        factor = ctx.number("adain_factor") if ctx.has("adain_factor") else 0.0
        given = ctx.get_optional("optional_normalizing_latents", Latent)
        if given is not None and given.video is not None:
            reference = self._place.of(given.video)[:, :, span]
            return adain(new, reference, factor, per_frame=True)
        return new if first is None else adain(new, first, factor, per_frame=False)


def cross_fade(before: Tensor, after: Tensor, overlap: int) -> Tensor:
    """Two latents in a row, the last ``overlap`` frames of one fading into the first of the other.

    Nothing is shared where ``overlap`` is 0.
    """
    if overlap <= 0:
        return torch.cat([before, after], dim=2)
    share = torch.linspace(1, 0, overlap + 2)[1:-1][:, None, None].to(before)
    both = share * before[:, :, -overlap:] + (1 - share) * after[:, :, :overlap]
    return torch.cat([before[:, :, :-overlap], both, after[:, :, overlap:]], dim=2)


def _keyframes_by_span(
    ctx: NodeContext, frames: int, length: int, overlap: int
) -> dict[int, list[tuple[int, int]]]:
    """By the number of a span: frames in it, and which picture is shown there."""
    images = ctx.get_optional("optional_cond_images", Images)
    if images is None:
        return {}
    total = frames * FRAMES_PER_LATENT - 7
    text = ctx.text("optional_cond_image_indices") if ctx.has("optional_cond_image_indices") else ""
    try:
        asked = [int(word) for word in (text or "0").split(",")]
    except ValueError:
        raise ctx.error(f"optional_cond_image_indices is {text!r}", "use 0, 40, 80") from None
    if len(asked) != images.count:
        raise ctx.error(
            f"there are {images.count} pictures and {len(asked)} indices", "give one for each"
        )
    found: dict[int, list[tuple[int, int]]] = {}
    for image, index in enumerate(i + total if i < 0 else i for i in asked):
        if index < total:
            span, at = _locate_frame(index, length * FRAMES_PER_LATENT, overlap * FRAMES_PER_LATENT)
            found.setdefault(span, []).append((at, image))
    return found


def _locate_frame(index: int, length: int, overlap: int) -> tuple[int, int]:
    """The span that a frame falls into, and its place there; overlaps belong to the earlier one."""
    if index < length - 7:
        return 0, index
    step = length - overlap
    span = 1
    while index > length + span * step - 8:
        span += 1
    at = index - span * step
    if at >= overlap:
        return span, at
    return (0, index) if span == 1 else (span - 1, at + step)


def _optional_integer(ctx: NodeContext, name: str, default: int) -> int:
    return ctx.integer(name) if ctx.has(name) else default


def _video_tensor(told: GuidedLatent) -> Tensor:
    if told.latent.video is None:
        raise TypeError("a latent without video")
    return told.latent.video


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {"LTXVLoopingSampler": NodeFunction(sample_in_spans, stored=True)}
)

"""Video nodes: load a video, take it apart, and trim it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.audio import read_audio
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.runtime.values import Audio, Images, Value, Video
from latent_ladder.errors import MediaError
from latent_ladder.media.audio_input import check_samples
from latent_ladder.media.video_input import InputVideo, check_video
from latent_ladder.media.video_reader import read_float_frames


def load_video(ctx: NodeContext) -> list[Value]:
    """``LoadVideo``: a video file, whose frames are read when they are needed."""
    path = ctx.engine.input_file(ctx.text("file"))
    try:
        found = check_video(path)
        if found.has_audio:
            check_samples(path)
    except MediaError as error:
        raise ctx.error(error.message, error.hint) from error
    for note in found.notes:
        ctx.warn("converted", f"{path.name} {note}")
    return [_to_video(path, found)]


def _to_video(path: Path, found: InputVideo) -> Video:
    images = Images(found.frames, *found.size, lambda: _pixels(path))

    def audio() -> Audio | None:
        return read_audio(path) if found.has_audio else None

    return Video(images, found.fps, audio, path)


def _pixels(path: Path) -> Iterator[Tensor]:
    for frame in read_float_frames(path):
        yield torch.from_numpy(frame).permute(2, 0, 1)[None]


def video_components(ctx: NodeContext) -> list[Value]:
    """``GetVideoComponents``: images, audio, frame rate, bit depth, colour space."""
    video = ctx.get("video", Video)
    return [video.images, video.audio(), float(video.fps), str(video.bits), "sRGB"]


def slice_video(ctx: NodeContext) -> list[Value]:
    """``Video Slice``: a duration from a start time on; a negative start counts from the end.

    A duration of 0 means up to the end. ``strict_duration``: a video that is too short is an error.
    """
    video = ctx.get("video", Video)
    fps, count = video.fps, video.images.count
    start = Fraction(ctx.number("start_time")).limit_denominator(1_000_000)
    duration = Fraction(ctx.number("duration")).limit_denominator(1_000_000)
    first = round(start * fps) if start >= 0 else max(count + round(start * fps), 0)
    requested = round(duration * fps) if duration else count - first
    if first >= count or requested < 1:
        raise ctx.error(
            f"nothing is left: the video has {count} frames at {float(fps):g} fps",
            "use an earlier start_time or a longer duration",
        )
    if ctx.boolean("strict_duration") and first + requested > count:
        raise ctx.error(
            f"the video ends {float((first + requested - count) / fps):.3f} s too early",
            "use a shorter duration, or switch strict_duration off",
        )
    length = min(requested, count - first)
    images = video.images

    def pixels() -> Iterator[Tensor]:
        return _skip_frames(images.first(first + length).pixels(), first)

    def audio() -> Audio | None:
        source = video.audio()
        if source is None:
            return None
        begin, end = (round(Fraction(n) / fps * source.rate) for n in (first, first + length))
        return replace(source, waveform=source.waveform[:, begin:end])

    part = replace(images, count=length, pixels=pixels, pixels_uint8=None)
    return [replace(video, images=part, audio=audio, file=None)]


def _skip_frames(chunks: Iterator[Tensor], first: int) -> Iterator[Tensor]:
    position = 0
    for chunk in chunks:
        selected = chunk[max(first - position, 0) :]
        position += len(chunk)
        if len(selected):
            yield selected


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "LoadVideo": NodeFunction(load_video, version=3),
        "GetVideoComponents": NodeFunction(video_components),
        "Video Slice": NodeFunction(slice_video),
    }
)

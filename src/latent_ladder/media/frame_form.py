"""Decoded video frames as people see them: progressive, square pixels, upright, 8-bit BT.709."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.media.colour import convert_to_bt709, describe_colour, needs_conversion

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.filter.graph import Graph
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg's AVColorSpace numbers.
_BT709, _UNSPECIFIED = 1, 2
_HD_WIDTH, _HD_HEIGHT = 1280, 576
"""Video without a colour tag, of at least this width or above this height, is read as BT.709."""
_WIDEST_PIXEL = 8
"""A pixel aspect ratio above this, or below its inverse, is taken for damage and ignored."""


@dataclass(frozen=True)
class FrameForm:
    """The way stored frames become shown ones: ``pixel_ratio`` is a pixel's width by its height."""

    pixel_ratio: Fraction

    @classmethod
    def of_stream(cls, stream: VideoStream) -> FrameForm:
        """Form of a stream's frames."""
        ratio = Fraction(stream.sample_aspect_ratio or 1)
        plausible = Fraction(1, _WIDEST_PIXEL) <= ratio <= _WIDEST_PIXEL
        return cls(ratio if plausible else Fraction(1))

    def to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """A frame as (H, W, 3) uint8 RGB."""
        hd = frame.width >= _HD_WIDTH or frame.height > _HD_HEIGHT
        # PyAV (since 17) uses the frame's own matrix if it has one, BT.601 otherwise.
        matrix = _BT709 if hd and frame.colorspace == _UNSPECIFIED else None
        width, height = self._square_size(frame)
        convert = needs_conversion(frame)
        converted = frame.reformat(
            width=width,
            height=height,
            format="rgb48le" if convert else "rgb24",
            src_colorspace=matrix,
        )
        pixels = converted.to_ndarray()
        rgb = (
            convert_to_bt709(np.asarray(pixels, np.uint16), frame)
            if convert
            else np.asarray(pixels, np.uint8)
        )
        # The display matrix rotates counter-clockwise, like rot90.
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb

    def to_float(self, frame: VideoFrame, padding: FramePadding) -> NDArray[np.float32]:
        """A frame as (H, W, 3) float32 RGB 0..1, with the values of ComfyUI's ``LoadVideo``.

        FFmpeg converts limited-range YCbCr to float with interpolated chroma; to 8 bits it repeats
        chroma samples. Other formats, HDR and other pixel shapes are those of :meth:`to_rgb`.
        """
        if (
            self.pixel_ratio != 1
            or needs_conversion(frame)
            or not frame.format.name.startswith(("yuv", "nv", "p0"))
            or frame.format.name.startswith("yuvj")
        ):
            return np.asarray(self.to_rgb(frame), np.float32) / np.float32(255)
        hd = frame.width >= _HD_WIDTH or frame.height > _HD_HEIGHT
        matrix = _BT709 if hd and frame.colorspace == _UNSPECIFIED else None
        whole = padding.pad(frame).reformat(format="gbrpf32le", src_colorspace=matrix)
        rgb = np.asarray(whole.to_ndarray()[: frame.height, : frame.width], np.float32)
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(rgb, turns) if turns else rgb)

    def describe(self, frame: VideoFrame) -> Iterator[str]:
        """Notes on what is converted, given the first frame as it is stored."""
        if self.pixel_ratio != 1:
            width, height = self._square_size(frame)
            yield (
                f"has pixels of shape {self.pixel_ratio.numerator}:{self.pixel_ratio.denominator}; "
                f"its {frame.width}x{frame.height} are used as {width}x{height}"
            )
        if frame.interlaced_frame:
            yield "is interlaced; it is deinterlaced"
        if note := describe_colour(frame):
            yield note

    def _square_size(self, frame: VideoFrame) -> tuple[int, int]:
        """(width, height) with square pixels; no side becomes smaller."""
        if self.pixel_ratio >= 1:
            return round(frame.width * self.pixel_ratio), frame.height
        return frame.width, round(frame.height / self.pixel_ratio)


class FramePadding:
    """Frames whose width is no multiple of 32, padded to one by repeating their borders.

    FFmpeg's conversion to float reads beyond the end of other rows.
    """

    MULTIPLE = 32

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._form: tuple[int, int, str] | None = None

    def pad(self, frame: VideoFrame) -> VideoFrame:
        """The padded frame."""
        from av.video.frame import VideoFrame

        if frame.width % self.MULTIPLE == 0:
            return frame
        form = (frame.width, frame.height, frame.format.name)
        if self._graph is None or self._form != form:
            self._graph, self._form = self._build(frame), form
        self._graph.push(frame)
        padded = self._graph.pull()
        if not isinstance(padded, VideoFrame):
            raise TypeError("the padding filter returned no picture")
        return padded

    def _build(self, frame: VideoFrame) -> Graph:
        from av.filter import Graph

        right, bottom = -frame.width % self.MULTIPLE, -frame.height % self.MULTIPLE
        size = f"{frame.width + right}:{frame.height + bottom}:0:0"
        fill = f"left=0:right={right}:top=0:bottom={bottom}:mode=smear"
        graph = Graph()
        last = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base or Fraction(1),
        )
        for name, options in (("pad", size), ("fillborders", fill), ("buffersink", None)):
            after = graph.add(name, options)
            last.link_to(after)
            last = after
        graph.configure()
        return graph


def decode_progressive(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """The decoded frames of a stream, as many as are stored; interlaced ones are deinterlaced.

    Each frame then shows the time of its first field (FFmpeg's ``bwdif``).
    """
    graph: Graph | None = None
    for frame in container.decode(stream):
        if graph is None and frame.interlaced_frame:
            graph = _deinterlacer(stream, frame)
        if graph is None:
            yield frame
            continue
        graph.push(frame)
        yield from _pull(graph)
    if graph is not None:
        graph.push(None)
        yield from _pull(graph)


def _deinterlacer(stream: VideoStream, frame: VideoFrame) -> Graph:
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or stream.time_base,
    )
    change = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    source.link_to(change)
    change.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _pull(graph: Graph) -> Iterator[VideoFrame]:
    """The frames that are ready; the filter returns each one after it has seen the next."""
    from av import BlockingIOError as NotReady
    from av import EOFError as Finished
    from av.video.frame import VideoFrame

    while True:
        try:
            frame = graph.pull()
        except (NotReady, Finished):
            return
        if isinstance(frame, VideoFrame):
            yield frame

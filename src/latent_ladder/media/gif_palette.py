"""Palette of 256 colours for each frame of a GIF, computed frame by frame in constant memory."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class PaletteFilter:
    """FFmpeg's ``palettegen`` and ``paletteuse`` filters, with one palette per frame.

    A global palette would need all frames first.
    """

    def __init__(self, size: tuple[int, int], fps: Fraction) -> None:
        from av.filter import Graph

        width, height = size
        graph: Any = Graph()
        self._graph = graph
        source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=1 / fps)
        split = self._graph.add("split")
        chosen = self._graph.add("palettegen", "stats_mode=single")
        used = self._graph.add("paletteuse", "new=1:dither=sierra2_4a")
        sink = self._graph.add("buffersink")
        source.link_to(split)
        split.link_to(used, 0, 0)
        split.link_to(chosen, 1, 0)
        chosen.link_to(used, 0, 1)
        used.link_to(sink)
        self._graph.configure()
        self._count = 0

    def apply(self, frame: VideoFrame) -> VideoFrame:
        """The frame reduced to 256 colours of its own (``pal8``)."""
        from av.video.frame import VideoFrame

        rgb = frame.reformat(format="rgb24")
        rgb.pts = self._count
        self._count += 1
        self._graph.push(rgb)
        found = self._graph.pull()
        if not isinstance(found, VideoFrame):
            raise TypeError("the palette filter returned no video frame")
        return found

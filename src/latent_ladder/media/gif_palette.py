"""256 colours for every frame of a GIF, chosen frame by frame: no frame has to wait for others."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class Palette:
    """FFmpeg's palette filters, one palette a frame (a palette for all would need all frames)."""

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

    def applied(self, frame: VideoFrame) -> VideoFrame:
        """The frame in its own 256 colours (``pal8``)."""
        from av.video.frame import VideoFrame

        rgb = frame.reformat(format="rgb24")
        rgb.pts = self._count
        self._count += 1
        self._graph.push(rgb)
        found = self._graph.pull()
        if not isinstance(found, VideoFrame):
            raise TypeError("the palette filter gave no picture")
        return found

"""Poster and contact sheet of a clip, collected from its frames while they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.image_sequence import FramePattern, encode_png
from latent_ladder.media.video_writer import Frames
from latent_ladder.request.output import Output
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

SHEET_FRAMES, SHEET_COLUMNS, SHEET_WIDTH, GAP = 12, 4, 480, 4


@dataclass
class Thumbnails:
    """Frames for the images that ``requested`` names, of a clip of ``count`` frames."""

    path: Path
    requested: Output
    count: int
    metadata: Mapping[str, str]
    _frames: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def needed_frames(self) -> list[int]:
        """Indices of the frames to copy: the middle one, and those of the sheet, evenly spread."""
        middle = [self.count // 2] if self.requested.poster else []
        return sorted({*middle, *self._sheet}) if self.count else []

    @property
    def _sheet(self) -> list[int]:
        n = min(SHEET_FRAMES, self.count)
        return (
            [i * (self.count - 1) // max(n - 1, 1) for i in range(n)]
            if self.requested.sheet
            else []
        )

    def collect(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        """The chunks unchanged; the needed frames are copied."""
        wanted, first = self.needed_frames, 0
        for chunk in chunks:
            for index in wanted:
                if first <= index < first + len(chunk):
                    self._copy(index, chunk[index - first])
            first += len(chunk)
            yield chunk

    def _copy(self, index: int, frame: Frames) -> None:
        shift = 0 if frame.dtype == np.uint8 else 8
        eight = (frame >> shift).astype(np.uint8)
        self._frames[index] = eight if index == self.count // 2 else _shrink(eight)

    def write(self) -> None:
        """Write the requested images next to the clip. Raises :class:`MediaError`."""
        if self.requested.poster and self.count // 2 in self._frames:
            self._save("poster", self._frames[self.count // 2])
        found = [(i, self._frames[i]) for i in self._sheet if i in self._frames]
        if found:
            self._save("sheet", _arrange([_shrink(frame) for _, frame in found]))

    def _save(self, kind: str, picture: NDArray[np.uint8]) -> None:
        target = thumbnail_path(self.path, kind)
        with convert_write_errors(MediaError, f"{kind} {target.name}", target.parent):
            write_atomically(target, encode_png(picture, self.metadata))


def thumbnail_path(clip: Path, kind: str) -> Path:
    """The file of the "poster" or the "sheet" of a clip."""
    stills = FramePattern.from_path(clip)
    stem = clip.with_suffix("") if stills is None else stills.folder
    return stem.with_name(f"{stem.name}.{kind}.png")


def _shrink(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width, _ = frame.shape
    if width <= SHEET_WIDTH:
        return frame
    size = (SHEET_WIDTH, max(1, round(height * SHEET_WIDTH / width)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), np.uint8)


def _arrange(frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Frames in rows, left to right, on black."""
    height, width, _ = frames[0].shape
    columns = min(SHEET_COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    sheet = np.zeros(shape, np.uint8)
    for i, frame in enumerate(frames):
        y, x = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        sheet[y : y + height, x : x + width] = frame
    return sheet

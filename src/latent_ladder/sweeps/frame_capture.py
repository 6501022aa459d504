"""Frames of a clip captured while it is measured: a few in full size, all of them small."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import StoreError
from latent_ladder.media.contact_sheet import cell_size, resize_frames
from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.storage.temporary_files import part_path

WHOLE_FRAMES = 5
QUALITY = 92
SMALL_PX, SMALL_CRF = 384, 26


class FrameCapture:
    """Captures :data:`WHOLE_FRAMES` frames of a clip of ``count``, and a small copy of all."""

    def __init__(self, count: int) -> None:
        self.indices = tuple(
            sorted({round(i * (count - 1) / (WHOLE_FRAMES - 1)) for i in range(WHOLE_FRAMES)})
        )
        self.size = (0, 0)
        self._whole: list[bytes] = []
        self._small: list[NDArray[np.uint8]] = []
        self._at = 0

    def collect(self, chunks: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The chunks unchanged; frames are captured on the way."""
        for chunk in chunks:
            height, width = chunk.shape[1:3]
            self.size = width, height
            for frame in chunk:
                if self._at in self.indices:
                    self._whole.append(webp(frame))
                self._at += 1
            self._small.append(
                resize_frames(chunk, cell_size(width, height, min(SMALL_PX, max(width, height))))
            )
            yield chunk

    def save(self, folder: Path, key: str, fps: Fraction) -> tuple[tuple[str, ...], str]:
        """Write the files into ``folder``; returns the names of the frames and of the video."""
        names = []
        for index, data in zip(self.indices, self._whole, strict=False):
            names.append(f"{key}-{index:05d}.webp")
            with _convert_errors(folder / names[-1], len(data)):
                write_atomically(folder / names[-1], data)
        height, width = self._small[0].shape[1:3]
        spec = VideoSpec((width, height), fps, EncoderSettings(crf=SMALL_CRF))
        write_video(folder / f"{key}.mp4", self._small, spec, overwrite=True)
        return tuple(names), f"{key}.mp4"


def _convert_errors(path: Path, needed: int = 0) -> AbstractContextManager[None]:
    """Convert errors of writing ``path``: not one point's fault, so the whole sweep stops."""
    return convert_write_errors(StoreError, f"{path.name} of the sweep", path.parent, needed)


def webp(frame: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) -> the bytes of a WebP file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(frame).save(out, "WEBP", quality=QUALITY, method=4)
    return out.getvalue()


class Spool:
    """Decoded frames of one draft in a temporary file, so that each point can read them again.

    Lossless, and memory does not grow with the clip. :meth:`close` deletes the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shape: tuple[int, int, int] | None = None

    def fill(self, chunks: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """The chunks unchanged; each is written to the file."""
        part = part_path(self._path)
        try:
            with part.open("wb") as file:
                for chunk in chunks:
                    height, width, colors = chunk.shape[1:]
                    self._shape = height, width, colors
                    with _convert_errors(self._path):
                        file.write(np.ascontiguousarray(chunk).tobytes())
                        file.flush()
                    yield chunk
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """The written frames, one at a time."""
        if self._shape is None:
            raise ValueError("the spool was not filled")
        size = int(np.prod(self._shape))
        with self._path.open("rb") as file:
            while data := file.read(size):
                yield np.frombuffer(data, np.uint8).reshape(self._shape)

    def close(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)

"""EXR sequences as input videos: their files in order, their rate, their sound.

A sequence is named by the pattern of its files, ``shot/%05d.exr``, as it is for outputs. A sequence
that was written here has its rate in ``request.json`` and its sound in ``sound.wav`` beside it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from latent_ladder.errors import MediaError
from latent_ladder.media.hdr import EXR_SUFFIX, Light, Space, codes_of_exr, load_exr
from latent_ladder.media.image_sequence import AUDIO_FILE, FramePattern, read_sidecar
from latent_ladder.storage.read_file import is_file, is_folder

MAX_RATE = 1000
"""Highest rate in frames per second that is believed."""
MAX_FRAMES = 100_000
"""Most files of a sequence."""
_DIGITS = re.compile(r"\d+(?=\.exr$)", re.IGNORECASE)


@dataclass(frozen=True)
class Colours:
    """Colours of a sequence's files (``space``), and the code of light of the clip (``curve``)."""

    space: Space
    curve: str


@dataclass(frozen=True)
class ExrSequence:
    """The files of a sequence in the order of their numbers, at least one."""

    files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.files[0].parent

    @property
    def sound(self) -> Path | None:
        """The sound beside the files."""
        path = self.folder / AUDIO_FILE
        return path if is_file(path) else None

    @cached_property
    def fps(self) -> Fraction | None:
        """The rate in the metadata beside the files; ``None`` if there is none."""
        try:
            rate = Fraction(str(read_sidecar(self.folder).get("fps", "")))
        except (MediaError, ValueError, ZeroDivisionError):
            return None
        return rate if 0 < rate <= MAX_RATE else None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first file. Raises :class:`MediaError`."""
        height, width, _ = load_exr(self.files[0]).shape
        return width, height

    def codes(self, colours: Colours) -> Iterator[Light]:
        """Every frame (H, W, 3) as the model's codes, 0..255. Raises :class:`MediaError`."""
        shape = None
        for path in self.files:
            pixels = load_exr(path)
            if shape is not None and pixels.shape != shape:
                sizes = [f"{s[1]}x{s[0]}" for s in (pixels.shape, shape)]
                raise MediaError(
                    f"{path.name} has {sizes[0]} pixels, the frames before it have {sizes[1]}",
                    "export all frames at one size",
                )
            shape = pixels.shape
            yield codes_of_exr(pixels, colours.space, colours.curve) * 255


def find_exr_sequence(path: Path) -> ExrSequence | None:
    """The EXR files that a path names: a pattern or one file; ``None`` for other paths.

    Raises :class:`MediaError` for a folder, for a pattern without files, and for missing numbers.
    """
    if is_folder(path):
        raise MediaError(f"{path.name} is a folder", _hint_for_folder(path))
    if path.suffix.lower() != EXR_SUFFIX:
        return None
    pattern = FramePattern.from_path(path)
    if pattern is None:
        return ExrSequence((path,))
    numbered = sorted(_numbered_files(pattern))
    if not numbered:
        raise MediaError(f"no file is named like {path}", "check the folder and the pattern")
    if len(numbered) > MAX_FRAMES:
        raise MediaError(
            f"{path.name} names {len(numbered)} files, at most {MAX_FRAMES} are read",
            "move the part that is needed to a folder of its own",
        )
    numbers = [number for number, _ in numbered]
    missing = next((n for n, m in itertools.pairwise(numbers) if m != n + 1), None)
    if missing is not None:
        raise MediaError(
            f"frame {pattern.name(missing + 1)} is missing",
            "render it, or number the files without gaps",
        )
    return ExrSequence(tuple(file for _, file in numbered))


def _numbered_files(pattern: FramePattern) -> Iterator[tuple[int, Path]]:
    """The files of a pattern with their numbers."""
    if not is_folder(pattern.folder):
        return
    for file in pattern.folder.iterdir():
        if pattern.matches(file.name) and (digits := _DIGITS.search(file.name)):
            yield int(digits[0]), file


def _hint_for_folder(folder: Path) -> str:
    """The pattern of a folder's EXR files, if it has any."""
    name = min((f.name for f in folder.iterdir() if _DIGITS.search(f.name)), default="")
    if not name:
        return "give a video file, or the pattern of EXR files such as frames/%05d.exr"
    (digits,) = _DIGITS.findall(name)
    number = f"%0{len(digits)}d" if digits.startswith("0") else "%d"
    return f"give the pattern of its files: {folder / _DIGITS.sub(number, name)}"

"""Pictures, waveforms, proxies and measures of clips, made in threads, kept in a cache folder."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import LadderError, MediaError
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

T = TypeVar("T")

THUMBNAIL_PX = 384
"""Longest side of a thumbnail."""
CACHE_BYTES = 4 * 2**30
"""Largest sum of cached files; the oldest are deleted first."""
POSTER_FRAME = 8
"""Frame of a clip that its thumbnail shows, if it is that long."""
MAX_POINTS = 4000
MOST_RESULTS = 200


class MediaWork:
    """Work on media files of one server; each kind of work is done one piece at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pictures = ThreadPoolExecutor(1, "ladder-thumbnail")
        self._proxies = ThreadPoolExecutor(1, "ladder-proxy")
        self._measures = ThreadPoolExecutor(1, "ladder-measure")
        self._making: dict[Path, Future[None]] = {}
        self._failed: OrderedDict[Path, LadderError] = OrderedDict()
        self._results: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def thumbnail(self, path: Path) -> Path:
        """A small picture (WebP) of a clip or an image. Raises :class:`MediaError`."""
        target = self._folder / f"{_identity(path)}.thumbnail.webp"
        if not target.exists():
            await self._run(self._pictures, _write_thumbnail, path, target)
        return target

    async def proxy(self, path: Path) -> Path | None:
        """A copy that browsers play (H.264 in MP4), made once; ``None`` while it is being made.

        Raises :class:`MediaError` if it cannot be made.
        """
        target = self._folder / f"{_identity(path)}.proxy.mp4"
        if target in self._failed:
            raise self._failed.pop(target)
        if target.exists():
            return target
        if target not in self._making:
            self._making[target] = self._proxies.submit(self._make_proxy, path, target)
        return None

    async def waveform(self, path: Path, points: int) -> dict[str, Any]:
        """Length and (min, max) of the sound in ``points`` parts. Raises :class:`MediaError`."""
        count = min(max(points, 1), MAX_POINTS)
        return await self._remember(f"wave-{_identity(path)}-{count}", read_waveform, path, count)

    async def comparison(self, a: Path, b: Path) -> dict[str, Any]:
        """Measures of ``b`` against ``a``. Raises :class:`MediaError`."""
        return await self._remember(f"compare-{_identity(a)}-{_identity(b)}", compare, a, b)

    def close(self) -> None:
        """End the threads; a proxy under way is left unfinished."""
        for executor in (self._pictures, self._proxies, self._measures):
            executor.shutdown(wait=False, cancel_futures=True)

    async def _remember(
        self, key: str, work: Callable[..., dict[str, Any]], *args: Any
    ) -> dict[str, Any]:
        if key not in self._results:
            self._results[key] = await self._run(self._measures, work, *args)
            while len(self._results) > MOST_RESULTS:
                self._results.popitem(last=False)
        return self._results[key]

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, work, *args)

    def _make_proxy(self, path: Path, target: Path) -> None:
        try:
            write_proxy(path, target)
            _limit_cache(self._folder, CACHE_BYTES)
        except LadderError as error:
            self._failed[target] = error
            while len(self._failed) > MOST_RESULTS:
                self._failed.popitem(last=False)
        finally:
            self._making.pop(target, None)


def _identity(path: Path) -> str:
    """A name for the content of a file: its path, time and size."""
    first = (
        next(iter(sorted(path.parent.glob(f"*{path.suffix}"))), path) if "%" in path.name else path
    )
    status = first.stat()
    text = json.dumps([str(path), status.st_mtime_ns, status.st_size])
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _limit_cache(folder: Path, limit: int) -> None:
    """Delete the oldest files above ``limit`` bytes."""
    files = [(path.stat(), path) for path in folder.glob("*.*")]
    total = sum(status.st_size for status, _ in files)
    for status, path in sorted(files, key=lambda each: each[0].st_mtime):
        if total <= limit:
            return
        with suppress(OSError):
            path.unlink()
            total -= status.st_size


def _frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video, an image, or numbered pictures."""
    from latent_ladder.media.hdr import EXR_SUFFIX, load_exr, sdr_of_light
    from latent_ladder.media.image_input import load_image
    from latent_ladder.media.video_input import is_image
    from latent_ladder.media.video_reader import read_frames

    if "%" in path.name:
        for each in sorted(path.parent.glob(f"*{path.suffix}")):
            yield from _frames(each)
    elif path.suffix.lower() == EXR_SUFFIX:
        yield sdr_of_light(load_exr(path))
    elif is_image(path):
        yield load_image(path)
    else:
        yield from read_frames(path)


def _write_thumbnail(path: Path, target: Path) -> None:
    from PIL import Image

    frame: NDArray[np.uint8] | None = None
    for number, each in enumerate(_frames(path)):
        frame = each
        if number == POSTER_FRAME:
            break
    if frame is None:
        raise MediaError(f"{path.name} has no picture", "choose another file")
    picture = Image.fromarray(frame)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=82)
    with convert_write_errors(MediaError, "a thumbnail", target.parent, len(out.getvalue())):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, out.getvalue())


def write_proxy(path: Path, target: Path) -> None:
    """Write an H.264 copy of a video with its sound. Raises :class:`MediaError`."""
    from fractions import Fraction

    from latent_ladder.media.open_media import SAMPLE_RATE
    from latent_ladder.media.video_reader import probe, read_audio
    from latent_ladder.media.video_writer import VideoSpec, write_video

    sound, fps = None, Fraction(24)
    if "%" not in path.name:
        info = probe(path)
        fps = info.fps
        if info.audio_duration_s:
            sound = (read_audio(path), SAMPLE_RATE)
    frames = _even(_frames(path))
    first = next(frames, None)
    if first is None:
        raise MediaError(f"{path.name} has no frames", "choose another file")

    def all_frames() -> Iterator[NDArray[np.uint8]]:
        yield first
        yield from frames

    height, width = first.shape[:2]
    spec = VideoSpec((width, height), fps)
    write_video(target, all_frames(), spec, audio=sound, overwrite=True)


def _even(frames: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """The frames without the last row or column where a side is odd."""
    for frame in frames:
        height, width = frame.shape[:2]
        yield np.ascontiguousarray(frame[: height // 2 * 2, : width // 2 * 2])


def read_waveform(path: Path, points: int) -> dict[str, Any]:
    """Length in seconds, and minimum and maximum of each part of the sound, -1 to 1."""
    from latent_ladder.media.open_media import SAMPLE_RATE
    from latent_ladder.media.video_reader import read_audio

    mono = read_audio(path).mean(0)
    if not len(mono):
        raise MediaError(f"{path.name} has no sound", "choose another file")
    parts = np.array_split(mono, min(points, len(mono)))
    peaks = [[round(float(p.min()), 4), round(float(p.max()), 4)] for p in parts]
    return {"seconds": round(len(mono) / SAMPLE_RATE, 3), "peaks": peaks}


def compare(a: Path, b: Path) -> dict[str, Any]:
    """Measures of the clip ``b`` against ``a``, with the properties of both."""
    from latent_ladder.media.video_reader import probe
    from latent_ladder.metrics.measure import compare_files

    infos = [probe(path) for path in (a, b)]
    try:
        metrics: dict[str, Any] | None = compare_files(a, b).to_dict()
        note = None
    except MediaError as error:
        metrics, note = None, error.message
    sides = [
        {
            "width": info.width,
            "height": info.height,
            "frames": info.frames,
            "fps": float(info.fps),
            "seconds": round(info.duration_s, 3),
            "has_sound": bool(info.audio_duration_s),
        }
        for info in infos
    ]
    return {
        "frames": min(info.frames for info in infos),
        "fps": float(infos[0].fps),
        "width": max(info.width for info in infos),
        "height": max(info.height for info in infos),
        "metrics": metrics,
        "note": note,
        "a": sides[0],
        "b": sides[1],
    }

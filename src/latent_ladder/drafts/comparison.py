"""Video of a draft and its finished clip side by side, frame by frame, with the clip's sound.

The draft is the result of stage 1, decoded by the model and enlarged to the clip's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import RequestError, StoreError
from latent_ladder.media.contact_sheet import label_picture, resize_frames
from latent_ladder.media.open_media import SAMPLE_RATE
from latent_ladder.media.video_reader import read_audio, read_frames
from latent_ladder.media.video_writer import VideoSpec, check_video_path, write_video
from latent_ladder.pipeline.plan import PlannedStage, RunPlan
from latent_ladder.pipeline.preparation import Prepared
from latent_ladder.pipeline.run import Result, RunOptions
from latent_ladder.storage.artifact_store import Store

if TYPE_CHECKING:
    from torch import Tensor

GAP_PX = 4
MAX_WIDTH_PX = 3840
"""Widest comparison; of larger clips both sides are made smaller."""

LABELS = ("draft", "refined")


def comparison_path(clip: Path) -> Path:
    """The file of the comparison of ``clip``."""
    return clip.with_name(f"{clip.stem}.compare.mp4")


def check_comparison(prepared: Prepared, clip: Path, overwrite: bool) -> None:
    """Check that a comparison can be made and written, before anything is computed.

    Raises :class:`RequestError` for a request with one stage or a file that is no video, and
    :class:`MediaError` for a file that exists.
    """
    if sum(bool(stage.sigmas) for stage in prepared.plan.stages) < 2:
        raise RequestError(
            "--compare needs a draft and a refine stage, and the request has one stage",
            "leave out --compare, or choose a preset with a refine stage",
        )
    if clip.suffix.lower() in (".wav", ".gif", ".webp") or "%" in clip.name:
        raise RequestError(f"--compare needs a video file, not {clip.name}", "write an .mp4 file")
    check_video_path(comparison_path(clip), overwrite)


def write_comparison(prepared: Prepared, clip: Path, options: RunOptions) -> Path:
    """Write the comparison of a finished ``clip`` next to it; returns its path.

    Raises :class:`MediaError`, and :class:`StoreError` if the draft was removed meanwhile.
    """
    from latent_ladder.pipeline.latent_preview import preview_stream

    plan, store = prepared.plan, prepared.store
    base = draft_stage(plan)
    video = _load(store, base)
    device = prepared.memory.budget.device
    stream = preview_stream("full", plan.models.video_vae, store, None, device)
    size, fps = _side_size(plan), plan.request.fps
    draft_fps = plan.request.fps if base.resolution is None else base.resolution.fps
    draft = _at_rate(_single_frames(stream(video)), draft_fps, fps)
    frames = _side_by_side(draft, _single_frames(read_frames(clip)), size)
    sound = read_audio(clip)
    path = comparison_path(clip)
    write_video(
        path,
        frames,
        VideoSpec((2 * size[0] + GAP_PX, size[1]), fps),
        audio=(sound, SAMPLE_RATE) if sound.shape[1] else None,
        overwrite=options.overwrite,
    )
    return path


def add_comparison(result: Result, prepared: Prepared, options: RunOptions) -> Result:
    """The result with the comparison of its clip among its further files."""
    path = write_comparison(prepared, result.output, options)
    return replace(result, pictures=(*result.pictures, path))


def draft_stage(plan: RunPlan) -> PlannedStage:
    """The first stage of the plan that makes video latents."""
    return next(stage for stage in plan.stages if stage.position == 0)


def _load(store: Store, stage: PlannedStage) -> Tensor:
    found = store.get(stage.key)
    if found is None:
        raise StoreError(
            f"the draft of this clip is no longer in {store.root}", "make the clip again"
        )
    return found.load()["video"]


def _side_size(plan: RunPlan) -> tuple[int, int]:
    """Even (width, height) of one side."""
    width, height = plan.request.resolved.final_size
    scale = min(1.0, (MAX_WIDTH_PX - GAP_PX) / 2 / width)
    return 2 * round(width * scale / 2), 2 * round(height * scale / 2)


def _single_frames(chunks: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    for chunk in chunks:
        yield from chunk if chunk.ndim == 4 else (chunk,)


def _at_rate(
    frames: Iterator[NDArray[np.uint8]], rate: Fraction, wanted: Fraction
) -> Iterator[NDArray[np.uint8]]:
    """The frames of a clip at ``rate``, each repeated until the next is due at ``wanted``."""
    done = 0
    for number, frame in enumerate(frames, 1):
        while Fraction(done) / wanted < Fraction(number) / rate:
            yield frame
            done += 1


def _side_by_side(
    left: Iterator[NDArray[np.uint8]], right: Iterator[NDArray[np.uint8]], size: tuple[int, int]
) -> Iterator[NDArray[np.uint8]]:
    """Frames (1, H, W, 3) with both clips; the last frame of a shorter draft stays."""
    labels = [label_picture(text) for text in LABELS]
    shown = None
    for refined in right:
        shown = next(left, shown)
        sides = [refined if shown is None else shown, refined]
        picture = np.zeros((size[1], 2 * size[0] + GAP_PX, 3), np.uint8)
        for side, (frame, label) in enumerate(zip(sides, labels, strict=True)):
            x = side * (size[0] + GAP_PX)
            picture[:, x : x + size[0]] = _fit(frame, size)
            rows, cols = min(label.shape[0], size[1]), min(label.shape[1], size[0])
            picture[:rows, x : x + cols] = label[:rows, :cols]
        yield picture[None]


def _fit(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The frame in the size of a side; a canvas with another shape is cropped to its centre."""
    height, width = frame.shape[:2]
    if (width, height) == size:
        return frame
    crop_h = min(height, round(width * size[1] / size[0]))
    crop_w = min(width, round(height * size[0] / size[1]))
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    cropped = frame[top : top + crop_h, left : left + crop_w]
    resized: NDArray[np.uint8] = resize_frames(cropped[None], size)[0]
    return resized

"""Page of a session of drafts: every draft plays, with the command that refines it.

The page is one file: the small clips are embedded, as many as :data:`CLIP_BYTES` allows; of the
others a picture is.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.media.contact_sheet import Cell
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.pages.clip_page import ClipCard, ClipPage, clip_page
from latent_ladder.pages.parts import bytes_uri, write_html
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import default_root
from latent_ladder.storage.run_records import DraftRecord, RunRecord
from latent_ladder.storage.temporary_files import part_path

CLIP_BYTES = 12_000_000
"""Largest sum of the embedded clips."""

NUMBERS = ("motion", "detail", "flicker")
"""Measures of a draft on its card."""


def write_draft_page(
    path: Path,
    record: RunRecord,
    cells: Sequence[Cell],
    fps: Fraction,
    *,
    store: Path,
    command: str = "",
) -> Path:
    """Write the page of the drafts in ``record``; ``cells`` are their frames in the same order.

    ``store`` is the folder that the commands of the page need, ``command`` the one that made the
    drafts. Raises :class:`MediaError`.
    """
    from latent_ladder._version import __version__

    request = Request.from_dict(record.request)
    prompts = list(dict.fromkeys(draft.prompt for draft in record.drafts))
    failed = sum(draft.status == "failed" for draft in record.drafts)
    width, height = request.resolved.final_size
    meta = [f"{len(record.drafts)} drafts" + (f", {failed} failed" if failed else "")]
    meta += [f"of a clip of {width}×{height}", f"{request.frames} frames at {float(fps):g} fps"]
    meta += [f"preset {request.preset}"] if request.preset else []
    meta += [f"{len(prompts)} prompts"] if len(prompts) > 1 else []
    text = clip_page(
        ClipPage(
            title=prompts[0] if len(prompts) == 1 else "Drafts",
            meta=meta,
            cards=list(_cards(path, record, cells, fps, store)),
            request=request.to_toml(),
            footer=" · ".join([f"latent-ladder {__version__}, run {record.id}", command]).strip(
                " ·"
            ),
        )
    )
    return write_html(path, text)


def refine_command(run: str, number: int, store: Path) -> str:
    """The command that refines a draft, with ``--store`` where that is not the user's own."""
    words = ["ladder", "refine", f"{run}:{number}", "-o", f"draft-{number}.mp4"]
    words += [] if store == default_root() else ["--store", str(store)]
    return shlex.join(words)


def _cards(
    path: Path, record: RunRecord, cells: Sequence[Cell], fps: Fraction, store: Path
) -> Iterator[ClipCard]:
    left = CLIP_BYTES
    for draft, cell in zip(record.drafts, cells, strict=True):
        clip = _encode(path, cell.frames, fps) if len(cell.frames) and left > 0 else b""
        left -= len(clip)
        yield ClipCard(
            number=draft.number,
            name=f"seed {draft.seed}",
            prompt=draft.prompt,
            size=(cell.frames.shape[2], cell.frames.shape[1]),
            source=bytes_uri(clip, "video/mp4") if clip and left >= 0 else "",
            poster=_poster(cell.frames),
            numbers=_numbers(draft.metrics),
            flags=tuple(draft.metrics.get("flags", ())),
            error=(draft.error or "failed") if draft.status == "failed" else "",
            command=_command(record, draft, store),
        )


def _command(record: RunRecord, draft: DraftRecord, store: Path) -> str:
    return "" if draft.status == "failed" else refine_command(record.id, draft.number, store)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: metrics.get(name) for name in NUMBERS}


def _encode(path: Path, frames: NDArray[np.uint8], fps: Fraction) -> bytes:
    """The frames as a small MP4 file, which is written next to the page for a moment."""
    part = part_path(path.with_suffix(".mp4"))
    try:
        write_video(part, iter([frames]), VideoSpec((frames.shape[2], frames.shape[1]), fps))
        return part.read_bytes()
    finally:
        part.unlink(missing_ok=True)


def _poster(frames: NDArray[np.uint8]) -> str:
    from PIL import Image

    if not len(frames):
        return ""
    out = io.BytesIO()
    Image.fromarray(frames[len(frames) // 2]).save(out, "WEBP", quality=80)
    return bytes_uri(out.getvalue(), "image/webp")

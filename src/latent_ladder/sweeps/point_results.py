"""Results of measured points: plain values, stored as one small JSON file each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from latent_ladder.errors import MediaError
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

SHOWN: Mapping[str, tuple[str, str, str]] = {
    "motion_kept": ("motion kept", "", "1: moves exactly as the draft; 0: no common motion"),
    "detail_added_db": ("detail added", "dB", "fine detail more than in the draft; 0: none added"),
    "structure_similarity": ("similarity", "", "SSIM with the draft; 1: the same picture"),
    "flicker": ("flicker", "levels", "changes of brightness that motion does not explain"),
    "warping_error": ("warping", "levels", "change between frames that motion does not explain"),
    "motion": ("motion", "%/s", "mean speed, in frame diagonals"),
    "detail": ("detail", "levels", "strength of the finest detail"),
    "color_shift": (
        "colour",
        "dE",
        "difference of the mean colour from the draft's; about 2 is just visible",
    ),
    "seconds": (
        "time",
        "s",
        "time of the stages after the draft, without decoding",
    ),
}
"""The numbers of a point in display order: label, unit, meaning."""


@dataclass(frozen=True)
class PointResult:
    """One point, or the draft it is measured against (``number`` 0).

    ``status`` is "done" or "failed"; ``metrics`` those of the clip, ``comparison`` against its
    draft. ``frames`` are WebP files of full-size frames, ``clip`` a small video, both in the
    folder of the result's own file; ``shown`` are the indices of the frames.
    """

    key: str
    number: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    status: str = "done"
    error: str | None = None
    seconds: float = 0.0
    draft: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    comparison: Mapping[str, Any] | None = None
    size: tuple[int, int] = (0, 0)
    frames: tuple[str, ...] = ()
    shown: tuple[int, ...] = ()
    clip: str | None = None

    def number_of(self, name: str) -> float | None:
        """One of the numbers of :data:`SHOWN`; ``None`` if it is not known."""
        against = self.comparison or {}
        values = {**self.metrics, **against, "color_shift": against.get("color_drift")}
        found = values.get(name, self.seconds or None if name == "seconds" else None)
        return None if found is None else float(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def save_result(folder: Path, result: PointResult) -> None:
    """Write ``folder/KEY.json`` whole. Raises :class:`MediaError`."""
    data = json.dumps(result.to_dict(), ensure_ascii=False, indent=1).encode()
    with convert_write_errors(MediaError, f"result {result.key}", folder, len(data)):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{result.key}.json", data)


def load_result(folder: Path, key: str) -> PointResult | None:
    """The stored result of ``key``; ``None`` if it, or one of its files, is missing."""
    try:
        data = json.loads((folder / f"{key}.json").read_text("utf-8"))
        known = {f.name for f in fields(PointResult)}
        lists = {n: tuple(data[n]) for n in ("sets", "size", "frames", "shown")}
        result = PointResult(**({n: v for n, v in data.items() if n in known} | lists))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or unreadable: it is measured again
    files = [*result.frames, *([result.clip] if result.clip else [])]
    whole = all((folder / name).is_file() for name in files)
    return result if whole and result.status == "done" else None

"""What is known of a measured point: plain values, kept as one small JSON file each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from latent_ladder.errors import MediaError
from latent_ladder.storage.atomic_write import write_whole, writing

SHOWN: Mapping[str, tuple[str, str, str]] = {
    "motion_kept": ("motion kept", "", "1: moves as the draft does; 0: nothing in common"),
    "detail_added_db": ("detail added", "dB", "fine detail beyond the draft's; 0: none added"),
    "structure_similarity": ("similarity", "", "SSIM with the draft; 1: the same picture"),
    "flicker": ("flicker", "levels", "trembling of brightness that motion does not explain"),
    "warping_error": ("warping", "levels", "change that motion does not explain"),
    "motion": ("motion", "%/s", "mean speed, in frame diagonals"),
    "detail": ("detail", "levels", "strength of the finest detail"),
    "color_shift": ("colour", "dE", "mean colour against the draft's; 2 can just be seen"),
    "seconds": (
        "time",
        "s",
        "of the stages after the draft when they were made, without decoding",
    ),
}
"""The numbers of a point in the order they are shown: name, unit, meaning."""


@dataclass(frozen=True)
class PointResult:
    """One point, or the draft it is measured against (``number`` 0).

    ``status`` is "done" or "failed"; ``metrics`` those of the clip, ``comparison`` against its
    draft. ``frames`` are WebP files of whole frames, ``clip`` a small video, both beside the
    result's own file; ``shown`` the frames' indices.
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
        """One of :data:`SHOWN`; ``None`` where it is not known."""
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
    with writing(MediaError, f"result {result.key}", folder, len(data)):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{result.key}.json", data)


def load_result(folder: Path, key: str) -> PointResult | None:
    """The result of ``key`` with its pictures; ``None`` if it is not there or not whole."""
    try:
        data = json.loads((folder / f"{key}.json").read_text("utf-8"))
        known = {f.name for f in fields(PointResult)}
        lists = {n: tuple(data[n]) for n in ("sets", "size", "frames", "shown")}
        result = PointResult(**({n: v for n, v in data.items() if n in known} | lists))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # made anew
    files = [*result.frames, *([result.clip] if result.clip else [])]
    whole = all((folder / name).is_file() for name in files)
    return result if whole and result.status == "done" else None

"""Files of a sweep in addition to its page: ``sweep.json`` and ``sweep.csv``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latent_ladder.errors import MediaError
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.sweeps.point_results import SHOWN, PointResult
from latent_ladder.sweeps.recommend import Choice
from latent_ladder.sweeps.report_files import CSV, JSON, POINTS
from latent_ladder.sweeps.sweep_plan import Sweep
from latent_ladder.sweeps.sweep_run import SweepResult


def default_folder(sweep: Sweep) -> Path:
    """Default folder of a sweep; the same points always get the same folder."""
    return Path(f"sweep-{sweep.id[3:11]}")


def check_folder(folder: Path, sweep: Sweep, overwrite: bool) -> None:
    """Raise :class:`MediaError` if ``folder`` is a file or holds the report of another sweep."""
    if folder.exists() and not folder.is_dir():
        raise MediaError(
            f"{folder} is a file, expected a folder for the report", "name another with -o"
        )
    try:
        found = json.loads((folder / JSON).read_text("utf-8"))["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found != sweep.id and not overwrite:
        raise MediaError(
            f"{folder} holds the report of another sweep",
            "--overwrite replaces it, or name another folder with -o",
        )


def body(sweep: Sweep, result: SweepResult, choice: Choice, command: str) -> dict[str, Any]:
    """Everything about a sweep as plain data."""
    from latent_ladder._version import __version__

    return {
        "id": sweep.id,
        "version": __version__,
        "command": command,
        "run": result.run,
        "source": sweep.source,
        "request": sweep.prepared.request.to_dict(),
        "axes": [{"path": a.path, "values": list(a.values)} for a in sweep.axes],
        "choice": choice.to_dict(),
        "points": [point.to_dict() for point in result.points],
        "drafts": {key: draft.to_dict() for key, draft in result.drafts.items()},
        "stages_made": [s.stage for s in result.stages if not s.reused],
        "warnings": list(result.warnings),
    }


def table_rows(points: Iterable[PointResult], choice: Choice) -> list[dict[str, Any]]:
    """One row per point: its settings, status and numbers."""
    return [
        {
            "point": p.number,
            **p.settings,
            "status": p.status,
            **{name: p.number_of(name) for name in SHOWN},
            "recommended": p.number == choice.point,
            "error": p.error or "",
        }
        for p in points
    ]


def write_files(
    folder: Path, sweep: Sweep, result: SweepResult, choice: Choice, command: str = ""
) -> None:
    """Write ``sweep.json`` and ``sweep.csv``. Raises :class:`MediaError`."""
    rows = table_rows(result.points, choice)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    data = json.dumps(body(sweep, result, choice, command), ensure_ascii=False, indent=1)
    for name, content in ((JSON, data), (CSV, text.getvalue())):
        encoded = content.encode("utf-8", "backslashreplace")
        with convert_write_errors(MediaError, name, folder, len(encoded)):
            write_atomically(folder / name, encoded)


def pictures_folder(folder: Path) -> Path:
    """Folder of the frames and small videos of the points."""
    return folder / POINTS

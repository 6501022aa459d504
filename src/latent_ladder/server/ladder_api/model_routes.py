"""Model files: what is here, what presets need, what can be downloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from latent_ladder.checkpoints.download import licence_name
from latent_ladder.jobs.downloading import catalog
from latent_ladder.server.ladder_api.api_errors import check_query
from latent_ladder.server.ladder_api.preset_documents import missing_rows
from latent_ladder.server.ladder_api.state_routes import device_of
from latent_ladder.server.ladder_api.studio_context import get_studio


async def get_models(request: web.Request) -> web.Response:
    """The report of `ladder doctor`: files, presets, memory fit, catalogue; `fresh=1`: read now."""
    check_query(request.query, ("fresh",))
    fresh = request.query.get("fresh") in ("1", "true")
    report = await get_studio(request).report(fresh=fresh)
    return web.json_response(await asyncio.to_thread(_document, report))


def _document(report: Mapping[str, Any]) -> dict[str, Any]:
    budget = report["budget"]
    return {
        "device": device_of(report),
        "runs_now": report["runs_now"],
        "files": [_file(row) for row in report["models"]],
        "damaged": report["damaged"],
        "folders": report["folders"],
        "fits": [_fit(state, budget) for state in report["presets"]],
        "catalog": list(_catalog(report)),
        "warnings": [*report["warnings"], *(each["message"] for each in report["misplaced"])],
        "error": report["error"],
        "disk": report["disk"],
    }


def _file(row: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "path", "name", "role", "family", "precision", "container", "bytes", "chosen", "embedded",
    )  # fmt: skip
    problems = [row["assumed"]] if row["assumed"] else []
    return {**{name: row[name] for name in names}, "problems": problems}


def _fit(state: Mapping[str, Any], budget: Mapping[str, Any] | None) -> dict[str, Any]:
    peak = max((stage["peak_bytes"] for stage in state["stages"]), default=None)
    return {
        "preset": state["name"],
        "ready": state["ready"],
        "peak_bytes": peak,
        "budget_bytes": None if budget is None else budget["bytes"],
        "fits": None if peak is None and not state["too_big"] else not state["too_big"],
        "missing": missing_rows(state),
        "advice": [*state["advice"], *([state["too_big"]] if state["too_big"] else [])],
    }


def _catalog(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    here = {Path(row["path"]).name: row["path"] for row in report["models"]}
    for entry, file in catalog().items():
        found = here.get(file.name)
        yield {
            "id": entry,
            "title": file.name,
            "family": file.family,
            "folder": file.folder,
            "precision": file.precision,
            "roles": list(file.roles),
            "bytes": file.bytes,
            "license": licence_name(file),
            "license_url": f"https://{file.page}",
            "page": f"https://{file.page}",
            "gated": file.gated,
            "have": found is not None,
            "file": found,
        }

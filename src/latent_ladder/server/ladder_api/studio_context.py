"""Objects that the routes of ``/ladder`` share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from latent_ladder.errors import LadderError
from latent_ladder.jobs.workplace import Workplace
from latent_ladder.server.app_context import CONTEXT, Context
from latent_ladder.server.ladder_api.events import EventHub
from latent_ladder.server.ladder_api.gallery import Gallery
from latent_ladder.server.ladder_api.job_documents import JobDocuments
from latent_ladder.server.ladder_api.media_work import MediaWork
from latent_ladder.server.ladder_api.planner import Planner
from latent_ladder.server.ladder_api.run_index import RunFilter
from latent_ladder.server.ladder_api.upload_store import UploadStore
from latent_ladder.server.request_progress import now_iso

logger = logging.getLogger(__name__)

REPORT_S = 20.0
"""Age at which the report about the model files is made again."""


@dataclass
class Studio:
    """What one server has for ``/ladder``."""

    context: Context
    place: Workplace
    gallery: Gallery
    uploads: UploadStore
    media: MediaWork
    documents: JobDocuments
    hub: EventHub
    planner: Planner = field(default_factory=Planner)
    started: str = field(default_factory=now_iso)
    _report: Mapping[str, Any] | None = None
    _reported: float = 0.0
    _report_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _warming: asyncio.Task[None] | None = None

    async def report(self, *, fresh: bool = False) -> Mapping[str, Any]:
        """The report about model files, presets and memory; ``fresh``: read now."""
        async with self._report_lock:
            old = time.monotonic() - self._reported > REPORT_S
            if self._report is None or fresh or old:
                self._report = await self.planner.call(models_report, self.place)
                self._reported = time.monotonic()
            return self._report

    def warm_up(self) -> None:
        """Read model files and run records in the background, unless that has begun."""
        if self._warming is None:
            self._warming = asyncio.create_task(self._warm_up())

    async def _warm_up(self) -> None:
        try:
            await asyncio.to_thread(self.gallery.index.page, RunFilter(), 1, None)
            await self.report()
        except LadderError as error:
            logger.warning("the model files cannot be read: %s", error.message)
        finally:
            self._warming = None

    def stop_warming(self) -> None:
        """End the work in the background."""
        if self._warming is not None:
            self._warming.cancel()

    @property
    def known_report(self) -> Mapping[str, Any] | None:
        """The last report, if one was made."""
        return self._report


def models_report(place: Workplace) -> dict[str, Any]:
    """The report of ``ladder doctor`` as plain data; runs in the planner's process."""
    from latent_ladder.diagnostics.doctor import examine, report
    from latent_ladder.pipeline.preparation import default_preset

    checkup = examine(place.folders, place.root, place.memory, place.device)
    try:
        preset: str | None = default_preset(checkup.library)
    except LadderError:
        preset = None
    return {**report(checkup), "default_preset": preset}


STUDIO = web.AppKey("studio", Studio)


def build_studio(context: Context) -> Studio:
    """The objects of one server."""
    config = context.config
    place = Workplace.from_settings(config.worker_settings())
    own = config.store / "studio"
    media = MediaWork(own / "cache")
    gallery = Gallery(place.store, own, config.folders.output)
    documents = JobDocuments(context.jobs, gallery.describe_output)
    uploads = UploadStore(own / "uploads")
    uploads.remove_partial()
    return Studio(
        context,
        place,
        gallery,
        uploads,
        media,
        documents,
        EventHub(context.jobs, documents),
    )


def get_studio(request: web.Request) -> Studio:
    """The objects of the server that received a request."""
    return request.app[STUDIO]


def add_studio(app: web.Application) -> None:
    """Add the objects to an application; they are closed with it."""
    studio = build_studio(app[CONTEXT])
    app[STUDIO] = studio

    async def start(_: web.Application) -> None:
        if studio.context.config.opens_studio:
            studio.warm_up()

    async def close(_: web.Application) -> None:
        studio.stop_warming()
        await studio.hub.close()
        studio.planner.close()
        studio.media.close()
        studio.gallery.close()

    app.on_startup.append(start)
    app.on_shutdown.append(close)


def own_folders(studio: Studio) -> tuple[Path, ...]:
    """The folders whose files a request may name."""
    config = studio.context.config
    folders = (studio.uploads.folder, config.folders.input, config.folders.output)
    return (*folders, *(folder.path for folder in config.models))

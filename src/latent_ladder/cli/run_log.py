"""Log lines for a run: model files and stages of its plan, then what happens while it runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from latent_ladder.cli.console import format_bytes
from latent_ladder.pipeline.events import (
    DraftDone,
    DraftStarted,
    Event,
    OnEvent,
    PointDone,
    PointStarted,
    Preview,
    RunStarted,
    StageDone,
    StageStarted,
    StepDone,
    Waiting,
    Warned,
)

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Prepared

logger = logging.getLogger(__name__)


def log_plan(prepared: Prepared) -> None:
    """Log the result, the model files and the stages of a plan, at level INFO."""
    if not logger.isEnabledFor(logging.INFO):
        return
    report = prepared.report()
    logger.info("plan: %s", prepared.headline())
    logger.info("store: %s", prepared.store.root)
    for model in report["models"]:
        logger.info("model: %s (%s): %s", model["role"], model["precision"], model["file"])
    for row in report["rows"]:
        state = "stored" if row["stored"] else "to make"
        logger.info(
            "planned stage: %s, %s, memory %s, %s",
            row["stage"], row["canvas"], row["memory"], state,
        )  # fmt: skip


def log_events(listener: OnEvent) -> OnEvent:
    """A listener that logs each event and passes it on to ``listener``."""

    def log_and_pass_on(event: Event) -> None:
        log_event(event)
        listener(event)

    return log_and_pass_on


def log_event(event: Event) -> None:
    """Log one event of a run; steps and previews at level DEBUG, warnings at WARNING."""
    match event:
        case StageStarted():
            logger.info("stage %s started (%d of %d)", event.stage, event.position, event.of)
        case StageDone(reused=True):
            logger.info("stage %s reused: %s", event.stage, event.key)
        case StageDone():
            peak = format_bytes(event.peak_memory_bytes)
            logger.info("stage %s done in %.2f s, peak %s", event.stage, event.seconds, peak)
            logger.debug("stage %s stored as %s", event.stage, event.key)
        case Warned():
            logger.warning("%s: %s", event.code, event.message)
        case Waiting():
            logger.info("waiting for process %d, which makes the same clip", event.pid)
        case DraftStarted():
            logger.info("draft %d of %d started, seed %d", event.number, event.of, event.seed)
        case PointStarted():
            logger.info("point %d of %d started: %s", event.number, event.of, event.settings)
        case PointDone():
            state = event.error or ("reused" if event.reused else "done")
            logger.info("point %d of %d: %s", event.number, event.of, state)
        case DraftDone(error=None):
            logger.debug("draft %d is done", event.number)
        case DraftDone():
            logger.warning("draft %d: %s", event.number, event.error)
        case RunStarted():
            logger.info("run %s", event.run)
        case StepDone():
            logger.debug("stage %s: %d of %d steps", event.stage, event.done, event.steps)
        case Preview():
            logger.debug("preview of stage %s: %s", event.stage, event.path)

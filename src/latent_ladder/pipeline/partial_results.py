"""Partial results of a long sampling stage, so that an interrupted run continues from them.

A clip that is made in temporal windows is stored after each of them, under a key derived from the
stage's; when the stage is complete, that artefact is removed. A window depends only on the request
and the windows before it, so a resumed stage gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from latent_ladder.errors import StoreError
from latent_ladder.pipeline.artifact_keys import partial_key
from latent_ladder.pipeline.plan import PlannedStage
from latent_ladder.request.windows import Window
from latent_ladder.storage.artifact_store import Store

if TYPE_CHECKING:
    from latent_ladder.pipeline.temporal_windows import PartialClip


def partial_keys(stage: PlannedStage) -> tuple[str, ...]:
    """The key of a stage's unfinished clip; none if it is made in one piece."""
    return (partial_key(stage.key),) if len(stage.windows) > 1 else ()


@dataclass(frozen=True)
class PartialResult:
    """The unfinished clip of one sampling stage in a store."""

    store: Store
    stage: PlannedStage

    def resume(self, clip: PartialClip) -> tuple[PartialClip, int]:
        """The clip with all stored windows, and their number; ``clip`` and 0 if there are none."""
        for key in partial_keys(self.stage):
            found = self.store.get(key)
            if found is not None:
                tensors = found.load()
                made = replace(clip, video=tensors["video"], audio=tensors.get("audio"))
                return made, int(found.meta["windows"])
        return clip, 0

    def save(self, clip: PartialClip, window: Window) -> None:
        """Store the clip after a window, except after the last: then the stage is stored itself."""
        if window.number + 1 == len(self.stage.windows):
            return
        tensors = {"video": clip.video} | ({} if clip.audio is None else {"audio": clip.audio})
        meta = {"stage": "windows", "name": self.stage.name, "windows": window.number + 1}
        for key in partial_keys(self.stage):
            # without it the run goes on; it would only start this stage again after a crash
            self.store.try_put(key, tensors, meta)

    def remove(self) -> None:
        """Remove the unfinished clip from the store; one that cannot be removed stays."""
        for key in partial_keys(self.stage):
            with suppress(StoreError):
                self.store.remove(key)

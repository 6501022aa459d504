"""What a long stage has made before it is whole, so that a run that was killed goes on from there.

A clip made in windows is stored after each of them under a key of its own, which follows from the
stage's; once the stage is whole, that is removed. A window depends on nothing but the request and
the windows before it, so a stage that was resumed gives the bits of one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from latent_ladder.pipeline.plan import PlannedStage
from latent_ladder.request.windows import Window
from latent_ladder.storage.artifact_store import Store, artefact_key

if TYPE_CHECKING:
    from latent_ladder.pipeline.temporal_windows import Clip

VERSION = 1


def progress_keys(stage: PlannedStage) -> tuple[str, ...]:
    """The key of a stage's unfinished clip; none where it is made in one piece."""
    if len(stage.windows) < 2:
        return ()
    return (artefact_key("windows", VERSION, {}, [stage.key], []),)


@dataclass(frozen=True)
class Progress:
    """The unfinished clip of one sampling stage in a store."""

    store: Store
    stage: PlannedStage

    def resumed(self, clip: Clip) -> tuple[Clip, int]:
        """The clip as far as it was made before, and of how many windows that is."""
        for key in progress_keys(self.stage):
            found = self.store.get(key)
            if found is not None:
                tensors = found.load()
                made = replace(clip, video=tensors["video"], audio=tensors.get("audio"))
                return made, int(found.meta["windows"])
        return clip, 0

    def keep(self, clip: Clip, window: Window) -> None:
        """Store the clip after one of its windows; after the last one the stage stores it whole."""
        if window.number + 1 == len(self.stage.windows):
            return
        tensors = {"video": clip.video} | ({} if clip.audio is None else {"audio": clip.audio})
        meta = {"stage": "windows", "name": self.stage.name, "windows": window.number + 1}
        for key in progress_keys(self.stage):
            self.store.put(key, tensors, meta)

    def forget(self) -> None:
        """Remove what was kept."""
        for key in progress_keys(self.stage):
            self.store.remove(key)

"""Small pictures of a clip while a node denoises it, for whoever follows a graph.

A linear projection of the estimate, as ``ladder make --preview`` shows it; fitted once per video
VAE and then kept in the store. It may take a twentieth of the time of a run at most.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import CheckpointNotFound
from latent_ladder.pipeline.latent_preview import SHARE, Projection, enlarged, projection
from latent_ladder.storage.artifact_store import Store

PREVIEW_INTERVAL_S = 0.5
JPEG_QUALITY = 80

FindComponent = Callable[[Component, str], Component]
"""The part of a role that goes with a transformer. Raises :class:`CheckpointNotFound`."""


class LivePreviews:
    """Gives a JPEG of an estimate when it is time for one again."""

    def __init__(self, companion: FindComponent, store: Store) -> None:
        self._companion, self._store = companion, store
        self._known: dict[str, Projection | None] = {}
        self._due = 0.0

    def picture(self, transformer: Component, estimate: Callable[[], Tensor]) -> bytes | None:
        """A strip of the clip, side by side; ``estimate()`` gives latents (1, C, F, H, W).

        ``None`` while it is too early, and for a transformer without a video VAE.
        """
        began = time.monotonic()
        if began < self._due:
            return None
        if transformer.id not in self._known:
            self._known[transformer.id] = self._fitted(transformer)
            began = time.monotonic()  # fitting is done once and has no share
        to_rgb = self._known[transformer.id]
        if to_rgb is None:
            return None
        data = encode_jpeg(to_rgb, estimate())
        spent = time.monotonic() - began
        self._due = began + max(PREVIEW_INTERVAL_S, spent / SHARE)
        return data

    def _fitted(self, transformer: Component) -> Projection | None:
        try:
            return projection(self._companion(transformer, "video_vae"), self._store)
        except CheckpointNotFound:
            return None


def encode_jpeg(to_rgb: Projection, latents: Tensor) -> bytes:
    """A few frames of latents (1, C, F, H, W), side by side."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(enlarged(to_rgb.strip(latents))).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()

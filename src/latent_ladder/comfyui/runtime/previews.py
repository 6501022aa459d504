"""Live previews of a graph: small images of a clip while a node denoises it.

They are a linear projection of the estimate, as for ``ladder make --preview``, fitted once per
video VAE and then stored. Previews take at most a twentieth of the time of a run.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import CheckpointNotFound
from latent_ladder.pipeline.latent_preview import SHARE, Projection, enlarge, load_projection
from latent_ladder.storage.artifact_store import Store

PREVIEW_INTERVAL_S = 0.5
JPEG_QUALITY = 80

FindComponent = Callable[[Component, str], Component]
"""Finds the part of a role for a transformer. Raises :class:`CheckpointNotFound`."""


class LivePreviews:
    """Makes a JPEG of the current estimate whenever one is due."""

    def __init__(self, companion: FindComponent, store: Store) -> None:
        self._companion, self._store = companion, store
        self._known: dict[str, Projection | None] = {}
        self._due = 0.0

    def picture(self, transformer: Component, estimate: Callable[[], Tensor]) -> bytes | None:
        """A strip of a few frames as JPEG; ``estimate()`` computes latents (1, C, F, H, W).

        ``None`` if none is due, and for a transformer without a video VAE.
        """
        began = time.monotonic()
        if began < self._due:
            return None
        if transformer.id not in self._known:
            self._known[transformer.id] = self._projection_for(transformer)
            began = time.monotonic()  # fitting is done once and does not count as preview time
        to_rgb = self._known[transformer.id]
        if to_rgb is None:
            return None
        data = encode_jpeg(to_rgb, estimate())
        spent = time.monotonic() - began
        self._due = began + max(PREVIEW_INTERVAL_S, spent / SHARE)
        return data

    def _projection_for(self, transformer: Component) -> Projection | None:
        try:
            return load_projection(self._companion(transformer, "video_vae"), self._store)
        except CheckpointNotFound:
            return None


def encode_jpeg(to_rgb: Projection, latents: Tensor) -> bytes:
    """A few frames of latents (1, C, F, H, W) side by side, as JPEG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(enlarge(to_rgb.strip(latents))).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()

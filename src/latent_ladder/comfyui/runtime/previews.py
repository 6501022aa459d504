"""Preview images of a clip while a node samples it.

A preview is a linear projection of the x0 estimate to RGB, as in ``ladder make --preview``. The
projection is fitted once per video VAE and stored; previews take a limited share of the run time.
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
"""Returns the component of a role that fits a transformer; raises :class:`CheckpointNotFound`."""


class LivePreviews:
    """Source of JPEG previews, limited in rate and in share of the run time."""

    def __init__(self, find_component: FindComponent, store: Store) -> None:
        self._find_component, self._store = find_component, store
        self._projections: dict[str, Projection | None] = {}
        self._next_time = 0.0

    def render(self, transformer: Component, estimate: Callable[[], Tensor]) -> bytes | None:
        """Return a JPEG of a few frames side by side, or ``None``.

        ``estimate()`` returns latents (1, C, F, H, W). The result is ``None`` if the last preview
        is too recent, and for a transformer without a video VAE.
        """
        started = time.monotonic()
        if started < self._next_time:
            return None
        if transformer.id not in self._projections:
            self._projections[transformer.id] = self._find_projection(transformer)
            started = time.monotonic()  # the time of fitting is not counted
        to_rgb = self._projections[transformer.id]
        if to_rgb is None:
            return None
        data = encode_jpeg(to_rgb, estimate())
        spent = time.monotonic() - started
        self._next_time = started + max(PREVIEW_INTERVAL_S, spent / SHARE)
        return data

    def _find_projection(self, transformer: Component) -> Projection | None:
        try:
            return load_projection(self._find_component(transformer, "video_vae"), self._store)
        except CheckpointNotFound:
            return None


def encode_jpeg(to_rgb: Projection, latents: Tensor) -> bytes:
    """Return a JPEG of a few frames of latents (1, C, F, H, W), side by side."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(enlarge(to_rgb.strip(latents))).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()

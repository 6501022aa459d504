"""Choice of the video decoder where a model folder has both kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from latent_ladder.checkpoints.families import FAMILIES
from latent_ladder.checkpoints.selection import ModelSet
from latent_ladder.errors import RequestError
from latent_ladder.memory.planner import Budget
from latent_ladder.request.model import Request

DIFFUSION_BYTES = 20 * 2**30
"""Free device memory from which on the diffusion decoder is the default of its family: that of a
card with 24 GB."""


def with_decoder(models: ModelSet, request: Request, budget: Callable[[], Budget]) -> ModelSet:
    """The models with the video decoder of the request.

    "auto" is the kind that the family is published with, but the convolutional one on a small
    device. Raises :class:`CheckpointNotFound` if the kind of decoder is not there, and
    :class:`RequestError` for a grid of tiles, which a diffusion decoder does not have.
    """
    decoders, wanted = models.video_decoders, request.decode.decoder
    if wanted == "auto":
        wanted = FAMILIES[models.family].decoder
        if len(decoders) > 1 and wanted == "diffusion" and _is_small(budget()):
            wanted = "conv"
        if wanted not in decoders:
            wanted = "diffusion" if "diffusion" in decoders else "conv"
    elif wanted not in decoders:
        have = ", ".join(decoders) or "none"
        raise models.missing_error(
            "video_vae", f"decode.decoder={wanted} needs one with that decoder; found: {have}"
        )
    if wanted == "diffusion" and request.decode.grid != "auto":
        raise RequestError(
            "decode.grid is for the convolutional decoder, the diffusion decoder has no grid",
            "use decode.grid=auto, or decode.decoder=conv",
        )
    chosen = decoders.get(wanted, models.video_vae)
    if chosen.id == models.decoding_vae.id:
        return models
    same = chosen.id == models.video_vae.id
    return replace(models, video_decoder=None if same else chosen)


def _is_small(available: Budget) -> bool:
    return available.device == "cpu" or available.device_bytes < DIFFUSION_BYTES

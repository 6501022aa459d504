"""Choice of the duration head, which predicts the length of a clip from its prompt."""

from __future__ import annotations

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.families import FAMILIES
from latent_ladder.checkpoints.selection import Library, ModelSet, missing_error
from latent_ladder.errors import RequestError


def find_duration_head(models: ModelSet, library: Library) -> Component:
    """The duration head for these models.

    Raises :class:`RequestError` for a family without one, :class:`CheckpointNotFound` if the file
    is missing or does not fit.
    """
    if not FAMILIES[models.family].duration_head:
        raise RequestError(
            f"an automatic duration needs LTX-2.5, the transformer is LTX-{models.family}",
            "use --duration SECONDS",
        )
    registers = "{}_embeddings_connector.learnable_registers"
    wanted = [models.connectors.shape(registers.format(s))[1] for s in ("video", "audio")]
    reasons = []
    for found in library.of("duration_head"):
        part = found.component
        widths = [part.shape(f"{s}_input_proj.weight")[1] for s in ("video", "audio")]
        if widths == wanted:
            return part
        reasons.append(f"{found.path.name}: needs contexts of widths {widths}, these have {wanted}")
    raise missing_error(
        "duration_head",
        "; ".join(reasons) or f"searched {', '.join(map(str, library.folders))}",
        family=models.family,
    )

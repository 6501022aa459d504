"""The preset to run first with a model set: the default where the user names none."""

from __future__ import annotations

from latent_ladder.checkpoints.selection import ModelSet
from latent_ladder.checkpoints.training import transformer_training


def first_preset(family: str, training: str | None, *, has_lora: bool) -> str:
    """The preset to run first with a transformer of this family and training.

    One of unknown training counts as dev where the distilled LoRA was found, except for LTX-2.5.
    """
    is_distilled = training == "distilled" or not has_lora
    if family != "2.5":
        return "distilled" if is_distilled else "distilled-lora"
    if training == "dev":
        return "ltx-2.5-distilled-lora" if has_lora else "ltx-2.5-one-stage"
    return "ltx-2.5-distilled"


def training_of(models: ModelSet) -> str:
    """Training of the transformer, "dev" or "distilled": by hash or name, else by the LoRA."""
    known = transformer_training(models.transformer)
    if known is not None:
        return known
    return "dev" if models.has_distilled_lora else "distilled"

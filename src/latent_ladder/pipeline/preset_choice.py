"""Fields of the preset that a request starts from."""

from __future__ import annotations

from typing import Any

from latent_ladder.checkpoints.selection import Library
from latent_ladder.errors import RequestError
from latent_ladder.pipeline.preparation import default_preset
from latent_ladder.request.presets import read_preset
from latent_ladder.storage.user_config import read_setting


def preset_fields(
    name: str | None, library: Library, checkpoint: str | None = None
) -> dict[str, Any]:
    """The fields of the preset ``name``.

    Without a name it is that of the environment or the config file, else the one that fits the
    models. Raises :class:`RequestError` for an unknown preset.
    """
    if name is not None:
        return read_preset(name).fields
    setting = read_setting("preset")
    if not isinstance(setting.value, str):
        return read_preset(default_preset(library, checkpoint)).fields
    try:
        return read_preset(setting.value).fields
    except RequestError as error:
        raise error.in_context(setting.source) from error

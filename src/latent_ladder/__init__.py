"""Multi-stage video generation with LTX-2.3: one command that says what it did."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from latent_ladder._version import __version__

__all__ = ["Request", "__version__", "run"]

# The log is silent until an application adds a handler, as ``ladder --verbose`` does.
logging.getLogger(__name__).addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import run
    from latent_ladder.request.model import Request


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import latent_ladder`` costs nothing."""
    if name == "Request":
        from latent_ladder.request.model import Request

        return Request
    if name == "run":
        from latent_ladder.pipeline.run import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

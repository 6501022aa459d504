"""One published model file: content, folder, repository, size and hash."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

Upsampling = tuple[str, Fraction]
"""Axis and factor of a latent upsampler, such as ``("spatial", 3/2)`` or ``("temporal", 2)``."""

SPATIAL_X2: Upsampling = ("spatial", Fraction(2))


@dataclass(frozen=True)
class CatalogFile:
    """One published file. ``path`` is relative to the ``repository`` on huggingface.co.

    ``folder`` is its folder in a ComfyUI models folder, ``roles`` are its components. ``bytes`` is
    rounded if ``exact`` is false; ``sha256`` is empty if it is not known, and has the first digits
    where only these are. ``variant`` is empty for files that all transformers of the family share.
    ``gated``: a download needs a token of somebody who accepted the licence. ``option`` names a
    file that no preset needs, for ``ladder models get --with``.
    """

    path: str
    repository: str
    folder: str
    bytes: int
    roles: tuple[str, ...]
    precision: str = "bf16"
    exact: bool = True
    variant: str = ""
    sha256: str = ""
    upsampling: Upsampling | None = None
    family: str = "2.3"
    gated: bool = False
    option: str = ""

    @property
    def name(self) -> str:
        """The file name, without folders."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def page(self) -> str:
        """The page of its repository, without ``https://``."""
        return f"huggingface.co/{self.repository}"

    @property
    def size(self) -> str:
        """Its size in decimal GB as text, as the publishers write it."""
        return f"{'' if self.exact else 'about '}{format_gb(self.bytes)}"


def format_gb(n_bytes: int) -> str:
    """A size in decimal GB with three digits, as on the publishers' pages: ``"0.996 GB"``."""
    value = n_bytes / 1e9
    digits = 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} GB"

"""Catalog of the published LTX-2 model files: content, folder, repository, size and hash.

Names, sizes and hashes are those of the pages on huggingface.co; a size marked as not exact is the
rounded one of the page. This module knows nothing about the files on this machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from latent_ladder.checkpoints.catalog_2_5 import FILES_2_5
from latent_ladder.checkpoints.catalog_file import (
    SPATIAL_X2,
    CatalogFile,
    Upsampling,
    format_gb,
)

__all__ = [
    "DEFAULT_PRECISION",
    "FILES",
    "PRECISIONS",
    "PRECISIONS_2_5",
    "PUBLISHED",
    "SINGLE_FILE",
    "SPATIAL_X2",
    "CatalogFile",
    "PublishedFamily",
    "Upsampling",
    "find_published",
    "format_gb",
    "may_be_published",
    "option_names",
    "select_file_set",
    "suggest_file",
]

PRECISIONS = ("bf16", "fp8", "nvfp4", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m",
              "gguf-q4_k_s", "gguf-q3_k_m", "gguf-q2_k")  # fmt: skip
"""Weight formats in which a complete set of LTX-2.3 is published, the largest first."""

PRECISIONS_2_5 = ("bf16", "int8", "nvfp4")
"""Weight formats in which a complete set of LTX-2.5 is published."""

DEFAULT_PRECISION = "fp8"
"""Weight format of LTX-2.3 to suggest to a user who has no transformer yet."""


@dataclass(frozen=True)
class PublishedFamily:
    """A family that ``ladder models get`` downloads, with what it takes unless told otherwise."""

    family: str
    precisions: tuple[str, ...]
    precision: str
    variant: str

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return f"ltx-{self.family}"


PUBLISHED: Mapping[str, PublishedFamily] = {
    family.name: family
    for family in (
        PublishedFamily("2.3", PRECISIONS, DEFAULT_PRECISION, "dev"),
        PublishedFamily("2.5", PRECISIONS_2_5, "int8", "distilled"),
    )
}
"""The families whose files can be downloaded, by name."""

SINGLE_FILE = (
    "transformer", "connectors", "text_projection", "video_vae", "audio_vae", "vocoder",
)  # fmt: skip
"""The components in an all-in-one checkpoint."""


def _checkpoint_file(
    name: str, n_bytes: int, variant: str, repository: str = "Lightricks/LTX-2.3",
    precision: str = "bf16", *, exact: bool = True, sha256: str = "",
) -> CatalogFile:  # fmt: skip
    return CatalogFile(
        name, repository, "checkpoints", n_bytes, SINGLE_FILE, precision, exact, variant, sha256
    )


_KIJAI = "Kijai/LTX2.3_comfy"
_UNSLOTH = "unsloth/LTX-2.3-GGUF"
_COMFY = "Comfy-Org/ltx-2"
_WITH_CONNECTORS = ("transformer", "connectors")

# GB of unsloth's files for dev and distilled, by type; the 1.1 ones differ by 0.1 at most.
_GGUF_GB: Mapping[str, float] = {
    "Q2_K": 8.28, "Q3_K_M": 10.8, "Q4_K_S": 13.1, "Q4_K_M": 14.3,
    "Q5_K_M": 16.1, "Q6_K": 17.8, "Q8_0": 22.8,
}  # fmt: skip
_GGUF_FOLDERS = {"dev": "", "distilled": "distilled/", "distilled-1.1": "distilled-1.1/"}


def _gguf_files() -> Iterator[CatalogFile]:
    for kind, gb in _GGUF_GB.items():
        for variant, folder in _GGUF_FOLDERS.items():
            yield CatalogFile(
                f"{folder}ltx-2.3-22b-{variant}-{kind}.gguf",
                _UNSLOTH,
                "diffusion_models",
                round(gb * 1e9),
                _WITH_CONNECTORS,
                f"gguf-{kind.lower()}",
                exact=False,
                variant=variant,
            )


def _gemma_file(
    suffix: str, n_bytes: int, precision: str, sha256: str = "", *, exact: bool = True
) -> CatalogFile:
    return CatalogFile(
        f"split_files/text_encoders/gemma_3_12B_it{suffix}.safetensors",
        _COMFY, "text_encoders", n_bytes, ("text_encoder",), precision, exact, sha256=sha256,
    )  # fmt: skip


def _upsampler_file(
    name: str, n_bytes: int, upsampling: Upsampling, sha256: str = "", option: str = ""
) -> CatalogFile:
    return CatalogFile(
        name, "Lightricks/LTX-2.3", _UPSAMPLERS, n_bytes, ("latent_upsampler",),
        sha256=sha256, upsampling=upsampling, option=option,
    )  # fmt: skip


def _distilled_lora_file(name: str, n_bytes: int, family: str = "2.3") -> CatalogFile:
    repository = "Lightricks/LTX-2" if family == "2.0" else "Lightricks/LTX-2.3"
    return CatalogFile(name, repository, "loras", n_bytes, ("distilled_lora",), family=family)


_UPSAMPLERS = "latent_upscale_models"

FILES: tuple[CatalogFile, ...] = (
    _checkpoint_file("ltx-2.3-22b-dev.safetensors", 46_149_344_974, "dev"),
    _checkpoint_file(
        "ltx-2.3-22b-distilled-1.1.safetensors", 46_149_345_334, "distilled-1.1",
        sha256="b33b7fe4bbfe084f484be4aaf90b0f1d95dca20d403ac4c0e037eb8c4f0af7cc",
    ),
    _checkpoint_file("ltx-2.3-22b-distilled.safetensors", 46_149_345_038, "distilled"),
    _checkpoint_file(
        "ltx-2.3-22b-dev-fp8.safetensors", 29_145_431_166, "dev", "Lightricks/LTX-2.3-fp8", "fp8"
    ),
    _checkpoint_file(
        "ltx-2.3-22b-distilled-fp8.safetensors", 29_531_884_062, "distilled",
        "Lightricks/LTX-2.3-fp8", "fp8",
        sha256="d9646b6f2d5c42d337b23671634c43bfeece6989644f51b4a3aa088465ccd3b2",
    ),
    _checkpoint_file(
        "ltx-2.3-22b-dev-nvfp4.safetensors", 21_700_000_000, "dev", "Lightricks/LTX-2.3-nvfp4",
        "nvfp4", exact=False,
    ),
    CatalogFile(
        "diffusion_models/ltx-2.3-22b-distilled-1.1_transformer_only_fp8_scaled.safetensors",
        _KIJAI, "diffusion_models", 25_226_571_988, _WITH_CONNECTORS, "fp8",
        variant="distilled-1.1",
        sha256="0a1d7aac2b338e8ec7e832149f1dcf11c9323272482b1cca0673d229702370f0",
    ),
    *_gguf_files(),
    CatalogFile(
        "text_encoders/ltx-2.3_text_projection_bf16.safetensors", _KIJAI, "text_encoders",
        2_312_149_072, ("text_projection",),
        sha256="911d59bb4cb7708179c9a0045ea0fe41212ecfb77aed3a02702b7c0a8274911f",
    ),
    CatalogFile(
        "vae/LTX23_video_vae_bf16.safetensors", _KIJAI, "vae", 1_452_258_578, ("video_vae",),
        sha256="01ea62d09bc139f95c5dee7b5c062ad6a3e6cd8be910a1983ac02e7eb5b8ee3b",
    ),
    CatalogFile(
        "vae/LTX23_audio_vae_bf16.safetensors", _KIJAI, "vae", 364_855_188,
        ("audio_vae", "vocoder"),
        sha256="5bc10fa4adecf99dda132d916e23048cbd56797702c5fa50eb5d2079048a38c3",
    ),
    _gemma_file("", 24_379_468_890, "bf16"),
    _gemma_file("_fp8_scaled", 13_205_434_827, "fp8"),
    _gemma_file("_fpmixed", 13_700_000_000, "fp8-mixed", exact=False),
    _gemma_file(
        "_fp4_mixed", 9_447_702_218, "nvfp4",
        "aaca463d11e6d8d2a4bdb0d6299214c15ef78a3f73e0ef8113d5a9d0219b3f6d",
    ),
    _upsampler_file(
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors", 995_743_560, SPATIAL_X2,
        "5f416311fa8172b65af67530758964708d29a317b830d689a51143b7f91913ed",
    ),
    _upsampler_file(
        "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors", 1_090_125_794, ("spatial", Fraction(3, 2)),
        option="spatial-upscaler-x1.5",
    ),
    _upsampler_file(
        "ltx-2.3-temporal-upscaler-x2-1.0.safetensors", 261_944_000, ("temporal", Fraction(2)),
        option="temporal-upscaler",
    ),
    _distilled_lora_file("ltx-2.3-22b-distilled-lora-384-1.1.safetensors", 7_605_507_256),
    _distilled_lora_file("ltx-2.3-22b-distilled-lora-384.safetensors", 7_605_507_256),
    CatalogFile(  # the former, with a rank of its own for each module: that of ComfyUI's templates
        "split_files/loras/"
        "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors",
        "Comfy-Org/ltx-2.3", "loras", 2_200_000_000, ("distilled_lora",), exact=False,
    ),
    CatalogFile(  # 1.1 mends long clips
        "ltx-2.3-spatial-upscaler-x2-1.0.safetensors", "Lightricks/LTX-2.3", _UPSAMPLERS,
        996_000_000, ("latent_upsampler",), exact=False, upsampling=SPATIAL_X2,
    ),
    CatalogFile(
        "ltx-2-spatial-upscaler-x2-1.0.safetensors", "Lightricks/LTX-2", _UPSAMPLERS,
        1_050_000_000, ("latent_upsampler",), exact=False, upsampling=SPATIAL_X2, family="2.0",
    ),
    _distilled_lora_file("ltx-2-19b-distilled-lora-384.safetensors", 7_674_558_424, "2.0"),
    *FILES_2_5,
)  # fmt: skip
"""All files of the catalog. Of several equally good ones the first is suggested."""

_GEMMA_FOR: Mapping[str, Mapping[str, str]] = {
    "2.3": {"bf16": "bf16", "fp8": "fp8", "": "nvfp4"},
    "2.5": {"bf16": "bf16", "": "int8"},
}
"""Weight format of the text encoder for that of the transformer, by family; "" for all others."""


def suggest_file(
    role: str,
    *,
    precision: str = DEFAULT_PRECISION,
    variant: str = "",
    upsampling: Upsampling | None = None,
    family: str = "2.3",
) -> CatalogFile | None:
    """The published file to suggest for a missing component, ``None`` if there is none.

    Files with few other components come first, except for the transformer; then the given variant
    (``distilled`` matches 1.1 as well), then the given precision.
    """
    wanted = precision
    if role == "text_encoder":
        forms = _GEMMA_FOR.get(family, _GEMMA_FOR["2.3"])
        wanted = forms.get(precision, forms[""])
    kind = upsampling or (SPATIAL_X2 if role == "latent_upsampler" else None)
    matching = [f for f in FILES if role in f.roles and f.family == family and f.upsampling == kind]
    if role == "transformer" and not wanted.startswith("gguf"):
        # All-in-one checkpoints where there are: a single transformer needs four more downloads.
        matching = [f for f in matching if f.folder == "checkpoints"] or matching
    extra = 0 if role == "transformer" else 1
    return min(
        matching,
        key=lambda f: (
            extra * len(f.roles),
            not f.variant.startswith(variant),
            f.precision != wanted,
        ),
        default=None,
    )


def option_names(family: str) -> tuple[str, ...]:
    """Names of the files of a family that no preset needs, for ``select_file_set``."""
    return tuple(file.option for file in FILES if file.family == family and file.option)


def select_file_set(
    precision: str = DEFAULT_PRECISION,
    variant: str = "dev",
    family: str = "2.3",
    options: Collection[str] = (),
) -> tuple[CatalogFile, ...]:
    """All files that a two-stage clip with audio needs, in one precision, each component once.

    A ``dev`` set includes the distilled LoRA, a distilled one needs none. ``options`` are names of
    :func:`option_names`, whose files are added. Raises ``KeyError`` if no transformer of that
    precision and variant is published.
    """
    roles: tuple[str, ...] = (*SINGLE_FILE, "text_encoder", "latent_upsampler", "duration_head")
    if variant == "dev":
        roles += ("distilled_lora",)
    chosen: list[CatalogFile] = []
    for role in roles:
        if any(role in f.roles for f in chosen):
            continue
        found = suggest_file(role, precision=precision, variant=variant, family=family)
        if found is not None:
            chosen.append(found)
    if chosen[0].precision != precision or not chosen[0].variant.startswith(variant):
        raise KeyError(f"{variant} in {precision}")
    added = (f for f in FILES if f.family == family and f.option and f.option in options)
    return (*chosen, *added)


def find_published(n_bytes: int, sha256: str) -> CatalogFile | None:
    """The published file with this size and hash, ``None`` if there is none with a known hash."""
    return next(
        (f for f in FILES if f.exact and f.bytes == n_bytes
         and f.sha256 and sha256.startswith(f.sha256)),
        None,
    )  # fmt: skip


def may_be_published(n_bytes: int) -> bool:
    """True if a published file with a known hash has this size."""
    return any(f.exact and f.sha256 and f.bytes == n_bytes for f in FILES)

"""Published files of LTX-2.5: one per component, all behind the acceptance of a licence.

Sizes and the first digits of the hashes are those of the list of files on huggingface.co, as
catalogues of others quote it: nobody opens these files without a token.
"""

from __future__ import annotations

from fractions import Fraction

from latent_ladder.checkpoints.catalog_file import SPATIAL_X2, CatalogFile, Upsampling

REPOSITORY_2_5 = "Lightricks/LTX-2.5"
_UPSAMPLING: dict[str, Upsampling] = {
    "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0": SPATIAL_X2,
    "ltx-2.5-latent-temporal-upscaler-x2-bf16-1.0": ("temporal", Fraction(2)),
}


def _file(
    path: str, n_bytes: int, sha256: str, roles: tuple[str, ...],
    precision: str = "bf16", variant: str = "", option: str = "",
) -> CatalogFile:  # fmt: skip
    folder, name = path.split("/")
    return CatalogFile(
        f"{path}.safetensors", REPOSITORY_2_5, folder, n_bytes, roles, precision,
        variant=variant, sha256=sha256, family="2.5", gated=True, option=option,
        upsampling=_UPSAMPLING.get(name),
    )  # fmt: skip


def _transformer(variant: str, form: str, n_bytes: int, sha256: str, precision: str) -> CatalogFile:
    path = f"diffusion_models/ltx-2.5-22b-{variant}-transformer-{form}"
    return _file(path, n_bytes, sha256, ("transformer", "connectors"), precision, variant)


def _text_encoder(form: str, n_bytes: int, sha256: str, precision: str) -> CatalogFile:
    path = f"text_encoders/gemma4-12b-with-proj-ltx-2.5-{form}"
    return _file(path, n_bytes, sha256, ("text_encoder", "text_projection"), precision)


_INT8 = "comfy-int8-convrot"

FILES_2_5: tuple[CatalogFile, ...] = (
    _transformer("distilled", _INT8, 21_504_034_224, "c4279eef", "int8"),
    _transformer("dev", _INT8, 21_504_034_224, "2edbdb44", "int8"),
    _transformer("distilled", "bf16", 42_018_190_584, "31eb3cad", "bf16"),
    _transformer("dev", "bf16", 42_018_190_584, "792a2bad", "bf16"),
    _transformer("distilled", "nvfp4", 18_721_548_408, "4b94231e", "nvfp4"),
    _text_encoder(_INT8, 15_372_969_374, "6ce688a0", "int8"),
    _text_encoder("bf16", 26_263_858_182, "ef724361", "bf16"),
    _file(
        "vae/ltx-2.5-video-vae-conv-bf16", 1_452_269_922, "", ("video_vae",)),
    _file(
        "vae/ltx-2.5-video-vae-bf16", 1_472_223_346, "847e14ca", ("video_vae",),
        option="diffusion-decoder",
    ),
    _file(
        "vae/ltx-2.5-audio-vae-bf16", 364_866_540, "c52733d3", ("audio_vae", "vocoder")),
    _file(
        "latent_upscale_models/ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0", 995_778_752,
        "eb5a71fe", ("latent_upsampler",),
    ),
    _file(
        "latent_upscale_models/ltx-2.5-latent-temporal-upscaler-x2-bf16-1.0", 261_944_000,
        "2bc3300f", ("latent_upsampler",), option="temporal-upscaler",
    ),
    _file(
        "model_patches/ltx-2.5-duration-head-bf16", 3_843_690, "2ec71e42", ("duration_head",),
    ),
    _file(
        "loras/ltx-2.5-22b-distilled-lora-450-bf16", 8_899_889_568, "86370bbf",
        ("distilled_lora",),
    ),
)  # fmt: skip
"""All files of LTX-2.5; of several equally good ones the first is suggested."""

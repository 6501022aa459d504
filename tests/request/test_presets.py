"""Presets: each is a valid request with the numbers of its source."""

from __future__ import annotations

from fractions import Fraction

import pytest
from helpers.goldens import Goldens
from helpers.request_stages import stages_of

from latent_ladder.checkpoints.families import FAMILIES
from latent_ladder.diagnostics.request_warnings import advise
from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.presets import (
    preset_family,
    preset_names,
    preset_training,
    read_preset,
)
from latent_ladder.request.stages import BaseStage
from latent_ladder.sampling.schedules import DISTILLED_STAGE_1, DISTILLED_STAGE_2

PROMPT = "A woman walks along the shore while waves break behind her."
COMFYUI_STAGE_2 = (0.85, 0.725, 0.4219, 0.0)
COMFYUI_NEGATIVE = "pc game, console game, video game, cartoon, childish, ugly"


def preset(name: str) -> Request:
    return Request.from_preset(name, prompt=PROMPT)


def test_all_presets_are_there() -> None:
    assert set(preset_names()) >= {
        "pocket",
        "distilled",
        "distilled-single",
        "conservative",
        "balanced",
        "maximum",
        "ltx-pipelines",
        "hq",
        "lightricks-workflow",
        "comfy-template",
        "three-stage",
    }


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_request_that_needs_no_warning(name: str) -> None:
    data = read_preset(name)
    assert data.summary
    assert data.source
    assert len(data.summary) < 100
    request = preset(name)
    assert request.preset == name
    assert Request.from_toml(request.to_toml()) == request
    assert [a for a in advise(request) if a.level == "warning"] == []


def test_each_read_of_a_preset_is_a_new_copy() -> None:
    read_preset("pocket").fields["stages"].clear()
    assert read_preset("pocket").fields["stages"]


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(RequestError) as caught:
        Request.from_preset("balancd", prompt=PROMPT)
    assert caught.value.exit_code == 2
    assert "balanced" in (caught.value.hint or "")


def test_a_preset_has_no_prompt_of_its_own() -> None:
    with pytest.raises(RequestError, match="prompt is missing"):
        Request.from_preset("distilled")


def test_overrides_replace_fields() -> None:
    request = Request.from_preset("distilled", prompt=PROMPT, duration_s=2, width=640, height=384)
    assert (request.frames, request.width, request.height) == (49, 640, 384)


def strengths(request: Request) -> list[list[float]]:
    return [[lora.strength for lora in s.loras] for _, s in request.sampling_stages()]


def sigmas(request: Request) -> list[tuple[float, ...]]:
    return [request.resolved.stages[i].sigmas for i, _ in request.sampling_stages()]


@pytest.mark.parametrize(
    ("name", "steps", "refine_steps", "cfg", "denoise", "fps"),
    [
        ("conservative", 20, 10, 3.0, 0.35, 24),
        ("balanced", 30, 15, 3.75, 0.45, 30),
        ("maximum", 45, 20, 4.5, 0.55, 50),
    ],
)
def test_the_table_of_the_guide(
    name: str, steps: int, refine_steps: int, cfg: float, denoise: float, fps: int
) -> None:
    request = preset(name)
    base, _, refine = stages_of(request)
    assert (base.steps, refine.steps, refine.denoise, request.fps) == (
        steps,
        refine_steps,
        denoise,
        Fraction(fps),
    )
    assert base.guidance.video.cfg == base.guidance.audio.cfg == cfg
    assert refine.guidance.video.cfg == 1
    assert strengths(request) == [[], [1.0]]
    first, _, last = request.resolutions
    assert ((first.width, first.height), (last.width, last.height)) == ((960, 544), (1920, 1088))
    assert refine.seed == "same"


def test_pocket() -> None:
    request = preset("pocket")
    assert [(r.width, r.height, r.frames, r.fps) for r in request.resolutions] == [
        (256, 256, 25, Fraction(24)),
        (512, 512, 25, Fraction(24)),
        (512, 512, 25, Fraction(24)),
    ]
    # the shift of ltx at 1024 tokens, of which "simple" takes the last 3 of 8 even steps
    assert sigmas(request)[1] == pytest.approx((0.608, 0.463, 0.270, 0.0), abs=1e-3)
    assert len(sigmas(request)[0]) == 17
    assert strengths(request) == [[], [1.0]]
    assert stages_of(request)[2].guidance == stages_of(preset("hq"))[2].guidance


@pytest.mark.parametrize(
    ("name", "want"), [("distilled", [[], []]), ("distilled-lora", [[1.0], [1.0]])]
)
def test_distilled(name: str, want: list[list[float]]) -> None:
    request = preset(name)
    assert sigmas(request) == [DISTILLED_STAGE_1, DISTILLED_STAGE_2]
    assert strengths(request) == want
    assert request.audio == "refine"
    assert not request.needs_negative
    assert sigmas(preset("distilled-single")) == [DISTILLED_STAGE_1]


def test_ltx_pipelines() -> None:
    request = preset("ltx-pipelines")
    base, _, refine = stages_of(request)
    assert (request.width, request.height, request.frames) == (1536, 1024, 121)
    assert [round(s, 4) for s in request.resolved.stages[0].sigmas][:3] == [1.0, 0.995, 0.9896]
    video, audio = base.guidance.video, base.guidance.audio
    assert (video.cfg, video.stg, video.stg_blocks) == (3.0, 1.0, (28,))
    assert (audio.cfg, audio.stg, audio.stg_blocks) == (7.0, 1.0, (28,))
    assert video.rescale == audio.rescale == 0.7
    assert video.modality == audio.modality == 3.0
    assert request.audio == "keep"
    assert refine.sigmas == DISTILLED_STAGE_2
    assert strengths(request) == [[], [1.0]]
    assert (request.noise_order, request.mask_convention) == ("ltx", "ltx")
    assert request.image_resize == "ltx"


def test_hq() -> None:
    request = preset("hq")
    base, _, refine = stages_of(request)
    assert base.sampler == refine.sampler == "res_2s"
    assert (request.resolutions[0].width, request.resolutions[0].height) == (960, 544)
    assert [round(s, 6) for s in request.resolved.stages[0].sigmas] == [
        1.0, 0.993491, 0.986015, 0.97734, 0.967151, 0.955015, 0.940314, 0.92214,
        0.899096, 0.868923, 0.827707, 0.768028, 0.673897, 0.503378, 0.1, 0.0,
    ]  # fmt: skip
    video, audio = base.guidance.video, base.guidance.audio
    assert (video.cfg, video.stg, video.rescale, video.modality) == (3.0, 0.0, 0.45, 3.0)
    assert (audio.cfg, audio.stg, audio.rescale, audio.modality) == (7.0, 0.0, 1.0, 3.0)
    assert strengths(request) == [[0.25], [0.5]]
    assert request.audio == "keep"


def test_lightricks_workflow() -> None:
    request = preset("lightricks-workflow")
    base, _, refine = stages_of(request)
    assert (base.sampler, refine.sampler) == ("euler_ancestral_cfg_pp", "euler_cfg_pp")
    assert (request.stage_seed(0), request.stage_seed(2)) == (43, 42)
    assert sigmas(request) == [DISTILLED_STAGE_1, COMFYUI_STAGE_2]
    assert (request.width, request.height, request.frames, request.fps) == (
        (1920, 1088, 121, Fraction(24))
    )
    assert strengths(request) == [[0.5], [0.5]]
    assert request.negative_prompt == COMFYUI_NEGATIVE
    assert request.needs_negative, "CFG++ reads it at cfg 1"
    assert (request.noise_order, request.mask_convention) == ("comfyui", "comfyui")
    assert request.image_resize == "comfyui"
    assert (request.decode.grid, request.decode.overlap_px) == ((2, 2), 6 * 32)


def test_comfy_template() -> None:
    request = preset("comfy-template")
    base, _, refine = stages_of(request)
    assert base.sampler == refine.sampler == "euler"
    assert (request.seed, refine.seed) == (10, 42)
    assert sigmas(request) == [DISTILLED_STAGE_1, COMFYUI_STAGE_2]
    assert (request.width, request.height, request.frames, request.fps) == (
        (1280, 704, 121, Fraction(25))
    )
    assert (request.resolutions[0].width, request.resolutions[0].height) == (640, 352)
    assert strengths(request) == [[0.5], [0.5]]
    assert request.negative_prompt == COMFYUI_NEGATIVE
    assert not request.needs_negative
    assert request.audio == "refine"


def test_three_stages() -> None:
    request = preset("three-stage")
    assert [f"{r.width}x{r.height}" for r in request.resolutions] == [
        "480x288",
        "960x576",
        "960x576",
        "1920x1152",
        "1920x1152",
    ]
    assert request.resolved.crop == (0, 36, 1920, 1080)
    assert sigmas(request) == [DISTILLED_STAGE_1, DISTILLED_STAGE_2, COMFYUI_STAGE_2]


NEWEST = [name for name in preset_names() if name.startswith("ltx-2.5-")]


def test_presets_know_their_family_and_training() -> None:
    families = {name: preset_family(name) for name in preset_names()}
    assert {name for name, family in families.items() if family == "2.5"} == set(NEWEST)
    assert families["pocket"] == ""
    assert families["distilled"] == "2.3"
    dev = {name for name in preset_names() if preset_training(name) == "dev"}
    assert dev >= {"hq", "ltx-2.5-hq", "ltx-2.5-two-stage", "ltx-2.5-one-stage", "comfy-template",
                   "ltx-2.5-distilled-lora"}  # fmt: skip
    assert preset_training("ltx-2.5-comfy-template") == preset_training("distilled") == "distilled"


@pytest.mark.parametrize(("newer", "older"), [("ltx-2.5-two-stage", "ltx-pipelines"),
                                              ("ltx-2.5-hq", "hq")])  # fmt: skip
def test_guided_recipes_of_ltx_2_5_are_those_of_2_3(newer: str, older: str) -> None:
    """The official defaults differ in the compression of images only, which the family decides."""
    left, right = (preset(name).model_dump(exclude={"preset"}) for name in (newer, older))
    assert left == right


def test_ltx_2_5_distilled() -> None:
    request = preset("ltx-2.5-distilled")
    base, _, refine = stages_of(request)
    assert (base.sampler, refine.sampler) == ("euler_ancestral", "euler")
    assert (base.options.eta, base.options.s_noise) == (None, None)  # 1 and 1
    assert sigmas(request) == [DISTILLED_STAGE_1, DISTILLED_STAGE_2]
    assert (request.noise_order, request.mask_convention) == ("ltx", "ltx")
    assert strengths(request) == [[], []]
    assert strengths(preset("ltx-2.5-distilled-lora")) == [[1.0], [1.0]]
    one = preset("ltx-2.5-one-stage")
    assert one.stages[0] == preset("ltx-2.5-two-stage").stages[0]
    assert (one.width, one.height, len(one.stages)) == (768, 512, 1)


def test_comfyui_templates_of_ltx_2_5() -> None:
    request = preset("ltx-2.5-comfy-template")
    base, _, refine = stages_of(request)
    assert base.sampler == refine.sampler == "euler_ancestral"
    assert sigmas(request) == [DISTILLED_STAGE_1, COMFYUI_STAGE_2]
    assert request.noise_order == "comfyui"
    assert request.fps == 24
    assert request.frames == 121
    decode = request.decode
    assert (decode.tile_px, decode.overlap_px, decode.tile_frames) == (512, 64, 64)
    assert decode.overlap_frames == 16
    (between,) = preset("ltx-2.5-comfy-first-last").sampling_stages()
    assert between[1].options.eta == 0


def test_official_defaults_of_2_5(golden_2_5: Goldens) -> None:
    """Steps, guidance, size and image compression that the reference derives from version 2.5."""
    want = golden_2_5("params.detected").params
    request = preset("ltx-2.5-two-stage")
    base = request.stages[0]
    assert isinstance(base, BaseStage)
    assert base.steps == want["steps"]
    assert (request.frames, request.fps) == (want["frames"], want["fps"])
    assert [request.height, request.width] == [2 * side for side in want["stage_1"]]
    assert FAMILIES["2.5"].image_crf == want["image_crf"]
    for stream in ("video", "audio"):
        got, values = getattr(base.guidance, stream), want[stream]
        assert got.cfg == values["cfg_scale"]
        assert got.stg == values["stg_scale"]
        assert list(got.stg_blocks) == values["stg_blocks"]
        assert got.rescale == values["rescale_scale"]
        assert got.modality == values["modality_scale"]

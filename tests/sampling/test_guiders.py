"""Guidance against the official combination, and the passes that it needs."""

from __future__ import annotations

import pytest
import torch
from helpers.goldens import Goldens
from hypothesis import given
from hypothesis import strategies as st

from latent_ladder.sampling.guiders import Guidance, Pass, combine, passes_needed, skips, weights

C, U, P, M = Pass
INPUTS = {C: "cond", U: "uncond", P: "ptb", M: "mod"}


@pytest.mark.parametrize("name", ["full", "cfg_only", "rescale1", "stg_mod"])
def test_combination_is_the_official_one(golden: Goldens, name: str) -> None:
    case = golden(f"guider.{name}")
    g = Guidance(
        cfg=case.params["cfg_scale"],
        stg=case.params.get("stg_scale", 0.0),
        modality=case.params.get("modality_scale", 1.0),
        rescale=case.params.get("rescale_scale", 0.0),
    )
    predictions = {p: case.inputs[n] for p, n in INPUTS.items() if p is C or p in weights(g, 0.5)}
    case.check("pred", combine(predictions, g, 0.5))


DEV_VIDEO = Guidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7, stg_blocks=(28,))
DEV_AUDIO = Guidance(cfg=7.0, stg=1.0, modality=3.0, rescale=0.7, stg_blocks=(28,))
HQ = Guidance(cfg=3.0, modality=3.0, rescale=0.45)
OFF = Guidance()


@pytest.mark.parametrize(
    ("video", "audio", "force", "want"),
    [
        (OFF, OFF, False, (C,)),
        (OFF, None, False, (C,)),
        (None, Guidance(cfg=7.0), False, (C, U)),
        (DEV_VIDEO, DEV_AUDIO, False, (C, U, P, M)),
        (HQ, HQ, False, (C, U, M)),
        (OFF, OFF, True, (C, U)),
        (Guidance(stg=0.5), OFF, False, (C, P)),
        (OFF, Guidance(modality=3.0), False, (C, M)),
        (Guidance(modality=0.0), None, False, (C, M)),
        (Guidance(rescale=0.7), OFF, False, (C,)),
    ],
)
def test_passes(
    video: Guidance | None, audio: Guidance | None, force: bool, want: tuple[Pass, ...]
) -> None:
    assert passes_needed(video, audio, 0.5, force_uncond=force) == want


def test_guidance_outside_its_sigmas_needs_no_pass() -> None:
    g = Guidance(cfg=4.0, stg=1.0, sigma_high=0.9, sigma_low=0.3)
    assert passes_needed(g, None, 1.0) == (C,)
    assert passes_needed(g, None, 0.9) == passes_needed(g, None, 0.3) == (C, U, P)
    assert passes_needed(g, None, 0.29) == (C,)
    assert passes_needed(g, OFF, 1.0, force_uncond=True) == (C, U)
    c = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(combine({C: c, U: -c, P: 0 * c}, g, 1.0), c)


scales = st.floats(-3.0, 9.0)


@given(scales, scales, scales, st.floats(0.0, 1.0))
def test_guidance_between_equal_predictions_changes_nothing(
    cfg: float, stg: float, modality: float, rescale: float
) -> None:
    g = Guidance(cfg=cfg, stg=stg, modality=modality, rescale=rescale)
    c = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(combine(dict.fromkeys(Pass, c), g, 0.5), c)


@given(st.floats(1.1, 9.0))
def test_rescale_one_keeps_the_contrast_of_each_sample(cfg: float) -> None:
    c, u = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    both = combine({C: c, U: u}, Guidance(cfg=cfg, rescale=1.0), 0.5)
    torch.testing.assert_close(both.std((1, 2)), c.std((1, 2)))
    alone = combine({C: c[1:2], U: u[1:2]}, Guidance(cfg=cfg, rescale=1.0), 0.5)
    torch.testing.assert_close(both[1:2], alone)


def test_rescale_of_a_constant_prediction_is_finite() -> None:
    c = torch.full((1, 4, 2), 0.5)
    assert combine({C: c, U: c + 1}, Guidance(cfg=3.0, rescale=1.0), 0.5).isfinite().all()


def test_combination_is_float32() -> None:
    c = torch.ones(1, 2, 2, dtype=torch.bfloat16)
    assert combine({C: c}, OFF, 0.5).dtype == torch.float32


def test_skipped_steps() -> None:
    assert [skips(Guidance(skip_step=2), i) for i in range(7)] == [
        False, True, True, False, True, True, False,
    ]  # fmt: skip
    assert not any(skips(OFF, i) for i in range(5))

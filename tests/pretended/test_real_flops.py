"""FLOPs that ``plan`` shows against those counted on a pretended GPU, within 2 %, at real width.

Stages that run the transformer are compared in test_real_size.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import true_size_2_5

from pretended import guard, real_job
from pretended.real_job import ALL_KINDS, RealJob, simulate

REASON = guard.reason_against()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

PERCENT = 0.02


@pytest.mark.parametrize("frames", [49, pytest.param(241, marks=pytest.mark.long)])
def test_prompt_upsample_sound_and_convolutional_decoder(tmp_path: Path, frames: int) -> None:
    skip = frozenset({"base", "refine"})
    job = RealJob("fp8", layers=1, size=(384, 256), frames=frames, skip=skip, prompt=3)
    (result,) = simulate(job, [24.0], tmp_path)
    assert [s.name for s in result.stages] == ["prompt", "upsample", "sound", "decode"]
    for stage in result.stages:
        assert stage.plan is not None
        assert stage.flops > 1e11
        assert stage.flops == pytest.approx(stage.plan.cost.flops, rel=PERCENT), stage.name


def test_diffusion_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "2.5"
    true_size_2_5.write_transformer(models)
    true_size_2_5.write_text_encoder(models)
    true_size_2_5.write_others(models)
    monkeypatch.setattr(real_job, "write_models", lambda job, folder: models)
    job = RealJob(
        preset="ltx-2.5-distilled",
        size=(320, 256),
        frames=9,
        skip=ALL_KINDS - {"decode"},
    )
    (result,) = simulate(job, [48.0], tmp_path)
    (stage,) = result.stages
    assert stage.plan is not None
    assert stage.flops > 1e12
    assert stage.flops == pytest.approx(stage.plan.cost.flops, rel=PERCENT)

"""Audio networks compute in float32 whatever the program allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.command_line import GOLDEN
from torch import nn

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.models.audio_vae.vae import load_audio_vae
from latent_ladder.models.exact_float32 import exact_float32

CUDNN: Any = torch.backends.cudnn


def settings() -> tuple[str, str]:
    return CUDNN.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def test_settings_are_restored_also_after_an_error() -> None:
    before = settings()
    with pytest.raises(ValueError, match="inside"), exact_float32():
        assert settings() == ("ieee", "ieee")
        raise ValueError("inside")
    assert settings() == before
    assert CUDNN.allow_tf32, "the old names can be read"


def test_audio_vae_and_vocoder_never_use_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = components(open_checkpoint(GOLDEN / "checkpoints" / "tiny-ltx-2.3.safetensors"))
    vae = load_audio_vae(parts["audio_vae"], parts["vocoder"], device="cpu")
    seen: list[tuple[str, str]] = []
    real = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(settings())
        return real(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", call)
    before = settings()
    channels = vae.config.latent_channels
    wide = vae.statistics.mean.numel() // channels
    vae.decode(torch.zeros(1, channels, 2, wide))
    decoded = len(seen)
    vae.encode_mel(torch.zeros(1, 2, 8, 64))
    assert decoded > 10
    assert len(seen) > decoded
    assert set(seen) == {("ieee", "ieee")}
    assert settings() == before

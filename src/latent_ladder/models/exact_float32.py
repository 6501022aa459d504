"""Exact float32 products on GPUs that would round the factors to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

EXACT = "ieee"


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 products and convolutions of the ``with`` block in float32.

    PyTorch lets cuDNN round the factors of float32 convolutions to ten bits (TF32) by default,
    and a program may allow the same for products. Settings are restored afterwards. They are of
    the process: other threads compute exactly too while the block runs.
    """
    cudnn: Any = torch.backends.cudnn
    settings: tuple[Any, ...] = (
        cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul,
    )  # fmt: skip
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = EXACT
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value

"""Norms without learnt parameters, in as few passes over memory as the device allows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_normed(x: Tensor, eps: float) -> Tensor:
    """``x`` over its root mean square along the last axis, a new tensor."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    return x * inverse_rms(x, eps)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """One over the root mean square along the last axis: one read of ``x``, float32 only."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()


def layer_normed(x: Tensor, eps: float) -> Tensor:
    """``x`` minus its mean over its standard deviation along the last axis, a new tensor."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)

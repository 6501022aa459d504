"""Strict loading on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latent_ladder.errors import UnknownLayout
from latent_ladder.models.loading import load_module


class Net(nn.Module):
    """A layer, a parameter made otherwise than by ``torch.empty``, and a computed buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("angles", torch.arange(3.0), persistent=False)


TENSORS = {
    "layer.weight": torch.ones(3, 4, dtype=torch.bfloat16),
    "layer.bias": torch.zeros(3, dtype=torch.bfloat16),
    "scale": torch.full((3,), 2.0),
}


def load(tensors=None, **kwargs):
    readers = {k: (lambda v=v: v) for k, v in (tensors or TENSORS).items()}
    options = {"device": "cpu", "dtype": torch.float32, "what": "net"} | kwargs
    return load_module(Net, readers, **options)


def test_assigns_converts_and_keeps_computed_buffers():
    net = load(dtype=torch.float16, keep_float32=lambda name: name == "scale")
    assert net.layer.weight.dtype == torch.float16
    assert net.scale.dtype == torch.float32
    torch.testing.assert_close(net.angles, torch.arange(3.0))
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert net.layer(torch.ones(1, 4, dtype=torch.float16)).tolist() == [[4.0, 4.0, 4.0]]


def test_names_must_agree_both_ways():
    with pytest.raises(UnknownLayout, match=r"1 missing \(scale\); 1 unexpected \(other\)"):
        load({k: v for k, v in TENSORS.items() if k != "scale"} | {"other": torch.ones(1)})


def test_shapes_must_agree():
    with pytest.raises(UnknownLayout, match=r"scale has shape \[4\], the model needs \[3\]"):
        load(TENSORS | {"scale": torch.ones(4)})

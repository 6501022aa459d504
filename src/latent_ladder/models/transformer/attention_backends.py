"""Implementations of attention, and the choice among them by measurement.

The names of PyTorch's own kernels set an order of preference: where the first cannot do a call
(a bias, a head width), the next one does. Packages of the user (FlashAttention, SageAttention) are
imported on first use and get only calls without a bias, in 16 bits, on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from latent_ladder.models.accelerator import synchronize

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Queries, keys and values (rows, heads, tokens, head_dim), and an additive bias on the scores or
``None``; returns the shape of the queries."""

TOLERANCE = 0.02
"""Largest error of an exact backend in 16 bits, as a share of the largest output."""
CHECKED_TOKENS = 256
MEASURED_SHAPE = (32, 8160, 128)
"""Heads, tokens and head width of stage 1 at 960x544, 121 frames."""


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    attention_output: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return attention_output


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(-1) @ v


_ORDER = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def _prefer(
    kernels: list[SDPBackend], q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
) -> Tensor:
    with sdpa_kernel(kernels, set_priority=True):
        return _sdpa(q, k, v, bias)


def _preferring(first: SDPBackend) -> AttentionFunction:
    return partial(_prefer, [first, *(kernel for kernel in _ORDER if kernel is not first)])


def _by_package(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
) -> Tensor:
    if bias is not None or q.dtype not in (torch.bfloat16, torch.float16):
        return _sdpa(q, k, v, bias)
    return call(q, k, v)


def _flash(module: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention, whose layout is (rows, tokens, heads, head_dim)."""
    parts = (t.transpose(1, 2) for t in (q, k, v))
    found = import_module(module).flash_attn_func(*parts)
    out: Tensor = found[0] if isinstance(found, tuple) else found
    return out.transpose(1, 2)


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = import_module("sageattention").sageattn(q, k, v, tensor_layout="HND")
    return out


@dataclass(frozen=True)
class Backend:
    """An implementation of attention.

    ``kernel`` is PyTorch's, ``module`` the package that must be installed. One that is not
    ``exact`` rounds queries and keys to 8 bits, so it is used only by name.
    """

    function: AttentionFunction
    kernel: SDPBackend | None = None
    module: str | None = None
    exact: bool = True

    def strict(self) -> AttentionFunction:
        """The function without other kernels to fall back on."""
        return self.function if self.kernel is None else partial(_prefer, [self.kernel])

    def reason_against(self, device: torch.device) -> str | None:
        """Reason why the backend cannot be used on a device, ``None`` if it may be."""
        if self.module is None:
            return None
        if find_spec(self.module.partition(".")[0]) is None:
            return f"{self.module.partition('.')[0]} is not installed"
        return None if device.type == "cuda" else "needs an NVIDIA GPU"


def _package(module: str, exact: bool = True) -> Backend:
    call = _sage if module == "sageattention" else partial(_flash, module)
    return Backend(partial(_by_package, call), module=module, exact=exact)


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "sdpa": Backend(_sdpa),
        "cudnn": Backend(_preferring(SDPBackend.CUDNN_ATTENTION), SDPBackend.CUDNN_ATTENTION),
        "flash": Backend(_preferring(SDPBackend.FLASH_ATTENTION), SDPBackend.FLASH_ATTENTION),
        "efficient": Backend(
            _preferring(SDPBackend.EFFICIENT_ATTENTION), SDPBackend.EFFICIENT_ATTENTION
        ),
        "flash2": _package("flash_attn"),
        "flash3": _package("flash_attn_interface"),
        "flash4": _package("flash_attn.cute.interface"),
        "sage": _package("sageattention", exact=False),
        "plain": Backend(_plain),
    }
)
"""Attention implementations by name; "sdpa" leaves the choice to PyTorch."""

MEASURED = tuple(name for name in BACKENDS if name != "plain")
"""Backends to measure; the plain one needs the whole matrix of scores in memory."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a backend for one call, ``None`` if it cannot be used; ``note`` says why."""

    name: str
    seconds: float | None
    note: str = ""


def measure_backends(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int] = MEASURED_SHAPE,
    names: Iterable[str] = MEASURED,
) -> list[Measured]:
    """Time each backend on random numbers of ``shape`` (heads, tokens, head width).

    A backend whose result on a short sequence is not that of plain attention counts as unusable.
    """
    return [_measure(name, device, dtype, shape) for name in names]


def _measure(
    name: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]
) -> Measured:
    backend = BACKENDS[name]
    if (reason := backend.reason_against(device)) is not None:
        return Measured(name, None, reason)
    heads, tokens, width = shape
    try:
        error = _largest_error(backend, device, dtype, (heads, min(tokens, CHECKED_TOKENS), width))
        if backend.exact and not error <= TOLERANCE:
            return Measured(name, None, f"wrong result: error {error:.2g}")
        seconds = _seconds(backend.strict(), _random(device, dtype, shape), device)
    except (RuntimeError, ImportError, AttributeError, TypeError, AssertionError) as failure:
        # a kernel that the card, the head width or the package's version does not have
        return Measured(name, None, (str(failure).strip().splitlines() or ["failed"])[0][:80])
    return Measured(name, seconds, "" if backend.exact else f"8 bits, error {error:.2g}")


def _random(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    # As in the transformer: heads are a dimension of a tensor (rows, tokens, heads, head_dim).
    heads, tokens, width = shape
    q, k, v = (
        torch.randn(1, tokens, heads, width, device=device, dtype=dtype).transpose(1, 2)
        for _ in range(3)
    )
    return q, k, v


def _largest_error(
    backend: Backend, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]
) -> float:
    q, k, v = _random(device, dtype, shape)
    wanted = _plain(q.float(), k.float(), v.float(), None)
    got = backend.strict()(q, k, v, None).float()
    return float((got - wanted).abs().max() / wanted.abs().max())


def _seconds(
    function: AttentionFunction, inputs: tuple[Tensor, Tensor, Tensor], device: torch.device
) -> float:
    """Shortest of three calls after a first one, which may compile or load the kernel."""
    best = float("inf")
    for _ in range(4):
        synchronize(device)
        began = time.perf_counter()
        function(*inputs, None)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def fastest(measured: Iterable[Measured]) -> str:
    """Name of the fastest exact backend, "sdpa" if none can be used."""
    usable = [
        (m.seconds, m.name) for m in measured if m.seconds is not None and BACKENDS[m.name].exact
    ]
    return min(usable)[1] if usable else "sdpa"

"""The user's switches of the fast path, applied to a loaded transformer."""

from __future__ import annotations

from collections.abc import Iterator

from latent_ladder.models.device import Runtime
from latent_ladder.models.fast_options import attention_of
from latent_ladder.models.transformer import fused
from latent_ladder.models.transformer.attention_backends import (
    BACKENDS,
    fastest,
    measure_backends,
)
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.weights import nvfp4_products


class FastPath:
    """Switches for the transformers of one runtime; attention is measured once, on first use."""

    def __init__(self, switches: frozenset[str], runtime: Runtime) -> None:
        self._switches, self._runtime = switches, runtime
        self._backend: str | None = None

    def apply(self, transformer: Transformer) -> tuple[str, ...]:
        """Set the switches on a transformer; returns a note on each that was asked for."""
        if not self._switches or transformer.fast_switches == self._switches:
            return ()
        transformer.fast_switches = self._switches
        return tuple(self._apply(transformer))

    def _apply(self, transformer: Transformer) -> Iterator[str]:
        device = self._runtime.device
        if (asked := attention_of(self._switches)) is not None:
            yield self._choose_attention(transformer, asked)
        if "fused" in self._switches:
            reason = fused.reason_against(device)
            transformer.use_fused(reason is None)
            yield "fused kernels" if reason is None else f"no fused kernels: {reason}"
        if "fp8" in self._switches:
            transformer.use_fp8_products(True)
            yield "fp8 products where weights are fp8 and the card multiplies it"
        if "fp4" in self._switches:
            reason = nvfp4_products.reason_against(device)
            transformer.use_fp4_products(reason is None)
            yield "NVFP4 products" if reason is None else f"no NVFP4 products: {reason}"
        if "graphs" in self._switches:
            transformer.graphs = device.type == "cuda"
            yield "CUDA graphs" if transformer.graphs else f"no CUDA graphs on {device.type}"
        if "compile" in self._switches:
            transformer.compile_regions()
            yield "attention and feed-forward are compiled"

    def _choose_attention(self, transformer: Transformer, asked: str) -> str:
        device = self._runtime.device
        if asked == "auto":
            if self._backend is None:
                on_cpu = device.type == "cpu"
                measured = [] if on_cpu else measure_backends(device, self._runtime.dtype)
                self._backend = fastest(measured)
            transformer.use_attention(self._backend)
            return f"attention: {self._backend}, the fastest exact one measured"
        reason = BACKENDS[asked].reason_against(device)
        transformer.use_attention("sdpa" if reason else asked)
        return f"attention: {asked}" if reason is None else f"attention: sdpa, as {asked} {reason}"

"""Networks on one device: loading, offloading, releasing, and retrying after out-of-memory.

A :class:`ModelRunner` keeps one transformer loaded between stages of a run, or between nodes of a
graph; all other networks are loaded for one stage and released with it. It knows neither requests
nor graphs.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.text_loras import TextLoras
from latent_ladder.memory import peak_usage
from latent_ladder.memory.oom import retry_with_fallbacks
from latent_ladder.memory.planner import Budget, OffloadPlan, Policy, StageMemory, keeps
from latent_ladder.models import accelerator
from latent_ladder.models.device import Runtime
from latent_ladder.models.text_encoder.encode import NO_LORAS, Conditioning, encode_prompts
from latent_ladder.models.transformer.fast_path import FastPath
from latent_ladder.models.transformer.model import LoadOptions, Transformer, load_transformer
from latent_ladder.models.weights.block_offload import BlockOffload
from latent_ladder.models.weights.loading import WeightLocation

T = TypeVar("T")
Warn = Callable[[str, str], None]
"""Receives the code and the message of a warning."""
logger = logging.getLogger(__name__)
UNLOADED = "trying again with the transformer unloaded"


class ModelRunner:
    """Loads networks within a memory budget and keeps the transformer for the next use."""

    def __init__(self, runtime: Runtime, budget: Budget, policy: Policy) -> None:
        accelerator.prepare(runtime.device, budget.device_bytes)
        self.runtime, self.budget, self.policy = runtime, budget, policy
        self._fast_path = FastPath(policy.fast, runtime)
        self._transformer: Transformer | None = None
        self._loaded: tuple[str, LoadOptions] | None = None
        self._program_bytes = peak_usage.program_bytes(self.device)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.runtime.device

    # -- the transformer ----------------------------------------------------------------------

    def transformer_for(self, component: Component, offload_plan: OffloadPlan) -> Transformer:
        """The transformer as ``offload_plan`` wants it; the loaded one if it is the same."""
        wanted = component.id, _load_options(offload_plan)
        if self._transformer is None or self._loaded != wanted:
            self._transformer = None
            gc.collect()
            self._transformer = load_transformer(
                component, device=self.device, dtype=self.runtime.dtype, load=wanted[1]
            )
            self._loaded = wanted
        elif (offload := _block_offload(offload_plan)) is not None:
            self._transformer.give_back(offload)
        self._transformer.set_chunk_tokens(offload_plan.chunk_tokens)
        for note in self._fast_path.apply(self._transformer):
            logger.info(note)
        return self._transformer

    @property
    def merges_loras(self) -> bool:
        """True if all LoRAs of a layer are to be one product."""
        return "loras" in self.policy.fast

    @contextmanager
    def resident_blocks(
        self, transformer: Transformer, offload_plan: OffloadPlan
    ) -> Iterator[None]:
        """Keep the blocks that ``offload_plan`` names on the device; stream the others.

        LoRAs must be attached before.
        """
        with transformer.offload_blocks(self.device, _block_offload(offload_plan)):
            yield

    def make_room(self, stage: StageMemory) -> None:
        """Free the transformer where it and a stage of other networks do not fit together.

        Resident blocks leave first, all of it only if that is not enough. Where memory is not
        counted by device (CPU, Apple GPUs), the transformer stays.
        """
        if self._transformer is None or self._fits_next_to(stage):
            return
        self._transformer.give_back(BlockOffload(0))
        if not self._fits_next_to(stage):
            self.release()

    def _fits_next_to(self, stage: StageMemory) -> bool:
        return keeps(stage, accelerator.allocated_bytes(self.device), self.budget)

    def release(self) -> None:
        """Unload the transformer and return cached device memory."""
        self._transformer = self._loaded = None
        gc.collect()
        accelerator.return_cached_memory(self.device)

    # -- texts --------------------------------------------------------------------------------

    def encode_texts(
        self,
        texts: Sequence[str],
        text_encoder: Component,
        projection: Component,
        connectors: Component,
        loras: TextLoras = NO_LORAS,
        *,
        as_comfyui: bool = False,
    ) -> list[Conditioning]:
        """The context of each text, on the device. The text encoder loads once for all of them.

        ``as_comfyui``: see :func:`encode_prompts`.
        """
        return encode_prompts(
            texts,
            text_encoder=text_encoder,
            projection=projection,
            connectors=connectors,
            device=self.device,
            dtype=self.runtime.dtype,
            loras=loras,
            as_comfyui=as_comfyui,
        )

    # -- out of memory ------------------------------------------------------------------------

    def retry(
        self,
        name: str,
        work: Callable[[StageMemory], T],
        first: StageMemory,
        next_fallback: Callable[[StageMemory], StageMemory],
        warn: Warn,
    ) -> T:
        """Result of ``work(first)``; after out-of-memory, of ``work`` with the next fallback.

        Everything is unloaded and a warning that names ``name`` is given before each further try.
        A stage that needs no transformer is tried again as it was if one was loaded.
        ``next_fallback`` raises :class:`MemoryBudgetError` where nothing is left.
        """

        def fall_back(before: StageMemory) -> StageMemory:
            was_loaded = self._transformer is not None
            self.release()
            if was_loaded and before.cost.kind not in ("base", "refine"):
                warn("out_of_memory", f"{name} ran out of memory; {UNLOADED}")
                return before
            after = next_fallback(before)
            old, new = before.offload_plan, after.offload_plan
            warn("out_of_memory", f"{name} ran out of memory ({old}); trying again with: {new}")
            return after

        return retry_with_fallbacks(work, first, fall_back)

    def retry_without_transformer(self, work: Callable[[], T], warn: Warn) -> T:
        """Result of ``work``; after out-of-memory, once more with the transformer unloaded."""

        def unload(_: None) -> None:
            self.release()
            warn("out_of_memory", f"memory ran out; {UNLOADED}")

        return retry_with_fallbacks(
            lambda _: work(), None, unload, lambda _: self._transformer is not None
        )

    # -- measuring ----------------------------------------------------------------------------

    def start_measuring(self) -> None:
        """Reset the peak memory counter."""
        peak_usage.reset(self.device)

    def peak_bytes(self) -> int:
        """Peak memory since :meth:`start_measuring`, in bytes, as a memory plan counts it.

        The models and their work, without the interpreter and its libraries.
        """
        return max(peak_usage.peak_bytes(self.device) - self._program_bytes, 0)


def _block_offload(offload_plan: OffloadPlan) -> BlockOffload | None:
    if offload_plan.resident is None:
        return None
    return BlockOffload(offload_plan.resident, pinned=offload_plan.source == "pinned")


def _load_options(offload_plan: OffloadPlan) -> LoadOptions:
    # Pinned memory is filled from the mapped file: loading into RAM first would need both.
    blocks: WeightLocation = "device" if offload_plan.resident is None else "file"
    return LoadOptions(offload_plan.precision, offload_plan.as_stored, blocks)

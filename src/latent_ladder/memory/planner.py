"""Fitting a request into memory: what is on the device when, and what to give up first.

Pure arithmetic on sizes, no device and no torch. One component is on the device at a time; only the
transformer is ever held in parts. :data:`FALLBACKS` is the out-of-memory ladder: each rung gives up
speed for memory, none changes the picture but for the last bits, except those marked so, which are
taken only where the user allows it. The planner starts on the first rung that fits; a run that
still meets its limit goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from latent_ladder.errors import MemoryBudgetError
from latent_ladder.memory.cost_model import (
    CHUNK_TOKENS,
    ModelSizes,
    StageCost,
    decode_activations,
    estimate,
    transformer_activations,
    upsample_activations,
)
from latent_ladder.models.weights.offload_schedule import streamed_block_numbers
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.storage.atomic_write import readable_size

Precision = Literal["stored", "fp8"]
Source = Literal["pinned", "file"]

GIB = 2**30
BUFFERS = 2
"""Blocks on the device while others stream: one computes, one arrives."""
STEP_DOWN = 0.85
"""Share of the memory that a stage is given after it ran out."""
TILES_PX = (1024, 768, 512, 384, 256, 128)
TILE_FRAMES, OVERLAP_FRAMES = 24, 8
"""Tiles of the decoder where the whole picture does not fit; the blended band counts too."""
SMALL_CHUNK = 1024
CPU_CHUNK = 1024


@dataclass(frozen=True)
class Budget:
    """What may be used: bytes of the device's memory, and of RAM for what waits beside it.

    On the CPU both are the same memory and ``ram_bytes`` is not looked at.
    """

    device: str
    device_bytes: int
    ram_bytes: int


@dataclass(frozen=True)
class OffloadPlan:
    """How the transformer is held and worked in a stage.

    ``rows`` guidance passes at once (``None``: all), sublayers in chunks of ``chunk_tokens``.
    ``resident`` blocks stay on the device (``None``: all), the others come from pinned memory or,
    with ``source="file"``, from the mapped file. ``as_stored`` keeps weights as the file has them
    and converts each at use; quantised ones always do. ``tile_px`` is the decoder's tile where it
    differs from the request's, ``precision`` "fp8" stores a bf16 transformer in fp8.
    """

    rows: int | None = None
    chunk_tokens: int = CHUNK_TOKENS
    resident: int | None = None
    source: Source = "pinned"
    as_stored: bool = False
    tile_px: int | None = None
    precision: Precision = "stored"

    def decode(self, asked: Decode) -> Decode:
        """The decoder's tiles: as asked, or smaller."""
        if self.tile_px is None:
            return asked
        changes: dict[str, int | str] = {"tile_px": self.tile_px}
        if asked.grid != "auto":
            changes |= {"grid": "auto", "overlap_px": "auto"}
        if asked.tile_frames == "auto":
            changes |= {"tile_frames": TILE_FRAMES, "overlap_frames": OVERLAP_FRAMES}
        return asked.model_copy(update=changes)

    def __str__(self) -> str:
        parts = ["resident" if self.resident is None else f"{self.resident} blocks resident"]
        if self.resident is not None:
            parts.append(f"the others from {'pinned RAM' if self.source == 'pinned' else 'disk'}")
        if self.rows is not None:
            parts.append(f"{self.rows} guidance pass at a time")
        if self.as_stored:
            parts.append("weights as stored")
        if self.precision != "stored":
            parts.append(f"stored in {self.precision}")
        if self.tile_px is not None:
            parts.append(f"tiles of {self.tile_px} px")
        return ", ".join(parts)


@dataclass(frozen=True)
class StageMemory:
    """A stage with its holding: predicted bytes on the device at the peak, and of pinned RAM."""

    cost: StageCost
    offload_plan: OffloadPlan
    weight_bytes: int
    activation_bytes: int
    pinned_bytes: int = 0
    streamed_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """Weights and activations together."""
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class Machine:
    """Measured rates of a machine (``ladder bench``), in FLOP/s and bytes/s."""

    flops: float
    copy: float
    disk: float

    def seconds(self, stage: StageMemory) -> float:
        """Time of a stage: computing and streaming overlap, the longer one counts."""
        rate = self.copy if stage.offload_plan.source == "pinned" else self.disk
        batches = stage.cost.forwards / max(_rows(stage.cost, stage.offload_plan), 1)
        return max(stage.cost.flops / self.flops, batches * stage.streamed_bytes / rate)


@dataclass(frozen=True)
class MemoryPlan:
    """Every stage with the first rung that fits."""

    budget: Budget
    stages: tuple[StageMemory, ...]

    def with_stage(self, stage: StageMemory) -> MemoryPlan:
        """This plan with one stage held in another way."""
        stages = (stage if s.cost.name == stage.cost.name else s for s in self.stages)
        return replace(self, stages=tuple(stages))

    def of(self, name: str) -> StageMemory:
        """The stage of that name."""
        return next(s for s in self.stages if s.cost.name == name)

    @property
    def peak_bytes(self) -> int:
        """The largest of all stages."""
        return max(s.peak_bytes for s in self.stages)


@dataclass(frozen=True)
class Policy:
    """What may be given up: ``offload`` is auto, none, stream or disk.

    ``changes`` allows resolutions that alter the picture: "tiles" (smaller decoder tiles) and "fp8".
    """

    offload: str = "auto"
    changes: frozenset[str] = frozenset()
    precision: Precision = "stored"


def plan_memory(
    request: Request,
    sizes: ModelSizes,
    budget: Budget,
    policy: Policy = Policy(),
    made: Container[str] | None = None,
) -> MemoryPlan:
    """The first holding that fits, stage by stage; only the stages in ``made`` have to fit.

    Raises :class:`MemoryBudgetError` naming the stage, what it needs on the last resolution, and what
    would fit.
    """
    found = []
    for cost in estimate(request, sizes):
        resolutions = list(ladder(cost, request, sizes, budget, policy))
        chosen = next((resolution for resolution in resolutions if fits(resolution, budget)), None)
        if chosen is None and (made is None or cost.name in made):
            raise _too_big(resolutions[-1], budget, policy, request)
        found.append(chosen or resolutions[-1])
    return MemoryPlan(budget, tuple(found))


def give_way(
    stage: StageMemory, request: Request, sizes: ModelSizes, budget: Budget, policy: Policy
) -> StageMemory:
    """The holding to go on with after ``stage`` met its limit although it seemed to fit.

    The prediction was too low or the memory was taken meanwhile, so the next holding must need
    clearly less. Raises :class:`MemoryBudgetError` when there is none.
    """
    if stage.cost.kind == "decode":
        resolutions = list(ladder(stage.cost, request, sizes, budget, policy))
        smaller = [r for r in resolutions if _tile(r) < _tile(stage)]
        if not smaller:
            raise _too_big(stage, budget, policy, request)
        return smaller[0]
    less = _less(stage, budget)
    return _first_fit(ladder(stage.cost, request, sizes, less, policy), less, policy)


def hold(cost: StageCost, sizes: ModelSizes, budget: Budget, policy: Policy) -> StageMemory:
    """The first holding that fits of a sampling stage that belongs to no request.

    Raises :class:`MemoryBudgetError`.
    """
    return _first_fit(sampling_ladder(cost, sizes, budget, policy), budget, policy)


def hold_less(stage: StageMemory, sizes: ModelSizes, budget: Budget, policy: Policy) -> StageMemory:
    """As :func:`give_way`, for a stage of :func:`hold`."""
    return hold(stage.cost, sizes, _less(stage, budget), policy)


def _less(stage: StageMemory, budget: Budget) -> Budget:
    """What a stage is given after it ran out."""
    given = min(stage.peak_bytes, budget.device_bytes)
    return replace(budget, device_bytes=int(given * STEP_DOWN))


def _first_fit(resolutions: Iterator[StageMemory], budget: Budget, policy: Policy) -> StageMemory:
    last = None
    for last in resolutions:
        if fits(last, budget):
            return last
    if last is None:
        raise ValueError("a ladder without rungs")
    raise _too_big(last, budget, policy)


def _tile(stage: StageMemory) -> float:
    return math.inf if stage.offload_plan.tile_px is None else stage.offload_plan.tile_px


def fits(stage: StageMemory, budget: Budget) -> bool:
    """Whether the prediction is within the budget."""
    return stage.peak_bytes <= budget.device_bytes and stage.pinned_bytes <= budget.ram_bytes


def ladder(
    cost: StageCost, request: Request, sizes: ModelSizes, budget: Budget, policy: Policy
) -> Iterator[StageMemory]:
    """The holdings of a stage from the fastest to the smallest."""
    if cost.kind not in ("base", "refine"):
        yield _fixed(cost, request, sizes, OffloadPlan(), budget.device)
        if cost.kind == "decode" and "tiles" in policy.changes:
            for tile in _smaller_tiles(request):
                yield _fixed(cost, request, sizes, OffloadPlan(tile_px=tile), budget.device)
        return
    yield from sampling_ladder(cost, sizes, budget, policy)


def sampling_ladder(
    cost: StageCost, sizes: ModelSizes, budget: Budget, policy: Policy
) -> Iterator[StageMemory]:
    """The holdings of a stage that samples, from the fastest to the smallest."""
    for offload_plan in _holdings(cost, sizes, budget, policy):
        if offload_plan.resident is None:
            yield _sampled(cost, sizes, budget, offload_plan)
        else:
            yield _best_share(cost, sizes, budget, offload_plan)


def _smaller_tiles(request: Request) -> list[int]:
    """Sides of tiles that need less than what was asked for. Those of a grid are all decoded
    together, so even one as large as theirs does."""
    asked, last = request.decode.tile_px, request.resolutions[-1]
    most = max(last.width, last.height) if asked == "auto" else asked
    return [tile for tile in TILES_PX if tile < most]


def _holdings(
    cost: StageCost, sizes: ModelSizes, budget: Budget, policy: Policy
) -> Iterator[OffloadPlan]:
    chunk = CPU_CHUNK if budget.device == "cpu" else CHUNK_TOKENS
    first = OffloadPlan(rows=cost.batch_passes, chunk_tokens=chunk, precision=policy.precision)
    one = replace(first, rows=1) if cost.passes > 1 else first
    small = replace(one, chunk_tokens=SMALL_CHUNK)
    kept = [first, one, small]
    if sizes.block_values * sizes.value_bytes > max(sizes.blocks, default=0):
        kept += [replace(h, as_stored=True) for h in (one, small)]
    sources: Mapping[str, tuple[Source, ...]] = {
        "auto": ("pinned", "file"), "stream": ("pinned",), "disk": ("file",), "none": (),
    }  # fmt: skip
    streamed = [
        replace(h, as_stored=True, resident=0, source=source)
        for source in sources[policy.offload]
        if not (budget.device == "cpu" and source == "pinned")
        for h in (first, one, small)
    ]
    chosen = streamed if policy.offload in ("stream", "disk") else kept + streamed
    yield from dict.fromkeys(chosen)
    if "fp8" in policy.changes and policy.precision == "stored":
        yield from (replace(h, precision="fp8") for h in dict.fromkeys(chosen))


def _best_share(
    cost: StageCost, sizes: ModelSizes, budget: Budget, offload_plan: OffloadPlan
) -> StageMemory:
    """Of a streamed holding: as many resident blocks as fit, none if none does."""
    layers = sizes.dit.layers
    low, high = 0, layers - 1
    while low < high:  # peak bytes grow with every resident block
        middle = (low + high + 1) // 2
        stage = _sampled(cost, sizes, budget, replace(offload_plan, resident=middle))
        low, high = (middle, high) if stage.peak_bytes <= budget.device_bytes else (low, middle - 1)
    return _sampled(cost, sizes, budget, replace(offload_plan, resident=low))


def _rows(cost: StageCost, offload_plan: OffloadPlan) -> int:
    return cost.passes if offload_plan.rows is None else min(offload_plan.rows, cost.passes)


def _sampled(
    cost: StageCost, sizes: ModelSizes, budget: Budget, offload_plan: OffloadPlan
) -> StageMemory:
    """Bytes of a sampling stage under a holding."""
    dit = sizes.dit
    converted = sizes.block_values * sizes.value_bytes
    lora = cost.lora_bytes // max(dit.layers, 1)
    blocks = [_block_bytes(stored, sizes, offload_plan) + lora for stored in sizes.blocks]
    resident = dit.layers if offload_plan.resident is None else offload_plan.resident
    streamed = [blocks[n] for n in streamed_block_numbers(dit.layers, dit.layers - resident)]
    buffers = min(BUFFERS, len(streamed)) * max(streamed, default=0)
    # A weight that is not kept as computed with is converted layer by layer; the feed-forward's
    # is the largest, 4 d^2 numbers.
    whole = min(blocks, default=0) >= converted
    temporary = 0 if whole else 4 * dit.video_dim**2 * sizes.value_bytes
    activations = transformer_activations(
        sizes,
        cost.tile_tokens or cost.window_tokens,
        cost.audio_tokens,
        _rows(cost, offload_plan),
        offload_plan.chunk_tokens,
        whole_tokens=None if cost.tile_tokens is None else cost.window_tokens,
    )
    pinned = offload_plan.source == "pinned" and budget.device != "cpu"
    return StageMemory(
        cost,
        offload_plan,
        weight_bytes=sizes.outside_bytes + sum(blocks) - sum(streamed) + buffers + temporary,
        activation_bytes=activations,
        pinned_bytes=sum(streamed) if pinned else 0,
        streamed_bytes=sum(streamed),
    )


def _block_bytes(stored: int, sizes: ModelSizes, offload_plan: OffloadPlan) -> int:
    """Bytes of one block on the device: as stored where it is quantised, else as computed with."""
    if offload_plan.precision == "fp8":
        stored = min(stored, sizes.block_values)
    quantised = stored < 2 * sizes.block_values
    return stored if offload_plan.as_stored or quantised else sizes.block_values * sizes.value_bytes


_ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "prompt": ("text_encoder", "text_projection", "connectors"),
        "upsample": ("latent_upsampler",),
        "decode": ("video_vae", "vocoder"),
    }
)


def _fixed(
    cost: StageCost, request: Request, sizes: ModelSizes, offload_plan: OffloadPlan, device: str
) -> StageMemory:
    """Bytes of a stage whose components are loaded piece by piece, the largest piece counts."""
    roles = _ROLES.get(cost.kind, ())
    pieces = [sizes.largest.get(role, sizes.bytes_of(role)) for role in roles]
    activations = 0
    if cost.kind == "upsample" and cost.resolution is not None:
        activations = upsample_activations(sizes, cost.window_tokens)
    elif cost.kind == "decode":
        activations = decode_activations(
            request.resolutions[-1], offload_plan.decode(request.decode), sizes, device
        )
    return StageMemory(cost, offload_plan, max(pieces, default=0), activations)


def _too_big(
    stage: StageMemory, budget: Budget, policy: Policy, request: Request | None = None
) -> MemoryBudgetError:
    resolution = stage.cost.resolution
    where = f" at {resolution.width}x{resolution.height}x{resolution.frames}" if resolution else ""
    what = f"{stage.cost.name}{where}"
    if stage.pinned_bytes > budget.ram_bytes:
        return MemoryBudgetError(
            f"{what} needs {readable_size(stage.pinned_bytes)} of RAM to stream from, "
            f"{readable_size(budget.ram_bytes)} are free",
            "use --offload disk, or a smaller precision of the model",
        )
    without = "" if request is None or request.decode.grid == "auto" else "decode.grid=auto --set "
    hints = {
        "none": "--offload auto lets blocks wait outside the device's memory",
        "decode": f"use --set {without}decode.tile_px=384, or --oom-policy tiles",
    }
    hint = hints.get(stage.cost.kind) or hints.get(
        policy.offload, "use a smaller --size or fewer --frames"
    )
    return MemoryBudgetError(
        f"{what} needs {readable_size(stage.peak_bytes)} even with {stage.offload_plan}, the budget is "
        f"{readable_size(budget.device_bytes)}",
        hint,
    )

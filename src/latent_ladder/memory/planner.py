"""Fit of a request into memory: where weights are during each stage, and which fallback to take.

Pure arithmetic on sizes, no device and no torch. One component is on the device at a time; only the
transformer may be there in parts. A stage has a row of fallback levels (:func:`stage_fallbacks`),
each slower and smaller than the one before. None changes the picture except for the last bits, but
for smaller decoder tiles and fp8, which are used only where the user allows them. The planner takes
the first level that fits; a run that is still out of memory continues from there.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from latent_ladder.errors import MemoryBudgetError
from latent_ladder.memory.cost_model import (
    StageCost,
    estimate,
    table_activations,
    transformer_activations,
    upsample_activations,
)
from latent_ladder.memory.decode_cost import decode_activations, decode_flops, decoder_ram_bytes
from latent_ladder.memory.model_sizes import ModelSizes
from latent_ladder.memory.prompt_cost import projection_bytes, prompt_activations
from latent_ladder.memory.sound_cost import sound_activations
from latent_ladder.models.network_configs import CHUNK_TOKENS_CPU, CHUNK_TOKENS_GPU, chunk_tokens
from latent_ladder.models.weights.offload_schedule import BUFFERS, streamed_block_numbers
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.storage.atomic_write import readable_size

Precision = Literal["stored", "fp8"]
Source = Literal["pinned", "file"]

GIB = 2**30
STEP_DOWN = 0.85
"""Share of the memory that a stage may use after it ran out of memory."""
WORKSPACE_BYTES = 64 * 2**20
"""On a GPU: workspaces of its libraries (cuBLAS takes 32 MiB on Hopper), encoded prompts, and
what rounding adds to small tensors."""
TILES_PX = (1024, 768, 512, 384, 256, 128)
TILE_FRAMES, OVERLAP_FRAMES = 24, 8
"""Tiles of the decoder where the whole picture does not fit; the blended band counts too."""


@dataclass(frozen=True)
class Budget:
    """Memory that a run may use: bytes on the device, and bytes of RAM for offloaded blocks.

    On the CPU both are the same memory and ``ram_bytes`` is ignored. ``device`` is PyTorch's device
    type, ``name`` that of a GPU; one without ``has_bf16`` computes in float32.
    """

    device: str
    device_bytes: int
    ram_bytes: int
    name: str = ""
    has_bf16: bool = True

    @property
    def value_bytes(self) -> int:
        """Bytes of a number in the compute dtype."""
        return 2 if self.device != "cpu" and self.has_bf16 else 4

    @property
    def rates_name(self) -> str:
        """Name under which measured rates are stored."""
        return self.name or self.device


@dataclass(frozen=True)
class OffloadPlan:
    """Placement of the transformer in a stage, and the sizes of what is computed at once.

    ``rows`` guidance passes are computed at once (``None``: all), sublayers in chunks of
    ``chunk_tokens``. ``resident`` blocks stay on the device (``None``: all), the others come from
    pinned memory or, with ``source="file"``, from the mapped file. ``as_stored`` leaves weights in
    the dtype of the file and converts each at use, as is always done with quantised ones.
    ``tile_px`` is the decoder's tile where it differs from the request's, ``precision`` "fp8"
    stores a bf16 transformer in fp8. ``frames_in_ram``: the diffusion decoder keeps the frames
    between its blocks in RAM, with the same result.
    """

    rows: int | None = None
    chunk_tokens: int = CHUNK_TOKENS_GPU
    resident: int | None = None
    source: Source = "pinned"
    as_stored: bool = False
    tile_px: int | None = None
    precision: Precision = "stored"
    frames_in_ram: bool = False

    def decode(self, asked: Decode) -> Decode:
        """The request's decoder tiles, or smaller ones."""
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
        if self.frames_in_ram:
            parts.append("frames of the decoder in RAM")
        if self.tile_px is not None:
            parts.append(f"tiles of {self.tile_px} px")
        return ", ".join(parts)


@dataclass(frozen=True)
class StageMemory:
    """A stage with its offload plan: predicted peak bytes on the device and in pinned RAM.

    ``resting_bytes`` of the transformer are still on the device after a sampling stage;
    ``kept_bytes`` are those of the stage before that stay there during another stage.
    """

    cost: StageCost
    offload_plan: OffloadPlan
    weight_bytes: int
    activation_bytes: int
    pinned_bytes: int = 0
    streamed_bytes: int = 0
    resting_bytes: int = 0
    kept_bytes: int = 0

    @property
    def own_bytes(self) -> int:
        """Bytes of the stage's own weights and activations together."""
        return self.weight_bytes + self.activation_bytes

    @property
    def peak_bytes(self) -> int:
        """Bytes on the device at the peak: the stage's own, and the transformer if it stays."""
        return self.own_bytes + self.kept_bytes


@dataclass(frozen=True)
class Machine:
    """Measured rates of a machine (``stage_fallbacks bench``), in FLOP/s and bytes/s."""

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
    """Every stage with the first fallback level that fits."""

    budget: Budget
    stages: tuple[StageMemory, ...]

    def with_stage(self, stage: StageMemory) -> MemoryPlan:
        """This plan with another offload plan for one stage."""
        stages = (stage if s.cost.name == stage.cost.name else s for s in self.stages)
        return replace(self, stages=tuple(stages))

    def of(self, name: str) -> StageMemory:
        """The stage of that name."""
        return next(s for s in self.stages if s.cost.name == name)

    @property
    def peak_bytes(self) -> int:
        """The largest peak of all stages."""
        return max(s.peak_bytes for s in self.stages)


@dataclass(frozen=True)
class Policy:
    """Fallbacks that the planner may use: ``offload`` is auto, none, stream or disk.

    ``changes`` allows fallbacks that alter the picture: "tiles" (smaller decoder tiles) and "fp8".
    ``fast`` are switches of the fast path (:data:`latent_ladder.models.fast_options.FAST`).
    """

    offload: str = "auto"
    changes: frozenset[str] = frozenset()
    precision: Precision = "stored"
    fast: frozenset[str] = frozenset()


def plan_memory(
    request: Request,
    sizes: ModelSizes,
    budget: Budget,
    policy: Policy = Policy(),
    made: Container[str] | None = None,
) -> MemoryPlan:
    """The first fallback level that fits, stage by stage; only stages in ``made`` have to fit.

    Raises :class:`MemoryBudgetError` naming the stage, what it needs at the last fallback level,
    and the flag that helps.
    """
    found = []
    for cost in estimate(request, sizes):
        levels = list(stage_fallbacks(cost, request, sizes, budget, policy))
        fitting = next((level for level in levels if fits(level, budget)), None)
        if fitting is None and (made is None or cost.name in made):
            least = [
                _least(list(stage_fallbacks(other, request, sizes, budget, policy)))
                for other in estimate(request, sizes)
                if made is None or other.name in made
            ]
            room = max(level.peak_bytes for level in least)
            raise _too_big(_least(levels), budget, policy, room)
        found.append(fitting or levels[-1])
    return MemoryPlan(budget, tuple(_keep_transformer(found, budget)))


def _keep_transformer(stages: Iterable[StageMemory], budget: Budget) -> Iterator[StageMemory]:
    """The stages, with the transformer kept during an upsample stage where both fit.

    A sampling stage follows, so it would be loaded again. Otherwise it is unloaded before.
    """
    resting = 0
    for stage in stages:
        if stage.cost.kind in ("base", "refine"):
            resting = stage.resting_bytes
        if stage.cost.kind == "upsample" and keeps(stage, resting, budget):
            stage = replace(stage, kept_bytes=resting)
        yield stage


def keeps(stage: StageMemory, resting_bytes: int, budget: Budget) -> bool:
    """True where a transformer of ``resting_bytes`` may stay on the device during ``stage``."""
    return stage.own_bytes + resting_bytes <= budget.device_bytes


def plan_fallback(
    stage: StageMemory, request: Request, sizes: ModelSizes, budget: Budget, policy: Policy
) -> StageMemory:
    """The fallback level to retry with after ``stage`` ran out of memory although it seemed to fit.

    The prediction was too low, or another program took the memory, so the next level must need
    clearly less. Raises :class:`MemoryBudgetError` when there is none.
    """
    if stage.cost.kind == "decode":
        levels = stage_fallbacks(stage.cost, request, sizes, budget, policy)
        smaller = [level for level in levels if _decode_rank(level) < _decode_rank(stage)]
        if not smaller:
            raise _too_big(stage, budget, policy)
        return smaller[0]
    if stage.cost.kind not in ("base", "refine"):
        raise ran_out(stage.cost.name, budget)
    less = _less(stage, budget)
    return _first_fit(stage_fallbacks(stage.cost, request, sizes, less, policy), less, policy)


def fit_stage(cost: StageCost, sizes: ModelSizes, budget: Budget, policy: Policy) -> StageMemory:
    """The first fallback level that fits of a sampling stage that belongs to no request.

    Raises :class:`MemoryBudgetError`.
    """
    return _first_fit(sampling_fallbacks(cost, sizes, budget, policy), budget, policy)


def fit_stage_smaller(
    stage: StageMemory, sizes: ModelSizes, budget: Budget, policy: Policy
) -> StageMemory:
    """Fallback of a stage of :func:`fit_stage`: as :func:`plan_fallback`, without a request."""
    return fit_stage(stage.cost, sizes, _less(stage, budget), policy)


def _less(stage: StageMemory, budget: Budget) -> Budget:
    """The budget of a stage after it ran out of memory."""
    used = min(stage.peak_bytes, budget.device_bytes)
    return replace(budget, device_bytes=int(used * STEP_DOWN))


def _first_fit(levels: Iterator[StageMemory], budget: Budget, policy: Policy) -> StageMemory:
    last = None
    for last in levels:
        if fits(last, budget):
            return last
    if last is None:
        raise ValueError("a stage without fallback levels")
    raise _too_big(last, budget, policy)


def _decode_rank(stage: StageMemory) -> tuple[float, bool]:
    """Sort key of the fallback levels of decoding: smaller ones need less memory."""
    plan = stage.offload_plan
    return math.inf if plan.tile_px is None else plan.tile_px, not plan.frames_in_ram


def fits(stage: StageMemory, budget: Budget) -> bool:
    """True where the prediction is within the budget."""
    return stage.peak_bytes <= budget.device_bytes and stage.pinned_bytes <= budget.ram_bytes


def stage_fallbacks(
    cost: StageCost, request: Request, sizes: ModelSizes, budget: Budget, policy: Policy
) -> Iterator[StageMemory]:
    """The fallback levels of a stage, from the fastest to the smallest."""
    if cost.kind not in ("base", "refine"):
        yield _fixed_memory(cost, request, sizes, OffloadPlan(), budget.device)
        if cost.kind == "decode" and sizes.diffusion_decoder is not None:
            if budget.device != "cpu":
                ram = OffloadPlan(frames_in_ram=True)
                yield _fixed_memory(cost, request, sizes, ram, budget.device)
            return  # smaller tiles need more memory than frames in RAM, and change the picture
        if cost.kind == "decode" and "tiles" in policy.changes:
            for tile in _smaller_tiles(request):
                yield _fixed_memory(cost, request, sizes, OffloadPlan(tile_px=tile), budget.device)
        return
    yield from sampling_fallbacks(cost, sizes, budget, policy)


def sampling_fallbacks(
    cost: StageCost, sizes: ModelSizes, budget: Budget, policy: Policy
) -> Iterator[StageMemory]:
    """The fallback levels of a sampling stage, from the fastest to the smallest."""
    for offload_plan in _offload_plans(cost, sizes, budget, policy):
        if offload_plan.resident is None:
            yield _sampling_memory(cost, sizes, budget, offload_plan)
        else:
            yield _most_resident(cost, sizes, budget, offload_plan)


def _smaller_tiles(request: Request) -> list[int]:
    """Tile sides that need less memory than the request's own tiles.

    Tiles of a grid are all decoded together, so a single tile of the same size already needs less.
    """
    side, canvas = request.decode.tile_px, request.resolved.canvas
    most = max(canvas.width, canvas.height) if side == "auto" else side
    return [tile for tile in TILES_PX if tile < most]


def _offload_plans(
    cost: StageCost, sizes: ModelSizes, budget: Budget, policy: Policy
) -> Iterator[OffloadPlan]:
    chunk = chunk_tokens(budget.device)
    first = OffloadPlan(rows=cost.batch_passes, chunk_tokens=chunk, precision=policy.precision)
    one = replace(first, rows=1) if cost.passes > 1 else first
    small = replace(one, chunk_tokens=CHUNK_TOKENS_CPU)
    resident = [first, one, small]
    if sizes.block_values * sizes.value_bytes > max(sizes.blocks, default=0):
        resident += [replace(plan, as_stored=True) for plan in (one, small)]
    # Where the device computes in RAM, blocks can wait in the file only.
    ram: tuple[Source, ...] = () if budget.device in ("cpu", "mps") else ("pinned",)
    sources: Mapping[str, tuple[Source, ...]] = {
        "auto": (*ram, "file"), "stream": ram or ("file",), "disk": ("file",), "none": (),
    }  # fmt: skip
    streamed = [
        replace(plan, as_stored=True, resident=0, source=source)
        for source in sources[policy.offload]
        for plan in (first, one, small)
    ]
    plans = streamed if policy.offload in ("stream", "disk") else resident + streamed
    yield from dict.fromkeys(plans)
    if "fp8" in policy.changes and policy.precision == "stored":
        yield from (replace(plan, precision="fp8") for plan in dict.fromkeys(plans))


def _most_resident(
    cost: StageCost, sizes: ModelSizes, budget: Budget, offload_plan: OffloadPlan
) -> StageMemory:
    """A streamed offload plan with as many resident blocks as fit, or none."""
    layers = sizes.dit.layers
    low, high = 0, layers - 1
    while low < high:  # every resident block adds to the peak
        middle = (low + high + 1) // 2
        stage = _sampling_memory(cost, sizes, budget, replace(offload_plan, resident=middle))
        low, high = (middle, high) if stage.peak_bytes <= budget.device_bytes else (low, middle - 1)
    return _sampling_memory(cost, sizes, budget, replace(offload_plan, resident=low))


def _rows(cost: StageCost, offload_plan: OffloadPlan) -> int:
    return cost.passes if offload_plan.rows is None else min(offload_plan.rows, cost.passes)


def _sampling_memory(
    cost: StageCost, sizes: ModelSizes, budget: Budget, offload_plan: OffloadPlan
) -> StageMemory:
    """Bytes of a sampling stage with an offload plan."""
    dit = sizes.dit
    converted = sizes.block_values * sizes.value_bytes
    lora = cost.lora_bytes // max(dit.layers, 1)
    blocks = [_block_bytes(stored, sizes, offload_plan) + lora for stored in sizes.blocks]
    resident = dit.layers if offload_plan.resident is None else offload_plan.resident
    streamed = [blocks[n] for n in streamed_block_numbers(dit.layers, dit.layers - resident)]
    buffers = min(BUFFERS, len(streamed)) * max(streamed, default=0)
    # A weight in another form than the compute dtype is converted at use; those of the feed-forward
    # are the largest, 4 d^2 values each. Several chunks share one conversion of both.
    whole = min(blocks, default=0) >= converted
    rows = _rows(cost, offload_plan)
    several = rows * (cost.tile_tokens or cost.window_tokens) > offload_plan.chunk_tokens
    temporary = 0 if whole else (8 if several else 4) * dit.video_dim**2 * sizes.value_bytes
    tokens = cost.tile_tokens or cost.window_tokens, cost.audio_tokens
    whole_tokens = None if cost.tile_tokens is None else cost.window_tokens
    chunk = offload_plan.chunk_tokens
    forward = transformer_activations(sizes, *tokens, rows, chunk, whole_tokens)
    tables = table_activations(sizes, *tokens, rows, whole_tokens)
    activations = max(forward, tables - temporary)  # no weight is converted for a table
    on_gpu = budget.device != "cpu"
    pinned = offload_plan.source == "pinned" and on_gpu
    return StageMemory(
        cost,
        offload_plan,
        weight_bytes=sizes.outside_bytes + sum(blocks) - sum(streamed) + buffers + temporary,
        activation_bytes=activations + on_gpu * WORKSPACE_BYTES,
        pinned_bytes=sum(streamed) if pinned else 0,
        streamed_bytes=sum(streamed),
        resting_bytes=sizes.outside_bytes + sum(blocks) - sum(streamed),
    )


def _block_bytes(stored: int, sizes: ModelSizes, offload_plan: OffloadPlan) -> int:
    """Bytes of one block on the device: as stored if quantised, else in the compute dtype."""
    if offload_plan.precision == "fp8":
        stored = min(stored, sizes.block_values)
    quantised = stored < 2 * sizes.block_values
    return stored if offload_plan.as_stored or quantised else sizes.block_values * sizes.value_bytes


_ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "upsample": ("latent_upsampler",),
        "decode": ("video_vae", "video_decoder"),
    }
)


def _fixed_memory(
    cost: StageCost, request: Request, sizes: ModelSizes, offload_plan: OffloadPlan, device: str
) -> StageMemory:
    """Bytes of a stage whose components are loaded part by part: the largest part counts."""
    work = 0 if device == "cpu" else WORKSPACE_BYTES
    if cost.kind == "sound":
        weights, activations = _sound_bytes(cost, sizes, device)
        return StageMemory(cost, offload_plan, weights, activations + work)
    if cost.kind == "prompt":
        weights, activations = _prompt_bytes(cost, sizes)
        return StageMemory(cost, offload_plan, weights, activations + work)
    weights = max((_part_bytes(sizes, role) for role in _ROLES.get(cost.kind, ())), default=0)
    if cost.kind == "upsample" and cost.resolution is not None:
        work += upsample_activations(sizes, cost.window_tokens)
    if cost.kind != "decode":
        return StageMemory(cost, offload_plan, weights, work)
    canvas, decode = request.resolved.canvas, offload_plan.decode(request.decode)
    in_ram = offload_plan.frames_in_ram
    work += decode_activations(canvas, decode, sizes, device, frames_in_ram=in_ram)
    cost = replace(cost, flops=decode_flops(canvas, decode, sizes))
    pinned = decoder_ram_bytes(canvas, sizes) if in_ram else 0
    return StageMemory(cost, offload_plan, weights, work, pinned)


def _sound_bytes(cost: StageCost, sizes: ModelSizes, device: str) -> tuple[int, int]:
    """Bytes of weights and activations of audio VAE and vocoder; none for sound of a file."""
    if sizes.sound is None or not cost.audio_tokens:
        return 0, 0
    return sizes.sound.weight_bytes, sound_activations(sizes.sound, cost.audio_tokens, device)


def _prompt_bytes(cost: StageCost, sizes: ModelSizes) -> tuple[int, int]:
    """Bytes of weights and activations: of projecting the states, or of the connectors."""
    width, counted = sizes.value_bytes, sizes.prompt_tokens
    tokens = sum(counted) if counted else cost.passes * sizes.text.length
    projecting = projection_bytes(sizes.text, tokens, width)
    connecting = prompt_activations(sizes.text, sizes.dit.video_dim, cost.passes, width)
    first = max(_part_bytes(sizes, role) for role in ("text_encoder", "text_projection"))
    second = _part_bytes(sizes, "connectors")
    return max(((first, projecting), (second, connecting)), key=sum)


def _part_bytes(sizes: ModelSizes, role: str) -> int:
    """Bytes of the largest part of a role that is loaded at once."""
    return sizes.largest.get(role, sizes.bytes_of(role))


def ran_out(name: str, budget: Budget) -> MemoryBudgetError:
    """Error for a stage without fallbacks that ran out of memory with nothing else loaded."""
    return MemoryBudgetError(
        f"{name} ran out of memory with nothing else loaded, "
        f"{readable_size(budget.device_bytes)} were free on {budget.rates_name} at the start",
        "close other programs that use it, or use --device cpu"
        if budget.device != "cpu"
        else "close other programs, or use a smaller --size or fewer --frames",
    )


def _too_big(
    stage: StageMemory,
    budget: Budget,
    policy: Policy,
    room: int | None = None,
) -> MemoryBudgetError:
    """The error for a stage; ``room`` are the bytes in which all stages would fit."""
    resolution = stage.cost.resolution
    where = f" at {resolution.width}x{resolution.height}x{resolution.frames}" if resolution else ""
    what = f"{stage.cost.name}{where}"
    if stage.pinned_bytes > budget.ram_bytes:
        return MemoryBudgetError(
            f"{what} needs {readable_size(stage.pinned_bytes)} of RAM to stream from, "
            f"{readable_size(budget.ram_bytes)} are free",
            "use --offload disk, or a model file in a smaller precision",
        )
    hint = _room_hint(stage, policy, room or stage.peak_bytes)
    return MemoryBudgetError(
        f"{what} needs {readable_size(stage.peak_bytes)} even with {stage.offload_plan}, "
        f"the budget is {readable_size(budget.device_bytes)}",
        hint,
    )


def _least(levels: Sequence[StageMemory]) -> StageMemory:
    """The fallback level that needs least memory on the device."""
    return min(levels, key=lambda level: (level.peak_bytes, level.pinned_bytes))


def _room_hint(stage: StageMemory, policy: Policy, needed: int) -> str:
    """The change that makes a stage need less; what the plan tried already is not advised."""
    room = f"allow more memory (at least --vram {math.ceil(needed / GIB * 100) / 100:g})"
    if stage.cost.kind != "decode":
        if policy.offload == "none":
            return "use --offload auto, which streams blocks from RAM or disk"
        return f"use a smaller --size or fewer --frames, or {room}"
    if "tiles" not in policy.changes:
        return "use --oom-policy tiles, which decodes in smaller tiles"
    return f"use a smaller --size, or {room}"

"""What nodes work with: model files, the store, the device, a transformer that stays loaded.

An :class:`Engine` outlives a graph. It keeps the results of the last graph in memory and heavy ones
in the store, holds the transformer by the planner's rules and goes down its ladder when memory runs
out. It knows nothing of nodes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.compatibility import projection_shape, text_encoder_misfit
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.selection import Choice, Library, choose, find_named
from latent_ladder.comfyui.analysis.validate import escapes, mapped
from latent_ladder.comfyui.runtime.values import Clip, Conditioning, Model
from latent_ladder.errors import CheckpointError, CheckpointNotFound, MediaError, WorkflowError
from latent_ladder.memory.cost_model import ModelSizes, StageCost, sizes_of
from latent_ladder.memory.hardware import MemoryOptions, budget
from latent_ladder.memory.oom import is_out_of_memory
from latent_ladder.memory.planner import (
    Budget,
    OffloadPlan,
    Policy,
    StageMemory,
    fit_stage,
    fit_stage_smaller,
)
from latent_ladder.models.device import Runtime, choose_runtime
from latent_ladder.models.text_encoder.conditioning import Conditioning as Context
from latent_ladder.models.text_encoder.encode import encode_prompts
from latent_ladder.models.transformer.model import Load, Transformer, load_transformer
from latent_ladder.models.weights.block_offload import Residency
from latent_ladder.models.weights.loading import Place
from latent_ladder.pipeline.input_files import content_hash
from latent_ladder.pipeline.plan import VERSIONS
from latent_ladder.storage.artifact_store import Store, artefact_key
from latent_ladder.upscale.plan import find_upscaler

T = TypeVar("T")
Warn = Callable[[str, str], None]


@dataclass(frozen=True)
class WorkFolders:
    """Where named input files lie and results go; no node reaches outside of them."""

    input: Path
    output: Path
    temp: Path


@dataclass
class Engine:
    """All that the nodes of graphs share.

    ``names`` replaces file names that a graph holds by others that are at hand. ``memory`` and
    ``device`` are as for every other command. ``previews``: pictures are made while sampling.
    """

    library: Library
    store: Store
    folders: WorkFolders
    names: Mapping[str, str] = field(default_factory=dict)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    device: str = "auto"
    previews: bool = False

    def __post_init__(self) -> None:
        self.results: dict[str, object] = {}
        self._files: dict[str, Mapping[str, Component]] = {}
        self._transformer: Transformer | None = None
        self._held: tuple[str, Load] | None = None

    # -- files --------------------------------------------------------------------------------

    def file_name(self, name: str) -> str:
        """The name to look for instead of one in a graph."""
        return mapped(name, self.names)

    def component(self, name: str, role: str) -> Component:
        """The part ``role`` of the model file that a graph names.

        Raises :class:`CheckpointNotFound` where there is none, or it holds no such part.
        """
        return find_named(self.library, self._checked(name), role).component

    def _checked(self, name: str) -> str:
        """The name to look for; only ``--map`` may lead out of the model folders."""
        wanted = self.file_name(name)
        if wanted == name.replace("\\", "/") and (wrong := escapes(name)):
            raise CheckpointNotFound(f"the file name {name!r} {wrong}", "name a file of a folder")
        return wanted

    def parts(self, name: str, *roles: str) -> Mapping[str, Component]:
        """Every part of the file that holds one of ``roles``, the first that it holds deciding."""
        missing: CheckpointNotFound | None = None
        for role in roles:
            try:
                return self.beside(self.component(name, role))
            except CheckpointNotFound as error:
                missing = missing or error
        if missing is None:
            raise ValueError("no role was asked for")
        raise missing

    def beside(self, part: Component) -> Mapping[str, Component]:
        """All parts of the file that ``part`` is in."""
        known = self._files.get(part.file.id)
        if known is None:
            known = self._files[part.file.id] = components(part.file)
        return known

    def channels(self, name: str) -> int | None:
        """Channels of the latents of the transformer in a file; ``None`` if there is none."""
        try:
            part = self.component(name, "transformer")
        except CheckpointError:
            return None
        return part.shape("patchify_proj.weight")[1]

    def content(self, name: str, folder: str) -> str:
        """What a file that a graph names holds: it decides what is made of it, its name does not.

        The name itself where no such file is at hand.
        """
        if folder == "input":
            try:
                return content_hash(self.input_file(name))
            except (WorkflowError, MediaError):
                return name
        wanted = self.file_name(name)
        for path, parts in self.library.files.items():
            found = next(iter(parts.values()))
            if f"/{found.name}".endswith(f"/{wanted}") or path.name == _last(wanted):
                return found.component.file.id
        path = Path(wanted).expanduser()
        return open_checkpoint(path).id if path.is_file() else name

    def input_file(self, name: str) -> Path:
        """An uploaded file; ``[output]`` or ``[temp]`` behind its name means another folder.

        Raises :class:`WorkflowError` where it is missing or would lie outside of the folder.
        """
        asked = self.names.get(name, name).replace("\\", "/")
        chosen = Path(asked).expanduser()
        if name in self.names and chosen.is_file():
            return chosen
        root = self.folders.input
        for kind in ("input", "output", "temp"):
            if asked.endswith(f" [{kind}]"):
                root, asked = getattr(self.folders, kind), asked.removesuffix(f" [{kind}]")
        path = root / asked
        if escapes(asked) or not path.resolve().is_relative_to(root.resolve()):
            raise WorkflowError(
                f"the file name {name!r} leads out of the {root.name} folder",
                "copy the file into the input folder (--input)",
            )
        if not path.is_file():
            raise WorkflowError(
                f"there is no file {asked} in {root}",
                "copy it there, name its folder with --input, or use --map old=new",
            )
        return path

    def upscaler(self, name: str) -> Component:
        """A network of ``upscale_models``."""
        return find_upscaler(self._checked(name), self.library)

    def fits_text(self, encoder: Component, projection: Component) -> bool:
        """Whether a text projection reads what an encoder gives."""
        return text_encoder_misfit(encoder, projection_shape(projection)[1]) is None

    def companion(self, transformer: Component, role: str) -> Component:
        """The part that goes with a transformer: of its own file, else of one that fits."""
        own = self.beside(transformer).get(role)
        if own is not None:
            return own
        choice: Choice = choose(self.library, {"transformer": str(transformer.file.path)})
        if role not in choice.parts:
            raise choice.missing(role, self.library)
        return choice.parts[role]

    # -- the device ---------------------------------------------------------------------------

    @cached_property
    def runtime(self) -> Runtime:
        """Where networks run."""
        return choose_runtime(self.device)

    @cached_property
    def budget(self) -> Budget:
        """What may be used."""
        return budget(self.memory, self.runtime.device.type)

    @property
    def policy(self) -> Policy:
        """What may be given up for memory."""
        return Policy(self.memory.offload, self.memory.changes)

    def release(self) -> None:
        """Let go of the transformer and of what the device keeps for reuse."""
        self._transformer = self._held = None
        gc.collect()
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()

    def forget(self) -> None:
        """Drop everything in memory: models and the results of the last graph."""
        self.results.clear()
        self.release()

    def fitting(self, work: Callable[[], T], warn: Warn) -> T:
        """Do ``work``; if memory runs out, once more without the transformer beside it."""
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error) or self._transformer is None:
                raise
        # Outside the handler: what failed is held by its traceback until here.
        self.release()
        warn("out_of_memory", "memory ran out; the transformer is unloaded first")
        return work()

    # -- the transformer ----------------------------------------------------------------------

    def sizes(self, model: Model, text_tokens: int) -> ModelSizes:
        """The sizes that a sampling node is planned with."""
        return sizes_of(
            {"transformer": model.transformer}, self.runtime.dtype.itemsize, text_tokens
        )

    def sampling(
        self,
        model: Model,
        cost: StageCost,
        sizes: ModelSizes,
        work: Callable[[Transformer, OffloadPlan], T],
        warn: Warn,
    ) -> T:
        """``work`` with the transformer held so that it fits; one rung down each time it does not.

        Raises :class:`MemoryBudgetError` where there is no resolution left.
        """
        stage = fit_stage(cost, sizes, self.budget, self.policy)
        while True:
            try:
                return self._held_so(model, stage.offload_plan, work)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            before = stage
            self.release()
            stage = self._next(before, sizes)
            warn(
                "out_of_memory",
                f"ran out of memory ({before.offload_plan}); now {stage.offload_plan}",
            )

    def _next(self, stage: StageMemory, sizes: ModelSizes) -> StageMemory:
        return fit_stage_smaller(stage, sizes, self.budget, self.policy)

    def _held_so(
        self, model: Model, offload_plan: OffloadPlan, work: Callable[[Transformer, OffloadPlan], T]
    ) -> T:
        transformer = self._loaded(model.transformer, offload_plan)
        return work(transformer, offload_plan)

    @contextmanager
    def resident(self, transformer: Transformer, offload_plan: OffloadPlan) -> Iterator[None]:
        """The blocks where ``offload_plan`` wants them; LoRAs must be attached before."""
        residency = None
        if offload_plan.resident is not None:
            residency = Residency(offload_plan.resident, pinned=offload_plan.source == "pinned")
        with transformer.held(self.runtime.device, residency):
            yield

    def _loaded(self, component: Component, offload_plan: OffloadPlan) -> Transformer:
        blocks: Place = "device" if offload_plan.resident is None else offload_plan.source
        load = Load(offload_plan.precision, offload_plan.as_stored, blocks)
        if self._transformer is None or self._held != (component.id, load):
            self._transformer = None
            gc.collect()
            self._transformer = load_transformer(
                component, device=self.runtime.device, dtype=self.runtime.dtype, load=load
            )
            self._held = (component.id, load)
        self._transformer.set_chunk_tokens(offload_plan.chunk_tokens)
        return self._transformer

    # -- texts --------------------------------------------------------------------------------

    def contexts(self, asked: Sequence[Conditioning], transformer: Component) -> list[Context]:
        """The encoded texts, from the store where they are; the others are encoded at once.

        They have the keys of :mod:`latent_ladder.pipeline.plan`, so that both faces share them.
        """
        found: dict[str, Context] = {}
        missing: dict[str, Conditioning] = {}
        keys = [self._text_key(one, transformer) for one in asked]
        for key, one in zip(keys, asked, strict=True):
            stored = self.store.get(key)
            if stored is None:
                missing[key] = one
            else:
                tensors = stored.load()
                found[key] = Context(tensors["video"], tensors["audio"])
        for key, context in self._encoded(missing, transformer).items():
            tensors = {"video": context.video, "audio": context.audio}
            self.store.put(key, tensors, {"stage": "prompt", "name": "prompt"})
            found[key] = context
        device, dtype = self.runtime.device, self.runtime.dtype
        return [
            _zeros(c) if one.zeroed else c
            for one, c in zip(asked, (found[k].to(device, dtype) for k in keys), strict=True)
        ]

    def _encoded(
        self, missing: Mapping[str, Conditioning], transformer: Component
    ) -> dict[str, Context]:
        by_clip: dict[tuple[str, str], dict[str, Conditioning]] = {}
        for key, one in missing.items():
            ids = (one.clip.text_encoder.id, one.clip.projection.id)
            by_clip.setdefault(ids, {})[key] = one
        found: dict[str, Context] = {}
        for texts in by_clip.values():
            clip = next(iter(texts.values())).clip
            contexts = encode_prompts(
                [one.text for one in texts.values()],
                text_encoder=clip.text_encoder,
                projection=clip.projection,
                connectors=self.connectors(clip, transformer),
                device=self.runtime.device,
                dtype=self.runtime.dtype,
            )
            found |= dict(zip(texts, contexts, strict=True))
        return found

    def connectors(self, clip: Clip, transformer: Component) -> Component:
        """ComfyUI runs the connectors inside the transformer, so its file has the first say."""
        own = self.beside(transformer).get("connectors")
        return own or clip.connectors or self.companion(transformer, "connectors")

    def _text_key(self, one: Conditioning, transformer: Component) -> str:
        clip = one.clip
        parts = (clip.text_encoder, clip.projection, self.connectors(clip, transformer))
        fields = {"prompt": one.text.strip()}
        return artefact_key("prompt", VERSIONS["prompt"], fields, (), [part.id for part in parts])


def _zeros(context: Context) -> Context:
    return replace(
        context, video=torch.zeros_like(context.video), audio=torch.zeros_like(context.audio)
    )


def _last(name: str) -> str:
    return name.rpartition("/")[2]

"""Engine of graphs: their files, the results of the last graph, and the loaded models.

An :class:`Engine` lives longer than one graph: it keeps small results in memory and large ones in
the store, and its :class:`ModelRunner` keeps the transformer loaded. It does not know nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.compatibility import (
    TransformerRequirements,
    features_mismatch,
    text_encoder_mismatch,
)
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.selection import (
    Library,
    PartialModelSet,
    find_by_name,
    select_available,
)
from latent_ladder.checkpoints.text_loras import TextLoras
from latent_ladder.comfyui.file_names import (
    map_file_name,
    mapped_file_name,
    split_folder_tag,
    unsafe_path_reason,
)
from latent_ladder.comfyui.runtime.values import Conditioning, Model, TextEncoderFiles
from latent_ladder.comfyui.versions import ModelConvention
from latent_ladder.errors import CheckpointError, CheckpointNotFound, MediaError, WorkflowError
from latent_ladder.memory.cost_model import StageCost
from latent_ladder.memory.hardware import MemoryOptions, budget
from latent_ladder.memory.model_sizes import ModelSizes, sizes_of
from latent_ladder.memory.planner import (
    OffloadPlan,
    Policy,
    StageMemory,
    fit_stage,
    fit_stage_smaller,
)
from latent_ladder.models.device import Runtime, choose_runtime
from latent_ladder.models.text_encoder.conditioning import Conditioning as Context
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.pipeline.artifact_keys import prompt_key
from latent_ladder.pipeline.input_files import content_hash
from latent_ladder.pipeline.model_runner import ModelRunner, Warn
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.user_folders import expand_home
from latent_ladder.upscale.upscale_plan import find_upscaler

T = TypeVar("T")


@dataclass(frozen=True)
class WorkFolders:
    """Folders of input files and results; nodes read and write nowhere else."""

    input: Path
    output: Path
    temp: Path


@dataclass
class Engine:
    """Files, results and models shared by the nodes of graphs.

    ``names`` maps file names in a graph to files to use instead (``--map``). ``memory`` and
    ``device`` are as for every other command. With ``previews``, sampling nodes send previews.
    ``convention``: the version of ComfyUI whose models the nodes compute.
    """

    library: Library
    store: Store
    folders: WorkFolders
    names: Mapping[str, str] = field(default_factory=dict)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    device: str = "auto"
    previews: bool = False
    convention: ModelConvention = "comfyui"

    def __post_init__(self) -> None:
        self.results: dict[str, object] = {}
        self._files: dict[str, Mapping[str, Component]] = {}

    # -- files --------------------------------------------------------------------------------

    def file_name(self, name: str) -> str:
        """The file name to look for in place of one in a graph."""
        return map_file_name(name, self.names)

    def component(self, name: str, role: str) -> Component:
        """The part ``role`` of the model file that a graph names.

        Raises :class:`CheckpointNotFound` if there is no such file, or it has no such part.
        """
        return find_by_name(self.library, self._safe_name(name), role).component

    def _safe_name(self, name: str) -> str:
        """The name to look for; only ``--map`` may lead out of the model folders."""
        wanted = self.file_name(name)
        if wanted == name.replace("\\", "/") and (wrong := unsafe_path_reason(name)):
            raise CheckpointNotFound(f"the file name {name!r} {wrong}", "name a file of a folder")
        return wanted

    def parts(self, name: str, *roles: str) -> Mapping[str, Component]:
        """All parts of the file that has one of ``roles``; the roles are tried in their order."""
        missing: CheckpointNotFound | None = None
        for role in roles:
            try:
                return self.parts_of_file(self.component(name, role))
            except CheckpointNotFound as error:
                missing = missing or error
        if missing is None:
            raise ValueError("no role was asked for")
        raise missing

    def parts_of_file(self, part: Component) -> Mapping[str, Component]:
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
        """Content id of a file that a graph names, for keys: a renamed file has the same id.

        The name itself if no such file is found.
        """
        if folder == "input":
            try:
                return content_hash(self.input_file(name))
            except (WorkflowError, MediaError):
                return name
        wanted = self.file_name(name)
        files = [next(iter(parts.values())) for parts in self.library.files.values()]
        for found in (*files, *self.library.other_names):
            path = found.path
            if f"/{found.name}".endswith(f"/{wanted}") or path.name == _last(wanted):
                return found.component.file.id
        path = expand_home(wanted)
        return open_checkpoint(path).id if path.is_file() else name

    def input_file(self, name: str) -> Path:
        """Path of an uploaded file; ``[output]`` or ``[temp]`` after its name selects that folder.

        Raises :class:`WorkflowError` if it is missing or outside of the folder.
        """
        mapped = mapped_file_name(name, self.names)
        asked = (mapped or name).replace("\\", "/")
        chosen = expand_home(asked)
        if mapped is not None and chosen.is_file():
            return chosen
        asked, folder = split_folder_tag(asked)
        root: Path = getattr(self.folders, folder or "input")
        path = root / asked
        if unsafe_path_reason(asked) or not path.resolve().is_relative_to(root.resolve()):
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
        """The pixel upscaler of that name."""
        return find_upscaler(self._safe_name(name), self.library)

    def fits_text(self, encoder: Component, projection: Component) -> bool:
        """True if a text projection takes the output of a text encoder."""
        return features_mismatch(encoder, projection) is None

    def companion(self, transformer: Component, role: str) -> Component:
        """The part of a role for a transformer: from its own file, else from a file that fits."""
        own = self.parts_of_file(transformer).get(role)
        if own is not None:
            return own
        choice: PartialModelSet = select_available(
            self.library, {"transformer": str(transformer.file.path)}
        )
        if role not in choice.parts:
            raise choice.missing_error(role, self.library)
        return choice.parts[role]

    # -- models -------------------------------------------------------------------------------

    @cached_property
    def runner(self) -> ModelRunner:
        """The loaded models and their device."""
        runtime = choose_runtime(self.device)
        policy = Policy(self.memory.offload, self.memory.changes, fast=self.memory.fast)
        return ModelRunner(runtime, budget(self.memory, str(runtime.device)), policy)

    @property
    def runtime(self) -> Runtime:
        """Device and dtype of the networks."""
        return self.runner.runtime

    def release(self) -> None:
        """Unload the transformer and return cached device memory."""
        self.runner.release()

    def clear(self) -> None:
        """Drop everything in memory: models and the results of the last graph."""
        self.results.clear()
        self.runner.release()

    def sizes(self, model: Model, text_tokens: int) -> ModelSizes:
        """Model sizes for the memory plan of a sampling node."""
        parts = {"transformer": model.transformer}
        return sizes_of(parts, self.runtime.dtype.itemsize, text_tokens)

    def with_transformer(
        self,
        model: Model,
        cost: StageCost,
        sizes: ModelSizes,
        work: Callable[[Transformer, OffloadPlan], T],
        warn: Warn,
    ) -> T:
        """Result of ``work`` with the transformer loaded as the memory plan for ``cost`` says.

        After out-of-memory it is tried again with the next fallback. Raises
        :class:`MemoryBudgetError` where none is left.
        """
        runner = self.runner

        def try_with(stage: StageMemory) -> T:
            plan = stage.offload_plan
            return work(runner.transformer_for(model.transformer, plan), plan)

        def next_fallback(before: StageMemory) -> StageMemory:
            return fit_stage_smaller(before, sizes, runner.budget, runner.policy)

        first = fit_stage(cost, sizes, runner.budget, runner.policy)
        return runner.retry(cost.name, try_with, first, next_fallback, warn)

    # -- texts --------------------------------------------------------------------------------

    def contexts(self, texts: Sequence[Conditioning], model: Model) -> list[Context]:
        """The encoded texts, from the store if they are there; the others are encoded together.

        LoRAs of the model change the text connectors, those of CLIP the text projection. Plain
        runs of the same ``model_convention`` use the same keys, so both share the stored texts.
        """
        found: dict[str, Context] = {}
        missing: dict[str, Conditioning] = {}
        keys = [self._text_key(one, model) for one in texts]
        for key, one in zip(keys, texts, strict=True):
            stored = self.store.get(key)
            if stored is None:
                missing[key] = one
            else:
                tensors = stored.load()
                found[key] = Context(tensors["video"], tensors["audio"])
        for key, context in self._encode(missing, model).items():
            tensors = {"video": context.video, "audio": context.audio}
            self.store.try_put(key, tensors, {"stage": "prompt", "name": "prompt"})
            found[key] = context
        device, dtype = self.runtime.device, self.runtime.dtype
        return [
            _zeros(c) if one.zeroed else c
            for one, c in zip(texts, (found[k].to(device, dtype) for k in keys), strict=True)
        ]

    def _encode(self, missing: Mapping[str, Conditioning], model: Model) -> dict[str, Context]:
        by_clip: dict[tuple[str, ...], dict[str, Conditioning]] = {}
        for key, one in missing.items():
            loras = (f"{lora.id} {strength}" for lora, strength in one.clip.loras)
            ids = (one.clip.text_encoder.id, one.clip.projection.id, *loras)
            by_clip.setdefault(ids, {})[key] = one
        found: dict[str, Context] = {}
        for texts in by_clip.values():
            clip = next(iter(texts.values())).clip
            check_text_encoder(clip.text_encoder, clip.projection, model.transformer)
            contexts = self.runner.encode_texts(
                [one.text for one in texts.values()],
                clip.text_encoder,
                clip.projection,
                self.connectors(clip, model.transformer),
                TextLoras.select(model.loras, clip.loras),
                as_comfyui=self.convention != "ltx",
            )
            found |= dict(zip(texts, contexts, strict=True))
        return found

    def connectors(self, clip: TextEncoderFiles, transformer: Component) -> Component:
        """Connectors for a text: the transformer file's own first, as ComfyUI runs them there."""
        own = self.parts_of_file(transformer).get("connectors")
        return own or clip.connectors or self.companion(transformer, "connectors")

    def _text_key(self, one: Conditioning, model: Model) -> str:
        clip = one.clip
        connectors = self.connectors(clip, model.transformer)
        loras = TextLoras.select(model.loras, clip.loras)
        parts = (clip.text_encoder, clip.projection, connectors, loras)
        return prompt_key(one.text, *parts, as_comfyui=self.convention != "ltx")


def _zeros(context: Context) -> Context:
    return replace(
        context, video=torch.zeros_like(context.video), audio=torch.zeros_like(context.audio)
    )


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def check_text_encoder(encoder: Component, projection: Component, transformer: Component) -> None:
    """Raise :class:`WorkflowError` for a text encoder of another family than the transformer.

    Encoders of several families have states of the same size, so the clip would be nonsense.
    """
    wrong = text_encoder_mismatch(TransformerRequirements(transformer), encoder, projection)
    if wrong is not None:
        raise WorkflowError(
            f"{encoder.file.path.name} does not fit {transformer.file.path.name}: {wrong}",
            "load the text encoder that belongs to the model",
        )

"""The names of model files that an exported graph holds: as a request, a library or publishers say.

A graph must name a file for every loader; a request need not. Names are relative to ComfyUI's
folder of that kind, as its loaders list them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from latent_ladder.checkpoints.catalog import FILES, Published, Upsampling, suggestion
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.selection import (
    EMBEDDED,
    Found,
    Library,
    model_folders,
    scan,
    select,
)
from latent_ladder.comfyui.graph import ModelFile
from latent_ladder.request.model import Request
from latent_ladder.request.stages import UpsampleStage


@dataclass(frozen=True)
class FileNames:
    """One name for each loader. ``transformer`` is set where it is a file of its own; then the
    three after it are used, else ``checkpoint`` holds all but the text encoder."""

    checkpoint: str
    text_encoder: str
    distilled_lora: str
    upsamplers: Mapping[Upsampling, str] = field(default_factory=dict)
    transformer: str | None = None
    text_projection: str = ""
    video_vae: str = ""
    audio_vae: str = ""

    @property
    def sources(self) -> tuple[ModelFile, ...]:
        """Where those of them that are published can be had."""
        singles = (self.checkpoint, self.text_encoder, self.distilled_lora, self.transformer or "")
        parts = (self.text_projection, self.video_vae, self.audio_vae)
        names = {*singles, *self.upsamplers.values(), *parts}
        return tuple(
            ModelFile(
                f.name, f"https://huggingface.co/{f.repository}/resolve/main/{f.path}", f.folder
            )
            for f in FILES
            if f.name in names
        )

    def upsampler(self, stage: UpsampleStage) -> str:
        """The file of an upsample stage."""
        return stage.file or self.upsamplers.get((stage.axis, Fraction(stage.factor)), "")


def published_names(request: Request) -> FileNames:
    """What the request names, and for the rest the files that are published for such a request.

    A request that puts the distilled LoRA on, or is guided, is for a dev checkpoint.
    """
    models = request.models
    variant = "dev" if _needs_dev_checkpoint(request) else "distilled"
    own = models.transformer
    checkpoint = suggestion("transformer", variant=variant)
    upsamplers: dict[Upsampling, str] = {}
    for stage in request.stages:
        if isinstance(stage, UpsampleStage):
            doing: Upsampling = (stage.axis, Fraction(stage.factor))
            found = suggestion("latent_upsampler", upsampling=doing)
            named = models.latent_upsampler if doing == ("spatial", Fraction(2)) else None
            upsamplers[doing] = named or _published_name(found)
    return FileNames(
        checkpoint=models.checkpoint or _published_name(checkpoint),
        text_encoder=models.text_encoder or _published_name(suggestion("text_encoder")),
        distilled_lora=models.distilled_lora or _published_name(suggestion("distilled_lora")),
        upsamplers=upsamplers,
        transformer=own,
        text_projection=models.text_projection or _published_name(suggestion("text_projection")),
        video_vae=models.video_vae or _published_name(suggestion("video_vae")),
        audio_vae=models.audio_vae or _published_name(suggestion("audio_vae")),
    )


def library_names(request: Request, library: Library) -> FileNames:
    """The files that a run of the request would use, as ComfyUI would list them.

    Raises :class:`CheckpointNotFound` for what is not there.
    """
    models = select(library, request.models.choices)
    base, files = published_names(request), library.files

    def name(component: Component) -> str:
        found = files.get(component.file.path, {}).get(component.role)
        return component.file.path.name if found is None else _comfyui_name(found)

    upsamplers = dict(base.upsamplers)
    for doing in upsamplers:
        if doing not in models.upsamplers:
            raise models.missing("latent_upsampler", "none fits", doing)
        upsamplers[doing] = name(models.upsamplers[doing])
    lora, audio = models.loras.get("distilled_lora"), models.audio_vae
    together = models.transformer.file.path == models.video_vae.file.path
    return replace(
        base,
        checkpoint=name(models.transformer),
        text_encoder=name(models.text_encoder),
        distilled_lora=base.distilled_lora if lora is None else name(lora),
        upsamplers=upsamplers,
        transformer=None if together else name(models.transformer),
        text_projection=name(models.text_projection),
        video_vae=name(models.video_vae),
        audio_vae=base.audio_vae if audio is None else name(audio),
    )


def file_names_for(request: Request, folders: Sequence[Path] = ()) -> FileNames:
    """The files found in ``folders``; without folders, those of the model that the request's
    preset belongs to, where that is the model inside the package, else the published ones."""
    if folders:
        return library_names(request, scan(model_folders(folders)))
    embedded = scan([EMBEDDED])
    if select(embedded).preset == request.preset:
        return library_names(request, embedded)
    return published_names(request)


def _needs_dev_checkpoint(request: Request) -> bool:
    stages = [stage for _, stage in request.sampling_stages()]
    guided = any(s.guidance.video.cfg != 1 or s.guidance.audio.cfg != 1 for s in stages)
    return guided or any(lora.role == "distilled" for s in stages for lora in s.loras)


def _published_name(found: Published | None) -> str:
    return "" if found is None else found.name


def _comfyui_name(found: Found) -> str:
    category = found.category
    parts = found.name.split("/")
    return "/".join(parts[1:]) if category is not None and len(parts) > 1 else found.name

"""Model file names for an exported graph, from the request, the model library or the catalog.

A graph must name a file for every loader; a request need not. Names are relative to the model
folder, as ComfyUI's loaders list them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from latent_ladder.checkpoints.catalog import FILES, CatalogFile, Upsampling, suggest_file
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.selection import (
    EMBEDDED,
    FoundComponent,
    Library,
    model_folders,
    scan,
    select_models,
)
from latent_ladder.comfyui.graph import ModelFile
from latent_ladder.request.model import Request
from latent_ladder.request.presets import DEFAULT_FAMILY, preset_family
from latent_ladder.request.stages import UpsampleStage


@dataclass(frozen=True)
class FileNames:
    """A file name for each loader.

    ``transformer`` is set if the model is split into files; then ``text_projection``,
    ``video_vae`` and ``audio_vae`` are used as well. Otherwise ``checkpoint`` contains all parts
    but the text encoder.
    """

    checkpoint: str
    text_encoder: str
    distilled_lora: str
    upsamplers: Mapping[Upsampling, str] = field(default_factory=dict)
    transformer: str | None = None
    text_projection: str = ""
    video_vae: str = ""
    audio_vae: str = ""

    @property
    def projection_in_encoder(self) -> bool:
        """True if the file of the text encoder contains its projection, as that of LTX-2.5."""
        return self.text_projection in ("", self.text_encoder)

    @property
    def sources(self) -> tuple[ModelFile, ...]:
        """The published files among them, with their download URLs."""
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
        """Return the file name for an upsample stage."""
        return stage.file or self.upsamplers.get((stage.axis, Fraction(stage.factor)), "")


def published_names(request: Request) -> FileNames:
    """Return the names in the request, and published names for the others.

    A request with the distilled LoRA or with guidance gets the dev checkpoint.
    """
    models = request.models
    variant = "dev" if _needs_dev_checkpoint(request) else "distilled"
    family = preset_family(request.preset)
    family = family if family in {file.family for file in FILES} else DEFAULT_FAMILY

    def published(role: str) -> str:
        return _published_name(suggest_file(role, family=family))

    transformer = suggest_file("transformer", variant=variant, family=family)
    is_split = transformer is not None and transformer.folder != "checkpoints"
    checkpoint = suggest_file("transformer", variant=variant) if is_split else transformer
    own = models.transformer
    if own is None and models.checkpoint is None and is_split:
        own = _published_name(transformer)
    upsamplers: dict[Upsampling, str] = {}
    for stage in request.stages:
        if isinstance(stage, UpsampleStage):
            upsampling: Upsampling = (stage.axis, Fraction(stage.factor))
            found = suggest_file("latent_upsampler", upsampling=upsampling, family=family)
            named = models.latent_upsampler if upsampling == ("spatial", Fraction(2)) else None
            upsamplers[upsampling] = named or _published_name(found)
    return FileNames(
        checkpoint=models.checkpoint or _published_name(checkpoint),
        text_encoder=models.text_encoder or published("text_encoder"),
        distilled_lora=models.distilled_lora or published("distilled_lora"),
        upsamplers=upsamplers,
        transformer=own,
        text_projection=models.text_projection or published("text_projection"),
        video_vae=models.video_vae or published("video_vae"),
        audio_vae=models.audio_vae or published("audio_vae"),
    )


def library_names(request: Request, library: Library) -> FileNames:
    """Return the names of the files that a run of the request would use, as ComfyUI lists them.

    Raises :class:`CheckpointNotFound` for a missing file.
    """
    models = select_models(library, request.models.choices, request.preset)
    base, files = published_names(request), library.files

    def name(component: Component) -> str:
        found = files.get(component.file.path, {}).get(component.role)
        return component.file.path.name if found is None else _comfyui_name(found)

    upsamplers = dict(base.upsamplers)
    for upsampling in upsamplers:
        if upsampling not in models.upsamplers:
            raise models.missing_error("latent_upsampler", "none fits", upsampling)
        upsamplers[upsampling] = name(models.upsamplers[upsampling])
    lora, audio = models.loras.get("distilled_lora"), models.audio_vae
    single_file = models.transformer.file.path == models.video_vae.file.path
    return replace(
        base,
        checkpoint=name(models.transformer),
        text_encoder=name(models.text_encoder),
        distilled_lora=base.distilled_lora if lora is None else name(lora),
        upsamplers=upsamplers,
        transformer=None if single_file else name(models.transformer),
        text_projection=name(models.text_projection),
        video_vae=name(models.video_vae),
        audio_vae=base.audio_vae if audio is None else name(audio),
    )


def file_names_for(request: Request, folders: Sequence[Path] = ()) -> FileNames:
    """Return the file names for a request: those found in ``folders``, or else published names.

    Without ``folders``, the preset of the embedded model gets the names of its files.
    """
    if folders:
        return library_names(request, scan(model_folders(folders)))
    embedded = scan([EMBEDDED])
    if select_models(embedded).preset == request.preset:
        return library_names(request, embedded)
    return published_names(request)


def _needs_dev_checkpoint(request: Request) -> bool:
    stages = [stage for _, stage in request.sampling_stages()]
    guided = any(s.guidance.video.cfg != 1 or s.guidance.audio.cfg != 1 for s in stages)
    return guided or any(lora.role == "distilled" for s in stages for lora in s.loras)


def _published_name(found: CatalogFile | None) -> str:
    return "" if found is None else found.name


def _comfyui_name(found: FoundComponent) -> str:
    category = found.category
    parts = found.name.split("/")
    return "/".join(parts[1:]) if category is not None and len(parts) > 1 else found.name

"""Which file plays which role: index model folders, choose a set that fits together.

Files are recognised by their content and matched by shapes; names and folders only break ties.
The embedded pocket model is one more folder, searched last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from latent_ladder.checkpoints.files import open_checkpoint
from latent_ladder.checkpoints.layout import Component, components, family
from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    UnknownLayout,
    UnsupportedQuantization,
)

EMBEDDED = Path(__file__).parent.parent / "pocket" / "models"
"""The pocket model's folder inside the package."""

PUBLISHED: Mapping[str, tuple[str, str, str]] = {
    "transformer": ("checkpoints", "ltx-2.3-22b-dev.safetensors", "Lightricks/LTX-2.3"),
    "connectors": ("checkpoints", "ltx-2.3-22b-dev.safetensors", "Lightricks/LTX-2.3"),
    "text_projection": ("checkpoints", "ltx-2.3-22b-dev.safetensors", "Lightricks/LTX-2.3"),
    "video_vae": ("checkpoints", "ltx-2.3-22b-dev.safetensors", "Lightricks/LTX-2.3"),
    "audio_vae": ("checkpoints", "ltx-2.3-22b-dev.safetensors", "Lightricks/LTX-2.3"),
    "vocoder": ("checkpoints", "ltx-2.3-22b-dev.safetensors", "Lightricks/LTX-2.3"),
    "text_encoder": ("text_encoders", "gemma_3_12B_it_fp4_mixed.safetensors", "Comfy-Org/ltx-2"),
    "latent_upsampler": (
        "latent_upscale_models",
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "Lightricks/LTX-2.3",
    ),
    "distilled_lora": (
        "loras",
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        "Lightricks/LTX-2.3",
    ),
}
"""Role -> (folder below models/, file, repository on Hugging Face that publishes it)."""

PLAIN_FLOATS = ("BF16", "F16", "F32")

Upsampling = tuple[str, Fraction]
"""What a latent upsampler does: ``("spatial", 2)``, ``("spatial", 3/2)``, ``("temporal", 2)``."""


@dataclass(frozen=True)
class Found:
    """One component and the model folder it was found under."""

    component: Component
    folder: Path

    @property
    def path(self) -> Path:
        """The file it is in."""
        return self.component.file.path

    @property
    def name(self) -> str:
        """The file's path relative to its model folder, as ComfyUI names it."""
        return self.path.relative_to(self.folder).as_posix()

    @property
    def embedded(self) -> bool:
        """Whether it belongs to the model inside the package."""
        return self.folder == EMBEDDED


@dataclass(frozen=True)
class Library:
    """Everything found, by role, in order of preference; and what could not be read."""

    folders: tuple[Path, ...]
    found: Mapping[str, tuple[Found, ...]]
    unreadable: tuple[tuple[Path, str], ...] = ()

    def of(self, role: str) -> tuple[Found, ...]:
        """All candidates for a role."""
        return self.found.get(role, ())


@dataclass(frozen=True)
class ModelSet:
    """Components that fit together: one transformer and all that it needs."""

    transformer: Component
    connectors: Component
    text_projection: Component
    video_vae: Component
    text_encoder: Component
    audio_vae: Component | None
    vocoder: Component | None
    upsamplers: Mapping[Upsampling, Component]
    loras: Mapping[str, Component]
    family: str
    preset: str | None

    @property
    def distilled(self) -> bool:
        """Whether there is a distilled LoRA for the transformer."""
        return "distilled_lora" in self.loras

    @property
    def has_audio(self) -> bool:
        """Whether sound can be decoded."""
        return self.audio_vae is not None and self.vocoder is not None


def model_folders(
    extra: Sequence[Path | str] = (), environ: Mapping[str, str] | None = None
) -> tuple[Path, ...]:
    """Folders to search: ``extra``, ``LADDER_MODELS``, ``./models``, ``./ComfyUI/models``, pocket.

    Raises :class:`CheckpointNotFound` for a folder that was named and does not exist.
    """
    environ = os.environ if environ is None else environ
    named = [Path(p).expanduser() for p in extra]
    named += [Path(p).expanduser() for p in environ.get("LADDER_MODELS", "").split(os.pathsep) if p]
    for folder in named:
        if not folder.is_dir():
            raise CheckpointNotFound(
                f"model folder {folder} does not exist",
                "give the folder that holds checkpoints/, loras/ ... (ComfyUI's models/)",
            )
    usual = [p for p in (Path("models"), Path("ComfyUI/models")) if p.is_dir()]
    ordered = [p.resolve() for p in (*named, *usual, EMBEDDED)]
    return tuple(dict.fromkeys(ordered))


def scan(folders: Iterable[Path]) -> Library:
    """Read the headers of every model file below the folders. Loads no tensor."""
    folders = tuple(folders)
    found: dict[str, list[Found]] = {}
    unreadable = []
    for folder in folders:
        for path in _model_files(folder):
            try:
                parts = components(open_checkpoint(path))
            except CheckpointError as error:
                unreadable.append((path, error.message))
                continue
            for role, component in parts.items():
                found.setdefault(role, []).append(Found(component, folder))
    return Library(folders, {r: tuple(f) for r, f in found.items()}, tuple(unreadable))


def _model_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".sft") and path.is_file():
            yield path


def select(library: Library, choices: Mapping[str, str] | None = None) -> ModelSet:
    """Choose a transformer and the parts that fit it by their shapes.

    ``choices`` maps a role (or ``checkpoint``: all parts of one file) to a path or a file name
    and overrides the library. Raises :class:`CheckpointNotFound` naming the missing role, the
    file that would fill it, its folder and its publisher.
    Raises :class:`UnsupportedQuantization` for weights this version cannot decode.
    """
    choices = dict(choices or {})
    transformer = _choose_transformer(library, choices)
    fits = _Fit(transformer.component)
    pick = _Picker(library, choices, transformer)
    projection = pick("text_projection", fits.projection)
    check_readable(transformer.component)
    gemma_width = _rows(projection, "video_aggregate_embed.weight", "aggregate_embed.weight", 1)
    return ModelSet(
        transformer=transformer.component,
        connectors=pick("connectors", fits.connectors),
        text_projection=projection,
        video_vae=pick("video_vae", fits.video_vae),
        text_encoder=pick("text_encoder", lambda c: text_features(c) == gemma_width),
        audio_vae=pick.optional("audio_vae", fits.audio_vae),
        vocoder=pick.optional("vocoder", lambda _: True),
        upsamplers=pick.upsamplers(fits.latent_channels),
        loras=pick.loras(),
        family=family(transformer.component),
        preset=transformer.component.file.metadata.get("preset"),
    )


def missing(role: str, why: str) -> CheckpointNotFound:
    """The error for a role nothing fills: what it needs, where it goes, who publishes it."""
    folder, name, publisher = PUBLISHED[role]
    return CheckpointNotFound(
        f"no {role.replace('_', ' ')} found: {why}",
        f"put {name} (huggingface.co/{publisher}) into models/{folder}/, or name the folder "
        "with --models",
    )


def check_readable(component: Component) -> None:
    """Raise :class:`UnsupportedQuantization` for the first weight that is not a plain float."""
    for key, name in component.names.items():
        dtype = component.file.tensors[name].dtype
        if key.endswith("weight") and dtype not in PLAIN_FLOATS:
            raise UnsupportedQuantization(
                f"{component.file.path.name}: {key} is stored as {dtype}, this version reads "
                f"{', '.join(PLAIN_FLOATS)}",
                "use the bf16 file of the same model",
            )


def text_features(text_encoder: Component) -> int:
    """Width of all hidden states of a Gemma laid side by side: hidden x (layers + 1)."""
    layers = {int(k.split(".")[1]) for k in text_encoder.names if k.startswith("layers.")}
    return text_encoder.shape("norm.weight")[0] * (len(layers) + 1)


def upsampling(upsampler: Component) -> Upsampling:
    """What an upsampler does, from its tensors; the header's ``config`` where shapes are silent.

    A pixel shuffle by n makes n*n (space) or n (time) channels of each; the blur kernel of the
    rational ones strides by 2 (x1.5 = 3/2) or, where n is 2 or 4, by the header's scale.
    """
    middle = upsampler.shape("initial_conv.weight")[0]
    if "upsampler.conv.weight" in upsampler:
        factor = round((upsampler.shape("upsampler.conv.weight")[0] // middle) ** 0.5)
        scale = upsampler.config.get("spatial_scale")
        if scale is not None:
            return "spatial", Fraction(scale).limit_denominator(4)
        return "spatial", Fraction(factor, 2 if factor % 2 else 1)
    shape = upsampler.shape("upsampler.0.weight")
    if len(shape) == 5:
        return "temporal", Fraction(shape[0] // middle)
    return "spatial", Fraction(round((shape[0] // middle) ** 0.5))


def lora_matches(lora: Component, transformer: Component) -> tuple[int, int]:
    """How many of a LoRA's modules the transformer has with the same input width, and of all."""
    downs = [key for key in lora.names if key.endswith((".lora_A.weight", ".lora_down.weight"))]
    matched = 0
    for key in downs:
        module = key.rsplit(".lora_", 1)[0].removeprefix("diffusion_model.")
        weight = f"{module}.weight"
        fits = weight in transformer and transformer.shape(weight)[1] == lora.shape(key)[1]
        matched += fits
    return matched, len(downs)


def _choose_transformer(library: Library, choices: Mapping[str, str]) -> Found:
    named = choices.get("transformer") or choices.get("checkpoint")
    if named:
        return find_named(library, named, "transformer")
    known = [f for f in library.of("transformer") if _preference(f) is not None]
    if not known:
        raise missing("transformer", f"searched {', '.join(map(str, library.folders))}")
    return min(known, key=lambda f: _preference(f) or (0, 0))


_FAMILY_PREFERENCE = ("2.3", "2.5", "2.0")


def _preference(found: Found) -> tuple[int, int] | None:
    """Sort key of a transformer candidate (the user's before the embedded); None: unusable."""
    try:
        return int(found.embedded), _FAMILY_PREFERENCE.index(family(found.component))
    except UnknownLayout:
        return None


def find_named(library: Library, name: str, role: str) -> Found:
    """The component ``role`` in the file called ``name``: a path, or a name in a model folder."""
    path = Path(name).expanduser()
    if path.is_file():
        found = components(open_checkpoint(path)).get(role)
        if found is None:
            raise CheckpointNotFound(
                f"{path.name} holds no {role.replace('_', ' ')}", "`ladder models list` shows roles"
            )
        return Found(found, path.resolve().parent)
    wanted = name.replace("\\", "/")
    for candidate in library.of(role):
        if candidate.name.endswith(wanted) or candidate.path.name == Path(wanted).name:
            return candidate
    known = ", ".join(sorted({f.name for f in library.of(role)})) or "none"
    raise CheckpointNotFound(
        f"no file called {name} plays the role {role.replace('_', ' ')}; known: {known}",
        "give a path, or a name that `ladder models list` shows",
    )


@dataclass(frozen=True)
class _Fit:
    """What the other parts must look like to fit a transformer."""

    transformer: Component

    @property
    def latent_channels(self) -> int:
        return self.transformer.shape("patchify_proj.weight")[1]

    def video_vae(self, vae: Component) -> bool:
        return _statistics(vae) == self.latent_channels

    def audio_vae(self, vae: Component) -> bool:
        return _statistics(vae) == self.transformer.shape("audio_patchify_proj.weight")[1]

    @property
    def context_width(self) -> int:
        """Width of the text context that enters the transformer."""
        if "caption_projection.linear_1.weight" in self.transformer:
            return self.transformer.shape("caption_projection.linear_1.weight")[1]
        return self.transformer.shape("transformer_blocks.0.attn2.to_k.weight")[1]

    def projection(self, projection: Component) -> bool:
        rows = _rows(projection, "video_aggregate_embed.weight", "aggregate_embed.weight", 0)
        return rows == self.context_width

    def connectors(self, connectors: Component) -> bool:
        registers = "video_embeddings_connector.learnable_registers"
        return registers in connectors and connectors.shape(registers)[1] == self.context_width


def _statistics(vae: Component) -> int:
    key = "per_channel_statistics.mean-of-means"
    return vae.shape(key)[0] if key in vae else -1


def _rows(component: Component, first: str, second: str, axis: int) -> int:
    return component.shape(first if first in component else second)[axis]


@dataclass(frozen=True)
class _Picker:
    """Finds the part for a role: the user's choice, the transformer's own file, any that fits."""

    library: Library
    choices: Mapping[str, str]
    transformer: Found

    def __call__(self, role: str, fits: Callable[[Component], bool]) -> Component:
        found = self.optional(role, fits)
        if found is None:
            others = self.library.of(role)
            why = (
                f"{len(others)} found, none fits {self.transformer.path.name}"
                if others
                else f"searched {', '.join(map(str, self.library.folders))}"
            )
            raise missing(role, why)
        check_readable(found)
        return found

    def optional(self, role: str, fits: Callable[[Component], bool]) -> Component | None:
        if role in self.choices:
            chosen = find_named(self.library, self.choices[role], role).component
            if not fits(chosen):
                raise UnknownLayout(
                    f"{chosen.file.path.name} does not fit {self.transformer.path.name} as "
                    f"{role.replace('_', ' ')}: their widths differ",
                    "choose files of one family",
                )
            return chosen
        own = components(self.transformer.component.file).get(role)
        if own is not None and fits(own):
            return own
        return next((f.component for f in self.library.of(role) if fits(f.component)), None)

    def upsamplers(self, channels: int) -> dict[Upsampling, Component]:
        named = self.choices.get("latent_upsampler")
        candidates = list(self.library.of("latent_upsampler"))
        if named:
            candidates.insert(0, find_named(self.library, named, "latent_upsampler"))
        found: dict[Upsampling, Component] = {}
        for candidate in candidates:
            if candidate.component.shape("final_conv.weight")[0] == channels:
                found.setdefault(upsampling(candidate.component), candidate.component)
        return found

    def loras(self) -> dict[str, Component]:
        """LoRAs that fit, by file name; ``distilled_lora`` names the distilled one."""
        found: dict[str, Component] = {}
        for candidate in self.library.of("lora"):
            matched, total = lora_matches(candidate.component, self.transformer.component)
            if total and matched == total:
                found.setdefault(candidate.name, candidate.component)
                found.setdefault(candidate.path.name, candidate.component)
                if "distilled" in candidate.path.name.lower():
                    found.setdefault("distilled_lora", candidate.component)
        named = self.choices.get("distilled_lora")
        if named:
            found["distilled_lora"] = find_named(self.library, named, "lora").component
        return found

"""Selection of a set of components that fit together, from all that a scan found.

The transformer is selected first; the other components are matched to it by shapes. File names only
break ties. The embedded pocket model is one more folder, searched last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

from latent_ladder.checkpoints.catalog import (
    DEFAULT_PRECISION,
    PUBLISHED,
    Upsampling,
    suggest_file,
)
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.compatibility import (
    TransformerRequirements,
    detect_upsampling,
    header_contradictions,
    is_distilled_lora,
    lora_family_note,
    text_encoder_mismatch,
    training_mismatch,
    training_variant,
    vae_contradictions,
)
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.families import (
    FAMILIES,
    DecoderKind,
    decoder_kind,
    detect_family,
)
from latent_ladder.checkpoints.gemma_sizes import assumed_rope_factor, has_unknown_size
from latent_ladder.checkpoints.scan import FoundComponent, LazyComponents, Library, scan, summarize
from latent_ladder.checkpoints.search_paths import EMBEDDED, ModelFolder, model_folders
from latent_ladder.checkpoints.training import training_of_file
from latent_ladder.errors import CheckpointNotFound, UnknownLayout
from latent_ladder.request.presets import preset_family, preset_training
from latent_ladder.storage.user_folders import expand_home

__all__ = [
    "EMBEDDED",
    "FoundComponent",
    "Library",
    "ModelFolder",
    "ModelSet",
    "PartialModelSet",
    "Upsampling",
    "display_name",
    "find_by_name",
    "missing_error",
    "model_folders",
    "scan",
    "select_available",
    "select_models",
    "without_transformer",
]


@dataclass(frozen=True)
class ModelSet:
    """Components that fit together: one transformer and all components that it needs.

    ``loras`` are those that fit, by file name; ``distilled_lora`` is the distilled one. ``preset``
    is the default preset in the transformer's header. ``notes`` are warnings about the selected
    components. ``rejected`` has the reasons why other files do not fit, by role. ``video_decoders``
    are the video VAEs that decode, by kind of their decoder; ``decoding_vae`` is the chosen one,
    ``video_vae`` encodes.
    """

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
    notes: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    video_decoders: Mapping[DecoderKind, Component] = field(default_factory=dict)
    video_decoder: Component | None = None

    @property
    def decoding_vae(self) -> Component:
        """The video VAE that decodes the clip."""
        return self.video_vae if self.video_decoder is None else self.video_decoder

    @property
    def has_distilled_lora(self) -> bool:
        """True if there is a distilled LoRA for the transformer."""
        return "distilled_lora" in self.loras

    @property
    def has_audio(self) -> bool:
        """True if audio can be decoded."""
        return self.audio_vae is not None and self.vocoder is not None

    def missing_error(
        self, role: str, why: str, upsampling: Upsampling | None = None
    ) -> CheckpointNotFound:
        """The error for a component that this set lacks, with the files that do not fit and why."""
        reasons = "; ".join((why, *self.rejected.get(role, ())))
        return missing_error(role, reasons, upsampling=upsampling, family=self.family)


REQUIRED = ("text_projection", "connectors", "video_vae", "text_encoder")
"""The roles that every run needs, in addition to the transformer."""


@dataclass(frozen=True)
class PartialModelSet:
    """The selected components by role, which may not be a complete set; and why others do not fit.

    ``transformer`` is ``None`` if there is none of a known family; then nothing fits anything, and
    ``parts`` are files of ``suggested``, the family whose other files are suggested.
    """

    transformer: FoundComponent | None
    parts: Mapping[str, Component]
    upsamplers: Mapping[Upsampling, Component]
    loras: Mapping[str, Component]
    notes: tuple[str, ...]
    rejected: Mapping[str, tuple[str, ...]]
    video_decoders: Mapping[DecoderKind, Component] = field(default_factory=dict)
    suggested: str = "2.3"

    @property
    def is_complete(self) -> bool:
        """True if no required component is missing."""
        return not self.missing_roles

    @property
    def missing_roles(self) -> tuple[str, ...]:
        """Required roles without a component, in the order to report them.

        The file of a text encoder that holds the projection is reported as the encoder.
        """
        roles: tuple[str, ...] = ("transformer", *REQUIRED)
        if FAMILIES[self.family].projection_with_encoder:
            roles = tuple(sorted(roles, key=lambda role: role != "text_encoder"))
        return tuple(role for role in roles if role not in self.parts)

    @property
    def is_embedded(self) -> bool:
        """True if the transformer is the pocket model's."""
        return self.transformer is not None and self.transformer.is_embedded

    def instead_of(self, other: PartialModelSet) -> PartialModelSet:
        """This set, with a note that it is used because ``other`` is not complete."""
        missing = other.missing_roles
        reasons = "; ".join(why for role in missing for why in other.rejected.get(role, ()))
        names = [s.transformer.path.name for s in (other, self) if s.transformer is not None]
        note = (
            f"{names[0]} (LTX-{other.family}) is not used: no "
            f"{' and no '.join(map(display_name, missing))} fits it"
            f"{f' ({reasons})' if reasons else ''}; {names[1]} (LTX-{self.family}) is complete"
        )
        return replace(self, notes=(*self.notes, note))

    @property
    def precision(self) -> str:
        """The precision of missing components to suggest: that of the transformer."""
        if self.transformer is None:
            return DEFAULT_PRECISION
        stored = self.transformer.summary.precision
        gguf = self.transformer.summary.container == "gguf"
        return f"gguf-{stored}" if gguf else stored

    @property
    def family(self) -> str:
        """The transformer's family; without a transformer the one to suggest."""
        if self.transformer is None:
            return self.suggested
        return detect_family(self.transformer.component)

    def missing_error(self, role: str, library: Library) -> CheckpointNotFound:
        """The error for a component that was not found."""
        reasons = self.rejected.get(role)
        why = f"searched {', '.join(map(str, library.folders))}"
        if reasons and self.transformer is not None:
            why = f"none fits {self.transformer.path.name}: {'; '.join(reasons)}"
        elif reasons:
            why = "; ".join(reasons)
        return missing_error(role, why, precision=self.precision, family=self.family)

    def models(self, library: Library) -> ModelSet:
        """The complete set. Raises what :func:`select_models` raises."""
        for role in self.missing_roles:
            raise self.missing_error(role, library)
        parts = self.parts
        for part in parts.values():
            part.check_readable()
        return ModelSet(
            **{role: parts[role] for role in ("transformer", *REQUIRED)},
            audio_vae=parts.get("audio_vae"),
            vocoder=parts.get("vocoder"),
            upsamplers=self.upsamplers,
            loras=self.loras,
            family=self.family,
            preset=parts["transformer"].file.metadata.get("preset"),
            notes=self.notes,
            rejected=self.rejected,
            video_decoders=self.video_decoders,
        )


def select_available(
    library: Library, choices: Mapping[str, str] | None = None, preset: str = ""
) -> PartialModelSet:
    """Select a transformer and the components that fit it; some may be missing.

    ``choices`` and ``preset`` are as in :func:`select_models`. Raises :class:`CheckpointNotFound`
    or :class:`UnknownLayout` only for a file in ``choices`` that does not exist or does not fit.
    """
    choices = dict(choices or {})
    transformers = _rank_transformers(library, choices, preset)
    if not transformers:
        has_newest = any(found.summary.family == "2.5" for found in library.of("text_encoder"))
        return without_transformer(library, "2.5" if has_newest else "2.3")
    sets = (_select_for(library, choices, transformer) for transformer in transformers)
    first = next(sets)
    if first.is_complete:
        return first
    other = next((s for s in sets if s.is_complete and not s.is_embedded), None)
    return first if other is None else other.instead_of(first)


def without_transformer(library: Library, family: str) -> PartialModelSet:
    """The files of a family in a library that lacks its transformer, to say which are missing."""
    roles = (*REQUIRED, "audio_vae", "vocoder")
    parts = {
        role: found.component
        for role in roles
        for found in reversed(library.of(role))
        if found.summary.family == family and not found.is_embedded
    }
    ups = (f for f in library.of("latent_upsampler") if f.summary.family == family)
    upsamplers = {detect_upsampling(f.component): f.component for f in ups}
    others = tuple(
        f"{f.path.name} is of an unknown family"
        for f in library.of("transformer")
        if f.summary.family is None
    )
    rejected = {"transformer": others} if others else {}
    return PartialModelSet(None, parts, upsamplers, {}, (), rejected, suggested=family)


def _select_for(
    library: Library, choices: Mapping[str, str], transformer: FoundComponent
) -> PartialModelSet:
    """The components that fit a transformer."""
    selector = _Selector(library, choices, transformer)
    selector.notes.extend(header_contradictions(transformer.component))
    requirements = selector.requirements
    parts = {"transformer": transformer.component}

    def fits_encoder(encoder: Component) -> str | None:
        return text_encoder_mismatch(requirements, encoder, parts.get("text_projection"))

    def fits_projection(projection: Component) -> str | None:
        wrong = requirements.mismatch("text_projection", projection)
        if wrong or "text_encoder" not in parts:
            return wrong
        return text_encoder_mismatch(requirements, parts["text_encoder"], projection)

    if requirements.family.projection_with_encoder:
        selector.add("text_encoder", parts, fits_encoder)
    selector.add("text_projection", parts, fits_projection, parts.get("text_encoder"))
    for role in ("connectors", "video_vae", "audio_vae"):
        selector.add(role, parts)
    if "video_vae" in parts:
        selector.notes.extend(vae_contradictions(parts["video_vae"]))
    selector.add("vocoder", parts, preferred=parts.get("audio_vae"))
    if "text_encoder" not in parts:
        selector.add("text_encoder", parts, fits_encoder)
    encoder = parts.get("text_encoder")
    if encoder is not None and has_unknown_size(encoder):
        selector.notes.extend(filter(None, [assumed_rope_factor(encoder)]))
    upsamplers, loras = selector.upsamplers(), selector.loras()
    selector.note_unused_files()
    rejected = {role: tuple(reasons) for role, reasons in selector.rejected.items()}
    return PartialModelSet(
        transformer,
        parts,
        upsamplers,
        loras,
        tuple(selector.notes),
        rejected,
        selector.video_decoders(parts.get("video_vae")),
    )


def select_models(
    library: Library, choices: Mapping[str, str] | None = None, preset: str = ""
) -> ModelSet:
    """Select a transformer and all components that fit it by their shapes.

    ``choices`` maps a role (or ``checkpoint``: all components of one file) to a path or a file name
    and has priority. ``preset`` is that of the request: one that the embedded model names as its
    own selects that model, also where there are others.

    Raises :class:`CheckpointNotFound` for a missing component, with the reasons why files do not
    fit, and a file to download with its folder, page and size. Raises
    :class:`UnsupportedQuantization` for weights in a format that cannot be decoded.
    """
    key = preset, *sorted((choices or {}).items())
    if key not in library.selections:
        library.selections[key] = select_available(library, choices, preset).models(library)
    models: ModelSet = library.selections[key]
    return models


def missing_error(
    role: str,
    why: str,
    *,
    precision: str = DEFAULT_PRECISION,
    upsampling: Upsampling | None = None,
    family: str = "2.3",
) -> CheckpointNotFound:
    """The error for a missing component, with a file to download, its size, folder and page."""
    wanted = suggest_file(role, precision=precision, upsampling=upsampling, family=family)
    hint = "use --models with a folder that contains one"
    if wanted is not None:
        hint = f"put {wanted.name} ({wanted.size}, {wanted.page}) into models/{wanted.folder}/"
        if (command := f"ltx-{family}") in PUBLISHED:
            hint += f", or run `ladder models get {command}`"
        hint += "; its licence must be accepted on that page first" if wanted.gated else ""
    return CheckpointNotFound(f"no {display_name(role)} found: {why}", hint)


def find_by_name(library: Library, name: str, role: str) -> FoundComponent:
    """The component ``role`` in the file ``name``, which is a path or a name in a model folder.

    Raises :class:`CheckpointNotFound` if there is no such file, or it has no such component.
    """
    path = expand_home(name)
    if path.exists() and (path.is_file() or path.is_absolute()):
        return _find_in_path(path, role)
    wanted = name.replace("\\", "/")
    known_files = library.named(role)
    for found in known_files:
        if f"/{found.name}".endswith(f"/{wanted}"):
            return found
    for found in known_files:
        if found.path.name == Path(wanted).name:
            return found
    for file, roles in library.files.items():
        if file.name == Path(wanted).name:
            raise _wrong_role_error(file.name, list(roles), role)
    known = ", ".join(sorted({f.name for f in known_files})) or "none"
    raise CheckpointNotFound(
        f"no {display_name(role)} called {name} found; known: {known}",
        "give a path, or a name that `ladder models list` shows",
    )


def _find_in_path(path: Path, role: str) -> FoundComponent:
    parts = components(open_checkpoint(path))
    if role not in parts:
        raise _wrong_role_error(path.name, list(parts), role)
    part = parts[role]
    opened = LazyComponents(part.file.path, parts)
    return FoundComponent(role, part.file.path, path.resolve().parent, summarize(part), opened)


def _wrong_role_error(name: str, roles: list[str], role: str) -> CheckpointNotFound:
    """The error for a file with other components, such as a LoRA in place of a checkpoint."""
    if roles == ["lora"]:
        content, hint = "it is a LoRA, not a checkpoint", f"--set models.distilled_lora={name}"
    else:
        content = f"it contains {', '.join(map(display_name, roles))}"
        hint = f"--checkpoint {name}" if "transformer" in roles else "a file that contains one"
    return CheckpointNotFound(f"{name} contains no {display_name(role)}: {content}", f"use {hint}")


def display_name(role: str) -> str:
    """The name of a role in messages, such as "video VAE"."""
    return role.replace("_", " ").replace("lora", "LoRA").replace("vae", "VAE")


# --- the transformer -----------------------------------------------------------------------------

_FAMILY_PREFERENCE = ("2.5", "2.3", "2.0")
_FIRST_TRAINING = {"2.5": "distilled"}
"""Training that is preferred without a preset, by family."""
_PRECISION_PREFERENCE = ("bf16", "f16", "f32", "fp8", "mxfp8", "int8", "nvfp4")
"""Preferred precisions in order; all others, mainly those of GGUF, follow, the largest first."""


def _rank_transformers(
    library: Library, choices: Mapping[str, str], preset: str
) -> list[FoundComponent]:
    """The transformer that the user named, else the best one of each family, the best first.

    The preset of an embedded transformer takes that one alone; the family and the training that
    the preset was made for come first.
    """
    named = choices.get("transformer") or choices.get("checkpoint")
    if named:
        return [find_by_name(library, named, "transformer")]
    for found in library.of("transformer"):
        if preset and found.is_embedded and found.component.file.metadata.get("preset") == preset:
            return [found]
    wanted = preset_family(preset), preset_training(preset)
    found_keys = ((_preference_key(f, *wanted), f) for f in library.of("transformer"))
    ranked = [(key, found) for key, found in found_keys if key is not None]
    ranked.sort(key=lambda pair: pair[0])
    best: dict[tuple[bool, str | None], FoundComponent] = {}
    for _, found in ranked:
        kind = found.is_embedded, found.summary.family
        if kind not in best and "patchify_proj.weight" in found.component:  # else a part of one
            best[kind] = found
    return list(best.values())


def _preference_key(
    found: FoundComponent, first_family: str, training: str
) -> tuple[int, bool, int, bool, int, float, int] | None:
    """Sort key of a transformer: the user's before the pocket model, family, training, precision.

    Of equal ones the larger comes first: a damaged file may hold only a part.

    ``None`` for an unknown family, which cannot be used.
    """
    family = found.summary.family
    if family is None:
        return None
    known = _FAMILY_PREFERENCE.index(family)
    wanted = training or _FIRST_TRAINING.get(family)
    is_other = None not in (wanted, mine := training_of_file(found.path)) and mine != wanted
    rank, bits = precision_rank(found)
    size = -found.summary.nbytes
    return int(found.is_embedded), family != first_family, known, is_other, rank, bits, size


def precision_rank(found: FoundComponent) -> tuple[int, float]:
    """Sort key of a transformer: the precision that keeps most of the original weights first.

    Bits per weight are rounded to halves, so that a few bytes of other data do not matter.
    """
    rank = dict(zip(_PRECISION_PREFERENCE, range(len(_PRECISION_PREFERENCE)), strict=True))
    return rank.get(found.summary.precision, len(rank)), -round(2 * found.summary.bits) / 2


# --- the other components ------------------------------------------------------------------------

MismatchRule = Callable[[Component], str | None]


@dataclass(frozen=True)
class _Selector:
    """Selector of components: the user's choice, else one in the transformer's file, else any."""

    library: Library
    choices: Mapping[str, str]
    transformer: FoundComponent
    notes: list[str] = field(default_factory=list)
    rejected: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def requirements(self) -> TransformerRequirements:
        """The requirements of the selected transformer."""
        return TransformerRequirements(self.transformer.component)

    def add(
        self,
        role: str,
        parts: dict[str, Component],
        mismatch: MismatchRule | None = None,
        preferred: Component | None = None,
    ) -> None:
        """Add the component for a role to ``parts``, if one fits."""
        found = self.find_optional(role, mismatch, preferred)
        if found is not None:
            parts[role] = found

    def find_optional(
        self, role: str, mismatch: MismatchRule | None = None, preferred: Component | None = None
    ) -> Component | None:
        """The component for a role, or ``None``.

        Files are tried in this order: that of ``preferred``, that of the transformer, all others.
        """
        mismatch = mismatch or (lambda part: self.requirements.mismatch(role, part))
        named = self.choices.get(role)
        if named:
            return self._find_by_name(role, named, mismatch)
        first = [p for p in (preferred, self.transformer.component) if p is not None]
        own = [part for p in first if (part := self._find_in_same_file(p, role)) is not None]
        others = sorted(self.library.of(role), key=self._order)
        for part in chain(own, (found.component for found in others)):
            wrong = mismatch(part)
            if wrong is None:
                warning = training_mismatch(role, part, self.transformer.component)
                self.notes.extend([warning] if warning else [])
                return part
            self._reject(role, part, wrong)
        return None

    def _find_in_same_file(self, part: Component, role: str) -> Component | None:
        """The component ``role`` in the file of ``part``, ``None`` if it has none."""
        found = self.library.files.get(part.file.path)
        if found is None:  # given as a path outside the searched folders
            return components(part.file).get(role)
        return found[role].component if role in found else None

    def _find_by_name(self, role: str, name: str, mismatch: MismatchRule) -> Component:
        part = find_by_name(self.library, name, role).component
        wrong = mismatch(part)
        if wrong is not None:
            raise UnknownLayout(
                f"{part.file.path.name} does not fit {self.transformer.path.name} as "
                f"{display_name(role)}: {wrong}",
                "use files of one family",
            )
        return part

    def _order(self, found: FoundComponent) -> tuple[bool, bool, bool, bool]:
        """Sort key: parts of the embedded model first for its own transformer.

        Then come files of the transformer's family, then those of its training variant. A VAE with
        a convolutional decoder comes before one with a diffusion decoder.
        """
        diffusion = found.role == "video_vae" and decoder_kind(found.component) == "diffusion"
        other_family = found.summary.family not in (None, self.requirements.family.name)
        name, wanted = found.path.name, self.transformer.path.name
        other_variant = training_variant(name) != training_variant(wanted)
        return self._is_foreign(found), other_family, diffusion, other_variant

    def video_decoders(self, selected: Component | None) -> dict[DecoderKind, Component]:
        """The video VAEs that fit, by kind of their decoder; only ``selected`` if it was named."""
        if selected is None:
            return {}
        found = {decoder_kind(selected): selected}
        if not self.choices.get("video_vae"):
            for candidate in sorted(self.library.of("video_vae"), key=self._order):
                part = candidate.component
                if self.requirements.mismatch("video_vae", part) is None:
                    found.setdefault(decoder_kind(part), part)
        return found

    def _is_foreign(self, found: FoundComponent) -> bool:
        """True for a user's file where the transformer is that of the embedded model."""
        return self.transformer.is_embedded and not found.is_embedded

    def note_unused_files(self) -> None:
        """Note the user's files that the embedded model leaves out: its parts belong together."""
        roles = ("transformer", *REQUIRED, "audio_vae", "vocoder", "latent_upsampler")
        named = {Path(name).name for name in self.choices.values()}
        unused = {
            found.path.name: None
            for role in roles
            for found in self.library.of(role)
            if self._is_foreign(found) and found.path.name not in named
        }
        if unused:
            names = ", ".join(list(unused)[:3])
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            self.notes.append(
                f"{self.transformer.path.name} is the embedded pocket model and uses only the "
                f"files that belong to it: {names}{more} not used"
            )

    def _reject(self, role: str, part: Component, wrong: str) -> None:
        reason = f"{part.file.path.name}: {wrong}"
        if not part.file.path.is_relative_to(EMBEDDED):
            known = self.rejected.setdefault(role, [])
            known.extend([reason] if reason not in known else [])

    def upsamplers(self) -> dict[Upsampling, Component]:
        """The latent upsamplers that fit, by axis and factor."""
        named = self.choices.get("latent_upsampler")
        found: dict[Upsampling, Component] = {}
        if named:
            part = self._find_by_name("latent_upsampler", named, self._upsampler_mismatch)
            found[detect_upsampling(part)] = part
        newest_first = sorted(self.library.of("latent_upsampler"), key=_release, reverse=True)
        for candidate in sorted(newest_first, key=self._order):
            part = candidate.component
            wrong = self._upsampler_mismatch(part)
            if wrong is None:
                found.setdefault(detect_upsampling(part), part)
            else:
                self._reject("latent_upsampler", part, wrong)
        return found

    def _upsampler_mismatch(self, part: Component) -> str | None:
        return self.requirements.mismatch("latent_upsampler", part)

    def loras(self) -> dict[str, Component]:
        """The LoRAs that fit, by file name; ``distilled_lora`` is the distilled one."""
        found: dict[str, Component] = {}
        for candidate in sorted(self.library.of("lora"), key=self._lora_order):
            part = candidate.component
            wrong = self.requirements.mismatch("lora", part)
            if wrong is not None:
                self._reject("distilled_lora" if is_distilled_lora(part) else "lora", part, wrong)
                continue
            found.setdefault(candidate.name, part)
            found.setdefault(candidate.path.name, part)
            if is_distilled_lora(part):
                found.setdefault("distilled_lora", part)
        named = self.choices.get("distilled_lora")
        if named:
            found["distilled_lora"] = self._named_lora(named)
        return found

    def _lora_order(self, found: FoundComponent) -> tuple[bool, bool]:
        """Sort key: LoRAs whose file says that they are for the transformer's family first."""
        return self._is_foreign(found), found.summary.family != self.requirements.family.name

    def _named_lora(self, name: str) -> Component:
        """The LoRA that the user named, without checks; another family only gives a warning."""
        part = find_by_name(self.library, name, "lora").component
        note = lora_family_note(part, self.requirements.family.name)
        self.notes.extend(filter(None, [note]))
        return part


def _release(found: FoundComponent) -> tuple[int, ...]:
    """The release at the end of a file's name: (1, 1) for ``...-upscaler-x2-1.1``, else (0,).

    Later releases mend earlier ones: 1.1 of the x2 upscaler of LTX-2.3 does so for long clips.
    """
    stated = re.search(r"-(\d+)\.(\d+)$", found.path.stem)
    return tuple(int(number) for number in stated.groups()) if stated else (0,)

"""Choose, of everything found, a set of model files that fit together.

The transformer decides; every other part is matched to it by shapes. Names only break ties. The
embedded pocket model is one more folder, searched last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

from latent_ladder.checkpoints.catalog import (
    DEFAULT_PRECISION,
    Upsampling,
    suggestion,
)
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.compatibility import (
    Fit,
    is_distilled_lora,
    lora_family,
    projection_shape,
    text_encoder_misfit,
    training,
    unpaired,
    upsampling,
)
from latent_ladder.checkpoints.components import Component, components, family
from latent_ladder.checkpoints.scan import Found, Library, OpenedOnce, facts_of, scan
from latent_ladder.checkpoints.search_paths import EMBEDDED, ModelFolder, model_folders
from latent_ladder.errors import CheckpointNotFound, UnknownLayout

__all__ = [
    "EMBEDDED",
    "Choice",
    "Found",
    "Library",
    "ModelFolder",
    "ModelSet",
    "Upsampling",
    "choose",
    "find_named",
    "missing",
    "model_folders",
    "scan",
    "select",
]


@dataclass(frozen=True)
class ModelSet:
    """Components that fit together: one transformer and all that it needs.

    ``rejected`` says by role why the candidates that were found do not fit; ``notes`` are
    warnings about those that do.
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

    @property
    def distilled(self) -> bool:
        """Whether there is a distilled LoRA for the transformer."""
        return "distilled_lora" in self.loras

    @property
    def has_audio(self) -> bool:
        """Whether sound can be decoded."""
        return self.audio_vae is not None and self.vocoder is not None

    def missing(
        self, role: str, why: str, upsampling: Upsampling | None = None
    ) -> CheckpointNotFound:
        """The error for a role that this set lacks; names the files that do not fit, and why."""
        reasons = "; ".join((why, *self.rejected.get(role, ())))
        return missing(role, reasons, upsampling=upsampling, family=self.family)


REQUIRED = ("text_projection", "connectors", "video_vae", "text_encoder")
"""The roles that nothing runs without, beside the transformer."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, complete or not: parts by role, and why others were not.

    ``transformer`` is ``None`` where there is none of a known family; then nothing is chosen.
    """

    transformer: Found | None
    parts: Mapping[str, Component]
    upsamplers: Mapping[Upsampling, Component]
    loras: Mapping[str, Component]
    notes: tuple[str, ...]
    rejected: Mapping[str, tuple[str, ...]]

    @property
    def precision(self) -> str:
        """What missing parts should be named in: the transformer's own precision."""
        if self.transformer is None:
            return DEFAULT_PRECISION
        stored = self.transformer.facts.precision
        gguf = self.transformer.facts.container == "gguf"
        return f"gguf-{stored}" if gguf else stored

    @property
    def family(self) -> str:
        """The transformer's family; "2.3", the one to get, where there is none."""
        return "2.3" if self.transformer is None else family(self.transformer.component)

    def missing(self, role: str, library: Library) -> CheckpointNotFound:
        """The error for a role that nothing fills."""
        reasons = self.rejected.get(role)
        why = f"searched {', '.join(map(str, library.folders))}"
        if reasons and self.transformer is not None:
            why = f"none fits {self.transformer.path.name}: {'; '.join(reasons)}"
        elif reasons:
            why = "; ".join(reasons)
        return missing(role, why, precision=self.precision, family=self.family)

    def models(self, library: Library) -> ModelSet:
        """The whole set. Raises what :func:`select` raises."""
        for role in ("transformer", *REQUIRED):
            if role not in self.parts:
                raise self.missing(role, library)
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
        )


def choose(library: Library, choices: Mapping[str, str] | None = None) -> Choice:
    """Choose a transformer and the parts that fit it; parts may be missing.

    Raises :class:`CheckpointNotFound` or :class:`UnknownLayout` only for a file that ``choices``
    name and that is not there or does not fit.
    """
    choices = dict(choices or {})
    transformer = _choose_transformer(library, choices)
    if transformer is None:
        others = tuple(
            f"{f.path.name} is of a family this version does not know"
            for f in library.of("transformer")
        )
        return Choice(None, {}, {}, {}, (), {"transformer": others} if others else {})
    pick = _Picker(library, choices, transformer)
    parts = {"transformer": transformer.component}
    for role in ("text_projection", "connectors", "video_vae", "audio_vae"):
        pick.add(role, parts)
    pick.add("vocoder", parts, beside=parts.get("audio_vae"))
    pick.add("text_encoder", parts, _text_encoder_rule(parts.get("text_projection")))
    upsamplers, loras = pick.upsamplers(), pick.loras()
    rejected = {role: tuple(reasons) for role, reasons in pick.rejected.items()}
    return Choice(transformer, parts, upsamplers, loras, tuple(pick.notes), rejected)


def select(library: Library, choices: Mapping[str, str] | None = None) -> ModelSet:
    """Choose a transformer and the parts that fit it by their shapes.

    ``choices`` maps a role (or ``checkpoint``: all parts of one file) to a path or a file name
    and overrides the library. Raises :class:`CheckpointNotFound` naming the missing role, why
    the files found do not fit, and the file that would, its folder, publisher and size.
    Raises :class:`UnsupportedQuantization` for weights in a format that cannot be decoded.
    """
    asked = tuple(sorted((choices or {}).items()))
    if asked not in library.selected:
        library.selected[asked] = choose(library, choices).models(library)
    models: ModelSet = library.selected[asked]
    return models


def missing(
    role: str,
    why: str,
    *,
    precision: str = DEFAULT_PRECISION,
    upsampling: Upsampling | None = None,
    family: str = "2.3",
) -> CheckpointNotFound:
    """The error for a role nothing fills: the file that would, its size, folder and publisher."""
    wanted = suggestion(role, precision=precision, upsampling=upsampling, family=family)
    folder = "name the folder that holds one with --models"
    if wanted is not None:
        folder = (
            f"put {wanted.name} ({wanted.size}, {wanted.page}) into models/{wanted.folder}/, or "
            "run `ladder models get ltx-2.3`"
        )
    return CheckpointNotFound(f"no {_spoken(role)} found: {why}", folder)


def find_named(library: Library, name: str, role: str) -> Found:
    """The component ``role`` in the file called ``name``: a path, or a name in a model folder."""
    path = Path(name).expanduser()
    if path.exists() and (path.is_file() or path.is_absolute()):
        return _in_file(path, role)
    wanted = name.replace("\\", "/")
    for found in library.of(role):
        if f"/{found.name}".endswith(f"/{wanted}") or found.path.name == Path(wanted).name:
            return found
    for file, roles in library.files.items():
        if file.name == Path(wanted).name:
            raise _other_role(file.name, list(roles), role)
    known = ", ".join(sorted({f.name for f in library.of(role)})) or "none"
    raise CheckpointNotFound(
        f"no file called {name} plays the role {_spoken(role)}; known: {known}",
        "give a path, or a name that `ladder models list` shows",
    )


def _in_file(path: Path, role: str) -> Found:
    parts = components(open_checkpoint(path))
    if role not in parts:
        raise _other_role(path.name, list(parts), role)
    part = parts[role]
    opened = OpenedOnce(part.file.path, parts)
    return Found(role, part.file.path, path.resolve().parent, facts_of(part), opened)


def _other_role(name: str, roles: list[str], role: str) -> CheckpointNotFound:
    """A LoRA given as checkpoint, the reverse, and all other mix-ups."""
    if roles == ["lora"]:
        held, hint = "it is a LoRA, not a checkpoint", f"--set models.distilled_lora={name}"
    else:
        held = f"it holds {', '.join(map(_spoken, roles))}"
        hint = f"--checkpoint {name}" if "transformer" in roles else "a file that holds one"
    return CheckpointNotFound(f"{name} holds no {_spoken(role)}: {held}", f"use {hint}")


def _spoken(role: str) -> str:
    return role.replace("_", " ").replace("lora", "LoRA").replace("vae", "VAE")


# --- the transformer -----------------------------------------------------------------------------

_FAMILY_PREFERENCE = ("2.3", "2.5", "2.0")
_PRECISION_PREFERENCE = ("bf16", "f16", "f32", "fp8", "mxfp8", "int8", "nvfp4")
"""All others, GGUF's above all, come after these, the larger first."""


def _choose_transformer(library: Library, choices: Mapping[str, str]) -> Found | None:
    named = choices.get("transformer") or choices.get("checkpoint")
    if named:
        return find_named(library, named, "transformer")
    ranked = [(p, f) for f in library.of("transformer") if (p := _preference(f)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _preference(found: Found) -> tuple[int, int, int, float] | None:
    """Sort key of a transformer: the user's, a known family, more bits; ``None``: unusable."""
    if found.facts.family is None:
        return None
    known = _FAMILY_PREFERENCE.index(found.facts.family)
    return int(found.embedded), known, *precision_order(found)


def precision_order(found: Found) -> tuple[int, float]:
    """Sort key: how much of the original values a transformer's storage keeps, the most first.

    Half bits are told apart, headers a few bytes longer are not.
    """
    rank = dict(zip(_PRECISION_PREFERENCE, range(len(_PRECISION_PREFERENCE)), strict=True))
    return rank.get(found.facts.precision, len(rank)), -round(2 * found.facts.bits) / 2


# --- all that goes with it -----------------------------------------------------------------------

Misfit = Callable[[Component], str | None]


def _text_encoder_rule(projection: Component | None) -> Misfit:
    """An encoder fits what the projection reads; without a projection any will do."""
    if projection is None:
        return lambda _: None
    features = projection_shape(projection)[1]
    return lambda encoder: text_encoder_misfit(encoder, features)


@dataclass(frozen=True)
class _Picker:
    """Finds the part for a role: the user's choice, the transformer's own file, any that fits."""

    library: Library
    choices: Mapping[str, str]
    transformer: Found
    notes: list[str] = field(default_factory=list)
    rejected: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def fit(self) -> Fit:
        """The rules."""
        return Fit(self.transformer.component)

    def add(
        self,
        role: str,
        parts: dict[str, Component],
        misfit: Misfit | None = None,
        beside: Component | None = None,
    ) -> None:
        """Put the part for a role into ``parts`` where one fits."""
        found = self.optional(role, misfit, beside)
        if found is not None:
            parts[role] = found

    def optional(
        self, role: str, misfit: Misfit | None = None, beside: Component | None = None
    ) -> Component | None:
        """The part for a role, of the file of ``beside`` or the transformer where it is there."""
        misfit = misfit or (lambda part: self.fit.misfit(role, part))
        named = self.choices.get(role)
        if named:
            return self._named(role, named, misfit)
        first = [p for p in (beside, self.transformer.component) if p is not None]
        own = [part for p in first if (part := self._beside(p, role)) is not None]
        others = sorted(self.library.of(role), key=self._paired)
        for part in chain(own, (found.component for found in others)):
            wrong = misfit(part)
            if wrong is None:
                warning = unpaired(role, part, self.transformer.component)
                self.notes.extend([warning] if warning else [])
                return part
            self._reject(role, part, wrong)
        return None

    def _beside(self, part: Component, role: str) -> Component | None:
        """The component of a role in the file of another."""
        found = self.library.files.get(part.file.path)
        if found is None:  # named by a path outside the folders searched
            return components(part.file).get(role)
        return found[role].component if role in found else None

    def _named(self, role: str, name: str, misfit: Misfit) -> Component:
        part = find_named(self.library, name, role).component
        wrong = misfit(part)
        if wrong is not None:
            raise UnknownLayout(
                f"{part.file.path.name} does not fit {self.transformer.path.name} as "
                f"{_spoken(role)}: {wrong}",
                "choose files of one family",
            )
        return part

    def _paired(self, found: Found) -> int:
        """Files whose names speak of the same training come first."""
        return int(training(found.path.name) != training(self.transformer.path.name))

    def _reject(self, role: str, part: Component, wrong: str) -> None:
        reason = f"{part.file.path.name}: {wrong}"
        if not part.file.path.is_relative_to(EMBEDDED):
            known = self.rejected.setdefault(role, [])
            known.extend([reason] if reason not in known else [])

    def upsamplers(self) -> dict[Upsampling, Component]:
        """Those that fit, by what they do."""
        named = self.choices.get("latent_upsampler")
        found: dict[Upsampling, Component] = {}
        if named:
            part = self._named("latent_upsampler", named, self._upsampler_misfit)
            found[upsampling(part)] = part
        for candidate in self.library.of("latent_upsampler"):
            part = candidate.component
            wrong = self._upsampler_misfit(part)
            if wrong is None:
                found.setdefault(upsampling(part), part)
            else:
                self._reject("latent_upsampler", part, wrong)
        return found

    def _upsampler_misfit(self, part: Component) -> str | None:
        return self.fit.misfit("latent_upsampler", part)

    def loras(self) -> dict[str, Component]:
        """LoRAs that fit, by file name; ``distilled_lora`` names the distilled one."""
        found: dict[str, Component] = {}
        for candidate in self.library.of("lora"):
            part = candidate.component
            wrong = self.fit.misfit("lora", part)
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

    def _named_lora(self, name: str) -> Component:
        """The user's word counts: only a LoRA of another family is remarked on."""
        part = find_named(self.library, name, "lora").component
        theirs, ours = lora_family(part), family(self.transformer.component)
        if theirs is not None and theirs != ours:
            self.notes.append(
                f"{part.file.path.name} is a LoRA for LTX-{theirs}, the transformer is LTX-{ours}"
            )
        return part

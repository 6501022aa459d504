"""Key names of adapter files (LoRA, LoKr, LoHa, diff): module, kind and part of each tensor.

Reads names and shapes only. Knows the names of PEFT (``lora_A``/``lora_B``, also with the name of
an adapter), kohya (``lora_down``/``lora_up``, ``alpha``), older diffusers (``lora.down``) and
LyCORIS (``lokr_*``, ``hada_*``, ``diff``). Names of modules may have any prefix, ``_`` in place of
``.``, or be those of diffusers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.lora_scale import ScaleSource
from latent_ladder.errors import CheckpointError

Shape = tuple[int, ...]

PARTS: Mapping[str, str] = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_down": "down",
    "lora_up": "up",
    "lora_magnitude_vector": "magnitude",
    "dora_scale": "magnitude",
    "alpha": "alpha",
    **{f"lokr_{w}": w for w in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    **{f"hada_{w}": f"hada_{w}" for w in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "diff": "diff",
    "diff_b": "diff_b",
}
"""Name in a file -> part of an adapter."""

_OLD_DIFFUSERS = re.compile(
    r"(?:\.processor)?(?:\.|(?<=to_[qkv])_|(?<=to_out)_)lora(?:_linear_layer)?\.(down|up)(?=\.weight$|$)"
)
"""Parts in files of older diffusers: ``to_q.lora.down``, ``processor.to_q_lora.down``."""

_USUAL = {"lora_A", "lora_B", "lora_down", "lora_up"}
"""The most frequent parts, which are matched without a regular expression."""

_KEY = re.compile(
    rf"(?P<module>.+?)\.(?P<part>{'|'.join(sorted(PARTS, key=len, reverse=True))})"
    r"(?:\.(?!bias$)\w+)?(?:\.weight)?$"
)
_OTHER_KINDS = re.compile(
    r"\.(?:lora_mid|lokr_t\d|hada_t\d|oft_\w+|boft_\w+|ia3_\w+|glora_\w+|on_input|"
    r"reshape_weight|set_weight|lora_[AB](?:\.\w+)?\.bias|lora_embedding_[AB])\b"
)
_PREFIX = re.compile(r"^(?:base_model\.model\.)?(?:(?:model\.)?(?:diffusion_model|transformer)\.)?")
_FLAT_PREFIX = re.compile(r"^(?:lora_(?:unet|transformer)|lycoris)_")

DIFFUSERS_NAMES: Mapping[str, str] = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}
"""First word of a module name in diffusers -> in the original files; block names are equal."""


@dataclass(frozen=True)
class AdapterModule:
    """One module of an adapter file, and its tensors by part (``down``, ``w1_a``, ...).

    ``name`` is that of the module in the file.
    """

    name: str
    parts: Mapping[str, str]

    @property
    def kind(self) -> str:
        """``lora``, ``lokr``, ``loha`` or ``diff`` (a difference of weights)."""
        return next(
            (kind for kind, names in _KINDS.items() if self.parts.keys() & set(names)), "diff"
        )


_KINDS: Mapping[str, tuple[str, ...]] = {
    "lora": ("down", "up"),
    "lokr": ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
}


def find_adapter_modules(component: Component) -> tuple[list[AdapterModule], list[str]]:
    """The modules that an adapter file changes, and the tensor names that belong to none.

    Raises :class:`CheckpointError` for an unsupported kind of adapter, and for a file with several
    adapters of one module.
    """
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for key in component.names:
        module, _, last = key.removesuffix(".weight").rpartition(".")
        if last not in _USUAL or (module not in modules and _OTHER_KINDS.search(module)):
            parsed = _parse_key(component, key)
            if parsed is None:
                unknown.append(key)
                continue
            module, last = parsed
        parts = modules.setdefault(module, {})
        if (part := PARTS[last]) in parts:
            raise CheckpointError(
                f"{component.file.path.name}: {module} has two adapters ({parts[part]} and {key})",
                "save each adapter as a file of its own",
            )
        parts[part] = key
    return [AdapterModule(written, parts) for written, parts in modules.items()], unknown


def _parse_key(component: Component, key: str) -> tuple[str, str] | None:
    """The module of a tensor and the name of its part, ``None`` if it belongs to no adapter."""
    usual = _OLD_DIFFUSERS.sub(r".lora_\1", key)
    if _OTHER_KINDS.search(usual):
        raise CheckpointError(
            f"{component.file.path.name}: {key} belongs to an unsupported kind of adapter "
            "(supported: LoRA, DoRA, LoKr and LoHa without Tucker cores, diff)",
            "convert it to a LoRA, or use another file",
        )
    parsed = _KEY.match(usual)
    return None if parsed is None else (parsed["module"], parsed["part"])


# --- names of modules -----------------------------------------------------------------------------

_TEXT_MODULE = re.compile(
    r"(?:^|[._])(?:(?:video|audio)_embeddings_connector|text_embedding_projection|"
    r"(?:video_|audio_)?aggregate_embed)[._]|^connectors\.|"
    r"(?:^|[._])(?:video_|audio_)?aggregate_embed$"
)
_DIFFUSERS_TEXT = (
    (re.compile(r"^connectors\.(video|audio)_connector\.transformer_blocks\."),
     r"\1_embeddings_connector.transformer_1d_blocks."),
    (re.compile(r"^connectors\.(video_|audio_)?text_proj_in$"), r"\1aggregate_embed"),
    (re.compile(r"^connectors\."), ""),
)  # fmt: skip
"""Names of diffusers' text connectors -> those of the original files."""

PROJECTION = "text_embedding_projection."
"""Prefix of the modules of the text projection."""


def is_text_module(written: str) -> bool:
    """True for a module of the text connectors or the text projection, by its name in a file."""
    return _TEXT_MODULE.search(written) is not None


def bare_name(written: str) -> str:
    """A module's name in a file without the usual prefixes (``diffusion_model.`` and the like)."""
    return _PREFIX.sub("", written)


class ModuleNames:
    """The names of a model's modules, to find those that the names in a LoRA file mean."""

    def __init__(self, known: Iterable[str]) -> None:
        self._names = set(known)
        self._flat = {name.replace(".", "_"): name for name in self._names}
        diffusers_names = {original: name for name, original in DIFFUSERS_NAMES.items()}
        for name in self._names:
            first, dot, rest = name.partition(".")
            if first in diffusers_names:
                self._flat[diffusers_names[first] + (dot + rest).replace(".", "_")] = name
            if name.startswith(PROJECTION):
                self._flat[name.removeprefix(PROJECTION).replace(".", "_")] = name

    def find(self, written: str) -> str | None:
        """The module that a name with a usual prefix means, else ``None``."""
        bare = _PREFIX.sub("", written)
        if bare.startswith("connectors."):
            for pattern, original in _DIFFUSERS_TEXT:
                bare = pattern.sub(original, bare)
        if bare in self._names:
            return bare
        return self._flat.get(_FLAT_PREFIX.sub("", bare).replace(".", "_"))

    def match(self, written: Iterable[str]) -> dict[str, str]:
        """The modules that the names of a whole file mean, without those that mean none.

        If none has a usual prefix, the prefix with which most names fit is taken for all.
        """
        written = list(written)
        found = {name: known for name in written if (known := self.find(name)) is not None}
        if found:
            return found
        by_prefix: dict[str, dict[str, str]] = {}
        for name in written:
            for prefix, rest in _without_prefixes(name):
                if (known := self.find(rest)) is not None:
                    by_prefix.setdefault(prefix, {})[name] = known
                    break
        return max(by_prefix.values(), key=len, default={})


_OTHER_MODEL = re.compile(r"(?:^|[._])(?:\w*connectors?|text_encoders?\d?|te\d?|clip\w*|vae)$")
"""End of a prefix after which the name belongs to another model than the transformer."""


def _without_prefixes(written: str) -> Iterator[tuple[str, str]]:
    """A name without its first word, first two words, ... , each with the prefix cut off."""
    separator = "." if "." in written else "_"
    at = written.find(separator)
    while at >= 0:
        prefix = written[:at]
        if _OTHER_MODEL.search(prefix):
            return
        yield prefix, written[at + 1 :]
        at = written.find(separator, at + 1)


def module_scales(component: Component, modules: Iterable[AdapterModule]) -> dict[str, ScaleSource]:
    """The scale that the header gives to each module, by the module's name in the file.

    Modules with scale 1 and differences of weights are left out.
    """
    scales = component.lora_scales
    if scales.general is None and scales.text is None:
        return {}
    scaled = [module for module in modules if module.kind != "diff"]
    ranks = (rank for module in scaled if (rank := _rank(component, module)) is not None)
    largest = max(ranks, default=None)
    found = {}
    for module in scaled:
        stated = scales.text if is_text_module(module.name) else scales.general
        if stated is not None:
            found[module.name] = stated.scale(bare_name(module.name), largest)
    return {name: each for name, each in found.items() if each.scale != 1.0}


def describe_scales(component: Component) -> tuple[str, ...]:
    """Sentences on what the header of a LoRA does to its scale; empty if it does nothing.

    Raises the errors of :func:`find_adapter_modules`.
    """
    modules, _ = find_adapter_modules(component)
    name, notes = component.file.path.name, component.lora_scales.notes
    sentences = [f"{name}: {note}" for note in notes]
    counts = Counter(module_scales(component, modules).values())
    if not counts:
        return tuple(sentences)
    (first, count), *others = counts.most_common()
    text = f"{name}: strength is multiplied by {first.scale:.4g} ({first.reason})"
    if others or count < len(modules):
        text += f" in {count} of {len(modules)} modules"
    if others:
        values = sorted({f"{each.scale:.4g}" for each, _ in others})[:MAX_SHOWN_SCALES]
        text += f"; by {', '.join(values)} in others"
    return (*sentences, text)


MAX_SHOWN_SCALES = 3


def _rank(component: Component, module: AdapterModule) -> int | None:
    """The rank of a module's factors, ``None`` for a difference and for full factors."""
    rank_part = next((part for part in _RANK_PARTS if part in module.parts), None)
    return None if rank_part is None else component.shape(module.parts[rank_part])[0]


_RANK_PARTS = ("down", "hada_w1_b", "w2_b", "w1_b")


def adapter_shape(component: Component, module: AdapterModule) -> Shape | None:
    """The shape (out, in) of the weight that a module changes; ``None`` if it changes a bias only.

    Raises :class:`CheckpointError` for missing matrices, or shapes that do not match each other.
    """
    shapes = {part: component.shape(key) for part, key in module.parts.items()}
    try:
        found = _SHAPES[module.kind](shapes)
    except KeyError as missing:
        raise CheckpointError(
            f"{component.file.path.name}: {module.name} has no {missing.args[0]} matrix",
            "download the file again, it is damaged",
        ) from missing
    if found is not None and (len(found) != 2 or found[0] < 1):
        listed = ", ".join(f"{part} {list(shape)}" for part, shape in sorted(shapes.items()))
        raise CheckpointError(
            f"{component.file.path.name}: the shapes of the matrices of {module.name} do not match "
            f"({listed})",
            "use another file: it is damaged, or made for convolutions",
        )
    return found


_MISMATCH: Shape = (0, 0)


def _product(up: Shape, down: Shape) -> Shape:
    """The shape of ``up @ down``, or :data:`_MISMATCH`."""
    matrices = len(up) == len(down) == 2 and up[1] == down[0]
    return (up[0], down[1]) if matrices else _MISMATCH


def _lora_shape(parts: Mapping[str, Shape]) -> Shape:
    return _product(parts["up"], parts["down"])


def _factor(parts: Mapping[str, Shape], name: str) -> Shape:
    if name in parts:
        return parts[name] if len(parts[name]) == 2 else _MISMATCH
    return _product(parts[f"{name}_a"], parts[f"{name}_b"])


def _lokr_shape(parts: Mapping[str, Shape]) -> Shape:
    first, second = _factor(parts, "w1"), _factor(parts, "w2")
    return first[0] * second[0], first[1] * second[1]


def _loha_shape(parts: Mapping[str, Shape]) -> Shape:
    first, second = _factor(parts, "hada_w1"), _factor(parts, "hada_w2")
    return first if first == second else _MISMATCH


def _diff_shape(parts: Mapping[str, Shape]) -> Shape | None:
    return None if "diff" not in parts and "diff_b" in parts else parts["diff"]


_SHAPES: Mapping[str, Callable[[Mapping[str, Shape]], Shape | None]] = {
    "lora": _lora_shape,
    "lokr": _lokr_shape,
    "loha": _loha_shape,
    "diff": _diff_shape,
}

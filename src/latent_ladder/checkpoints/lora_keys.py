"""Key names of adapter files (LoRA, LoKr, LoHa, diff): module, kind and part of each tensor.

Reads names and shapes only. Knows the names of PEFT (``lora_A``/``lora_B``), kohya
(``lora_down``/``lora_up``, ``alpha``) and LyCORIS (``lokr_*``, ``hada_*``, ``diff``), and module
names with or without a prefix, with ``_`` in place of ``.``, or of diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from latent_ladder.checkpoints.components import Component
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

    Raises :class:`CheckpointError` for an unsupported kind of adapter.
    """
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for key in component.names:
        module, _, last = key.removesuffix(".weight").rpartition(".")
        if last in _USUAL and (module in modules or not _OTHER_KINDS.search(module)):
            modules.setdefault(module, {})[PARTS[last]] = key
            continue
        if _OTHER_KINDS.search(key):
            raise CheckpointError(
                f"{component.file.path.name}: {key} belongs to an unsupported kind of adapter "
                "(supported: LoRA, DoRA, LoKr and LoHa without Tucker cores, diff)",
                "convert it to a LoRA, or use another file",
            )
        parsed = _KEY.match(key)
        if parsed is None:
            unknown.append(key)
        else:
            modules.setdefault(parsed["module"], {})[PARTS[parsed["part"]]] = key
    return [AdapterModule(written, parts) for written, parts in modules.items()], unknown


def make_module_finder(known: Iterable[str]) -> Callable[[str], str | None]:
    """A function that maps a module name in a file to the one of ``known``, else to ``None``."""
    names = set(known)
    flat = {name.replace(".", "_"): name for name in names}
    diffusers_names = {original: name for name, original in DIFFUSERS_NAMES.items()}
    for name in names:
        first, dot, rest = name.partition(".")
        if first in diffusers_names:
            flat[diffusers_names[first] + (dot + rest).replace(".", "_")] = name

    def find(written: str) -> str | None:
        bare = _PREFIX.sub("", written)
        if bare in names:
            return bare
        return flat.get(_FLAT_PREFIX.sub("", bare).replace(".", "_"))

    return find


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

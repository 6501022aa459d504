"""What the tensors of an adapter file are called: module, kind and part from each name.

Reads names and shapes only. Knows the spellings of PEFT (``lora_A``/``lora_B``), kohya
(``lora_down``/``lora_up``, ``alpha``), LyCORIS (``lokr_*``, ``hada_*``, ``diff``) and their ways
to name a module: with a prefix or without, with ``_`` for ``.``, or with diffusers' names.
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
"""Spelling in a file -> part of an adapter."""

_USUAL = {"lora_A", "lora_B", "lora_down", "lora_up"}
"""Parts that nearly every name of nearly every file ends in: told without a pattern."""

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
"""First word of a module in diffusers -> in the original files; blocks are called alike."""


@dataclass(frozen=True)
class AdapterModule:
    """One module as a file writes it: its parts (``down``, ``w1_a``, ...) and their tensors."""

    written: str
    parts: Mapping[str, str]

    @property
    def kind(self) -> str:
        """``lora``, ``lokr``, ``loha``, or ``diff`` where there is only a difference."""
        return next(
            (kind for kind, names in _KINDS.items() if self.parts.keys() & set(names)), "diff"
        )


_KINDS: Mapping[str, tuple[str, ...]] = {
    "lora": ("down", "up"),
    "lokr": ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
}


def find_adapter_modules(component: Component) -> tuple[list[AdapterModule], list[str]]:
    """The modules that a file amends, and the names in it that are no part of any.

    Raises :class:`CheckpointError` for a kind of adapter without arithmetic here.
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
                f"{component.file.path.name}: {key} belongs to a kind of adapter that cannot be "
                "used (known: LoRA, DoRA, LoKr and LoHa without Tucker cores, diff)",
                "convert it to a LoRA, or use another file",
            )
        parsed = _KEY.match(key)
        if parsed is None:
            unknown.append(key)
        else:
            modules.setdefault(parsed["module"], {})[PARTS[parsed["part"]]] = key
    return [AdapterModule(written, parts) for written, parts in modules.items()], unknown


def finder(known: Iterable[str]) -> Callable[[str], str | None]:
    """A function from a module as written to the one of ``known`` it means, or ``None``."""
    names = set(known)
    flat = {name.replace(".", "_"): name for name in names}
    theirs = {ours: word for word, ours in DIFFUSERS_NAMES.items()}
    for name in names:
        first, dot, rest = name.partition(".")
        if first in theirs:
            flat[theirs[first] + (dot + rest).replace(".", "_")] = name

    def find(written: str) -> str | None:
        bare = _PREFIX.sub("", written)
        if bare in names:
            return bare
        return flat.get(_FLAT_PREFIX.sub("", bare).replace(".", "_"))

    return find


def adapter_shape(component: Component, module: AdapterModule) -> Shape | None:
    """The (out, in) that a module's matrices amend; ``None`` where it has a bias only.

    Raises :class:`CheckpointError` for missing matrices and for ones that do not fit each other.
    """
    shapes = {part: component.shape(key) for part, key in module.parts.items()}
    try:
        found = _SHAPES[module.kind](shapes)
    except KeyError as missing:
        raise CheckpointError(
            f"{component.file.path.name}: {module.written} has no {missing.args[0]} matrix",
            "the file is damaged, download it again",
        ) from missing
    if found is not None and (len(found) != 2 or found[0] < 1):
        listed = ", ".join(f"{part} {list(shape)}" for part, shape in sorted(shapes.items()))
        raise CheckpointError(
            f"{component.file.path.name}: the matrices of {module.written} do not fit each other "
            f"({listed})",
            "the file is damaged or made for convolutions",
        )
    return found


_MISFIT: Shape = (0, 0)


def _product(up: Shape, down: Shape) -> Shape:
    """Of ``up @ down``, given the shapes."""
    matrices = len(up) == len(down) == 2 and up[1] == down[0]
    return (up[0], down[1]) if matrices else _MISFIT


def _lora_shape(parts: Mapping[str, Shape]) -> Shape:
    return _product(parts["up"], parts["down"])


def _factor(parts: Mapping[str, Shape], name: str) -> Shape:
    if name in parts:
        return parts[name] if len(parts[name]) == 2 else _MISFIT
    return _product(parts[f"{name}_a"], parts[f"{name}_b"])


def _lokr_shape(parts: Mapping[str, Shape]) -> Shape:
    first, second = _factor(parts, "w1"), _factor(parts, "w2")
    return first[0] * second[0], first[1] * second[1]


def _loha_shape(parts: Mapping[str, Shape]) -> Shape:
    first, second = _factor(parts, "hada_w1"), _factor(parts, "hada_w2")
    return first if first == second else _MISFIT


def _diff_shape(parts: Mapping[str, Shape]) -> Shape | None:
    return None if "diff" not in parts and "diff_b" in parts else parts["diff"]


_SHAPES: Mapping[str, Callable[[Mapping[str, Shape]], Shape | None]] = {
    "lora": _lora_shape,
    "lokr": _lokr_shape,
    "loha": _loha_shape,
    "diff": _diff_shape,
}

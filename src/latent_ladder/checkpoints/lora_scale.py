"""Scale of a LoRA as stated in its header, or in PEFT's ``adapter_config.json`` next to it.

A LoRA changes a weight by ``scale * up @ down``. Trainers in the style of kohya store ``alpha`` as
a tensor of each module, and ``scale = alpha / rank``. The PEFT and diffusers family stores it in
metadata only: ``lora_alpha`` and ``r``, also per module (``alpha_pattern``, ``rank_pattern``), and
``use_rslora`` for ``alpha / sqrt(r)``. Rules, first match wins:

1. Alpha tensors. A file that has them does not use its header; a module without one has scale 1.
2. A pattern of the header that matches the module, for alpha and for rank.
3. Alpha of the header, divided by the header's rank. Without a rank there: by the largest rank in
   the file, as trainers limit the rank of small modules but not the divisor.
4. 1.

Sources: PEFT ``LoraConfig``; diffusers ``lora_base.py`` (metadata with a prefix per component);
kohya's ``ss_network_alpha``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

ALPHA_NAMES = ("lora_alpha", "network_alpha", "alpha")
RANK_NAMES = ("r", "lora_rank", "rank", "lora_r", "lora_dim", "network_dim", "dim")
RSLORA_NAMES = ("use_rslora", "rslora", "use_rs_lora")
_SETTINGS = (*ALPHA_NAMES, *RANK_NAMES, *RSLORA_NAMES, "alpha_pattern", "rank_pattern")

JSON_KEYS = ("lora_adapter_metadata", "adapter_config", "peft_config", "lora_config")
"""Names in a header whose value is a JSON object with the settings, in order of precedence."""

KOHYA = "ss_network_alpha"
ADAPTER_CONFIG = "adapter_config.json"

TRANSFORMER_PREFIXES = ("transformer", "diffusion_model", "model.diffusion_model", "unet", "model")
TEXT_PREFIX = "connectors"
"""Prefix of diffusers for the settings of text connectors and text projection."""

MAX_PATTERNS, MAX_EXPRESSION = 20_000, 200
_ABSENT = ("", "none", "null", "dynamic")
_YES = ("1", "true", "yes")
_SAFE_EXPRESSION = re.compile(r"(?:[\w.\-^$|]|\\[.d]|\[[\w\-]+\]|[+*](?![+*?{]))+")
_MAX_REPEATS = 2


class ScaleSource(NamedTuple):
    """The scale of one module, and in words how it follows from the file (empty: it is 1)."""

    scale: float
    reason: str = ""


@dataclass(frozen=True)
class Patterns:
    """The entries of ``alpha_pattern`` or ``rank_pattern``; PEFT takes the first that matches.

    ``names`` are names of modules or their last words, or ``^`` and a whole name, each with its
    position; ``expressions`` are the others. A module is named as in the model that was trained.
    """

    names: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    expressions: tuple[tuple[int, re.Pattern[str], float], ...] = ()

    def find(self, module: str) -> float | None:
        """The value for a module, ``None`` if no entry matches."""
        wanted = ("^" + module, *_endings(module))
        found = [self.names[end] for end in wanted if end in self.names]
        found += [(n, value) for n, each, value in self.expressions if each.fullmatch(module)]
        return min(found)[1] if found else None

    def __bool__(self) -> bool:
        return bool(self.names or self.expressions)


@dataclass(frozen=True)
class HeaderScale:
    """Alpha and rank as one place of the metadata states them.

    ``where`` is the name of that place, for messages. ``kohya``: valid for files with kohya's
    tensor names only: converters from them multiply the matrices by the scale, rename the tensors
    and keep the header (musubi-tuner's ``convert_lora.py``).
    """

    where: str
    alpha: float | None = None
    rank: float | None = None
    rslora: bool = False
    alphas: Patterns = field(default_factory=Patterns)
    ranks: Patterns = field(default_factory=Patterns)
    kohya: bool = False

    @property
    def is_one(self) -> bool:
        """True if the scale of every module is 1."""
        patterns = self.alphas or self.ranks
        return self.alpha is not None and self.alpha == self.rank and not (patterns or self.rslora)

    def scale(self, module: str, file_rank: int | None) -> ScaleSource:
        """The scale of a module; ``file_rank`` is the largest rank in the file."""
        alpha, rank = self.alphas.find(module), self.ranks.find(module)
        alpha = self.alpha if alpha is None else alpha
        rank = self.rank if rank is None else rank
        rank = file_rank if rank is None else rank
        if alpha is None or not rank:
            return ScaleSource(1.0)
        scale = alpha / (math.sqrt(rank) if self.rslora else rank)
        divisor = f"the square root of rank {rank:g}" if self.rslora else f"rank {rank:g}"
        return ScaleSource(scale, f"alpha {alpha:g} over {divisor}, from {self.where}")


@dataclass(frozen=True)
class LoraScales:
    """All that a LoRA file states about its scale outside of tensors.

    ``general`` is for the transformer, ``text`` for connectors and projection. ``notes`` say what
    is not used, and why.
    """

    general: HeaderScale | None = None
    text: HeaderScale | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Identifies the settings in artefact keys; empty if they make every scale 1."""
        stated = [each for each in (self.general, self.text) if each is not None]
        if all(each.is_one for each in stated):
            return ""
        return hashlib.blake2b(repr(stated).encode(), digest_size=6).hexdigest()

    def for_names(self, are_kohya: bool) -> LoraScales:
        """These settings without kohya's, unless the tensors have kohya's names."""
        if are_kohya or self.general is None or not self.general.kohya:
            return self
        if self.general.is_one:
            return LoraScales(notes=self.notes)
        note = (
            f"alpha {self.general.alpha:g} of {self.general.where} is not used: its tensors have "
            "been renamed from kohya's, which is done with alpha multiplied into them"
        )
        return LoraScales(notes=(*self.notes, note))


def number(text: object) -> float | None:
    """A finite number, as JSON or as text (``4``, ``4.0``, ``1e1``, ``.5``, ``-2``), else None."""
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        return None
    try:
        value = float(text)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def read_lora_scales(metadata: Mapping[str, str], path: Path) -> LoraScales:
    """Find alpha and rank of a LoRA in its header, or in the ``adapter_config.json`` next to it.

    Never raises: what cannot be understood is named in ``notes``.
    """
    notes: list[str] = []
    general = text = None
    for where, settings in _places(metadata, path, notes):
        groups = _by_prefix(settings)
        main = _first(groups, ("", *TRANSFORMER_PREFIXES)) or _only_other(groups)
        stated = None if main is None else _read_group(where, main[0], main[1], notes)
        if general is None and stated is not None:
            general = stated
            prefixed = groups.get(TEXT_PREFIX)
            text = general if main is not None and not main[0] else None
            if prefixed is not None:
                text = _read_group(where, TEXT_PREFIX, prefixed, notes) or text
    return LoraScales(general, text, tuple(notes))


def _places(
    metadata: Mapping[str, str], path: Path, notes: list[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The places that may hold settings, in order of precedence."""
    for key in JSON_KEYS:
        if key in metadata:
            settings = _json_object(metadata[key])
            if settings is None:
                notes.append(f"`{key}` in its header is not a JSON object and is not used")
            else:
                yield f"`{key}` in its header", settings
    yield "its header", metadata
    if KOHYA in metadata:
        kohya = {"alpha": metadata[KOHYA], "rank": metadata.get("ss_network_dim", "")}
        yield f"`{KOHYA}` in its header", kohya
    beside = path.parent / ADAPTER_CONFIG
    if path.name.startswith("adapter_model"):
        try:
            settings = _json_object(beside.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return
        if settings is None:
            notes.append(f"{ADAPTER_CONFIG} next to it is not a JSON object and is not used")
        else:
            yield f"{ADAPTER_CONFIG} next to it", settings


def _json_object(text: object) -> Mapping[str, Any] | None:
    if isinstance(text, str):
        try:
            text = json.loads(text)
        except (ValueError, RecursionError):
            return None
    return text if isinstance(text, Mapping) else None


def _by_prefix(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings by the prefix of their names: ``transformer.r`` is ``r`` of ``transformer``."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        prefix, _, last = name.rpartition(".")
        if last in _SETTINGS:
            groups.setdefault(prefix, {})[last] = value
    for prefix in (*TRANSFORMER_PREFIXES, TEXT_PREFIX):
        nested = settings.get(prefix)  # {"transformer": {"r": 16, ...}}
        if isinstance(nested, Mapping):
            known = {name: value for name, value in nested.items() if name in _SETTINGS}
            groups.setdefault(prefix, {}).update(known)
    return {prefix: group for prefix, group in groups.items() if group}


def _first(
    groups: Mapping[str, dict[str, Any]], prefixes: Sequence[str]
) -> tuple[str, dict[str, Any]] | None:
    return next(((p, groups[p]) for p in prefixes if p in groups), None)


_OTHER_MODELS = re.compile(r"text_encoder|connectors|vae|clip|(^|\.)te\d?(\.|$)")


def _only_other(groups: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, Any]] | None:
    """The only group with an unknown prefix that does not name another model."""
    others = [item for item in groups.items() if not _OTHER_MODELS.search(item[0])]
    return others[0] if len(others) == 1 else None


def _read_group(
    where: str, prefix: str, settings: Mapping[str, Any], notes: list[str]
) -> HeaderScale | None:
    """Alpha and rank of one group; ``None`` if it states no alpha."""
    rank_name, rank = _first_number(settings, RANK_NAMES, where, notes)
    names = ALPHA_NAMES if rank_name else ALPHA_NAMES[:-1]  # a lone "alpha" may be anything
    alpha_name, alpha = _first_number(settings, names, where, notes)
    if rank is not None and rank <= 0:
        notes.append(f"a rank of {rank:g} in {where} is not used")
        rank = None
    alphas = _read_patterns(settings.get("alpha_pattern"), f"alpha_pattern of {where}", notes)
    ranks = _read_patterns(settings.get("rank_pattern"), f"rank_pattern of {where}", notes)
    if alpha is None and not alphas:
        return None
    rslora = any(str(settings.get(name, "")).strip().lower() in _YES for name in RSLORA_NAMES)
    if where == "its header":
        where = f"`{'.'.join(filter(None, (prefix, alpha_name or 'alpha_pattern')))}` in its header"
    return HeaderScale(where, alpha, rank, rslora, alphas, ranks, kohya=KOHYA in where)


def _first_number(
    settings: Mapping[str, Any], names: Sequence[str], where: str, notes: list[str]
) -> tuple[str, float | None]:
    """The first of the named settings that is a number, with its name."""
    for name in names:
        value = settings.get(name)
        if value is None or str(value).strip().lower() in _ABSENT:
            continue
        if (found := number(value)) is not None:
            return name, found
        notes.append(f"{name} {str(value)[:40]!r} in {where} is not a number and is not used")
    return "", None


# --- patterns -------------------------------------------------------------------------------------

_NAME = re.compile(r"[\w.\-]+")


def _read_patterns(stated: object, where: str, notes: list[str]) -> Patterns:
    if stated is None or (isinstance(stated, str) and stated.strip().lower() in _ABSENT):
        return Patterns()
    entries = _json_object(stated)
    if entries is None or len(entries) > MAX_PATTERNS:
        notes.append(f"{where} is not a JSON object of numbers and is not used")
        return Patterns()
    names: dict[str, tuple[int, float]] = {}
    expressions: list[tuple[int, re.Pattern[str], float]] = []
    for position, (text, stated_value) in enumerate(entries.items()):
        value, name = number(stated_value), text.replace("\\.", ".").removesuffix("$")
        plain = _NAME.fullmatch(name.removeprefix("^")) is not None
        expression = None if plain else _expression(text)
        if value is None or not (plain or expression):
            notes.append(f"the entry {text[:60]!r} of {where} is not understood and is not used")
        elif expression is None:
            names.setdefault(name, (position, value))
        else:
            expressions.append((position, expression, value))
    return Patterns(names, tuple(expressions))


def _expression(text: str) -> re.Pattern[str] | None:
    """PEFT's expression for module names; ``None`` for one that is invalid or may be slow."""
    simple = re.sub(r"\(\?:|[()]", "", text)
    repeats = len(re.findall(r"(?<!\\)[+*]", text))
    safe = len(text) <= MAX_EXPRESSION and _SAFE_EXPRESSION.fullmatch(simple) is not None
    if not safe or repeats > _MAX_REPEATS or re.search(r"\)[+*]", text):
        return None
    prefix = "" if text.startswith("^") else r"(?:.*\.)?"
    try:
        return re.compile(f"{prefix}(?:{text})")
    except re.error:
        return None


def _endings(module: str) -> Iterator[str]:
    """A name and its endings: ``a.b.c``, ``b.c``, ``c``."""
    while module:
        yield module
        module = module.partition(".")[2]

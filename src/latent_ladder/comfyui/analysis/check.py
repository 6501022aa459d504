"""What can be said of a workflow without running it: nodes, files, results, traps. No torch.

No weights are needed; where some are here, what their headers say is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.compatibility import Fit, lora_match, upsampling
from latent_ladder.checkpoints.scan import Found, Library
from latent_ladder.comfyui.analysis.lint import noticed, stage_facts
from latent_ladder.comfyui.analysis.required_files import WantedFile, wanted_files
from latent_ladder.comfyui.analysis.shape_inference import (
    Clip,
    Forecast,
    Frames,
    Look,
    Sound,
    forecast,
)
from latent_ladder.comfyui.analysis.shape_inference import spoken_size as size_text
from latent_ladder.comfyui.analysis.shape_rules import RULES
from latent_ladder.comfyui.analysis.validate import Problem, problems
from latent_ladder.comfyui.constant_folding import needed, outputs, way_round
from latent_ladder.comfyui.formats.read import Workflow
from latent_ladder.comfyui.graph import Graph, Link, Node, Trap
from latent_ladder.comfyui.node_defs import node_type

SLACK_S = 0.05
"""A difference between sound and picture that nobody hears."""


_MOST_HINTS = 50


@dataclass(frozen=True)
class Unsupported:
    """A node that cannot run here; ``hint`` is what to do about it."""

    node: str
    class_type: str
    title: str
    pack: str
    why: str
    needed: bool
    hint: str = ""


@dataclass(frozen=True)
class Result:
    """What one output node will write, as far as it can be told."""

    node: str
    class_type: str
    title: str
    file: str = ""
    size: tuple[int, int] | None = None
    frames: int | None = None
    fps: float | None = None
    duration_s: float | None = None
    sound_s: float | None = None
    stages: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class LoraUse:
    """How much of a LoRA finds its place in the transformer."""

    node: str
    name: str
    matched: int
    total: int
    conflict: str = ""


@dataclass(frozen=True)
class Report:
    """Everything ``ladder workflow check`` says."""

    source: str
    graph: Graph
    needed: tuple[str, ...]
    types: Mapping[str, int]
    packs: Mapping[str, int]
    results: tuple[Result, ...]
    files: tuple[WantedFile, ...]
    loras: tuple[LoraUse, ...]
    unsupported: tuple[Unsupported, ...]
    problems: tuple[Problem, ...]
    traps: tuple[Trap, ...]

    @property
    def runs(self) -> bool:
        """Whether nothing but files stands in the way."""
        return not self.problems

    @property
    def ready(self) -> bool:
        """Whether it can run now."""
        return self.runs and all(one.usable for one in self.files)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "source": self.source,
            "ready": self.ready,
            "nodes": len(self.graph.nodes),
            "needed": len(self.needed),
            "types": dict(self.types),
            "packs": dict(self.packs),
            "outputs": [_plain(one) for one in self.results],
            "files": [one.as_json() for one in self.files],
            "loras": [_plain(one) for one in self.loras],
            "unsupported": [_plain(one) for one in self.unsupported],
            "problems": [_plain(one) for one in self.problems],
            "traps": [one._asdict() for one in self.traps],
        }


def _plain(one: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(one).items()}


def check(
    workflow: Workflow,
    library: Library,
    inputs: Sequence[Path] = (),
    names: Mapping[str, str] | None = None,
) -> Report:
    """Look at a workflow. ``inputs`` are folders of uploads, ``names`` replaces file names."""
    graph = workflow.graph
    wanted = outputs(graph)
    reached = needed(graph, wanted)
    files = wanted_files(graph, reached, library, inputs, names)
    told = forecast(graph, RULES, _factors(files, library), _pictures(files))
    results = tuple(_result(told, graph.nodes[key]) for key in wanted)
    loras = tuple(_loras(graph, reached, files, library))
    traps = (
        *(trap for trap in told.traps if trap.node in reached),
        *noticed(told, reached),
        *(trap for key in wanted for trap in _lengths(told, key)),
        *_misses(loras),
        *graph.traps,
    )
    return Report(
        source=workflow.source,
        graph=graph,
        needed=reached,
        types=Counter(node.class_type for node in graph.nodes.values()),
        packs=Counter(node.pack or "unknown" for node in graph.nodes.values()),
        results=results,
        files=files,
        loras=loras,
        unsupported=tuple(_unsupported(graph, reached)),
        problems=tuple(problems(graph)),
        traps=tuple(dict.fromkeys(traps)),
    )


# --- nodes that do not run ------------------------------------------------------------------------


def _unsupported(graph: Graph, reached: tuple[str, ...]) -> Iterator[Unsupported]:
    hints = 0
    for node in graph.nodes.values():
        kind = node_type(node.class_type, node.pack)
        if kind.why_not:
            used, hint = node.id in reached, ""
            if used and hints < _MOST_HINTS:
                hints, hint = hints + 1, way_round(graph, node.id)
            elif not used:
                hint = "no output needs it as it is set"
            facts = (node.id, node.class_type, node.title, kind.pack, kind.why_not)
            yield Unsupported(*facts, used, hint)


# --- results --------------------------------------------------------------------------------------

_VIDEOS = frozenset({"SaveVideo", "SaveWEBM"})
_ENDINGS = {
    "SaveWEBM": ".webm",
    "SaveImage": ".png",
    "SaveAnimatedWEBP": ".webp",
    "SaveAudio": ".flac",
    "SaveAudioMP3": ".mp3",
    "SaveAudioOpus": ".opus",
    "SaveLatent": ".latent",
}


def _result(told: Forecast, node: Node) -> Result:
    look = Look(told, node)
    clip, frames, sound = _shown(look)
    latent = frames.latent if frames else None
    fps = clip.fps if clip else look.number("fps")
    return Result(
        node.id,
        node.class_type,
        node.title,
        file=_file(look),
        size=_even(look, frames) if frames else None,
        frames=frames.count if frames else None,
        fps=fps,
        duration_s=_seconds(frames, fps),
        sound_s=sound.seconds if sound else None,
        stages=tuple(stage_facts(told, key) for key in latent.stages) if latent else (),
    )


def _even(look: Look, frames: Frames) -> tuple[int, int]:
    """The size of what is written: the sides of a video are even."""
    step = 2 if look.node.class_type in _VIDEOS else 1
    return frames.width // step * step, frames.height // step * step


def _shown(look: Look) -> tuple[Clip | None, Frames | None, Sound | None]:
    """What an output node is given, of whatever kind."""
    found = [look.get(name) for name in ("video", "images", "audio", "samples", "source")]
    value = next((one for one in found if one is not None), None)
    if isinstance(value, Clip):
        return value, value.frames, value.sound
    frames = value if isinstance(value, Frames) else None
    return None, frames, value if isinstance(value, Sound) else None


def _seconds(frames: Frames | None, fps: float | None) -> float | None:
    return round(frames.count / fps, 3) if frames and fps else None


def _file(look: Look) -> str:
    prefix = look.get("filename_prefix")
    if not isinstance(prefix, str):
        return ""
    ending = _ENDINGS.get(look.node.class_type, "")
    if look.node.class_type == "SaveVideo":
        kind, codec = look.get("format"), look.get("format.codec") or look.get("codec")
        auto = "webm" if codec == "av1" else "mp4"
        ending = f".{auto if kind in (None, 'auto') else kind}"
    return f"{prefix.replace(chr(92), '/')}_00001_{ending}"


def _lengths(told: Forecast, key: str) -> Iterator[Trap]:
    """Where a clip is not what was asked for, or its sound is not as long."""
    clip, frames, sound = _shown(Look(told, told.graph.nodes[key]))
    latent = frames.latent if frames else None
    if frames and (frames.width % 2 or frames.height % 2):
        size = _even(Look(told, told.graph.nodes[key]), frames)
        if size != (frames.width, frames.height):
            text = f"{size_text(frames.width, frames.height)} is cut to {size_text(*size)}"
            yield Trap("odd_size", f"{text}: the sides of a video are even", key)
    if frames and latent and (frames.width, frames.height) == (latent.width, latent.height):
        asked = latent.asked
        if (Fraction(latent.width), Fraction(latent.height)) != asked:
            text = f"the clip will be {size_text(latent.width, latent.height)}"
            why = "latents hold whole blocks of 32 pixels at every stage"
            yield Trap("size_truncated", f"{text}, not {size_text(*asked)}: {why}", key)
    seconds = _seconds(frames, clip.fps if clip else None)
    if sound and seconds and abs(sound.seconds - seconds) > SLACK_S:
        code = "sound_longer" if sound.seconds > seconds else "sound_shorter"
        gap = abs(sound.seconds - seconds)
        end = f"its last {gap:.2f} s are" if code == "sound_longer" else f"the last {gap:.2f} s are"
        text = f"sound lasts {sound.seconds:.2f} s, the picture {seconds:.2f} s"
        yield Trap(code, f"{text}: {end} {'cut' if code == 'sound_longer' else 'silent'}", key)


# --- what the files that are here say -------------------------------------------------------------


def _factors(files: Sequence[WantedFile], library: Library) -> Mapping[str, tuple[str, Fraction]]:
    """What the latent upsamplers that are here do."""
    found: dict[str, tuple[str, Fraction]] = {}
    for one in files:
        part = _part(one, library, "latent_upsampler")
        if part is not None:
            found[one.name] = upsampling(part.component)
    return found


def _part(one: WantedFile, library: Library, role: str) -> Found | None:
    return library.files.get(one.path, {}).get(role) if one.path is not None else None


def _pictures(files: Sequence[WantedFile]) -> Mapping[str, tuple[int, int]]:
    """Sizes of the input pictures that are here."""
    found: dict[str, tuple[int, int]] = {}
    for one in files:
        if one.folder == "input" and one.input == "image" and one.path is not None:
            from PIL import Image, UnidentifiedImageError

            try:
                with Image.open(one.path) as image:
                    found[one.name] = image.size
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
                continue  # the run says what is wrong with it
    return found


def _loras(
    graph: Graph, reached: tuple[str, ...], files: Sequence[WantedFile], library: Library
) -> Iterator[LoraUse]:
    """The LoRAs and transformers that are both here, compared by names and shapes."""
    by_name = {one.name: one for one in files}
    for key in reached:
        node = graph.nodes[key]
        name = node.inputs.get("lora_name")
        if not isinstance(name, str) or node.inputs.get("strength_model") == 0:
            continue
        own = by_name.get(name)
        lora = _part(own, library, "lora") if own else None
        transformer = _transformer(graph, node, by_name, library)
        if lora is None or transformer is None:
            continue
        match = lora_match(lora.component, Fit(transformer.component))
        yield LoraUse(key, name, match.matched, match.total, match.conflict or "")


def _transformer(
    graph: Graph,
    node: Node,
    files: Mapping[str, WantedFile],
    library: Library,
) -> Found | None:
    """The transformer that a model link comes from."""
    for _ in range(len(graph.nodes)):
        link = node.inputs.get("model")
        if not isinstance(link, Link):
            break
        node = graph.nodes[link.node]
    names = [value for value in node.inputs.values() if isinstance(value, str)]
    parts = (_part(files[name], library, "transformer") for name in names if name in files)
    return next((part for part in parts if part is not None), None)


def _misses(loras: Sequence[LoraUse]) -> Iterator[Trap]:
    for one in loras:
        if one.conflict:
            yield Trap("lora_conflict", f"{one.name} does not fit: {one.conflict}", one.node)
        elif one.matched < one.total:
            text = f"{one.matched} of {one.total} modules of {one.name} are in the transformer"
            yield Trap("lora_misses", text, one.node)

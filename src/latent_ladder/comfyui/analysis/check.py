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
from latent_ladder.comfyui.analysis.lint import describe_stage, lint_nodes
from latent_ladder.comfyui.analysis.required_files import RequiredFile, find_required_files
from latent_ladder.comfyui.analysis.shape_inference import (
    AudioLength,
    ClipShape,
    FramesShape,
    InferredShapes,
    ShapeContext,
    infer_shapes,
)
from latent_ladder.comfyui.analysis.shape_inference import format_size as size_text
from latent_ladder.comfyui.analysis.shape_rules import RULES
from latent_ladder.comfyui.analysis.validate import Problem, find_problems
from latent_ladder.comfyui.constant_folding import output_nodes, required_nodes, suggest_workaround
from latent_ladder.comfyui.formats.read import Workflow
from latent_ladder.comfyui.graph import Graph, Link, LintFinding, Node
from latent_ladder.comfyui.node_defs import node_type

AUDIO_TOLERANCE_S = 0.05
"""A difference between sound and picture that nobody hears."""


_MAX_HINTS = 50


@dataclass(frozen=True)
class UnsupportedNode:
    """A node that cannot run here; ``hint`` is what to do about it."""

    node: str
    class_type: str
    title: str
    pack: str
    why: str
    needed: bool
    hint: str = ""


@dataclass(frozen=True)
class OutputSummary:
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
class LoraCoverage:
    """How much of a LoRA finds its place in the transformer."""

    node: str
    name: str
    matched: int
    total: int
    conflict: str = ""


@dataclass(frozen=True)
class WorkflowReport:
    """Everything ``ladder workflow check`` says."""

    source: str
    graph: Graph
    needed: tuple[str, ...]
    types: Mapping[str, int]
    packs: Mapping[str, int]
    outputs: tuple[OutputSummary, ...]
    files: tuple[RequiredFile, ...]
    loras: tuple[LoraCoverage, ...]
    unsupported: tuple[UnsupportedNode, ...]
    problems: tuple[Problem, ...]
    findings: tuple[LintFinding, ...]

    @property
    def can_run(self) -> bool:
        """Whether nothing but files stands in the way."""
        return not self.problems

    @property
    def ready(self) -> bool:
        """Whether it can run now."""
        return self.can_run and all(one.usable for one in self.files)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "source": self.source,
            "ready": self.ready,
            "nodes": len(self.graph.nodes),
            "needed": len(self.needed),
            "types": dict(self.types),
            "packs": dict(self.packs),
            "outputs": [_to_json_fields(one) for one in self.outputs],
            "files": [one.to_dict() for one in self.files],
            "loras": [_to_json_fields(one) for one in self.loras],
            "unsupported": [_to_json_fields(one) for one in self.unsupported],
            "problems": [_to_json_fields(one) for one in self.problems],
            "traps": [one._asdict() for one in self.findings],
        }


def _to_json_fields(one: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(one).items()}


def check_workflow(
    workflow: Workflow,
    library: Library,
    inputs: Sequence[Path] = (),
    names: Mapping[str, str] | None = None,
) -> WorkflowReport:
    """Look at a workflow. ``inputs`` are folders of uploads, ``names`` replaces file names."""
    graph = workflow.graph
    wanted = output_nodes(graph)
    reached = required_nodes(graph, wanted)
    files = find_required_files(graph, reached, library, inputs, names)
    shapes = infer_shapes(graph, RULES, _upsampler_factors(files, library), _image_sizes(files))
    results = tuple(_summarize_output(shapes, graph.nodes[key]) for key in wanted)
    loras = tuple(_compare_loras(graph, reached, files, library))
    traps = (
        *(trap for trap in shapes.findings if trap.node in reached),
        *lint_nodes(shapes, reached),
        *(trap for key in wanted for trap in _lint_output(shapes, key)),
        *_lint_loras(loras),
        *graph.findings,
    )
    return WorkflowReport(
        source=workflow.source,
        graph=graph,
        needed=reached,
        types=Counter(node.class_type for node in graph.nodes.values()),
        packs=Counter(node.pack or "unknown" for node in graph.nodes.values()),
        outputs=results,
        files=files,
        loras=loras,
        unsupported=tuple(_find_unsupported(graph, reached)),
        problems=tuple(find_problems(graph)),
        findings=tuple(dict.fromkeys(traps)),
    )


# --- nodes that do not run ------------------------------------------------------------------------


def _find_unsupported(graph: Graph, reached: tuple[str, ...]) -> Iterator[UnsupportedNode]:
    hints = 0
    for node in graph.nodes.values():
        kind = node_type(node.class_type, node.pack)
        if kind.unsupported_reason:
            used, hint = node.id in reached, ""
            if used and hints < _MAX_HINTS:
                hints, hint = hints + 1, suggest_workaround(graph, node.id)
            elif not used:
                hint = "no output needs it as it is set"
            facts = (node.id, node.class_type, node.title, kind.pack, kind.unsupported_reason)
            yield UnsupportedNode(*facts, used, hint)


# --- results --------------------------------------------------------------------------------------

_VIDEO_SAVERS = frozenset({"SaveVideo", "SaveWEBM"})
_SUFFIXES = {
    "SaveWEBM": ".webm",
    "SaveImage": ".png",
    "SaveAnimatedWEBP": ".webp",
    "SaveAudio": ".flac",
    "SaveAudioMP3": ".mp3",
    "SaveAudioOpus": ".opus",
    "SaveLatent": ".latent",
}


def _summarize_output(shapes: InferredShapes, node: Node) -> OutputSummary:
    ctx = ShapeContext(shapes, node)
    clip, frames, sound = _output_value(ctx)
    latent = frames.latent if frames else None
    fps = clip.fps if clip else ctx.number("fps")
    return OutputSummary(
        node.id,
        node.class_type,
        node.title,
        file=_output_file_name(ctx),
        size=_written_size(ctx, frames) if frames else None,
        frames=frames.count if frames else None,
        fps=fps,
        duration_s=_duration(frames, fps),
        sound_s=sound.seconds if sound else None,
        stages=tuple(describe_stage(shapes, key) for key in latent.stages) if latent else (),
    )


def _written_size(ctx: ShapeContext, frames: FramesShape) -> tuple[int, int]:
    """The size of what is written: the sides of a video are even."""
    step = 2 if ctx.node.class_type in _VIDEO_SAVERS else 1
    return frames.width // step * step, frames.height // step * step


def _output_value(
    ctx: ShapeContext,
) -> tuple[ClipShape | None, FramesShape | None, AudioLength | None]:
    """What an output node is given, of whatever kind."""
    found = [ctx.get(name) for name in ("video", "images", "audio", "samples", "source")]
    value = next((one for one in found if one is not None), None)
    if isinstance(value, ClipShape):
        return value, value.frames, value.audio
    frames = value if isinstance(value, FramesShape) else None
    return None, frames, value if isinstance(value, AudioLength) else None


def _duration(frames: FramesShape | None, fps: float | None) -> float | None:
    return round(frames.count / fps, 3) if frames and fps else None


def _output_file_name(ctx: ShapeContext) -> str:
    prefix = ctx.get("filename_prefix")
    if not isinstance(prefix, str):
        return ""
    ending = _SUFFIXES.get(ctx.node.class_type, "")
    if ctx.node.class_type == "SaveVideo":
        kind, codec = ctx.get("format"), ctx.get("format.codec") or ctx.get("codec")
        auto = "webm" if codec == "av1" else "mp4"
        ending = f".{auto if kind in (None, 'auto') else kind}"
    return f"{prefix.replace(chr(92), '/')}_00001_{ending}"


def _lint_output(shapes: InferredShapes, key: str) -> Iterator[LintFinding]:
    """Where a clip is not what was asked for, or its sound is not as long."""
    clip, frames, sound = _output_value(ShapeContext(shapes, shapes.graph.nodes[key]))
    latent = frames.latent if frames else None
    if frames and (frames.width % 2 or frames.height % 2):
        size = _written_size(ShapeContext(shapes, shapes.graph.nodes[key]), frames)
        if size != (frames.width, frames.height):
            text = f"{size_text(frames.width, frames.height)} is cut to {size_text(*size)}"
            yield LintFinding("odd_size", f"{text}: the sides of a video are even", key)
    if frames and latent and (frames.width, frames.height) == (latent.width, latent.height):
        asked = latent.requested_size
        if (Fraction(latent.width), Fraction(latent.height)) != asked:
            text = f"the clip will be {size_text(latent.width, latent.height)}"
            why = "latents hold whole blocks of 32 pixels at every stage"
            yield LintFinding("size_truncated", f"{text}, not {size_text(*asked)}: {why}", key)
    seconds = _duration(frames, clip.fps if clip else None)
    if sound and seconds and abs(sound.seconds - seconds) > AUDIO_TOLERANCE_S:
        code = "sound_longer" if sound.seconds > seconds else "sound_shorter"
        gap = abs(sound.seconds - seconds)
        end = f"its last {gap:.2f} s are" if code == "sound_longer" else f"the last {gap:.2f} s are"
        text = f"sound lasts {sound.seconds:.2f} s, the picture {seconds:.2f} s"
        yield LintFinding(
            code, f"{text}: {end} {'cut' if code == 'sound_longer' else 'silent'}", key
        )


# --- what the files that are here say -------------------------------------------------------------


def _upsampler_factors(
    files: Sequence[RequiredFile], library: Library
) -> Mapping[str, tuple[str, Fraction]]:
    """What the latent upsamplers that are here do."""
    found: dict[str, tuple[str, Fraction]] = {}
    for one in files:
        part = _component_of(one, library, "latent_upsampler")
        if part is not None:
            found[one.name] = upsampling(part.component)
    return found


def _component_of(one: RequiredFile, library: Library, role: str) -> Found | None:
    return library.files.get(one.path, {}).get(role) if one.path is not None else None


def _image_sizes(files: Sequence[RequiredFile]) -> Mapping[str, tuple[int, int]]:
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


def _compare_loras(
    graph: Graph, reached: tuple[str, ...], files: Sequence[RequiredFile], library: Library
) -> Iterator[LoraCoverage]:
    """The LoRAs and transformers that are both here, compared by names and shapes."""
    by_name = {one.name: one for one in files}
    for key in reached:
        node = graph.nodes[key]
        name = node.inputs.get("lora_name")
        if not isinstance(name, str) or node.inputs.get("strength_model") == 0:
            continue
        own = by_name.get(name)
        lora = _component_of(own, library, "lora") if own else None
        transformer = _find_transformer(graph, node, by_name, library)
        if lora is None or transformer is None:
            continue
        match = lora_match(lora.component, Fit(transformer.component))
        yield LoraCoverage(key, name, match.matched, match.total, match.conflict or "")


def _find_transformer(
    graph: Graph,
    node: Node,
    files: Mapping[str, RequiredFile],
    library: Library,
) -> Found | None:
    """The transformer that a model link comes from."""
    for _ in range(len(graph.nodes)):
        link = node.inputs.get("model")
        if not isinstance(link, Link):
            break
        node = graph.nodes[link.node]
    names = [value for value in node.inputs.values() if isinstance(value, str)]
    parts = (_component_of(files[name], library, "transformer") for name in names if name in files)
    return next((part for part in parts if part is not None), None)


def _lint_loras(loras: Sequence[LoraCoverage]) -> Iterator[LintFinding]:
    for one in loras:
        if one.conflict:
            yield LintFinding("lora_conflict", f"{one.name} does not fit: {one.conflict}", one.node)
        elif one.matched < one.total:
            text = f"{one.matched} of {one.total} modules of {one.name} are in the transformer"
            yield LintFinding("lora_misses", text, one.node)

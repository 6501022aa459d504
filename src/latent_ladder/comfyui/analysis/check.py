"""Static check of a workflow: its outputs, required files, unsupported nodes, problems and lint.

It needs neither torch nor weights; the headers of model files that are present are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.compatibility import (
    TransformerRequirements,
    detect_upsampling,
    match_lora,
)
from latent_ladder.checkpoints.scan import FoundComponent, Library
from latent_ladder.comfyui.analysis.lint import describe_stage, lint_nodes
from latent_ladder.comfyui.analysis.required_files import RequiredFile, find_required_files
from latent_ladder.comfyui.analysis.shape_inference import (
    AudioLength,
    ClipShape,
    FramesShape,
    InferredShapes,
    ShapeContext,
    format_size,
    infer_shapes,
)
from latent_ladder.comfyui.analysis.shape_rules import RULES
from latent_ladder.comfyui.analysis.validate import Problem, find_problems
from latent_ladder.comfyui.constant_folding import output_nodes, required_nodes, suggest_workaround
from latent_ladder.comfyui.formats.read import Workflow
from latent_ladder.comfyui.graph import Graph, Link, LintFinding, Node
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.errors import MediaError

AUDIO_TOLERANCE_S = 0.05
"""A difference between the lengths of audio and video that is inaudible."""

_MAX_HINTS = 50


@dataclass(frozen=True)
class UnsupportedNode:
    """A node that cannot run here.

    ``needed``: an output depends on it. ``hint`` says how to run the workflow without it.
    """

    node: str
    class_type: str
    title: str
    pack: str
    why: str
    needed: bool
    hint: str = ""


@dataclass(frozen=True)
class OutputSummary:
    """The result of one output node, as far as it is known before the workflow runs."""

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
    """The number of modules of a LoRA that match the transformer."""

    node: str
    name: str
    matched: int
    total: int
    conflict: str = ""


@dataclass(frozen=True)
class WorkflowReport:
    """The report of ``ladder workflow check``.

    ``required`` are the nodes that an output depends on; ``types`` and ``packs`` count all nodes.
    """

    source: str
    graph: Graph
    required: tuple[str, ...]
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
        """True if the workflow can run once all files are present."""
        return not self.problems

    @property
    def ready(self) -> bool:
        """True if the workflow can run now."""
        return self.can_run and all(file.usable for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data for ``--json``."""
        return {
            "source": self.source,
            "ready": self.ready,
            "nodes": len(self.graph.nodes),
            "needed": len(self.required),
            "types": dict(self.types),
            "packs": dict(self.packs),
            "outputs": [_to_json_fields(output) for output in self.outputs],
            "files": [file.to_dict() for file in self.files],
            "loras": [_to_json_fields(lora) for lora in self.loras],
            "unsupported": [_to_json_fields(node) for node in self.unsupported],
            "problems": [_to_json_fields(problem) for problem in self.problems],
            "traps": [finding._asdict() for finding in self.findings],
        }


def _to_json_fields(record: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(record).items()}


def check_workflow(
    workflow: Workflow,
    library: Library,
    inputs: Sequence[Path] = (),
    names: Mapping[str, str] | None = None,
) -> WorkflowReport:
    """Check a workflow without running it.

    ``inputs`` are the folders of uploaded files; ``names`` maps file names in the graph to others.
    Raises :class:`WorkflowError` for a cycle or a link to a missing node.
    """
    graph = workflow.graph
    outputs = output_nodes(graph)
    required = required_nodes(graph, outputs)
    files = find_required_files(graph, required, library, inputs, names)
    shapes = infer_shapes(graph, RULES, _upsampler_factors(files, library), _image_sizes(files))
    loras = tuple(_compare_loras(graph, required, files, library))
    findings = (
        *(finding for finding in shapes.findings if finding.node in required),
        *lint_nodes(shapes, required),
        *(finding for key in outputs for finding in _lint_output(shapes, key)),
        *_lint_loras(loras),
        *graph.findings,
    )
    return WorkflowReport(
        source=workflow.source,
        graph=graph,
        required=required,
        types=Counter(node.class_type for node in graph.nodes.values()),
        packs=Counter(node.pack or "unknown" for node in graph.nodes.values()),
        outputs=tuple(_summarize_output(shapes, graph.nodes[key]) for key in outputs),
        files=files,
        loras=loras,
        unsupported=tuple(_find_unsupported(graph, required)),
        problems=tuple(find_problems(graph)),
        findings=tuple(dict.fromkeys(findings)),
    )


# --- unsupported nodes ----------------------------------------------------------------------------


def _find_unsupported(graph: Graph, required: tuple[str, ...]) -> Iterator[UnsupportedNode]:
    hints = 0
    for node in graph.nodes.values():
        definition = node_type(node.class_type, node.pack)
        if definition.unsupported_reason:
            used, hint = node.id in required, ""
            if used and hints < _MAX_HINTS:
                hints, hint = hints + 1, suggest_workaround(graph, node.id)
            elif not used:
                hint = "no output needs it with these settings"
            yield UnsupportedNode(
                node.id,
                node.class_type,
                node.title,
                definition.pack,
                definition.unsupported_reason,
                used,
                hint,
            )


# --- outputs --------------------------------------------------------------------------------------

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
    """Return the size of the written file: the sides of a video are even."""
    step = 2 if ctx.node.class_type in _VIDEO_SAVERS else 1
    return frames.width // step * step, frames.height // step * step


def _output_value(
    ctx: ShapeContext,
) -> tuple[ClipShape | None, FramesShape | None, AudioLength | None]:
    """Return the video, frames and audio that an output node receives."""
    candidates = [ctx.get(name) for name in ("video", "images", "audio", "samples", "source")]
    value = next((candidate for candidate in candidates if candidate is not None), None)
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
    suffix = _SUFFIXES.get(ctx.node.class_type, "")
    if ctx.node.class_type == "SaveVideo":
        container = ctx.get("format")
        suffix = f".{'mp4' if container in (None, 'auto') else container}"
    return f"{prefix.replace(chr(92), '/')}_00001_{suffix}"


def _lint_output(shapes: InferredShapes, key: str) -> Iterator[LintFinding]:
    """Find differences between the requested and the written size, and between video and audio."""
    clip, frames, sound = _output_value(ShapeContext(shapes, shapes.graph.nodes[key]))
    latent = frames.latent if frames else None
    if frames and (frames.width % 2 or frames.height % 2):
        size = _written_size(ShapeContext(shapes, shapes.graph.nodes[key]), frames)
        if size != (frames.width, frames.height):
            text = f"{format_size(frames.width, frames.height)} is cropped to {format_size(*size)}"
            yield LintFinding("odd_size", f"{text}: the sides of a video must be even", key)
    if frames and latent and (frames.width, frames.height) == (latent.width, latent.height):
        requested = latent.requested_size
        if (Fraction(latent.width), Fraction(latent.height)) != requested:
            text = f"the clip will be {format_size(latent.width, latent.height)}"
            text = f"{text}, not {format_size(*requested)}"
            why = "at every stage the sides of a latent are multiples of 32 pixels"
            yield LintFinding("size_truncated", f"{text}: {why}", key)
    seconds = _duration(frames, clip.fps if clip else None)
    if sound and seconds and abs(sound.seconds - seconds) > AUDIO_TOLERANCE_S:
        code = "sound_longer" if sound.seconds > seconds else "sound_shorter"
        gap = abs(sound.seconds - seconds)
        effect = "of audio are cut" if code == "sound_longer" else "of the video are silent"
        text = f"the audio lasts {sound.seconds:.2f} s, the video {seconds:.2f} s"
        yield LintFinding(code, f"{text}: the last {gap:.2f} s {effect}", key)


# --- facts from the files that are present --------------------------------------------------------


def _upsampler_factors(
    files: Sequence[RequiredFile], library: Library
) -> Mapping[str, tuple[str, Fraction]]:
    """Return the axis and factor of each latent upsampler that is present, by file name."""
    factors: dict[str, tuple[str, Fraction]] = {}
    for file in files:
        part = _component_of(file, library, "latent_upsampler")
        if part is not None:
            factors[file.name] = detect_upsampling(part.component)
    return factors


def _component_of(file: RequiredFile, library: Library, role: str) -> FoundComponent | None:
    return library.files.get(file.path, {}).get(role) if file.path is not None else None


def _image_sizes(files: Sequence[RequiredFile]) -> Mapping[str, tuple[int, int]]:
    """Return (width, height) of each input image that is present, by name."""
    sizes: dict[str, tuple[int, int]] = {}
    for file in files:
        if file.folder == "input" and file.input == "image" and file.path is not None:
            from latent_ladder.media.image_files import open_image

            try:
                with open_image(file.path, decode=False) as image:
                    sizes[file.name] = image.size
            except MediaError:
                continue  # running the workflow reports what is wrong with it
    return sizes


def _compare_loras(
    graph: Graph, required: tuple[str, ...], files: Sequence[RequiredFile], library: Library
) -> Iterator[LoraCoverage]:
    """Compare each LoRA with its transformer by names and shapes, if both files are present."""
    by_name = {file.name: file for file in files}
    for key in required:
        node = graph.nodes[key]
        name = node.inputs.get("lora_name")
        if not isinstance(name, str) or node.inputs.get("strength_model") == 0:
            continue
        file = by_name.get(name)
        lora = _component_of(file, library, "lora") if file else None
        transformer = _find_transformer(graph, node, by_name, library)
        if lora is None or transformer is None:
            continue
        match = match_lora(lora.component, TransformerRequirements(transformer.component))
        yield LoraCoverage(key, name, match.matched, match.total, match.conflict or "")


def _find_transformer(
    graph: Graph,
    node: Node,
    files: Mapping[str, RequiredFile],
    library: Library,
) -> FoundComponent | None:
    """Return the transformer that the model input of a node comes from."""
    for _ in range(len(graph.nodes)):
        link = node.inputs.get("model")
        if not isinstance(link, Link):
            break
        node = graph.nodes[link.node]
    names = [value for value in node.inputs.values() if isinstance(value, str)]
    parts = (_component_of(files[name], library, "transformer") for name in names if name in files)
    return next((part for part in parts if part is not None), None)


def _lint_loras(loras: Sequence[LoraCoverage]) -> Iterator[LintFinding]:
    for lora in loras:
        if lora.conflict:
            text = f"{lora.name} does not fit: {lora.conflict}"
            yield LintFinding("lora_conflict", text, lora.node)
        elif lora.matched < lora.total:
            text = f"{lora.matched} of {lora.total} modules of {lora.name} are in the transformer"
            yield LintFinding("lora_misses", text, lora.node)

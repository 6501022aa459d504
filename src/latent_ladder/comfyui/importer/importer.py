"""A ComfyUI graph as a request, where it is one of the shapes that requests have.

The graph is read by what its nodes say, from the node that saves the clip backwards. What a request
cannot say is listed, node by node; a node that changes what the clip *is* ends it with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from latent_ladder.checkpoints.catalog import Upsampling
from latent_ladder.comfyui.constant_folding import required_nodes
from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.importer.graph_walker import GraphWalker, Loss, unsupported_node
from latent_ladder.comfyui.importer.inputs import (
    audio_fields,
    image_fields,
    reference_fields,
    video_fields,
)
from latent_ladder.comfyui.importer.models import (
    model_fields,
    upsampling_from_name,
    with_distilled_role,
)
from latent_ladder.comfyui.importer.output import (
    SavedOutput,
    decode_fields,
    find_output,
    read_output,
    read_output_size,
)
from latent_ladder.comfyui.importer.sampling import resolve_sigmas, sigma_fields
from latent_ladder.comfyui.importer.stages import (
    SampledStage,
    StageChain,
    UpsampledStage,
    find_prompt,
    find_stages,
)
from latent_ladder.errors import RequestError, WorkflowError
from latent_ladder.latents import shapes
from latent_ladder.request.model import Request
from latent_ladder.sampling.schedules import DISTILLED_STAGE_1, manual_sigmas

DEFAULT_FPS = 25.0
"""The rate that the model assumes when nothing conditions it."""


@dataclass(frozen=True)
class ImportedGraph:
    """A graph's request, the node that saves its clip, and what could not be carried."""

    request: Request
    output: str
    losses: tuple[Loss, ...]


def import_graph(graph: Graph, output: str | None = None) -> ImportedGraph:
    """The request that makes what the graph makes.

    ``output`` is the saving node (id, title or file prefix), needed where there are several. Raises
    :class:`WorkflowError` naming the first node that does not fit, :class:`RequestError` for
    values that no request takes.
    """
    saver = find_output(graph, output)
    upstream = required_nodes(graph, [saver.id])  # refuses cycles and links to nowhere
    walker = GraphWalker(graph)
    fields = _GraphImporter(walker, saver).fields()
    for node in upstream:
        if node not in walker.visited:
            walker.report_loss(
                graph.nodes[node], "was not looked at: no field of a request stands for it"
            )
    return ImportedGraph(Request.from_dict(fields), saver.id, tuple(walker.losses))


class _GraphImporter:
    """One graph on its way into the fields of a request."""

    def __init__(self, walker: GraphWalker, saver: Node) -> None:
        self._walker = walker
        self._saved: SavedOutput = read_output(walker, saver)
        self._chain: StageChain = find_stages(walker, self._saved.latents)
        self._factors = [
            self._factor(s) for s in self._chain.stages if isinstance(s, UpsampledStage)
        ]
        if not self._chain.sampled:
            raise unsupported_node(self._saved.latents[0], "samples nothing")

    def fields(self) -> dict[str, Any]:
        chain, walker = self._chain, self._walker
        resolutions = self._resolutions()
        last = resolutions[-1]
        size = read_output_size(walker, self._saved.pixels, (last.width, last.height))
        fields: dict[str, Any] = {
            **self._prompts(),
            "seed": chain.sampled[0].sampling.seed,
            "width": size.width,
            "height": size.height,
            "fps": shapes.format_fps(last.fps),
            "frames": last.frames,
            "models": model_fields(walker, chain, self._saved),
            "decode": decode_fields(walker, self._saved.decoder, last.frames),
            "output": self._saved.output,
            **audio_fields(walker, chain, self._saved, last),
            "images": image_fields(walker, chain, last.frames, resolutions),
        }
        fields["stages"] = self._stages(resolutions, fields)
        if size.upscale is not None:
            fields["stages"].append(size.upscale)
        if size.width % 2 or size.height % 2:
            text = f"the clip has odd sides, {size.width}x{size.height}"
            raise unsupported_node(self._saved.decoder, text)
        return fields

    # -- prompts and models -------------------------------------------------------------------

    def _prompts(self) -> dict[str, Any]:
        walker, found = self._walker, []
        for stage in self._chain.sampled:
            positive = find_prompt(walker, stage.sampling.positive)
            negative = None
            if stage.sampling.negative is not None:
                negative = find_prompt(walker, stage.sampling.negative)
            found.append((positive.text, "" if negative is None else negative.text))
            if found[-1] != found[0]:
                walker.report_loss(stage.sampling.node, "has prompts of its own; a request has one")
        text, negative_text = found[0]
        if not text.strip():
            raise WorkflowError("the workflow's prompt is empty", "write one and save it again")
        return {"prompt": text, "negative_prompt": negative_text}

    # -- sizes --------------------------------------------------------------------------------

    def _factor(self, stage: UpsampledStage) -> Upsampling:
        found = upsampling_from_name(stage.file)
        if found is None:
            text = f"{stage.file} does not say its factor in its name: taken for x2 in space"
            self._walker.report_loss(stage.node, text)
            return "spatial", Fraction(2)
        return found

    def _resolutions(self) -> list[shapes.Resolution]:
        """The canvas after each stage; the graph's own truncations told."""
        width, height, length, node = self._canvas()
        cut = tuple(
            side // shapes.PIXELS_PER_LATENT * shapes.PIXELS_PER_LATENT for side in (width, height)
        )
        if cut != (width, height):
            text = f"asks for {width}x{height}, and the model works on {cut[0]}x{cut[1]}"
            self._walker.report_loss(node, text)
        frames = (length - 1) // shapes.FRAMES_PER_LATENT * shapes.FRAMES_PER_LATENT + 1
        if frames != length:
            self._walker.report_loss(node, f"asks for {length} frames, and the clip has {frames}")
        rate = self._fps(self._chain.sampled[0])
        resolutions: list[shapes.Resolution] = []
        w, h, factors = cut[0], cut[1], iter(self._factors)
        for stage in self._chain.stages:
            if isinstance(stage, UpsampledStage):
                axis, factor = next(factors)
                if axis == "temporal":
                    frames, rate = (frames - 1) * int(factor) + 1, rate * factor
                else:
                    w, h = (int(side // 32 * factor) * 32 for side in (w, h))
            elif self._fps(stage) != rate:
                text = f"is conditioned on {float(self._fps(stage)):g} fps, stage 1 on another rate"
                self._walker.report_loss(stage.sampling.node, text)
            resolutions.append(
                shapes.Resolution(w, h, frames, rate, shapes.audio_latents(frames, rate))
            )
        saved = self._saved.fps
        if saved is not None and shapes.parse_fps(saved) != rate:
            text = f"saves {saved:g} fps of a clip that was made for {float(rate):g}"
            self._walker.report_loss(self._saved.decoder, text)
        return resolutions

    def _canvas(self) -> tuple[int, int, int, Node]:
        """Width, height, frames that the first stage is asked for, and the node that asks."""
        walker, empty = self._walker, self._chain.empty
        if empty is not None:
            width, height, length = (
                walker.integer(empty, name) for name in ("width", "height", "length")
            )
            return width, height, length, empty
        encode = self._chain.video
        if encode is None:
            raise TypeError("a climb ends at an empty latent or at a video")
        scale, _ = walker.required_source(encode, "pixels")
        if scale.class_type != "ImageScale":
            raise unsupported_node(scale, "scales the video in another way than ImageScale")
        cut, _ = walker.required_source(scale, "image")
        if cut.class_type != "ImageFromBatch":
            raise unsupported_node(cut, "gives as many frames as the file has")
        size = walker.integer(scale, "width"), walker.integer(scale, "height")
        return *size, walker.integer(cut, "length"), cut

    def _fps(self, stage: SampledStage) -> Fraction:
        found = find_prompt(self._walker, stage.sampling.positive).fps
        return shapes.parse_fps(DEFAULT_FPS if found is None else found)

    # -- stages -------------------------------------------------------------------------------

    def _stages(
        self, resolutions: list[shapes.Resolution], fields: dict[str, Any]
    ) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        factors = iter(self._factors)
        lora = fields["models"].get("distilled_lora")
        if self._chain.video is not None:
            fields["video"] = video_fields(self._walker, self._chain)
            if isinstance(self._chain.stages[0], UpsampledStage):
                made.append({"kind": "base", "sigmas": list(DISTILLED_STAGE_1)})
                fields["video"]["denoise"] = 0.0
        if self._chain.reference is not None:
            fields["video"] = reference_fields(self._walker, self._chain.reference)
        for stage, resolution in zip(self._chain.stages, resolutions, strict=True):
            if isinstance(stage, UpsampledStage):
                axis, factor = next(factors)
                made_one: dict[str, Any] = {
                    "kind": "upsample",
                    "axis": axis,
                    "factor": float(factor),
                }
                made.append(made_one | {"adain": stage.adain, "file": stage.file})
                continue
            kind = "refine" if made else "base"
            one = {"kind": kind, **self._sampling(stage, resolution, kind)}
            one["loras"] = [with_distilled_role(one_lora, lora) for one_lora in one["loras"]]
            if stage.sampling.seed != fields["seed"]:
                one["seed"] = stage.sampling.seed
            if kind == "base" and self._chain.video is not None:
                one, fields["video"]["denoise"] = _start_from_video(one, resolution.video_tokens)
            made.append(one)
        return made

    def _sampling(
        self, stage: SampledStage, resolution: shapes.Resolution, kind: str
    ) -> dict[str, Any]:
        sampling = stage.sampling
        fields = dict(sampling.fields)
        if sampling.sigmas is not None:
            fields |= sigma_fields(self._walker, sampling.sigmas, resolution.video_tokens)
        if fields.get("denoise", 1.0) == 1.0:
            fields.pop("denoise", None)
        try:
            walk = resolve_sigmas(fields, resolution.video_tokens)
            if not walk or walk[-1] != 0:
                raise unsupported_node(sampling.node, "ends before the picture is finished")
            manual_sigmas(", ".join(map(repr, walk)))
        except RequestError as error:
            raise sampling.node.error(error.message, error.hint) from error
        empty = kind == "base" and self._chain.video is None
        if empty and walk[0] < 1 and "denoise" in fields:
            raise unsupported_node(sampling.node, "noises an empty latent less than fully")
        return fields


def _start_from_video(stage: dict[str, Any], tokens: int) -> tuple[dict[str, Any], float]:
    """A base stage that starts from a video: its sigmas, and the level at which it enters."""
    walk = resolve_sigmas(stage, tokens)
    kept = {k: v for k, v in stage.items() if k not in ("schedule", "denoise")}
    return kept | {"sigmas": walk}, walk[0]

"""Import of a ComfyUI graph as a request.

The graph is read backwards from the node that saves the clip. Settings that a request cannot
express are listed as losses by node; a node that changes the content of the clip in a way that no
request can express is an error.
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
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import DISTILLED_STAGE_1, manual_sigmas

DEFAULT_FPS = 25.0
"""The frame rate that the model assumes without ``LTXVConditioning``."""


@dataclass(frozen=True)
class ImportedGraph:
    """The request of a graph, the id of the node that saves its clip, and the losses."""

    request: Request
    output: str
    losses: tuple[Loss, ...]


def import_graph(graph: Graph, output: str | None = None) -> ImportedGraph:
    """Return the request that makes the same clip as a graph.

    ``output`` is the saving node (id, title or file prefix), needed if there are several. Raises
    :class:`WorkflowError` for the first node that no request can express, and
    :class:`RequestError` for values that are invalid in a request.
    """
    saver = find_output(graph, output)
    upstream = required_nodes(graph, [saver.id])  # raises for cycles and broken links
    walker = GraphWalker(graph)
    fields = _GraphImporter(walker, saver).fields()
    for node in upstream:
        if node not in walker.visited:
            walker.report_loss(
                graph.nodes[node], "is ignored: no field of a request corresponds to it"
            )
    return ImportedGraph(Request.from_dict(fields), saver.id, tuple(walker.losses))


class _GraphImporter:
    """Converter of one graph to the fields of a request."""

    def __init__(self, walker: GraphWalker, saver: Node) -> None:
        self._walker = walker
        self._saved: SavedOutput = read_output(walker, saver)
        self._chain: StageChain = find_stages(walker, self._saved.latents)
        self._upsamplings = [
            self._find_upsampling(s) for s in self._chain.stages if isinstance(s, UpsampledStage)
        ]
        if not self._chain.sampled_stages:
            raise unsupported_node(self._saved.latents[0], "is not the output of a sampling node")

    def fields(self) -> dict[str, Any]:
        chain, walker = self._chain, self._walker
        resolutions = self._compute_resolutions()
        last = resolutions[-1]
        size = read_output_size(walker, self._saved.pixels, (last.width, last.height))
        fields: dict[str, Any] = {
            **self._read_prompts(),
            "seed": chain.sampled_stages[0].sampling.seed,
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
        fields["stages"] = self._read_stages(resolutions, fields)
        if size.upscale is not None:
            fields["stages"].append(size.upscale)
        if size.width % 2 or size.height % 2:
            text = f"the clip has odd sides, {size.width}x{size.height}"
            raise unsupported_node(self._saved.decoder, text)
        return fields

    # -- prompts and models -------------------------------------------------------------------

    def _read_prompts(self) -> dict[str, Any]:
        walker, prompts = self._walker, []
        for stage in self._chain.sampled_stages:
            positive = find_prompt(walker, stage.sampling.positive)
            negative = None
            if stage.sampling.negative is not None:
                negative = find_prompt(walker, stage.sampling.negative)
            text = "" if negative is None else negative.text
            prompts.append((positive.text, self._with_nag_prompt(stage, text)))
            if prompts[-1] != prompts[0]:
                walker.report_loss(stage.sampling.node, "has its own prompts; a request has one")
        text, negative_text = prompts[0]
        if not text.strip():
            raise WorkflowError("the workflow's prompt is empty", "write one and save it again")
        return {"prompt": text, "negative_prompt": negative_text}

    def _with_nag_prompt(self, stage: SampledStage, negative: str) -> str:
        """The negative prompt of a stage: that of NAG where the guider does not use its own."""
        walker, sampling = self._walker, stage.sampling
        texts = [find_prompt(walker, source).text for source in sampling.model.nag_prompts]
        if not texts:
            return negative
        guidance = sampling.fields["guidance"].values()
        uses_own = SAMPLER_FACTS[sampling.fields["sampler"]].needs_uncond or any(
            terms.get("cfg", 1.0) != 1 for terms in guidance
        )
        chosen = negative if uses_own else texts[0]
        if any(text != chosen for text in texts):
            text = "has several negative prompts, its guider's and those of NAG; a request has one"
            walker.report_loss(sampling.node, text)
        return chosen

    # -- sizes --------------------------------------------------------------------------------

    def _find_upsampling(self, stage: UpsampledStage) -> Upsampling:
        upsampling = upsampling_from_name(stage.file)
        if upsampling is None:
            text = f"the file name {stage.file} contains no factor: imported as spatial x2"
            self._walker.report_loss(stage.node, text)
            return "spatial", Fraction(2)
        return upsampling

    def _compute_resolutions(self) -> list[shapes.Resolution]:
        """Return the resolution after each stage; truncations are recorded as losses."""
        width, height, length, node = self._find_canvas()
        truncated = tuple(
            side // shapes.PIXELS_PER_LATENT * shapes.PIXELS_PER_LATENT for side in (width, height)
        )
        if truncated != (width, height):
            text = (
                f"requests {width}x{height}, but the model works on {truncated[0]}x{truncated[1]}"
            )
            self._walker.report_loss(node, text)
        frames = (length - 1) // shapes.FRAMES_PER_LATENT * shapes.FRAMES_PER_LATENT + 1
        if frames != length:
            self._walker.report_loss(node, f"requests {length} frames, but the clip has {frames}")
        rate = self._find_fps(self._chain.sampled_stages[0])
        resolutions: list[shapes.Resolution] = []
        w, h, upsamplings = truncated[0], truncated[1], iter(self._upsamplings)
        for stage in self._chain.stages:
            if isinstance(stage, UpsampledStage):
                axis, factor = next(upsamplings)
                if axis == "temporal":
                    frames, rate = (frames - 1) * int(factor) + 1, rate * factor
                else:
                    w, h = (int(side // 32 * factor) * 32 for side in (w, h))
            elif self._find_fps(stage) != rate:
                fps = float(self._find_fps(stage))
                text = f"is conditioned on {fps:g} fps, stage 1 on another rate"
                self._walker.report_loss(stage.sampling.node, text)
            resolutions.append(
                shapes.Resolution(w, h, frames, rate, shapes.audio_latents(frames, rate))
            )
        saved = self._saved.fps
        if saved is not None and shapes.parse_fps(saved) != rate:
            text = f"saves at {saved:g} fps a clip conditioned on {float(rate):g} fps"
            self._walker.report_loss(self._saved.decoder, text)
        return resolutions

    def _find_canvas(self) -> tuple[int, int, int, Node]:
        """Return the requested width, height and frames of the first stage, and their node."""
        walker, empty = self._walker, self._chain.empty
        if empty is not None:
            width, height, length = (
                walker.integer(empty, name) for name in ("width", "height", "length")
            )
            return width, height, length, empty
        encode = self._chain.video
        if encode is None:
            raise TypeError("the first stage has neither an empty latent nor a video")
        scale, _ = walker.required_source(encode, "pixels")
        if scale.class_type != "ImageScale":
            raise unsupported_node(scale, "resizes the video with a node other than ImageScale")
        batch, _ = walker.required_source(scale, "image")
        if batch.class_type != "ImageFromBatch":
            raise unsupported_node(batch, "does not limit the number of frames with ImageFromBatch")
        size = walker.integer(scale, "width"), walker.integer(scale, "height")
        return *size, walker.integer(batch, "length"), batch

    def _find_fps(self, stage: SampledStage) -> Fraction:
        fps = find_prompt(self._walker, stage.sampling.positive).fps
        return shapes.parse_fps(DEFAULT_FPS if fps is None else fps)

    # -- stages -------------------------------------------------------------------------------

    def _read_stages(
        self, resolutions: list[shapes.Resolution], fields: dict[str, Any]
    ) -> list[dict[str, Any]]:
        stages: list[dict[str, Any]] = []
        upsamplings = iter(self._upsamplings)
        distilled = fields["models"].get("distilled_lora")
        if self._chain.video is not None:
            fields["video"] = video_fields(self._walker, self._chain)
            if isinstance(self._chain.stages[0], UpsampledStage):
                stages.append({"kind": "base", "sigmas": list(DISTILLED_STAGE_1)})
                fields["video"]["denoise"] = 0.0
        if self._chain.reference is not None:
            fields["video"] = reference_fields(self._walker, self._chain.reference)
        for stage, resolution in zip(self._chain.stages, resolutions, strict=True):
            if isinstance(stage, UpsampledStage):
                axis, factor = next(upsamplings)
                stages.append(
                    {
                        "kind": "upsample",
                        "axis": axis,
                        "factor": float(factor),
                        "adain": stage.adain,
                        "file": stage.file,
                    }
                )
                continue
            kind = "refine" if stages else "base"
            table = {"kind": kind, **self._read_sampling_fields(stage, resolution, kind)}
            table["loras"] = [with_distilled_role(lora, distilled) for lora in table["loras"]]
            if stage.sampling.seed != fields["seed"]:
                table["seed"] = stage.sampling.seed
            if kind == "base" and self._chain.video is not None:
                tokens = resolution.video_tokens
                table, fields["video"]["denoise"] = _start_from_video(table, tokens)
            stages.append(table)
        return stages

    def _read_sampling_fields(
        self, stage: SampledStage, resolution: shapes.Resolution, kind: str
    ) -> dict[str, Any]:
        sampling = stage.sampling
        fields = dict(sampling.fields)
        if sampling.sigmas is not None:
            fields |= sigma_fields(self._walker, sampling.sigmas, resolution.video_tokens)
        if fields.get("denoise", 1.0) == 1.0:
            fields.pop("denoise", None)
        try:
            sigmas = resolve_sigmas(fields, resolution.video_tokens)
            if not sigmas or sigmas[-1] != 0:
                raise unsupported_node(sampling.node, "ends its sigmas above 0")
            manual_sigmas(", ".join(map(repr, sigmas)))
        except RequestError as error:
            raise sampling.node.error(error.message, error.hint) from error
        empty = kind == "base" and self._chain.video is None
        if empty and sigmas[0] < 1 and "denoise" in fields:
            text = "starts from an empty latent with a denoise below 1"
            raise unsupported_node(sampling.node, text)
        return fields


def _start_from_video(stage: dict[str, Any], tokens: int) -> tuple[dict[str, Any], float]:
    """Return a base stage that starts from a video with fixed sigmas, and the first of them."""
    sigmas = resolve_sigmas(stage, tokens)
    fields = {k: v for k, v in stage.items() if k not in ("schedule", "denoise")}
    return fields | {"sigmas": sigmas}, sigmas[0]

"""A ComfyUI graph as a request, where it is one of the shapes that requests have.

The graph is read by what its nodes say, from the node that saves the clip backwards. What a request
cannot say is listed, node by node; a node that changes what the clip *is* ends it with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from latent_ladder.checkpoints.catalog import Upsampling
from latent_ladder.comfyui.constant_folding import needed
from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.importer.graph_walker import Lost, Trail, does_not_fit
from latent_ladder.comfyui.importer.inputs import (
    image_fields,
    reference_fields,
    sound_fields,
    video_fields,
)
from latent_ladder.comfyui.importer.models import model_fields, upsampling_of, with_role
from latent_ladder.comfyui.importer.output import (
    Shown,
    decode_fields,
    find_output,
    read_output,
    sized,
)
from latent_ladder.comfyui.importer.sampling import sigma_fields, walked
from latent_ladder.comfyui.importer.stages import (
    Climb,
    SampledStage,
    UpsampledStage,
    climb,
    read_prompt,
)
from latent_ladder.errors import RequestError, WorkflowError
from latent_ladder.latents import shapes
from latent_ladder.request.model import Request
from latent_ladder.sampling.schedules import DISTILLED_STAGE_1, manual_sigmas

DEFAULT_FPS = 25.0
"""The rate that the model assumes when nothing conditions it."""


@dataclass(frozen=True)
class Recognised:
    """A graph's request, the node that saves its clip, and what could not be carried."""

    request: Request
    output: str
    lost: tuple[Lost, ...]


def recognise(graph: Graph, output: str | None = None) -> Recognised:
    """The request that makes what the graph makes.

    ``output`` is the saving node (id, title or file prefix), needed where there are several. Raises
    :class:`WorkflowError` naming the first node that does not fit, :class:`RequestError` for
    values that no request takes.
    """
    saver = find_output(graph, output)
    upstream = needed(graph, [saver.id])  # refuses cycles and links to nowhere
    trail = Trail(graph)
    fields = _Reader(trail, saver).fields()
    for node in upstream:
        if node not in trail.met:
            trail.lose(graph.nodes[node], "was not looked at: no field of a request stands for it")
    return Recognised(Request.from_dict(fields), saver.id, tuple(trail.lost))


class _Reader:
    """One graph on its way into the fields of a request."""

    def __init__(self, trail: Trail, saver: Node) -> None:
        self._trail = trail
        self._shown: Shown = read_output(trail, saver)
        self._climb: Climb = climb(trail, self._shown.latents)
        self._factors = [
            self._factor(s) for s in self._climb.stages if isinstance(s, UpsampledStage)
        ]
        if not self._climb.sampled:
            raise does_not_fit(self._shown.latents[0], "samples nothing")

    def fields(self) -> dict[str, Any]:
        climbed, trail = self._climb, self._trail
        resolutions = self._resolutions()
        last = resolutions[-1]
        size = sized(trail, self._shown.pixels, (last.width, last.height))
        fields: dict[str, Any] = {
            **self._prompts(),
            "seed": climbed.sampled[0].sampling.seed,
            "width": size.width,
            "height": size.height,
            "fps": shapes.format_fps(last.fps),
            "frames": last.frames,
            "models": model_fields(trail, climbed, self._shown),
            "decode": decode_fields(trail, self._shown.decoder, last.frames),
            "output": self._shown.output,
            **sound_fields(trail, climbed, self._shown, last),
            "images": image_fields(trail, climbed, last.frames, resolutions),
        }
        fields["stages"] = self._stages(resolutions, fields)
        if size.upscale is not None:
            fields["stages"].append(size.upscale)
        if size.width % 2 or size.height % 2:
            text = f"the clip has odd sides, {size.width}x{size.height}"
            raise does_not_fit(self._shown.decoder, text)
        return fields

    # -- prompts and models -------------------------------------------------------------------

    def _prompts(self) -> dict[str, Any]:
        trail, found = self._trail, []
        for stage in self._climb.sampled:
            positive = read_prompt(trail, stage.sampling.positive)
            negative = None
            if stage.sampling.negative is not None:
                negative = read_prompt(trail, stage.sampling.negative)
            found.append((positive.text, "" if negative is None else negative.text))
            if found[-1] != found[0]:
                trail.lose(stage.sampling.node, "has prompts of its own; a request has one")
        text, negative_text = found[0]
        if not text.strip():
            raise WorkflowError("the workflow's prompt is empty", "write one and save it again")
        return {"prompt": text, "negative_prompt": negative_text}

    # -- sizes --------------------------------------------------------------------------------

    def _factor(self, stage: UpsampledStage) -> Upsampling:
        found = upsampling_of(stage.file)
        if found is None:
            text = f"{stage.file} does not say its factor in its name: taken for x2 in space"
            self._trail.lose(stage.node, text)
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
            self._trail.lose(node, text)
        frames = (length - 1) // shapes.FRAMES_PER_LATENT * shapes.FRAMES_PER_LATENT + 1
        if frames != length:
            self._trail.lose(node, f"asks for {length} frames, and the clip has {frames}")
        rate = self._fps(self._climb.sampled[0])
        resolutions: list[shapes.Resolution] = []
        w, h, factors = cut[0], cut[1], iter(self._factors)
        for stage in self._climb.stages:
            if isinstance(stage, UpsampledStage):
                axis, factor = next(factors)
                if axis == "temporal":
                    frames, rate = (frames - 1) * int(factor) + 1, rate * factor
                else:
                    w, h = (int(side // 32 * factor) * 32 for side in (w, h))
            elif self._fps(stage) != rate:
                text = f"is conditioned on {float(self._fps(stage)):g} fps, stage 1 on another rate"
                self._trail.lose(stage.sampling.node, text)
            resolutions.append(
                shapes.Resolution(w, h, frames, rate, shapes.audio_latents(frames, rate))
            )
        saved = self._shown.fps
        if saved is not None and shapes.parse_fps(saved) != rate:
            text = f"saves {saved:g} fps of a clip that was made for {float(rate):g}"
            self._trail.lose(self._shown.decoder, text)
        return resolutions

    def _canvas(self) -> tuple[int, int, int, Node]:
        """Width, height, frames that the first stage is asked for, and the node that asks."""
        trail, empty = self._trail, self._climb.empty
        if empty is not None:
            width, height, length = (
                trail.whole(empty, name) for name in ("width", "height", "length")
            )
            return width, height, length, empty
        encode = self._climb.video
        if encode is None:
            raise TypeError("a climb ends at an empty latent or at a video")
        scale, _ = trail.needed(encode, "pixels")
        if scale.class_type != "ImageScale":
            raise does_not_fit(scale, "scales the video in another way than ImageScale")
        cut, _ = trail.needed(scale, "image")
        if cut.class_type != "ImageFromBatch":
            raise does_not_fit(cut, "gives as many frames as the file has")
        size = trail.whole(scale, "width"), trail.whole(scale, "height")
        return *size, trail.whole(cut, "length"), cut

    def _fps(self, stage: SampledStage) -> Fraction:
        found = read_prompt(self._trail, stage.sampling.positive).fps
        return shapes.parse_fps(DEFAULT_FPS if found is None else found)

    # -- stages -------------------------------------------------------------------------------

    def _stages(
        self, resolutions: list[shapes.Resolution], fields: dict[str, Any]
    ) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        factors = iter(self._factors)
        lora = fields["models"].get("distilled_lora")
        if self._climb.video is not None:
            fields["video"] = video_fields(self._trail, self._climb)
            if isinstance(self._climb.stages[0], UpsampledStage):
                made.append({"kind": "base", "sigmas": list(DISTILLED_STAGE_1)})
                fields["video"]["denoise"] = 0.0
        if self._climb.reference is not None:
            fields["video"] = reference_fields(self._trail, self._climb.reference)
        for stage, resolution in zip(self._climb.stages, resolutions, strict=True):
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
            one["loras"] = [with_role(one_lora, lora) for one_lora in one["loras"]]
            if stage.sampling.seed != fields["seed"]:
                one["seed"] = stage.sampling.seed
            if kind == "base" and self._climb.video is not None:
                one, fields["video"]["denoise"] = _from_video(one, resolution.video_tokens)
            made.append(one)
        return made

    def _sampling(
        self, stage: SampledStage, resolution: shapes.Resolution, kind: str
    ) -> dict[str, Any]:
        sampling = stage.sampling
        fields = dict(sampling.fields)
        if sampling.sigmas is not None:
            fields |= sigma_fields(self._trail, sampling.sigmas, resolution.video_tokens)
        if fields.get("denoise", 1.0) == 1.0:
            fields.pop("denoise", None)
        try:
            walk = walked(fields, resolution.video_tokens)
            if not walk or walk[-1] != 0:
                raise does_not_fit(sampling.node, "ends before the picture is finished")
            manual_sigmas(", ".join(map(repr, walk)))
        except RequestError as error:
            raise sampling.node.error(error.message, error.hint) from error
        empty = kind == "base" and self._climb.video is None
        if empty and walk[0] < 1 and "denoise" in fields:
            raise does_not_fit(sampling.node, "noises an empty latent less than fully")
        return fields


def _from_video(stage: dict[str, Any], tokens: int) -> tuple[dict[str, Any], float]:
    """A base stage that starts from a video: its sigmas, and the level at which it enters."""
    walk = walked(stage, tokens)
    kept = {k: v for k, v in stage.items() if k not in ("schedule", "denoise")}
    return kept | {"sigmas": walk}, walk[0]

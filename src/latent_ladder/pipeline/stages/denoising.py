"""Base and refine stages: the sampling loop, window by window, with the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import LadderError
from latent_ladder.latents.shapes import Resolution
from latent_ladder.latents.tokens import audio_to_tokens, tokens_to_video, video_to_tokens
from latent_ladder.memory.planner import OffloadPlan, StageMemory
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.text_encoder.conditioning import Conditioning
from latent_ladder.models.transformer.attention import NagScales
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.streams import Nag
from latent_ladder.models.transformer.tiled_denoiser import TiledDenoiser
from latent_ladder.pipeline.stage_noise import earlier_noise
from latent_ladder.pipeline.stages.stage_job import StageJob, StageResult, Tensors
from latent_ladder.pipeline.start_state import (
    INPUT_KINDS,
    StartState,
    append_guide,
    append_slots,
    apply_inputs,
    base_reference_positions,
    plain_start,
)
from latent_ladder.pipeline.temporal_windows import (
    PartialClip,
    Shapes,
    Streams,
    WindowContext,
    clip_latents,
)
from latent_ladder.request.keyframes_first import generated_frames, is_keyframes_first
from latent_ladder.request.sampling_options import StreamGuidance
from latent_ladder.request.stages import BaseStage, RefineStage, SamplingStage
from latent_ladder.sampling.denoise import (
    LatentState,
    Noises,
    NoiseShapes,
    Packing,
    SamplingPlan,
    sample,
)
from latent_ladder.sampling.guiders import Guidance
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.samplers import SamplerOptions

LATENT_DIMS = 5
"""Video latents are (B, C, F, H, W), text contexts (1, L, D)."""


@dataclass(frozen=True)
class StageInputs:
    """Input artefacts of a sampling stage, sorted by use."""

    latents: Tensors | None
    contexts: tuple[Conditioning, ...]
    input_latents: Tensors
    reference_factor: int = 1
    base: Tensors | None = None
    """Result of the base stage, where it is a reference."""


def denoise(job: StageJob, memory: StageMemory) -> StageResult:
    """Latents ``video`` (1, C, F, H, W) and ``audio`` (1, C, T, M) of a base or refine stage.

    A base stage with generated keyframes has these as ``keyframes`` (1, C, K, H, W), too.
    Warns about LoRA weights that match nothing, and where finished windows are reused.
    """
    return denoise_together([job], memory)[0]


def can_share_forwards(one: StageJob, other: StageJob) -> bool:
    """True if two jobs differ only in prompt and seed, so that a forward can do both.

    A clip in several temporal windows or in tiles is made by itself.
    """
    if len(one.stage.windows) > 1 or _is_tiled(one):
        return False
    if replace(one.stage, key="", inputs=()) != replace(other.stage, key="", inputs=()):
        return False
    if _without_own_fields(one) != _without_own_fields(other):
        return False
    if len(one.inputs) != len(other.inputs):
        return False
    if one.stage.inputs != other.stage.inputs and _has_nag(one):
        return False
    same_inputs = _input_keys(one) == _input_keys(other)
    shapes = [[{n: t.shape for n, t in i.items()} for i in job.inputs] for job in (one, other)]
    return same_inputs and shapes[0] == shapes[1]


def _has_nag(job: StageJob) -> bool:
    requested = job.requested
    if not isinstance(requested, SamplingStage):
        return False
    return requested.guidance.video.has_nag or requested.guidance.audio.has_nag


def _is_tiled(job: StageJob) -> bool:
    return job.plan.request.resolved.stages[job.position].tiles is not None


def _without_own_fields(job: StageJob) -> dict[str, object]:
    return {k: v for k, v in job.plan.request.to_dict().items() if k not in ("prompt", "seed")}


def _input_keys(job: StageJob) -> list[str]:
    """Keys of the inputs that jobs of one forward must have in common: all but the prompt."""
    return [key for key in job.stage.inputs if job.plan.stage(key).name != "prompt"]


def denoise_together(jobs: Sequence[StageJob], memory: StageMemory) -> list[StageResult]:
    """Results of :func:`denoise` for several jobs, which share each forward of the transformer.

    Each has the noise of its own seed. Numbers differ from single runs by rounding, as matrix
    products of other sizes add in another order. Progress is reported to the first job. Every pair
    must be accepted by :func:`can_share_forwards`.
    """
    job = jobs[0]
    stage, requested, runner = job.stage, job.requested, job.runner
    if stage.resolution is None or not isinstance(requested, BaseStage | RefineStage):
        raise TypeError(f"{stage.name} is not a planned sampling stage")
    plan, request = memory.offload_plan, job.plan.request
    inputs = sort_inputs(job)
    contexts = _contexts_of(jobs)
    transformer = runner.transformer_for(job.plan.models.transformer, plan)
    shapes = _latent_shapes(job, transformer, stage.resolution)
    start = plain_start(*_states(shapes, inputs.latents), stage.resolution)
    if is_keyframes_first(request.stages):
        start = _with_keyframes(job, start, stage.resolution, inputs)
    else:
        slots = requested.generated_keyframes if isinstance(requested, BaseStage) else 0
        start = apply_inputs(
            start, inputs.input_latents, request, stage.resolution, slots, inputs.reference_factor
        )
    clip, done = _resume(job, PartialClip.of(start, stage.resolution))
    clips = [clip] * len(jobs)
    keyframes: list[Tensors] = [{}] * len(jobs)
    windows = request.resolved.windows
    strength = 1.0 if windows is None else windows.strength
    with (
        temporary_loras(transformer, list(stage.loras), runner.merges_loras) as report,
        runner.resident_blocks(transformer, plan),
    ):
        for window in stage.windows[done:]:
            context = WindowContext(stage, clips[0], window, job.on_step, job.on_estimate, shapes)
            start = clips[0].window_start(window, strength, runner.device)
            video = LatentState.stack([start.video] * len(jobs))
            audio = None if start.audio is None else LatentState.stack([start.audio] * len(jobs))
            noises = [_noises(j, requested, context, start.extra) for j in jobs]
            tokens = sample(
                make_denoiser(job, transformer, requested, plan, contexts, start),
                video,
                audio,
                Noises.stack(noises),
                plan_sampling(job, requested),
                partial(context.report_step, Packing.of(video, audio)),
            )
            own = [_item(tokens, n) for n in range(len(jobs))]
            clips = [c.with_window(window, t) for c, t in zip(clips, own, strict=True)]
            keyframes = [_read_slots(start, t[0], stage.resolution) for t in own]
            if job.partial_result is not None:
                job.partial_result.save(clips[0], window)
    for match in report.matches:
        if match.unmatched:
            job.warn("lora_misses", str(match))
    facts = {"loras": [str(match) for match in report.matches]}
    return [
        (clip_latents((clip.video, clip.audio), shapes) | slots, dict(facts))
        for clip, slots in zip(clips, keyframes, strict=True)
    ]


def _item(tokens: Streams, number: int) -> Streams:
    """The tokens (1, N, C) of one item of a batch."""
    video, audio = (None if t is None else t[number : number + 1] for t in tokens)
    return video, audio


def _contexts_of(jobs: Sequence[StageJob]) -> tuple[Conditioning, ...]:
    """Contexts of all jobs: their prompts as a batch, unless equal, and the common negative one."""
    first = sort_inputs(jobs[0]).contexts
    if all(job.stage.inputs == jobs[0].stage.inputs for job in jobs):
        return first
    prompts = [sort_inputs(job).contexts[0] for job in jobs]
    stacked = Conditioning(
        torch.cat([p.video for p in prompts]), torch.cat([p.audio for p in prompts])
    )
    return (stacked, *first[1:])


def _read_slots(start: StartState, tokens: Tensor | None, resolution: Resolution) -> Tensors:
    """Generated ``keyframes`` (1, C, K, H, W), each a clip of one latent frame; empty without."""
    if start.slots is None or tokens is None:
        return {}
    height, width = resolution.latent_height, resolution.latent_width
    made = tokens[:, start.slots].cpu()
    return {"keyframes": tokens_to_video(made, made.shape[1] // (height * width), height, width)}


def sort_inputs(job: StageJob) -> StageInputs:
    """The inputs of a sampling stage by their use, texts on the device."""
    input_latents: Tensors = {}
    others: list[Tensors] = []
    factor, base = 1, None
    for key, tensors in zip(job.stage.inputs, job.inputs, strict=True):
        planned = job.plan.stage(key)
        if planned.kind in INPUT_KINDS:
            input_latents |= tensors
            factor = max(factor, *(int(f.options.get("smaller", 1)) for f in planned.files), 1)
        elif planned.position is not None and others:
            base = tensors
        else:
            others.append(tensors)
    latents = others[0] if others[0]["video"].ndim == LATENT_DIMS else None
    texts = others if latents is None else others[1:]
    runtime = job.runner.runtime
    contexts = tuple(
        Conditioning(c["video"], c["audio"]).to(runtime.device, runtime.dtype) for c in texts
    )
    return StageInputs(latents, contexts, input_latents, factor, base)


def _with_keyframes(
    job: StageJob, start: StartState, resolution: Resolution, inputs: StageInputs
) -> StartState:
    """The start of a keyframes-first clip: its generated keyframes, then the base's clip.

    They start from those of the stage before, those of the base stage from zeros.
    """
    before = None if inputs.latents is None else inputs.latents["keyframes"]
    frames = generated_frames(job.requested, resolution)
    start = append_slots(start, frames, resolution, before)
    base = job.plan.stages_of_request[0].resolution
    if inputs.base is not None and base is not None:
        tokens = video_to_tokens(inputs.base["video"]).to(start.video.tokens)
        start = append_guide(start, tokens, base_reference_positions(base, resolution), 1.0)
    return start


def _resume(job: StageJob, clip: PartialClip) -> tuple[PartialClip, int]:
    """The clip with the windows that an earlier run finished, and their number."""
    if job.partial_result is None:
        return clip, 0
    clip, done = job.partial_result.resume(clip)
    if done:
        count = f"{done} of its {len(job.stage.windows)} windows"
        job.warn("resumed", f"{job.stage.name} continues after {count}, finished by an earlier run")
    return clip, done


def _latent_shapes(job: StageJob, transformer: Transformer, resolution: Resolution) -> Shapes:
    config = transformer.config
    video = resolution.video_latent_shape(config.video.in_channels)
    if not job.plan.request.resolved.has_sound:
        return video, None
    channels = _audio_channels(job.plan.models.audio_vae, config.audio.in_channels)
    bins = config.audio.in_channels // channels
    return video, resolution.audio_latent_shape(channels, bins)


def _audio_channels(audio_vae: Component | None, width: int) -> int:
    """Channels of an audio latent: those that the decoder's first convolution reads."""
    if audio_vae is None:
        return width
    return audio_vae.shape("decoder.conv_in.conv.weight")[1]


def _states(shapes: Shapes, latents: Tensors | None) -> tuple[LatentState, LatentState | None]:
    """Both streams of the whole clip, on the CPU; windows of it go to the device."""
    video_shape, audio_shape = shapes
    if latents is None:
        _, c, f, h, w = video_shape
        video = LatentState.empty(f * h * w, c)
        if audio_shape is None:
            return video, None
        _, c, t, m = audio_shape
        return video, LatentState.empty(t, c * m)
    _check_shape(latents["video"], video_shape)
    video = LatentState.of(video_to_tokens(latents["video"].cpu()))
    if audio_shape is None:
        return video, None
    _check_shape(latents["audio"], audio_shape)
    return video, LatentState.of(audio_to_tokens(latents["audio"].cpu()))


def _check_shape(latents: Tensor, shape: Sequence[int]) -> None:
    if tuple(latents.shape) != tuple(shape):
        raise LadderError(
            f"stored latents have shape {list(latents.shape)}, the stage needs {list(shape)}",
            "run `ladder runs verify`, then the same command again",
        )


def _noises(
    job: StageJob, requested: SamplingStage, context: WindowContext, extra_tokens: int
) -> Noises:
    """Window n has the noise of a clip of its size whose seed is n higher."""
    request, window = job.plan.request, context.window.number
    continued = request.noise_order == "ltx"
    return Noises.from_seed(
        request.stage_seed(job.position),
        NoiseShapes(*context.window_shapes(), extra_tokens),
        requested.sampler,
        order=request.noise_order,
        earlier=earlier_noise(job.plan, job.position, window) if continued else (),
        window=window,
    )


def plan_sampling(job: StageJob, requested: SamplingStage) -> SamplingPlan:
    """The sampler of a stage with its sigmas and options."""
    options = SamplerOptions(**requested.options.model_dump(exclude_none=True))
    convention = job.plan.request.mask_convention
    return SamplingPlan(job.stage.sigmas, requested.sampler, options, convention)


def make_denoiser(
    job: StageJob,
    transformer: Transformer,
    requested: SamplingStage,
    offload_plan: OffloadPlan,
    contexts: Sequence[Conditioning],
    start: StartState,
) -> Denoiser | TiledDenoiser:
    """The transformer with prompts, guidance and masks for the tokens of ``start``."""
    positive, negative = contexts[0], contexts[1] if len(contexts) > 1 else None
    device, request = job.runner.device, job.plan.request
    video = DenoiserStream(
        positions=start.positions.to(device),
        positive=positive.video,
        negative=None if negative is None else negative.video,
        mask=start.video_mask,
        guidance=_guidance(requested.guidance.video),
        keyframe_mask=start.keyframe_mask.to(device),
        nag=_nag(requested.guidance.video, None if negative is None else negative.video),
    )
    audio = DenoiserStream(
        positions=start.audio_positions.to(device),
        positive=positive.audio,
        negative=None if negative is None else negative.audio,
        mask=start.audio_mask,
        guidance=_guidance(requested.guidance.audio),
        frozen=start.frozen_audio,
        nag=_nag(requested.guidance.audio, None if negative is None else negative.audio),
    )
    tiles = request.resolved.stages[job.position].tiles
    kind = Denoiser if tiles is None else partial(TiledDenoiser, plan=tiles)
    return kind(
        transformer,
        video,
        audio if start.audio is not None else None,
        force_uncond=SAMPLER_FACTS[requested.sampler].needs_uncond,
        max_passes=offload_plan.rows,
        updated_video=request.model_convention == "comfyui",
    )


def _guidance(requested: StreamGuidance) -> Guidance:
    return Guidance(**requested.terms())


def _nag(requested: StreamGuidance, negative: Tensor | None) -> Nag | None:
    options = requested.nag
    if options is None or not requested.has_nag:
        return None
    if negative is None:
        raise TypeError("NAG without an encoded negative prompt")
    return Nag(negative, NagScales(options.scale, options.tau, options.alpha))

"""One sampling run of a node, with the sampling loop, transformer and noise order of all stages.

It follows ComfyUI in these points: noise is generated for the whole latent, guide frames included;
the input latent is both noised and preserved by the noise mask; if the last sigma is above 0, the
result is divided by 1 - sigma, so that another sampler can continue from it without noise; with an
empty schedule the latent passes through unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from torch import Tensor

from latent_ladder.checkpoints.text_loras import projection_modules
from latent_ladder.comfyui.nodes.model_patches import (
    DenoiserBySigma,
    with_statistics,
    with_voice_guidance,
)
from latent_ladder.comfyui.nodes.node_context import NodeContext
from latent_ladder.comfyui.nodes.sampling_tokens import JobTokens, SamplingJob, drop_last_tokens
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    GuidancePatch,
    Latent,
    Model,
    StreamTerms,
)
from latent_ladder.latents.shapes import (
    PIXELS_PER_LATENT,
    Resolution,
    pixel_frames,
)
from latent_ladder.memory.cost_model import StageCost
from latent_ladder.memory.planner import OffloadPlan
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.text_encoder.conditioning import Conditioning as Context
from latent_ladder.models.text_encoder.tokenizer import text_length
from latent_ladder.models.transformer.attention import NagScales
from latent_ladder.models.transformer.denoiser import Denoiser
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.streams import Nag
from latent_ladder.sampling.denoise import (
    Packing,
    SamplingPlan,
    sample,
)
from latent_ladder.sampling.guiders import Guidance, Pass, passes_needed
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.samplers import Model as Predict


@dataclass(frozen=True)
class DenoisedLatents:
    """The latent at the last sigma, and the last prediction of x0."""

    output: Latent
    prediction: Latent


def denoise(ctx: NodeContext, job: SamplingJob) -> DenoisedLatents:
    """Run a sampling job. Raises :class:`LadderError` for inputs that cannot be sampled."""
    if len(job.sigmas) < 2:
        ctx.warn("no_sigmas", "the schedule is empty: the latent passes through unchanged")
        return DenoisedLatents(job.latent, job.latent)
    _check_latent(ctx, job)
    return _SamplingRun(ctx, job).run()


def _check_latent(ctx: NodeContext, job: SamplingJob) -> None:
    latent, positive = job.latent, job.guider.positive
    for stream in (latent.video, latent.audio):
        if stream is not None and stream.shape[0] != 1:
            raise ctx.error(
                f"the latent is a batch of {stream.shape[0]}, expected 1",
                "set batch_size to 1 and queue the workflow once per clip",
            )
    if latent.video is not None and not job.guider.model.audio_only:
        channels = job.guider.model.transformer.shape("patchify_proj.weight")[1]
        if latent.video.shape[1] != channels:
            raise ctx.error(
                f"the latent has {latent.video.shape[1]} channels, the model needs {channels}",
                "use the VAE that belongs to the checkpoint",
            )
        if positive.guide_frames >= latent.video.shape[2]:
            raise ctx.error(
                f"the latent has {latent.video.shape[2]} frames and the conditioning "
                f"{positive.guide_frames} guide frames",
                "connect the latent of the last guide node, or add LTXVCropGuides before this node",
            )


class _SamplingRun:
    """A sampling job with all values that do not need the transformer."""

    def __init__(self, ctx: NodeContext, job: SamplingJob) -> None:
        self._ctx, self._job = ctx, job
        self._model: Model = job.guider.model
        self._force_uncond = (
            SAMPLER_FACTS[job.sampler.name].needs_uncond or job.guider.always_uncond
        )
        self._video_guidance = _stream_guidance(job.guider.video, self._model)
        self._audio_guidance = _stream_guidance(job.guider.audio, self._model)
        self._tokens = JobTokens(job, ctx.engine.runtime.device)

    def run(self) -> DenoisedLatents:
        contexts = self._encode_prompts()
        self._nag_video, self._nag_audio = self._encode_nag()
        engine, clip = self._ctx.engine, self._job.guider.positive.clip
        sizes = engine.sizes(self._model, text_length(clip.text_encoder))

        def work(transformer: Transformer, offload_plan: OffloadPlan) -> DenoisedLatents:
            loras = list(self._model.loras)
            with (
                temporary_loras(transformer, loras, engine.runner.merges_loras) as report,
                engine.runner.resident_blocks(transformer, offload_plan),
            ):
                for match in report.matches:
                    if match.unmatched:
                        self._ctx.warn("lora_misses", str(match))
                    elif match.scales:
                        self._ctx.warn("lora_scale", str(match))
                return self._sample(transformer, offload_plan, contexts)

        return engine.with_transformer(self._model, self._stage_cost(), sizes, work, self._ctx.warn)

    # -- requirements -------------------------------------------------------------------------

    def _find_passes(self) -> tuple[Pass, ...]:
        """Return the passes that any step runs."""
        job = self._job
        no_video = job.latent.video is None or self._model.audio_only
        streams = (
            None if no_video else self._video_guidance,
            None if job.latent.audio is None else self._audio_guidance,
        )
        pairs = [streams]
        for _, terms in job.guider.terms_by_sigma:
            guidance = _stream_guidance(terms, self._model)
            pairs.append((guidance, guidance))
        needed = {
            one_pass
            for pair in pairs
            for sigma in job.sigmas[:-1]
            for one_pass in passes_needed(*pair, sigma, self._force_uncond)
        }
        return tuple(one_pass for one_pass in Pass if one_pass in needed)

    def _encode_prompts(self) -> list[Context]:
        guider = self._job.guider
        self._warn_of_projection_loras(guider.positive)
        prompts = [guider.positive]
        if Pass.UNCOND in self._find_passes():
            if guider.negative is None:
                raise self._ctx.error(
                    f"{self._job.sampler.name} needs a negative prompt, the guider has none",
                    "use CFGGuider",
                )
            prompts.append(guider.negative)
        return self._ctx.engine.contexts(prompts, self._model)

    def _warn_of_projection_loras(self, positive: Conditioning) -> None:
        """Warn of a LoRA for the text projection that only the model has, as in ComfyUI."""
        used = {lora.id for lora, _ in positive.clip.loras}
        for lora, _ in self._model.loras:
            if lora.id not in used and (names := projection_modules(lora)):
                self._ctx.warn(
                    "lora_misses",
                    f"{lora.file.path.name}: its {len(names)} modules of the text projection are "
                    "not applied: load it with LoraLoader, which also takes CLIP",
                )

    def _encode_nag(self) -> tuple[Nag | None, Nag | None]:
        """NAG of the video and the audio stream.

        As in KJNodes, the negative prompt is not modulated by the noise level.
        """
        patch = self._model.nag
        if patch is None:
            return None, None
        scales = NagScales(patch.scale, patch.tau, patch.alpha, modulated=False)
        prompts = [one for one in (patch.video, patch.audio) if one is not None]
        if not prompts:
            return None, None
        contexts = self._ctx.engine.contexts(prompts, self._model)
        video = None if patch.video is None else Nag(contexts[0].video, scales)
        audio = None if patch.audio is None else Nag(contexts[-1].audio, scales)
        return video, audio

    def _stage_cost(self) -> StageCost:
        job, latent = self._job, self._job.latent
        f, h, w = (1, 1, 1) if latent.video is None else latent.video.shape[2:]
        audio_tokens = 0 if latent.audio is None else latent.audio.shape[2]
        fps = Fraction(job.guider.positive.fps).limit_denominator(1001)
        side = PIXELS_PER_LATENT
        resolution = Resolution(w * side, h * side, pixel_frames(f), fps, audio_tokens)
        passes = len(self._find_passes())
        return StageCost(
            f"node {self._ctx.node.id}",
            "base",
            resolution,
            steps=len(job.sigmas) - 1,
            passes=passes,
            forwards=passes * SAMPLER_FACTS[job.sampler.name].evals(len(job.sigmas) - 1),
            audio_tokens=audio_tokens,
            lora_bytes=sum(lora.nbytes for lora, _ in self._model.loras),
        )

    # -- sampling -----------------------------------------------------------------------------

    def _sample(
        self, transformer: Transformer, offload_plan: OffloadPlan, contexts: Sequence[Context]
    ) -> DenoisedLatents:
        job, tokens = self._job, self._tokens
        video, audio = tokens.initial_states()
        packing = Packing.of(video, audio)
        last_prediction: list[Tensor] = []
        steps = len(job.sigmas) - 1

        def after_step(step: int, _: Tensor, predicted: Tensor) -> None:
            last_prediction[:] = [predicted]
            self._ctx.progress(step + 1, steps)
            if video is not None:
                self._ctx.show_preview(
                    self._model.transformer, partial(tokens.clip_latents, packing, predicted)
                )
            self._ctx.check_cancelled()

        def make_denoiser(video_terms: Guidance, audio_terms: Guidance, *, voice: bool) -> Denoiser:
            stream = None
            if audio is not None:
                stream = tokens.audio_stream(audio, contexts, audio_terms, self._nag_audio)
            if stream is not None and not voice:
                stream = drop_last_tokens(stream, tokens.voice_tokens)
            return Denoiser(
                transformer,
                None
                if video is None
                else tokens.video_stream(video, contexts, video_terms, self._nag_video),
                stream,
                force_uncond=self._force_uncond,
                max_passes=offload_plan.rows,
                updated_video=self._ctx.engine.convention == "comfyui",
            )

        guider = job.guider
        if guider.terms_by_sigma:
            pairs = [(s, _stream_guidance(t, self._model)) for s, t in guider.terms_by_sigma]
            chosen = DenoiserBySigma(
                [(sigma, make_denoiser(g, g, voice=True)) for sigma, g in pairs],
                guider.zero_above_sigma,
            )
        else:
            one = make_denoiser(self._video_guidance, self._audio_guidance, voice=True)
            chosen = DenoiserBySigma([(math.inf, one)])
        model: Predict = chosen
        if self._model.identity is not None and tokens.voice_tokens:
            without = make_denoiser(Guidance(), Guidance(), voice=False)
            model = with_voice_guidance(chosen, without, packing, self._model.identity)
        if self._model.adain is not None and video is not None and tokens.are_all_places:
            shape = _grid_shape(job.latent)
            model = with_statistics(model, packing, self._model.adain, shape)
        plan = SamplingPlan(job.sigmas, job.sampler.name, job.sampler.options, "comfyui")
        sampled = sample(model, video, audio, tokens.make_noise(), plan, after_step)
        output = tokens.to_latent(*sampled)
        scale = 1 - job.sigmas[-1]
        if scale < 1:
            output = replace(
                output,
                video=None if output.video is None else output.video / scale,
                audio=None if output.audio is None else output.audio / scale,
            )
        return DenoisedLatents(output, tokens.to_latent(*packing.unpack(last_prediction[0])))


def _grid_shape(latent: Latent) -> tuple[int, int, int]:
    if latent.video is None:
        raise TypeError("a latent without video")
    f, h, w = latent.video.shape[2:]
    return f, h, w


def _stream_guidance(terms: StreamTerms, model: Model) -> Guidance:
    """Combine the terms of a guider with those that nodes have patched into the model."""
    stg, modality = model.stg, model.modality
    return Guidance(
        cfg=terms.cfg,
        stg=terms.stg if stg is None else stg.scale,
        modality=terms.modality if modality is None else modality.scale,
        rescale=terms.rescale,
        stg_blocks=terms.stg_blocks if stg is None else stg.blocks,
        skip_step=terms.skip_step,
        cfg_star=terms.cfg_star,
        stg_range=_sigma_range(stg),
        modality_range=_sigma_range(modality),
    )


def _sigma_range(patch: GuidancePatch | None) -> tuple[float, float] | None:
    return None if patch is None else (patch.sigma_low, patch.sigma_high)

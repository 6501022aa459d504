"""One run of a sampler in a graph: the same loop, transformer and order of noise as every stage.

Facts of ComfyUI that are kept: noise is drawn for the whole latent, guide frames included; the
latent is both what is noised and what a mask keeps; a schedule that ends above 0 gives its result
divided by 1 - sigma, so that another sampler can go on from it without noise; an empty schedule
gives the latent back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.comfyui.nodes.model_patches import (
    with_statistics,
    with_terms_by_sigma,
    with_voice_guidance,
)
from latent_ladder.comfyui.nodes.node_context import NodeContext
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    Guider,
    Latent,
    Model,
    Noise,
    Patch,
    Sampler,
    StreamTerms,
)
from latent_ladder.latents.shapes import (
    AUDIO_LATENTS_PER_SECOND,
    PIXELS_PER_LATENT,
    Resolution,
    pixel_frames,
)
from latent_ladder.latents.tokens import (
    audio_to_tokens,
    tokens_to_audio,
    tokens_to_video,
    video_to_tokens,
)
from latent_ladder.memory.cost_model import StageCost
from latent_ladder.memory.planner import OffloadPlan
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.text_encoder.conditioning import Conditioning as Context
from latent_ladder.models.text_encoder.tokenizer import text_length
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.sampling.denoise import (
    LatentState,
    Noises,
    Packing,
    SamplingPlan,
    draw_noise,
    noise_source,
    sample,
)
from latent_ladder.sampling.guiders import Guidance, Pass, passes_needed
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.samplers import Model as Predict
from latent_ladder.sampling.samplers import sampler_spec


@dataclass(frozen=True)
class SamplingJob:
    """What a sampling node was given."""

    guider: Guider
    sampler: Sampler
    sigmas: tuple[float, ...]
    noise: Noise
    latent: Latent


@dataclass(frozen=True)
class DenoisedLatents:
    """The latent at the last sigma, and the last prediction of x0."""

    output: Latent
    last: Latent


def denoise(ctx: NodeContext, job: SamplingJob) -> DenoisedLatents:
    """Carry out a job. Raises :class:`LadderError` for what cannot be sampled."""
    if len(job.sigmas) < 2:
        ctx.warn("no_sigmas", "the schedule is empty, so the latent is passed on as it is")
        return DenoisedLatents(job.latent, job.latent)
    _check_latent(ctx, job)
    return _SamplingRun(ctx, job).go()


def _check_latent(ctx: NodeContext, job: SamplingJob) -> None:
    latent, positive = job.latent, job.guider.positive
    for what in (latent.video, latent.audio):
        if what is not None and what.shape[0] != 1:
            raise ctx.error(
                f"the latent is a batch of {what.shape[0]}, expected 1",
                "set batch_size to 1 and queue the workflow once per clip",
            )
    if latent.video is not None and not job.guider.model.audio_only:
        channels = job.guider.model.transformer.shape("patchify_proj.weight")[1]
        if latent.video.shape[1] != channels:
            raise ctx.error(
                f"the latent has {latent.video.shape[1]} channels, the model takes {channels}",
                "use the VAE that belongs to the checkpoint",
            )
        if positive.guide_frames >= latent.video.shape[2]:
            raise ctx.error(
                f"the latent has {latent.video.shape[2]} frames and the conditioning "
                f"{positive.guide_frames} guide frames",
                "connect the latent of the last guide node, or LTXVCropGuides before this one",
            )


class _SamplingRun:
    """A job with everything worked out that does not need the transformer."""

    def __init__(self, ctx: NodeContext, job: SamplingJob) -> None:
        self._ctx, self._job = ctx, job
        self._model: Model = job.guider.model
        self._device = ctx.engine.runtime.device
        self._force = SAMPLER_FACTS[job.sampler.name].needs_uncond or job.guider.always_uncond
        self._video = _stream_guidance(job.guider.video, self._model)
        self._audio = _stream_guidance(job.guider.audio, self._model)
        self._kept = _kept_token_indices(job.guider.positive, job.latent)

    def go(self) -> DenoisedLatents:
        contexts = self._contexts()
        engine, clip = self._ctx.engine, self._job.guider.positive.clip
        sizes = engine.sizes(self._model, text_length(clip.text_encoder))

        def work(transformer: Transformer, offload_plan: OffloadPlan) -> DenoisedLatents:
            loras = list(self._model.loras)
            with (
                temporary_loras(transformer, loras) as report,
                engine.runner.resident_blocks(transformer, offload_plan),
            ):
                for match in report.matches:
                    if match.unmatched:
                        self._ctx.warn("lora_misses", str(match))
                return self._sampled(transformer, offload_plan, contexts)

        return engine.with_transformer(self._model, self._cost(), sizes, work, self._ctx.warn)

    # -- what it needs ------------------------------------------------------------------------

    def _passes(self) -> tuple[Pass, ...]:
        """All passes that any step runs."""
        job = self._job
        no_video = job.latent.video is None or self._model.audio_only
        streams = (
            None if no_video else self._video,
            None if job.latent.audio is None else self._audio,
        )
        each = [passes_needed(*streams, sigma, self._force) for sigma in job.sigmas[:-1]]
        for _, terms in job.guider.terms_by_sigma:
            row = _stream_guidance(terms, self._model)
            each += [passes_needed(row, row, sigma, self._force) for sigma in job.sigmas[:-1]]
        found = {p for passes in each for p in passes}
        return tuple(p for p in Pass if p in found)

    def _contexts(self) -> list[Context]:
        guider = self._job.guider
        texts = [guider.positive]
        if Pass.UNCOND in self._passes():
            if guider.negative is None:
                raise self._ctx.error(
                    f"{self._job.sampler.name} needs a negative prompt, the guider has none",
                    "use CFGGuider",
                )
            texts.append(guider.negative)
        return self._ctx.engine.contexts(texts, self._model.transformer)

    def _cost(self) -> StageCost:
        job, latent = self._job, self._job.latent
        f, h, w = (1, 1, 1) if latent.video is None else latent.video.shape[2:]
        sound = 0 if latent.audio is None else latent.audio.shape[2]
        fps = Fraction(job.guider.positive.fps).limit_denominator(1001)
        side = PIXELS_PER_LATENT
        resolution = Resolution(w * side, h * side, pixel_frames(f), fps, sound)
        passes = len(self._passes())
        return StageCost(
            f"node {self._ctx.node.id}",
            "base",
            resolution,
            steps=len(job.sigmas) - 1,
            passes=passes,
            forwards=passes * SAMPLER_FACTS[job.sampler.name].evals(len(job.sigmas) - 1),
            audio_tokens=sound,
            lora_bytes=sum(lora.nbytes for lora, _ in self._model.loras),
        )

    # -- sampling -----------------------------------------------------------------------------

    def _sampled(
        self, transformer: Transformer, offload_plan: OffloadPlan, contexts: Sequence[Context]
    ) -> DenoisedLatents:
        job = self._job
        video, audio = self._states()
        packing = Packing.of(video, audio)
        last: list[Tensor] = []
        steps = len(job.sigmas) - 1

        def after(step: int, _: Tensor, predicted: Tensor) -> None:
            last[:] = [predicted]
            self._ctx.progress(step + 1, steps)
            if video is not None:
                self._ctx.show_preview(
                    self._model.transformer, partial(self._seen, packing, predicted)
                )
            self._ctx.check_cancelled()

        def denoiser(video_terms: Guidance, audio_terms: Guidance, *, voice: bool) -> Denoiser:
            sound = None if audio is None else self._audio_run(audio, contexts, audio_terms)
            if sound is not None and not voice:
                sound = _drop_last_tokens(sound, self._voice_tokens)
            return Denoiser(
                transformer,
                None if video is None else self._video_run(video, contexts, video_terms),
                sound,
                force_uncond=self._force,
                max_passes=offload_plan.rows,
            )

        model: Predict = denoiser(self._video, self._audio, voice=True)
        guider = job.guider
        if guider.terms_by_sigma:
            rows = [
                (sigma, _stream_guidance(terms, self._model))
                for sigma, terms in guider.terms_by_sigma
            ]
            model = with_terms_by_sigma(
                [(s, denoiser(g, g, voice=True)) for s, g in rows], guider.zero_above_sigma
            )
        if self._model.identity is not None and self._voice_tokens:
            plain = denoiser(Guidance(), Guidance(), voice=True)
            bare = denoiser(Guidance(), Guidance(), voice=False)
            model = with_voice_guidance(model, plain, bare, packing, self._model.identity)
        if self._model.adain is not None and video is not None and self._kept is None:
            shape = _grid_shape(job.latent)
            model = with_statistics(model, packing, self._model.adain, shape)
        plan = SamplingPlan(job.sigmas, job.sampler.name, job.sampler.options, "comfyui")
        tokens = sample(model, video, audio, self._noises(), plan, after)
        output = self._latent(*tokens)
        scale = 1 - job.sigmas[-1]
        if scale < 1:
            output = replace(
                output,
                video=None if output.video is None else output.video / scale,
                audio=None if output.audio is None else output.audio / scale,
            )
        return DenoisedLatents(output, self._latent(*packing.unpack(last[0])))

    def _states(self) -> tuple[LatentState | None, LatentState | None]:
        latent, device = self._job.latent, self._device
        video = audio = None
        if latent.video is not None and not self._model.audio_only:
            mask = self._only_kept(video_to_tokens(latent.full_video_mask().to(device)))
            tokens = video_to_tokens(latent.video.to(device).float())
            video = _latent_state(self._only_kept(tokens), mask)
        if latent.audio is not None:
            tokens = audio_to_tokens(latent.audio.to(device).float())
            audio = _latent_state(tokens, _audio_mask(latent, tokens))
            voice = self._job.guider.positive.reference_audio
            if voice is not None:
                audio = _append_voice(audio, audio_to_tokens(voice.to(tokens)))
        return video, audio

    @property
    def _voice_tokens(self) -> int:
        """Tokens of a reference voice behind the sound's own."""
        voice = self._job.guider.positive.reference_audio
        return 0 if voice is None or self._job.latent.audio is None else int(voice.shape[2])

    def _only_kept(self, tokens: Tensor) -> Tensor:
        return tokens if self._kept is None else tokens[:, self._kept.to(tokens.device)]

    def _video_run(
        self, state: LatentState, contexts: Sequence[Context], terms: Guidance
    ) -> DenoiserStream:
        return DenoiserStream(
            positions=self._positions().to(self._device),
            positive=contexts[0].video,
            negative=contexts[1].video if len(contexts) > 1 else None,
            mask=_noise_levels(state),
            guidance=terms,
            frozen=_is_frozen(state),
        )

    def _audio_run(
        self, state: LatentState, contexts: Sequence[Context], terms: Guidance
    ) -> DenoiserStream:
        frozen = _is_frozen(state)
        length = state.tokens.shape[1] - self._voice_tokens
        places = audio_positions(length)
        if self._voice_tokens:
            places = torch.cat([places, voice_positions(self._voice_tokens)], dim=2)
        return DenoiserStream(
            positions=places.to(self._device),
            positive=contexts[0].audio,
            negative=contexts[1].audio if len(contexts) > 1 else None,
            mask=None if frozen else _noise_levels(state),
            guidance=terms,
            frozen=frozen,
        )

    def _positions(self) -> Tensor:
        """Bounds of all video tokens: the clip's grid, then every guide's own."""
        positive, video = self._job.guider.positive, self._job.latent.video
        if video is None:
            raise TypeError("no video has no positions")
        f, h, w = video.shape[2:]
        fps = positive.fps
        parts = [video_positions(f - positive.guide_frames, h, w, fps)]
        for guide in positive.guides:
            places = guide.positions.clone()
            places[:, 0] /= fps
            parts.append(places)
        return torch.cat(parts, dim=2)

    def _noises(self) -> Noises:
        latent, seed, name = self._job.latent, self._job.noise.seed, self._job.sampler.name
        shapes = (
            None if latent.video is None else latent.video.shape,
            None if latent.audio is None else latent.audio.shape,
        )
        video, audio = draw_noise(seed, *shapes)
        if self._job.noise.empty:
            video, audio = (None if n is None else torch.zeros_like(n) for n in (video, audio))
        drawn = noise_source(seed, *shapes, standardise=sampler_spec(name).standardised)
        whole = Packing(
            None if video is None else (video.shape[1], video.shape[2]),
            None if audio is None else (audio.shape[1], audio.shape[2]),
        )

        def source(step: int, kind: str) -> Tensor:
            parts = self._as_run(*whole.unpack(drawn(step, kind)))
            return torch.cat([t.flatten(1) for t in parts if t is not None], dim=1)

        return Noises(*self._as_run(video, audio), source)

    def _as_run(
        self, video: Tensor | None, audio: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Noise of the latent for the tokens of the run: fewer places, and a voice without any."""
        if video is not None:
            video = None if self._model.audio_only else self._only_kept(video)
        if audio is not None and self._voice_tokens:
            audio = F.pad(audio, (0, 0, 0, self._voice_tokens))
        return video, audio

    def _seen(self, packing: Packing, predicted: Tensor) -> Tensor:
        """The video latents of a prediction, without guide frames."""
        found = self._latent(*packing.unpack(predicted)).video
        if found is None:
            raise TypeError("no video cannot be seen")
        return found[:, :, : found.shape[2] - self._job.guider.positive.guide_frames]

    def _latent(self, video: Tensor | None, audio: Tensor | None) -> Latent:
        """Tokens as the latent they came from, its masks kept, on the CPU."""
        latent = self._job.latent
        new = latent
        if video is not None and latent.video is not None:
            new = replace(new, video=self._spread(video, latent.video).float().cpu())
        if audio is not None and latent.audio is not None:
            own = audio[:, : latent.audio.shape[2]]
            new = replace(new, audio=tokens_to_audio(own, latent.audio.shape[1]).float().cpu())
        return new

    def _spread(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Video tokens on the latent's whole grid; what was no token stays as it was."""
        if self._kept is not None:
            whole = video_to_tokens(like.to(tokens))
            whole[:, self._kept.to(tokens.device)] = tokens
            tokens = whole
        return tokens_to_video(tokens, *like.shape[2:])


def _latent_state(tokens: Tensor, mask: Tensor) -> LatentState:
    return LatentState(tokens, tokens, mask)


def _append_voice(state: LatentState, voice: Tensor) -> LatentState:
    """The sound with tokens behind it that are never noised."""
    return LatentState(
        torch.cat([state.tokens, voice], dim=1),
        torch.cat([state.clean, voice], dim=1),
        torch.cat([state.mask, torch.zeros_like(voice[..., :1])], dim=1),
    )


def _drop_last_tokens(run: DenoiserStream, last: int) -> DenoiserStream:
    """The stream without its last tokens."""
    kept = run.positions.shape[2] - last
    mask = None if run.mask is None else run.mask[:, :kept]
    return replace(run, positions=run.positions[:, :, :kept], mask=mask)


def voice_positions(count: int) -> Tensor:
    """Bounds (1, 1, count, 2) in seconds of a reference voice: it ends one latent before the clip.

    Source: the convention of ID-LoRA, as ComfyUI's model follows it.
    """
    places = audio_positions(count)
    return places - places[0, 0, -1, 1] - 1 / AUDIO_LATENTS_PER_SECOND


def _grid_shape(latent: Latent) -> tuple[int, int, int]:
    if latent.video is None:
        raise TypeError("a latent without video")
    f, h, w = latent.video.shape[2:]
    return f, h, w


def _noise_levels(state: LatentState) -> Tensor | None:
    return state.mask if bool((state.mask < 1).any()) else None


def _is_frozen(state: LatentState) -> bool:
    """Whether nothing of a stream is generated: its noise level is 0 for the other stream too."""
    return bool((state.mask == 0).all())


def _audio_mask(latent: Latent, tokens: Tensor) -> Tensor:
    """(1, T, 1), of a mask of any length."""
    length = tokens.shape[1]
    if latent.audio_mask is None:
        return torch.ones(1, length, 1, device=tokens.device)
    mask = latent.audio_mask.float().reshape(1, 1, -1)
    if mask.shape[-1] not in (1, length):
        mask = F.interpolate(mask, length, mode="linear")
    return mask.expand(1, 1, length).transpose(1, 2).to(tokens.device)


def _kept_token_indices(positive: Conditioning, latent: Latent) -> Tensor | None:
    """Indices of the grid's places that are tokens; ``None``: all."""
    if latent.video is None or all(guide.stride == 1 for guide in positive.guides):
        return None
    f, h, w = latent.video.shape[2:]
    is_token = torch.ones(f, h, w, dtype=torch.bool)
    first = f - positive.guide_frames
    for guide in positive.guides:
        place = is_token[first : first + guide.frames]
        if guide.stride > 1:
            place[:] = False
            place[:, :: guide.stride, :: guide.stride] = True
        first += guide.frames
    return is_token.flatten().nonzero()[:, 0]


def _stream_guidance(terms: StreamTerms, model: Model) -> Guidance:
    """A guider's terms, and those that nodes have patched into the model."""
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


def _sigma_range(patch: Patch | None) -> tuple[float, float] | None:
    return None if patch is None else (patch.sigma_low, patch.sigma_high)

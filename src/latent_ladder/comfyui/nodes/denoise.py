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

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.checkpoints.text_loras import projection_modules
from latent_ladder.comfyui.nodes.model_patches import (
    DenoiserBySigma,
    with_statistics,
    with_voice_guidance,
)
from latent_ladder.comfyui.nodes.node_context import NodeContext
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    GuidancePatch,
    Guider,
    Latent,
    Model,
    Noise,
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
from latent_ladder.models.transformer.attention import NagScales
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.keyframes import keyframe_mask
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import GuideBias, Nag
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
    """The inputs of a sampling node."""

    guider: Guider
    sampler: Sampler
    sigmas: tuple[float, ...]
    noise: Noise
    latent: Latent


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
        self._device = ctx.engine.runtime.device
        self._force_uncond = (
            SAMPLER_FACTS[job.sampler.name].needs_uncond or job.guider.always_uncond
        )
        self._video_guidance = _stream_guidance(job.guider.video, self._model)
        self._audio_guidance = _stream_guidance(job.guider.audio, self._model)
        self._token_indices = _kept_token_indices(job.guider.positive, job.latent)

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
        job = self._job
        video, audio = self._initial_states()
        packing = Packing.of(video, audio)
        last_prediction: list[Tensor] = []
        steps = len(job.sigmas) - 1

        def after_step(step: int, _: Tensor, predicted: Tensor) -> None:
            last_prediction[:] = [predicted]
            self._ctx.progress(step + 1, steps)
            if video is not None:
                self._ctx.show_preview(
                    self._model.transformer, partial(self._clip_latents, packing, predicted)
                )
            self._ctx.check_cancelled()

        def make_denoiser(video_terms: Guidance, audio_terms: Guidance, *, voice: bool) -> Denoiser:
            stream = None if audio is None else self._audio_stream(audio, contexts, audio_terms)
            if stream is not None and not voice:
                stream = _drop_last_tokens(stream, self._voice_tokens)
            return Denoiser(
                transformer,
                None if video is None else self._video_stream(video, contexts, video_terms),
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
        if self._model.identity is not None and self._voice_tokens:
            without = make_denoiser(Guidance(), Guidance(), voice=False)
            model = with_voice_guidance(chosen, without, packing, self._model.identity)
        if self._model.adain is not None and video is not None and self._token_indices is None:
            shape = _grid_shape(job.latent)
            model = with_statistics(model, packing, self._model.adain, shape)
        plan = SamplingPlan(job.sigmas, job.sampler.name, job.sampler.options, "comfyui")
        tokens = sample(model, video, audio, self._make_noise(), plan, after_step)
        output = self._to_latent(*tokens)
        scale = 1 - job.sigmas[-1]
        if scale < 1:
            output = replace(
                output,
                video=None if output.video is None else output.video / scale,
                audio=None if output.audio is None else output.audio / scale,
            )
        return DenoisedLatents(output, self._to_latent(*packing.unpack(last_prediction[0])))

    def _initial_states(self) -> tuple[LatentState | None, LatentState | None]:
        latent, device = self._job.latent, self._device
        video = audio = None
        if latent.video is not None and not self._model.audio_only:
            mask = self._select_tokens(video_to_tokens(latent.full_video_mask().to(device)))
            tokens = video_to_tokens(latent.video.to(device).float())
            video = _latent_state(self._select_tokens(tokens), mask)
        if latent.audio is not None:
            tokens = audio_to_tokens(latent.audio.to(device).float())
            audio = _latent_state(tokens, _audio_mask(latent, tokens))
            voice = self._job.guider.positive.reference_audio
            if voice is not None:
                audio = _append_voice(audio, audio_to_tokens(voice.to(tokens)))
        return video, audio

    @property
    def _voice_tokens(self) -> int:
        """The number of tokens of the reference voice, which follow the audio tokens."""
        voice = self._job.guider.positive.reference_audio
        return 0 if voice is None or self._job.latent.audio is None else int(voice.shape[2])

    def _select_tokens(self, tokens: Tensor) -> Tensor:
        return (
            tokens
            if self._token_indices is None
            else tokens[:, self._token_indices.to(tokens.device)]
        )

    def _video_stream(
        self, state: LatentState, contexts: Sequence[Context], terms: Guidance
    ) -> DenoiserStream:
        positions, clip_tokens = self._video_positions()
        return DenoiserStream(
            positions=positions.to(self._device),
            positive=contexts[0].video,
            negative=contexts[1].video if len(contexts) > 1 else None,
            mask=_noise_levels(state),
            guidance=terms,
            frozen=_is_frozen(state),
            keyframe_mask=keyframe_mask(positions, positions.shape[2] - clip_tokens).to(
                self._device
            ),
            bias=self._guide_bias(),
            nag=self._nag_video,
        )

    def _guide_bias(self) -> GuideBias | None:
        """Attention between clip and guides; ``None`` if all guides have full weight."""
        guides = self._job.guider.positive.guides
        if all(guide.weights is None for guide in guides):
            return None
        counts = [guide.positions.shape[2] for guide in guides]
        clip = torch.ones(self._video_positions()[1])
        weights = [
            torch.ones(count) if guide.weights is None else guide.weights
            for guide, count in zip(guides, counts, strict=True)
        ]
        is_guide = torch.cat([torch.zeros_like(clip), torch.ones(sum(counts))])
        return GuideBias.of_weights(
            torch.cat([clip, *weights]).to(self._device), is_guide.to(self._device)
        )

    def _audio_stream(
        self, state: LatentState, contexts: Sequence[Context], terms: Guidance
    ) -> DenoiserStream:
        frozen = _is_frozen(state)
        length = state.tokens.shape[1] - self._voice_tokens
        positions = audio_positions(length)
        if self._voice_tokens:
            positions = torch.cat([positions, voice_positions(self._voice_tokens)], dim=2)
        return DenoiserStream(
            positions=positions.to(self._device),
            positive=contexts[0].audio,
            negative=contexts[1].audio if len(contexts) > 1 else None,
            mask=None if frozen else _noise_levels(state),
            guidance=terms,
            frozen=frozen,
            nag=self._nag_audio,
        )

    def _video_positions(self) -> tuple[Tensor, int]:
        """Return the bounds of all video tokens, and how many of them are the clip's.

        Those of each guide follow the clip.
        """
        positive, video = self._job.guider.positive, self._job.latent.video
        if video is None:
            raise TypeError("a latent without video has no video positions")
        f, h, w = video.shape[2:]
        fps = positive.fps
        parts = [video_positions(f - positive.guide_frames, h, w, fps)]
        for guide in positive.guides:
            positions = guide.positions.clone()
            positions[:, 0] /= fps
            parts.append(positions)
        return torch.cat(parts, dim=2), parts[0].shape[2]

    def _make_noise(self) -> Noises:
        latent, seed, name = self._job.latent, self._job.noise.seed, self._job.sampler.name
        shapes = (
            None if latent.video is None else latent.video.shape,
            None if latent.audio is None else latent.audio.shape,
        )
        video, audio = draw_noise(seed, *shapes)
        if self._job.noise.empty:
            video, audio = (None if n is None else torch.zeros_like(n) for n in (video, audio))
        sampler_noise = noise_source(seed, *shapes, standardise=sampler_spec(name).standardised)
        packing = Packing(
            None if video is None else (video.shape[1], video.shape[2]),
            None if audio is None else (audio.shape[1], audio.shape[2]),
        )

        def source(step: int, kind: str) -> Tensor:
            parts = self._fit_noise(*packing.unpack(sampler_noise(step, kind)))
            return torch.cat([t.flatten(1) for t in parts if t is not None], dim=1)

        return Noises(*self._fit_noise(video, audio), source)

    def _fit_noise(
        self, video: Tensor | None, audio: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return noise of the latent as noise of the tokens; voice tokens get none."""
        if video is not None:
            video = None if self._model.audio_only else self._select_tokens(video)
        if audio is not None and self._voice_tokens:
            audio = F.pad(audio, (0, 0, 0, self._voice_tokens))
        return video, audio

    def _clip_latents(self, packing: Packing, predicted: Tensor) -> Tensor:
        """Return the video latents of a prediction without guide frames."""
        video = self._to_latent(*packing.unpack(predicted)).video
        if video is None:
            raise TypeError("a prediction without video has no preview")
        return video[:, :, : video.shape[2] - self._job.guider.positive.guide_frames]

    def _to_latent(self, video: Tensor | None, audio: Tensor | None) -> Latent:
        """Return tokens as a latent on the CPU, with the masks of the input latent."""
        latent = self._job.latent
        out = latent
        if video is not None and latent.video is not None:
            out = replace(out, video=self._to_grid(video, latent.video).float().cpu())
        if audio is not None and latent.audio is not None:
            tokens = audio[:, : latent.audio.shape[2]]  # without the voice
            out = replace(out, audio=tokens_to_audio(tokens, latent.audio.shape[1]).float().cpu())
        return out

    def _to_grid(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Return video tokens on the grid of the latent; other places keep their values."""
        if self._token_indices is not None:
            grid = video_to_tokens(like.to(tokens))
            grid[:, self._token_indices.to(tokens.device)] = tokens
            tokens = grid
        return tokens_to_video(tokens, *like.shape[2:])


def _latent_state(tokens: Tensor, mask: Tensor) -> LatentState:
    return LatentState(tokens, tokens, mask)


def _append_voice(state: LatentState, voice: Tensor) -> LatentState:
    """Return the audio state with voice tokens appended, which are never noised."""
    return LatentState(
        torch.cat([state.tokens, voice], dim=1),
        torch.cat([state.clean, voice], dim=1),
        torch.cat([state.mask, torch.zeros_like(voice[..., :1])], dim=1),
    )


def _drop_last_tokens(stream: DenoiserStream, count: int) -> DenoiserStream:
    """Return a stream without its last ``count`` tokens."""
    length = stream.positions.shape[2] - count
    mask = None if stream.mask is None else stream.mask[:, :length]
    return replace(stream, positions=stream.positions[:, :, :length], mask=mask)


def voice_positions(count: int) -> Tensor:
    """Return the bounds (1, 1, count, 2) in seconds of the tokens of a reference voice.

    The voice ends one latent before the clip starts, as in ID-LoRA and in ComfyUI.
    """
    positions = audio_positions(count)
    return positions - positions[0, 0, -1, 1] - 1 / AUDIO_LATENTS_PER_SECOND


def _grid_shape(latent: Latent) -> tuple[int, int, int]:
    if latent.video is None:
        raise TypeError("a latent without video")
    f, h, w = latent.video.shape[2:]
    return f, h, w


def _noise_levels(state: LatentState) -> Tensor | None:
    return state.mask if bool((state.mask < 1).any()) else None


def _is_frozen(state: LatentState) -> bool:
    """Return whether nothing of a stream is generated; the other stream sees noise level 0 then."""
    return bool((state.mask == 0).all())


def _audio_mask(latent: Latent, tokens: Tensor) -> Tensor:
    """Return the audio mask (1, T, 1), resized from a mask of any length."""
    length = tokens.shape[1]
    if latent.audio_mask is None:
        return torch.ones(1, length, 1, device=tokens.device)
    mask = latent.audio_mask.float().reshape(1, 1, -1)
    if mask.shape[-1] not in (1, length):
        mask = F.interpolate(mask, length, mode="linear")
    return mask.expand(1, 1, length).transpose(1, 2).to(tokens.device)


def _kept_token_indices(positive: Conditioning, latent: Latent) -> Tensor | None:
    """Return the indices of grid positions that are tokens, or ``None`` if all are."""
    if latent.video is None or all(guide.stride == 1 for guide in positive.guides):
        return None
    f, h, w = latent.video.shape[2:]
    is_token = torch.ones(f, h, w, dtype=torch.bool)
    first = f - positive.guide_frames
    for guide in positive.guides:
        frames = is_token[first : first + guide.frames]
        if guide.stride > 1:
            frames[:] = False
            frames[:, :: guide.stride, :: guide.stride] = True
        first += guide.frames
    return is_token.flatten().nonzero()[:, 0]


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

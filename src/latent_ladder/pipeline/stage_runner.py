"""The stages themselves: input artefacts and models in, tensors of the new artefact out.

A :class:`Workshop` carries out one :class:`PlannedStage` after the other. Networks are loaded when
first needed and released before the next heavy one; the transformer stays loaded between stages
and only its LoRAs are switched.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.selection import ModelSet
from latent_ladder.errors import LadderError
from latent_ladder.latents.shapes import Resolution
from latent_ladder.latents.tokens import (
    audio_to_tokens,
    video_to_tokens,
)
from latent_ladder.media.video_writer import Frames, WrittenVideo
from latent_ladder.memory import peak_usage as peak
from latent_ladder.memory.planner import MemoryPlan, OffloadPlan, Policy, plan_fallback
from latent_ladder.metrics.measure import RunMeter
from latent_ladder.models.audio_vae.vae import load_audio
from latent_ladder.models.device import Runtime
from latent_ladder.models.latent_upsampler.upsample import adapt, load_upsampler, upsample
from latent_ladder.models.lora.attach import attached
from latent_ladder.models.text_encoder.encode import Conditioning, encode_prompts
from latent_ladder.models.transformer.denoiser import Denoiser, StreamRun
from latent_ladder.models.transformer.model import Load, Transformer, load_transformer
from latent_ladder.models.transformer.tiled_denoiser import TiledDenoiser
from latent_ladder.models.vae_loading import statistics
from latent_ladder.models.weights.block_offload import Residency
from latent_ladder.models.weights.loading import Place
from latent_ladder.pipeline.input_encoding import (
    INPUT_KINDS,
    Start,
    conditioned,
    make_input,
    plain_start,
)
from latent_ladder.pipeline.output import (
    SAMPLE_RATE_KEY,
    check_upscaler,
    drafted,
    finished,
    write_clip,
)
from latent_ladder.pipeline.output import Clip as WrittenClip
from latent_ladder.pipeline.partial_results import Progress
from latent_ladder.pipeline.plan import PlannedStage, RunPlan, has_sound
from latent_ladder.pipeline.plan_report import model_sizes
from latent_ladder.pipeline.temporal_windows import (
    Clip,
    OnEstimate,
    OnStep,
    Seen,
    Streams,
    clip_latents,
    upsampled,
)
from latent_ladder.request.model import Request
from latent_ladder.request.stages import (
    BaseStage,
    RefineStage,
    SamplingStage,
    StreamGuidance,
    UpsampleStage,
)
from latent_ladder.sampling.denoise import LatentState, Noises, Packing, SamplingPlan, sample
from latent_ladder.sampling.guiders import Guidance
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.samplers import SamplerOptions

Tensors = dict[str, Tensor]
Facts = dict[str, Any]
LATENT_DIMS = 5
"""Video latents are (B, C, F, H, W), text contexts (1, L, D)."""


class Workshop:
    """Makes artefacts; keeps loaded what the next stage may use again."""

    def __init__(
        self,
        plan: RunPlan,
        runtime: Runtime,
        memory: MemoryPlan,
        warn: Callable[[str, str], None],
        policy: Policy,
    ) -> None:
        self._warn = warn
        self._plan, self._memory, self._policy = plan, memory, policy
        self._models: ModelSet = plan.models
        self._request: Request = plan.request
        self._runtime = runtime
        self._prompts = [s for s in plan.stages if s.kind == "prompt"]
        self._contexts: dict[str, Conditioning] = {}
        self._transformer: Transformer | None = None
        self._loaded: Load | None = None
        check_upscaler(plan.upscale, runtime)

    # -- memory -------------------------------------------------------------------------------

    def held(self, name: str) -> str:
        """How the memory plan holds the model in a stage, in words."""
        return str(self._memory.of(_memory_name(name)).offload_plan)

    def next_fallback(self, name: str) -> str:
        """After an out-of-memory: free everything and hold the stage on the next rung.

        Gives the new holding in words. Raises :class:`MemoryBudgetError` when there is none left.
        """
        self._transformer = self._loaded = None
        gc.collect()
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        stage, budget = self._memory.of(_memory_name(name)), self._memory.budget
        sizes = model_sizes(self._plan, self._runtime.dtype.itemsize)
        next_fallback = plan_fallback(stage, self._request, sizes, budget, self._policy)
        self._memory = self._memory.with_stage(next_fallback)
        return str(next_fallback.offload_plan)

    # -- measuring ----------------------------------------------------------------------------

    def begin_measuring(self) -> None:
        """Forget earlier peaks of memory."""
        peak.reset(self._runtime.device)

    def peak(self) -> int:
        """Bytes at the peak since :meth:`begin_measuring`."""
        return peak.peak_bytes(self._runtime.device)

    # -- stages -------------------------------------------------------------------------------

    def turn_to(self, plan: RunPlan, memory: MemoryPlan | None = None) -> None:
        """Go on with another request for the same models; what is loaded stays.

        ``memory`` says how its stages fit, where that is not known yet.
        """
        self._plan, self._request = plan, plan.request
        self._memory = memory or self._memory

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self._runtime.device

    def release(self) -> None:
        """Let go of the transformer."""
        self._transformer = self._loaded = None

    def make(
        self,
        stage: PlannedStage,
        inputs: Sequence[Tensors],
        on_step: OnStep,
        on_estimate: OnEstimate | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensors, Facts]:
        """The tensors of a stage's artefact, and facts worth keeping beside them.

        ``progress`` keeps a clip in windows while it is made, and has what was made of it before.
        """
        if stage.kind == "prompt":
            return self._prompt(stage)
        if stage.files:
            return make_input(stage, self._plan, self._runtime), {"files": _names(stage)}
        if stage.kind == "upsample":
            return self._upsample(stage, inputs[0])
        if stage.kind == "sound":
            return self._sound(inputs[0])
        return self._sampled(stage, inputs, on_step, on_estimate, progress)

    def _prompt(self, stage: PlannedStage) -> tuple[Tensors, Facts]:
        """All prompts that are missing are encoded at once: the text encoder loads once."""
        if stage.text not in self._contexts:
            texts = [s.text for s in self._prompts if not s.stored]
            models = self._models
            found = encode_prompts(
                texts,
                text_encoder=models.text_encoder,
                projection=models.text_projection,
                connectors=models.connectors,
                device=self._runtime.device,
                dtype=self._runtime.dtype,
            )
            self._contexts = dict(zip(texts, found, strict=True))
        context = self._contexts[stage.text]
        return {"video": context.video, "audio": context.audio}, {"text": stage.text}

    @torch.inference_mode()
    def _upsample(self, stage: PlannedStage, before: Tensors) -> tuple[Tensors, Facts]:
        asked = self._request.stages[_position(stage)]
        if stage.upsampler is None or not isinstance(asked, UpsampleStage):
            raise TypeError(f"{stage.name} is not a planned upsample stage")
        upsampler = load_upsampler(
            stage.upsampler, device=self._runtime.device, dtype=self._runtime.dtype
        )
        numbers, latents = statistics(self._models.video_vae), before["video"]
        position = _position(stage)
        low, high = (self._request.window_plan(i) for i in (position - 1, position))

        def larger(part: Tensor) -> Tensor:
            return upsample(part.to(self._runtime.device), upsampler, numbers)

        up = upsampled(latents, list(zip(low, high, strict=True)), larger)
        if asked.adain:
            up = adapt(up, latents.to(up), asked.adain)
        return {**before, "video": up.float()}, {}

    def _sound(self, source: Tensors) -> tuple[Tensors, Facts]:
        audio_vae, vocoder = self._models.audio_vae, self._models.vocoder
        if audio_vae is None or vocoder is None:
            raise TypeError("a sound stage was planned without an audio VAE")
        decoder = load_audio(audio_vae, vocoder, device=self._runtime.device)
        waveform = decoder.decode(source["audio"])
        rate = torch.tensor(decoder.sample_rate)
        return {"waveform": waveform, SAMPLE_RATE_KEY: rate}, {}

    def _sampled(
        self,
        stage: PlannedStage,
        inputs: Sequence[Tensors],
        on_step: OnStep,
        on_estimate: OnEstimate | None,
        progress: Progress | None,
    ) -> tuple[Tensors, Facts]:
        asked = self._request.stages[_position(stage)]
        if stage.resolution is None or not isinstance(asked, BaseStage | RefineStage):
            raise TypeError(f"{stage.name} is not a planned sampling stage")
        latents, contexts, held = self._split(stage, inputs)
        offload_plan = self._memory.of(stage.name).offload_plan
        transformer = self._loaded_transformer(offload_plan)
        shapes = self._latent_shapes(transformer, stage.resolution)
        start = plain_start(*self._states(shapes, latents), stage.resolution)
        clip = Clip.of(conditioned(start, held, self._request, stage.resolution), stage.resolution)
        clip, done = (clip, 0) if progress is None else progress.resumed(clip)
        if done:
            all_of = f"{done} of its {len(stage.windows)} windows"
            self._warn("resumed", f"{stage.name} goes on after {all_of}, which were made before")
        with (
            attached(transformer, list(stage.loras)) as report,
            transformer.held(self._runtime.device, _residency(offload_plan)),
        ):
            for window in stage.windows[done:]:
                seen = Seen(stage, clip, window, on_step, on_estimate, shapes)
                tokens = self._window(transformer, asked, seen, contexts)
                clip = clip.with_made(window, tokens)
                if progress is not None:
                    progress.keep(clip, window)
        for match in report.matches:
            if match.misses:
                self._warn("lora_misses", str(match))
        facts = {"loras": [str(match) for match in report.matches]}
        return clip_latents((clip.video, clip.audio), shapes), facts

    def _window(
        self,
        transformer: Transformer,
        asked: SamplingStage,
        seen: Seen,
        contexts: Sequence[Conditioning],
    ) -> Streams:
        """One window of a sampling stage, denoised to its end."""
        windows, stage = self._request.windows_used, seen.stage
        strength = 1.0 if windows is None else windows.strength
        start = seen.clip.part(seen.window, strength, self._runtime.device)
        packing = Packing.of(start.video, start.audio)
        return sample(
            self._denoiser(transformer, asked, stage, contexts, start),
            start.video,
            start.audio,
            self._noises(asked, _position(stage), seen, start.extra),
            SamplingPlan(
                stage.sigmas,
                asked.sampler,
                _options(asked),
                self._request.mask_convention,
            ),
            partial(seen.after, packing),
        )

    # -- the clip -----------------------------------------------------------------------------

    def write(
        self,
        path: Path,
        latents: Tensors,
        sound: Tensors | None,
        *,
        metadata: Mapping[str, str],
        overwrite: bool,
        on_frames: Callable[[int], None],
        meter: RunMeter | None = None,
    ) -> WrittenVideo:
        """Decode into the encoder, ``meter`` looking on. The transformer is released first."""
        self.release()
        return write_clip(
            self._clip(meter),
            path,
            latents,
            sound,
            metadata=metadata,
            overwrite=overwrite,
            on_frames=on_frames,
        )

    def frames(self, latents: Tensors) -> Iterator[Frames]:
        """The clip's frames without a file, uint8. The transformer is released first."""
        self.release()
        return finished(self._clip(), latents["video"])

    def drafted_frames(self, latents: Tensors) -> Iterator[NDArray[np.uint8]]:
        """Frames of an earlier rung's latents, cropped as the clip is and not upscaled."""
        self.release()
        return drafted(self._clip(), latents["video"])

    def _clip(self, meter: RunMeter | None = None) -> WrittenClip:
        offload_plan = self._memory.of("decode").offload_plan
        return WrittenClip(
            self._request, self._models, self._runtime, offload_plan, self._plan.upscale, meter
        )

    # -- parts of a sampling run --------------------------------------------------------------

    def _loaded_transformer(self, offload_plan: OffloadPlan) -> Transformer:
        """The transformer, loaded anew only where it is to be held in another form."""
        load = _load_of(offload_plan)
        if self._transformer is None or self._loaded != load:
            self._transformer = None
            self._transformer = load_transformer(
                self._models.transformer,
                device=self._runtime.device,
                dtype=self._runtime.dtype,
                load=load,
            )
            self._loaded = load
        self._transformer.set_chunk_tokens(offload_plan.chunk_tokens)
        return self._transformer

    def _split(
        self, stage: PlannedStage, inputs: Sequence[Tensors]
    ) -> tuple[Tensors | None, list[Conditioning], Tensors]:
        """Latents of the stage before, if there is one, the text contexts, what is to be held."""
        held: Tensors = {}
        others: list[Tensors] = []
        for key, tensors in zip(stage.inputs, inputs, strict=True):
            if self._plan.stage(key).kind in INPUT_KINDS:
                held |= tensors
            else:
                others.append(tensors)
        before = others[0] if others[0]["video"].ndim == LATENT_DIMS else None
        contexts = others if before is None else others[1:]
        device, dtype = self._runtime.device, self._runtime.dtype
        texts = [Conditioning(c["video"], c["audio"]).to(device, dtype) for c in contexts]
        return before, texts, held

    def _latent_shapes(
        self, transformer: Transformer, resolution: Resolution
    ) -> tuple[tuple[int, int, int, int, int], tuple[int, int, int, int] | None]:
        config = transformer.config
        video = resolution.video_latent_shape(config.video.in_channels)
        if not has_sound(self._request):
            return video, None
        channels = _audio_channels(self._models.audio_vae, config.audio.in_channels)
        bins = config.audio.in_channels // channels
        return video, resolution.audio_latent_shape(channels, bins)

    def _states(
        self, shapes: tuple[Sequence[int], Sequence[int] | None], latents: Tensors | None
    ) -> tuple[LatentState, LatentState | None]:
        """Both streams of the whole clip, on the CPU: windows of it go to the device."""
        video_shape, audio_shape = shapes
        if latents is None:
            _, c, f, h, w = video_shape
            video = LatentState.empty(f * h * w, c)
            if audio_shape is None:
                return video, None
            _, c, t, m = audio_shape
            return video, LatentState.empty(t, c * m)
        _expect(latents["video"], video_shape)
        video = LatentState.of(video_to_tokens(latents["video"].cpu()))
        if audio_shape is None:
            return video, None
        _expect(latents["audio"], audio_shape)
        return video, LatentState.of(audio_to_tokens(latents["audio"].cpu()))

    def _noises(self, stage: SamplingStage, position: int, seen: Seen, extra_tokens: int) -> Noises:
        """Window n has the noise of a clip of its size whose seed is n higher."""
        seed = self._request.stage_seed(position) + seen.window.number
        return Noises.from_seed(
            seed % 2**64,
            *seen.window_shapes(),
            stage.sampler,
            order=self._request.noise_order,
            extra_video_tokens=extra_tokens,
        )

    def _denoiser(
        self,
        transformer: Transformer,
        asked: SamplingStage,
        stage: PlannedStage,
        contexts: Sequence[Conditioning],
        start: Start,
    ) -> Denoiser | TiledDenoiser:
        rows = self._memory.of(stage.name).offload_plan.rows
        positive, negative = contexts[0], contexts[1] if len(contexts) > 1 else None
        device = self._runtime.device
        video = StreamRun(
            positions=start.positions.to(device),
            positive=positive.video,
            negative=None if negative is None else negative.video,
            mask=start.video_mask,
            guidance=_guidance(asked.guidance.video),
        )
        audio = StreamRun(
            positions=start.audio_positions.to(device),
            positive=positive.audio,
            negative=None if negative is None else negative.audio,
            mask=start.audio_mask,
            guidance=_guidance(asked.guidance.audio),
            frozen=start.frozen_audio,
        )
        tiles = self._request.tile_plan(_position(stage))
        kind = Denoiser if tiles is None else partial(TiledDenoiser, plan=tiles)
        return kind(
            transformer,
            video,
            audio if has_sound(self._request) else None,
            force_uncond=SAMPLER_FACTS[asked.sampler].needs_uncond,
            max_passes=rows,
        )


def _memory_name(name: str) -> str:
    """The name under which the memory plan knows a stage: prompts share one."""
    if name.partition(" ")[0] in ("images", "video", "audio_in"):
        # the VAE's encoder takes what its decoder takes
        return "decode"
    return {"negative prompt": "prompt", "sound": "decode"}.get(name, name)


def _names(stage: PlannedStage) -> list[str]:
    """The input files of a stage, without their folders."""
    return [file.path.name for file in stage.files]


def _load_of(offload_plan: OffloadPlan) -> Load:
    """How the transformer is loaded for a holding."""
    blocks: Place = "device" if offload_plan.resident is None else offload_plan.source
    return Load(offload_plan.precision, offload_plan.as_stored, blocks)


def _residency(offload_plan: OffloadPlan) -> Residency | None:
    if offload_plan.resident is None:
        return None
    return Residency(offload_plan.resident, pinned=offload_plan.source == "pinned")


def _position(stage: PlannedStage) -> int:
    if stage.position is None:
        raise TypeError(f"{stage.name} is not a stage of the request")
    return stage.position


def _audio_channels(audio_vae: Component | None, width: int) -> int:
    """Channels of an audio latent: what the decoder's first convolution reads."""
    if audio_vae is None:
        return width
    return audio_vae.shape("decoder.conv_in.conv.weight")[1]


def _expect(latents: Tensor, shape: Sequence[int]) -> None:
    if tuple(latents.shape) != tuple(shape):
        raise LadderError(
            f"stored latents have shape {list(latents.shape)}, the stage needs {list(shape)}",
            "run `ladder runs verify`, then the same command again",
        )


def _guidance(asked: StreamGuidance) -> Guidance:
    return Guidance(**asked.model_dump())


def _options(stage: SamplingStage) -> SamplerOptions:
    return SamplerOptions(**stage.options.model_dump(exclude_none=True))

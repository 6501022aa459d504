"""The stages themselves: input artefacts and models in, tensors of the new artefact out.

A :class:`Workshop` carries out one :class:`PlannedStage` after the other. Networks are loaded when
first needed and released before the next heavy one; the transformer stays loaded between stages
and only its LoRAs are switched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.checkpoints.layout import Component
from latent_ladder.checkpoints.library import ModelSet
from latent_ladder.errors import LadderError
from latent_ladder.latents import (
    audio_to_tokens,
    tokens_to_audio,
    tokens_to_video,
    video_to_tokens,
)
from latent_ladder.media.write import VideoSpec, WrittenVideo, write_video
from latent_ladder.models.audio_vae import fit_length, load_audio
from latent_ladder.models.denoiser import Denoiser, StreamRun
from latent_ladder.models.latent_upsampler import load_upsampler, upsample
from latent_ladder.models.lora import attached
from latent_ladder.models.networks import statistics
from latent_ladder.models.rope import audio_positions, video_positions
from latent_ladder.models.runtime import Runtime
from latent_ladder.models.text_encoder import Conditioning, encode_prompts
from latent_ladder.models.transformer import Transformer, load_transformer
from latent_ladder.models.video_vae import decode_video, load_video_vae
from latent_ladder.request import Decode, Request
from latent_ladder.request_stages import (
    BaseStage,
    RefineStage,
    SamplingStage,
    StreamGuidance,
    UpsampleStage,
)
from latent_ladder.sampling.denoise import LatentState, Noises, SamplingPlan, sample
from latent_ladder.sampling.guiders import Guidance
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.samplers import SamplerOptions
from latent_ladder.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, Rung
from latent_ladder.stages import peak
from latent_ladder.stages.plan import PlannedStage, RunPlan, has_sound
from latent_ladder.tiling import TilePlan, official_size, plan_tiles

Tensors = dict[str, Tensor]
Facts = dict[str, Any]
OnStep = Callable[[int, int, float], None]
"""(steps done, of how many, sigma reached); may raise to stop after the step."""

SAMPLE_RATE_KEY = "sample_rate"
LATENT_DIMS = 5
"""Video latents are (B, C, F, H, W), text contexts (1, L, D)."""


class Workshop:
    """Makes artefacts; keeps loaded what the next stage may use again."""

    def __init__(self, plan: RunPlan, runtime: Runtime, warn: Callable[[str, str], None]) -> None:
        self._warn = warn
        self._models: ModelSet = plan.models
        self._request: Request = plan.request
        self._runtime = runtime
        self._prompts = [s for s in plan.stages if s.kind == "prompt"]
        self._contexts: dict[str, Conditioning] = {}
        self._transformer: Transformer | None = None

    # -- measuring ----------------------------------------------------------------------------

    def begin_measuring(self) -> None:
        """Forget earlier peaks of memory."""
        peak.reset(self._runtime.device)

    def peak(self) -> int:
        """Bytes at the peak since :meth:`begin_measuring`."""
        return peak.peak_bytes(self._runtime.device)

    # -- stages -------------------------------------------------------------------------------

    def make(
        self, stage: PlannedStage, inputs: Sequence[Tensors], on_step: OnStep
    ) -> tuple[Tensors, Facts]:
        """The tensors of a stage's artefact, and facts worth keeping beside them."""
        if stage.kind == "prompt":
            return self._prompt(stage)
        if stage.kind == "upsample":
            return self._upsample(stage, inputs[0])
        if stage.kind == "sound":
            return self._sound(inputs[0])
        return self._sampled(stage, inputs, on_step)

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
        latents = before["video"].to(self._runtime.device)
        up = upsample(latents, upsampler, statistics(self._models.video_vae), adain=asked.adain)
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
        self, stage: PlannedStage, inputs: Sequence[Tensors], on_step: OnStep
    ) -> tuple[Tensors, Facts]:
        asked = self._request.stages[_position(stage)]
        if stage.rung is None or not isinstance(asked, BaseStage | RefineStage):
            raise TypeError(f"{stage.name} is not a planned sampling stage")
        latents, contexts = self._split(inputs)
        transformer = self._loaded_transformer()
        shapes = self._latent_shapes(stage.rung)
        video, audio = self._states(shapes, latents)
        with attached(transformer, list(stage.loras)) as report:
            denoiser = self._denoiser(transformer, asked, stage.rung, contexts)
            tokens = sample(
                denoiser,
                video,
                audio,
                self._noises(asked, _position(stage), shapes),
                SamplingPlan(
                    stage.sigmas,
                    asked.sampler,
                    _options(asked),
                    self._request.mask_convention,
                ),
                lambda step, _x, _d: on_step(
                    step + 1, len(stage.sigmas) - 1, stage.sigmas[step + 1]
                ),
            )
        for match in report.matches:
            if match.misses:
                self._warn("lora_misses", str(match))
        facts = {"loras": [str(match) for match in report.matches]}
        return self._latents(tokens, shapes), facts

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
    ) -> WrittenVideo:
        """Decode tile by tile into the encoder. The transformer is released first."""
        self._transformer = None
        request = self._request
        vae = load_video_vae(
            self._models.video_vae,
            device=self._runtime.device,
            dtype=self._runtime.dtype,
            parts=("decoder",),
        )
        video = latents["video"].to(self._runtime.device)
        _, _, f, h, w = video.shape
        frames = decode_video(video, vae, decode_tiles((f, h, w), request.decode))
        return write_video(
            path,
            _counted(self._cropped(frames), on_frames),
            VideoSpec((request.width, request.height), request.fps, request.output.crf),
            audio=None if sound is None else self._fitted(sound),
            metadata=metadata,
            overwrite=overwrite,
        )

    def _fitted(self, sound: Tensors) -> tuple[NDArray[np.float32], int]:
        rate = int(sound[SAMPLE_RATE_KEY])
        fitted = fit_length(sound["waveform"], self._request.frames, self._request.fps, rate)
        return fitted.numpy(), rate

    def _cropped(self, chunks: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        crop = self._request.crop
        for chunk in chunks:
            rows = slice(crop.top, crop.top + crop.height)
            yield chunk[:, rows, crop.left : crop.left + crop.width]

    # -- parts of a sampling run --------------------------------------------------------------

    def _loaded_transformer(self) -> Transformer:
        if self._transformer is None:
            self._transformer = load_transformer(
                self._models.transformer, device=self._runtime.device, dtype=self._runtime.dtype
            )
        return self._transformer

    def _split(self, inputs: Sequence[Tensors]) -> tuple[Tensors | None, list[Conditioning]]:
        """Latents of the stage before, if there is one, and the text contexts."""
        before = inputs[0] if inputs[0]["video"].ndim == LATENT_DIMS else None
        contexts = inputs if before is None else inputs[1:]
        device, dtype = self._runtime.device, self._runtime.dtype
        return before, [Conditioning(c["video"], c["audio"]).to(device, dtype) for c in contexts]

    def _latent_shapes(
        self, rung: Rung
    ) -> tuple[tuple[int, int, int, int, int], tuple[int, int, int, int] | None]:
        config = self._loaded_transformer().config
        video = rung.video_latent_shape(config.video.in_channels)
        if not has_sound(self._request):
            return video, None
        channels = _audio_channels(self._models.audio_vae, config.audio.in_channels)
        bins = config.audio.in_channels // channels
        return video, rung.audio_latent_shape(channels, bins)

    def _states(
        self, shapes: tuple[Sequence[int], Sequence[int] | None], latents: Tensors | None
    ) -> tuple[LatentState, LatentState | None]:
        device = self._runtime.device
        video_shape, audio_shape = shapes
        if latents is None:
            _, c, f, h, w = video_shape
            video = LatentState.empty(f * h * w, c, device)
            if audio_shape is None:
                return video, None
            _, c, t, m = audio_shape
            return video, LatentState.empty(t, c * m, device)
        _expect(latents["video"], video_shape)
        video = LatentState.of(video_to_tokens(latents["video"].to(device)))
        if audio_shape is None:
            return video, None
        _expect(latents["audio"], audio_shape)
        return video, LatentState.of(audio_to_tokens(latents["audio"].to(device)))

    def _noises(
        self,
        stage: SamplingStage,
        position: int,
        shapes: tuple[Sequence[int], Sequence[int] | None],
    ) -> Noises:
        seed = self._request.stage_seed(position)
        return Noises.seeded(seed, *shapes, stage.sampler, order=self._request.noise_order)

    def _denoiser(
        self,
        transformer: Transformer,
        stage: SamplingStage,
        rung: Rung,
        contexts: Sequence[Conditioning],
    ) -> Denoiser:
        positive, negative = contexts[0], contexts[1] if len(contexts) > 1 else None
        device = self._runtime.device
        video = StreamRun(
            positions=video_positions(
                rung.latent_frames, rung.latent_height, rung.latent_width, rung.fps
            ).to(device),
            positive=positive.video,
            negative=None if negative is None else negative.video,
            guidance=_guidance(stage.guidance.video),
        )
        audio = StreamRun(
            positions=audio_positions(rung.audio_latents).to(device),
            positive=positive.audio,
            negative=None if negative is None else negative.audio,
            guidance=_guidance(stage.guidance.audio),
        )
        return Denoiser(
            transformer,
            video,
            audio if has_sound(self._request) else None,
            force_uncond=SAMPLER_FACTS[stage.sampler].needs_uncond,
            max_passes=None if stage.batch_passes == "auto" else stage.batch_passes,
        )

    def _latents(
        self,
        tokens: tuple[Tensor | None, Tensor | None],
        shapes: tuple[Sequence[int], Sequence[int] | None],
    ) -> Tensors:
        video, audio = tokens
        if video is None:
            raise LadderError("the sampler returned no video", "this is a bug; please report it")
        _, _, f, h, w = shapes[0]
        found = {"video": tokens_to_video(video, f, h, w)}
        if audio is not None and shapes[1] is not None:
            found["audio"] = tokens_to_audio(audio, shapes[1][1])
        return found


def decode_tiles(grid: tuple[int, int, int], asked: Decode) -> TilePlan:
    """The tiles of a latent video (frames, rows, columns).

    ``"auto"`` is the reference implementation's size whatever memory there is: tiled frames differ
    a little from untiled ones, and the same request must give the same clip everywhere.
    """
    auto = official_size(*grid[1:])
    changes: dict[str, int] = {}
    if asked.tile_px != "auto":
        changes |= {"rows": asked.tile_px // PIXELS_PER_LATENT}
        changes |= {"cols": asked.tile_px // PIXELS_PER_LATENT}
    if asked.overlap_px != "auto":
        changes |= {"overlap": asked.overlap_px // PIXELS_PER_LATENT}
    if asked.tile_frames != "auto":
        changes |= {"frames": asked.tile_frames // FRAMES_PER_LATENT}
    if asked.overlap_frames != "auto":
        changes |= {"overlap_frames": asked.overlap_frames // FRAMES_PER_LATENT}
    return plan_tiles(*grid, replace(auto, **changes))


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


def _counted(
    chunks: Iterator[NDArray[np.uint8]], on_frames: Callable[[int], None]
) -> Iterator[NDArray[np.uint8]]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_frames(done)

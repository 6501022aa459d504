"""Single nodes: their outputs for given inputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.workflow_graphs import CHECKPOINT, engine
from helpers.workflow_nodes import first_output, run_node
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.checkpoints.selection import model_folders, scan
from latent_ladder.comfyui.constant_folding import fold_constants, parse_integer
from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.nodes import NODES
from latent_ladder.comfyui.nodes.guides import Guide, guide_positions, guide_start_frame
from latent_ladder.comfyui.nodes.inpainting import blend_pyramids
from latent_ladder.comfyui.nodes.latent_statistics import adain, normalise_statistics
from latent_ladder.comfyui.nodes.resize import resize_frames
from latent_ladder.comfyui.nodes.sampling import percent_to_sigma
from latent_ladder.comfyui.nodes.sampling_tokens import voice_positions
from latent_ladder.comfyui.runtime.engine import Engine
from latent_ladder.comfyui.runtime.output_paths import claim_path, expand_prefix, next_output_path
from latent_ladder.comfyui.runtime.values import (
    Audio,
    Guider,
    GuiderParameters,
    Images,
    Latent,
    Mask,
    Noise,
    Sampler,
    SigmaList,
    StepStatistics,
    StreamTerms,
    Video,
)
from latent_ladder.errors import CheckpointNotFound, WorkflowError
from latent_ladder.latents import comfyui_tiling as tilings
from latent_ladder.latents.tiling import Tiling
from latent_ladder.media.video_reader import read_metadata
from latent_ladder.models.video_vae.vae import VideoVae, decode_bands, load_video_vae
from latent_ladder.upscale.srvgg import CompactNetwork, CompactShape


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return engine(tmp_path_factory.mktemp("nodes"))


def sigmas(found: SigmaList) -> list[float]:
    return [round(s, 4) for s in found.sigmas]


def test_every_supported_type_has_an_implementation() -> None:
    rows = {name for name, row in NODE_TYPES.items() if not row.unsupported_reason}
    assert rows == set(NODES)


# --- sigmas -------------------------------------------------------------------------------------


def test_manual_sigmas_are_parsed_as_in_comfyui(work: Engine) -> None:
    assert sigmas(first_output(work, "ManualSigmas", sigmas="0.85, 0.7250, 0.4219, 0.0")) == [
        0.85, 0.725, 0.4219, 0.0,
    ]  # fmt: skip
    assert sigmas(first_output(work, "ManualSigmas", sigmas="1e-3 5.")) == [1.0, -3.0, 5.0]


def test_the_ltx_scheduler_counts_the_tokens_of_its_latent(work: Engine) -> None:
    latent = Latent(video=torch.zeros(1, 8, 16, 17, 30))  # 960x544, 121 frames
    found = first_output(work, "LTXVScheduler", steps=15, latent=latent)
    assert sigmas(found) == [
        1, 0.9935, 0.986, 0.9773, 0.9672, 0.955, 0.9403, 0.9221, 0.8991, 0.8689, 0.8277, 0.768,
        0.6739, 0.5034, 0.1, 0,
    ]  # fmt: skip
    assert sigmas(first_output(work, "LTXVScheduler", steps=20))[1:3] == [0.9915, 0.9821]


def model(work: Engine) -> Any:
    return first_output(work, "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)


@pytest.mark.parametrize(
    ("denoise", "expected"),
    [
        (0.5, [0.9145, 0.8425, 0.6815, 0]),
        (0.4, [0.8892, 0.8106, 0.6407, 0]),
        (0.25, [0.781, 0.6815, 0.4932, 0]),
        (0.0, []),
    ],
)
def test_denoise_takes_the_last_steps_of_a_longer_schedule(
    work: Engine, denoise: float, expected: list[float]
) -> None:
    found = first_output(
        work, "BasicScheduler", model=model(work), scheduler="simple", steps=3, denoise=denoise
    )
    assert sigmas(found) == expected


def test_sigmas_are_split_flipped_and_extended(work: Engine) -> None:
    four = SigmaList((1.0, 0.75, 0.5, 0.25, 0.0))
    high, low = run_node(work, "SplitSigmas", sigmas=four, step=1)[0]
    assert (high.sigmas, low.sigmas) == ((1.0, 0.75), (0.75, 0.5, 0.25, 0.0))
    high, low = run_node(work, "SplitSigmasDenoise", sigmas=four, denoise=0.5)[0]
    assert (high.sigmas, low.sigmas) == ((1.0, 0.75, 0.5), (0.5, 0.25, 0.0))
    assert first_output(work, "FlipSigmas", sigmas=four).sigmas == (0.0001, 0.25, 0.5, 0.75, 1.0)
    assert first_output(work, "SetFirstSigma", sigmas=four, sigma=0.9).sigmas[0] == 0.9
    longer = first_output(
        work, "ExtendIntermediateSigmas", sigmas=four, steps=2, start_at_sigma=0.8,
        end_at_sigma=0.5,
    )  # fmt: skip
    assert longer.sigmas == (1.0, 0.75, 0.625, 0.5, 0.375, 0.25, 0.0)


def test_a_percent_of_the_schedule_is_a_shifted_sigma() -> None:
    e = math.exp(2.37)
    assert percent_to_sigma(0.25, 2.37) == pytest.approx(e / (e + 1 / 0.75 - 1))
    assert percent_to_sigma(0.0, 2.37) == math.inf
    assert percent_to_sigma(1.0, 2.37) == 0.0


# --- guiders ------------------------------------------------------------------------------------


def prompts(work: Engine) -> dict[str, Any]:
    clip = first_output(
        work, "LTXAVTextEncoderLoader", text_encoder="pocket-gemma-3.safetensors",
        ckpt_name=CHECKPOINT,
    )  # fmt: skip
    conditioning = first_output(work, "CLIPTextEncode", clip=clip, text="a red circle")
    return {"model": model(work), "positive": conditioning, "negative": conditioning}


def test_guiders_define_the_guidance_of_each_stream(work: Engine) -> None:
    inputs = prompts(work)
    both: Guider = first_output(work, "CFGGuider", **inputs, cfg=3.5)
    assert both.video == both.audio == StreamTerms(3.5) and not both.always_uncond
    dual: Guider = first_output(work, "LTXVDualCFGGuider", **inputs)
    assert (dual.video.cfg, dual.audio.cfg, dual.always_uncond) == (3.0, 7.0, True)
    audio: GuiderParameters = first_output(
        work, "GuiderParameters", modality="AUDIO", cfg=7.0, modality_scale=3.0
    )
    params = first_output(
        work, "GuiderParameters", modality="VIDEO", cfg=3.0, rescale=0.9, perturb_attn=False,
        parameters=audio,
    )  # fmt: skip
    guider: Guider = first_output(
        work, "MultimodalGuider", **inputs, parameters=params, skip_blocks="[2, 4]"
    )
    assert guider.audio == StreamTerms(7.0, 1.0, 3.0, 0.7, (2, 4))
    # the widget's default of modality_scale is 0: an extra pass with weight -1
    assert guider.video == StreamTerms(3.0, 1.0, 0.0, 0.9, ())
    with pytest.raises(WorkflowError, match="VIDEO already has parameters"):
        first_output(work, "GuiderParameters", modality="VIDEO", parameters=params)


def test_samplers_keep_their_options(work: Engine) -> None:
    found: Sampler = first_output(work, "SamplerEulerAncestral", eta=0.0)
    assert (found.name, found.options.eta, found.options.s_noise) == ("euler_ancestral", 0.0, 1.0)
    assert first_output(work, "KSamplerSelect", sampler_name="ddim").name == "euler"
    assert first_output(work, "DisableNoise") == Noise(0, empty=True)
    clown, warnings = run_node(
        work, "ClownSampler_Beta", eta=0.25, sampler_name="exponential/res_2s"
    )
    assert (clown[0].name, clown[0].options.eta) == ("res_2s", 0.25)
    assert warnings == ["another_sampler"]


# --- latents ------------------------------------------------------------------------------------


def test_concatenation_gives_both_streams_a_mask_if_one_has_one(work: Engine) -> None:
    video, audio = torch.zeros(1, 8, 2, 3, 4), torch.zeros(1, 2, 5, 16)
    plain = first_output(
        work, "LTXVConcatAVLatent", video_latent=Latent(video), audio_latent=Latent(audio=audio)
    )
    assert plain.video_mask is None and plain.audio_mask is None
    zeros = first_output(work, "SetLatentNoiseMask", samples=Latent(audio=audio), mask=Mask(
        torch.zeros(1, 64, 64)))  # fmt: skip
    frozen = first_output(
        work, "LTXVConcatAVLatent", video_latent=Latent(video), audio_latent=zeros
    )
    assert frozen.audio_mask.shape == (1, 1, 5, 1) and not frozen.audio_mask.any()
    assert frozen.video_mask.min() == 1
    longer = Latent(audio=torch.ones(1, 2, 3, 16))
    swapped = first_output(work, "LTXVConcatAVLatent", video_latent=plain, audio_latent=longer)
    assert swapped.audio.shape[2] == 5 and swapped.audio[:, :, 3:].abs().sum() == 0
    parts, _ = run_node(work, "LTXVSeparateAVLatent", av_latent=frozen)
    assert parts[0].video is video and parts[1].audio_mask is frozen.audio_mask


def test_empty_latents_have_the_sizes_of_comfyui(work: Engine) -> None:
    video, warnings = run_node(work, "EmptyLTXVLatentVideo", width=1280, height=720, length=126)
    assert video[0].video.shape == (1, 8, 16, 22, 40)
    assert warnings == ["size_truncated", "length_truncated"]
    vae = first_output(work, "LTXVAudioVAELoader", ckpt_name=CHECKPOINT)
    audio = first_output(
        work, "LTXVEmptyLatentAudio", frames_number=126, frame_rate=25.0, audio_vae=vae
    )
    assert audio.audio.shape[2] == 126
    with pytest.raises(WorkflowError, match="batch_size is 2"):
        first_output(work, "EmptyLTXVLatentVideo", batch_size=2)


def test_masks_are_resized_in_time_and_space(work: Engine) -> None:
    latent = Latent(video=torch.zeros(1, 8, 3, 2, 2))
    ramp = torch.arange(6.0)[:, None, None].expand(6, 4, 4)
    found = first_output(work, "SetLatentNoiseMask", samples=latent, mask=Mask(ramp))
    assert found.video_mask[0, 0, :, 0, 0].tolist() == [0.5, 2.5, 4.5]


def test_latents_are_selected_and_concatenated(work: Engine) -> None:
    frames = Latent(video=torch.arange(5.0).reshape(1, 1, 5, 1, 1))
    part = first_output(work, "LTXVSelectLatents", samples=frames, start_index=-3, end_index=-2)
    assert part.video.flatten().tolist() == [2, 3]
    both = first_output(work, "LTXVAddLatents", latents1=part, latents2=frames)
    assert both.video.flatten().tolist() == [2, 3, 0, 1, 2, 3, 4]


def test_latent_upscale_assumes_eight_pixels_per_latent(work: Engine) -> None:
    latent = Latent(video=torch.rand(1, 8, 2, 4, 4))
    outputs, warnings = run_node(
        work, "LatentUpscale", samples=latent, upscale_method="bilinear", width=64, height=0,
        crop="disabled",
    )  # fmt: skip
    assert outputs[0].video.shape == (1, 8, 2, 8, 8) and warnings == ["latent_size"]
    assert latent.video is not None
    want = F.interpolate(latent.video[0].transpose(0, 1), (8, 8), mode="bilinear")
    torch.testing.assert_close(outputs[0].video[0].transpose(0, 1), want)


def test_statistics_move_to_their_target() -> None:
    torch.manual_seed(0)
    latents, reference = torch.randn(1, 3, 2, 8, 8) * 2 + 1, torch.randn(1, 3, 4, 8, 8) * 0.5
    moved = adain(latents, reference, 1.0, per_frame=False)
    for got, want in zip(torch.std_mean(moved, (2, 3, 4)), torch.std_mean(reference, (2, 3, 4)),
                         strict=True):  # fmt: skip
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        adain(latents, reference, 0.5, per_frame=False), (latents + moved) / 2
    )
    aim = StepStatistics((), None, mean=0.25, std=2.0, percentile=100.0)
    std, mean = torch.std_mean(normalise_statistics(latents, aim, 1.0), (2, 3, 4))
    torch.testing.assert_close(std, torch.full_like(std, 2.0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.25), rtol=1e-3, atol=1e-3)
    tight = StepStatistics((), None, 0.0, 1.0, percentile=80.0, clip=True)
    assert normalise_statistics(latents, tight, 1.0).abs().max() < 3


def test_audio_video_latents_are_saved_and_loaded(work: Engine, tmp_path: Path) -> None:
    both = Latent(torch.rand(1, 8, 2, 2, 2), torch.rand(1, 2, 3, 16), None, torch.zeros(1, 1, 3, 1))
    shown, _ = run_node(work, "SaveLatent", samples=both, filename_prefix="saved/both")
    name = "saved/both_00001_.latent [output]"
    back: Latent = first_output(work, "LoadLatent", latent=name)
    assert shown == ()
    assert {k: v.tolist() for k, v in back.tensors().items()} == {
        k: v.tolist() for k, v in both.tensors().items()
    }
    alone = Latent(audio=torch.rand(1, 2, 3, 16))
    run_node(work, "SaveLatent", samples=alone, filename_prefix="saved/sound")
    assert (
        first_output(work, "LoadLatent", latent="saved/sound_00001_.latent [output]").video is None
    )


# --- guides -------------------------------------------------------------------------------------


def test_guide_positions_are_those_of_their_frame() -> None:
    still = guide_positions(Guide(torch.zeros(1, 8, 1, 2, 2), 40, 1.0, single_first_frame=True))
    assert still[0, 0, 0].tolist() == [40, 41]
    assert still[0, 1:, -1].tolist() == [[32, 64], [32, 64]]
    middle = guide_positions(Guide(torch.zeros(1, 8, 2, 1, 1), 17, 1.0, single_first_frame=False))
    assert middle[0, 0].tolist() == [[17, 25], [25, 33]]
    small = guide_positions(
        Guide(torch.zeros(1, 8, 1, 1, 2), 0, 1.0, single_first_frame=True, stride=2)
    )
    assert small[0, 2].tolist() == [[0, 64], [64, 128]]


@pytest.mark.parametrize(
    ("frame", "images", "expected"), [(0, 9, 0), (20, 1, 20), (20, 9, 17), (-1, 1, 32), (-99, 1, 0)]
)
def test_guide_start_frames_are_those_of_comfyui(frame: int, images: int, expected: int) -> None:
    assert guide_start_frame(frame, images, 5) == expected


def test_a_voice_ends_one_latent_before_the_clip() -> None:
    places = voice_positions(3)
    assert places[0, 0, -1, 1].item() == pytest.approx(-0.04)
    assert (places[..., 1] - places[..., 0]).min() >= 0


# --- tiles --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(work: Engine) -> VideoVae:
    component = work.component(CHECKPOINT, "video_vae")
    return load_video_vae(component, device="cpu", dtype=torch.float32, parts=("decoder",))


def decode_all_tiles(latents: Tensor, vae: VideoVae, tiling: Tiling) -> Tensor:
    """Decode every tile completely; return the weighted sum."""
    sizes = [axis[-1].first + len(axis[-1].weights) for axis in
             (tiling.frames, tiling.rows, tiling.cols)]  # fmt: skip
    out = torch.zeros(3, *sizes)
    for t in tiling.frames:
        for r in tiling.rows:
            for c in tiling.cols:
                cut = latents[:, :, t.start : t.stop, r.start : r.stop, c.start : c.stop]
                decoded = torch.cat([b.clone() for b in decode_bands(cut, vae)], 1)[:, t.drop :]
                weight = (
                    torch.tensor(t.weights)[:, None, None]
                    * torch.tensor(r.weights)[:, None]
                    * torch.tensor(c.weights)
                )
                place = out[
                    :, t.first : t.first + len(t.weights), r.first : r.first + len(r.weights),
                    c.first : c.first + len(c.weights),
                ]  # fmt: skip
                place += decoded * weight
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "tiling",
    [
        tilings.feather_tiles((4, 3, 4), (4, 2), (1, 1)),
        tilings.feather_tiles((5, 2, 2), (3, 2), (1, 1)),
        tilings.split_evenly((3, 4, 5), 2, 2, 2),
        tilings.fade_spans((7, 2, 3), tilings.split_evenly((7, 2, 3), 1, 2, 1), 3, 1),
    ],
    ids=["feathered", "feathered in time", "even", "faded"],
)
def test_tiles_are_blended_incrementally_as_if_all_were_decoded(
    vae: VideoVae, tiling: Tiling
) -> None:
    torch.manual_seed(1)
    grid = (tiling.frames[-1].stop, tiling.rows[-1].stop, tiling.cols[-1].stop)
    latents = torch.randn(1, vae.latent_channels, *grid)
    got = torch.cat([band.clone() for band in decode_bands(latents, vae, tiling)], dim=1)
    assert got.shape[1] == 8 * (grid[0] - 1) + 1
    torch.testing.assert_close(got, decode_all_tiles(latents, vae, tiling), rtol=1e-4, atol=1e-4)
    for axis in (tiling.frames, tiling.rows, tiling.cols):
        total = torch.zeros(axis[-1].first + len(axis[-1].weights))
        for piece in axis:
            total[piece.first : piece.first + len(piece.weights)] += torch.tensor(piece.weights)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_each_decoder_node_has_its_own_ramps() -> None:
    # VAEDecodeTiled: weights (i + 1) / n at both ends, divided by their sum
    first, second = tilings.feather_tiles((1, 1, 3), (1, 2), (0, 1)).cols
    rising = torch.arange(1, 33) / 32
    falling = rising.flip(0)
    want = falling / (falling + rising)
    torch.testing.assert_close(torch.tensor(first.weights[-32:]), want)
    assert (second.start, second.first) == (1, 32)
    # LTXVTiledVAEDecode: a linear ramp from 0 to 1
    left, right = tilings.split_evenly((1, 1, 4), 1, 2, 2).cols
    assert (left.stop, right.start, right.stop) == (3, 1, 4)
    torch.testing.assert_close(torch.tensor(right.weights[:64]), torch.linspace(0, 1, 64))
    # LTXVSpatioTemporal...: the second span drops one frame and cross-fades over eight
    spans = tilings.fade_spans((7, 1, 1), tilings.whole_tiling((7, 1, 1)), 3, 1).frames
    assert [(s.start, s.stop, s.drop, s.first) for s in spans] == [
        (0, 3, 0, 0), (1, 4, 1, 9), (2, 5, 1, 17), (3, 6, 1, 25), (4, 7, 1, 33),
    ]  # fmt: skip
    assert spans[1].weights[0] == pytest.approx(1 / 9)


@pytest.mark.slow
def test_a_tile_of_the_whole_clip_is_exact(work: Engine, vae: VideoVae) -> None:
    latents = torch.randn(1, vae.latent_channels, 2, 2, 2)
    file = run_node(work, "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)[0][2]
    tiled: Images = first_output(
        work, "VAEDecodeTiled", samples=Latent(latents), vae=file, tile_size=768, overlap=64,
        temporal_size=4096, temporal_overlap=4,
    )  # fmt: skip
    plain: Images = first_output(work, "VAEDecode", samples=Latent(latents), vae=file)
    assert (tiled.count, tiled.width, tiled.height) == (9, 64, 64)
    assert torch.equal(tiled.to_tensor(), plain.to_tensor())
    assert tiled.pixels_uint8 is not None
    whole = np.concatenate(list(tiled.pixels_uint8()))
    assert np.abs(whole / 255 - tiled.to_tensor().permute(0, 2, 3, 1).numpy()).max() < 0.51 / 255
    less = plain.lower_memory()
    assert less is not None and less.count == 9
    fixed: Images = first_output(
        work, "LTXVTiledVAEDecode", samples=None, latents=Latent(latents), vae=file,
        last_frame_fix=True,
    )  # fmt: skip
    assert fixed.count == 9 and fixed.to_tensor().shape == (9, 3, 64, 64)


def test_encoding_is_exact_and_drops_an_incomplete_group(work: Engine) -> None:
    file = run_node(work, "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)[0][2]
    torch.manual_seed(2)
    frames = torch.randint(0, 256, (12, 3, 64, 96), dtype=torch.uint8)
    got = first_output(work, "VAEEncode", pixels=Images.from_tensor(frames.float() / 255), vae=file)
    encoder = load_video_vae(file.component, device="cpu", dtype=torch.float32, parts=("encoder",))
    want = encoder.encode(frames[:9].permute(0, 2, 3, 1).numpy())
    assert torch.equal(got.video, want)


# --- images -------------------------------------------------------------------------------------


def random_images(width: int, height: int, count: int = 1) -> Images:
    torch.manual_seed(3)
    return Images.from_tensor(torch.rand(count, 3, height, width))


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ({"resize_type": "scale dimensions", "resize_type__width": 50, "resize_type__height": 0},
         (50, 25)),
        ({"resize_type": "scale by multiplier", "resize_type__multiplier": 0.5}, (50, 25)),
        ({"resize_type": "scale longer dimension", "resize_type__longer_size": 60}, (60, 30)),
        ({"resize_type": "scale shorter dimension", "resize_type__shorter_size": 20}, (40, 20)),
        ({"resize_type": "scale width", "resize_type__width": 30}, (30, 15)),
        ({"resize_type": "scale height", "resize_type__height": 30}, (60, 30)),
        ({"resize_type": "scale total pixels", "resize_type__megapixels": 0.01}, (145, 72)),
        ({"resize_type": "scale to multiple", "resize_type__multiple": 32}, (96, 32)),
        ({"resize_type": "match size",
          "resize_type__match": Images.from_tensor(torch.zeros(1, 3, 7, 9))}, (9, 7)),
    ],
    ids=lambda v: str(v.get("resize_type")) if isinstance(v, dict) else "",
)  # fmt: skip
def test_images_are_resized_to_comfyuis_sizes(
    work: Engine, inputs: dict[str, Any], size: tuple[int, int]
) -> None:
    found = first_output(work, "ResizeImageMaskNode", input=random_images(100, 50), **inputs)
    assert (found.width, found.height) == size
    assert found.to_tensor().shape[-2:] == size[::-1]
    mask = first_output(work, "ResizeImageMaskNode", input=Mask(torch.ones(1, 50, 100)), **inputs)
    assert mask.values.shape == (1, *size[::-1])


def test_resizing_uses_torch_without_antialiasing_or_pillow() -> None:
    frames = torch.rand(2, 3, 12, 20)
    got = resize_frames(frames, (8, 8), "bilinear", "center")
    want = F.interpolate(frames[..., 4:16], (8, 8), mode="bilinear")
    torch.testing.assert_close(got, want)
    lanczos = resize_frames(frames, (10, 6), "lanczos")
    image = Image.fromarray((frames[0] * 255).round().byte().permute(1, 2, 0).numpy())
    small = np.asarray(image.resize((10, 6), Image.Resampling.LANCZOS), np.float32) / 255
    np.testing.assert_allclose(lanczos[0].permute(1, 2, 0).numpy(), small, atol=1e-6)


def test_image_batches_are_counted_sliced_and_repeated(work: Engine) -> None:
    red = first_output(work, "EmptyImage", width=4, height=2, batch_size=20, color=0xFF0000)
    assert run_node(work, "GetImageSize", image=red)[0] == [4, 2, 20]
    assert red.to_tensor()[0, :, 0, 0].tolist() == [1, 0, 0]
    some = first_output(
        work, "ImageFromBatch", image=random_images(4, 2, 20), batch_index=15, length=9
    )
    assert some.count == 5 and torch.equal(
        some.to_tensor(), random_images(4, 2, 20).to_tensor()[15:]
    )
    twice = first_output(work, "RepeatImageBatch", image=random_images(4, 2, 3), amount=2)
    assert torch.equal(twice.to_tensor()[3:], twice.to_tensor()[:3])
    padded = first_output(
        work, "ResizeAndPadImage", image=random_images(20, 10), target_width=8, target_height=8,
        padding_color="white",
    )  # fmt: skip
    assert padded.to_tensor()[0, :, 0].min() == 1 and padded.to_tensor()[0, :, 4].max() < 1


def test_image_files_give_colours_and_transparency(work: Engine) -> None:
    pixels = np.zeros((5, 7, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 51
    Image.fromarray(pixels).save(work.folders.input / "clear.png")
    (image, mask), _ = run_node(work, "LoadImage", image="clear.png")
    assert image.to_tensor()[0, 0, 0, 0].item() == pytest.approx(200 / 255)
    assert mask.values.shape == (1, 5, 7) and mask.values[0, 0, 0].item() == pytest.approx(0.8)
    alpha = first_output(work, "LoadImageMask", image="clear.png", channel="alpha")
    torch.testing.assert_close(alpha.values, mask.values)
    for name in ("../clear.png", "/etc/passwd", "..\\clear.png", "no.png"):
        with pytest.raises(WorkflowError):
            first_output(work, "LoadImage", image=name)


def test_preprocessing_compresses_with_h264(work: Engine) -> None:
    wide = random_images(33, 21)
    assert first_output(work, "LTXVPreprocess", image=wide, img_compression=0) is wide
    found = first_output(work, "LTXVPreprocess", image=wide, img_compression=18)
    assert (found.width, found.height) == (32, 20)
    difference = (found.to_tensor() - wide.to_tensor()[..., :20, :32]).abs().mean()
    assert 0.01 < difference < 0.3


def test_masks_are_converted_to_images_and_back(work: Engine) -> None:
    solid = first_output(work, "SolidMask", value=0.25, width=4, height=2)
    assert solid.values.tolist() == [[[0.25] * 4] * 2]
    back = first_output(
        work, "ImageToMask", image=first_output(work, "MaskToImage", mask=solid), channel="green"
    )
    assert torch.equal(back.values, solid.values)
    assert first_output(work, "InvertMask", mask=solid).values[0, 0, 0] == 0.75
    assert first_output(work, "ThresholdMask", mask=solid, value=0.2).values.min() == 1


def test_outpainting_pads_with_grey_and_returns_the_mask(work: Engine) -> None:
    (image, mask), _ = run_node(
        work, "ImagePadForOutpaintTargetSize", image=random_images(8, 8), target_width=16,
        target_height=8, feathering=2, upscale_method="bilinear",
    )  # fmt: skip
    assert (image.width, image.height) == (16, 8)
    assert image.to_tensor()[0, :, :, :4].unique().tolist() == [0.5]
    row = mask.values[0, 4].tolist()
    assert row[:4] == [1] * 4 and row[4:7] == [1, 0.25, 0] and row[11] == 0.25
    filled_green = first_output(
        work, "LTXVInpaintPreprocess", images=image, mask=Mask(torch.ones(1, 8, 16))
    )
    torch.testing.assert_close(filled_green.to_tensor()[0, :, 0, 0], torch.tensor([0.4, 1.0, 0.0]))


def test_dilation_grows_in_space_and_time(work: Engine) -> None:
    dot = torch.zeros(5, 7, 7)
    dot[2, 3, 3] = 1
    found = first_output(
        work, "LTXVDilateVideoMask", mask=Mask(dot), spatial_radius=1, temporal_radius=1
    )
    assert found.values.sum(dim=(1, 2)).tolist() == [0, 9, 9, 9, 0]


def test_blending_keeps_each_image_far_from_the_seam() -> None:
    a, b = torch.full((1, 3, 64, 64), 0.8), torch.full((1, 3, 64, 64), 0.2)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    found = blend_pyramids(a, b, mask)[0, 0, 32]
    # the seven pyramid levels span 64 pixels: a smooth transition without a step
    assert found[0] > 0.55 and found[-1] < 0.45 and (found[1:] - found[:-1]).max() < 1e-5
    assert found[:30].mean() + found[34:].mean() == pytest.approx(1.0, abs=0.02)
    same = torch.rand(1, 3, 40, 56)
    torch.testing.assert_close(blend_pyramids(same, same, torch.rand(1, 1, 40, 56)), same)


def test_an_upscaler_uses_its_own_factor(tmp_path: Path) -> None:
    folder = tmp_path / "models/upscale_models"
    folder.mkdir(parents=True)
    torch.manual_seed(4)
    network = CompactNetwork(CompactShape(8, 1, 4))
    save_file(network.state_dict(), folder / "x4.safetensors")
    work = engine(tmp_path, scan(model_folders([tmp_path / "models"], environ={})))
    file = first_output(work, "UpscaleModelLoader", model_name="x4.safetensors")
    found: Images = first_output(
        work, "ImageUpscaleWithModel", upscale_model=file, image=random_images(20, 12, 3)
    )
    assert (found.count, found.width, found.height) == (3, 80, 48)
    with torch.no_grad():
        want = network(random_images(20, 12, 3).to_tensor()).clamp(0, 1)
    torch.testing.assert_close(found.to_tensor(), want, rtol=1e-4, atol=1e-4)
    half = first_output(work, "ImageScaleBy", image=found, upscale_method="area", scale_by=0.5)
    assert (half.width, half.height) == (40, 24)
    for name in ("other.pth", str(folder / "x4.safetensors"), "../models/x4.safetensors"):
        with pytest.raises(WorkflowError):
            first_output(work, "UpscaleModelLoader", model_name=name)
    with pytest.raises(CheckpointNotFound, match="leads out"):
        first_output(work, "CheckpointLoaderSimple", ckpt_name="../x.safetensors")


# --- audio and videos ---------------------------------------------------------------------------


def test_audio_is_created_trimmed_and_encoded(work: Engine) -> None:
    silence: Audio = first_output(work, "EmptyAudio", duration=0.5, sample_rate=8000, channels=1)
    assert silence.waveform.shape == (1, 4000)
    ramp = Audio(torch.arange(8000.0).expand(2, -1), 8000)
    cut = first_output(work, "TrimAudioDuration", audio=ramp, start_index=-0.25, duration=0.125)
    assert cut.waveform[0, [0, -1]].tolist() == [6000, 6999]
    vae = first_output(work, "LTXVAudioVAELoader", ckpt_name=CHECKPOINT)
    sound = Audio(torch.randn(2, 16000) * 0.1, 16000)
    latent: Latent = first_output(work, "LTXVAudioVAEEncode", audio=sound, audio_vae=vae)
    # one second is 44100 samples, of which the middle 10 * 4096 are encoded
    assert latent.audio is not None and latent.audio.shape[2] == 24


def test_videos_are_saved_loaded_and_sliced(work: Engine) -> None:
    tone = Audio(torch.sin(torch.arange(48000) / 20).expand(2, -1) * 0.5, 48000)
    clip: Video = first_output(
        work, "CreateVideo", images=random_images(32, 34, 24), fps=24.0, audio=tone
    )
    shown, _ = run_node(
        work, "SaveVideo", video=clip, filename_prefix="v/%width%x%height%", format="mkv"
    )
    assert shown[0] is clip
    path = work.folders.output / "v/32x34_00001_.mkv"
    (work.folders.input / "c.mkv").write_bytes(path.read_bytes())
    loaded: Video = first_output(work, "LoadVideo", file="c.mkv")
    images, sound, fps, _, _ = run_node(work, "GetVideoComponents", video=loaded)[0]
    assert (images.count, images.width, fps) == (24, 32, 24.0)
    assert sound.waveform.shape[0] == 2 and sound.rate == 48000
    part: Video = first_output(work, "Video Slice", video=loaded, start_time=0.5, duration=0.25)
    assert part.images.count == 6
    cut_sound = part.audio()
    assert cut_sound is not None and cut_sound.waveform.shape[1] == 12000
    torch.testing.assert_close(part.images.to_tensor(), images.to_tensor()[12:18])
    with pytest.raises(WorkflowError, match="nothing is left"):
        first_output(work, "Video Slice", video=loaded, start_time=5.0)


@pytest.mark.parametrize(
    ("node", "suffix"),
    [("SaveAudio", "flac"), ("SaveAudioMP3", "mp3"), ("SaveAudioOpus", "opus")],
)
def test_audio_is_saved_in_the_format_of_its_node(work: Engine, node: str, suffix: str) -> None:
    tone = Audio(torch.sin(torch.arange(22050) / 20).expand(2, -1) * 0.5, 22050)
    run_node(work, node, audio=tone, filename_prefix=f"s/{suffix}")
    path = work.folders.output / f"s/{suffix}_00001_.{suffix}"
    (work.folders.input / path.name).write_bytes(path.read_bytes())
    back: Audio = first_output(work, "LoadAudio", audio=path.name)
    assert back.waveform.shape[1] / back.rate == pytest.approx(1.0, abs=0.06)
    assert 0.2 < back.waveform.std() < 0.5


def test_images_contain_the_graph(work: Engine) -> None:
    (work.folders.output / "p").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(work.folders.output / "p/x_00007_.png")
    run_node(work, "SaveImage", images=random_images(4, 4, 2), filename_prefix="p/x")
    names = sorted(path.name for path in (work.folders.output / "p").iterdir())
    assert names == ["x_00007_.png", "x_00008_.png", "x_00009_.png"]
    for name in names[1:]:
        assert read_metadata(work.folders.output / "p" / name)["prompt"] == '{"1": {}}'


# --- names --------------------------------------------------------------------------------------


def test_prefixes_are_expanded_and_stay_in_their_folder(tmp_path: Path) -> None:
    from datetime import datetime

    nodes = {
        "1": Node("1", "RandomNoise", "", {"noise_seed": 42}),
        "2": Node("2", "KSampler", "stage 1", {"sampler_name": "a/b"}),
    }
    when = datetime(2026, 3, 7, 9, 5, 2).astimezone()
    text = "%date:yyyy-MM-dd%/%RandomNoise.noise_seed%_%stage 1.sampler_name%_%no.thing%"
    assert expand_prefix(text, Graph(nodes), when) == "2026-03-07/42_a_b_%no.thing%"
    assert next_output_path(tmp_path, "a/b/c").path(".mp4") == tmp_path / "a/b/c_00001_.mp4"
    for bad in ("../x", "a/../../x", "/x", "C:/x", "a\\..\\..\\x", "a\0b", "con"):
        with pytest.raises(WorkflowError):
            next_output_path(tmp_path, bad)
    (tmp_path / "link").symlink_to(tmp_path.parent)
    with pytest.raises(WorkflowError, match="through a link"):
        next_output_path(tmp_path, "link/x")


def test_a_name_taken_by_another_process_is_not_overwritten(tmp_path: Path) -> None:
    where = next_output_path(tmp_path, "clip")
    (tmp_path / "clip_00001_.mp4").write_text("theirs")
    (tmp_path / "part").write_text("ours")
    path = claim_path(where, ".mp4", tmp_path / "part")
    assert path.name == "clip_00002_.mp4" and path.read_text() == "ours"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip_00001_.mp4", "clip_00002_.mp4"]


@pytest.mark.parametrize("seed", [2**53, 2**53 + 1, 2**64 - 1])
def test_seeds_keep_all_64_bits(work: Engine, seed: int) -> None:
    (noise,), _ = run_node(work, "RandomNoise", noise_seed=seed)
    assert noise.seed == seed


@pytest.mark.parametrize("given", ["18446744073709551615", 2**64 - 1])
def test_integers_written_as_text_are_exact(given: str | int) -> None:
    assert parse_integer(given) == 2**64 - 1
    assert parse_integer("7.9") == 7


@pytest.mark.parametrize("kind", ["PrimitiveInt", "INTConstant", "SimpleMath+", "expression"])
def test_folded_integers_keep_all_64_bits(kind: str) -> None:
    value = 2**53 + 1
    node = {
        "SimpleMath+": Node("1", kind, "", {"value": "a + 0", "a": value}),
        "expression": Node(
            "1", "ComfyMathExpression", "", {"expression": "a + 0", "values.a": value}
        ),
    }.get(kind, Node("1", kind, "", {"value": value}))
    outputs = fold_constants(Graph({"1": node}))
    assert value in [v for v in outputs.values() if type(v) is int]

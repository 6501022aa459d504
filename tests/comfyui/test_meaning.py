"""Nodes whose results were measured against ComfyUI 0.33: references are computed here."""

from __future__ import annotations

import io
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers.workflow_graphs import engine, graph
from helpers.workflow_nodes import first_output, run_node
from numpy.typing import NDArray

from latent_ladder.comfyui.conversion import export_workflow
from latent_ladder.comfyui.exporter.file_names import file_names_for
from latent_ladder.comfyui.importer.graph_walker import GraphWalker
from latent_ladder.comfyui.importer.sampling import _SIGMA_READERS
from latent_ladder.comfyui.node_defs.images import rtx_size
from latent_ladder.comfyui.node_defs.sampling import parse_manual_sigmas, split_by_denoise
from latent_ladder.comfyui.nodes.audio import crop_audio, read_audio
from latent_ladder.comfyui.nodes.guides import Guide, GuidedLatent, latent_mask
from latent_ladder.comfyui.nodes.sampling_tokens import _kept_token_indices
from latent_ladder.comfyui.runtime.engine import Engine
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    Guider,
    Images,
    Latent,
    Noise,
    Sampler,
    SigmaList,
    StreamTerms,
)
from latent_ladder.errors import WorkflowError
from latent_ladder.media.image_input import compress_like_video
from latent_ladder.media.video_reader import read_float_frames, read_frames
from latent_ladder.request.model import Request

NO_GUIDER = Guider(None, None, None, StreamTerms(), StreamTerms())  # type: ignore[arg-type]
"""A guider that nothing may read."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return engine(tmp_path_factory.mktemp("meaning"))


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """Waves and noise: costly for an encoder."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / 9), 128 + 80 * np.cos(y / 7), (x * 3 + y * 5) % 256]
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return (np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


# --- image compression ----------------------------------------------------------------------------


def one_frame_mp4(pixels: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    """An MP4 of one frame at one frame a second, by FFmpeg's defaults otherwise, decoded."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as out:
        options = {"crf": str(crf), "preset": "veryfast"}
        stream = out.add_stream("libx264", rate=1, options=options)
        stream.height, stream.width = pixels.shape[:2]
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    data.seek(0)
    with av.open(data) as container:
        return np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))


@pytest.mark.parametrize("size", [(96, 64), (320, 192)])
@pytest.mark.parametrize("crf", [18, 35])
def test_images_are_compressed_as_a_clip_of_one_second(size: tuple[int, int], crf: int) -> None:
    pixels = picture(*size)
    assert np.array_equal(compress_like_video(pixels, crf), one_frame_mp4(pixels, crf))


def test_preprocessing_truncates_to_8_bits(work: Engine) -> None:
    pixels = picture(96, 64)
    above = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 + 0.9 / 255
    images = Images.from_tensor(above.clamp(max=1))
    found = first_output(work, "LTXVPreprocess", image=images, img_compression=18).to_tensor()
    expected = torch.from_numpy(one_frame_mp4(pixels, 18)).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(found, expected)


# --- videos and audio -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of coloured lines, 40 pixels wide, with AAC whose last block is not full."""
    path = tmp_path_factory.mktemp("stripes") / "stripes.mp4"
    pixels = np.zeros((36, 40, 3), np.uint8)
    pixels[:, ::2], pixels[::3] = (255, 0, 0), (0, 255, 0)
    tone = np.sin(np.arange(4321) / 9).astype(np.float32)[None].repeat(2, 0) * 0.3
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=24, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = 40, 36, "yuv420p"
        audio = out.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(tone, "fltp", "stereo")
        frame.sample_rate, frame.pts = 48000, 0
        for packet in (
            *video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")), *audio.encode(frame),
            *video.encode(None), *audio.encode(None),
        ):  # fmt: skip
            out.mux(packet)
    return path


def test_load_video_interpolates_chroma(stripes: Path) -> None:
    (found,) = read_float_frames(stripes)
    (rounded,) = read_frames(stripes)
    assert found.shape == rounded.shape == (36, 40, 3) and found.dtype == np.float32
    # repeated chroma samples are far away: FFmpeg's conversion to 8 bits
    error = np.square(found - rounded / np.float32(255)).mean()
    assert 10 * math.log10(1 / error) < 40
    with av.open(str(stripes)) as container:
        frame = next(container.decode(video=0))
        # the conversion that ComfyUI asks FFmpeg for, on the part that the padding does not touch
        expected = frame.to_ndarray(format="gbrpf32le")[:, :24]
    np.testing.assert_allclose(found[:, :24], expected, atol=1e-6)


def test_load_audio_keeps_the_last_block(stripes: Path) -> None:
    audio = read_audio(stripes)
    assert audio.waveform.shape[1] % 1024 == 0 and audio.waveform.shape[1] >= 4321


@pytest.mark.parametrize(
    ("length", "start", "kept"), [(4096, 0, 4096), (9000, 404, 8192), (10, 5, 0)]
)
def test_audio_is_cropped_to_its_middle(length: int, start: int, kept: int) -> None:
    wave = torch.arange(length).expand(2, -1).float()
    found = crop_audio(wave)
    assert found.shape == (2, kept)
    if kept:
        assert found[0, 0] == start


def test_the_placeholder_of_audio_only_models(work: Engine) -> None:
    found = first_output(work, "LTXVAudioOnlyEmptyVideoLatent")
    assert isinstance(found, Latent) and found.video is not None
    assert found.video.shape[2:] == (1, 2, 2)


# --- guides ---------------------------------------------------------------------------------------


def test_masks_are_means_over_latents() -> None:
    mask = torch.zeros(17, 64, 32)
    mask[0, :32] = 1
    mask[1:9] = 0.5
    mask[9:13] = 1
    found = latent_mask(mask, (3, 2, 1))
    expected = torch.tensor([[[1.0], [0.0]], [[0.5], [0.5]], [[0.5], [0.5]]])
    torch.testing.assert_close(found, expected)
    assert latent_mask(mask[:1], (3, 2, 1)).shape == (3, 2, 1)
    few = latent_mask(mask[:2], (4, 2, 1))
    torch.testing.assert_close(few[1:], torch.full((3, 2, 1), 0.5))


def test_guides_weigh_attention() -> None:
    latents = torch.zeros(1, 8, 2, 2, 1)
    assert Guide(latents, 0, 0.7, True).attention_weights() is None
    found = Guide(latents, 0, 0.7, True, attention=0.7).attention_weights()
    assert found is not None and found.tolist() == pytest.approx([0.7] * 4)
    mask = torch.full((9, 64, 32), 0.5)
    masked = Guide(latents, 0, 1.0, True, attention=0.5, attention_mask=mask).attention_weights()
    assert masked is not None and masked.tolist() == pytest.approx([0.25] * 4)


def test_a_strong_guide_on_a_smaller_grid_has_no_tokens(work: Engine) -> None:
    """ComfyUI takes a noise mask below 0 for a gap, and 1 - strength is below 0 there."""
    clip = Conditioning(None, "")  # type: ignore[arg-type]
    video = Latent(video=torch.zeros(1, 8, 2, 4, 4))
    small = torch.ones(1, 8, 1, 2, 2)
    for is_dropped, tokens in ((False, 4), (True, 0)):
        guide = Guide(small, 0, 2.0, True, stride=2, attention=2.0, is_dropped=is_dropped)
        found = GuidedLatent(clip, clip, video).with_guide(guide)
        assert found.positive.guides[0].positions.shape[2] == tokens
        kept = _kept_token_indices(found.positive, found.latent)
        assert kept is not None and len(kept) == 2 * 16 + tokens
        assert found.without_guides().latent.video is not None


# --- schedules and sizes --------------------------------------------------------------------------


def test_a_number_with_two_points_is_an_error_of_the_node(work: Engine) -> None:
    with pytest.raises(WorkflowError, match=r"1\.\.5"):
        run_node(work, "ManualSigmas", sigmas="1..5, 0")
    with pytest.raises(ValueError, match="not a number"):
        parse_manual_sigmas("1..5")
    wrong = graph({"s": ("ManualSigmas", {"sigmas": "1..5, 0"})})
    with pytest.raises(WorkflowError, match=r"1\.\.5"):
        _SIGMA_READERS["ManualSigmas"](GraphWalker(wrong), wrong.nodes["s"], 0, 100)


@pytest.mark.parametrize("denoise", [0.0, 0.26, 0.5, 1.0])
def test_split_by_denoise(denoise: float) -> None:
    sigmas = (1.0, 0.8, 0.5, 0.2, 0.0)
    steps = round(4 * denoise)
    high, low = split_by_denoise(sigmas, denoise)
    assert high == (sigmas[: 5 - steps] if steps else ())
    assert low == sigmas[4 - steps :]


def test_an_empty_schedule_passes_the_latent_through(work: Engine) -> None:
    latent = Latent(video=torch.ones(1, 8, 1, 2, 2), audio=torch.ones(1, 8, 3, 16))
    outputs, warnings = run_node(
        work, "LTXVNormalizingSampler", noise=Noise(1), guider=NO_GUIDER, sampler=Sampler("euler"),
        sigmas=SigmaList(()), latent_image=latent,
        video_normalization_factors="1,1", audio_normalization_factors="1,1",
    )  # fmt: skip
    assert outputs[0] is latent and warnings == ["no_sigmas"]


@pytest.mark.parametrize(
    ("sides", "expected"), [((101 * 1.27, 64), (128, 64)), ((139.9, 131.9), (136, 128))]
)
def test_sides_of_rtx_are_cut_off_before_rounding(
    sides: tuple[float, float], expected: tuple[int, int]
) -> None:
    assert rtx_size(*sides) == expected


# --- exported files -------------------------------------------------------------------------------


def test_exports_leave_out_optional_widgets_with_defaults() -> None:
    """``bit_depth`` of ``CreateVideo`` is a number in one version of ComfyUI, a text in another."""
    request = Request.from_preset("balanced", prompt="a red ball")
    document = export_workflow(request, file_names_for(request, []), "ui")
    (create,) = (n for n in document["nodes"] if n["type"] == "CreateVideo")
    assert create["widgets_values"] == [30.0]
    assert [i["name"] for i in create["inputs"]] == ["images", "audio", "fps"]
    (save,) = (n for n in document["nodes"] if n["type"] == "SaveVideo")
    assert save["widgets_values"][:2] == ["video/balanced", "auto"]

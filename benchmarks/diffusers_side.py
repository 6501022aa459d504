"""diffusers' side of ``two_stage.py``: makes the same clip with its own pipelines.

Run as a program with a job file (see ``two_stage.py``). Imports nothing from latent-ladder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import sentencepiece  # noqa: E402
import torch  # noqa: E402
from diffusers import (  # noqa: E402
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2LatentUpsamplePipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import (  # noqa: E402
    LTX2LatentUpsamplerModel,
    LTX2TextConnectors,
    LTX2VocoderWithBWE,
)
from diffusers.utils import encode_video  # noqa: E402
from transformers import BatchFeature, Gemma3TextModel  # noqa: E402

CLASSES = {
    "transformer": LTX2VideoTransformer3DModel,
    "vae": AutoencoderKLLTX2Video,
    "audio_vae": AutoencoderKLLTX2Audio,
    "vocoder": LTX2VocoderWithBWE,
    "connectors": LTX2TextConnectors,
    "text_encoder": Gemma3TextModel,
    "upsampler": LTX2LatentUpsamplerModel,
}


Spent = dict[str, tuple[float, float]]
"""Wall and processor seconds by phase."""


class SpieceTokenizer:
    """Tokenizer with the model's SentencePiece vocabulary and the interface of the pipeline.

    transformers' converter of a single ``tokenizer.model`` gives ids that differ from the
    reference.
    """

    padding_side, pad_token, model_max_length = "left", "<pad>", 1024

    def __init__(self, path: Path) -> None:
        self._vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def __call__(self, prompt: list[str], max_length: int, **_: Any) -> BatchFeature:
        rows = [[2, *self._vocabulary.encode(text)][:max_length] for text in prompt]
        ids = [[0] * (max_length - len(row)) + row for row in rows]
        mask = [[0] * (max_length - len(row)) + [1] * len(row) for row in rows]
        return BatchFeature({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})


def main() -> None:
    """Make one clip and write the seconds of each phase."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("job", type=Path)
    job = json.loads(arguments.parse_args().job.read_text())
    spent: Spent = {"imports": (time.perf_counter() - STARTED, time.process_time())}
    folder = Path(job["folder"])
    counter = _counter(job)
    with counter, torch.no_grad():
        pipeline, upsampler = _time_phase(spent, "load", _load, folder)
        stage_1 = _time_phase(spent, "text and stage 1", _stage_1, pipeline, job)
        larger = _time_phase(spent, "upsample", _upsample, upsampler, stage_1[0])
        clip, sound = _time_phase(
            spent, "text, stage 2 and decode", _stage_2, pipeline, job, larger, stage_1[1]
        )
        _time_phase(spent, "encode", _encode, pipeline, job, clip, sound)
    record: dict[str, Any] = {"spent": spent}
    if job["check"]:
        mean, std = (
            getattr(pipeline.vae, f"latents_{name}").view(1, -1, 1, 1, 1)
            for name in ("mean", "std")
        )
        torch.save((stage_1[0] - mean) / std, job["check"])
        record["flops"] = counter.get_total_flops()
    Path(job["record"]).write_text(json.dumps(record))


def _counter(job: dict[str, Any]) -> Any:
    from contextlib import nullcontext

    if not job["check"]:
        return nullcontext()
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


def _time_phase(spent: Spent, name: str, function: Any, *arguments: Any) -> Any:
    began, worked = time.perf_counter(), time.process_time()
    result = function(*arguments)
    spent[name] = (time.perf_counter() - began, time.process_time() - worked)
    return result


def _load(folder: Path) -> tuple[LTX2Pipeline, LTX2LatentUpsamplePipeline]:
    parts = {
        name: kind.from_pretrained(folder / name, dtype=torch.float32)
        for name, kind in CLASSES.items()
    }
    upsampler = parts.pop("upsampler")
    # Both stages use the job's sigmas without shifting, as in the distilled recipe.
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift_terminal=None)
    pipeline = LTX2Pipeline(
        scheduler=scheduler, tokenizer=SpieceTokenizer(folder / "tokenizer.model"), **parts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, LTX2LatentUpsamplePipeline(vae=parts["vae"], latent_upsampler=upsampler)


def _guidance(video: dict[str, Any], audio: dict[str, Any]) -> dict[str, Any]:
    """Guidance under the pipeline's eight argument names.

    The pipeline reads 0 for sound as "as for the picture", so both need the same zeros.
    """
    names = {
        "guidance_scale": "cfg",
        "stg_scale": "stg",
        "modality_scale": "modality",
        "guidance_rescale": "rescale",
    }
    arguments = {name: video[ours] for name, ours in names.items()}
    arguments |= {f"audio_{name}": audio[ours] for name, ours in names.items()}
    return arguments | {"spatio_temporal_guidance_blocks": list(video["stg_blocks"]) or None}


def _stage_1(pipeline: LTX2Pipeline, job: dict[str, Any]) -> Any:
    return pipeline(
        prompt=job["prompt"],
        negative_prompt=job["negative_prompt"],
        width=job["width"] // 2,
        height=job["height"] // 2,
        num_frames=job["frames"],
        frame_rate=float(job["fps"]),
        sigmas=job["sigmas_1"][:-1],
        generator=torch.Generator().manual_seed(job["seed"]),
        output_type="latent",
        return_dict=False,
        max_sequence_length=job["text_length"],
        **_guidance(job["guidance"]["video"], job["guidance"]["audio"]),
    )


def _upsample(pipeline: LTX2LatentUpsamplePipeline, latents: torch.Tensor) -> torch.Tensor:
    larger: torch.Tensor = pipeline(latents=latents, output_type="latent", return_dict=False)[0]
    return larger


OFF = {"cfg": 1.0, "stg": 0.0, "modality": 1.0, "rescale": 0.0, "stg_blocks": []}


def _stage_2(
    pipeline: LTX2Pipeline, job: dict[str, Any], latents: torch.Tensor, audio: torch.Tensor
) -> Any:
    return pipeline(
        prompt=job["prompt"],
        latents=latents,
        audio_latents=audio,
        width=job["width"],
        height=job["height"],
        num_frames=job["frames"],
        frame_rate=float(job["fps"]),
        sigmas=job["sigmas_2"][:-1],
        noise_scale=job["sigmas_2"][0],
        generator=torch.Generator().manual_seed(job["seed"]),
        output_type="np",
        return_dict=False,
        max_sequence_length=job["text_length"],
        **_guidance(OFF, OFF),
    )


def _encode(pipeline: LTX2Pipeline, job: dict[str, Any], clip: Any, sound: torch.Tensor) -> None:
    encode_video(
        clip[0],
        fps=job["fps"],
        output_path=job["output"],
        audio=sound[0].float().cpu(),
        audio_sample_rate=pipeline.vocoder.config.output_sampling_rate,
    )


if __name__ == "__main__":
    main()

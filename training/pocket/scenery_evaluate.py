"""Evaluate the second edition of the pocket model from the training state.

    python training/pocket/scenery_evaluate.py --prompts 100

Parts: `vae` (real clips through the VAE: PSNR, edges, halos, stains, and the judge's ceilings),
`draft` (the judge on stage 1 of the test prompts, and a sheet), `ladder` (512 px: upsampled,
refined from several `refine.denoise` with and without the LoRA, true latents, true render). Results
are merged into runs/scenery.json; sheets are runs/scenery-*.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import dit
import lora
import measures
import sampling
import scenery_vae
import torch
import upsampler
import vae as video_vae
from PIL import Image
from scenery import Scene
from scenery_judge import held_out, judge, track
from scenery_render import render
from state import RUNS, log, prepare, read
from torch import Tensor

STARTS = (0.2, 0.3, 0.4, 0.6, 0.8)  # values of the product's `refine.denoise`
KEPT_MOTION = 0.12  # largest path difference from the draft that counts as kept, in half sides
TRACKED_FRAMES = slice(0, 25, 8)
FRAMES = 25


@dataclasses.dataclass(frozen=True)
class Setup:
    """The networks to evaluate; `lora_model` is the model with the distilled LoRA."""

    vae: Any
    model: dit.PocketModel
    lora_model: dit.PocketModel
    latent_upsampler: Any

    @classmethod
    def load(cls) -> Setup:
        """Load all networks from the training state, with averaged weights."""
        plain, lora_model = dit.load_model(), dit.load_model()
        if lora.STATE.exists():
            lora.restore(lora.add_adapters(lora_model.net), read(lora.STATE)["lora"])
        for model in (plain, lora_model):
            model.net.eval(), model.tower.eval()
        return cls(scenery_vae.load(), plain, lora_model, upsampler.load_upsampler())

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (B, C, F, H, W) to uint8 clips (B, F, H, W, 3)."""
        raw = [video_vae.denormalize(self.vae, z[None]) for z in latents]
        return torch.cat([video_vae.decode(self.vae, z) for z in raw])

    def drafts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Video latents and audio tokens of stage 1, generated eight prompts at a time."""
        generated = [
            sampling.generate(self.model, prompts[i : i + 8], seed=i)
            for i in range(0, len(prompts), 8)
        ]
        video, audio = zip(*generated, strict=True)
        return torch.cat(video), torch.cat(audio)


def judge_rates(clips: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of clips that show the prompted value, by attribute."""
    results = [judge(c, s) for c, s in zip(clips, scenes, strict=True)]
    return {n: sum(r[n] for r in results) / len(results) for n in results[0]}


def sheet(clips: Tensor, name: str, columns: int = 4) -> None:
    """Write a contact sheet: first, middle and last frame of each clip, up to 128 px each."""
    strips = [torch.cat([c[0], c[len(c) // 2], c[-1]], dim=1) for c in clips.cpu()]
    step = max(1, strips[0].shape[0] // 128)
    strips = [s[::step, ::step] for s in strips]
    strips += [strips[0] * 0] * (-len(strips) % columns)
    rows = [torch.cat(strips[i : i + columns], 1) for i in range(0, len(strips), columns)]
    RUNS.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(rows, 0).numpy()).save(RUNS / f"scenery-{name}.png")


def part_vae(setup: Setup, count: int) -> dict[str, Any]:
    """Ceiling of the judge (real clips through the VAE), and measures of the VAE at both sizes."""
    scenes, _ = held_out(max(2, count // 4))
    true = torch.cat([render([s], FRAMES, 256) for s in scenes])
    reconstructed = scenery_vae.reconstruct(setup.vae, true)
    subset = scenes[: max(2, count // 12)]
    return {
        "judge_ceiling": judge_rates(reconstructed, scenes),
        "256": scenery_vae.score(setup.vae, scenes, 256, FRAMES),
        "512": scenery_vae.score(setup.vae, subset, 512, FRAMES),
    }


def part_draft(setup: Setup, count: int) -> dict[str, Any]:
    """The judge on drafts of the test prompts, and a contact sheet."""
    scenes, prompts = held_out(count)
    clips = setup.decode(setup.drafts(prompts)[0])
    sheet(clips[:24], "draft")
    return {"prompts": count, "rates": judge_rates(clips, scenes)}


def stage_clips(
    setup: Setup, video: Tensor, audio: Tensor, scene: Scene, prompt: str
) -> dict[str, Tensor]:
    """Clips of 512 px by name: one draft upsampled and refined, and the true scene."""
    up = sampling.upsample_latents(setup.latent_upsampler, setup.vae, video)
    true = render([scene], FRAMES, 512)
    clips = {
        "upsampled": setup.decode(up)[0],
        "true latents": scenery_vae.reconstruct(setup.vae, true)[0],
        "true render": true[0],
    }
    runs = [(f"refined {s:g}", setup.lora_model, s) for s in STARTS]
    for name, model, denoise in [*runs, ("0.4 without LoRA", setup.model, 0.4)]:
        levels = sampling.refine_sigmas(denoise)
        clips[name] = setup.decode(sampling.refine(model, [prompt], up, audio, levels)[0])[0]
    return clips


def part_ladder(setup: Setup, count: int) -> dict[str, Any]:
    """Detail that stage 2 adds, and motion that it keeps.

    A draft has no true clip, so the measures of the clips are compared with those of true renders
    of the same prompts.
    """
    scenes, prompts = held_out(max(2, count // 8))
    video, audio = setup.drafts(prompts)
    rows: dict[str, list[dict[str, float]]] = {}
    pictures = []
    for i, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        clips = stage_clips(setup, video[i : i + 1], audio[i : i + 1], scene, prompt)
        path = track(clips["upsampled"][TRACKED_FRAMES], scene)
        for name, clip in clips.items():
            away = measures.path_difference(track(clip[TRACKED_FRAMES], scene), path)
            row = {**measures.detail(clip), "kept": float(away < KEPT_MOTION)}
            rows.setdefault(name, []).append(row)
        pictures += [clips[n] for n in ("upsampled", "refined 0.4", "true latents", "true render")]
    sheet(torch.stack(pictures), "ladder")
    return {"clips": len(scenes), "rows": {n: measures.averages(r) for n, r in rows.items()}}


PARTS: dict[str, Callable[[Setup, int], dict[str, Any]]] = {
    "vae": part_vae,
    "draft": part_draft,
    "ladder": part_ladder,
}


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--prompts", type=int, default=100, help="of `draft`; others use a share")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    prepare(options.threads)
    setup, path = Setup.load(), RUNS / "scenery.json"
    for name in options.parts.split(","):
        start = time.time()
        part = PARTS[name](setup, options.prompts) | {"seconds": time.time() - start}
        result = json.loads(path.read_text()) if path.exists() else {}
        result[name] = part
        path.write_text(json.dumps(result, indent=1))
        log("scenery_evaluate", part=name, **part)


if __name__ == "__main__":
    main()

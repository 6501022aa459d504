"""How good the second edition is, from the training state.

    python training/pocket/scenery_evaluate.py --prompts 100

Parts: `vae` (copies of true clips: PSNR, edges, halos, stains, and the judge's ceilings), `draft`
(stage 1 of held-out prompts against the judge, and a sheet), `ladder` (512 px: upsampled, refined
from several `refine.denoise` with and without the LoRA, true latents, true render). Results are
merged into runs/scenery.json; sheets are runs/scenery-*.png.
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

STARTS = (0.2, 0.3, 0.4, 0.6, 0.8)  # `refine.denoise`, as the product means it
KEPT_MOTION = 0.12  # half sides by which a refined object may leave its draft's path
TRACKED = slice(0, 25, 8)
FRAMES = 25


@dataclasses.dataclass(frozen=True)
class Setup:
    """The networks; `adapted` is the transformer with the LoRA."""

    vae: Any
    trainee: dit.Trainee
    adapted: dit.Trainee
    zoom: Any

    @classmethod
    def of(cls) -> Setup:
        """From the training state (averaged weights)."""
        plain, adapted = dit.trained(), dit.trained()
        if lora.STATE.exists():
            lora.restore(lora.adapt(adapted.net), read(lora.STATE)["lora"])
        for one in (plain, adapted):
            one.net.eval(), one.tower.eval()
        return cls(scenery_vae.load(), plain, adapted, upsampler.trained())

    def decoded(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, F, H, W) -> uint8 clips."""
        raw = [video_vae.denormalize(self.vae, z[None]) for z in latents]
        return torch.cat([video_vae.decode(self.vae, z) for z in raw])

    def drafts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Latents and sound tokens of prompts, eight at a time."""
        made = [
            sampling.generate(self.trainee, prompts[i : i + 8], seed=i)
            for i in range(0, len(prompts), 8)
        ]
        video, audio = zip(*made, strict=True)
        return torch.cat(video), torch.cat(audio)


def rates(clips: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of right answers of the judge, by attribute."""
    results = [judge(c, s) for c, s in zip(clips, scenes, strict=True)]
    return {n: sum(r[n] for r in results) / len(results) for n in results[0]}


def sheet(clips: Tensor, name: str, columns: int = 4) -> None:
    """Contact sheet: first, middle and last frame of each clip, at most 128 px each."""
    strips = [torch.cat([c[0], c[len(c) // 2], c[-1]], dim=1) for c in clips.cpu()]
    step = max(1, strips[0].shape[0] // 128)
    strips = [s[::step, ::step] for s in strips]
    strips += [strips[0] * 0] * (-len(strips) % columns)
    rows = [torch.cat(strips[i : i + columns], 1) for i in range(0, len(strips), columns)]
    RUNS.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(rows, 0).numpy()).save(RUNS / f"scenery-{name}.png")


def part_vae(setup: Setup, count: int) -> dict[str, Any]:
    """Copies of true clips."""
    scenes, _ = held_out(max(2, count // 4))
    true = torch.cat([render([s], FRAMES, 256) for s in scenes])
    copies = scenery_vae.coded(setup.vae, true)
    few = scenes[: max(2, count // 12)]
    return {
        "judge_ceiling": rates(copies, scenes),
        "256": scenery_vae.score(setup.vae, scenes, 256, FRAMES),
        "512": scenery_vae.score(setup.vae, few, 512, FRAMES),
    }


def part_draft(setup: Setup, count: int) -> dict[str, Any]:
    """Stage 1 against the judge."""
    scenes, prompts = held_out(count)
    clips = setup.decoded(setup.drafts(prompts)[0])
    sheet(clips[:24], "draft")
    return {"prompts": count, "rates": rates(clips, scenes)}


def ladder_clips(
    setup: Setup, one: Tensor, tone: Tensor, scene: Scene, prompt: str
) -> dict[str, Tensor]:
    """Clips at 512 px by name, from one draft."""
    up = sampling.zoomed(setup.zoom, setup.vae, one)
    true = render([scene], FRAMES, 512)
    clips = {
        "upsampled": setup.decoded(up)[0],
        "true latents": scenery_vae.coded(setup.vae, true)[0],
        "true render": true[0],
    }
    runs = [(f"refined {s:g}", setup.adapted, s) for s in STARTS]
    for name, net, denoise in [*runs, ("0.4 without LoRA", setup.trainee, 0.4)]:
        levels = sampling.refine_sigmas(denoise)
        clips[name] = setup.decoded(sampling.refine(net, [prompt], up, tone, levels)[0])[0]
    return clips


def part_ladder(setup: Setup, count: int) -> dict[str, Any]:
    """Detail that stage 2 adds, and motion that it keeps. Drafts have no true clip: bands are of
    the pictures themselves, next to those of true clips of the same prompts."""
    scenes, prompts = held_out(max(2, count // 8))
    video, audio = setup.drafts(prompts)
    rows: dict[str, list[dict[str, float]]] = {}
    pictures = []
    for i, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        clips = ladder_clips(setup, video[i : i + 1], audio[i : i + 1], scene, prompt)
        path = track(clips["upsampled"][TRACKED], scene)
        for name, clip in clips.items():
            away = measures.path_difference(track(clip[TRACKED], scene), path)
            kept = float(away < KEPT_MOTION)
            rows.setdefault(name, []).append({**measures.detail(clip), "kept": kept})
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
    setup, path = Setup.of(), RUNS / "scenery.json"
    for name in options.parts.split(","):
        start = time.time()
        part = PARTS[name](setup, options.prompts) | {"seconds": time.time() - start}
        result = json.loads(path.read_text()) if path.exists() else {}
        result[name] = part
        path.write_text(json.dumps(result, indent=1))
        log("scenery_evaluate", part=name, **part)


if __name__ == "__main__":
    main()

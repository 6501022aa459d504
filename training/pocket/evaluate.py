"""Evaluate the pocket model: one command for every measure in docs/laboratory/pocket.md.

    python training/pocket/evaluate.py                        # all parts
    python training/pocket/evaluate.py --parts draft,ladder --prompts 24

Parts, with their time in seconds of one core. At 100 prompts: `draft` 300 (judge, audio, contact
sheet); `ladder` 810 and `ladder_true` 810 (detail and motion of draft, upsampled, refined and true
clips, from generated and from perfect drafts, 12 clips); `upscale` 100. At 64 prompts: `vae` 120
(ceilings of the judge, PSNR of the VAE and of the upsampler), `image` 50, `diversity` 95,
`guidance` 130, `synonyms` 35. Results are merged into runs/NAME.json; sheets are runs/NAME-*.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

import cache
import dit
import lora
import measures
import sampling
import sound_nets
import torch
import upsampler
import upscaler
import vae as video_vae
import world
from fit import Fit
from judge import CHOICES, center_scene, held_out, judge, rare_word_caption, rates, track
from PIL import Image
from sound import SAMPLE_RATE
from sound_train import pitch_contour
from state import RUNS, log, save
from torch import Tensor
from vae_train import load

STARTS = (0.25, 0.35, 0.55, 0.9)  # values of the product's `refine.denoise`
KEPT_MOTION = 0.12  # largest path difference from the draft that counts as kept, in half sides
TRACKED_FRAMES = slice(0, 25, 4)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The networks to evaluate; `lora_model` is the model with the distilled LoRA."""

    vae: Any
    model: dit.PocketModel
    lora_model: dit.PocketModel
    latent_upsampler: Any
    name: str

    @classmethod
    def load(cls, name: str) -> Setup:
        """Load all networks from the training state, with averaged weights."""
        plain, lora_model = dit.load_model(), dit.load_model()
        if lora.STATE.exists():
            state = torch.load(lora.STATE, weights_only=True)
            lora.restore(lora.add_adapters(lora_model.net), state["lora"])
        for model in (plain, lora_model):
            model.net.eval(), model.tower.eval()
        return cls(load(), plain, lora_model, upsampler.load_upsampler(), name)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (B, C, F, H, W) to uint8 clips (B, F, H, W, 3)."""
        clips = [
            video_vae.decode(self.vae, video_vae.denormalize(self.vae, z[None])) for z in latents
        ]
        return torch.cat(clips)

    def encode_renders(self, scenes: list[world.Scene], size: int, frames: int = 25) -> Tensor:
        """Normalised latents of rendered scenes."""
        signals = [video_vae.to_signal(world.render([s], frames, size)) for s in scenes]
        return video_vae.normalize(
            self.vae, torch.cat([video_vae._encode(self.vae, v) for v in signals])
        )

    def drafts(self, prompts: list[str], **options: Any) -> tuple[Tensor, Tensor]:
        """Video latents and audio tokens of stage 1, generated eight prompts at a time.

        Results are cached in runs/cache by prompts, options and weights.
        """
        weights = hashlib.sha256()
        for value in self.model.state().values():
            weights.update(value.numpy())
        parts = []
        for i in range(0, len(prompts), 8):
            identity = f"{prompts[i : i + 8]} {i} {sorted(options.items())} {weights.hexdigest()}"
            path = (
                RUNS / "cache" / f"drafted-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pt"
            )
            if not path.exists():
                generated = sampling.generate(self.model, prompts[i : i + 8], seed=i, **options)
                save(dict(zip(("video", "audio"), generated, strict=True)), path)
            parts.append(torch.load(path, weights_only=True))
        return torch.cat([p["video"] for p in parts]), torch.cat([p["audio"] for p in parts])

    def fit_scene(self, draft: Tensor, scene: world.Scene) -> tuple[world.Scene, float]:
        """The scene with these attributes that fits a draft (C, 4, 8, 8) best, and the misfit."""
        with torch.enable_grad():
            encode = video_vae.transform(self.vae, normalized=True)
        fit = Fit(encode, cache.offset(encode), upsampler.channel_weights(self.vae))
        phases = [i / 4 for i in range(4)] if scene.background == "hills" else [0.0]
        starts = [dataclasses.replace(center_scene(scene, scene.motion), phase=p) for p in phases]
        _, fitted, misfit = min((fit(draft, s) for s in starts), key=lambda f: f[2])
        return fit.match_colors(draft, fitted), misfit

    def clips(self, prompts: list[str], **options: Any) -> Tensor:
        """Decoded drafts of prompts."""
        return self.decode(self.drafts(prompts, **options)[0])


def judge_rates(clips: Tensor, scenes: list[world.Scene]) -> dict[str, float]:
    """Share of clips that show the prompted value, by attribute."""
    return rates([judge(c, s) for c, s in zip(clips, scenes, strict=False)])


def sheet(clips: Tensor, name: str, columns: int = 4) -> None:
    """Write a contact sheet: frames 0, 12, 24 of each clip (B, F, H, W, 3), up to 128 px each."""
    strips = [torch.cat([c[0], c[12], c[24]], dim=1) for c in clips]
    step = max(1, strips[0].shape[0] // 128)
    strips = [s[::step, ::step] for s in strips]
    strips += [torch.zeros_like(strips[0])] * (-len(strips) % columns)
    rows = [torch.cat(strips[i : i + columns], 1) for i in range(0, len(strips), columns)]
    Image.fromarray(torch.cat(rows, 0).numpy()).save(RUNS / f"{name}.png")


def part_vae(setup: Setup, count: int) -> dict[str, Any]:
    """Ceiling of the judge (real clips through the VAE); PSNR of VAE and upsampler."""
    scenes, _ = held_out(max(2, count // 2))
    reconstructed = setup.decode(setup.encode_renders(scenes, 256))
    subset = scenes[: max(2, count // 8)]
    true = torch.cat([world.render([s], 25, 512) for s in subset])
    upsampled = setup.decode(
        sampling.upsample_latents(
            setup.latent_upsampler, setup.vae, setup.encode_renders(subset, 256)
        )
    )
    real = setup.decode(setup.encode_renders(subset, 512))
    small = torch.cat([world.render([s], 25, 256) for s in scenes])
    psnr = measures.psnr
    return {
        "judge_ceiling": judge_rates(reconstructed, scenes),
        "clips": {"256": len(scenes), "512": len(subset)},
        "psnr_256": sum(map(psnr, reconstructed, small)) / len(small),
        "psnr_512": sum(map(psnr, real, true)) / len(true),
        "psnr_upsampled": sum(map(psnr, upsampled, true)) / len(true),
    }


def part_draft(setup: Setup, count: int) -> dict[str, Any]:
    """Stage 1: the judge's rates, and how the generated audio follows the prompted motion."""
    scenes, prompts = held_out(count)
    video, audio = setup.drafts(prompts)
    clips = setup.decode(video)
    sheet(clips[:24], f"{setup.name}-draft")
    return {
        "prompts": count,
        "rates": judge_rates(clips, scenes),
        "sound": sound_measures(audio, scenes),
    }


def sound_measures(audio: Tensor, scenes: list[world.Scene]) -> dict[str, Any]:
    """Means of `measures.motion_correlations` over clips with audio tokens (B, T, 32).

    `true` has the same for the scenes' true audio through the same networks.
    """
    nets = sound_nets.load()
    out: dict[str, Any] = {}
    true_tokens = dit.audio_tokens(sound_nets.encode_scenes(nets[0], scenes, 25, dit.FPS))
    for kind, tokens in (("generated", audio), ("true", true_tokens)):
        latents = tokens.unflatten(2, (sound_nets.LATENT_CHANNELS, -1)).transpose(1, 2)
        waves = sound_nets.decode_latents(*nets, latents)
        sums: dict[str, list[float]] = {}
        for wave, scene in zip(waves, scenes, strict=True):
            pitch = pitch_contour(wave, SAMPLE_RATE)
            for name, value in measures.motion_correlations(wave, pitch, scene).items():
                sums.setdefault(name, []).append(value)
        out[kind] = {n: {"mean": sum(v) / len(v), "clips": len(v)} for n, v in sums.items()}
    return out


def stage_measures(
    clip: Tensor, true: Tensor, draft: Tensor, scene: world.Scene
) -> dict[str, float]:
    """Measures of a clip at 512 px: detail, error, and difference from its draft.

    `path` is the difference of the object's motion without the mean offset, `place` with it, `kept`
    whether `path` is below `KEPT_MOTION`.
    """
    small = torch.nn.functional.interpolate(clip.permute(0, 3, 1, 2).float(), 256, mode="area")
    back = small.permute(0, 2, 3, 1).round().to(torch.uint8)
    tracks = [track(c[TRACKED_FRAMES], scene) for c in (back, draft)]
    path = measures.path_difference(*tracks)
    return {
        **measures.detail(clip),
        **measures.error_band_powers(clip, true),
        "psnr": measures.psnr(clip, true),
        "unrest": measures.flat_region_error(clip, true),
        "psnr_to_draft": measures.psnr(back, draft),
        "path": path,
        "place": float((tracks[0] - tracks[1]).norm(dim=1).mean()),
        "kept": float(path < KEPT_MOTION),
    }


def stage_clips(
    setup: Setup, latents: Tensor, audio: Tensor, scene: world.Scene, prompt: str, seed: int
) -> dict[str, Tensor]:
    """Clips at 512 px by name, all of one draft and scene.

    The draft enlarged, upsampled, refined from each of `STARTS` with the LoRA and once without it;
    the true clip of the scene through the VAE, and as rendered.
    """
    draft = setup.decode(latents)[0]
    upsampled = sampling.upsample_latents(setup.latent_upsampler, setup.vae, latents)
    enlarged = torch.nn.functional.interpolate(
        draft.permute(0, 3, 1, 2).float(), 512, mode="bicubic"
    )
    clips = {
        "draft, bicubic": enlarged.clamp(0, 255).permute(0, 2, 3, 1).round().to(torch.uint8),
        "upsampled": setup.decode(upsampled)[0],
        "true latents": setup.decode(setup.encode_renders([scene], 512))[0],
        "true render": world.render([scene], 25, 512)[0],
    }
    runs = [(f"refined {s:g}", setup.lora_model, s) for s in STARTS]
    for name, net, denoise in [*runs, ("without LoRA", setup.model, None)]:
        levels = sampling.refine_sigmas(denoise)
        latents, _ = sampling.refine(net, [prompt], upsampled, audio, levels, seed=seed)
        clips[name] = setup.decode(latents)[0]
    return clips


def compare_stages(
    setup: Setup, small: Tensor, audio: Tensor, scenes: list[world.Scene], prompts: list[str]
) -> dict[str, Any]:
    """Mean `stage_measures` over the scenes, by name of `stage_clips`."""
    rows: dict[str, list[dict[str, float]]] = {}
    pictures = []
    kind = "own" if audio.any() else "true"
    for i, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        latents = small[i : i + 1]
        draft = setup.decode(latents)[0]
        clips = stage_clips(setup, latents, audio[i : i + 1], scene, prompt, seed=i)
        for name, clip in clips.items():
            rows.setdefault(name, []).append(
                stage_measures(clip, clips["true render"], draft, scene)
            )
        means = {name: measures.averages(r) for name, r in rows.items()}
        log("ladder", clip=i, kind=kind, **{n: m["edges"] for n, m in means.items()})
        pictures += [clips[n] for n in ("upsampled", "refined 0.35", "true latents", "true render")]
        sheet(torch.stack(pictures), f"{setup.name}-ladder-{kind}")
    return means


def part_ladder(setup: Setup, count: int) -> dict[str, Any]:
    """Compare the stages on generated drafts.

    The true clip is a render of the scene that fits the draft best, in its colours (fit.py).
    """
    scenes, prompts = held_out(max(2, count // 8))
    video, audio = setup.drafts(prompts)
    fitted = [setup.fit_scene(z, s) for z, s in zip(video[: len(scenes)], scenes, strict=True)]
    return {
        "clips": len(scenes),
        "misfit": sum(m for _, m in fitted) / len(fitted),
        "rows": compare_stages(setup, video, audio, [s for s, _ in fitted], prompts),
    }


def part_ladder_true(setup: Setup, count: int) -> dict[str, Any]:
    """Compare the stages on perfect drafts (true 256 px latents)."""
    scenes, prompts = held_out(max(2, count // 8))
    small = setup.encode_renders(scenes, 256)
    silence = torch.zeros(len(scenes), sampling.audio_length(4), dit.AUDIO_CHANNELS)
    return {"clips": len(scenes), "rows": compare_stages(setup, small, silence, scenes, prompts)}


def part_image(setup: Setup, count: int) -> dict[str, Any]:
    """Image conditioning: PSNR of the given first frame after both stages; the judge's rates."""
    scenes, prompts = held_out(max(2, count // 4))
    first_latents = setup.encode_renders(scenes, 256, 1)[:, :, 0]
    parts = [
        sampling.generate(
            setup.model, prompts[i : i + 8], seed=i, first_latents=first_latents[i : i + 8]
        )
        for i in range(0, len(prompts), 8)
    ]
    video, audio = (torch.cat(x) for x in zip(*parts, strict=True))
    clips = setup.decode(video)
    first = torch.cat([world.render([s], 1, 256) for s in scenes])
    vae_only = setup.decode(first_latents[:, :, None])
    sheet(clips[:16], f"{setup.name}-image")
    subset = slice(0, max(2, count // 16))
    large = setup.encode_renders(scenes[subset], 512, 1)[:, :, 0]
    upsampled = sampling.upsample_latents(setup.latent_upsampler, setup.vae, video[subset])
    levels = sampling.refine_sigmas()
    fine, _ = sampling.refine(
        setup.lora_model, prompts[subset], upsampled, audio[subset], levels, first_latents=large
    )
    refined = setup.decode(fine)
    first_large = torch.cat([world.render([s], 1, 512) for s in scenes[subset]])
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {
        "prompts": len(prompts),
        "rates": judge_rates(clips, scenes),
        "psnr_frame_0": mean(
            [measures.psnr(c[0], f[0]) for c, f in zip(clips, first, strict=True)]
        ),
        "psnr_frame_0_vae": mean(
            [measures.psnr(c[0], f[0]) for c, f in zip(vae_only, first, strict=True)]
        ),
        "psnr_frame_0_refined": mean(
            [measures.psnr(c[0], f[0]) for c, f in zip(refined, first_large, strict=True)]
        ),
    }


def plain_sentence(scene: world.Scene) -> str:
    """The simplest whole-sentence caption of a scene."""
    words = (world._TEXTURE_WORDS, world._COLOR_WORDS, world._SHAPE_WORDS)
    texture, color, shape = (
        w[v][0] for w, v in zip(words, (scene.texture, scene.color, scene.shape), strict=True)
    )
    thing = " ".join(f"{texture} {color} {shape}".split())
    back = world._BACKGROUND_WORDS[scene.background][0].format(scene.background_color)
    article, moves = world._article(thing).capitalize(), world._MOTION_WORDS[scene.motion][0]
    return f"{article} {thing} {moves} {back}."


def part_diversity(setup: Setup, count: int) -> dict[str, Any]:
    """Response to changes of the prompt and of the seed.

    `one_changed`: rates of the changed attribute (`changed`) and of the others (`rest`) after one
    attribute of the prompt changes under the same seed. `ten_seeds`: rates and differences of ten
    clips of one prompt.
    """
    scenes = held_out(max(2, count // 16))[0]
    rng = random.Random(3)
    changed: dict[str, dict[str, float]] = {}
    for name, values in CHOICES.items():
        others = [
            dataclasses.replace(
                s, **{name: rng.choice([v for v in values if v != getattr(s, name)])}
            )
            for s in scenes
        ]
        results = [
            judge(c, s)
            for c, s in zip(setup.clips([plain_sentence(s) for s in others]), others, strict=True)
        ]
        rest = [sum(r[n] for n in CHOICES if n != name) / (len(CHOICES) - 1) for r in results]
        changed[name] = {
            "changed": sum(r[name] for r in results) / len(results),
            "rest": sum(rest) / len(rest),
        }
    scene = world.example_scene()
    seeds = torch.cat([
        setup.decode(sampling.generate(setup.model, [plain_sentence(scene)], seed=100 + i)[0])
        for i in range(10)
    ])  # fmt: skip
    sheet(seeds, f"{setup.name}-seeds")
    starts = torch.stack([track(c[:1], scene)[0] for c in seeds])
    differences = [
        float((a.float() - b.float()).abs().mean()) for a in seeds for b in seeds if a is not b
    ]
    return {
        "prompts": len(scenes),
        "one_changed": changed,
        "ten_seeds": {
            "rates": judge_rates(seeds, [scene] * 10),
            "start_std": starts.std(0).tolist(),
            "mean_difference_8bit": sum(differences) / len(differences),
        },
    }


def part_guidance(setup: Setup, count: int) -> dict[str, Any]:
    """Rates and saturation of clips at guidance 1 to 5, and with guidance rescale."""
    scenes, prompts = held_out(max(2, count // 6))
    true = torch.cat([world.render([s], 25, 256) for s in scenes])
    out: dict[str, Any] = {"prompts": len(prompts), "true": {"saturation": saturation(true)}}
    for cfg, rescale in ((1, 0.0), (2, 0.0), (3, 0.0), (3, 0.7), (4, 0.0), (5, 0.0)):
        clips = setup.clips(prompts, cfg=float(cfg), rescale=rescale)
        name = f"{cfg}" + (f", rescaled {rescale}" if rescale else "")
        out[name] = judge_rates(clips, scenes) | {"saturation": saturation(clips)}
        sheet(clips[:12], f"{setup.name}-guidance-{cfg}-{rescale:g}")
    return out


def saturation(clips: Tensor) -> float:
    """Mean difference between the largest and the smallest of red, green and blue, 0..1."""
    return float((clips.amax(-1).float() - clips.amin(-1).float()).mean() / 255)


def part_synonyms(setup: Setup, count: int) -> dict[str, Any]:
    """Rates on prompts with the rarer words of the captions."""
    scenes = held_out(max(2, count // 4))[0]
    prompts = [rare_word_caption(s) for s in scenes]
    return {"prompts": prompts, "rates": judge_rates(setup.clips(prompts), scenes)}


def part_upscale(setup: Setup, count: int) -> dict[str, Any]:
    """The pixel upscaler and Lanczos, from true 512 px clips through the VAE to 1024 px."""
    clips = max(2, count // 8)
    return {
        "clips": clips,
        "frames": clips * len(upscaler.MEASURED_FRAMES),
        **upscaler.measure(setup.vae, clips),
    }


PARTS: dict[str, Callable[[Setup, int], dict[str, Any]]] = {
    "vae": part_vae,
    "draft": part_draft,
    "ladder": part_ladder,
    "ladder_true": part_ladder_true,
    "image": part_image,
    "diversity": part_diversity,
    "guidance": part_guidance,
    "synonyms": part_synonyms,
    "upscale": part_upscale,
}


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument(
        "--prompts", type=int, default=100, help="prompts of `draft`; other parts use fewer"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="evaluation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setup = Setup.load(options.name)
    path = RUNS / f"{options.name}.json"
    for name in options.parts.split(","):
        start, busy = time.time(), time.process_time()
        part = PARTS[name](setup, options.prompts)
        result = (
            json.loads(path.read_text()) if path.exists() else {}
        )  # another process may have written
        part |= {"seconds": time.time() - start, "cpu_seconds": time.process_time() - busy}
        part["step"] = int(torch.load(dit.STATE, weights_only=True)["step"])
        result[name] = part
        path.write_text(json.dumps(result, indent=1))
        log("evaluation", part=name, **{k: v for k, v in part.items() if k != "prompts"})


if __name__ == "__main__":
    main()

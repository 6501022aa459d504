"""How good the pocket model is: one command, every measure of docs/laboratory/pocket.md.

    python training/pocket/evaluate.py                        # all parts
    python training/pocket/evaluate.py --parts draft,ladder --prompts 24

Parts (seconds of one core; at 100 prompts): `draft` 300 (judge, sound, picture sheet), `ladder` 810
and `ladder_true` as much (detail and motion of draft, upsampled, refined and true clips, from own
and from perfect drafts, 12 clips); at 64 prompts: `vae` 120 (ceilings of the judge, PSNR of the VAE
and of the upsampler), `image` 50, `diversity` 95, `guidance` 130, `synonyms` 35; `upscale` 100.
Results are merged into runs/NAME.json; sheets are runs/NAME-*.png.
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
from judge import CHOICES, held_out, in_other_words, judge, placed, rates, track
from PIL import Image
from sound import SAMPLE_RATE
from sound_train import pitch_contour
from state import RUNS, log, save
from torch import Tensor
from vae_train import load

STARTS = (0.25, 0.35, 0.55, 0.9)  # `refine.denoise`, as the product means it
KEPT_MOTION = 0.12  # half sides by which a refined object may leave its draft's path
TRACKED = slice(0, 25, 4)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The networks of every part; `adapted` is the transformer with the LoRA."""

    vae: Any
    trainee: dit.Trainee
    adapted: dit.Trainee
    zoom: Any
    name: str

    @classmethod
    def of(cls, name: str) -> Setup:
        """From the training state (averaged weights)."""
        plain, adapted = dit.trained(), dit.trained()
        if lora.STATE.exists():
            state = torch.load(lora.STATE, weights_only=True)
            lora.restore(lora.adapt(adapted.net), state["lora"])
        for one in (plain, adapted):
            one.net.eval(), one.tower.eval()
        return cls(load(), plain, adapted, upsampler.trained(), name)

    def decoded(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, F, H, W) -> uint8 clips."""
        one = [
            video_vae.decode(self.vae, video_vae.denormalize(self.vae, z[None])) for z in latents
        ]
        return torch.cat(one)

    def encoded(self, scenes: list[world.Scene], size: int, frames: int = 25) -> Tensor:
        """Normalised latents of real renders."""
        one = [video_vae.to_signal(world.render([s], frames, size)) for s in scenes]
        return video_vae.normalize(
            self.vae, torch.cat([video_vae._encode(self.vae, v) for v in one])
        )

    def drafts(self, prompts: list[str], **options: Any) -> tuple[Tensor, Tensor]:
        """Latents and sound tokens of prompts, eight at a time; known from an earlier part or run
        with the same weights if there was one."""
        weights = hashlib.sha256()
        for value in self.trainee.state().values():
            weights.update(value.numpy())
        parts = []
        for i in range(0, len(prompts), 8):
            what = f"{prompts[i : i + 8]} {i} {sorted(options.items())} {weights.hexdigest()}"
            path = RUNS / "cache" / f"drafted-{hashlib.sha256(what.encode()).hexdigest()[:16]}.pt"
            if not path.exists():
                made = sampling.generate(self.trainee, prompts[i : i + 8], seed=i, **options)
                save(dict(zip(("video", "audio"), made, strict=True)), path)
            parts.append(torch.load(path, weights_only=True))
        return torch.cat([p["video"] for p in parts]), torch.cat([p["audio"] for p in parts])

    def meant(self, draft: Tensor, scene: world.Scene) -> tuple[world.Scene, float]:
        """The scene with these words that a draft (C, 4, 8, 8) means, and what it leaves open."""
        with torch.enable_grad():
            encode = video_vae.transform(self.vae, normalized=True)
        fit = Fit(encode, cache.offset(encode), upsampler.channel_weights(self.vae))
        phases = [i / 4 for i in range(4)] if scene.background == "hills" else [0.0]
        starts = [dataclasses.replace(placed(scene, scene.motion), phase=p) for p in phases]
        _, found, misfit = min((fit(draft, s) for s in starts), key=lambda f: f[2])
        return fit.tinted(draft, found), misfit

    def clips(self, prompts: list[str], **options: Any) -> Tensor:
        """Decoded drafts."""
        return self.decoded(self.drafts(prompts, **options)[0])


def judged(clips: Tensor, scenes: list[world.Scene]) -> dict[str, float]:
    """Rates of right answers."""
    return rates([judge(c, s) for c, s in zip(clips, scenes, strict=False)])


def sheet(clips: Tensor, name: str, columns: int = 4) -> None:
    """Contact sheet: frames 0, 12 and 24 of each clip (B, F, H, W, 3), at most 128 px each."""
    strips = [torch.cat([c[0], c[12], c[24]], dim=1) for c in clips]
    step = max(1, strips[0].shape[0] // 128)
    strips = [s[::step, ::step] for s in strips]
    strips += [torch.zeros_like(strips[0])] * (-len(strips) % columns)
    rows = [torch.cat(strips[i : i + columns], 1) for i in range(0, len(strips), columns)]
    Image.fromarray(torch.cat(rows, 0).numpy()).save(RUNS / f"{name}.png")


def part_vae(setup: Setup, count: int) -> dict[str, Any]:
    """Ceilings of judge and tracker on real clips through the VAE; PSNR of VAE and upsampler."""
    scenes, _ = held_out(max(2, count // 2))
    coded = setup.decoded(setup.encoded(scenes, 256))
    few = scenes[: max(2, count // 8)]
    true = torch.cat([world.render([s], 25, 512) for s in few])
    up = setup.decoded(sampling.zoomed(setup.zoom, setup.vae, setup.encoded(few, 256)))
    real = setup.decoded(setup.encoded(few, 512))
    small = torch.cat([world.render([s], 25, 256) for s in scenes])
    psnr = measures.psnr
    return {
        "judge_ceiling": judged(coded, scenes),
        "clips": {"256": len(scenes), "512": len(few)},
        "psnr_256": sum(map(psnr, coded, small)) / len(small),
        "psnr_512": sum(map(psnr, real, true)) / len(true),
        "psnr_upsampled": sum(map(psnr, up, true)) / len(true),
    }


def part_draft(setup: Setup, count: int) -> dict[str, Any]:
    """Stage 1: judge, and how the generated sound follows the prompted motion."""
    scenes, prompts = held_out(count)
    video, audio = setup.drafts(prompts)
    clips = setup.decoded(video)
    sheet(clips[:24], f"{setup.name}-draft")
    return {"prompts": count, "rates": judged(clips, scenes), "sound": sounds(audio, scenes)}


def sounds(audio: Tensor, scenes: list[world.Scene]) -> dict[str, Any]:
    """Means of `measures.sound_follows` over generated sound tokens (B, T, 32) and, as `true`, over
    the worlds' own sound through the same networks."""
    nets = sound_nets.load()
    out: dict[str, Any] = {}
    own = dit.audio_tokens(sound_nets.encode_scenes(nets[0], scenes, 25, dit.FPS))
    for kind, tokens in (("generated", audio), ("true", own)):
        latents = tokens.unflatten(2, (sound_nets.LATENT_CHANNELS, -1)).transpose(1, 2)
        waves = sound_nets.decode_latents(*nets, latents)
        sums: dict[str, list[float]] = {}
        for wave, scene in zip(waves, scenes, strict=True):
            pitch = pitch_contour(wave, SAMPLE_RATE)
            for name, value in measures.sound_follows(wave, pitch, scene).items():
                sums.setdefault(name, []).append(value)
        out[kind] = {n: {"mean": sum(v) / len(v), "clips": len(v)} for n, v in sums.items()}
    return out


def ladder_row(clip: Tensor, true: Tensor, draft: Tensor, scene: world.Scene) -> dict[str, float]:
    """One clip at 512 px: detail, difference from its draft, and motion kept: `path` without the
    mean offset, `place` with it."""
    small = torch.nn.functional.interpolate(clip.permute(0, 3, 1, 2).float(), 256, mode="area")
    back = small.permute(0, 2, 3, 1).round().to(torch.uint8)
    tracks = [track(c[TRACKED], scene) for c in (back, draft)]
    path = measures.path_difference(*tracks)
    return {
        **measures.detail(clip),
        **measures.error_powers(clip, true),
        "psnr": measures.psnr(clip, true),
        "unrest": measures.unrest(clip, true),
        "psnr_to_draft": measures.psnr(back, draft),
        "path": path,
        "place": float((tracks[0] - tracks[1]).norm(dim=1).mean()),
        "kept": float(path < KEPT_MOTION),
    }


def ladder_clips(
    setup: Setup, one: Tensor, tone: Tensor, scene: world.Scene, prompt: str, seed: int
) -> dict[str, Tensor]:
    """Clips at 512 px by name: a draft enlarged, upsampled, refined from `STARTS` with the LoRA and
    once without; the true clip of the scene decoded from true latents, and rendered."""
    draft = setup.decoded(one)[0]
    up = sampling.zoomed(setup.zoom, setup.vae, one)
    enlarged = torch.nn.functional.interpolate(
        draft.permute(0, 3, 1, 2).float(), 512, mode="bicubic"
    )
    clips = {
        "draft, bicubic": enlarged.clamp(0, 255).permute(0, 2, 3, 1).round().to(torch.uint8),
        "upsampled": setup.decoded(up)[0],
        "true latents": setup.decoded(setup.encoded([scene], 512))[0],
        "true render": world.render([scene], 25, 512)[0],
    }
    runs = [(f"refined {s:g}", setup.adapted, s) for s in STARTS]
    for name, net, denoise in [*runs, ("without LoRA", setup.trainee, None)]:
        levels = sampling.refine_sigmas(denoise)
        latents, _ = sampling.refine(net, [prompt], up, tone, levels, seed=seed)
        clips[name] = setup.decoded(latents)[0]
    return clips


def ladder(
    setup: Setup, small: Tensor, audio: Tensor, scenes: list[world.Scene], prompts: list[str]
) -> dict[str, Any]:
    """Rows of `ladder_row` means by name of `ladder_clips`."""
    rows: dict[str, list[dict[str, float]]] = {}
    pictures = []
    kind = "own" if audio.any() else "true"
    for i, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        one = small[i : i + 1]
        draft = setup.decoded(one)[0]
        clips = ladder_clips(setup, one, audio[i : i + 1], scene, prompt, seed=i)
        for name, clip in clips.items():
            rows.setdefault(name, []).append(ladder_row(clip, clips["true render"], draft, scene))
        means = {name: measures.averages(r) for name, r in rows.items()}
        log("ladder", clip=i, kind=kind, **{n: m["edges"] for n, m in means.items()})
        pictures += [clips[n] for n in ("upsampled", "refined 0.35", "true latents", "true render")]
        sheet(torch.stack(pictures), f"{setup.name}-ladder-{kind}")
    return means


def part_ladder(setup: Setup, count: int) -> dict[str, Any]:
    """The ladder on the model's own drafts. Their true clip is the one that they mean: the scene
    that explains a draft best, in its own colours (fit.py)."""
    scenes, prompts = held_out(max(2, count // 8))
    video, audio = setup.drafts(prompts)
    meant = [setup.meant(z, s) for z, s in zip(video[: len(scenes)], scenes, strict=True)]
    return {
        "clips": len(scenes),
        "misfit": sum(m for _, m in meant) / len(meant),
        "rows": ladder(setup, video, audio, [s for s, _ in meant], prompts),
    }


def part_ladder_true(setup: Setup, count: int) -> dict[str, Any]:
    """The ladder on perfect drafts (true small latents): the render is what it should become."""
    scenes, prompts = held_out(max(2, count // 8))
    small = setup.encoded(scenes, 256)
    silence = torch.zeros(len(scenes), sampling.audio_length(4), dit.AUDIO_CHANNELS)
    return {"clips": len(scenes), "rows": ladder(setup, small, silence, scenes, prompts)}


def part_image(setup: Setup, count: int) -> dict[str, Any]:
    """First frame given: is it held at both stages, and is the object kept?"""
    scenes, prompts = held_out(max(2, count // 4))
    given = setup.encoded(scenes, 256, 1)[:, :, 0]
    parts = [
        sampling.generate(setup.trainee, prompts[i : i + 8], seed=i, given=given[i : i + 8])
        for i in range(0, len(prompts), 8)
    ]
    video, audio = (torch.cat(x) for x in zip(*parts, strict=True))
    clips = setup.decoded(video)
    first = torch.cat([world.render([s], 1, 256) for s in scenes])
    alone = setup.decoded(given[:, :, None])
    sheet(clips[:16], f"{setup.name}-image")
    few = slice(0, max(2, count // 16))
    large = setup.encoded(scenes[few], 512, 1)[:, :, 0]
    up = sampling.zoomed(setup.zoom, setup.vae, video[few])
    levels = sampling.refine_sigmas()
    fine, _ = sampling.refine(setup.adapted, prompts[few], up, audio[few], levels, given=large)
    refined = setup.decoded(fine)
    first_large = torch.cat([world.render([s], 1, 512) for s in scenes[few]])
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {
        "prompts": len(prompts),
        "rates": judged(clips, scenes),
        "psnr_frame_0": mean(
            [measures.psnr(c[0], f[0]) for c, f in zip(clips, first, strict=True)]
        ),
        "psnr_frame_0_vae": mean(
            [measures.psnr(c[0], f[0]) for c, f in zip(alone, first, strict=True)]
        ),
        "psnr_frame_0_refined": mean(
            [measures.psnr(c[0], f[0]) for c, f in zip(refined, first_large, strict=True)]
        ),
    }


def named(scene: world.Scene) -> str:
    """The plainest whole sentence of a scene."""
    words = (world._TEXTURE_WORDS, world._COLOR_WORDS, world._SHAPE_WORDS)
    texture, color, shape = (
        w[v][0] for w, v in zip(words, (scene.texture, scene.color, scene.shape), strict=True)
    )
    thing = " ".join(f"{texture} {color} {shape}".split())
    back = world._BACKGROUND_WORDS[scene.background][0].format(scene.background_color)
    article, moves = world._article(thing).capitalize(), world._MOTION_WORDS[scene.motion][0]
    return f"{article} {thing} {moves} {back}."


def part_diversity(setup: Setup, count: int) -> dict[str, Any]:
    """One attribute changed under the same seed: does it, and does the rest stay? Ten seeds of one
    prompt: are all as asked, and how far apart do the objects start?"""
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
            for c, s in zip(setup.clips([named(s) for s in others]), others, strict=True)
        ]
        rest = [sum(r[n] for n in CHOICES if n != name) / (len(CHOICES) - 1) for r in results]
        changed[name] = {
            "changed": sum(r[name] for r in results) / len(results),
            "rest": sum(rest) / len(rest),
        }
    scene = world.example_scene()
    seeds = torch.cat([
        setup.decoded(sampling.generate(setup.trainee, [named(scene)], seed=100 + i)[0])
        for i in range(10)
    ])  # fmt: skip
    sheet(seeds, f"{setup.name}-seeds")
    starts = torch.stack([track(c[:1], scene)[0] for c in seeds])
    far = [float((a.float() - b.float()).abs().mean()) for a in seeds for b in seeds if a is not b]
    return {
        "prompts": len(scenes),
        "one_changed": changed,
        "ten_seeds": {
            "rates": judged(seeds, [scene] * 10),
            "start_std": starts.std(0).tolist(),
            "mean_difference_8bit": sum(far) / len(far),
        },
    }


def part_guidance(setup: Setup, count: int) -> dict[str, Any]:
    """Guidance 1 to 5, and rescaled: rates, and how colourful clips are beside true ones."""
    scenes, prompts = held_out(max(2, count // 6))
    true = torch.cat([world.render([s], 25, 256) for s in scenes])
    out: dict[str, Any] = {"prompts": len(prompts), "true": {"saturation": saturation(true)}}
    for cfg, rescale in ((1, 0.0), (2, 0.0), (3, 0.0), (3, 0.7), (4, 0.0), (5, 0.0)):
        clips = setup.clips(prompts, cfg=float(cfg), rescale=rescale)
        name = f"{cfg}" + (f", rescaled {rescale}" if rescale else "")
        out[name] = judged(clips, scenes) | {"saturation": saturation(clips)}
        sheet(clips[:12], f"{setup.name}-guidance-{cfg}-{rescale:g}")
    return out


def saturation(clips: Tensor) -> float:
    """Mean distance between the largest and the smallest of red, green and blue, 0..1."""
    return float((clips.amax(-1).float() - clips.amin(-1).float()).mean() / 255)


def part_synonyms(setup: Setup, count: int) -> dict[str, Any]:
    """Prompts in the rarer of the words that captions use."""
    scenes = held_out(max(2, count // 4))[0]
    prompts = [in_other_words(s) for s in scenes]
    return {"prompts": prompts, "rates": judged(setup.clips(prompts), scenes)}


def part_upscale(setup: Setup, count: int) -> dict[str, Any]:
    """The pixel upscaler against Lanczos: true 512 px clips through the VAE, to 1024 px."""
    clips = max(2, count // 8)
    return {
        "clips": clips,
        "frames": clips * len(upscaler.PICKED),
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
    parser.add_argument("--prompts", type=int, default=100, help="of `draft`; others use a share")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="evaluation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setup = Setup.of(options.name)
    path = RUNS / f"{options.name}.json"
    for name in options.parts.split(","):
        start, busy = time.time(), time.process_time()
        part = PARTS[name](setup, options.prompts)
        result = json.loads(path.read_text()) if path.exists() else {}  # others may write too
        part |= {"seconds": time.time() - start, "cpu_seconds": time.process_time() - busy}
        part["step"] = int(torch.load(dit.STATE, weights_only=True)["step"])
        result[name] = part
        path.write_text(json.dumps(result, indent=1))
        log("evaluation", part=name, **{k: v for k, v in part.items() if k != "prompts"})


if __name__ == "__main__":
    main()

"""Train the audio side of the pocket model on scenes made on the fly, and measure it.

    python training/pocket/sound_train.py all                  # from nothing to the report
    python training/pocket/sound_train.py vae --seconds 300    # go on from the exported parts
    python training/pocket/sound_train.py vocoder --seconds 60 # the same, latents untouched
    python training/pocket/sound_train.py report --from FILE   # measure parts or a checkpoint

A stage starts from the exported parts (or from `--from`: the shipped checkpoint will do) and
overwrites the parts atomically.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import sound_nets
import sound_solve
import torch
import worlds
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE
from state import generator as new_generator
from state import prepare
from torch import Tensor
from torch.nn import functional as F

sound, world = worlds.module("sound"), worlds.module("world")

LATENTS = 26  # of a training clip: one second
CROP = 8
LATENT_NOISE = 0.1
VOCODER_LR = 1e-4  # the solved weights are ill-conditioned: more undoes them
AUDIBLE = -5.0  # log mel below which an error is not heard


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(mels, controls) of `count` fresh scenes."""
    rng = random.Random(seed)
    return sound.scene_mels([world.random_scene(rng) for _ in range(count)], LATENTS)


def _timed(seconds: float) -> Iterator[float]:
    """Fractions of the processor time that has passed, until it is over (machines are shared)."""
    start = time.process_time()
    while (passed := (time.process_time() - start) / seconds) < 1:
        yield passed


def _batches(data: tuple[Tensor, ...], size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    rows = torch.randint(len(data[0]), (size,), generator=generator)
    return tuple(part[rows] for part in data)


def weights_loss(got: Tensor, controls: Tensor) -> Tensor:
    """Error of wavelet weights: about the error of the waveform, since wavelets hardly overlap;
    the absolute term quiets wavelets that should be silent."""
    want = controls / sound.LOUDNESS
    return F.mse_loss(got, want) * 30 + (got - want).abs().mean()


def mel_rate_parameters(net: LTX2VocoderWithBWE, lr: float) -> list[dict[str, object]]:
    """Groups of the main vocoder's layers that run at mel rate; wide layers learn slower, since
    neighbouring mel bins move together."""
    main = net.vocoder
    groups = []
    for part in (main.conv_in, *main.upsamplers[:-1], *main.resnets[:-1]):
        for parameter in part.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            rate = lr * min(1.0, 100 / fan_in)
            groups.append({"params": [parameter], "lr": rate, "full": rate})
    return groups


def train_vocoder(
    net: LTX2VocoderWithBWE, data: tuple[Tensor, Tensor], seconds: float, lr: float, seed: int
) -> None:
    """Fit the stages at mel rate to wavelet weights; the last stage stays the world's wavelets."""
    groups = mel_rate_parameters(net, lr)
    parameters = [group["params"][0] for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    generator = new_generator(seed)
    running, length = 0.0, 40
    for step, passed in enumerate(_timed(seconds)):
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * (min(1, (step + 1) / 20) * (1 - passed) + 0.01)
        mel, controls = _batches(data, 16, generator)
        start = int(torch.randint(mel.shape[2] - length + 1, (), generator=generator))
        start = start if step % 3 else 0
        cut = slice(start, start + length)
        got = sound_nets.wavelet_weights(net, mel[:, :, cut])
        # inside a crop the ends lack the context that they have in a clip
        inside = slice(0 if start == 0 else 5, length - 5)
        loss = weights_loss(got[..., inside], controls[:, :, cut][..., inside])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * float(loss.detach())
        if step % 100 == 99:
            log(stage="vocoder", step=step + 1, loss=running / (1 - 0.98 ** (step + 1)))


@torch.no_grad()
def start_values(vae: AutoencoderKLLTX2Audio, mel: Tensor) -> None:
    """Let input and output convolutions work at the mean and spread of log mels."""
    mean, std = mel.mean(), mel.std()
    conv_in, conv_out = vae.encoder.conv_in.conv, vae.decoder.conv_out.conv
    conv_in.weight.div_(std)
    conv_in.bias.sub_(mean * conv_in.weight.sum((1, 2, 3)))
    conv_out.weight.mul_(std)
    conv_out.bias.fill_(mean)


@torch.no_grad()
def measure_statistics(vae: AutoencoderKLLTX2Audio, mel: Tensor) -> None:
    """Mean per token channel; deviation half way (in log) between the channel's and the global,
    so that channels which hardly vary are not blown up."""
    latents = vae.encode(mel).latent_dist.mode().transpose(1, 2).flatten(2).flatten(0, 1)
    std = latents.std(0).clamp(min=1e-4)
    vae.latents_mean.copy_(latents.mean(0))
    vae.latents_std.copy_((std * latents.std()).sqrt())


def vae_loss(vae: AutoencoderKLLTX2Audio, mel: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, mel error in nats) with noise on the latents; audible parts count three times."""
    latents = vae.encode(mel).latent_dist.mode()
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    got = vae.decode(noisy).sample
    error = (got - mel).abs().mean()
    audible = (got.clamp(min=AUDIBLE) - mel.clamp(min=AUDIBLE)).abs().mean()
    size = (latents.square().mean() - 1).abs() + 0.1 * latents.mean().square()
    return error + 2 * audible + 0.1 * size, error


def train_vae(
    vae: AutoencoderKLLTX2Audio, mels: Tensor, seconds: float, lr: float, seed: int
) -> None:
    """Fit the autoencoder on crops of which half start with the clip."""
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    generator = new_generator(seed)
    length = sound.mel_frames(CROP)
    running = 0.0
    for step, passed in enumerate(_timed(seconds)):
        rate = min(1, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * passed)) + 0.01
        optimizer.param_groups[0]["lr"] = lr * rate
        (mel,) = _batches((mels,), 8, generator)
        start = int(torch.randint(mel.shape[2] - length, (), generator=generator))
        start = start if step % 2 else 0
        loss, error = vae_loss(vae, mel[:, :, start : start + length])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running = 0.97 * running + 0.03 * float(error.detach())
        if step % 25 == 24:
            scale = 1 - 0.97 ** (step + 1)
            log(stage="vae", step=step + 1, mel_error=running / scale, loss=float(loss.detach()))


@torch.no_grad()
def reconstructions(vae: AutoencoderKLLTX2Audio, mel: Tensor, noise: float) -> Tensor:
    """Mels through the autoencoder, batch by batch, with noise on normalised latents."""
    out = []
    for part in mel.split(32):
        latents = sound_nets.normalise(vae, vae.encode(part).latent_dist.mode())
        latents = latents + noise * torch.randn_like(latents)
        out.append(vae.decode(sound_nets.denormalise(vae, latents)).sample)
    return torch.cat(out)


def pitch_contour(wave: Tensor, sample_rate: int) -> Tensor:
    """Strongest frequency below 2 kHz in Hz per 10 ms of (2, S), parabolic in the log spectrum."""
    hop, n = sample_rate // 100, sample_rate // 16
    spectrum = torch.stft(wave, n, hop, window=torch.hann_window(n), return_complex=True)
    power = spectrum.abs().square().sum(0)
    low, high = round(400 * n / sample_rate), round(2000 * n / sample_rate)
    peak = power[low:high].argmax(0) + low
    a, b, c = (power.gather(0, (peak + k)[None])[0].clamp(min=1e-12).log() for k in (-1, 0, 1))
    return (peak + 0.5 * (a - c) / (a - 2 * b + c).clamp(max=-1e-6)) * sample_rate / n


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def _levels(wave: Tensor) -> Tensor:
    """Energy (2, M) per 50 ms."""
    size = sound.SAMPLE_RATE // 20
    return wave[:, : wave.shape[1] // size * size].unflatten(1, (-1, size)).square().mean(-1)


@torch.no_grad()
def report(
    vae: AutoencoderKLLTX2Audio, net: LTX2VocoderWithBWE, count: int = 48, seed: int = 10_000
) -> dict[str, float]:
    """Figures on `count` unseen scenes: mel errors in nats, and how the decoded 48 kHz sound
    follows the scene."""
    rng = random.Random(seed)
    scenes = [world.random_scene(rng) for _ in range(count)]
    mel, controls = sound.scene_mels(scenes, LATENTS)
    latents = sound_nets.normalise(vae, vae.encode(mel).latent_dist.mode())
    decoded = vae.decode(sound_nets.denormalise(vae, latents)).sample
    sums: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        sums.setdefault(name, []).append(value)

    for kind, source in (("true", mel), ("vae", decoded)):
        waves = sound_nets.vocode(net, source)
        for scene, wave, weights in zip(scenes, waves, controls, strict=True):
            want = sound.render_controls(weights[None], sound.SAMPLE_RATE)[0]
            error = (wave - want).square().mean()
            add(f"{kind}_snr_db", float(10 * torch.log10(want.square().mean() / error)))
            t = torch.arange(wave.shape[1] // 480 + 1) * 0.01
            y = world.height(scene, t)
            inside = slice(4, -4)
            pitch = pitch_contour(wave, sound.SAMPLE_RATE)
            ideal = pitch_contour(want, sound.SAMPLE_RATE)
            off = (pitch / ideal).log2().abs()[inside] * 12
            add(f"{kind}_pitch_within_semitone", float((off < 1).float().mean()))
            if y.std() > 0.02:
                add(f"{kind}_pitch_y", correlation(pitch.log()[inside], y[inside]))
            got, true = _levels(wave), _levels(want)
            add(f"{kind}_level_db", float(10 * (got.sum(0) / true.sum(0)).log10().abs().mean()))
            side, true_side = got[1] / got.sum(0), true[1] / true.sum(0)
            add(f"{kind}_pan_error", float((side - true_side).abs().mean()))
    figures = {name: sum(values) / len(values) for name, values in sums.items()}
    figures["mel_error_vae"] = float((decoded - mel).abs().mean())
    audible = decoded.clamp(min=AUDIBLE) - mel.clamp(min=AUDIBLE)
    figures["mel_error_vae_audible"] = float(audible.abs().mean())
    return {name: round(value, 4) for name, value in figures.items()}


def log(**figures: float | str) -> None:
    """One JSON line to runs/sound.jsonl."""
    path = sound_nets.PARTS.parent / "sound.jsonl"
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
    with path.open("a") as file:
        file.write(json.dumps({"at": round(time.time(), 1), **rounded}) + "\n")


Nets = tuple[AutoencoderKLLTX2Audio, LTX2VocoderWithBWE]


def start(clips: int, seed: int) -> Nets:
    """Both networks before any training: the vocoder solved, the autoencoder scaled to mels."""
    mel, controls = examples(clips, seed)
    vae, net = sound_nets.build_audio_vae(), sound_nets.build_vocoder()
    start_values(vae, mel)
    sound_solve.solve(net, mel, controls)
    return vae, net


def run_vae(nets: Nets, options: argparse.Namespace) -> None:
    """Train the autoencoder and measure its statistics; what was cached before is void."""
    mels, _ = examples(options.clips, options.seed)
    train_vae(nets[0], mels, options.seconds, options.lr, options.seed)
    measure_statistics(nets[0], mels[:256])


def run_vocoder(nets: Nets, options: argparse.Namespace) -> None:
    """Solve and then train the vocoder on true mels and on what the autoencoder makes of them."""
    vae, net = nets
    mels, controls = examples(options.clips, options.seed)
    decoded = [reconstructions(vae, mels, noise) for noise in (0.05, 0.2)]
    data = torch.cat([mels, *decoded]), controls.repeat(3, 1, 1)
    sound_solve.solve(net, *data)
    sound_nets.save(vae, net)
    train_vocoder(net, data, options.seconds, VOCODER_LR, options.seed)


STAGES = {"vae": run_vae, "vocoder": run_vocoder}


def main() -> None:
    """Command line: which stage, for how many seconds of processor time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("start", *STAGES, "report", "all"))
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--from", dest="source", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    prepare(options.threads)
    torch.manual_seed(options.seed)
    begin = options.stage in ("start", "all")
    nets = start(options.clips, options.seed) if begin else sound_nets.load(*options.source)
    for stage in STAGES if options.stage == "all" else [options.stage]:
        if stage in STAGES:
            STAGES[stage](nets, options)
        if stage != "report":
            sound_nets.save(*nets)
    if options.stage in ("report", "all"):
        figures = report(*sound_nets.load(*options.source))  # as exported, rounded to bf16
        log(stage="report", **figures)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

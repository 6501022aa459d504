"""Train the audio networks of the pocket model on random scenes, and measure them.

    python training/pocket/sound_train.py all                  # all stages and the report
    python training/pocket/sound_train.py vae --seconds 300    # resume from runs/parts
    python training/pocket/sound_train.py vocoder --seconds 60 # resume; latents stay the same
    python training/pocket/sound_train.py report --from FILE   # measure a checkpoint or the parts

A stage starts from the files in runs/parts, or from `--from` (the shipped checkpoint works too). It
replaces the files in runs/parts atomically.
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

LATENTS = 26  # latent frames of a training clip: one second
CROP = 8  # latent frames of a crop
LATENT_NOISE = 0.1
VOCODER_LR = 1e-4  # a larger rate destroys the solved weights, which are ill-conditioned
AUDIBLE = -5.0  # log mel below which errors are inaudible


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Log mels and controls of `count` random scenes."""
    rng = random.Random(seed)
    return sound.scene_mels([world.random_scene(rng) for _ in range(count)], LATENTS)


def _progress_fractions(seconds: float) -> Iterator[float]:
    """Yield the elapsed fraction of `seconds` of processor time, until it is used up."""
    start = time.process_time()
    while (elapsed := (time.process_time() - start) / seconds) < 1:
        yield elapsed


def _batches(data: tuple[Tensor, ...], size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """`size` random rows of every tensor, the same rows of each."""
    rows = torch.randint(len(data[0]), (size,), generator=generator)
    return tuple(part[rows] for part in data)


def weights_loss(predicted: Tensor, controls: Tensor) -> Tensor:
    """Loss of wavelet weights.

    The squared error approximates that of the waveform, since the wavelets hardly overlap; the
    absolute error suppresses wavelets that should be silent.
    """
    want = controls / sound.LOUDNESS
    return F.mse_loss(predicted, want) * 30 + (predicted - want).abs().mean()


def mel_rate_parameters(net: LTX2VocoderWithBWE, lr: float) -> list[dict[str, object]]:
    """Optimizer groups of the main vocoder's layers at mel rate.

    Wide layers have lower rates, since neighbouring mel bins are correlated.
    """
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
    """Train the stages at mel rate to predict wavelet weights; the last stage stays fixed."""
    groups = mel_rate_parameters(net, lr)
    parameters = [group["params"][0] for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    generator = new_generator(seed)
    running, length = 0.0, 40
    for step, elapsed in enumerate(_progress_fractions(seconds)):
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * (min(1, (step + 1) / 20) * (1 - elapsed) + 0.01)
        mel, controls = _batches(data, 16, generator)
        start = int(torch.randint(mel.shape[2] - length + 1, (), generator=generator))
        start = start if step % 3 else 0
        cut = slice(start, start + length)
        predicted = sound_nets.wavelet_weights(net, mel[:, :, cut])
        # the ends of a crop lack context, so they do not count in the loss
        inside = slice(0 if start == 0 else 5, length - 5)
        loss = weights_loss(predicted[..., inside], controls[:, :, cut][..., inside])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * float(loss.detach())
        if step % 100 == 99:
            log(stage="vocoder", step=step + 1, loss=running / (1 - 0.98 ** (step + 1)))


@torch.no_grad()
def scale_to_mels(vae: AutoencoderKLLTX2Audio, mel: Tensor) -> None:
    """Scale input and output convolutions to the mean and standard deviation of log mels."""
    mean, std = mel.mean(), mel.std()
    conv_in, conv_out = vae.encoder.conv_in.conv, vae.decoder.conv_out.conv
    conv_in.weight.div_(std)
    conv_in.bias.sub_(mean * conv_in.weight.sum((1, 2, 3)))
    conv_out.weight.mul_(std)
    conv_out.bias.fill_(mean)


@torch.no_grad()
def measure_statistics(vae: AutoencoderKLLTX2Audio, mel: Tensor) -> None:
    """Set the latent statistics: mean and standard deviation per token channel.

    The latter is the geometric mean of the channel's and the global one, so that channels with
    little variation are not amplified too much.
    """
    latents = vae.encode(mel).latent_dist.mode().transpose(1, 2).flatten(2).flatten(0, 1)
    std = latents.std(0).clamp(min=1e-4)
    vae.latents_mean.copy_(latents.mean(0))
    vae.latents_std.copy_((std * latents.std()).sqrt())


def vae_loss(vae: AutoencoderKLLTX2Audio, mel: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and mel error in nats, with noise on the latents; audible parts count three times."""
    latents = vae.encode(mel).latent_dist.mode()
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    predicted = vae.decode(noisy).sample
    error = (predicted - mel).abs().mean()
    audible = (predicted.clamp(min=AUDIBLE) - mel.clamp(min=AUDIBLE)).abs().mean()
    size = (latents.square().mean() - 1).abs() + 0.1 * latents.mean().square()
    return error + 2 * audible + 0.1 * size, error


def train_vae(
    vae: AutoencoderKLLTX2Audio, mels: Tensor, seconds: float, lr: float, seed: int
) -> None:
    """Train the audio VAE on crops, half of which are at the start of the clip."""
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    generator = new_generator(seed)
    length = sound.mel_frames(CROP)
    running = 0.0
    for step, elapsed in enumerate(_progress_fractions(seconds)):
        rate = min(1, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * elapsed)) + 0.01
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
    """Encode and decode log mels in batches, with noise on the normalised latents."""
    out = []
    for part in mel.split(32):
        latents = sound_nets.normalise(vae, vae.encode(part).latent_dist.mode())
        latents = latents + noise * torch.randn_like(latents)
        out.append(vae.decode(sound_nets.denormalise(vae, latents)).sample)
    return torch.cat(out)


def pitch_contour(wave: Tensor, sample_rate: int) -> Tensor:
    """Strongest frequency from 400 Hz to 2 kHz, in Hz per 10 ms of a waveform (2, S).

    Peaks are interpolated by parabolas in the log spectrum.
    """
    hop, n = sample_rate // 100, sample_rate // 16
    spectrum = torch.stft(wave, n, hop, window=torch.hann_window(n), return_complex=True)
    power = spectrum.abs().square().sum(0)
    low, high = round(400 * n / sample_rate), round(2000 * n / sample_rate)
    peak = power[low:high].argmax(0) + low
    a, b, c = (power.gather(0, (peak + k)[None])[0].clamp(min=1e-12).log() for k in (-1, 0, 1))
    return (peak + 0.5 * (a - c) / (a - 2 * b + c).clamp(max=-1e-6)) * sample_rate / n


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def _levels(wave: Tensor) -> Tensor:
    """Mean power (2, M) per 50 ms."""
    size = sound.SAMPLE_RATE // 20
    return wave[:, : wave.shape[1] // size * size].unflatten(1, (-1, size)).square().mean(-1)


@torch.no_grad()
def report(
    vae: AutoencoderKLLTX2Audio, net: LTX2VocoderWithBWE, count: int = 48, seed: int = 10_000
) -> dict[str, float]:
    """Measures on `count` test scenes: mel errors in nats, and errors of the 48 kHz audio.

    Names starting with `true` are for vocoded true mels, `vae` for decoded ones.
    """
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
            predicted, true = _levels(wave), _levels(want)
            add(
                f"{kind}_level_db",
                float(10 * (predicted.sum(0) / true.sum(0)).log10().abs().mean()),
            )
            side, true_side = predicted[1] / predicted.sum(0), true[1] / true.sum(0)
            add(f"{kind}_pan_error", float((side - true_side).abs().mean()))
    figures = {name: sum(values) / len(values) for name, values in sums.items()}
    figures["mel_error_vae"] = float((decoded - mel).abs().mean())
    audible = decoded.clamp(min=AUDIBLE) - mel.clamp(min=AUDIBLE)
    figures["mel_error_vae_audible"] = float(audible.abs().mean())
    return {name: round(value, 4) for name, value in figures.items()}


def log(**figures: float | str) -> None:
    """Append one JSON line to runs/sound.jsonl."""
    path = sound_nets.PARTS.parent / "sound.jsonl"
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
    with path.open("a") as file:
        file.write(json.dumps({"at": round(time.time(), 1), **rounded}) + "\n")


Nets = tuple[AutoencoderKLLTX2Audio, LTX2VocoderWithBWE]


def initial_networks(clips: int, seed: int) -> Nets:
    """Both networks before training: the vocoder solved, the audio VAE scaled to log mels."""
    mel, controls = examples(clips, seed)
    vae, net = sound_nets.build_audio_vae(), sound_nets.build_vocoder()
    scale_to_mels(vae, mel)
    sound_solve.solve(net, mel, controls)
    return vae, net


def run_vae(nets: Nets, options: argparse.Namespace) -> None:
    """Train the audio VAE and set its latent statistics; this invalidates cached audio tokens."""
    mels, _ = examples(options.clips, options.seed)
    train_vae(nets[0], mels, options.seconds, options.lr, options.seed)
    measure_statistics(nets[0], mels[:256])


def run_vocoder(nets: Nets, options: argparse.Namespace) -> None:
    """Solve and then train the vocoder on true and on reconstructed log mels."""
    vae, net = nets
    mels, controls = examples(options.clips, options.seed)
    decoded = [reconstructions(vae, mels, noise) for noise in (0.05, 0.2)]
    data = torch.cat([mels, *decoded]), controls.repeat(3, 1, 1)
    sound_solve.solve(net, *data)
    sound_nets.save(vae, net)
    train_vocoder(net, data, options.seconds, VOCODER_LR, options.seed)


STAGES = {"vae": run_vae, "vocoder": run_vocoder}


def main() -> None:
    """Command line; `--seconds` is processor time."""
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
    initialise = options.stage in ("start", "all")
    nets = (
        initial_networks(options.clips, options.seed)
        if initialise
        else sound_nets.load(*options.source)
    )
    for stage in STAGES if options.stage == "all" else [options.stage]:
        if stage in STAGES:
            STAGES[stage](nets, options)
        if stage != "report":
            sound_nets.save(*nets)
    if options.stage in ("report", "all"):
        figures = report(*sound_nets.load(*options.source))  # from the files, rounded to bf16
        log(stage="report", **figures)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

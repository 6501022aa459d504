"""Train the pocket transformer by flow matching on cached clips: video, audio and text together.

    python training/pocket/dit.py --seconds 6000 [--large 0.3]

The network is the product's own `Transformer`. Noisy tokens are (1 - sigma) x0 + sigma noise, the
target velocity is noise - x0, and the tokens of a conditioning first frame have sigma 0.
runs/dit.pt holds the whole training state, so that a run can resume. `--large` is the share of
batches at 512 px (sigma <= 0.9125).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from typing import Any

import sound_nets
import text
import torch
import worlds
from muon import Muon
from state import DEVICE, RUNS, generator, log, read, save
from team import Team, launch
from torch import Tensor, nn
from vae import LATENT_CHANNELS

from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, prepare_stream

world, cache = worlds.module("world"), worlds.module("cache")

STATE = RUNS / "dit.pt"
FPS = 24
LAYERS = worlds.SIZES.layers
MAX_POS = (4.0, 512.0, 512.0)
THETA = 100.0
VIDEO_HEADS, VIDEO_HEAD_DIM, AUDIO_HEAD_DIM = worlds.SIZES.heads, 32, 16
AUDIO_CHANNELS = sound_nets.BASE_CHANNELS
WARM_STEPS = 150
LARGE_SIGMA = 0.9125
LENGTH, LARGE_LENGTH = cache.LENGTHS
"""Latent frames of a cached clip at 256 and at 512 px."""


def network_config() -> TransformerConfig:
    """Sizes of the pocket transformer."""
    video, audio = VIDEO_HEADS * VIDEO_HEAD_DIM, VIDEO_HEADS * AUDIO_HEAD_DIM
    return TransformerConfig(
        layers=LAYERS,
        video=StreamConfig(
            LATENT_CHANNELS, LATENT_CHANNELS, VIDEO_HEADS, VIDEO_HEAD_DIM, 4 * video, video, MAX_POS
        ),
        audio=StreamConfig(
            AUDIO_CHANNELS,
            AUDIO_CHANNELS,
            VIDEO_HEADS,
            AUDIO_HEAD_DIM,
            4 * audio,
            audio,
            MAX_POS[:1],
        ),
        theta=THETA,
    )


def config() -> dict[str, Any]:
    """The `transformer` section of the header config, with the settings of the connectors."""
    video, audio = VIDEO_HEADS * VIDEO_HEAD_DIM, VIDEO_HEADS * AUDIO_HEAD_DIM
    section = {
        "_class_name": "AVTransformer3DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": VIDEO_HEAD_DIM,
        "attention_type": "default",
        "cross_attention_dim": video,
        "double_self_attention": False,
        "dropout": 0.0,
        "in_channels": LATENT_CHANNELS,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "num_attention_heads": VIDEO_HEADS,
        "num_embeds_ada_norm": 1000,
        "num_layers": LAYERS,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "cross_attention_norm": True,
        "out_channels": LATENT_CHANNELS,
        "upcast_attention": False,
        "use_linear_projection": False,
        "qk_norm": "rms_norm",
        "standardization_norm": "rms_norm",
        "positional_embedding_type": "rope",
        "positional_embedding_theta": THETA,
        "positional_embedding_max_pos": [int(p) for p in MAX_POS],
        "timestep_scale_multiplier": 1000,
        "av_ca_timestep_scale_multiplier": 1000.0,
        "causal_temporal_positioning": True,
        "audio_num_attention_heads": VIDEO_HEADS,
        "audio_attention_head_dim": AUDIO_HEAD_DIM,
        "use_audio_video_cross_attention": True,
        "share_ff": False,
        "audio_in_channels": AUDIO_CHANNELS,
        "audio_out_channels": AUDIO_CHANNELS,
        "audio_cross_attention_dim": audio,
        "audio_positional_embedding_max_pos": [int(MAX_POS[0])],
        "av_cross_ada_norm": True,
        "use_middle_indices_grid": True,
        "apply_gated_attention": True,
        "cross_attention_adaln": True,
        "rope_type": "split",
        "frequencies_precision": "float64",
    }
    return section | text.config()


def build(seed: int = 0) -> Transformer:
    """An untrained network: gates at 1, no other modulation, residual branches scaled by depth."""
    net = Transformer(network_config())
    net.initialise(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("scale_shift_table") or "_a2v_ca_" in name:
                weight.zero_()
                gates = slice(2, None, 3) if len(weight) == 9 else slice(4, 5)
                if len(weight) > 2:
                    weight[gates] = 1
            elif "adaln_single.linear." in name:
                weight.zero_()
            elif name.endswith(("to_out.0.weight", "net.2.weight")):
                weight.mul_((2 * LAYERS) ** -0.5)
    return net.train()


def audio_tokens(latents: Tensor) -> Tensor:
    """Audio latents (B, C, T, M) -> tokens (B, T, C * M)."""
    return latents.transpose(1, 2).flatten(2)


class SoundCache:
    """Audio tokens of scenes, computed once per geometry and texture and kept in a file."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.vae = sound_nets.load()[0].to(DEVICE)
        self.vae.requires_grad_(False)
        self.path = RUNS / "cache" / f"sounds-{frames}.pt"
        cached = read(self.path) if self.path.exists() else {}
        self.cached_tokens: dict[tuple[Any, ...], Tensor] = cached

    def save(self) -> None:
        """Write the computed tokens to runs/cache, for later runs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save(self.cached_tokens, self.path)

    def __call__(self, scenes: list[world.Scene], frames: int) -> Tensor:
        """Audio tokens (B, T, C * M) of the first `frames` frames of the scenes."""
        keys = [world.sound_key(s) for s in scenes]
        missing = {k: s for k, s in zip(keys, scenes, strict=True) if k not in self.cached_tokens}
        if missing:
            latents = sound_nets.encode_scenes(self.vae, list(missing.values()), self.frames, FPS)
            tokens = audio_tokens(latents).half()
            self.cached_tokens.update(zip(missing, (t.clone() for t in tokens), strict=True))
        count = round(frames / FPS * 25)
        return torch.stack([self.cached_tokens[k][:count] for k in keys]).float()


@dataclasses.dataclass
class PocketModel:
    """The networks that this script trains: transformer and text tower."""

    net: Transformer
    tower: text.TextTower

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of both networks."""
        return [*self.net.parameters(), *self.tower.parameters()]

    def state(self) -> dict[str, Tensor]:
        """All weights, with prefixes `net.` and `tower.`."""
        net = {f"net.{n}": v for n, v in self.net.state_dict().items()}
        return net | {f"tower.{n}": v for n, v in self.tower.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Copy the weights of `state` into both networks."""
        for prefix, module in (("net.", self.net), ("tower.", self.tower)):
            part = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
            module.load_state_dict(part)


def new_model() -> PocketModel:
    """An untrained transformer with the pretrained text tower."""
    return PocketModel(build().to(DEVICE), text.load().train().to(DEVICE))


def load_model(average: bool = True) -> PocketModel:
    """The model of runs/dit.pt (by default its averaged weights), or `new_model` without one."""
    model = new_model()
    if STATE.exists():
        model.load(read(STATE)["average" if average else "weights"])
    return model


def noise_levels(count: int, shift: float, limit: float, generator: torch.Generator) -> Tensor:
    """Random sigmas (count,), 75 % logit-normal and 25 % uniform, shifted and scaled to `limit`."""
    t = torch.sigmoid(torch.randn(count, generator=generator))
    uniform = torch.rand(count, generator=generator)
    t = torch.where(torch.rand(count, generator=generator) < 0.75, t, uniform)
    return (shift * t / (1 + (shift - 1) * t)).clamp(1e-3, 1.0) * limit


def video_tokens(latents: Tensor) -> Tensor:
    """Video latents (B, C, F, H, W) -> tokens (B, F * H * W, C)."""
    return latents.flatten(2).transpose(1, 2)


@dataclasses.dataclass
class Batch:
    """Clean tokens of both streams, with prompts, noise levels and the first-frame mask."""

    video: Tensor
    audio: Tensor
    grid: tuple[int, int, int]
    prompts: list[str]
    sigma: Tensor  # (B,)
    mask: Tensor | None  # (B, N), 0 for tokens of a conditioning first frame


def stream_inputs(
    net: Transformer, batch: Batch, video: Tensor, audio: Tensor, contexts: tuple[Tensor, Tensor]
) -> tuple[StreamInput, StreamInput]:
    """Inputs of both streams at the noise levels of the batch."""
    frames, height, width = batch.grid
    positions = video_positions(frames, height, width, FPS)
    prepared_video = prepare_stream(net.config, positions, contexts[0], mask=batch.mask)
    prepared_audio = prepare_stream(net.config, audio_positions(audio.shape[1]), contexts[1])
    return StreamInput(prepared_video, video, batch.sigma), StreamInput(
        prepared_audio, audio, batch.sigma
    )


def compute_losses(
    model: PocketModel, batch: Batch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean squared velocity errors of both streams, under `video` and `audio`."""
    sigma = batch.sigma[:, None, None]
    noise_v = torch.randn(batch.video.shape, generator=generator)
    noise_a = torch.randn(batch.audio.shape, generator=generator)
    token_sigma = sigma if batch.mask is None else sigma * batch.mask[:, :, None]
    x_v = (1 - token_sigma) * batch.video + token_sigma * noise_v
    x_a = (1 - sigma) * batch.audio + sigma * noise_a
    contexts = model.tower(batch.prompts)
    v, a = model.net(*stream_inputs(model.net, batch, x_v, x_a, contexts))
    error = (v - (noise_v - batch.video)).square().mean(-1)
    if batch.mask is not None:
        error = error * batch.mask
    return {"video": error.mean(), "audio": (a - (noise_a - batch.audio)).square().mean()}


class Source:
    """Random training batches from the clip caches."""

    def __init__(self, seed: int, large: bool) -> None:
        self.small = cache.open_cache(256)
        self.large = cache.open_cache(512) if large else None
        self.sounds = SoundCache(8 * LENGTH - 7)
        self.rng = random.Random(seed)
        self.generator = generator(seed)

    def refresh(self) -> None:
        """Read the shards that the cache script has written since the last call."""
        for clips in (self.small, self.large):
            if clips is not None:
                clips.refresh()

    def batch(self, count: int, large: bool, frames: int) -> Batch:
        """A batch of `count` clips of `frames` frames, at 512 px if `large`, else at 256 px."""
        rng = self.rng
        clips = self.large if large else self.small
        latent_frames = 1 + (frames - 1) // 8
        latents, scenes = clips.sample(rng, count, latent_frames)
        prompts = [world.caption(s, rng) if rng.random() > 0.1 else "" for s in scenes]
        limit, shift = (LARGE_SIGMA, 3.0) if large else (1.0, 4.0)
        sigma = noise_levels(count, shift, limit, self.generator)
        mask = None
        grid = tuple(latents.shape[2:])
        if rng.random() < 0.3:  # 40 % of the clips of these batches have their first frame given
            has_first_frame = torch.rand(count, generator=self.generator) < 0.4
            mask = torch.ones(count, *grid)
            mask[has_first_frame, 0] = 0
            mask = mask.flatten(1)
        audio = self.sounds(scenes, 1 + 8 * (latents.shape[2] - 1))
        return Batch(video_tokens(latents), audio, grid, prompts, sigma, mask)


class Optimizer:
    """Muon for the matrices of the blocks, AdamW for the rest (text tower at 0.3 of the rate)."""

    def __init__(
        self, model: PocketModel, lr: float, matrix_lr: float, team: Team | None = None
    ) -> None:
        self.lr, self.matrix_lr = lr, matrix_lr
        parameters = list(model.net.named_parameters())
        matrix_names = {n for n, p in parameters if _is_matrix(n, p)}
        self.muon = Muon([p for n, p in parameters if n in matrix_names], matrix_lr, team)
        groups = [
            {"params": [p for n, p in parameters if n not in matrix_names], "share": 1.0},
            {"params": list(model.tower.parameters()), "share": 0.3},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """Update the weights at `rate` times the full learning rates and clear the gradients."""
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * rate * group["share"]
        self.muon.lr = self.matrix_lr * rate
        self.adamw.step()
        self.muon.step()
        self.adamw.zero_grad()
        for group in self.muon.groups:
            for weight in group:
                weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """State of both optimizers."""
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both optimizers from `state_dict`."""
        if "muon" in state:
            self.adamw.load_state_dict(state["adamw"])
            self.muon.load_state_dict(state["muon"])


def _is_matrix(name: str, weight: Tensor) -> bool:
    inside = name.startswith("transformer_blocks.") and name.endswith(".weight")
    return inside and weight.dim() == 2 and "to_gate_logits" not in name


def rate_factor(options: argparse.Namespace, step: int, elapsed: float) -> float:
    """Factor of the learning rates: warm-up over the first steps, decay over the last part."""
    left = 1 - elapsed / options.seconds
    return min(1.0, (step + 1) / WARM_STEPS) * max(0.0, min(1.0, left / options.decay + 0.02))


def resume_training(
    options: argparse.Namespace, team: Team
) -> tuple[PocketModel, Optimizer, dict[str, Any]]:
    """Model, optimizer, and `step` and `average` from runs/dit.pt, or new ones."""
    model = new_model()
    optimizer = Optimizer(model, options.lr, options.matrix_lr, team)
    progress: dict[str, Any] = {"step": 0, "average": None}
    if STATE.exists():
        state = read(STATE)
        model.load(state["weights"])
        progress = {"step": state["step"], "average": state["average"]}
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
    if progress["average"] is None:
        progress["average"] = {n: v.clone() for n, v in model.state().items()}
    return model, optimizer, progress


def compile_blocks(net: Transformer) -> None:
    """Compile every block; each clip length, size and mask compiles its own variant."""
    torch._dynamo.config.cache_size_limit = 64
    for block in net.transformer_blocks:
        block.compile(dynamic=False)


def train(options: argparse.Namespace, team: Team) -> None:
    """Train for `--seconds`, or until runs/dit.stop exists."""
    torch.manual_seed(options.seed)
    lengths = tuple(int(n) for n in options.lengths.split(","))
    seed = options.seed + int(time.time()) % 1000 + 1000 * team.rank
    source = Source(seed, options.large > 0)
    model, optimizer, progress = resume_training(options, team)
    if options.compile:
        compile_blocks(model.net)
    step, average = progress["step"], progress["average"]
    weights = model.parameters()
    last_save = time.time()
    start = options.until - options.seconds if options.until else last_save
    recent_losses: list[tuple[float, float]] = []
    stop, running = RUNS / "dit.stop", True
    while running:
        step_rng = random.Random(
            f"{options.seed}/{step}"
        )  # the same size and length in all processes
        large = step_rng.random() < options.large
        count = options.batch // (4 if large else 1) // team.size
        length = min(step_rng.choice(lengths), LARGE_LENGTH if large else LENGTH)
        batch = source.batch(count, large, 8 * length - 7)
        losses = compute_losses(model, batch, source.generator)
        (losses["video"] + 0.3 * losses["audio"]).backward()
        elapsed = time.time() - start
        continues = elapsed < options.seconds and not stop.exists()
        rate = rate_factor(options, step, elapsed)
        message = torch.tensor([rate, float(continues)])
        message = team.average_gradients(weights, message)
        rate, running = float(message[0]), bool(message[1])
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step(rate)
        step += 1
        if step % 50 == 0:
            team.broadcast(model.state())
            source.refresh()
        if team.rank:
            continue
        if not large:
            recent_losses.append((float(losses["video"].detach()), float(losses["audio"].detach())))
        update_average(average, model.state(), min(0.9995, 1 - 1 / (1 + step / 6)))
        if step % 25 == 0:
            log_losses(step, recent_losses, rate, time.time() - start)
        if time.time() - last_save > 90:
            last_save = time.time()
            save_state(model, average, optimizer, step)
            source.sounds.save()
    if not team.rank:
        save_state(model, average, optimizer, step)


@torch.no_grad()
def update_average(average: dict[str, Tensor], state: dict[str, Tensor], keep: float) -> None:
    """Update the running average of the weights; `keep` is its decay."""
    for name, value in state.items():
        average[name].lerp_(value, 1 - keep)


def log_losses(
    step: int, recent_losses: list[tuple[float, float]], rate: float, elapsed: float
) -> None:
    """Log the mean losses of the last hundred batches at 256 px."""
    if recent_losses:
        video, audio = (sum(x) / len(x) for x in zip(*recent_losses[-100:], strict=True))
        log("dit", step=step, video=video, audio=audio, share=rate, elapsed=elapsed)


def save_state(model: PocketModel, average: dict[str, Tensor], optimizer: Any, step: int) -> None:
    """Write runs/dit.pt."""
    save({"weights": model.state(), "average": average, "step": step,
          "optimizer": optimizer.state_dict()}, STATE)  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6000)
    parser.add_argument(
        "--until", type=float, default=0.0,
        help="end of the run in seconds since the epoch; the schedule starts `--seconds` earlier, "
        "so that a restarted run keeps its learning rates",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--matrix-lr", type=float, default=8e-4, help="RMS of Muon's updates")
    parser.add_argument(
        "--decay", type=float, default=0.3, help="share of the run with falling rates"
    )
    parser.add_argument("--large", type=float, default=0.0, help="share of batches at 512 px")
    parser.add_argument(
        "--lengths", default="2,3,3,4", help="latent frames per clip, chosen at random"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the blocks: needs a C++ compiler, half a minute a variant",
    )
    options = parser.parse_args()
    launch(train, options)


if __name__ == "__main__":
    main()

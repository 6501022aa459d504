"""Train the preview decoder of the second edition, a TAEHV file for vae_approx/.

    python training/pocket/scenery_preview.py --seconds 300

The network is the product's own `TinyDecoder`. It trains on windows of rendered clips that the
frozen encoder encodes, with noise on the latents, because previews decode latents of unfinished
steps. State: runs/scenery_preview.pt; `--folder` also writes the file in the product's format.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import scenery_vae
import torch
import vae as video_vae
from safetensors.torch import save_file
from state import DEVICE, RUNS, log, prepare, read, save
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.models.video_vae.taehv import TinyDecoder

STATE = RUNS / "scenery_preview.pt"
FILE = "vae_approx/pocket-taeltx2_3.safetensors"
WIDTHS, STRIDES, PATCH = (48, 40, 24, 16), (2, 2, 2), 4
WARM_STEPS = 50


def build() -> TinyDecoder:
    """An untrained network."""
    return TinyDecoder(video_vae.LATENT_CHANNELS, WIDTHS, STRIDES, PATCH).to(DEVICE)


def decode(net: TinyDecoder, latents: Tensor) -> Tensor:
    """Decode normalised latents (B, C, F, H, W) to (B, 3, 8 (F - 1) + 1, 32 H, 32 W), 0 to 1."""
    clips = []
    for clip in latents:
        frames = F.pixel_shuffle(net._run_layers(clip.transpose(0, 1), {}), net.patch)
        clips.append(frames[net.leading_frames :].transpose(0, 1))
    return torch.stack(clips)


def compute_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 of the pixels + 0.5 x L1 of the gradients along x and y."""
    error = out - target
    return error.abs().mean() + 0.5 * sum(error.diff(dim=d).abs().mean() for d in (3, 4))


def tensors(net: TinyDecoder) -> dict[str, Tensor]:
    """Tensors of the network under the names of the preview file."""
    return {
        f"decoder.{n}": v.detach().cpu().half().contiguous() for n, v in net.state_dict().items()
    }


def load() -> TinyDecoder:
    """The network of runs/scenery_preview.pt; an untrained one without that file."""
    net = build()
    if STATE.exists():
        net.load_state_dict(read(STATE)["net"])
    return net


def train(options: argparse.Namespace) -> None:
    """Train for `--seconds`, from runs/scenery_preview.pt where it exists."""
    vae, net = scenery_vae.load(), load().train()
    state = read(STATE) if STATE.exists() else {"step": 0}
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, betas=(0.9, 0.98))
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    step, start, errors = state["step"], time.time(), []
    pool = scenery_vae.Pool(
        random.Random(options.seed + step), scenery_vae.draw_window, options.pool, options.fresh
    )
    steps_done = 0
    while (elapsed := (time.time() - start) / options.seconds) < 1:
        rate = min(1.0, (steps_done + 1) / WARM_STEPS) * min(1.0, 0.03 + 2 * (1 - elapsed))
        optimizer.param_groups[0]["lr"] = options.lr * rate
        video = pool.batch(options.batch)
        with torch.no_grad():
            latents = video_vae.normalize(vae, scenery_vae.encode(vae, video))
            latents = latents + 0.15 * random.random() * torch.randn_like(latents)
        out, target = decode(net, latents), video / 2 + 0.5
        loss = compute_loss(out, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step, steps_done = step + 1, steps_done + 1
        errors.append((out - target).detach().square().mean())
        if step % 50 == 0:
            psnr = scenery_vae.signal_psnr(4 * float(torch.stack(errors[-50:]).mean()))
            log("scenery_preview", step=step, psnr=psnr)
    save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, STATE)
    log("scenery_preview_done", step=step)


def export(folder: Path) -> Path:
    """Write the preview file into a model folder; returns its path."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    save_file(tensors(load()), temporary)
    temporary.replace(path)
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=200)
    parser.add_argument("--fresh", type=int, default=2, help="new windows per step")
    parser.add_argument("--folder", type=Path, help="model folder for the product's file")
    options = parser.parse_args()
    prepare(options.threads)
    train(options)
    if options.folder:
        export(options.folder)


if __name__ == "__main__":
    main()

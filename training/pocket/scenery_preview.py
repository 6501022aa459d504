"""The tiny preview decoder of the second edition: the TAEHV kind that users put into vae_approx/.

    python training/pocket/scenery_preview.py --seconds 300

The network is the product's own `TinyDecoder`. It learns from windows of true clips through the
frozen encoder, with noise on the latents, because it is shown latents that are not finished. The
state is runs/scenery_preview.pt; `--folder` also writes the file of the product's format.
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
    """Fresh weights."""
    return TinyDecoder(video_vae.LATENT_CHANNELS, WIDTHS, STRIDES, PATCH).to(DEVICE)


def decode(net: TinyDecoder, latents: Tensor) -> Tensor:
    """Normalised latents (B, C, F, H, W) -> pixels (B, 3, 8 (F - 1) + 1, 32 H, 32 W), 0 to 1."""
    clips = []
    for clip in latents:
        frames = F.pixel_shuffle(net._through(clip.transpose(0, 1), {}), net.patch)
        clips.append(frames[net.dropped :].transpose(0, 1))
    return torch.stack(clips)


def loss_of(got: Tensor, wanted: Tensor) -> Tensor:
    """L1, and half of it on the gradients along x and y."""
    error = got - wanted
    return error.abs().mean() + 0.5 * sum(error.diff(dim=d).abs().mean() for d in (3, 4))


def tensors(net: TinyDecoder) -> dict[str, Tensor]:
    """Under the names of a preview file."""
    return {
        f"decoder.{n}": v.detach().cpu().half().contiguous() for n, v in net.state_dict().items()
    }


def load() -> TinyDecoder:
    """The last state; fresh weights where there is none."""
    net = build()
    if STATE.exists():
        net.load_state_dict(read(STATE)["net"])
    return net


def train(options: argparse.Namespace) -> None:
    """Train for a time; resumable."""
    vae, net = scenery_vae.load(), load().train()
    state = read(STATE) if STATE.exists() else {"step": 0}
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, betas=(0.9, 0.98))
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    step, begun, sums = state["step"], time.time(), []
    pool = scenery_vae.Pool(
        random.Random(options.seed + step), scenery_vae.draw_window, options.pool, options.fresh
    )
    taken = 0
    while (gone := (time.time() - begun) / options.seconds) < 1:
        rate = min(1.0, (taken + 1) / WARM_STEPS) * min(1.0, 0.03 + 2 * (1 - gone))
        optimizer.param_groups[0]["lr"] = options.lr * rate
        video = pool.batch(options.batch)
        with torch.no_grad():
            latents = video_vae.normalize(vae, scenery_vae.encode(vae, video))
            latents = latents + 0.15 * random.random() * torch.randn_like(latents)
        got, wanted = decode(net, latents), video / 2 + 0.5
        loss = loss_of(got, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step, taken = step + 1, taken + 1
        sums.append((got - wanted).detach().square().mean())
        if step % 50 == 0:
            psnr = scenery_vae.psnr_of(4 * float(torch.stack(sums[-50:]).mean()))
            log("scenery_preview", step=step, psnr=psnr)
    save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, STATE)
    log("scenery_preview_done", step=step)


def export(folder: Path) -> Path:
    """Write the preview file into a model folder."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    save_file(tensors(load()), fresh)
    fresh.replace(path)
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
    parser.add_argument("--fresh", type=int, default=2, help="new windows a step")
    parser.add_argument("--folder", type=Path, help="write the product's file into it at the end")
    options = parser.parse_args()
    prepare(options.threads)
    train(options)
    if options.folder:
        export(options.folder)


if __name__ == "__main__":
    main()

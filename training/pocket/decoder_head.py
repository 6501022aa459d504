"""Train only the end of the decoder: the later residual blocks of its finest level, and `conv_out`.

    python training/pocket/decoder_head.py --seconds 2400

What comes before is kept, so its features are computed once for many steps, and a step costs a
quarter of one of vae_train.py; the blocks start as nothing, so no step makes the picture worse
first. Windows are true clips and, where drafts.py made some, the transformer's own drafts with the
clips that they mean. State: runs/vae.pt, as for vae_train.py.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from typing import Any

import drafts
import torch
import vae as video_vae
import vae_train
from state import log, save
from torch import Tensor, nn

KEPT_BLOCKS = 1  # residual blocks of the finest level that stay as they are
HELD = 160  # batches of features in memory
FIRST = 16  # batches before the first step
STEPS_EACH = 5  # steps for every fresh batch
OUT_SHARE = 0.1  # of the rate, for conv_out
KINDS = (0, 0, 1)  # of vae_train.KINDS
GRADIENT = 1.0
NOISE = 0.03  # on true latents; drafts have faults of their own
OWN_DRAFTS = 0.5  # share of the batches, half of them after stage 2

Held = tuple[Tensor, Tensor, Tensor]
"""Features, pixels (8 bit) and weights of one batch of windows."""


class Head(nn.Module):
    """Features of the finest level -> signal (B, 3, F, H, W)."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.blocks = decoder.up_blocks[3].resnets[KEPT_BLOCKS:]
        self.norm, self.act, self.out = decoder.norm_out, decoder.conv_act, decoder.conv_out

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, causal=False)
        x = self.out(self.act(self.norm(x)), causal=False)
        x = x.unflatten(1, (3, 4, 4)).permute(0, 1, 4, 5, 3, 6, 2)
        return x.flatten(5, 6).flatten(3, 4)


@torch.no_grad()
def features(decoder: Any, latents: Tensor) -> Tensor:
    """What the first of `Head.blocks` sees."""
    kept: list[Tensor] = []
    block = decoder.up_blocks[3].resnets[KEPT_BLOCKS]

    def stop(_: Any, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0])
        raise StopIteration

    hook = block.register_forward_pre_hook(stop)
    try:
        decoder(latents.contiguous(memory_format=torch.channels_last_3d))
    except StopIteration:
        pass
    finally:
        hook.remove()
    return kept[0]


class Bank:
    """Batches of features, the oldest replaced by fresh ones."""

    def __init__(self, vae: Any, rng: random.Random) -> None:
        self.vae, self.rng = vae, rng
        self.encode = video_vae.transform(vae)
        self.known = [k for k in (drafts.explained(), drafts.refined()) if k]
        self.held: list[Held] = []
        self.added = 0

    def add(self) -> None:
        """One batch more."""
        kind = self.rng.choice(KINDS)
        if self.known and self.rng.random() < OWN_DRAFTS:
            known = self.rng.choice(self.known)
            latents, video, weight = vae_train.draft_batch(self.rng, self.vae, known, kind)
        else:
            latents, video, weight = vae_train.batch(self.rng, self.encode, kind)
            scale = NOISE * self.vae.latents_std.view(1, -1, 1, 1, 1)
            latents = latents + scale * torch.randn_like(latents)
        pixels = video.add(1).mul(127.5).round().to(torch.uint8)
        fresh = (features(self.vae.decoder, latents).half(), pixels, weight)
        if len(self.held) < HELD:
            self.held.append(fresh)
        else:
            self.held[self.added % HELD] = fresh
        self.added += 1

    def sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """(features, signal, weights)."""
        x, pixels, weight = self.rng.choice(self.held)
        x = x.float().contiguous(memory_format=torch.channels_last_3d)
        return x, pixels.float().div(127.5).sub(1), weight


def loss_of(out: Tensor, video: Tensor, weight: Tensor) -> Tensor:
    """L1 + 2 MSE + the error of the gradients along x, y and t."""
    error = out - video
    gradients = (
        (weight * error.diff(dim=2).abs()).mean()
        + (weight[..., 1:, :] * error.diff(dim=3).abs()).mean()
        + (weight[..., 1:] * error.diff(dim=4).abs()).mean()
    )
    flat = (weight * (error.abs() + 2 * error.square())).mean()
    return flat + GRADIENT * gradients


def train(options: argparse.Namespace) -> None:
    """Train for a time, with a rate that falls to 0; writes runs/vae.pt."""
    torch.manual_seed(options.seed)
    vae = vae_train.load().requires_grad_(False)
    decoder = vae.decoder
    head = Head(decoder).requires_grad_(True)
    bank = Bank(vae, random.Random(options.seed))
    groups = [
        {"params": list(head.blocks.parameters()), "share": 1.0},
        {"params": list(head.out.parameters()), "share": OUT_SHARE},
    ]
    weights = [p for g in groups for p in g["params"]]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)
    average = {n: v.clone() for n, v in head.state_dict().items()}
    saved = start = time.time()
    step, gone, sums = 0, 0.0, []
    while gone < 1:
        if len(bank.held) < FIRST or step % STEPS_EACH == 0:
            bank.add()
            if len(bank.held) < FIRST:
                continue
        x, video, weight = bank.sample()
        out = head(x)
        loss = loss_of(out, video, weight)
        gone = (time.time() - start) / options.seconds
        rate = options.lr * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * min(1, gone)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        sums.append(
            (float(loss.detach()), float((weight * (out - video)).square().mean().detach()))
        )
        for name, value in head.state_dict().items():
            average[name].lerp_(value, 1 - min(0.99, (step + 1) / (step + 10)))
        if step % 50 == 0:
            lost, mse = (sum(v) / len(v) for v in zip(*sums[-50:], strict=True))
            log(
                "head",
                step=step,
                loss=lost,
                psnr=vae_train.psnr_of(mse),
                rate=rate,
                held=bank.added,
            )
        if time.time() - saved > 90 or gone >= 1:
            saved = time.time()
            store(vae, head, average)


def store(vae: Any, head: Head, average: dict[str, Tensor]) -> None:
    """Write the state with the averaged head."""
    now = {n: v.clone() for n, v in head.state_dict().items()}
    whole = [{n: v.contiguous().clone() for n, v in vae.state_dict().items()}]
    head.load_state_dict(average)
    whole.append({n: v.contiguous().clone() for n, v in vae.state_dict().items()})
    head.load_state_dict(now)
    save({"vae": whole[0], "average": whole[1], "step": 1}, vae_train.STATE)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2400)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()

"""Write the training state from the shipped files, to resume training without an earlier runs/.

    python training/pocket/restore.py

Writes runs/vae.pt, runs/dit.pt, runs/upsampler.pt, runs/lora.pt and runs/parts/. Optimizer momenta
are not shipped and start at zero; cache.py can rebuild the caches, since the encoder is shipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dit
import lora
import sound_nets
import text
import torch
import upsampler
import vae as video_vae
from safetensors.torch import load_file
from state import CHECKPOINT, LORA, MODELS, TEXT_ENCODER, UPSAMPLER, save
from vae_train import STATE as VAE_STATE


def restore(folder: Path = MODELS) -> None:
    """Write the training states of all networks from the files in `folder`."""
    checkpoint = folder / CHECKPOINT
    tensors = load_file(checkpoint)
    vae = video_vae.from_original(tensors)
    save({"vae": vae, "average": vae, "step": 0}, VAE_STATE)
    tower = text.load(folder / TEXT_ENCODER, checkpoint)
    text.save(tower)
    sound_nets.save(*sound_nets.load(checkpoint))
    net = dit.build()
    prefix = "model.diffusion_model."
    net.load_state_dict({n: tensors[prefix + n].float() for n in net.state_dict()})
    state = dit.PocketModel(net, tower).state()
    save({"weights": state, "average": state, "step": dit.WARM_STEPS}, dit.STATE)
    upsampler_state = {n: v.float() for n, v in load_file(folder / UPSAMPLER).items()}
    save({"net": upsampler_state, "step": 1}, upsampler.STATE)
    adapters = {n: v.float() for n, v in load_file(folder / LORA).items()}
    if any(bool(v.any()) for v in adapters.values()):
        save({"lora": adapters, "step": 50}, lora.STATE)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=MODELS)
    torch.set_num_threads(1)
    restore(parser.parse_args().folder)


if __name__ == "__main__":
    main()

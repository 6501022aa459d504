"""Make the README's filmstrip: five frames of a clip after stage 1 and after stage 2.

    python training/pocket/filmstrip.py [--prompt "..."] [--seed 3] [--output FILE]

Runs the product, then decodes the stored latents of both stages.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from latent_ladder import Request
from latent_ladder.checkpoints.selection import model_folders, scan
from latent_ladder.models.video_vae.vae import decode_video, load_video_vae
from latent_ladder.pipeline.run import Prepared, RunOptions, execute, prepare
from latent_ladder.storage.artifact_store import Store

FRAMES = 5
WIDTH = 256
GAP = 6


def strip(prepared: Prepared, stage: str) -> np.ndarray:
    """Five frames of a stage in a row, uint8 (256, 5 * 256 + gaps, 3)."""
    planned = next(s for s in prepared.plan.stages if s.name == stage)
    artefact = prepared.store.get(planned.key)
    if artefact is None:
        raise SystemExit(f"the store has no result of {stage}")
    vae = load_video_vae(
        prepared.plan.models.video_vae, device="cpu", dtype=torch.float32, parts=("decoder",)
    )
    frames = np.concatenate(list(decode_video(artefact.load()["video"], vae)))
    picked = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    tiles = [np.asarray(Image.fromarray(frames[i]).resize((WIDTH, WIDTH))) for i in picked]
    gap = np.full((WIDTH, GAP, 3), 255, np.uint8)
    return np.concatenate([p for tile in tiles for p in (tile, gap)][:-1], axis=1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="a red ball rolls to the right over a striped floor")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("docs/images/filmstrip.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        request = Request.from_preset("pocket", prompt=options.prompt, seed=options.seed)
        library = scan(model_folders((), {}))
        prepared = prepare(request, library, Store(Path(folder) / "store"))
        execute(prepared, Path(folder) / "clip.mp4", RunOptions())
        rows = [strip(prepared, stage) for stage in ("base", "refine")]
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    options.output.parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate([rows[0], gap, rows[1]])).save(options.output)


if __name__ == "__main__":
    main()

"""Measure how much quantised copies of the pocket model differ from the bf16 model.

    python training/pocket/formats.py /tmp/formats
    python training/pocket/format_distance.py /tmp/formats --prompts 16

formats.py writes the copies; the product's own loader reads each transformer, which then generates
drafts of the same prompts and seeds. Results, in runs/formats.json: relative error of the matrices,
PSNR of the decoded drafts to those of bf16, and the judge's rates. Text tower and VAE stay in bf16.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import dit
import evaluate
import formats
import torch
from judge import held_out, judge, rates
from measures import psnr
from state import CHECKPOINT, MODELS, RUNS, log
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.models.weights.quantized_tensor import read_float


def weights(path: Path) -> dict[str, Tensor]:
    """Tensors of the transformer in a file, as float32, under the names of `Transformer`."""
    parts = components(open_checkpoint(path))
    transformer = parts["transformer"]
    names = dit.build().state_dict()
    return {n: read_float(transformer, n, torch.float32) for n in names}


def transformer_file(folder: Path) -> Path:
    """Path of the transformer's file in a model folder of formats.py."""
    return next(
        p for kind in ("checkpoints", "diffusion_models") for p in (folder / kind).glob("*")
    )


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--models", type=Path, default=MODELS, help="the bf16 model folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setup = evaluate.Setup.load("formats")
    scenes, prompts = held_out(options.prompts)
    files = {"bf16": options.models / CHECKPOINT}
    files |= {n: transformer_file(options.folder / n) for n in formats.WRITERS}
    out: dict[str, dict[str, object]] = {}
    reference, first = {}, torch.empty(0)
    for name, path in files.items():
        state = weights(path)
        setup.model.net.load_state_dict(state)
        clips = setup.clips(prompts)
        if not reference:
            reference, first = state, clips
        matrices = [n for n in state if formats.is_quantised(formats.NET + n, state[n])]
        error = sum(float((state[n] - reference[n]).square().sum()) for n in matrices)
        size = sum(float(reference[n].square().sum()) for n in matrices)
        pairs = [psnr(a, b) for a, b in zip(clips, first, strict=True)]
        out[name] = {
            "bytes": path.stat().st_size,
            "relative_error": (error / size) ** 0.5,
            "psnr_to_bf16": sum(pairs) / len(pairs) if name != "bf16" else None,
            "rates": rates([judge(c, s) for c, s in zip(clips, scenes, strict=True)]),
        }
        log("format", name=name, **out[name])
    (RUNS / "formats.json").write_text(json.dumps({"prompts": len(prompts), **out}, indent=1))


if __name__ == "__main__":
    main()

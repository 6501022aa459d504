"""The planner's table for the cards people own: what each precision of LTX-2.3 does on each.

    python benchmarks/memory_table.py            # prints docs/explanation/memory.md's table
    python benchmarks/memory_table.py --write    # and puts it there

Sizes come from files of the real names, shapes and dtypes without data
(tests/helpers/true_size.py).
Predictions, not measurements: the decoder in tiles of 512 px, the distilled preset (8 + 3 steps),
121 frames, 64 GiB of RAM to pin, 0.6 + 0.5 GiB of the card left to the desktop and to CUDA.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers import true_size  # noqa: E402

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint  # noqa: E402
from latent_ladder.checkpoints.components import Component, components  # noqa: E402
from latent_ladder.errors import MemoryBudgetError  # noqa: E402
from latent_ladder.memory.cost_model import ModelSizes, sizes_of  # noqa: E402
from latent_ladder.memory.planner import GIB, Budget, MemoryPlan, Policy, plan_memory  # noqa: E402
from latent_ladder.request.model import Request  # noqa: E402
from latent_ladder.request.overrides import apply_sets  # noqa: E402
from latent_ladder.request.presets import read_preset  # noqa: E402

PAGE = ROOT / "docs" / "explanation" / "memory.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
PRECISIONS = ("bf16", "fp8", "q4_k_m", "q4_k_s")
CARDS = (8, 12, 16, 24, 32, 48, 80)
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
TAKEN, RAM = 1.1, 64
BLOCKS = 48


def model_sizes(folder: Path, precision: str) -> ModelSizes:
    """Sizes of a set of files with this precision of the transformer."""
    true_size.companions(folder, "fp8")
    true_size.split(folder)
    parts: dict[str, Component] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found = components(open_checkpoint(path))
        for role, part in found.items():
            parts["distilled_lora" if role == "lora" else role] = part
    x2 = folder / "latent_upscale_models/ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
    parts |= components(open_checkpoint(x2))
    path = true_size.checkpoint(folder, precision)
    parts |= components(open_checkpoint(path))
    return sizes_of(parts)


def asked(size: tuple[int, int]) -> Request:
    """The distilled two-stage job at a size."""
    fields = read_preset("distilled").fields | {"prompt": "A cat walks.", "seed": 1}
    sets = (f"width={size[0]}", f"height={size[1]}", "frames=121", "decode.tile_px=512")
    return Request.from_dict(apply_sets(fields, sets))


def cell(request: Request, sizes: ModelSizes, card: int) -> str:
    """What the planner does on a card, in few words."""
    budget = Budget("cuda", int((card - TAKEN) * GIB), RAM * GIB)
    try:
        plan = plan_memory(request, sizes, budget, Policy(changes=frozenset({"tiles"})))
    except MemoryBudgetError:
        return "does not fit"
    return ", ".join(filter(None, (_held(plan), _tiles(plan), f"{plan.peak_bytes / GIB:.1f} GiB")))


def _held(plan: MemoryPlan) -> str:
    held = []
    for name in ("base", "refine"):
        offload_plan = plan.of(name).offload_plan
        held.append(BLOCKS if offload_plan.resident is None else offload_plan.resident)
    if held == [BLOCKS, BLOCKS]:
        return "resident"
    source = plan.of("refine").offload_plan.source
    where = "" if source == "pinned" else " from disk"
    return f"{held[0]} / {held[1]} blocks stay{where}"


def _tiles(plan: MemoryPlan) -> str:
    tile = plan.of("decode").offload_plan.tile_px
    return "" if tile is None else f"tiles {tile} px"


def table() -> str:
    """The whole table in Markdown."""
    lines = []
    for label, size in SIZES.items():
        lines += [f"### {label}, 121 frames", ""]
        lines += ["| card | " + " | ".join(PRECISIONS) + " |", "|---" * (1 + len(PRECISIONS)) + "|"]
        rows = {card: [f"{card} GB"] for card in CARDS}
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                sizes = model_sizes(Path(folder), precision)
            for card in CARDS:
                rows[card].append(cell(asked(size), sizes, card))
        lines += ["| " + " | ".join(row) + " |" for row in rows.values()]
        lines.append("")
    return "\n".join(lines)


def written(page: str, body: str) -> str:
    """The page with its table replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{body}\n{END}{after}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    body = table()
    print(body)
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text("utf-8"), body), "utf-8")


if __name__ == "__main__":
    main()

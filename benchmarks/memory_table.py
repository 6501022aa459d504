"""Table of the planner's predictions for LTX-2.3 on common GPUs, by precision.

    python benchmarks/memory_table.py            # prints the table of docs/explanation/memory.md
    python benchmarks/memory_table.py --write    # and writes it to the page

Sizes come from files with the real names, shapes and dtypes, without data
(tests/helpers/true_size.py). These are predictions, not measurements: decoding in tiles of 512 px,
the distilled preset (8 + 3 steps), 121 frames, 64 GiB of RAM for pinned memory, 0.6 + 0.5 GiB of
the GPU reserved for the desktop and CUDA.
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
from latent_ladder.memory.model_sizes import ModelSizes, sizes_of  # noqa: E402
from latent_ladder.memory.planner import GIB, Budget, MemoryPlan, Policy, plan_memory  # noqa: E402
from latent_ladder.request.model import Request  # noqa: E402
from latent_ladder.request.overrides import apply_sets  # noqa: E402
from latent_ladder.request.presets import read_preset  # noqa: E402

PAGE = ROOT / "docs" / "explanation" / "memory.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
PRECISIONS = ("bf16", "fp8", "nvfp4", "q8_0", "q4_k_m")
CARDS = (8, 12, 16, 24, 32, 48, 80)
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080), "1440p": (2560, 1440)}
RESERVED_GIB, RAM = 1.1, 64
BLOCKS = 48


def model_sizes(folder: Path, precision: str) -> ModelSizes:
    """Model sizes of a set of files with the transformer in this precision."""
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


def distilled_request(size: tuple[int, int]) -> Request:
    """Request of the distilled two-stage preset at a size."""
    fields = read_preset("distilled").fields | {"prompt": "A cat walks.", "seed": 1}
    sets = (f"width={size[0]}", f"height={size[1]}", "frames=121", "decode.tile_px=512")
    return Request.from_dict(apply_sets(fields, sets))


def cell(request: Request, sizes: ModelSizes, card: int) -> str:
    """Describe the planner's result for a GPU of ``card`` GB in a few words."""
    budget = Budget("cuda", int((card - RESERVED_GIB) * GIB), RAM * GIB)
    try:
        plan = plan_memory(request, sizes, budget, Policy(changes=frozenset({"tiles"})))
    except MemoryBudgetError:
        return "does not fit"
    return ", ".join(
        filter(
            None,
            (_describe_blocks(plan), _describe_tiles(plan), f"{plan.peak_bytes / GIB:.1f} GiB"),
        )
    )


def _describe_blocks(plan: MemoryPlan) -> str:
    resident = []
    for name in ("base", "refine"):
        offload_plan = plan.of(name).offload_plan
        resident.append(BLOCKS if offload_plan.resident is None else offload_plan.resident)
    if resident == [BLOCKS, BLOCKS]:
        return "resident"
    source = plan.of("refine").offload_plan.source
    source_text = "" if source == "pinned" else " from disk"
    return f"{resident[0]} / {resident[1]} blocks stay{source_text}"


def _describe_tiles(plan: MemoryPlan) -> str:
    tile = plan.of("decode").offload_plan.tile_px
    return "" if tile is None else f"tiles {tile} px"


def table() -> str:
    """Return the whole table in Markdown."""
    lines = []
    for label, size in SIZES.items():
        lines += [f"### {label}, 121 frames", ""]
        lines += ["| card | " + " | ".join(PRECISIONS) + " |", "|---" * (1 + len(PRECISIONS)) + "|"]
        rows = {card: [f"{card} GB"] for card in CARDS}
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                sizes = model_sizes(Path(folder), precision)
            for card in CARDS:
                rows[card].append(cell(distilled_request(size), sizes, card))
        lines += ["| " + " | ".join(row) + " |" for row in rows.values()]
        lines.append("")
    return "\n".join(lines)


def replace_table(page: str, body: str) -> str:
    """Replace the table in the text of the page."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{body}\n{END}{after}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    body = table()
    print(body)
    if parser.parse_args().write:
        PAGE.write_text(replace_table(PAGE.read_text("utf-8"), body), "utf-8")


if __name__ == "__main__":
    main()

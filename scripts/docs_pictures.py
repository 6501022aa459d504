"""Pictures of the documents, made with the pocket model by the commands that the pages show.

    python scripts/docs_pictures.py [NAME ...]

Without a name all are made: clip, drafts, preview, sweep.

The picture of a sweep's report is a screenshot and needs ``chromium`` on the PATH. The picture of
the two stages (``docs/images/filmstrip.png``) is made by ``training/pocket/filmstrip.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
BALL = "a red ball rolls to the right over a striped floor"
SQUARE = "a blue square grows"
STAR = "a yellow star bounces in front of mint green hills"


def ladder(folder: Path, *words: str) -> None:
    """Run ``ladder`` in ``folder`` with a store of its own."""
    environment = os.environ | {"LADDER_STORE": str(folder / "store"), "LADDER_MODELS": ""}
    subprocess.run(
        [sys.executable, "-m", "latent_ladder", *words], cwd=folder, env=environment, check=True
    )


def save(source: Path, name: str, width: int) -> None:
    """Save a picture, at most ``width`` pixels wide, as ``docs/images/NAME.webp``."""
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)))
    picture.save(IMAGES / f"{name}.webp", quality=85, method=6)


def clip(folder: Path) -> None:
    """Contact sheet of the tutorial's first clip."""
    ladder(folder, "make", BALL, "--seed", "10", "-o", "ball.mp4", "--sheet")
    save(folder / "ball.sheet.png", "clip", 1000)


def drafts(folder: Path) -> None:
    """Contact sheet of four drafts."""
    ladder(
        folder, "draft", STAR, "--seed", "10", "--seeds", "4", "--preview", "full", "-o", "drafts"
    )
    save(folder / "drafts" / "sheet.png", "drafts", 800)


def preview(folder: Path) -> None:
    """Strip of the estimates of a clip while it is sampled."""
    ladder(folder, "make", SQUARE, "--seed", "10", "-o", "square.mp4", "--preview")
    save(folder / "square.preview.png", "preview", 1000)


def sweep(folder: Path) -> None:
    """Screenshot of a sweep's report."""
    sets = ("--set", "refine.denoise=0.2:0.8:0.2", "--set", "refine.seed=same,other")
    ladder(folder, "sweep", BALL, "--seed", "10", *sets, "-o", "report")
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("the picture of a report needs chromium")
    shot = folder / "report.png"
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-sync")
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet,
         "--disable-component-update", "--window-size=1400,1500", "--virtual-time-budget=8000",
         f"--screenshot={shot}", (folder / "report" / "report.html").as_uri()],
        check=True,
    )  # fmt: skip
    save(shot, "sweep", 1000)


PICTURES: dict[str, Callable[[Path], None]] = {
    "clip": clip,
    "drafts": drafts,
    "preview": preview,
    "sweep": sweep,
}


def main() -> None:
    """Make the pictures that the command line names."""
    for name in sys.argv[1:] or PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            PICTURES[name](Path(folder))


if __name__ == "__main__":
    main()

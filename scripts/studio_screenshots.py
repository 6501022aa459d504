"""Pictures of all screens of the studio for its guide: ``docs/guide/studio/*.webp``.

    python scripts/studio_screenshots.py [--only make,drafts]

Needs ``make browser``. A server of its own makes four drafts with the pocket model, refines two and
sweeps one setting; then every screen is opened, light and dark, and on a phone.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from helpers.browser import open_browser  # noqa: E402
from helpers.comfyui_server import ComfyUiServer  # noqa: E402
from PIL import Image  # noqa: E402

FOLDER = ROOT / "docs" / "guide" / "studio"
PROMPT = "a red ball rolls to the right over a striped floor"
REQUEST = {"prompt": PROMPT, "preset": "pocket", "seed": 10}
WINDOW, PHONE = {"width": 1280, "height": 820}, {"width": 390, "height": 820}
SETTLED_MS = 1800
PATIENCE_S = 600


def run_job(server: ComfyUiServer, body: dict[str, Any]) -> dict[str, Any]:
    """The job once it is done."""
    status, answer = server.post("/ladder/jobs", body)
    if status != 201:
        raise SystemExit(f"error: {answer}")
    end = time.monotonic() + PATIENCE_S
    while True:
        job: dict[str, Any] = server.get_json(f"/ladder/jobs/{answer['job']['id']}")["job"]
        if job["state"] == "done":
            return job
        if job["state"] not in ("queued", "running") or time.monotonic() > end:
            raise SystemExit(f"error: the job is {job['state']}: {json.dumps(job['error'])}")
        time.sleep(0.3)


def make_clips(server: ComfyUiServer) -> dict[str, str]:
    """Addresses of screens, by name."""
    drafts = run_job(server, {"kind": "drafts", "request": REQUEST, "count": 4})["run"]
    refined = run_job(server, {"kind": "refine", "run": drafts, "drafts": [1, 2]})["run"]
    axes = ["refine.denoise=0.2:0.6:0.2"]
    sweep = run_job(server, {"kind": "sweep", "request": REQUEST, "axes": axes})["run"]
    server.post(f"/ladder/runs/{drafts}/star", {"starred": True, "clip": 2})
    return {
        "make": "make", "drafts": f"drafts/{drafts}", "refine": f"refine/{drafts}?drafts=1,2",
        "queue": "queue", "gallery": "gallery", "run": f"run/{refined}",
        "compare": f"compare?a={drafts}:1&b={refined}:1", "sweep": f"sweep/{sweep}",
        "timeline": "timeline", "models": "models", "app": "app",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="names of screens, with commas")
    only = [name for name in parser.parse_args().only.split(",") if name]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyUiServer(Path(folder), command=("studio", "--no-open")) as server,
        open_browser() as browser,
    ):
        Image.linear_gradient("L").convert("RGB").save(Path(folder) / "first.png")
        screens = make_clips(server)
        for suffix, scheme, size in (
            ("", "light", WINDOW), ("-dark", "dark", WINDOW), ("-phone", "light", PHONE),
        ):  # fmt: skip
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(f"{server.url}/studio/#/make")
            page.get_by_label("Prompt", exact=True).fill(PROMPT)
            page.locator("input[type=file]").first.set_input_files(Path(folder) / "first.png")
            page.get_by_text("first.png").wait_for()
            for name, path in screens.items():
                if only and name not in only:
                    continue
                page.goto(f"{server.url}/studio/#/{path}")
                page.wait_for_timeout(SETTLED_MS)
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                picture.save(FOLDER / f"{name}{suffix}.webp", quality=72, method=6)
            page.close()
    sizes = [file.stat().st_size for file in FOLDER.glob("*.webp")]
    sys.stdout.write(f"{len(sizes)} pictures, {sum(sizes) / 1e6:.2f} MB, in {FOLDER}\n")


if __name__ == "__main__":
    main()

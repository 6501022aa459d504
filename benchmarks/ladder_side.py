"""Our side of ``two_stage.py``: runs its job with ``latent_ladder.pipeline.run.run``."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

from latent_ladder.memory.peak_usage import peak_bytes  # noqa: E402
from latent_ladder.pipeline.events import StageDone, StageStarted  # noqa: E402
from latent_ladder.pipeline.run import RunOptions, run  # noqa: E402
from latent_ladder.request.model import Request  # noqa: E402
from latent_ladder.storage.artifact_store import Store  # noqa: E402


def request_of(job: dict[str, Any]) -> Request:
    """Convert the job to a request with stages base, upsample x2, refine."""
    return Request.from_dict(
        {
            **{k: job[k] for k in ("prompt", "negative_prompt", "width", "height", "frames")},
            "fps": job["fps"],
            "seed": job["seed"],
            "models": {"folders": [job["models"]]},
            "stages": [
                {"kind": "base", "sigmas": job["sigmas_1"], "guidance": job["guidance"]},
                {"kind": "upsample", "factor": 2.0},
                {"kind": "refine", "sigmas": job["sigmas_2"]},
            ],
        }
    )


@dataclass
class Clock:
    """Wall and processor seconds of each phase, measured between the events of a run."""

    spent: dict[str, tuple[float, float]] = field(default_factory=dict)
    wall: float = STARTED
    processor: float = 0.0
    peak_bytes: int = 0

    def __call__(self, event: Any) -> None:
        if isinstance(event, StageStarted):
            self.lap("imports and planning")
        elif isinstance(event, StageDone):
            import torch  # loaded by the run

            self.lap(event.stage)
            self.peak_bytes = max(self.peak_bytes, peak_bytes(torch.device("cpu")))

    def lap(self, name: str) -> None:
        """Add the time since the last call to phase ``name``."""
        wall, processor = time.perf_counter(), time.process_time()
        before = self.spent.get(name, (0.0, 0.0))
        self.spent[name] = (before[0] + wall - self.wall, before[1] + processor - self.processor)
        self.wall, self.processor = wall, processor


def main() -> None:
    """Make one clip in a new store and write the time of each phase."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("job", type=Path)
    job = json.loads(arguments.parse_args().job.read_text())
    store, clock = Store(Path(job["folder"])), Clock()
    counter: Any = nullcontext()
    if job["check"]:
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
    with counter:
        options = RunOptions(device="cpu", on_event=clock)
        result = run(request_of(job), job["output"], store=store, options=options)
    record: dict[str, Any] = {"spent": clock.spent}
    # A run resets the kernel's peak counter at each stage; its results leave out the libraries.
    record["peak_mib"] = clock.peak_bytes / 2**20
    if job["check"]:
        import torch

        base = next(stage for stage in result.stages if stage.stage == "base")
        artefact = store.get(base.key)
        if artefact is None:
            raise SystemExit("the base latents are not in the store")
        torch.save(artefact.load()["video"], job["check"])
        record["flops"] = counter.get_total_flops()
    Path(job["record"]).write_text(json.dumps(record))


if __name__ == "__main__":
    main()

"""``ladder bench``: how fast this machine multiplies, copies and reads, for ``plan`` to use."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from latent_ladder.cli.console import show_note, table

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
File = Annotated[
    Path | None, typer.Option("--file", help="A big file on the disk that the models are on.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(device: Device = "auto", file: File = None, as_json: Json = False) -> None:
    """Measure this machine once, so that `plan` can say how long a stage takes."""
    from latent_ladder.memory.benchmark import measure
    from latent_ladder.memory.hardware import save_rates
    from latent_ladder.models.device import choose_runtime

    runtime = choose_runtime(device)
    show_note(f"measuring {runtime}; this takes a few seconds")
    machine = measure(runtime, file)
    path = save_rates(runtime.device.type, machine)
    if as_json:
        print(json.dumps({"device": runtime.device.type, **asdict(machine), "file": str(path)}))
        return
    rows = [
        ("matrix products", f"{machine.flops / 1e12:.3g} TFLOP/s"),
        ("copies to the device", f"{machine.copy / 1e9:.3g} GB/s"),
        ("reads from disk", f"{machine.disk / 1e9:.3g} GB/s"),
    ]
    table("", (str(runtime), "rate"), rows)
    show_note(f"kept in {path}")

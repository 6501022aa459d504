"""``ladder bench``: speed of this machine for computing, copying and reading."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.options import Device, Json, memory_option
from latent_ladder.cli.console import print_json, print_table, show_loading, show_note

File = Annotated[
    Path | None,
    memory_option(
        "--file",
        metavar="FILE",
        help="Large file to read, on the disk with the models. Default: a temporary file.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``bench``."""
    app.command(cls=GroupedCommand)(expand_flags(bench))


def bench(device: Device = "auto", file: File = None, as_json: Json = False) -> None:
    """Measure this machine, so `plan` can estimate times.

    Takes some seconds; once per machine is enough.
    """
    show_loading("loading PyTorch", as_json)
    from latent_ladder.memory.benchmark import measure
    from latent_ladder.memory.hardware import save_rates
    from latent_ladder.models.accelerator import device_name
    from latent_ladder.models.device import choose_runtime

    runtime = choose_runtime(device)
    show_note(f"measuring {runtime}; this takes some seconds")
    machine = measure(runtime, file)
    path = save_rates(device_name(runtime.device), machine)
    if as_json:
        print_json(
            {"device": runtime.device.type, **asdict(machine), "file": str(path)}, indent=None
        )
        return
    rows = [
        ("matrix products", f"{machine.flops / 1e12:.3g} TFLOP/s"),
        ("copies to the device", f"{machine.copy / 1e9:.3g} GB/s"),
        ("reads from disk", f"{machine.disk / 1e9:.3g} GB/s"),
    ]
    print_table("", (str(runtime), "rate"), rows)
    show_note(f"stored in {path}")

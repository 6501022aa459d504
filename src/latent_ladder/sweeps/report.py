"""A sweep from its plan to the files of its report."""

from __future__ import annotations

from pathlib import Path

from latent_ladder.pipeline.run_options import RunOptions
from latent_ladder.sweeps.export import write_files
from latent_ladder.sweeps.html_report import Report, write_page
from latent_ladder.sweeps.recommend import Choice, choose_point
from latent_ladder.sweeps.sweep_plan import Sweep
from latent_ladder.sweeps.sweep_run import SweepResult, run_sweep


def make_report(
    planned: Sweep, options: RunOptions, folder: Path, keep_motion: float
) -> tuple[SweepResult, Choice]:
    """Make all points, recommend one, and write the report to ``folder``.

    Raises what :func:`run_sweep` raises.
    """
    result = run_sweep(planned, options, folder)
    choice = choose_point(result.points, result.drafts, keep_motion)
    write_files(folder, planned, result, choice, options.command)
    write_page(Report(planned, result, choice, folder, options.command))
    return result, choice

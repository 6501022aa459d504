"""Downloads of published model files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from latent_ladder.checkpoints.catalog import FILES
from latent_ladder.checkpoints.catalog_file import CatalogFile
from latent_ladder.checkpoints.download import (
    DownloadItem,
    check_free_space,
    download_files,
    plan_download,
)
from latent_ladder.errors import RequestError
from latent_ladder.pipeline.events import OnEvent, StageStarted, StepDone


def default_target() -> Path:
    """The first searched models/ folder that is the user's, else ``./models``."""
    from latent_ladder.checkpoints.search_paths import model_folders

    # A folder with a category has one kind of file; a download needs the whole tree.
    own = [f.path for f in model_folders() if f.category is None and not f.is_embedded]
    return own[0] if own else Path("models")


def catalog() -> dict[str, CatalogFile]:
    """All published files by their ids: repository and path."""
    return {f"{file.repository}/{file.path}": file for file in FILES}


def find_entries(ids: Sequence[str]) -> list[CatalogFile]:
    """The published files of these ids. Raises :class:`RequestError` for an unknown one."""
    known = catalog()
    unknown = [each for each in ids if each not in known]
    if unknown:
        raise RequestError(
            f"{unknown[0][:200]} is not in the catalogue", "use ids of GET /ladder/models"
        )
    return [known[each] for each in dict.fromkeys(ids)]


def download(
    ids: Sequence[str], folder: Path, on_event: OnEvent, check_cancelled: Callable[[], None]
) -> list[Path]:
    """Download published files into a models folder; an earlier download is resumed.

    Raises :class:`CheckpointError`, and :class:`Cancelled` when stopped.
    """
    plan = plan_download(find_entries(ids), folder)
    check_free_space(plan)
    places = {item.path: number for number, item in enumerate(plan.items, 1)}
    current = 0

    def report(item: DownloadItem, done: int) -> None:
        nonlocal current
        check_cancelled()
        if places[item.path] != current:
            current = places[item.path]
            on_event(StageStarted(item.file.name, current, len(plan.items), item.nbytes))
        on_event(StepDone(item.file.name, done, item.nbytes))

    download_files(plan, report)
    return [item.path for item in plan.items]

"""Downloads of published model files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from latent_ladder.checkpoints import download as hub
from latent_ladder.checkpoints.catalog import FILES
from latent_ladder.checkpoints.catalog_file import CatalogFile
from latent_ladder.checkpoints.download import DownloadItem, DownloadPlan, licence_name
from latent_ladder.errors import CheckpointError, RequestError
from latent_ladder.pipeline.events import OnEvent, StageStarted, StepDone, Warned
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically


def default_target() -> Path:
    """The first searched models/ folder that is the user's, else ``./models``."""
    from latent_ladder.checkpoints.search_paths import model_folders

    # A folder with a category has one kind of file; a download needs the whole tree.
    own = [f.path for f in model_folders() if f.category is None and not f.is_embedded]
    return own[0] if own else Path("models")


def accept_licences(
    plan: DownloadPlan, ask: Callable[[CatalogFile, str], None], note: Callable[[str], None]
) -> None:
    """Have the licence of each gated repository with missing files accepted; once per text.

    ``ask`` gets a file and the text, and raises unless it is accepted. The accepted text is stored
    beside the files, so another text is shown again. Raises :class:`CheckpointError`.
    """
    missing = [item.file for item in plan.items if item.file.gated and item.state != "present"]
    for file in {file.repository: file for file in missing}.values():
        text = hub.fetch_licence(file)
        if text is None:
            note(f"the text of {licence_name(file)} is on https://{file.page} only")
            continue
        stored = plan.folder / f"LICENSE-{file.repository.replace('/', '-')}.txt"
        if stored.is_file() and stored.read_text("utf-8", "replace") == text:
            continue
        ask(file, text)
        with convert_write_errors(CheckpointError, stored.name, plan.folder, len(text)):
            plan.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(stored, text.encode())
        note(f"{licence_name(file)} is in {stored}")


def check_accepted(files: Sequence[CatalogFile], accepted: bool) -> None:
    """Raise :class:`RequestError` for a gated file whose licence was not accepted."""
    gated = next((file for file in files if file.gated), None)
    if gated is not None and not accepted:
        raise RequestError(
            f"{gated.repository} needs the acceptance of {licence_name(gated)}",
            f"read it on https://{gated.page}, and send accept_licences=true",
        )


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
    plan = hub.plan_download(find_entries(ids), folder)
    hub.check_free_space(plan)
    # whoever queued the job has accepted: check_accepted()
    accept_licences(plan, lambda _, __: None, lambda text: on_event(Warned("licence", text)))
    places = {item.path: number for number, item in enumerate(plan.items, 1)}
    current = 0

    def report(item: DownloadItem, done: int) -> None:
        nonlocal current
        check_cancelled()
        if places[item.path] != current:
            current = places[item.path]
            on_event(StageStarted(item.file.name, current, len(plan.items), item.nbytes))
        on_event(StepDone(item.file.name, done, item.nbytes))

    hub.download_files(plan, report)
    return [item.path for item in plan.items]

"""Download of published model files from a Hugging Face hub, resumable and verified.

Metadata, tokens, mirrors and retries are those of huggingface_hub (``HF_TOKEN``, ``HF_ENDPOINT``);
its own file download is not used, because it deletes a partial file when it is stopped. Here a file
is written as ``<file>.<first digits of its hash>.part`` and gets its final name when its size and
hash equal those of the hub. Existing files are never overwritten.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    LadderError,
)
from latent_ladder.storage.atomic_write import (
    commit,
    explain_write_error,
    free_bytes,
    readable_size,
)
from latent_ladder.storage.file_hashes import FileHash, hash_file, store_hash

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

    from latent_ladder.checkpoints.catalog import CatalogFile

MARGIN = 0.05
"""Free space required in addition to the download, as a share of its size."""

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""Number of failed connections in a row without a new byte after which the download fails."""

PAUSE_S = 1.0
"""Pause between two connections, in seconds."""


@dataclass(frozen=True)
class Hub:
    """Address of a hub and access token; ``None``: ``HF_ENDPOINT`` and ``HF_TOKEN``.

    Without a token at all where ``token`` is ``False``.
    """

    endpoint: str | None = None
    token: str | bool | None = None


DEFAULT_HUB = Hub()

State = Literal["present", "partial", "missing"]
ProgressCallback = Callable[["DownloadItem", int], None]
"""Called with an item and the number of its bytes on disk, about once per MiB."""


@dataclass(frozen=True)
class DownloadItem:
    """One file of a download: its facts on the hub, its target path, its state on disk.

    ``revision`` is a commit hash; ``hash`` is ``None`` if the hub does not state one.
    """

    file: CatalogFile
    nbytes: int
    hash: FileHash | None
    revision: str
    path: Path
    state: State
    present_bytes: int

    @property
    def part(self) -> Path:
        """Path of the partial file, with part of the hash: another revision starts a new file."""
        tag = self.hash.hex[:12] if self.hash is not None else self.revision[:12]
        return self.path.with_name(f"{self.path.name}.{tag}.part")

    @property
    def remaining_bytes(self) -> int:
        """Number of bytes still to download."""
        return self.nbytes - self.present_bytes


@dataclass(frozen=True)
class DownloadPlan:
    """The files of a download, and the models folder they go to."""

    folder: Path
    items: tuple[DownloadItem, ...]

    @property
    def remaining_bytes(self) -> int:
        """Number of bytes still to download, of all files."""
        return sum(item.remaining_bytes for item in self.items)

    @property
    def required_bytes(self) -> int:
        """Free bytes that the disk must have: the remaining bytes plus 5 %."""
        return int(self.remaining_bytes * (1 + MARGIN))


def plan_download(
    files: Sequence[CatalogFile], folder: Path, hub: Hub = DEFAULT_HUB
) -> DownloadPlan:
    """Query the hub for ``files`` and check which of them exist in ``folder``. Downloads nothing.

    ``folder`` is a ComfyUI models folder. Raises :class:`CheckpointError` for an existing file that
    differs from the published one, or for a gated one without access (the hint has the page of its
    licence), :class:`CheckpointNotFound` for one that the hub does not have.
    """
    items = tuple(_look_up_file(file, folder, hub) for file in files)
    return DownloadPlan(folder, items)


def check_free_space(plan: DownloadPlan) -> None:
    """Raise :class:`CheckpointError` if the disk has less than ``plan.required_bytes`` free."""
    free = free_bytes(plan.folder)
    if plan.required_bytes > free:
        raise CheckpointError(
            f"the download of {readable_size(plan.remaining_bytes)} needs "
            f"{readable_size(plan.required_bytes)} of free space, {readable_size(free)} are free "
            f"in {plan.folder}",
            "free some space there, choose a folder on another disk with --to, or a smaller "
            "--precision",
        )


def download_files(
    plan: DownloadPlan,
    report: ProgressCallback = lambda _item, _done: None,
    hub: Hub = DEFAULT_HUB,
) -> None:
    """Download the missing files one by one. A stopped download is resumed by the next call.

    ``report`` is called with the progress. Raises :class:`CheckpointError` at once if the disk is
    too small, :class:`CorruptCheckpoint` if the hash of a file is not that of the hub.
    """
    check_free_space(plan)
    for item in plan.items:
        if item.state == "present":
            logger.info("%s is there, %d bytes", item.path, item.nbytes)
            report(item, item.nbytes)
            continue
        try:
            item.path.parent.mkdir(parents=True, exist_ok=True)
            with _lock_partial_file(item):
                _fetch_and_check(item, report, hub)
        except OSError as error:
            raise explain_write_error(
                error, CheckpointError, item.file.name, item.path.parent, item.remaining_bytes
            ) from error


def _look_up_file(file: CatalogFile, folder: Path, hub: Hub) -> DownloadItem:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(file.repository, file.path, endpoint=hub.endpoint)
    try:
        with _hub_errors(file):
            known = get_hf_file_metadata(url, token=hub.token, endpoint=hub.endpoint)
    except _ConnectionFailed as error:
        raise CheckpointError(error.message, error.hint) from error
    if known.size is None or known.commit_hash is None:
        raise CheckpointError(
            f"{url} is not served by a Hugging Face hub: the answer has no size or no commit",
            "check HF_ENDPOINT and the proxy",
        )
    path = folder / file.folder / file.name
    kind = FileHash.from_etag(known.etag)
    item = DownloadItem(file, known.size, kind, known.commit_hash, path, "missing", 0)
    return _with_state(item)


def _with_state(item: DownloadItem) -> DownloadItem:
    """The item with the state of its file on disk. Raises what :func:`_check_present` raises."""
    if item.path.exists():
        _check_present(item)
        return replace(item, state="present", present_bytes=item.nbytes)
    present = item.part.stat().st_size if item.part.exists() else 0
    if 0 < present <= item.nbytes:
        return replace(item, state="partial", present_bytes=present)
    return item


def _check_present(item: DownloadItem) -> None:
    """Raise :class:`CheckpointError` if the existing file differs from the published one."""
    size = item.path.stat().st_size
    if size != item.nbytes:
        why = f"it has {size} bytes, the published one {item.nbytes}"
    elif item.hash is not None and hash_file(item.path, item.hash.kind) != item.hash.hex:
        why = f"its hash differs from the published {item.hash}"
    else:
        return
    raise CheckpointError(
        f"{item.path} differs from the file in {item.file.repository}: {why}",
        "delete it if it is damaged, or choose another folder with --to",
    )


@contextmanager
def _lock_partial_file(item: DownloadItem) -> Iterator[None]:
    """Lock the partial file, so that a second process does not write to it."""
    from latent_ladder.storage.file_lock import lock_file

    with lock_file(item.part.with_suffix(".lock"), timeout=1.0):
        yield


def _fetch_and_check(item: DownloadItem, report: ProgressCallback, hub: Hub) -> None:
    if item.part.exists() and item.part.stat().st_size > item.nbytes:
        item.part.unlink()
    start = time.monotonic()
    with item.part.open("ab") as file:
        sink = _PartialFile(file, item, report)
        logger.info("downloading %s from byte %d of %d", item.path, sink.size, item.nbytes)
        _fetch(item, sink, hub)
        found = sink.hex()
    logger.info("downloaded %s in %.1f s", item.path, time.monotonic() - start)
    if item.hash is not None and found != item.hash.hex:
        item.part.unlink()
        raise CorruptCheckpoint(
            f"{item.file.name} from {item.file.repository}: the downloaded file has the "
            f"{item.hash.kind} {found}, expected {item.hash.hex}; it was deleted",
            "run the command again; if the error stays, a proxy or mirror changes the file",
        )
    commit(item.part, item.path)
    if item.hash is not None:
        store_hash(item.path, item.hash)
    for stale in item.path.parent.glob(f"{item.path.name}.*.part"):
        stale.unlink(missing_ok=True)


def _fetch(item: DownloadItem, sink: _PartialFile, hub: Hub) -> None:
    """Download the rest of ``sink``; connect again as long as that brings new bytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars("huggingface_hub.http_get")
    file = item.file
    url = hf_hub_url(file.repository, file.path, revision=item.revision, endpoint=hub.endpoint)
    logger.debug("address: %s, revision %s", url, item.revision)
    broken = 0
    while sink.size < item.nbytes:
        before = sink.size
        try:
            with _hub_errors(file):
                http_get(
                    url,
                    # http_get calls only write, tell, seek and truncate.
                    cast(BinaryIO, sink),
                    resume_size=before,
                    headers={**build_hf_headers(token=hub.token), "Accept-Encoding": "identity"},
                    expected_size=item.nbytes,
                )
        except _ConnectionFailed as error:
            broken = 0 if sink.size > before else broken + 1
            logger.info("connection %d failed at byte %d: %s", broken, sink.size, error.message)
            if broken >= ATTEMPTS:
                raise CheckpointError(error.message, error.hint) from error
            time.sleep(PAUSE_S)


class _PartialFile:
    """A partial file opened for appending: writes, hashes and reports progress about every MiB."""

    def __init__(self, file: BinaryIO, item: DownloadItem, report: ProgressCallback) -> None:
        self._file, self._item, self._report = file, item, report
        self.size = self._reported = file.seek(0, os.SEEK_END)
        self._digest = self._rehash()
        report(item, self.size)

    def hex(self) -> str | None:
        """The hash of all bytes of the file, of the kind that the hub states; ``None`` without."""
        self._file.flush()
        return None if self._digest is None else str(self._digest.hexdigest())

    def write(self, chunk: bytes) -> int:
        self._file.write(chunk)
        self.size += len(chunk)
        if self._digest is not None:
            self._digest.update(chunk)
        if self.size - self._reported >= 2**20 or self.size == self._item.nbytes:
            self._reported = self.size
            self._report(self._item, self.size)
        return len(chunk)

    def tell(self) -> int:
        return self.size

    def seek(self, position: int) -> int:
        """Go back to ``position``, when the server sends the file from its start again."""
        self.size = self._reported = position
        return position

    def truncate(self) -> int:
        self._file.truncate(self.size)
        self._file.seek(self.size)
        self._digest = self._rehash()
        return self.size

    def _rehash(self) -> Any:
        """A hash object that has read the bytes on disk; ``None`` if the hub states no hash."""
        kind = self._item.hash
        if kind is None:
            return None
        digest = kind.new_digest(self._item.nbytes)
        self._file.flush()
        with self._item.part.open("rb") as file:
            while chunk := file.read(2**22):
                digest.update(chunk)
        return digest


class _ConnectionFailed(CheckpointError):
    """A failed connection that may succeed if tried again. Used in this module only."""


@contextmanager
def _hub_errors(file: CatalogFile) -> Iterator[None]:
    """Convert errors of huggingface_hub and its HTTP client into :class:`CheckpointError`."""
    from huggingface_hub import errors

    # Base class of the HTTP client's errors: huggingface_hub uses httpx or httpx2.
    transport = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _http_error(file, error.response.status_code, error) from error
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{file.name} cannot be downloaded: HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE",
        ) from error
    except transport as error:
        raise _ConnectionFailed(
            f"{file.name}: the connection to the hub failed ({error or type(error).__name__})",
            "run the command again to resume; if the error stays, check proxy and HF_ENDPOINT",
        ) from error


def _http_error(file: CatalogFile, status: int, error: HfHubHTTPError) -> LadderError:
    from huggingface_hub.errors import GatedRepoError

    page = f"https://huggingface.co/{file.repository}"
    if isinstance(error, GatedRepoError) or status == 403 or (file.gated and status == 401):
        return _gate_error(file, status, error)
    if status == 401:
        return CheckpointNotFound(
            f"{file.repository} does not exist, is private, or HF_TOKEN is not valid (401)",
            f"check {page}, HF_TOKEN and HF_ENDPOINT",
        )
    if status == 404:
        return CheckpointNotFound(
            f"{file.repository} has no file {file.path} (404)", f"see its list of files: {page}"
        )
    kind = _ConnectionFailed if status >= 500 or status == 429 else CheckpointError
    return kind(f"{file.name}: the hub answered {status}", "try again later")


TOKENS = "huggingface.co/settings/tokens"
"""Page of a user's tokens."""


def _gate_error(file: CatalogFile, status: int, error: HfHubHTTPError) -> CheckpointError:
    """The error of a gated repository: no token, a wrong one, one without rights, no acceptance.

    The hub answers 401 where it does not know who asks, and 403 to somebody without access.
    """
    headers = error.response.request.headers
    has_token, said = "authorization" in headers, f"{error} {error.server_message or ''}".lower()
    gate = f"{file.repository} is gated, {file.name} needs the acceptance of its licence"
    accept = f"accept {licence_name(file)} on https://{file.page}"
    if status == 401 and not has_token:
        return CheckpointError(
            f"{gate} and a token, and there is no token (401)",
            f"{accept}, then set HF_TOKEN to a token of that account ({TOKENS})",
        )
    if status == 401:
        return CheckpointError(
            f"{gate}, and the hub does not know the token of HF_TOKEN (401)",
            f"make a new token on {TOKENS}; {accept} with the same account",
        )
    if "fine-grained" in said or "gated repositories" in said:
        return CheckpointError(
            f"{gate}, and the token may not read gated repositories (403)",
            f"allow the token to read public gated repositories on {TOKENS}, or use one of type "
            "Read",
        )
    return CheckpointError(
        f"{gate}, and the account of the token has not accepted it (403)",
        f"{accept}; a fine-grained token must also be allowed to read gated repositories",
    )


def licence_name(file: CatalogFile) -> str:
    """The name of a gated file's licence in a sentence."""
    return LICENCES.get(file.repository, "its licence")


LICENCES = {"Lightricks/LTX-2.5": "the LTX-2.x Community License"}
"""Licences of gated repositories; the text is on their pages."""


LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
"""Names of the licence's text in a repository, in the order in which they are tried."""
MAX_LICENCE_BYTES = 2**20


def fetch_licence(file: CatalogFile, hub: Hub = DEFAULT_HUB) -> str | None:
    """The text of the licence in a file's repository; ``None`` if there is none to read.

    Raises :class:`CheckpointError` without access or connection.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    for name in LICENCE_FILES:
        url = hf_hub_url(file.repository, name, endpoint=hub.endpoint)
        text = io.BytesIO()
        try:
            with _hub_errors(replace(file, path=name)):
                size = get_hf_file_metadata(url, token=hub.token, endpoint=hub.endpoint).size
                if size is None or not 0 < size <= MAX_LICENCE_BYTES:
                    continue
                headers = build_hf_headers(token=hub.token) | {"Accept-Encoding": "identity"}
                http_get(url, text, headers=headers, expected_size=size)
        except CheckpointNotFound:
            continue
        return text.getvalue().decode("utf-8", "replace")
    return None


def licence_notes(files: Sequence[CatalogFile]) -> tuple[str, ...]:
    """A sentence for each gated repository of ``files``, to show before a download."""
    gated = {file.repository: file for file in files if file.gated}
    return tuple(
        f"{file.repository} is under {licence_name(file)}: read and accept it on "
        f"https://{file.page}, and set HF_TOKEN"
        for file in gated.values()
    )

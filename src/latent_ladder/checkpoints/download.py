"""Download published model files from a Hugging Face hub: resumed, checked, never half there.

Metadata, tokens, mirrors and retries are huggingface_hub's (``HF_TOKEN``, ``HF_ENDPOINT``); its own
file download is not used, because it throws a partial file away when it is stopped. Here a file
grows under the name ``<file>.<first digits of its hash>.part`` and gets its final name when its
size and hash are the hub's. Nothing that a user already has is overwritten.
"""

from __future__ import annotations

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
    from latent_ladder.checkpoints.catalog import Published

MARGIN = 0.05
"""Share of the bytes to fetch that must stay free on the disk besides them."""

ATTEMPTS = 5
"""Connections in a row that may break without one new byte."""

PAUSE_S = 1.0


@dataclass(frozen=True)
class Hub:
    """Which hub and as whom; ``None`` is what ``HF_ENDPOINT`` and ``HF_TOKEN`` say."""

    endpoint: str | None = None
    token: str | None = None


DEFAULT_HUB = Hub()

State = Literal["present", "partial", "missing"]
Report = Callable[["Item", int], None]
"""Called with an item and the bytes of it that are there, about once per MiB."""


@dataclass(frozen=True)
class Item:
    """One file: what the hub says of it, where it goes, what is there already."""

    file: Published
    nbytes: int
    hash: FileHash | None
    revision: str
    path: Path
    state: State
    have: int

    @property
    def part(self) -> Path:
        """Where the file grows; named by its hash, so a new revision never continues an old one."""
        mark = self.hash.hex[:12] if self.hash is not None else self.revision[:12]
        return self.path.with_name(f"{self.path.name}.{mark}.part")

    @property
    def remaining(self) -> int:
        """Bytes still to fetch."""
        return self.nbytes - self.have


@dataclass(frozen=True)
class Plan:
    """What a download will do to ``folder``."""

    folder: Path
    items: tuple[Item, ...]

    @property
    def remaining(self) -> int:
        """Bytes to fetch in all."""
        return sum(item.remaining for item in self.items)

    @property
    def needed(self) -> int:
        """Free bytes the disk must have: what is to fetch and 5 %."""
        return int(self.remaining * (1 + MARGIN))


def plan(files: Sequence[Published], folder: Path, hub: Hub = DEFAULT_HUB) -> Plan:
    """Ask the hub about ``files`` and look at what ``folder`` holds of them. Fetches nothing.

    ``folder`` is a ComfyUI models folder. Raises :class:`CheckpointError` for a file that is
    there but is not the published one, :class:`CheckpointNotFound` for one that the hub does not
    have, and the licence page's address for one that it does not give.
    """
    items = tuple(_look_up(file, folder, hub) for file in files)
    return Plan(folder, items)


def check_room(plan: Plan) -> None:
    """Raise :class:`CheckpointError` unless the disk has room for what is to fetch and 5 %."""
    free = free_bytes(plan.folder)
    if plan.needed > free:
        raise CheckpointError(
            f"{readable_size(plan.remaining)} are to be downloaded and need "
            f"{readable_size(plan.needed)}, {readable_size(free)} are free in {plan.folder}",
            "free some space there, choose a folder on another disk with --to, or a smaller "
            "--precision",
        )


def download(
    plan: Plan,
    report: Report = lambda _item, _done: None,
    hub: Hub = DEFAULT_HUB,
) -> None:
    """Fetch what is missing, file by file. Stopped at any point it goes on there next time.

    Raises :class:`CheckpointError` before the first byte when the disk is too small,
    :class:`CorruptCheckpoint` when a file's bytes are not those the hub announced.
    """
    check_room(plan)
    for item in plan.items:
        if item.state == "present":
            report(item, item.nbytes)
            continue
        try:
            item.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(item):
                _fetch_and_check(item, report, hub)
        except OSError as error:
            raise explain_write_error(
                error, CheckpointError, item.file.name, item.path.parent, item.remaining
            ) from error


def _look_up(file: Published, folder: Path, hub: Hub) -> Item:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(file.repository, file.path, endpoint=hub.endpoint)
    try:
        with _hub_errors(file):
            known = get_hf_file_metadata(url, token=hub.token, endpoint=hub.endpoint)
    except _Broken as error:
        raise CheckpointError(error.message, error.hint) from error
    if known.size is None or known.commit_hash is None:
        raise CheckpointError(
            f"{url} is not served by a Hugging Face hub: it has no size or no commit",
            "check HF_ENDPOINT and the proxy",
        )
    path = folder / file.folder / file.name
    kind = FileHash.from_etag(known.etag)
    item = Item(file, known.size, kind, known.commit_hash, path, "missing", 0)
    return _with_state(item)


def _with_state(item: Item) -> Item:
    if item.path.exists():
        _check_present(item)
        return replace(item, state="present", have=item.nbytes)
    have = item.part.stat().st_size if item.part.exists() else 0
    if 0 < have <= item.nbytes:
        return replace(item, state="partial", have=have)
    return item


def _check_present(item: Item) -> None:
    """Raise :class:`CheckpointError` if the file that is there is not the published one."""
    size = item.path.stat().st_size
    if size != item.nbytes:
        why = f"it has {size} bytes, the published one {item.nbytes}"
    elif item.hash is not None and hash_file(item.path, item.hash.kind) != item.hash.hex:
        why = f"its hash differs from the published {item.hash}"
    else:
        return
    raise CheckpointError(
        f"{item.path} is not the file that {item.file.repository} publishes: {why}",
        "move it away if it is damaged, or download into another folder with --to",
    )


@contextmanager
def _alone(item: Item) -> Iterator[None]:
    """Keep a second process away from the same partial file."""
    from latent_ladder.storage.file_lock import lock_file

    with lock_file(item.part.with_suffix(".lock"), timeout=1.0):
        yield


def _fetch_and_check(item: Item, report: Report, hub: Hub) -> None:
    if item.part.exists() and item.part.stat().st_size > item.nbytes:
        item.part.unlink()
    with item.part.open("ab") as file:
        sink = _Sink(file, item, report)
        _fetch(item, sink, hub)
        found = sink.hex()
    if item.hash is not None and found != item.hash.hex:
        item.part.unlink()
        raise CorruptCheckpoint(
            f"{item.file.name} from {item.file.repository}: what was downloaded has the "
            f"{item.hash.kind} {found}, the hub announces {item.hash.hex}; it was removed",
            "run the command again; if it stays so, a proxy or mirror changes the file",
        )
    commit(item.part, item.path)
    if item.hash is not None:
        store_hash(item.path, item.hash)
    for stale in item.path.parent.glob(f"{item.path.name}.*.part"):
        stale.unlink(missing_ok=True)


def _fetch(item: Item, sink: _Sink, hub: Hub) -> None:
    """Fill ``sink`` from where it stands; connect again while that brings new bytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars("huggingface_hub.http_get")
    file = item.file
    url = hf_hub_url(file.repository, file.path, revision=item.revision, endpoint=hub.endpoint)
    broken = 0
    while sink.size < item.nbytes:
        before = sink.size
        try:
            with _hub_errors(file):
                http_get(
                    url,
                    # It asks for no more than this: write, tell, seek and truncate.
                    cast(BinaryIO, sink),
                    resume_size=before,
                    headers={**build_hf_headers(token=hub.token), "Accept-Encoding": "identity"},
                    expected_size=item.nbytes,
                )
        except _Broken as error:
            broken = 0 if sink.size > before else broken + 1
            if broken >= ATTEMPTS:
                raise CheckpointError(error.message, error.hint) from error
            time.sleep(PAUSE_S)


class _Sink:
    """The end of a partial file: appends, hashes what passes, reports about every MiB."""

    def __init__(self, file: BinaryIO, item: Item, report: Report) -> None:
        self._file, self._item, self._report = file, item, report
        self.size = self._said = file.seek(0, os.SEEK_END)
        self._digest = self._rehash()
        report(item, self.size)

    def hex(self) -> str | None:
        """The hash of all bytes of the file, of the kind the hub announces."""
        self._file.flush()
        return None if self._digest is None else str(self._digest.hexdigest())

    def write(self, chunk: bytes) -> int:
        self._file.write(chunk)
        self.size += len(chunk)
        if self._digest is not None:
            self._digest.update(chunk)
        if self.size - self._said >= 2**20 or self.size == self._item.nbytes:
            self._said = self.size
            self._report(self._item, self.size)
        return len(chunk)

    def tell(self) -> int:
        return self.size

    def seek(self, position: int) -> int:
        """Only back to where a transfer began: the server sends the file from its start again."""
        self.size = self._said = position
        return position

    def truncate(self) -> int:
        self._file.truncate(self.size)
        self._file.seek(self.size)
        self._digest = self._rehash()
        return self.size

    def _rehash(self) -> Any:
        """The state of the hash after the bytes that are there."""
        kind = self._item.hash
        if kind is None:
            return None
        digest = kind.new_digest(self._item.nbytes)
        self._file.flush()
        with self._item.part.open("rb") as file:
            while chunk := file.read(2**22):
                digest.update(chunk)
        return digest


class _Broken(CheckpointError):
    """A connection that may be tried again; never leaves this module."""


@contextmanager
def _hub_errors(file: Published) -> Iterator[None]:
    """Say in our words what the hub or the connection to it refuses."""
    from huggingface_hub import errors

    # The base of the HTTP client's errors: httpx or httpx2, as huggingface_hub's version has it.
    transport = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refused(file, error.response.status_code, error) from error
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{file.name} cannot be downloaded: HF_HUB_OFFLINE is set", "unset it"
        ) from error
    except transport as error:
        raise _Broken(
            f"{file.name}: the connection to the hub failed ({error or type(error).__name__})",
            "run the command again, it goes on where it stopped; check proxy and HF_ENDPOINT",
        ) from error


def _refused(file: Published, status: int, error: Exception) -> LadderError:
    from huggingface_hub.errors import GatedRepoError

    page = f"https://huggingface.co/{file.repository}"
    if isinstance(error, GatedRepoError) or status == 403:
        return CheckpointError(
            f"{file.repository} gives {file.name} only to who accepted its licence ({status})",
            f"accept it on {page}, then set HF_TOKEN to a token that may read it "
            "(huggingface.co/settings/tokens)",
        )
    if status == 401:
        return CheckpointNotFound(
            f"{file.repository} does not exist, or is private, or HF_TOKEN is not valid (401)",
            f"see {page}; check HF_TOKEN and HF_ENDPOINT",
        )
    if status == 404:
        return CheckpointNotFound(
            f"{file.repository} has no file {file.path} (404)", f"see which files there are: {page}"
        )
    kind = _Broken if status >= 500 or status == 429 else CheckpointError
    return kind(f"{file.name}: the hub answered {status}", "try again later")

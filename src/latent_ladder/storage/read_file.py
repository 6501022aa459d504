"""Reading of files that a user names: regular files only, within a size, errors in words.

A pipe would be waited for, a device such as ``/dev/zero`` would never end, and a name may be too
long or not text at all. Everything that opens a user's file asks here first.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from latent_ladder.errors import LadderError

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
PSEUDO_ROOTS = ("/proc", "/sys", "/dev")
"""Folders whose content the system makes up: processes, devices, settings."""

SHARED_MEMORY = "/dev/shm"
"""The one folder below them for files of users."""

_REASONS = {
    errno.ENOENT: ("does not exist", "check the path"),
    errno.ENOTDIR: ("does not exist", "check the path"),
    errno.EACCES: ("cannot be read: permission denied", "give your user permission to read it"),
    errno.ENAMETOOLONG: ("has a name that is too long", "use a shorter name, at most 255 bytes"),
    errno.ELOOP: ("is a link that leads back to itself", "name the file itself"),
}
_SHOWN = 120


def check_regular_file(path: Path, raised: type[LadderError], what: str = "file") -> os.stat_result:
    """The status of the regular file ``path``; a ``raised`` for anything else.

    ``what`` names its kind in the message, such as "image" or "request".
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise read_error(path, error, raised, what) from error
    if stat.S_ISREG(status.st_mode):
        return status
    kind = next((name for test, name in KINDS if test(status.st_mode)), "not a file")
    raise raised(
        f"{what} {shorten_path(path)} is {kind}, not a file", "give the path of a regular file"
    )


def read_error(
    path: Path, cause: OSError | ValueError, raised: type[LadderError], what: str = "file"
) -> LadderError:
    """The error of class ``raised`` for ``cause``, which occurred when ``path`` was read."""
    number = getattr(cause, "errno", None)
    default = (f"cannot be read: {getattr(cause, 'strerror', None) or cause}", "check the path")
    reason, hint = _REASONS.get(number or 0, default)
    return raised(f"{what} {shorten_path(path)} {reason}", hint)


def read_small_file(path: Path, limit: int, raised: type[LadderError], what: str = "file") -> bytes:
    """The content of a regular file of at most ``limit`` bytes; a ``raised`` for anything else."""
    size = check_regular_file(path, raised, what).st_size
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise read_error(path, error, raised, what) from error
    if len(data) > limit:
        raise raised(
            f"{what} {path} is too large: {max(size, len(data)):,} bytes, expected at most "
            f"{limit:,}",
            "give the path of another file",
        )
    return data


def read_small_text(path: Path, limit: int, raised: type[LadderError], what: str = "file") -> str:
    """The UTF-8 text of a regular file of at most ``limit`` bytes, as :func:`read_small_file`."""
    try:
        return read_small_file(path, limit, raised, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise raised(
            f"{what} {path} is not text in UTF-8: {error.reason} at byte {error.start}",
            "save it as UTF-8",
        ) from error


def is_folder(path: Path) -> bool:
    """True for an existing folder; false for every other name, however strange."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """True for an existing regular file; false for every other name, however strange."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_pseudo_folder(folder: Path) -> bool:
    """True for a folder below one of :data:`PSEUDO_ROOTS`, also through links."""
    real = f"{os.path.realpath(folder)}/"
    return any(real.startswith(f"{root}/") for root in PSEUDO_ROOTS) and not real.startswith(
        f"{SHARED_MEMORY}/"
    )


def is_text(value: str) -> bool:
    """False for a string with surrogates: half a character, or a byte that is not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def shorten_path(path: Path) -> str:
    """The path for a message; the middle of a very long one is left out."""
    text = str(path)
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}...{text[-_SHOWN:]}"

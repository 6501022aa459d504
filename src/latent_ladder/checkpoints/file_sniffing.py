"""Detection of files that are not models, by their first bytes, with an error that explains each.

Pickles are never opened: unpickling can run any code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from latent_ladder.checkpoints.mmap_file import MappedFile
from latent_ladder.errors import CheckpointError, CorruptCheckpoint, UnknownLayout

HEAD_BYTES = 512
"""Number of bytes that are checked."""

_PICKLE = (
    "a pickle, which can run any code when it is loaded and is therefore never read",
    "use the .safetensors file of the same model",
)
_PICKLE_ARCHIVE = (
    "an archive of torch.save; the pickle inside can run any code when it is loaded and is "
    "therefore never read",
    _PICKLE[1],
)
_ARCHIVE = ("a compressed archive", "unpack it and use the model file inside")
_WEB_PAGE = (
    "a web page, not a model",
    "download it again: use the download link of the file, and log in where the model asks for it",
)
_JSON = ("a JSON file, not a model", "give the model file itself, or its folder")
_OLD_GGML = ("a GGML file from before GGUF", "use a GGUF file of the same model")

_OTHER_FILE_TYPES: Mapping[bytes, tuple[str, str]] = {
    rb"PK(\x03\x04|\x05\x06)": _PICKLE_ARCHIVE,
    rb"\x80[\x02-\x05][\x8a\x95}\])(cKNX.]": _PICKLE,
    rb"(\(dp\d|\(lp\d|\(i|c[\w.]+\n\w+\n)": _PICKLE,
    rb"(\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd)": _ARCHIVE,
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)": _WEB_PAGE,
    rb"(\xef\xbb\xbf)?\s*[{\[]\s*[\"{\[\]}\d]": _JSON,
    rb"(lmgg|fmgg|tjgg|algg)": _OLD_GGML,
    rb"\x89HDF\r\n": ("an HDF5 file", "use the .safetensors file of the same model"),
    rb"(\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP)": ("an image", "give the model file"),
}
"""First bytes of a file (case ignored) -> its format, and a hint."""

_LFS = re.compile(rb"version https://git-lfs[^\n]*\n(?:.*\n)*?size (\d+)", re.IGNORECASE)


def check_file_type(file: MappedFile, head: bytes) -> None:
    """Raise if ``head``, the first bytes of ``file``, are those of a file that is not a model.

    Raises :class:`CorruptCheckpoint` for a failed download (empty, zeros, git-lfs pointer),
    :class:`UnknownLayout` for other formats. A safetensors file begins with the length of its
    header, whose upper bytes are 0, and a brace.
    """
    if head[5:9] == b"\0\0\0{" or head[:4] == b"GGUF":
        return
    if file.size == 0:
        raise CorruptCheckpoint(
            f"{file.path.name}: damaged, it has 0 bytes", "download the file again"
        )
    if pointer := _LFS.match(head):
        raise CorruptCheckpoint(
            f"{file.path.name}: a git-lfs pointer to a file of {int(pointer[1]):,} bytes, "
            "not the file itself",
            "run `git lfs pull` in its repository, or download the file itself",
        )
    for pattern, (what, hint) in _OTHER_FILE_TYPES.items():
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            raise _other_file_error(file, what, hint)
    if not head.strip(b"\0"):
        raise CorruptCheckpoint(
            f"{file.path.name}: damaged, it begins with {len(head)} zero bytes",
            "download the file again: the earlier download reserved space and did not finish",
        )


def _other_file_error(file: MappedFile, what: str, hint: str) -> CheckpointError:
    return UnknownLayout(f"{file.path.name}: {what}", hint)

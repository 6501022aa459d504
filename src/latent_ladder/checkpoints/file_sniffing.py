"""Files that are not models, told by their first bytes, and why each cannot be used.

Pickles are never opened: unpickling runs whatever code the file asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from latent_ladder.checkpoints.mmap_file import MappedFile
from latent_ladder.errors import CheckpointError, CorruptCheckpoint, UnknownLayout

HEAD_BYTES = 512
"""How many bytes of a file decide."""

_PICKLE = (
    "a pickle, which can run any code when it is loaded and is therefore never read",
    "use the .safetensors file of the same model",
)
_PICKLE_ARCHIVE = (
    "an archive as torch.save writes it; the pickle inside can run any code when it is loaded "
    "and is therefore never read",
    _PICKLE[1],
)
_ARCHIVE = ("a compressed archive", "unpack it and use the model file inside")
_WEB_PAGE = (
    "a web page, not a model",
    "download it again: use the download link of the file, and log in where the model asks for it",
)
_JSON = ("a JSON file, not a model", "name the model file itself, or its folder")
_OLD_GGML = ("a GGML file from before GGUF", "use a GGUF file of the same model")

_STRANGERS: Mapping[bytes, tuple[str, str]] = {
    rb"PK(\x03\x04|\x05\x06)": _PICKLE_ARCHIVE,
    rb"\x80[\x02-\x05][\x8a\x95}\])(cKNX.]": _PICKLE,
    rb"(\(dp\d|\(lp\d|\(i|c[\w.]+\n\w+\n)": _PICKLE,
    rb"(\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd)": _ARCHIVE,
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)": _WEB_PAGE,
    rb"(\xef\xbb\xbf)?\s*[{\[]\s*[\"{\[\]}\d]": _JSON,
    rb"(lmgg|fmgg|tjgg|algg)": _OLD_GGML,
    rb"\x89HDF\r\n": ("an HDF5 file", "use the .safetensors file of the same model"),
    rb"(\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP)": ("a picture", "name the model file"),
}
"""What the file begins with (any case) -> what it is and what to do."""

_LFS = re.compile(rb"version https://git-lfs[^\n]*\n(?:.*\n)*?size (\d+)", re.IGNORECASE)


def refuse_stranger(file: MappedFile, head: bytes) -> None:
    """Raise when ``head``, the first bytes of ``file``, show that it is no model file.

    Raises :class:`CorruptCheckpoint` for a download that never happened (empty, git-lfs
    pointer), :class:`UnknownLayout` for the rest. A safetensors file passes: after the length of
    its header, whose upper bytes are 0, comes the brace that begins it.
    """
    if head[5:9] == b"\0\0\0{" or head[:4] == b"GGUF":
        return
    if file.size == 0:
        raise CorruptCheckpoint(
            f"{file.path.name}: damaged, it holds 0 bytes", "download the file again"
        )
    if pointer := _LFS.match(head):
        raise CorruptCheckpoint(
            f"{file.path.name}: a git-lfs pointer to a file of {int(pointer[1]):,} bytes, "
            "not the file",
            "run `git lfs pull` in its repository, or download the file itself",
        )
    for pattern, (what, hint) in _STRANGERS.items():
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            raise _stranger(file, what, hint)
    if not head.strip(b"\0"):
        raise CorruptCheckpoint(
            f"{file.path.name}: damaged, it begins with {len(head)} zero bytes",
            "download the file again; space for it was reserved, its content never came",
        )


def _stranger(file: MappedFile, what: str, hint: str) -> CheckpointError:
    return UnknownLayout(f"{file.path.name}: {what}", hint)

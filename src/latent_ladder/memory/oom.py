"""Detection of out-of-memory errors on every device."""

from __future__ import annotations

import torch

_TEXTS = (
    "not enough memory: you tried to allocate",  # CPU allocator on Windows and Linux
    "can't allocate memory",
    "MPS backend out of memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for a failed allocation: PyTorch's own error, its RuntimeErrors, or Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)

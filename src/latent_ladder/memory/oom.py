"""Out-of-memory errors: telling them from other failures, and trying again with less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from latent_ladder.errors import MemoryBudgetError

S = TypeVar("S")
T = TypeVar("T")

_TEXTS = tuple(
    text.lower()
    for text in (
        "not enough memory: you tried to allocate",  # CPU allocator on Windows and Linux
        "can't allocate memory",
        "bad_alloc",
        "MPS backend out of memory",
        "Invalid buffer size",  # a tensor that is larger than an Apple GPU allows
        "CUDA out of memory",  # PyTorch's allocators
        "HIP out of memory",
        "XPU out of memory",
        "CUDA error: out of memory",  # the driver, without PyTorch's allocator
        "CUDA driver error: out of memory",
        "cudaErrorMemoryAllocation",
        "HIP error: out of memory",
        "hipErrorOutOfMemory",
        # Libraries that could not get their workspace or handle:
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_NOT_INITIALIZED",
        "CUSOLVER_STATUS_ALLOC_FAILED",
        "CUFFT_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_NOT_INITIALIZED",
        "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "unable to find an engine to execute this computation",
        "HIPBLAS_STATUS_ALLOC_FAILED",
        "rocblas_status_memory_error",
        "miopenStatusAllocFailed",
        "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
        "UR_RESULT_ERROR_OUT_OF_HOST_MEMORY",
        "UR_RESULT_ERROR_OUT_OF_RESOURCES",
    )
)
"""Parts of the messages of failed allocations, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for a failed allocation: PyTorch's own error, its RuntimeErrors, or Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in message for text in _TEXTS)


def retry_with_fallbacks(
    work: Callable[[S], T],
    first: S,
    next_fallback: Callable[[S], S],
    has_fallback: Callable[[S], bool] = lambda _: True,
) -> T:
    """Result of ``work(first)``; after out-of-memory, of ``work`` with the next fallback.

    ``next_fallback`` takes the value that failed, frees what it can and returns one that needs
    less; it raises where there is none. Where ``has_fallback`` is false, the out-of-memory error
    itself is raised, so that a caller further up can try a fallback of its own.
    """
    value = first
    while True:
        try:
            return work(value)
        except Exception as error:
            if not is_out_of_memory(error) or not has_fallback(value):
                raise
        # Outside the handler: until here the traceback keeps the tensors of the failed try alive.
        value = next_fallback(value)


@contextmanager
def raise_budget_error(message: str, hint: str) -> Iterator[None]:
    """Turn an out-of-memory error of the ``with`` block into a :class:`MemoryBudgetError`."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryBudgetError(message, hint) from error

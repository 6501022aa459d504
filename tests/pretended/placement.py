"""Rules for tensors of both kinds: devices of an operation, copies, waits of the host."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretended.standins import device_index

aten = torch.ops.aten
PACKAGE = "/latent_ladder/"
BLOCK = "models/transformer/block.py"

COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default,
    aten._index_put_impl_.default, aten._unsafe_index.Tensor,
}  # fmt: skip
"""Operations that accept indices on the CPU for a tensor on a GPU."""
INDEX_TYPES = (torch.int64, torch.int32, torch.bool, torch.uint8)
SYNCHRONISING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.unique_dim.default,
    aten._unique2.default, aten.equal.default, aten.masked_select.default, aten.is_nonzero.default,
}  # fmt: skip
"""Operations whose result the host needs, or whose output size depends on the numbers."""


class WrongDevice(RuntimeError):
    """An operation got tensors on several devices."""


class Place(NamedTuple):
    """Code of the product: ``module.py:function``, and whether a transformer block calls it."""

    function: str
    in_block: bool

    def __str__(self) -> str:
        return self.function


def caller() -> Place:
    """The innermost function of the product on the stack, "tests" if there is none."""
    frame, function, in_block = sys._getframe(1), "", False
    while frame is not None:
        name = frame.f_code.co_filename
        if PACKAGE in name:
            file = name.rpartition(PACKAGE)[2]
            function = function or f"{file}:{frame.f_code.co_qualname}"
            in_block = in_block or file == BLOCK
        frame = frame.f_back  # type: ignore[assignment]
    return Place(function or "tests", in_block)


def target_device(kwargs: Mapping[str, Any]) -> torch.device | None:
    """The device that an operation names, with a number where it is a card."""
    if kwargs.get("device") is None:
        return None
    device = torch.device(kwargs["device"])
    return torch.device("cuda", device_index(device)) if device.type == "cuda" else device


def check_devices(func: Any, cards: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Raise :class:`WrongDevice` where a GPU would; scalars and indices may be on the CPU."""
    if not cards or func in COPIES:
        return
    devices = {t.device for t in cards}
    outside = [t for t in others if t.dim() and t.device.type != "meta"]
    if func in INDEXED:
        outside = [t for t in outside if t.dtype not in INDEX_TYPES]
    if outside or len(devices) > 1:
        found = ", ".join(sorted(map(str, devices)) + [f"cpu {tuple(t.shape)}" for t in outside])
        raise WrongDevice(
            f"Expected all tensors to be on the same device: {func} got {found} at {caller()}"
        )


def named(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The argument ``name`` of an operation, ``None`` where it was left out."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[index] if index < len(args) else kwargs.get(name)
    return None


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """All tensors among the arguments, also those in lists."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [part for part in value if isinstance(part, Tensor)]
    return found


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with each tensor changed, also those in lists."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)([map_tensors(change, part) for part in value])
    return value


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """True for a tensor."""
    return isinstance(value, Tensor)


Dispatch = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode: operations without such a tensor among their arguments come here too."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dispatch = dispatch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise every process would import the compiler for it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._dispatch(func, args, kwargs or {})


@contextlib.contextmanager
def everywhere(dispatch: Dispatch) -> Iterator[None]:
    """Send the operations of this thread, and of threads started inside, to ``dispatch``."""
    real = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with _Mode(dispatch):
            real(thread)

    with pytest.MonkeyPatch.context() as patch, _Mode(dispatch):
        patch.setattr(threading.Thread, "run", run)
        yield


def replace_attention(patch: pytest.MonkeyPatch, kind: type, attend: Callable[..., Any]) -> None:
    """Let ``attend`` compute the attention of tensors of ``kind``.

    PyTorch would choose a kernel by device before any operation is dispatched.
    """
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any,
        **named: Any,
    ) -> Any:  # fmt: skip
        if not isinstance(query, kind):
            return real(query, key, value, attn_mask, *rest, **named)
        both = [t for t in (key, value, attn_mask) if t is not None]
        check_devices("attention", [query, *(t for t in both if isinstance(t, kind))],
                      [t for t in both if not isinstance(t, kind)])  # fmt: skip
        if len({query.dtype, key.dtype, value.dtype}) > 1:
            raise RuntimeError(f"attention of different dtypes at {caller()}")
        return attend(query, key, value, attn_mask, *rest, **named)

    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)

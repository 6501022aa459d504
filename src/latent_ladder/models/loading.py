"""Build a network on the meta device and put a file's tensors into it, strictly.

Nothing is allocated twice: parameters become the memory-mapped tensors of the file, converted to
the dtype and device asked for one at a time. Knows no layout; the caller maps names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latent_ladder.errors import UnknownLayout

M = TypeVar("M", bound=nn.Module)


def never(_: str) -> bool:
    """A ``keep_float32`` that keeps nothing."""
    return False


def load_module(
    build: Callable[[], M],
    read: Mapping[str, Callable[[], Tensor]],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    what: str,
    keep_float32: Callable[[str], bool] = never,
) -> M:
    """Build with ``build``, weights on meta, and assign ``read[name]()`` to every parameter.

    ``read`` must have exactly the names of the module's parameters and persistent buffers.
    Floating-point tensors become ``dtype``, except where ``keep_float32(name)``. Buffers that the
    module computes itself (non-persistent) are kept and moved.
    Raises :class:`UnknownLayout` naming the first missing, unexpected or misshapen tensors.
    """
    with EmptyOnMeta():
        module = build()
    expected = module.state_dict()
    check_names(expected, read, what)
    state = {}
    for name, slot in expected.items():
        tensor = read[name]()
        if tensor.shape != slot.shape:
            raise UnknownLayout(
                f"{what}: {name} has shape {list(tensor.shape)}, the model needs "
                f"{list(slot.shape)}",
                "the file belongs to another model family or is damaged",
            )
        state[name] = _convert(tensor, torch.float32 if keep_float32(name) else dtype, device)
    module.load_state_dict(state, strict=True, assign=True)
    _move_buffers(module, device, state)
    return module.eval().requires_grad_(False)


def check_names(expected: Iterable[str], found: Iterable[str], what: str) -> None:
    """Raise :class:`UnknownLayout` unless both name the same tensors."""
    wanted, given = set(expected), set(found)
    missing, extra = sorted(wanted - given), sorted(given - wanted)
    if missing or extra:
        parts = [
            f"{len(names)} {label} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for names, label in ((missing, "missing"), (extra, "unexpected"))
            if names
        ]
        raise UnknownLayout(
            f"{what}: tensors do not fit the model: {'; '.join(parts)}",
            "the file is incomplete, or of a family this version does not know",
        )


def _convert(tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    # A mapped tensor must not keep the file open, or pay a page fault at every use.
    return tensor.to(device) if torch.device(device).type != "cpu" else tensor.clone()


class EmptyOnMeta(TorchFunctionMode):
    """While active, ``torch.empty`` makes meta tensors.

    Layers allocate their weights with ``torch.empty`` and compute their buffers (RoPE
    frequencies, filters) otherwise: building a module here costs no memory for weights and leaves
    no buffer hollow, which ``torch.device("meta")`` does.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _move_buffers(module: nn.Module, device: torch.device | str, loaded: Mapping[str, Any]) -> None:
    for name, buffer in module.named_buffers():
        if name not in loaded:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(device)

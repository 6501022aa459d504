"""Build a network on the meta device and put a file's tensors into it, strictly.

Nothing is allocated twice: parameters become the memory-mapped tensors of the file, converted to
the dtype and device asked for one at a time; quantised weights of our Linears stay as they are
stored. Knows no layout; the caller maps names.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.weights.linear import Linear
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor, read_stored

M = TypeVar("M", bound=nn.Module)
Stored = Tensor | QuantizedTensor
Place = Literal["device", "pinned", "file"]


class Hold(NamedTuple):
    """How the weight of a Linear is held.

    ``as_stored``: floats keep the file's dtype and are converted at every use. ``place``: on the
    ``device``; ``pinned``, on the CPU in memory of its own; ``file``, as the mapped tensor.
    """

    as_stored: bool = False
    place: Place = "device"


@dataclass(frozen=True)
class Reader:
    """Reads one tensor of a component in its stored form, for :func:`load_module`."""

    component: Component
    key: str

    def __call__(self) -> Stored:
        return read_stored(self.component, self.key)

    def release(self) -> None:
        """Take the tensor's pages out of the process's memory; the next use brings them back.

        A copied weight would otherwise count twice until the system needs the memory.
        """
        file = self.component.file
        for name in self.component.stored(self.key).parts.values():
            place = file.places.get(name)
            if place is None or not hasattr(mmap, "MADV_DONTNEED"):
                continue
            start = -(-place.begin // mmap.PAGESIZE) * mmap.PAGESIZE
            length = place.end // mmap.PAGESIZE * mmap.PAGESIZE - start
            if length > 0:
                file.parts[place.part][0].buffer.madvise(mmap.MADV_DONTNEED, start, length)


def readers(component: Component, prefix: str = "") -> dict[str, Callable[[], Stored]]:
    """A reader for every tensor of a component below ``prefix``, by its name without that."""
    return {
        key.removeprefix(prefix): Reader(component, key)
        for key in component.names
        if key.startswith(prefix)
    }


def never(_: str) -> bool:
    """A ``keep_float32`` that keeps nothing."""
    return False


def on_device(_: str) -> Hold:
    """A ``hold`` that treats every weight alike."""
    return Hold()


def load_module(
    build: Callable[[], M],
    read: Mapping[str, Callable[[], Stored]],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    what: str,
    keep_float32: Callable[[str], bool] = never,
    hold: Callable[[str], Hold] = on_device,
) -> M:
    """Build with ``build``, weights on meta, and assign ``read[name]()`` to every parameter.

    ``read`` must have exactly the names of the module's parameters and persistent buffers.
    Floating-point tensors become ``dtype``, except where ``keep_float32(name)``. A quantised
    weight of a :class:`Linear` is kept as stored and decoded at use; any other tensor is decoded
    here. ``hold(name)`` says where a Linear's weight lies. Buffers that the module computes
    itself (non-persistent) are kept and moved.
    Raises :class:`UnknownLayout` naming the first missing, unexpected or misshapen tensors, and
    :class:`CorruptCheckpoint` for scales that are no numbers.
    """
    with EmptyOnMeta():
        module = build()
    expected = module.state_dict()
    check_names(expected, read, what)
    layers = {f"{name}.weight": m for name, m in module.named_modules() if isinstance(m, Linear)}
    state: dict[str, Tensor] = {}
    for name, slot in expected.items():
        layer, label = layers.get(name), f"{what}: {name}"
        held = Hold() if layer is None else hold(name)
        as_read = read[name]()
        found = _fitted(as_read, tuple(slot.shape), label)
        if isinstance(found, QuantizedTensor) and held.place != "file":
            found.check_scales(label)
        as_stored = layer is not None and (held.as_stored or isinstance(found, QuantizedTensor))
        if not as_stored:
            found = _numbers(found, torch.float32 if keep_float32(name) else dtype)
        found = _placed(found, held.place, device, is_mapped=found is as_read)
        if layer is not None and as_stored:
            layer.keep(found, dtype)
        elif isinstance(found, Tensor):
            state[name] = found
        reader = read[name]
        if isinstance(reader, Reader) and held.place != "file":
            reader.release()
    # Not strict: names have been checked, and what a layer keeps as stored is in its place.
    module.load_state_dict(state, strict=False, assign=True)
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


def _fitted(found: Stored, shape: tuple[int, ...], label: str) -> Stored:
    """``found`` in the model's ``shape``: padding cut off, dimensions of one added or dropped."""
    if isinstance(found, QuantizedTensor):
        if found.fits(shape):
            return found.cropped(shape)
    elif found.shape == shape:
        return found
    elif [n for n in found.shape if n != 1] == [n for n in shape if n != 1]:
        return found.reshape(shape)  # GGUF drops leading dimensions of one
    stored = f" ({found.format})" if isinstance(found, QuantizedTensor) else ""
    raise UnknownLayout(
        f"{label} has shape {list(found.shape)}{stored}, the model needs {list(shape)}",
        "the file belongs to another model family or is damaged",
    )


def _numbers(found: Stored, dtype: torch.dtype) -> Tensor:
    if isinstance(found, QuantizedTensor):
        return found.dequantize(dtype)
    return found.to(dtype) if found.is_floating_point() else found


def _placed(found: Stored, place: Place, device: torch.device | str, *, is_mapped: bool) -> Stored:
    """In memory of its own where it belongs: a mapped tensor costs a page fault at every use."""
    if place == "file":
        return found
    target = torch.device(device if place == "device" else "cpu")
    if target.type != "cpu":
        return found.to(target)
    if not is_mapped:
        return found
    return found.copied() if isinstance(found, QuantizedTensor) else found.clone()


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

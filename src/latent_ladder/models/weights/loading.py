"""Load a file's tensors into a network built on the meta device, with strict checks.

Nothing is allocated twice: parameters become the memory-mapped tensors of the file, converted one
at a time to the requested dtype and device; quantised weights of :class:`Linear` layers stay
quantised. The caller maps tensor names to the network's names.
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
StoredWeight = Tensor | QuantizedTensor
WeightLocation = Literal["device", "pinned", "file"]


class WeightStorage(NamedTuple):
    """Storage of a Linear's weight.

    ``as_stored``: float weights keep the file's dtype and are converted at each use.
    ``location``: ``device``; ``pinned`` (CPU memory, not the file mapping); ``file`` (the
    memory-mapped tensor).
    """

    as_stored: bool = False
    location: WeightLocation = "device"


@dataclass(frozen=True)
class TensorReader:
    """Reader of one tensor of a component in its stored form, for :func:`load_module`."""

    component: Component
    key: str

    def __call__(self) -> StoredWeight:
        return read_stored(self.component, self.key)

    def release(self) -> None:
        """Drop the tensor's mapped pages from the process's memory; the next use reads them again.

        Otherwise a copied weight would count twice until the system needs the memory.
        """
        file = self.component.file
        for name in self.component.stored_tensor(self.key).parts.values():
            place = file.locations.get(name)
            if place is None or not hasattr(mmap, "MADV_DONTNEED"):
                continue
            start = -(-place.begin // mmap.PAGESIZE) * mmap.PAGESIZE
            length = place.end // mmap.PAGESIZE * mmap.PAGESIZE - start
            if length > 0:
                file.parts[place.part][0].buffer.madvise(mmap.MADV_DONTNEED, start, length)


def tensor_readers(component: Component, prefix: str = "") -> dict[str, Callable[[], StoredWeight]]:
    """Readers of all tensors below ``prefix`` in a component, by their names without it."""
    return {
        key.removeprefix(prefix): TensorReader(component, key)
        for key in component.names
        if key.startswith(prefix)
    }


def _keep_none(_: str) -> bool:
    """Default of ``keep_float32``: all floating-point tensors are converted."""
    return False


def _default_storage(_: str) -> WeightStorage:
    """Default of ``storage``: every weight on the device, in the requested dtype."""
    return WeightStorage()


def load_module(
    build: Callable[[], M],
    read: Mapping[str, Callable[[], StoredWeight]],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    label: str,
    keep_float32: Callable[[str], bool] = _keep_none,
    storage: Callable[[str], WeightStorage] = _default_storage,
) -> M:
    """Call ``build`` with weights on the meta device, then load ``read[name]()`` into each weight.

    ``read`` must have exactly the names of the module's parameters and persistent buffers.
    Floating-point tensors become ``dtype``, or float32 if ``keep_float32(name)``. A quantised
    weight of a :class:`Linear` stays quantised and is dequantised at each use; all other tensors
    are dequantised here. ``storage(name)`` sets where a Linear's weight is stored. Buffers that
    the module computes itself (non-persistent) are moved to ``device``. ``label`` names the
    network in errors. Returns the module in eval mode, without gradients.
    Raises :class:`UnknownLayout` with the first missing, unexpected or wrongly shaped tensors, and
    :class:`CorruptCheckpoint` if a quantisation scale is NaN or infinite.
    """
    with EmptyOnMeta():
        module = build()
    expected = module.state_dict()
    check_names(expected, read, label)
    layers = {f"{name}.weight": m for name, m in module.named_modules() if isinstance(m, Linear)}
    state: dict[str, Tensor] = {}
    for name, parameter in expected.items():
        layer, reader = layers.get(name), read[name]
        how = WeightStorage() if layer is None else storage(name)
        as_read = reader()
        tensor = _match_shape(as_read, tuple(parameter.shape), f"{label}: {name}")
        if isinstance(tensor, QuantizedTensor) and how.location != "file":
            tensor.check_scales(f"{label}: {name}")
        as_stored = layer is not None and (how.as_stored or isinstance(tensor, QuantizedTensor))
        if not as_stored:
            tensor = _to_dtype(tensor, torch.float32 if keep_float32(name) else dtype)
        is_mapped = tensor is as_read and tensor.device.type == "cpu"  # else converted on a card
        tensor = _move(tensor, how.location, device, is_mapped=is_mapped)
        if layer is not None and as_stored:
            layer.set_weight(tensor, dtype)
        elif isinstance(tensor, Tensor):
            state[name] = tensor
        if isinstance(reader, TensorReader) and how.location != "file":
            reader.release()
    # Not strict: names are checked above, and weights stored as they are have been set already.
    module.load_state_dict(state, strict=False, assign=True)
    _move_buffers(module, device, state)
    return module.eval().requires_grad_(False)


def check_names(expected: Iterable[str], found: Iterable[str], label: str) -> None:
    """Raise :class:`UnknownLayout` unless ``expected`` and ``found`` are the same names."""
    expected_names, found_names = set(expected), set(found)
    missing, extra = sorted(expected_names - found_names), sorted(found_names - expected_names)
    if missing or extra:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for names, kind in ((missing, "missing"), (extra, "unexpected"))
            if names
        ]
        raise UnknownLayout(
            f"{label}: tensors do not match the model: {'; '.join(parts)}",
            "the file is incomplete or of an unsupported model family; download it again",
        )


def _match_shape(tensor: StoredWeight, shape: tuple[int, ...], label: str) -> StoredWeight:
    """Crop padding, and add or drop dimensions of size 1, to match the model's ``shape``."""
    if isinstance(tensor, QuantizedTensor):
        if tensor.matches_shape(shape):
            return tensor.crop(shape)
    elif tensor.shape == shape:
        return tensor
    elif [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]:
        return tensor.reshape(shape)  # GGUF drops leading dimensions of size 1
    stored = f" ({tensor.format})" if isinstance(tensor, QuantizedTensor) else ""
    raise UnknownLayout(
        f"{label} has shape {list(tensor.shape)}{stored}, the model needs {list(shape)}",
        "the file belongs to another model family or is damaged",
    )


def _to_dtype(tensor: StoredWeight, dtype: torch.dtype) -> Tensor:
    if isinstance(tensor, QuantizedTensor):
        return tensor.dequantize(dtype)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _move(
    tensor: StoredWeight, location: WeightLocation, device: torch.device | str, *, is_mapped: bool
) -> StoredWeight:
    """Copy ``tensor`` to its location; mapped tensors too, as reading them costs page faults."""
    if location == "file" and is_mapped:
        return tensor
    target = torch.device(device if location == "device" else "cpu")
    if target.type != "cpu":
        return tensor.to(target)
    # One that was converted while loading may be on the device: quantisation computes there.
    return tensor.clone() if is_mapped else tensor.to(target)


class EmptyOnMeta(TorchFunctionMode):
    """Torch function mode in which ``torch.empty`` creates meta tensors.

    Layers allocate weights with ``torch.empty`` and compute buffers (RoPE frequencies, filters)
    with other functions. So building a module in this mode allocates no weights but computes its
    buffers, which ``torch.device("meta")`` would leave empty.
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

"""Tensors that say ``cuda`` and have real numbers, computed on the CPU.

    with twin.pretend() as log:
        ...the product with --device cuda...
    log.syncs, log.copies

A copy from the device to page-locked memory arrives only when the host waits for it: before, the
memory holds :data:`POISON`. Writing to page-locked memory that a copy still reads raises
:class:`HostRace`.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from pretended.placement import (
    COPIES,
    SYNCHRONISING,
    aten,
    caller,
    check_devices,
    everywhere,
    map_tensors,
    named,
    replace_attention,
    target_device,
    tensors_in,
)
from pretended.standins import Machine, current_stream, pretend_cuda

POISON = 0xA5
CPU = torch.device("cpu")


class HostRace(RuntimeError):
    """Page-locked memory was written while a copy from it was under way."""


@dataclass
class Log:
    """Journal of what the product asked of the pretended device.

    ``syncs`` counts (stage, reason, place) of every wait of the host; ``copies`` has bytes by
    (stage, kind, place), with kinds such as "to device, pageable" and "to host, pinned".
    ``launches`` counts operations by name. ``stage`` is set by the test. ``in_blocks`` are the
    waits inside a transformer block, of which there should be none.
    """

    machine: Machine
    stage: str = "start"
    syncs: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    copies: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    in_blocks: Counter[tuple[str, str]] = field(default_factory=Counter)
    watchers: list[Watcher] = field(default_factory=list)
    _locks: list[tuple[int, int, int, int]] = field(default_factory=list)
    _counted: weakref.WeakKeyDictionary[Any, int] = field(default_factory=weakref.WeakKeyDictionary)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def wait(self, reason: str) -> None:
        """Note that the host waits for the device."""
        place = caller()
        self.syncs[self.stage, reason, str(place)] += 1
        if place.in_block:
            self.in_blocks[reason, str(place)] += 1

    def track(self, tensor: Tensor, device: torch.device) -> None:
        """Count the memory of a tensor that is on the device now."""
        storage = tensor.untyped_storage()
        with self._lock:
            if storage in self._counted:
                return
            index = device.index or 0
            rounded = self.machine.allocate(index, storage.nbytes(), caller)
            self._counted[storage] = rounded
        weakref.finalize(storage, self.machine.free, index, rounded)


Watcher = Callable[[Any, Sequence[Any], Mapping[str, Any], Any], None]
"""Receives an operation with arguments and result: ``(func, args, kwargs, result)``."""
_log: Log | None = None


class Twin(Tensor):
    """Tensor that says it is on a card; ``elem`` is the same tensor on the CPU."""

    elem: Tensor

    @staticmethod
    def __new__(cls: type[Twin], elem: Tensor, device: torch.device) -> Twin:
        made: Twin = torch.Tensor._make_wrapper_subclass(
            cls, elem.shape, strides=elem.stride(), storage_offset=elem.storage_offset(),
            dtype=elem.dtype, layout=elem.layout, device=device, requires_grad=False,
        )  # fmt: skip
        made.elem = elem
        _open_log().track(elem, device)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Twin({self.elem!r}, device={self.device})"

    def tolist(self) -> Any:
        """Numbers as a list; the host waits."""
        _open_log().wait("tolist")
        return self.elem.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refused, as on a GPU."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        """Address of the numbers."""
        return self.elem.data_ptr()


def _open_log() -> Log:
    if _log is None:
        raise RuntimeError("a pretended tensor was used after its `with` block")
    return _log


def _unwrap(tensor: Tensor) -> Tensor:
    return tensor.elem if isinstance(tensor, Twin) else tensor


def _dispatch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    log = _open_log()
    tensors = tensors_in(args, kwargs)
    twins = [t for t in tensors if isinstance(t, Twin)]
    others = [t for t in tensors if not isinstance(t, Twin)]
    target = target_device(kwargs)
    on_card = target is not None and target.type == "cuda"
    if func is aten.is_pinned.default:
        return log.machine.is_locked(args[0].untyped_storage().data_ptr())
    if not twins and not on_card:
        return _on_host(log, func, args, kwargs)
    check_devices(func, twins, others)
    _raise_last_error(log.machine)
    log.launches[func._schema.name] += 1
    if func in SYNCHRONISING:
        log.wait(func._schema.name)
    if func in COPIES and (found := _copy_between(log, func, args, kwargs)) is not None:
        result = found
    else:
        inner = {**kwargs, "device": CPU} if target is not None else dict(kwargs)
        inner_args = [map_tensors(_unwrap, a) for a in args]
        out = func(*inner_args, **{k: map_tensors(_unwrap, v) for k, v in inner.items()})
        card = target if target is not None and on_card else twins[0].device if twins else CPU
        known = {id(t.elem): t for t in twins}
        result = map_tensors(lambda t: _wrap(t, card, known), out)
    for watcher in log.watchers:
        watcher(func, args, kwargs, result)
    return result


def _wrap(tensor: Tensor, device: torch.device, known: Mapping[int, Twin]) -> Tensor:
    if isinstance(tensor, Twin) or device.type == "cpu":
        return tensor
    found = known.get(id(tensor))
    return Twin(tensor, device) if found is None else found


def _raise_last_error(machine: Machine) -> None:
    """Raise the error that a refused registration left behind, as the next launch does."""
    if machine.last_error is not None:
        text, machine.last_error = machine.last_error, None
        raise torch.AcceleratorError(text)


def _on_host(log: Log, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operation without cards: page-locked memory is noted and guarded."""
    pins = func is aten._pin_memory.default or bool(kwargs.get("pin_memory"))
    if func is aten._pin_memory.default:
        func, args, kwargs = aten.clone.default, args[:1], {}
    if log._locks and func._schema.is_mutable:
        _check_host_write(log, func, args, kwargs)
    out = func(*args, **{k: v for k, v in kwargs.items() if k != "pin_memory"})
    if pins:
        _lock_storage(log.machine, out)
    return out


def _lock_storage(machine: Machine, tensor: Tensor) -> None:
    storage = tensor.untyped_storage()
    begin = storage.data_ptr()
    machine.locked.append((begin, begin + storage.nbytes()))
    weakref.finalize(storage, machine.unlock, begin)


def _check_host_write(log: Log, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    with log._lock:
        log._locks = [e for e in log._locks if not log.machine.is_finished(e[2], e[3])]
        busy = list(log._locks)
    for argument in func._schema.arguments:
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        for tensor in tensors_in([named(func, argument.name, args, kwargs)], {}):
            begin = tensor.data_ptr()
            end = begin + tensor.numel() * tensor.element_size()
            if any(begin < e[1] and e[0] < end for e in busy):
                raise HostRace(f"{func} writes what a copy still reads, at {caller()}")


def _copy_between(
    log: Log, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """The result of a copy between host and device; ``None`` for one that stays on a side."""
    is_copy = func is aten.copy_.default
    source = args[1] if is_copy else args[0]
    target = target_device(kwargs)
    to_card = isinstance(args[0], Twin) if is_copy else target is not None and target.type == "cuda"
    if not is_copy and target is None:
        return None
    if isinstance(source, Twin) == to_card:
        return None
    waits_not = bool(named(func, "non_blocking", args, kwargs))
    host = source if to_card else args[0] if is_copy else None
    locked = host is not None and log.machine.is_locked(host.data_ptr())
    kind = f"to {'device' if to_card else 'host'}, {'pinned' if locked else 'pageable'}"
    log.copies[log.stage, kind, str(caller())] += source.numel() * source.element_size()
    stream = current_stream().id
    number = log.machine.issue(stream)
    is_late = locked and waits_not
    if not is_late:
        log.wait(f"copy {kind}")
        log.machine._finish(stream, number)
    if not to_card:
        return _to_host(log, func, args, kwargs, is_late)
    if is_late and host is not None:
        begin = host.data_ptr()
        entry = (begin, begin + host.numel() * host.element_size(), stream, number)
        with log._lock:
            log._locks.append(entry)
    if is_copy:
        args[0].elem.copy_(source)
        return args[0]  # type: ignore[no-any-return]
    out = func(source, **{**kwargs, "device": CPU})
    return Twin(out, target)  # type: ignore[arg-type]


def _to_host(
    log: Log, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_late: bool
) -> Tensor:
    if func is not aten.copy_.default:
        out: Tensor = func(args[0].elem, **{**kwargs, "device": CPU})
        return out
    into, numbers = args[0], args[1].elem
    if not is_late:
        into.copy_(numbers)
        return into  # type: ignore[no-any-return]
    numbers, stream = numbers.clone(), current_stream().id
    into.untyped_storage().fill_(POISON) if into.is_contiguous() else into.zero_()
    number = log.machine._issued.get(stream, 0)

    def arrive() -> None:
        with torch._C._DisableTorchDispatch():
            into.copy_(numbers)

    log.machine.when_finished(stream, number, arrive)
    return into  # type: ignore[no-any-return]


def _attend(query: Twin, key: Twin, value: Twin, mask: Twin | None, *rest: Any, **more: Any) -> Any:
    log = _open_log()
    log.launches["attention"] += 1
    real = torch._C._nn.scaled_dot_product_attention
    inner = None if mask is None else mask.elem
    result = Twin(real(query.elem, key.elem, value.elem, inner, *rest, **more), query.device)
    for watcher in log.watchers:
        watcher("attention", (query, key, value, mask), {}, result)
    return result


@contextlib.contextmanager
def pretend(machine: Machine | None = None) -> Iterator[Log]:
    """Compute with twins on the cards of ``machine`` inside the ``with`` block."""
    global _log
    before = _log
    with pytest.MonkeyPatch.context() as patch, pretend_cuda(machine) as pretended:
        _log = Log(pretended)
        pretended.on_wait.append(_log.wait)
        replace_attention(patch, Twin, _attend)
        try:
            with everywhere(_dispatch):
                yield _log
        finally:
            pretended.on_wait.remove(_log.wait)
            _log = before

"""Tensors that say ``cuda`` and have no data: shapes, dtypes, storages and FLOPs are real.

    with ghost.pretend() as log:
        ...the product with --device cuda on files of true size...
    log.machine.cards[0].peak, log.flops

Numbers are known only of small tensors (:data:`SMALL`) whose inputs are known; where the product
asks for others it gets ones, and the place is noted in ``guessed``. Large tensors on the host have
no data either: copies of them are skipped, so their memory is never touched.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from pretended.placement import (
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
from pretended.standins import Machine, pretend_cuda

SMALL = 1 << 18
"""Numbers of a tensor whose values are kept."""
NOTED = 1.001
"""Growth of a peak from which on the tensors alive are listed again."""
CPU, META = torch.device("cpu"), torch.device("meta")

SIZED_BY_NUMBERS = {
    aten.unique_dim.default, aten.nonzero.default, aten._unique2.default,
    aten.masked_select.default,
}  # fmt: skip
ONE_DTYPE = {
    aten.mm.default, aten.addmm.default, aten.addmm_.default, aten.bmm.default,
    aten.baddbmm.default, aten.convolution.default, aten.addmm.out,
}  # fmt: skip
"""Operations whose tensors must all have one dtype."""
VIEWS = {
    "view", "_unsafe_view", "transpose", "slice", "select", "expand", "unbind", "split", "permute",
    "t", "detach", "unsqueeze", "view_as_real", "alias", "as_strided", "squeeze", "_reshape_alias",
    "empty", "empty_strided", "new_empty", "empty_like", "split_with_sizes", "lift_fresh",
    "view_as_complex", "set_", "is_pinned",
}  # fmt: skip
"""Operations that launch no kernel."""
HOST_WORK = {
    aten.copy_.default, aten.clone.default, aten._to_copy.default, aten.fill_.Scalar,
    aten.zero_.default, aten._pin_memory.default,
}  # fmt: skip
"""Operations on large host tensors that are skipped."""


@dataclass
class Log:
    """Counts of a run: by ``stage``, which the test sets.

    ``flops``, ``launches`` and ``moved`` (bytes read and written) by (stage, operation); ``peaks``
    of allocated bytes by (stage, card); ``trace`` has ("a", number, bytes) and
    ("f", number, 0) for :func:`pretended.allocator.peak_reserved`. With ``watch``, ``at_peak``
    has the bytes alive at each stage's peak by the place that made them.
    """

    machine: Machine
    stage: str = "start"
    watch: bool = False
    flops: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: Counter[tuple[str, str]] = field(default_factory=Counter)
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    peaks: Counter[tuple[str, int]] = field(default_factory=Counter)
    at_peak: dict[str, Counter[str]] = field(default_factory=dict)
    guessed: Counter[tuple[str, str]] = field(default_factory=Counter)
    trace: list[tuple[str, int, int]] = field(default_factory=list)
    _noted: Counter[tuple[str, int]] = field(default_factory=Counter)
    _alive: dict[int, tuple[int, str]] = field(default_factory=dict)
    _counted: weakref.WeakKeyDictionary[Any, int] = field(default_factory=weakref.WeakKeyDictionary)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def stage_flops(self, stage: str) -> int:
        """FLOPs of a stage."""
        return sum(n for (name, _), n in self.flops.items() if name == stage)

    def track(self, tensor: Tensor, device: torch.device) -> None:
        """Count the storage of a tensor that is on a card now."""
        storage, index = tensor.untyped_storage(), device.index or 0
        with self._lock:
            if storage in self._counted:
                return
            rounded = self.machine.allocate(index, storage.nbytes(), caller)
            number = len(self.trace)
            self._counted[storage] = number
            self.trace.append(("a", number, rounded))
            self._alive[number] = rounded, str(caller()) if self.watch else ""
            weakref.finalize(storage, self._free, number, index)
            allocated = self.machine.cards[index].allocated
            if allocated > self.peaks[self.stage, index]:
                self.peaks[self.stage, index] = allocated
                if self.watch and allocated > NOTED * self._noted[self.stage, index]:
                    self._noted[self.stage, index] = allocated
                    self._note_peak()

    def _free(self, number: int, index: int) -> None:
        with self._lock:
            rounded, _ = self._alive.pop(number)
            self.machine.free(index, rounded)
            self.trace.append(("f", number, 0))

    def _note_peak(self) -> None:
        alive: Counter[str] = Counter()
        for rounded, place in self._alive.values():
            alive[place] += rounded
        self.at_peak[self.stage] = alive


_log: Log | None = None


def _open_log() -> Log:
    if _log is None:
        raise RuntimeError("a pretended tensor was used after its `with` block")
    return _log


class Ghost(Tensor):
    """Tensor on a card: ``elem`` has its geometry (on meta), ``known`` its numbers or ``None``."""

    elem: Tensor
    known: Tensor | None

    @staticmethod
    def __new__(
        cls: type[Ghost], elem: Tensor, device: torch.device, known: Tensor | None = None
    ) -> Ghost:
        made: Ghost = torch.Tensor._make_wrapper_subclass(
            cls, elem.shape, strides=elem.stride(), storage_offset=elem.storage_offset(),
            dtype=elem.dtype, layout=elem.layout, device=device, requires_grad=False,
        )  # fmt: skip
        made.elem = elem
        made.known = known if known is not None and known.numel() <= SMALL else None
        _open_log().track(elem, device)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Ghost({tuple(self.shape)}, {self.dtype}, {self.device})"

    def tolist(self) -> Any:
        """Numbers as a list; ones where they are not known."""
        if self.known is None:
            _open_log().guessed["tolist", str(caller())] += 1
            return torch.ones(self.shape, dtype=self.dtype).tolist()
        return self.known.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refused, as on a GPU."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        """Zero: there is no data."""
        return 0


def _dispatch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    log = _open_log()
    tensors = tensors_in(args, kwargs)
    ghosts = [t for t in tensors if isinstance(t, Ghost)]
    others = [t for t in tensors if not isinstance(t, Ghost)]
    target = target_device(kwargs)
    if not ghosts and (target is None or target.type != "cuda"):
        return _on_host(log, func, args, kwargs, tensors)
    check_devices(func, ghosts, others)
    if func in ONE_DTYPE and len({t.dtype for t in tensors}) > 1:
        dtypes = ", ".join(str(t.dtype) for t in tensors)
        raise RuntimeError(f"{func} of dtypes {dtypes} at {caller()}")
    if (answer := _to_host(log, func, args, kwargs, target)) is not None:
        return answer
    card = target if target is not None and target.type == "cuda" else ghosts[0].device
    known = _known_result(func, args, kwargs, ghosts, others)
    if func in SIZED_BY_NUMBERS:
        if known is None:
            raise RuntimeError(f"{func} of unknown numbers at {caller()}")
        out: Any = map_tensors(_meta_like, known)
    else:
        inner = {**kwargs, "device": META} if target is not None else dict(kwargs)
        inner.pop("pin_memory", None)
        out, counted = _remembered(func, args, inner)
        if counted:
            log.flops[log.stage, func._schema.name] += counted
    result = _wrap(out, known, card, {id(g.elem): g for g in ghosts})
    _count_launch(log, func, args, kwargs, result)
    return result


_geometries: dict[Any, tuple[tuple[int, ...], tuple[int, ...], torch.dtype, int]] = {}


@lru_cache(maxsize=1024)
def _makes_one_tensor(func: Any) -> bool:
    """True for an operation whose result is one new tensor: no view, nothing written."""
    schema = func._schema
    values = [*schema.arguments, *schema.returns]
    is_pure = all(value.alias_info is None for value in values)
    return is_pure and len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"


def _remembered(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, int]:
    """The result on meta and its FLOPs; the geometry is looked up where it was computed before."""
    key = None
    if _makes_one_tensor(func):
        key = (func, _geometry(args), _geometry(kwargs.values()), tuple(kwargs))
        if (found := _geometries.get(key)) is not None:
            shape, stride, dtype, flops = found
            return torch.empty_strided(shape, stride, dtype=dtype, device=META), flops
    changed = [map_tensors(_to_meta, a) for a in args]
    out = func(*changed, **{k: map_tensors(_to_meta, v) for k, v in kwargs.items()})
    flops = 0
    if func._overloadpacket in flop_registry:
        flops = flop_registry[func._overloadpacket](*changed, **kwargs, out_val=out)
    if key is not None and isinstance(out, Tensor) and not out.storage_offset():
        _geometries[key] = tuple(out.shape), out.stride(), out.dtype, flops
    return out, flops


def _geometry(values: Iterable[Any]) -> tuple[Any, ...]:
    """Everything about arguments that the geometry of a result may depend on, hashable."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list | tuple):
            found.append(_geometry(value))
        else:
            found.append((type(value), value))
    return tuple(found)


def _on_host(
    log: Log, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
) -> Any:
    """An operation of the host; work on large tensors is skipped."""
    pins = func is aten._pin_memory.default or bool(kwargs.get("pin_memory"))
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    if func is aten.is_pinned.default:
        return log.machine.is_locked(args[0].data_ptr())
    largest = max((t.numel() for t in tensors), default=0)
    if func in HOST_WORK and largest > SMALL:
        if func._schema.is_mutable:
            return args[0]
        dtype = kwargs.get("dtype") or args[0].dtype
        layout = kwargs.get("memory_format") or torch.preserve_format
        out: Any = torch.empty_like(args[0], dtype=dtype, memory_format=layout)
    elif func is aten._pin_memory.default:
        out = args[0].clone()
    else:
        out = func(*args, **kwargs)
    if pins:
        storage = out.untyped_storage()
        log.machine.locked.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    return out


def _to_host(
    log: Log,
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    target: torch.device | None,
) -> Any:
    """The answer of an operation whose result is on the host; ``None`` for others."""
    if func is aten._local_scalar_dense.default:
        if args[0].known is not None:
            return args[0].known.item()
        log.guessed["item", str(caller())] += 1
        return 1.0 if args[0].dtype.is_floating_point else 1
    if func is aten.equal.default:
        log.guessed["equal", str(caller())] += 1
        return True
    if func is aten._to_copy.default and target is not None and target.type == "cpu":
        ghost, dtype = args[0], kwargs.get("dtype") or args[0].dtype
        if ghost.known is not None:
            return ghost.known.to(dtype).clone()
        return torch.zeros(ghost.shape, dtype=dtype)
    if func is aten.copy_.default and not isinstance(args[0], Ghost):
        return args[0] if args[1].known is None else args[0].copy_(args[1].known)
    return None


def _known_result(
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    ghosts: Sequence[Ghost],
    others: Sequence[Tensor],
) -> Any:
    """The result's numbers, where all inputs are known and small; ``None`` otherwise."""
    is_known = all(g.known is not None for g in ghosts)
    is_known = is_known and all(t.numel() <= SMALL for t in others)
    if is_known and not ghosts and not others:  # a factory
        shape = args[0] if args and isinstance(args[0], list | tuple) else (1,)
        is_known = math.prod(shape) <= SMALL
    if is_known and _result_is_large(args):
        is_known = False
    if not is_known:
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors_in([named(func, argument.name, args, kwargs)], {}):
                    if isinstance(tensor, Ghost):
                        tensor.known = None
        return None
    inner = {**kwargs, "device": CPU} if kwargs.get("device") is not None else dict(kwargs)
    inner.pop("pin_memory", None)
    changed = [map_tensors(_to_known, a) for a in args]
    return func(*changed, **{k: map_tensors(_to_known, v) for k, v in inner.items()})


def _result_is_large(args: Sequence[Any]) -> bool:
    """True where small inputs may give a large result: an outer product by broadcasting."""
    shapes = [t.shape for t in tensors_in(args, {})]
    if len(shapes) < 2:
        return False
    try:
        together = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        return bool(math.prod(together) > SMALL)
    except RuntimeError:
        return False


def _meta_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.elem if isinstance(tensor, Ghost) else _meta_like(tensor)


def _to_known(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Ghost):
        return tensor
    if tensor.known is None:
        raise ValueError("the numbers are not known")
    return tensor.known


def _wrap(out: Any, known: Any, card: torch.device, ghosts: Mapping[int, Ghost]) -> Any:
    if isinstance(out, list | tuple):
        parts = known if isinstance(known, list | tuple) else [None] * len(out)
        return type(out)([_wrap(o, k, card, ghosts) for o, k in zip(out, parts, strict=True)])
    if not isinstance(out, Tensor):
        return out
    if id(out) in ghosts:
        return ghosts[id(out)]
    return Ghost(out, card, known if isinstance(known, Tensor) else None)


def _count_launch(
    log: Log, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> None:
    name = func._schema.name.removeprefix("aten::")
    if name in VIEWS:
        return
    touched = {id(t): t for t in tensors_in([*args, result], kwargs) if isinstance(t, Ghost)}
    sizes = [t.numel() * t.element_size() for t in touched.values()]
    log.launches[log.stage, name] += 1
    log.moved[log.stage, name] += sum(sizes)
    if name.endswith("_") and func is not aten.copy_.default:  # read and written
        log.moved[log.stage, name] += max(sizes, default=0)


def _attend(query: Ghost, key: Ghost, value: Ghost, mask: Any, *_: Any, **__: Any) -> Ghost:
    """Attention as a fused kernel: its output, and one float32 per query and head for a while."""
    log = _open_log()
    rows, heads, tokens, width = query.shape
    keys, value_width = key.shape[2], value.shape[3]
    log.flops[log.stage, "attention"] += 2 * rows * heads * tokens * keys * (width + value_width)
    log.launches[log.stage, "attention"] += 1
    read = [t for t in (query, key, value, mask) if t is not None]
    log.moved[log.stage, "attention"] += sum(t.numel() * t.element_size() for t in (*read, query))
    out = torch.empty((rows, tokens, heads, value_width), dtype=query.dtype, device=META)
    made = Ghost(out.transpose(1, 2), query.device)
    Ghost(torch.empty((rows, heads, tokens), dtype=torch.float32, device=META), query.device)
    return made


def _rms_norm(real: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel with one result, as on a GPU; PyTorch takes it apart for tensors of Python."""

    def rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: Any = None) -> Any:
        if not isinstance(x, Ghost):
            return real(x, shape, weight, eps)
        check_devices("rms_norm", [x], [] if weight is None or weight.is_cuda else [weight])
        return x * 1.0 if weight is None else x * weight.to(x.dtype)

    return rms_norm


@contextlib.contextmanager
def pretend(machine: Machine | None = None, *, watch: bool = False) -> Iterator[Log]:
    """Compute with ghosts on the cards of ``machine`` inside the ``with`` block."""
    global _log
    before = _log
    with pytest.MonkeyPatch.context() as patch, pretend_cuda(machine) as pretended:
        _log = Log(pretended, watch=watch)
        replace_attention(patch, Ghost, _attend)
        functional = torch.nn.functional
        patch.setattr(functional, "rms_norm", _rms_norm(functional.rms_norm))
        try:
            with everywhere(_dispatch):
                yield _log
        finally:
            _log = before

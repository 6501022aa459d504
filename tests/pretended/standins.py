"""Stand-ins for ``torch.cuda``: a machine of pretended cards, installed for a ``with`` block.

Memory is counted by whoever makes tensors (:meth:`Machine.allocate`). Nothing is asynchronous, but
the order that streams and events would enforce is known: :meth:`Machine.is_finished` says whether
the host has waited for a piece of work, and listeners receive every event for the sanitizer.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from pretended import guard

GIB = 2**30
BLOCK_BYTES = 512
"""Allocations are rounded up to a multiple of this, as PyTorch's allocator does."""
REFUSED = 2
"""``cudaErrorMemoryAllocation``, the result of a refused registration."""


@dataclass
class Card:
    """One pretended GPU. ``other_bytes`` are used by other programs, ``limit_bytes`` can be lower
    than what is left, as with ``set_per_process_memory_fraction``."""

    name: str = "Pretended GPU"
    total_bytes: int = 24 * GIB
    capability: tuple[int, int] = (9, 0)
    other_bytes: int = 0
    limit_bytes: int | None = None
    allocated: int = 0
    peak: int = 0

    @property
    def most_bytes(self) -> int:
        """Bytes that this process can allocate at most."""
        left = self.total_bytes - self.other_bytes
        return left if self.limit_bytes is None else min(left, self.limit_bytes)


@dataclass
class Machine:
    """Pretended cards and page-locked memory.

    ``refuse_locking``: ``cudaHostRegister`` fails and leaves CUDA's last error set, which the next
    launch raises. ``locked`` has the (begin, end) of page-locked memory, ``registered_bytes``
    counts all that was ever registered. ``listeners`` receive ("stream", id), ("event", id),
    ("record", event, stream), ("wait", event, stream), ("sync_stream", stream),
    ("sync_event", event) and ("sync_device",).
    """

    cards: list[Card] = field(default_factory=lambda: [Card()])
    refuse_locking: bool = False
    locked: list[tuple[int, int]] = field(default_factory=list)
    registered_bytes: int = 0
    settings: list[str] = field(default_factory=list)
    listeners: list[Callable[..., None]] = field(default_factory=list)
    last_error: str | None = None
    failed: list[str] = field(default_factory=list)
    """Stages in which a test let an allocation fail."""
    on_memory: list[Callable[[int], None]] = field(default_factory=list)
    on_wait: list[Callable[[str], None]] = field(default_factory=list)
    _issued: dict[int, int] = field(default_factory=dict)
    _finished: dict[int, int] = field(default_factory=dict)
    _waiting: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # -- memory -------------------------------------------------------------------------------

    def allocate(self, device: int, nbytes: int, place: Callable[[], object] = str) -> int:
        """Count an allocation; returns its rounded size. Raises ``torch.OutOfMemoryError``."""
        card = self.cards[device]
        rounded = -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        with self._lock:
            if card.allocated + rounded > card.most_bytes:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {rounded / 2**20:.2f} MiB. GPU "
                    f"{device} has {card.allocated / GIB:.2f} GiB in use (pretended, at {place()})"
                )
            card.allocated += rounded
            card.peak = max(card.peak, card.allocated)
        for listener in self.on_memory:
            listener(device)
        return rounded

    def free(self, device: int, rounded: int) -> None:
        """Count memory that was returned."""
        with self._lock:
            self.cards[device].allocated -= rounded

    def is_locked(self, address: int) -> bool:
        """True if ``address`` is in page-locked memory."""
        return any(begin <= address < end for begin, end in self.locked)

    def unlock(self, begin: int) -> None:
        """Forget page-locked memory that begins at an address."""
        self.locked = [span for span in self.locked if span[0] != begin]

    # -- order of work ------------------------------------------------------------------------

    def issue(self, stream: int) -> int:
        """Number of a new piece of work on a stream."""
        with self._lock:
            self._issued[stream] = self._issued.get(stream, 0) + 1
            return self._issued[stream]

    def is_finished(self, stream: int, number: int) -> bool:
        """True once the host has waited for that piece of work, in whatever way."""
        return self._finished.get(stream, 0) >= number

    def when_finished(self, stream: int, number: int, work: Callable[[], None]) -> None:
        """Run ``work`` when the host waits for that piece of work."""
        with self._lock:
            self._waiting.append((stream, number, work))

    def _finish(self, stream: int, number: int) -> None:
        with self._lock:
            self._finished[stream] = max(self._finished.get(stream, 0), number)
            due = [w for s, n, w in self._waiting if self.is_finished(s, n)]
            self._waiting = [e for e in self._waiting if not self.is_finished(e[0], e[1])]
        for work in due:
            work()

    def _finish_all(self) -> None:
        for stream, number in list(self._issued.items()):
            self._finish(stream, number)

    def tell(self, kind: str, *numbers: int) -> None:
        """Send an event to the listeners."""
        for listener in self.listeners:
            listener(kind, *numbers)

    def host_waits(self, how: str) -> None:
        """Report that the host waits for the device."""
        for listener in self.on_wait:
            listener(how)


_machine = Machine()
_local = threading.local()
_ids = itertools.count(1)


def machine() -> Machine:
    """The machine of the innermost :func:`pretend_cuda`."""
    return _machine


class Stream:
    """Stand-in of ``torch.cuda.Stream``; also usable in a ``with`` statement."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.id = next(_ids)
        self.device = torch.device("cuda", device_index(device))
        self.cuda_stream, self.priority = self.id, priority
        _machine.tell("stream", self.id)

    def wait_event(self, event: Event) -> None:
        """Make later work on this stream wait for ``event``."""
        event.wait(self)

    def wait_stream(self, other: Stream) -> None:
        """Make later work on this stream wait for what is on the other one."""
        other.record_event().wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event behind the work so far."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Let the host wait for the work so far."""
        _machine.tell("sync_stream", self.id)
        _machine.host_waits("Stream.synchronize")
        _machine._finish(self.id, _machine._issued.get(self.id, 0))

    def query(self) -> bool:
        """True: work is done when it is issued."""
        return True

    def __enter__(self) -> Stream:
        _stack().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _stack().pop()


class Event:
    """Stand-in of ``torch.cuda.Event``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.id = next(_ids)
        self._at: tuple[int, int] | None = None
        _machine.tell("event", self.id)

    def record(self, stream: Stream | None = None) -> None:
        """Record behind the work of a stream so far."""
        stream = stream or current_stream()
        self._at = stream.id, _machine._issued.get(stream.id, 0)
        _machine.tell("record", self.id, stream.id)

    def wait(self, stream: Stream | None = None) -> None:
        """Make later work on a stream wait for this event."""
        if self._at is not None:
            _machine.tell("wait", self.id, (stream or current_stream()).id)

    def synchronize(self) -> None:
        """Let the host wait for this event."""
        if self._at is not None:
            _machine.tell("sync_event", self.id)
            _machine.host_waits("Event.synchronize")
            _machine._finish(*self._at)

    def query(self) -> bool:
        """True: work is done when it is issued."""
        return True

    def elapsed_time(self, other: Event) -> float:
        """A millisecond, whatever was recorded."""
        return 1.0


def device_index(device: Any) -> int:
    """Number of a card, 0 where none is named."""
    if device is None:
        return 0
    if isinstance(device, int):
        return device
    return torch.device(device).index or 0


def _stack() -> list[Stream]:
    if not hasattr(_local, "stack"):
        _local.stack = []
    found: list[Stream] = _local.stack
    return found


def current_stream(device: Any = None) -> Stream:
    """The stream of the innermost ``with`` block of this thread."""
    return _stack()[-1] if _stack() else _DEFAULT


@contextlib.contextmanager
def _on_stream(stream: Stream | None) -> Iterator[None]:
    with stream or contextlib.nullcontext():
        yield


_DEFAULT = Stream()
_DEFAULT.id = _DEFAULT.cuda_stream = 0


class _Cudart:
    """Stand-in of the CUDA runtime: registration of host memory."""

    def __init__(self) -> None:
        self._machine = _machine

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if self._machine.refuse_locking:
            self._machine.last_error = "CUDA error: out of memory"
            return REFUSED
        self._machine.locked.append((address, address + nbytes))
        self._machine.registered_bytes += nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self._machine.unlock(address)
        return 0


def _synchronize(device: Any = None) -> None:
    _machine.tell("sync_device")
    _machine.host_waits("synchronize")
    _machine._finish_all()


def _card(device: Any = None) -> Card:
    index = device_index(device)
    if index >= len(_machine.cards):
        raise RuntimeError("CUDA error: invalid device ordinal")
    return _machine.cards[index]


def _properties(device: Any = None) -> Any:
    card = _card(device)
    major, minor = card.capability
    return types.SimpleNamespace(
        total_memory=card.total_bytes, name=card.name, major=major, minor=minor,
        multi_processor_count=132, gcnArchName="",
    )  # fmt: skip


def _memory_info(device: Any = None) -> tuple[int, int]:
    card = _card(device)
    return card.total_bytes - card.other_bytes - card.allocated, card.total_bytes


def _set_fraction(fraction: float, device: Any = None) -> None:
    card = _card(device)
    card.limit_bytes = int(fraction * card.total_bytes)


def _reset_peak(device: Any = None) -> None:
    card = _card(device)
    card.peak = card.allocated


def _is_bf16_supported(including_emulation: bool = True) -> bool:
    return including_emulation or _card().capability >= (8, 0)


_FUNCTIONS: dict[str, Any] = {
    "is_available": lambda: bool(_machine.cards),
    "device_count": lambda: len(_machine.cards),
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "is_initialized": lambda: True,
    "init": lambda: None,
    "_lazy_init": lambda: None,
    "Stream": Stream,
    "Event": Event,
    "stream": _on_stream,
    "current_stream": current_stream,
    "default_stream": lambda device=None: _DEFAULT,
    "synchronize": _synchronize,
    "empty_cache": lambda: None,
    "get_device_capability": lambda device=None: _card(device).capability,
    "get_device_name": lambda device=None: _card(device).name,
    "get_device_properties": _properties,
    "mem_get_info": _memory_info,
    "reset_peak_memory_stats": _reset_peak,
    "max_memory_allocated": lambda device=None: _card(device).peak,
    "memory_allocated": lambda device=None: _card(device).allocated,
    "memory_reserved": lambda device=None: _card(device).allocated,
    "set_per_process_memory_fraction": _set_fraction,
    "cudart": _Cudart,
    "is_bf16_supported": _is_bf16_supported,
}


def _enter_no_grad(mode: Any) -> None:
    mode._pretended = torch.no_grad()
    mode._pretended.__enter__()


def _leave_no_grad(mode: Any, *error: Any) -> None:
    mode._pretended.__exit__(*error)


@contextlib.contextmanager
def pretend_cuda(pretended: Machine | None = None) -> Iterator[Machine]:
    """Replace ``torch.cuda`` by the cards of a machine inside the ``with`` block.

    ``torch.inference_mode`` becomes ``no_grad``: tensors of Python cannot be views of tensors made
    in it. ``nvidia-smi`` is not found unless a test puts one on the ``PATH``.
    """
    global _machine
    guard.install()
    before, _machine = _machine, pretended or Machine()
    lifts_all = torch._C._only_lift_cpu_tensors()
    with pytest.MonkeyPatch.context() as patch:
        for name, function in _FUNCTIONS.items():
            patch.setattr(torch.cuda, name, function)
        patch.setattr(torch.cuda.memory, "_set_allocator_settings", _machine.settings.append)
        patch.setattr(torch.inference_mode, "__enter__", _enter_no_grad)
        patch.setattr(torch.inference_mode, "__exit__", _leave_no_grad)
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            yield _machine
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts_all)
            _machine = before

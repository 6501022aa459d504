"""PyTorch's stream sanitizer (``torch.cuda._sanitizer``) on the stand-ins' streams and twins.

with twin.pretend() as log, races.watch(log) as found:
    ...
found.launches, found.races
"""

from __future__ import annotations

import contextlib
import threading
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor
from torch.cuda import _sanitizer

from pretended.placement import caller, named, tensors_in
from pretended.standins import current_stream
from pretended.twin import Log, Twin

_NO_TRACEBACK = types.SimpleNamespace(
    StackSummary=types.SimpleNamespace(extract=lambda *_, **__: traceback.StackSummary()),
    walk_stack=lambda frame: (),
)


@dataclass
class Races:
    """Launches that were checked, and races by (operation, place)."""

    launches: int = 0
    races: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: str = ""


class _Watch:
    """Feeds the sanitizer: one entry per storage that an operation reads or writes."""

    def __init__(self, log: Log) -> None:
        self.found = Races()
        self._log, self._seen = log, set[int]()
        self._handler = _sanitizer.EventHandler()
        self._lock = threading.RLock()
        self._calls: dict[str, Callable[..., None]] = {
            "stream": self._handler._handle_stream_creation,
            "event": self._handler._handle_event_creation,
            "record": self._handler._handle_event_record,
            "wait": self._handler._handle_event_wait,
            "sync_stream": self._handler._handle_stream_synchronization,
            "sync_event": self._handler._handle_event_synchronization,
            "sync_device": self._handler._handle_device_synchronization,
        }

    def event(self, kind: str, *numbers: int) -> None:
        """An event of streams."""
        with self._lock:
            self._calls[kind](*numbers)

    def launch(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """An operation: storages that it reads, writes and makes."""
        reads, writes = _accesses(func, args, kwargs)
        made = set() if _makes_views(func) else _storages([result])
        if not (reads or writes or made):
            return
        with self._lock:
            for address in made:  # an address that was used before belongs to another tensor now
                self._forget(address)
            for address in (reads | writes | made) - self._seen:
                self._seen.add(address)
                self._handler._handle_memory_allocation(address)
            self.found.launches += 1
            errors = self._handler._handle_kernel_launch(
                current_stream().id, reads - writes - made, writes | made, made,
                getattr(func, "_schema", func), {a: [] for a in reads | writes | made},
            )  # fmt: skip
        for error in errors:
            self.found.races[str(func), str(caller())] += 1
            self.found.first = self.found.first or str(error)

    def _forget(self, address: int) -> None:
        if address in self._seen:
            self._seen.discard(address)
            self._handler.tensors_accessed.delete_tensor(address)


def _accesses(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[set[int], set[int]]:
    schema = getattr(func, "_schema", None)
    if schema is None:
        return _storages(args), set()
    reads, writes = set[int](), set[int]()
    for argument in schema.arguments:
        value = [named(func, argument.name, args, kwargs)]
        if argument.alias_info is None:
            reads |= _storages(value)
        elif argument.alias_info.is_write:
            writes |= _storages(value)
    return reads, writes


def _makes_views(func: Any) -> bool:
    schema = getattr(func, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _storages(values: Sequence[Any]) -> set[int]:
    found: list[Tensor] = tensors_in(values, {})
    return {t.elem.untyped_storage().data_ptr() for t in found if isinstance(t, Twin)} - {0}


@contextlib.contextmanager
def watch(log: Log) -> Iterator[Races]:
    """Check all work inside the ``with`` block for races between streams."""
    watching = _Watch(log)
    log.machine.listeners.append(watching.event)
    log.watchers.append(watching.launch)
    try:
        with pytest.MonkeyPatch.context() as patch:
            # It extracts the stack of every launch, which takes longer than everything else.
            patch.setattr(_sanitizer, "traceback", _NO_TRACEBACK)
            yield watching.found
    finally:
        log.machine.listeners.remove(watching.event)
        log.watchers.remove(watching.launch)

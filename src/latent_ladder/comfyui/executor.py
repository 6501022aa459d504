"""A graph becomes files: every needed node once, what is known already not again.

The key of a node is a hash of its type, its values, the ids of the files that it names and the keys
of what it is linked to, so it is known before anything runs, in every process alike. Latents and
sound that a node made are kept in the store under it; a node whose result is there does not run,
nor does what only it needs. Numbers that can be worked out beforehand count by value.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.comfyui import constant_folding as plain
from latent_ladder.comfyui.graph import Graph, Link, Node
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.schema import Input
from latent_ladder.comfyui.nodes import NODES
from latent_ladder.comfyui.nodes.node_context import (
    LATENT_CHANNELS,
    NodeContext,
    NodeFunction,
    NodeResult,
)
from latent_ladder.comfyui.runtime.engine import Engine, WorkFolders
from latent_ladder.comfyui.runtime.events import (
    NodeDone,
    NodePreview,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarned,
    OnGraphEvent,
    UiOutput,
    ignore_event,
)
from latent_ladder.comfyui.runtime.previews import LivePreviews
from latent_ladder.comfyui.runtime.values import Audio, Latent, Value
from latent_ladder.errors import (
    Cancelled,
    LadderError,
    MemoryBudgetError,
    StoreError,
    WorkflowError,
)
from latent_ladder.memory.oom import is_out_of_memory
from latent_ladder.pipeline.run import Cancel
from latent_ladder.storage.artifact_store import artefact_key
from latent_ladder.storage.run_records import RunRecord, StageRecord

__all__ = ["Engine", "Unsupported", "WorkFolders", "execute", "unsupported", "without_unsupported"]

VERSION = 1
"""Raise it when keys of all nodes shall change."""


@dataclass(frozen=True)
class Unsupported:
    """A node that cannot run here, why, and the way round it if there is one."""

    node: Node
    why: str
    way: str = ""

    def error(self) -> WorkflowError:
        """The error that names it."""
        others = "--skip-unsupported runs the outputs that do without it"
        return self.node.error(f"cannot run here: {self.why}", self.way or others)


def unsupported(graph: Graph, wanted: Iterable[str] | None = None) -> list[Unsupported]:
    """The needed nodes that cannot run, in the order in which they would; nothing is loaded.

    Raises :class:`WorkflowError` for a cycle or a link into nothing.
    """
    outputs = plain.output_nodes(graph) if wanted is None else tuple(wanted)
    found = []
    for node in (graph.nodes[name] for name in plain.required_nodes(graph, outputs)):
        meaning = NODES.get(node.class_type)
        why = plain.definition_of(node).unsupported_reason
        if not why and meaning is None:
            why = f"{node.class_type} is not carried out by this version"
        if not why and meaning is not None:
            why = meaning.check(node)
        if why:
            found.append(Unsupported(node, why, plain.suggest_workaround(graph, node.id)))
    return found


def without_unsupported(graph: Graph) -> tuple[str, ...]:
    """The outputs that need no node that cannot run."""
    return tuple(name for name in plain.output_nodes(graph) if not unsupported(graph, [name]))


def execute(
    graph: Graph,
    engine: Engine,
    *,
    wanted: Sequence[str] | None = None,
    on_event: OnGraphEvent = ignore_event,
    cancel: Cancel | None = None,
    metadata: Mapping[str, str] | None = None,
    command: str = "",
) -> Mapping[str, UiOutput]:
    """Run the output nodes ``wanted`` (``None``: all) and give what each shows.

    ``metadata`` goes into every file that is written: ``None`` is the graph as tag ``prompt``.
    Raises :class:`WorkflowError` naming the node before anything runs where one cannot, whatever a
    node raises, and :class:`Cancelled`.
    """
    outputs = plain.output_nodes(graph) if wanted is None else tuple(wanted)
    if not outputs:
        raise WorkflowError(
            "the workflow has no output", "add a node that saves, such as SaveVideo"
        )
    for problem in unsupported(graph, outputs):
        raise problem.error()
    tags = metadata
    if tags is None:
        tags = {"prompt": json.dumps(graph.to_api(), ensure_ascii=False)}
    run = _Run(graph, engine, on_event, cancel or Cancel(), tags)
    with run.recorded(command):
        return run.go(outputs)


@dataclass
class _Run:
    """One execution of a graph."""

    graph: Graph
    engine: Engine
    on_event: OnGraphEvent
    cancel: Cancel
    metadata: Mapping[str, str]
    _keys: dict[str, str] = field(default_factory=dict)
    _done: dict[str, NodeResult] = field(default_factory=dict)
    _record: RunRecord | None = None

    def __post_init__(self) -> None:
        self._known = plain.fold_constants(self.graph)
        engine = self.engine
        self._pictures = LivePreviews(engine.companion, engine.store) if engine.previews else None
        self._reduced = plain.prune_branches(self.graph)
        self._channels = _latent_channels(self.graph, self.engine)

    def go(self, outputs: Sequence[str]) -> Mapping[str, UiOutput]:
        order = plain.required_nodes(self.graph, outputs)
        waiting = self._to_run(outputs)
        cached = tuple(name for name in order if name not in waiting)
        shown = {name: self._done[name].ui for name in cached if name in self._done}
        if cached:
            self.on_event(NodesCached(cached, {k: v for k, v in shown.items() if v}))
        certain = self._certain(outputs)
        for name in order:
            if name in certain:
                self._result(name)
        self.engine.results.clear()
        self.engine.results.update({self._key(name): self._done[name] for name in self._done})
        return {name: self._done[name].ui for name in outputs}

    # -- what has to run ----------------------------------------------------------------------

    def _to_run(self, outputs: Sequence[str]) -> set[str]:
        """Nodes whose results are nowhere, and that something to be run reads."""
        todo, waiting = list(outputs), set[str]()
        while todo:
            name = todo.pop()
            if name in waiting or name in self._done:
                continue
            found = self._remembered(name)
            if found is not None:
                self._done[name] = found
                continue
            waiting.add(name)
            if not self._is_stored(name):
                todo += [link.node for _, link in self._links(name)]
        return waiting - {name for name in waiting if self._restore(name)}

    def _links(self, name: str) -> Iterator[tuple[str, Link]]:
        """The links of a node whose values are not known."""
        links = self._reduced.nodes[name].links
        return ((each, link) for each, link in links if link not in self._known)

    def _eager(self, name: str) -> Iterator[Link]:
        """Those that are read whatever the node decides."""
        lazy = NODE_TYPES[self.graph.nodes[name].class_type].lazy
        return (link for each, link in self._links(name) if each not in lazy)

    def _certain(self, outputs: Sequence[str]) -> set[str]:
        """Nodes that run whatever lazy nodes decide; the others run when they are read."""
        todo, found = list(outputs), set[str]()
        while todo:
            name = todo.pop()
            if name not in found and name not in self._done:
                found.add(name)
                todo += [link.node for link in self._eager(name)]
        return found

    def _remembered(self, name: str) -> NodeResult | None:
        """A result of the graph before, if all files that it shows are still there."""
        found = self.engine.results.get(self._key(name))
        if not isinstance(found, NodeResult):
            return None
        return found if all(path.is_file() for path in self._files(found.ui)) else None

    def _files(self, shown: UiOutput) -> Iterator[Any]:
        roots = {"output": self.engine.folders.output, "temp": self.engine.folders.temp}
        for entries in shown.values():
            for entry in entries:
                if isinstance(entry, dict) and entry.get("type") in roots:
                    yield roots[entry["type"]] / entry["subfolder"] / entry["filename"]

    def _is_stored(self, name: str) -> bool:
        return self._meaning(name).stored and self.engine.store.get(self._key(name)) is not None

    def _restore(self, name: str) -> bool:
        """Take a node's result out of the store."""
        if not self._meaning(name).stored:
            return False
        stored = self.engine.store.get(self._key(name))
        if stored is None:
            return False
        self._done[name] = NodeResult(unpacked(stored.load(), stored.meta))
        self._note(name, reused=True)
        return True

    # -- keys ---------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        """The key of a node; those of what it is linked to first, however long the chain."""
        for each in self._reduced.dependency_order([name]) if name not in self._keys else ():
            if each not in self._keys:
                self._keys[each] = self._own_key(self._reduced.nodes[each])
        return self._keys[name]

    def _own_key(self, node: Node) -> str:
        values: dict[str, Any] = {}
        for one, given in self._inputs(node):
            name = one if isinstance(one, str) else one.name
            if isinstance(given, Link) and given in self._known:
                given = self._known[given]
            if isinstance(given, Link):
                values[name] = {"of": self._keys[given.node], "slot": given.slot}
            elif isinstance(one, Input) and one.folder:
                values[name] = {"file": self.engine.content(str(given), one.folder)}
            else:
                values[name] = given
        meaning = NODES.get(node.class_type)
        fields = {
            "type": node.class_type,
            "version": 0 if meaning is None else meaning.version,
            "channels": self._channels,
            "values": values,
        }
        if plain.definition_of(node).is_output:
            fields["folder"] = str(self.engine.folders.output)
        return artefact_key("node", VERSION, fields, (), ())

    def _inputs(self, node: Node) -> Iterator[tuple[Input | str, Any]]:
        """Every input with its value or link: what is given, and defaults of the type."""
        row = NODE_TYPES.get(node.class_type)
        literals = {k: self._plain_value(v) for k, v in node.inputs.items()}
        rows = {} if row is None else {one.name: one for one in row.visible_inputs(literals)}
        for name, one in rows.items():
            if name in node.inputs:
                yield one, node.inputs[name]
            elif one.is_widget and one.default is not None:
                yield one, one.default
        for name, given in node.inputs.items():
            if name not in rows:
                yield name, given

    def _plain_value(self, given: Any) -> Any:
        return self._known.get(given) if isinstance(given, Link) else given

    # -- running ------------------------------------------------------------------------------

    def _result(self, name: str) -> NodeResult:
        """A node's result; run now if it has not."""
        if name not in self._done:
            self._done[name] = self._run(name)
        return self._done[name]

    def _run(self, name: str) -> NodeResult:
        self.cancel.check()
        node, meaning = self.graph.nodes[name], self._meaning(name)
        for link in self._eager(name):
            self._result(link.node)
        self.on_event(NodeStarted(name))
        began = time.monotonic()
        if meaning.stored:
            with self.engine.store.lock(self._key(name), poll=self.cancel.check):
                if not self._restore(name):
                    self._done[name] = self._computed(node, meaning)
                    self._store(name, self._done[name].values)
                    self._note(name, reused=False, seconds=time.monotonic() - began)
            result = self._done[name]
        else:
            result = self._computed(node, meaning)
        self.on_event(NodeDone(name, result.ui, time.monotonic() - began))
        return result

    def _computed(self, node: Node, meaning: NodeFunction) -> NodeResult:
        try:
            found = meaning.run(self._ask(node))
        except (WorkflowError, Cancelled):
            raise
        except LadderError as error:
            error.args = (node.error(error.message).message,)
            error.message = str(error.args[0])
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryBudgetError(
                node.error("memory ran out, and there is nothing left to give up").message,
                "make the clip smaller, or close other programs",
            ) from error
        return found if isinstance(found, NodeResult) else NodeResult(tuple(found))

    def _ask(self, node: Node) -> NodeContext:
        inputs = {
            (one if isinstance(one, str) else one.name): (one, given)
            for one, given in self._inputs(node)
        }

        def fetch(name: str) -> Value:
            one, given = inputs[name]
            if not isinstance(given, Link):
                return _coerced(given, one)
            if given in self._known:
                return self._known[given]
            values = self._result(given.node).values
            if given.slot >= len(values):
                raise node.error(f"{name} is linked to output {given.slot}, which is not there")
            return values[given.slot]

        def show_preview(transformer: Component, estimate: Callable[[], Tensor]) -> None:
            picture = self._pictures and self._pictures.render(transformer, estimate)
            if picture:
                self.on_event(NodePreview(node.id, "JPEG", picture))

        def progress(value: int, of: int) -> None:
            self.on_event(NodeProgress(node.id, value, of))

        def warn(code: str, message: str) -> None:
            self.on_event(NodeWarned(node.id, code, message))

        return NodeContext(
            node=node,
            input_names=frozenset(inputs),
            fetch=fetch,
            engine=self.engine,
            graph=self.graph,
            load_or_compute=lambda name, make: self._kept(node.id, name, make),
            progress=progress,
            warn=warn,
            check_cancelled=self.cancel.check,
            show_preview=show_preview,
            metadata=self.metadata,
            channels=self._channels,
        )

    def _kept(
        self, node: str, name: str, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """A part of a node's work, from the store or into it."""
        key = artefact_key("part", VERSION, {"name": name}, (self._key(node),), ())
        stored = self.engine.store.get(key)
        if stored is not None:
            return stored.load()
        made = make()
        self.engine.store.put(key, made, {"stage": "part", "name": name})
        self._note(node, reused=False, key=key)
        return made

    def _store(self, name: str, values: Sequence[Value]) -> None:
        tensors, meta = packed(values)
        node = self.graph.nodes[name]
        self.engine.store.put(
            self._key(name), tensors, {"stage": "node", "name": node.class_type, **meta}
        )

    def _meaning(self, name: str) -> NodeFunction:
        return NODES[self.graph.nodes[name].class_type]

    # -- the record of the run ----------------------------------------------------------------

    @contextmanager
    def recorded(self, command: str) -> Iterator[None]:
        """Keep a record, so that a prune knows what this run made."""
        runs = self.engine.store.runs
        request = {"prompt": self._headline(), "workflow": self.graph.to_api()}
        started = runs.start(command, request)
        self._record = runs.save(replace(started, kind="workflow"))
        try:
            yield
        except (Cancelled, KeyboardInterrupt):
            runs.save(replace(self._record, status="cancelled"))
            raise
        except BaseException as error:
            runs.save(replace(self._record, status="failed", error=str(error)))
            raise
        files = [str(path) for done in self._done.values() for path in self._files(done.ui)]
        output = files[-1] if files else None
        runs.save(replace(self._record, status="done", output=output))

    def _headline(self) -> str:
        """The first text to be encoded, for lists of runs."""
        for node in self.graph.nodes.values():
            if node.class_type == "CLIPTextEncode" and "text" in node.inputs:
                found = self._plain_value(node.inputs["text"])
                if isinstance(found, str) and found:
                    return found
        return ""

    def _note(self, name: str, *, reused: bool, seconds: float = 0.0, key: str = "") -> None:
        if self._record is None:
            raise TypeError("a run that is not recorded")
        node = self.graph.nodes[name]
        stage = StageRecord(f"{name} {node.class_type}", key or self._key(name), reused, seconds)
        self._record = self.engine.store.runs.save(self._record.with_stage(stage))


# --- values in the store ------------------------------------------------------------------------


def packed(values: Sequence[Value]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Latents and sounds as tensors with names, and what else is to be known of them."""
    tensors: dict[str, Tensor] = {}
    kinds: list[Any] = []
    for i, value in enumerate(values):
        if isinstance(value, Latent):
            tensors |= {f"{i}.{name}": tensor for name, tensor in value.tensors().items()}
            kinds.append("latent")
        elif isinstance(value, Audio):
            tensors[f"{i}.waveform"] = value.waveform
            kinds.append(value.rate)
        else:
            raise TypeError(f"{type(value).__name__} cannot be stored")
    return tensors, {"values": kinds}


def unpacked(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[Value, ...]:
    """The values of :func:`packed`. Raises :class:`StoreError` for what it did not make."""
    values: list[Value] = []
    for i, kind in enumerate(meta.get("values", ())):
        prefix = f"{i}."
        own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        values.append(
            Latent.from_tensors(own) if kind == "latent" else Audio(own["waveform"], int(kind))
        )
    if not values:
        raise StoreError("a stored node holds no values", "run `ladder runs verify`")
    return tuple(values)


def _coerced(given: Any, one: Input | str) -> Value:
    """A literal as its input's type has it: numbers may be written as text."""
    if isinstance(one, str) or isinstance(given, bool) or given is None:
        return given
    if one.type == "INT" and isinstance(given, str | float):
        return int(float(given)) if isinstance(given, str) else int(given)
    if one.type == "FLOAT" and isinstance(given, str | int):
        return float(given)
    return str(given) if one.type in ("STRING", "COMBO") else given


def _latent_channels(graph: Graph, engine: Engine) -> int:
    """Channels of the transformers that the graph names; 128 where it names none at hand."""
    for node in graph.nodes.values():
        row = NODE_TYPES.get(node.class_type)
        for one in () if row is None else row.inputs:
            name = node.inputs.get(one.name)
            if one.folder in ("checkpoints", "diffusion_models") and isinstance(name, str):
                found = engine.channels(name)
                if found is not None:
                    return found
    return LATENT_CHANNELS

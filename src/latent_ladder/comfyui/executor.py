"""Execution of a graph: every needed node runs once; results in memory or in the store are reused.

The key of a node is a hash of its type, its values, the content ids of the files it names and the
keys of the nodes it is linked to, so it is known before anything runs and equal in every process.
Latents and sound are stored under it: a node whose result is stored does not run, nor do nodes
that only it needs. Links to values that can be computed in advance count by value.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.comfyui import constant_folding
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
from latent_ladder.comfyui.runtime.output_journal import OutputJournal
from latent_ladder.comfyui.runtime.previews import LivePreviews
from latent_ladder.comfyui.runtime.values import Audio, Latent, Value
from latent_ladder.errors import Cancelled, LadderError, StoreError, WorkflowError
from latent_ladder.memory.oom import raise_budget_error
from latent_ladder.pipeline.run_options import Cancel
from latent_ladder.pipeline.run_recorder import RunRecorder
from latent_ladder.storage.artifact_store import artefact_key
from latent_ladder.storage.run_records import StageRecord

__all__ = [
    "Engine",
    "RunOrigin",
    "Unsupported",
    "WorkFolders",
    "execute",
    "find_unsupported",
    "without_unsupported",
]

VERSION = 1
"""Part of all node keys: raise it to make every stored result unusable."""


@dataclass(frozen=True)
class RunOrigin:
    """Origin of a run: the command line that started it, and the files of an earlier try."""

    command: str = ""
    journal: OutputJournal = field(default_factory=OutputJournal)


@dataclass(frozen=True)
class Unsupported:
    """A node that cannot run here, the reason, and a workaround if there is one."""

    node: Node
    why: str
    way: str = ""

    def error(self) -> WorkflowError:
        """Error that names the node."""
        others = "--skip-unsupported runs the outputs that do not need it"
        return self.node.error(f"cannot run here: {self.why}", self.way or others)


def find_unsupported(graph: Graph, wanted: Iterable[str] | None = None) -> list[Unsupported]:
    """Needed nodes that cannot run, in execution order. Loads nothing.

    Raises :class:`WorkflowError` for a cycle or a link to a missing node.
    """
    outputs = constant_folding.output_nodes(graph) if wanted is None else tuple(wanted)
    found = []
    for node in (graph.nodes[name] for name in constant_folding.required_nodes(graph, outputs)):
        function = NODES.get(node.class_type)
        why = constant_folding.definition_of(node).unsupported_reason
        if not why and function is None:
            why = f"{node.class_type} cannot be run by this version"
        if not why and function is not None:
            why = function.check(node)
        if why:
            found.append(
                Unsupported(node, why, constant_folding.suggest_workaround(graph, node.id))
            )
    return found


def without_unsupported(graph: Graph) -> tuple[str, ...]:
    """Output nodes that need no unsupported node."""
    return tuple(
        name for name in constant_folding.output_nodes(graph) if not find_unsupported(graph, [name])
    )


def execute(
    graph: Graph,
    engine: Engine,
    *,
    wanted: Sequence[str] | None = None,
    on_event: OnGraphEvent = ignore_event,
    cancel: Cancel | None = None,
    metadata: Mapping[str, str] | None = None,
    origin: RunOrigin | None = None,
) -> Mapping[str, UiOutput]:
    """Run the output nodes ``wanted`` (``None``: all); returns the files that each shows.

    ``metadata`` is written into every file; ``None`` means the graph as tag ``prompt``. Raises
    :class:`WorkflowError` before anything runs if a needed node is unsupported, the errors of the
    nodes with the node's name in front, and :class:`Cancelled`.
    """
    outputs = constant_folding.output_nodes(graph) if wanted is None else tuple(wanted)
    if not outputs:
        raise WorkflowError(
            "the workflow has no output", "add a node that saves, such as SaveVideo"
        )
    for problem in find_unsupported(graph, outputs):
        raise problem.error()
    tags = metadata
    if tags is None:
        tags = {"prompt": json.dumps(graph.to_api(), ensure_ascii=False)}
    run = _GraphRun(graph, engine, on_event, cancel or Cancel(), tags, origin or RunOrigin())
    with run.recorder.recording():
        return run.run(outputs)


@dataclass
class _GraphRun:
    """One execution of a graph."""

    graph: Graph
    engine: Engine
    on_event: OnGraphEvent
    cancel: Cancel
    metadata: Mapping[str, str]
    origin: RunOrigin
    _keys: dict[str, str] = field(default_factory=dict)
    _done: dict[str, NodeResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known = constant_folding.fold_constants(self.graph)
        engine = self.engine
        self._pictures = LivePreviews(engine.companion, engine.store) if engine.previews else None
        self._pruned = constant_folding.prune_branches(self.graph)
        self._channels = _latent_channels(self.graph, self.engine)
        request = {
            "prompt": self._headline(),
            "workflow": self.graph.to_api(),
            "model_convention": engine.convention,
        }
        engine.store.remove_temporary_files()
        self.recorder = RunRecorder(engine.store.runs, self.origin.command, request)
        self.recorder.update(kind="workflow")

    def run(self, outputs: Sequence[str]) -> Mapping[str, UiOutput]:
        order = constant_folding.required_nodes(self.graph, outputs)
        waiting = self._to_run(outputs)
        cached = tuple(name for name in order if name not in waiting)
        shown = {name: self._done[name].ui for name in cached if name in self._done}
        if cached:
            self.on_event(NodesCached(cached, {k: v for k, v in shown.items() if v}))
        unconditional = self._unconditional_nodes(outputs)
        for name in order:
            if name in unconditional:
                self._result(name)
        self.engine.results.clear()
        self.engine.results.update({self._key(name): self._done[name] for name in self._done})
        files = [str(path) for done in self._done.values() for path in self._files(done.ui)]
        self.recorder.update(output=files[-1] if files else None)
        return {name: self._done[name].ui for name in outputs}

    # -- what has to run ----------------------------------------------------------------------

    def _to_run(self, outputs: Sequence[str]) -> set[str]:
        """Nodes without a result in memory or in the store that an output needs."""
        todo, waiting = list(outputs), set[str]()
        while todo:
            name = todo.pop()
            if name in waiting or name in self._done:
                continue
            found = self._from_memory(name)
            if found is not None:
                self._done[name] = found
                continue
            waiting.add(name)
            if not self._is_stored(name):
                todo += [link.node for _, link in self._links(name)]
        return waiting - {name for name in waiting if self._restore(name)}

    def _links(self, name: str) -> Iterator[tuple[str, Link]]:
        """Links of a node whose values are not known in advance."""
        links = self._pruned.nodes[name].links
        return ((each, link) for each, link in links if link not in self._known)

    def _eager_links(self, name: str) -> Iterator[Link]:
        """Links whose value a node always reads."""
        lazy = NODE_TYPES[self.graph.nodes[name].class_type].lazy
        return (link for each, link in self._links(name) if each not in lazy)

    def _unconditional_nodes(self, outputs: Sequence[str]) -> set[str]:
        """Nodes that certainly run; the others run only if a lazy input reads them."""
        todo, found = list(outputs), set[str]()
        while todo:
            name = todo.pop()
            if name not in found and name not in self._done:
                found.add(name)
                todo += [link.node for link in self._eager_links(name)]
        return found

    def _from_memory(self, name: str) -> NodeResult | None:
        """A node's result of the last graph, if all files that it shows still exist."""
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
        return self._function_of(name).stored and self.engine.store.get(self._key(name)) is not None

    def _restore(self, name: str) -> bool:
        """Load a node's result from the store; false if it is not there."""
        if not self._function_of(name).stored:
            return False
        stored = self.engine.store.get(self._key(name))
        if stored is None:
            return False
        self._done[name] = NodeResult(unpack(stored.load(), stored.meta))
        self._note(name, reused=True)
        return True

    # -- keys ---------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        """Key of a node, after those it depends on; not recursive, as chains may be long."""
        for each in self._pruned.dependency_order([name]) if name not in self._keys else ():
            if each not in self._keys:
                self._keys[each] = self._own_key(self._pruned.nodes[each])
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
        function = NODES.get(node.class_type)
        fields = {
            "type": node.class_type,
            "version": 0 if function is None else function.version,
            "channels": self._channels,
            "values": values,
        }
        if function is not None and function.samples:
            fields["convention"] = self.engine.convention
        if constant_folding.definition_of(node).is_output:
            fields["folder"] = str(self.engine.folders.output)
        return artefact_key("node", VERSION, fields, (), ())

    def _inputs(self, node: Node) -> Iterator[tuple[Input | str, Any]]:
        """Every input with its value or link, else the default of the node type."""
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
        """A node's result; runs the node if that was not done yet."""
        if name not in self._done:
            self._done[name] = self._run_node(name)
        return self._done[name]

    def _run_node(self, name: str) -> NodeResult:
        self.cancel.check()
        node, function = self.graph.nodes[name], self._function_of(name)
        for link in self._eager_links(name):
            self._result(link.node)
        self.on_event(NodeStarted(name))
        began = time.monotonic()
        if function.stored:
            with self.engine.store.lock(self._key(name), poll=self.cancel.check):
                if not self._restore(name):
                    self._done[name] = self._compute(node, function)
                    self._store(name, self._done[name].values)
                    self._note(name, reused=False, seconds=time.monotonic() - began)
            result = self._done[name]
        else:
            result = self._compute(node, function)
        self.on_event(NodeDone(name, result.ui, time.monotonic() - began))
        return result

    def _compute(self, node: Node, function: NodeFunction) -> NodeResult:
        """Run a node. The node's name is added to errors that do not have it yet."""
        message = "memory ran out, and there is no fallback left"
        try:
            with raise_budget_error(message, "make the clip smaller, or close other programs"):
                found = function.run(self._context_of(node))
        except (WorkflowError, Cancelled):
            raise
        except LadderError as error:
            raise error.in_context(node.label) from error
        return found if isinstance(found, NodeResult) else NodeResult(tuple(found))

    def _context_of(self, node: Node) -> NodeContext:
        inputs = {
            (one if isinstance(one, str) else one.name): (one, given)
            for one, given in self._inputs(node)
        }

        def fetch(name: str) -> Value:
            one, given = inputs[name]
            if not isinstance(given, Link):
                return _coerce(given, one)
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
            load_or_compute=lambda name, make: self._part(node.id, name, make),
            progress=progress,
            warn=warn,
            check_cancelled=self.cancel.check,
            show_preview=show_preview,
            metadata=self.metadata,
            channels=self._channels,
            journal=self.origin.journal,
        )

    def _part(
        self, node: str, name: str, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors of a part of a node's work: from the store, else made and stored."""
        key = artefact_key("part", VERSION, {"name": name}, (self._key(node),), ())
        stored = self.engine.store.get(key)
        if stored is not None:
            return stored.load()
        made = make()
        self._put(node, key, made, {"stage": "part", "name": name})
        self._note(node, reused=False, key=key)
        return made

    def _store(self, name: str, values: Sequence[Value]) -> None:
        tensors, meta = pack(values)
        node = self.graph.nodes[name]
        self._put(
            name, self._key(name), tensors, {"stage": "node", "name": node.class_type, **meta}
        )

    def _put(
        self, node: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> None:
        """Store a node's result, which is in memory too: a full disk does not end the run."""
        error = self.engine.store.try_put(key, tensors, meta)
        if error is not None:
            text = f"the result is not stored, the run goes on without: {error.message}"
            self.on_event(NodeWarned(node, "not_stored", f"{text}; {error.hint}"))

    def _function_of(self, name: str) -> NodeFunction:
        return NODES[self.graph.nodes[name].class_type]

    # -- the record of the run ----------------------------------------------------------------

    def _headline(self) -> str:
        """The first prompt of the graph, shown in lists of runs."""
        for node in self.graph.nodes.values():
            if node.class_type == "CLIPTextEncode" and "text" in node.inputs:
                found = self._plain_value(node.inputs["text"])
                if isinstance(found, str) and found:
                    return found
        return ""

    def _note(self, name: str, *, reused: bool, seconds: float = 0.0, key: str = "") -> None:
        node = self.graph.nodes[name]
        stage = f"{name} {node.class_type}"
        self.recorder.add_stage(StageRecord(stage, key or self._key(name), reused, seconds))


# --- values in the store ------------------------------------------------------------------------


def pack(values: Sequence[Value]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Latents and sounds as named tensors, and meta data to restore them. See :func:`unpack`."""
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


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[Value, ...]:
    """The values that :func:`pack` stored. Raises :class:`StoreError` for anything else."""
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


def _coerce(given: Any, one: Input | str) -> Value:
    """A literal value in the type of its input: numbers may be written as text."""
    if isinstance(one, str) or isinstance(given, bool) or given is None:
        return given
    if one.type == "INT" and isinstance(given, str | float):
        return constant_folding.parse_integer(given)
    if one.type == "FLOAT" and isinstance(given, str | int):
        return float(given)
    return str(given) if one.type in ("STRING", "COMBO") else given


def _latent_channels(graph: Graph, engine: Engine) -> int:
    """Latent channels of the first transformer in the graph that is found, else 128."""
    for node in graph.nodes.values():
        row = NODE_TYPES.get(node.class_type)
        for one in () if row is None else row.inputs:
            name = node.inputs.get(one.name)
            if one.folder in ("checkpoints", "diffusion_models") and isinstance(name, str):
                found = engine.channels(name)
                if found is not None:
                    return found
    return LATENT_CHANNELS

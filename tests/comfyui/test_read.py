"""Workflows read from JSON and media files, and the errors for other files."""

from __future__ import annotations

import io
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers.workflow_ui_graphs import numbers, two_stage
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latent_ladder.comfyui.formats.read import (
    MAX_JSON_BYTES,
    parse_workflow,
    read_workflow,
    workflow_from_document,
)
from latent_ladder.comfyui.graph import Graph, Link
from latent_ladder.errors import WorkflowError


def test_both_formats_from_files_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, document in (("api.json", two_stage()), ("ui.json", numbers())):
        path = tmp_path / name
        path.write_text(json.dumps(document), encoding="utf-8-sig")
        found = read_workflow(path)
        assert (found.ui is None) == (name == "api.json")
        data = io.TextIOWrapper(io.BytesIO(path.read_bytes()))
        monkeypatch.setattr(sys, "stdin", data)
        assert read_workflow("-").graph == found.graph


def test_api_format_round_trips() -> None:
    document = two_stage()
    document["26"]["inputs"]["things"] = {"__value__": ["1", 0]}
    graph = workflow_from_document(document).graph
    assert graph.nodes["4"].inputs["model"] == Link("1", 0)
    assert graph.nodes["26"].inputs["things"] == ["1", 0]
    assert graph.nodes["26"].title == "my SaveVideo"
    assert graph.to_api() == document


def test_prompt_requests_are_unwrapped() -> None:
    posted = {"prompt": two_stage(), "client_id": "x"}
    assert workflow_from_document(posted).graph == workflow_from_document(two_stage()).graph


def write_png(path: Path, **tags: str) -> Path:
    info = PngInfo()
    for key, value in tags.items():
        info.add_text(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def write_clip(path: Path, **tags: str) -> Path:
    options = {"movflags": "use_metadata_tags"}
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(tags)
        stream = container.add_stream("libx264", rate=Fraction(8), options={"crf": "40"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_webp(path: Path, **tags: str) -> Path:
    """Write a WebP image as ComfyUI does: EXIF tags from Model downwards, each ``name:json``."""
    exif = Image.Exif()
    for place, (key, value) in enumerate(tags.items()):
        exif[0x0110 - place] = f"{key}:{value}"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("writer", [write_png, write_clip, write_webp], ids=["png", "mp4", "webp"])
def test_media_files_contain_both_formats(writer: Any, tmp_path: Path) -> None:
    ending = {write_png: "png", write_clip: "mp4", write_webp: "webp"}[writer]
    tags = {"prompt": json.dumps(two_stage()), "workflow": json.dumps(numbers())}
    found = read_workflow(writer(tmp_path / f"both.{ending}", **tags))
    assert found.graph == workflow_from_document(two_stage()).graph
    assert found.ui == numbers()
    drawn = read_workflow(writer(tmp_path / f"drawn.{ending}", workflow=tags["workflow"]))
    assert drawn.graph == workflow_from_document(numbers()).graph


def test_both_formats_in_the_comment_are_read(tmp_path: Path) -> None:
    comment = json.dumps({"prompt": json.dumps(two_stage()), "workflow": numbers()})
    found = read_workflow(write_clip(tmp_path / "a.mp4", comment=comment))
    assert found.graph == workflow_from_document(two_stage()).graph


def test_a_clip_without_a_workflow(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"a\.mp4 contains no ComfyUI workflow"):
        read_workflow(write_clip(tmp_path / "a.mp4", title="x"))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(WorkflowError, match=r"b\.png cannot be read"):
        read_workflow(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"{", "not JSON: .* in line 1, column 2"),
        (b"\x89PNG\r\n\x1a\n", "is an image"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"\0\0\0\x20ftypisom", "is a clip"),
        (b"GGUF\3\0\0\0", "is a model file"),
        (b"\xff\xfe\0", "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"9" * 5000, "is not JSON"),
        (b"[]", "it is a list"),
        (b"{}", "an empty object"),
        (b'"text"', "it is .text."),
        (b'{"a": 1, "b": 2}', "it is an object with a, b"),
        (b'{"nodes": {}}', "its nodes are not a list"),
        (b'{"1": {"class_type": "X"}, "2": 5}', "node 2 is a number"),
        (b'{"1": {"class_type": "X", "inputs": []}}', "inputs is a list"),
        (b'{"1": {"class_type": "X"}, "2": {"inputs": {}}}', "node 2 has no class_type"),
        (
            b'{"1": {"class_type": "X", "inputs": {"a": ["9", 0]}}}',
            "linked to node 9, which does not exist",
        ),
        (b'{"1": {"class_type": "X", "inputs": {"a": ["1", 0]}}}', "a is part of a cycle"),
        (b'{"nodes": [{"id": 1}]}', "node 1 has no type"),
        (b'{"nodes": [7]}', "entry 0 of nodes is not a node"),
        (b'{"nodes": [], "links": [[1, 2]]}', "entry 0 of links is not a link"),
    ],
)
def test_other_files_are_identified(data: bytes, message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        parse_workflow(data, "it.json")


def test_missing_slots_and_cycles_name_the_node() -> None:
    document = two_stage()
    document["4"]["inputs"]["model"] = ["1", 3]
    with pytest.raises(WorkflowError, match=r'node 4 .*"my Lora.*CheckpointLoaderSimple has 3 out'):
        workflow_from_document(document)
    document = two_stage()
    document["10"]["inputs"]["video_latent"] = ["15", 0]
    with pytest.raises(WorkflowError, match=r"node 1\d .* is part of a cycle"):
        workflow_from_document(document)


def test_too_much_json_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    with pytest.raises(WorkflowError, match="larger than 32 MiB"):
        read_workflow(path)
    with pytest.raises(WorkflowError, match="larger than 32 MiB"):
        parse_workflow(b" " * (MAX_JSON_BYTES + 1))
    with pytest.raises(WorkflowError, match="nodes, at most 20000"):
        workflow_from_document({str(n): {"class_type": "X", "inputs": {}} for n in range(20_001)})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="does not exist"):
        read_workflow(tmp_path / "none.json")
    with pytest.raises(WorkflowError, match="is a folder"):
        read_workflow(tmp_path)


def test_a_long_chain_does_not_recurse() -> None:
    document: dict[str, Any] = {"0": {"class_type": "EmptyLTXVLatentVideo", "inputs": {}}}
    for n in range(1, 5000):
        document[str(n)] = {
            "class_type": "LatentUpscaleBy", "inputs": {"samples": [str(n - 1), 0]},
        }  # fmt: skip
    graph: Graph = workflow_from_document(document).graph
    assert len(graph.dependency_order(["4999"])) == 5000

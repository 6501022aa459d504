"""``ladder workflow run`` with its options."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from helpers.workflow_graphs import CHECKPOINT, MODELS, ONE_STAGE, Nodes, graph
from typer.testing import CliRunner, Result

from latent_ladder.cli.app import app
from latent_ladder.comfyui.analysis.overrides import apply_overrides
from latent_ladder.comfyui.graph import Link
from latent_ladder.errors import RequestError, WorkflowError

PICTURES: Nodes = {
    "1": ("PrimitiveInt", {"value": 12}),
    "2": ("EmptyImage", {"width": ["1", 0], "height": 8, "batch_size": 2, "color": 0xFF}),
    "3": ("SaveImage", {"images": ["2", 0], "filename_prefix": "a/b"}),
    "4": ("PreviewAny", {"source": ["1", 0]}),
}


def ladder(folder: Path, nodes: Nodes, *words: str) -> Result:
    path = folder / "graph.json"
    path.write_text(json.dumps(graph(nodes).to_api()))
    command = ["workflow", "run", str(path), "-o", str(folder / "out")]
    return CliRunner().invoke(app, [*command, "--store", str(folder / "store"), *words])


def test_results_go_to_stdout_and_texts_to_stderr(tmp_path: Path) -> None:
    done = ladder(tmp_path, PICTURES)
    assert done.exit_code == 0, done.output
    files = [tmp_path / f"out/a/b_0000{n}_.png" for n in (1, 2)]
    assert done.stdout.split() == [str(file) for file in files]
    assert all(file.is_file() for file in files)
    assert "12" in done.stderr


def test_json_lists_the_nodes_that_ran(tmp_path: Path) -> None:
    done = ladder(tmp_path, PICTURES, "--json", "--set", "EmptyImage.batch_size=1")
    report = json.loads(done.stdout)
    assert report["files"] == [str(tmp_path / "out/a/b_00001_.png")]
    assert set(report["ran"]) == {"2", "3", "4"} and report["cached"] == ["1"]
    assert report["outputs"]["4"] == {"text": ["12"]} and report["warnings"] == []


def test_nodes_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "latent_ladder")
    done = ladder(tmp_path, PICTURES)
    assert done.exit_code == 0, done.output
    assert 'node 3 SaveImage "Save Image" started' in caplog.messages
    assert any(text.startswith('node 3 SaveImage "Save Image" done') for text in caplog.messages)
    assert "nodes with stored results: 1" in caplog.messages


def test_unsupported_outputs_are_left_out_on_request(tmp_path: Path) -> None:
    nodes: Nodes = {
        **PICTURES,
        "5": ("DWPreprocessor", {"image": ["2", 0]}),
        "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "pose"}),
    }
    refused = ladder(tmp_path, nodes)
    assert isinstance(refused.exception, WorkflowError)
    assert "node 5" in refused.exception.message and not (tmp_path / "out").exists()
    done = ladder(tmp_path, nodes, "--skip-unsupported")
    assert done.exit_code == 0 and len(done.stdout.split()) == 2
    assert "outputs that need it are left out" in done.stderr.replace("\n", " ")


def test_files_are_mapped_listed_and_checked_before_anything_loads(tmp_path: Path) -> None:
    named = {
        **ONE_STAGE,
        "model": ("CheckpointLoaderSimple", {"ckpt_name": "big/dev.safetensors"}),
    }
    missing = ladder(tmp_path, named)
    assert isinstance(missing.exception, WorkflowError)
    assert "big/dev.safetensors is not in checkpoints" in missing.exception.message
    assert missing.exception.node_id == "model"
    listed = ladder(tmp_path, named, "--map", "dev.safetensors=")
    assert isinstance(listed.exception, RequestError)
    assert CHECKPOINT in listed.exception.message
    nodes = {**MODELS, "model": named["model"], "show": ("PreviewAny", {"source": ["model", 0]})}
    done = ladder(tmp_path, nodes, "--map", f"dev.safetensors={CHECKPOINT}")
    assert done.exit_code == 0 and "Model" in done.stderr


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("3.nothing=1", "no input nothing"),
        ("9.value=1", "no node 9"),
        ("1.value=many", "not of type int"),
        ("3.images=x", "takes IMAGE from a link"),
        ("1.value", "not NODE.input=value"),
        ("PrimitiveInt=1", "not NODE.input=value"),
    ],
)
def test_values_that_cannot_be_set_are_refused(asked: str, message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        apply_overrides(graph(PICTURES), [asked])


def test_values_are_set_by_id_by_title_and_by_type() -> None:
    nodes = graph(PICTURES).to_api()
    nodes["2"]["_meta"]["title"] = "Base v1.5"
    from latent_ladder.comfyui.formats.api import read_api

    built = read_api(nodes)
    done = apply_overrides(
        built, ["Base v1.5.width=16", "SaveImage.filename_prefix=x=y", "1.value=-3"]
    )
    assert isinstance(built.nodes["2"].inputs["width"], Link)
    assert done.nodes["2"].inputs["width"] == 16
    assert done.nodes["3"].inputs["filename_prefix"] == "x=y"
    assert done.nodes["1"].inputs["value"] == -3
    twice = {**PICTURES, "7": PICTURES["1"]}
    with pytest.raises(WorkflowError, match="2 nodes have this name"):
        apply_overrides(graph(twice), ["PrimitiveInt.value=1"])

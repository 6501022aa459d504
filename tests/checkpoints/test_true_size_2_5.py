"""LTX-2.5 at its real size, without its weights: every published file, recognised and planned."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from helpers import true_size, true_size_2_5
from typer.testing import CliRunner

from latent_ladder.checkpoints.catalog_2_5 import FILES_2_5
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components, find_unused_tensors
from latent_ladder.checkpoints.selection import ModelSet, scan, select_models
from latent_ladder.cli.app import build_app
from latent_ladder.memory.planner import GIB, Budget, Policy, plan_memory
from latent_ladder.pipeline.plan import make_plan
from latent_ladder.pipeline.plan_report import model_sizes
from latent_ladder.pipeline.run import default_preset
from latent_ladder.pipeline.video_decoder import with_decoder
from latent_ladder.request.model import Request

ROUGH_BYTES = 1.5e6
"""Headers of the published files differ by less than this."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All published files: 200 GB that need a few MB."""
    path = tmp_path_factory.mktemp("models")
    for variant in ("dev", "distilled"):
        for precision in ("bf16", "int8"):
            true_size_2_5.write_transformer(path, variant, precision)
    true_size_2_5.write_transformer(path, "distilled", "nvfp4")
    for precision in ("bf16", "int8"):
        true_size_2_5.write_text_encoder(path, precision)
    true_size_2_5.write_others(path)
    return path


def found(folder: Path, name: str) -> dict[str, Component]:
    (path,) = folder.glob(f"*/{name}.safetensors")
    return components(open_checkpoint(path))


@pytest.mark.slow
def test_every_published_file_has_its_size_and_roles(folder: Path) -> None:
    for file in FILES_2_5:
        path = folder / file.folder / file.name
        assert abs(path.stat().st_size - file.bytes) < ROUGH_BYTES, file.name
        opened = open_checkpoint(path)
        roles = ("lora",) if file.roles == ("distilled_lora",) else file.roles
        parts = components(opened)
        assert set(parts) == set(roles), file.name
        assert {part.precision for part in parts.values()} <= {file.precision, "bf16"}, file.name
        if "transformer" in roles:
            assert parts["transformer"].precision == file.precision
        assert [n for n in find_unused_tensors(opened) if "vision" not in n] == []


@pytest.mark.slow
def test_counts_of_tensors_and_parameters(folder: Path) -> None:
    transformer = found(folder, "ltx-2.5-22b-dev-transformer-bf16")
    encoder = found(folder, "gemma4-12b-with-proj-ltx-2.5-bf16")["text_encoder"]
    vae = found(folder, "ltx-2.5-video-vae-bf16")["video_vae"]
    decoder = {k: s for k, s in vae.shapes().items() if k.startswith("decoder.")}
    head = found(folder, "ltx-2.5-duration-head-bf16")["duration_head"].shapes()
    tower = {k: s for k, s in encoder.shapes().items() if k.startswith(("layers", "embed", "norm"))}
    counted = {
        "transformer": transformer["transformer"].shapes(),
        "connectors": transformer["connectors"].shapes(),
        "text tower": tower, "decoder": decoder, "duration head": head,
    }  # fmt: skip

    def size(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
        """Tensors, and parameters without the buffers of the official networks."""
        buffers = ("layer_scalar", "type_emb")
        trained = [shape for name, shape in shapes.items() if not name.endswith(buffers)]
        return len(shapes), sum(map(math.prod, trained))

    assert {name: size(shapes) for name, shapes in counted.items()} == {
        "transformer": (4091, 18_987_859_200), "connectors": (258, 2_016_166_400),
        "text tower": (666, 11_907_350_272), "decoder": (310, 417_133_616),
        "duration head": (15, 1_903_361),
    }  # fmt: skip
    assert len(found(folder, "ltx-2.5-22b-distilled-lora-450-bf16")["lora"].names) == 3320


@pytest.mark.slow
def test_the_folder_is_complete_and_its_default_is_the_newest(folder: Path) -> None:
    library = scan([folder])
    models = select_models(library)
    assert models.family == "2.5"
    assert models.notes == ()
    assert set(models.video_decoders) == {"conv", "diffusion"}
    assert default_preset(library) == "ltx-2.5-distilled"


@pytest.mark.slow
def test_a_preset_takes_the_transformer_of_its_training(folder: Path) -> None:
    library, names = scan([folder]), {}
    for preset in ("", "ltx-2.5-distilled", "ltx-2.5-hq", "ltx-2.5-distilled-lora"):
        names[preset] = select_models(library, preset=preset).transformer.file.path.name
    assert [("distilled" in name) for name in names.values()] == [True, True, False, False]
    assert all(name.endswith("bf16.safetensors") for name in names.values())


@pytest.mark.slow
def test_beside_ltx_2_3_each_preset_has_its_own_files(tmp_path: Path) -> None:
    true_size.checkpoint(tmp_path, "fp8")
    true_size.companions(tmp_path, "fp8")
    true_size_2_5.write_transformer(tmp_path, precision="int8")
    true_size_2_5.write_text_encoder(tmp_path, "int8")
    true_size_2_5.write_others(tmp_path)
    done = CliRunner().invoke(build_app(), ["doctor", "--models", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    ready = {row["name"]: row for row in body["presets"] if not row["missing"]}
    assert {"ltx-2.5-distilled", "ltx-2.5-hq", "distilled-lora", "hq", "temporal"} <= set(ready)
    assert body["warnings"] == []
    library = scan([tmp_path])
    for preset, family in (("hq", "2.3"), ("ltx-2.5-distilled", "2.5"), ("", "2.5")):
        models = select_models(library, preset=preset)
        parts = (models.transformer, models.text_encoder, models.text_projection)
        assert {("2.5" in part.file.path.name) for part in parts} == {family == "2.5"}
    next(tmp_path.glob("text_encoders/gemma4*")).unlink()
    models = select_models(scan([tmp_path]))
    assert (models.family, len(models.notes)) == ("2.3", 1)
    assert "no text encoder and no text projection fits it" in models.notes[0]


def peaks(models: ModelSet, folder: Path, size: tuple[int, int], gib: int) -> dict[str, float]:
    """The planned memory of each stage in GiB."""
    request = Request.from_preset(
        "ltx-2.5-distilled", prompt="a red ball", width=size[0], height=size[1], seed=1
    )
    budget = Budget("cuda", (gib - 1) * GIB, 128 * GIB)
    models = with_decoder(models, request, lambda: budget)
    plan = make_plan(request, models, scan([folder]))
    planned = plan_memory(request, model_sizes(plan, budget.value_bytes), budget, Policy())
    return {stage.cost.name: stage.peak_bytes / GIB for stage in planned.stages}


@pytest.mark.slow
@pytest.mark.parametrize("gib", [12, 16, 24, 80])
def test_it_fits_cards_from_12_to_80_gb(folder: Path, gib: int) -> None:
    name = "ltx-2.5-22b-distilled-transformer-comfy-int8-convrot.safetensors"
    models = select_models(scan([folder]), {"transformer": name})
    for size in ((1280, 720), (1920, 1088)):
        assert max(peaks(models, folder, size, gib).values()) < gib - 1

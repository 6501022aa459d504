"""Imports point strictly to a lower rank; what must start fast does not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latent_ladder

PACKAGE = Path(latent_ladder.__file__).parent

LAYERS: tuple[str, ...] = (
    "checkpoints.published errors latents stages.events stages.exhausted stages.peak spread "
    "terminal sampling.names sampling.guiders text.conditioning upscale.compact upscale.lanczos "
    "models.dequantize_ggml models.levels models.norms models.passes models.rotation "
    "models.snake checkpoints.tensors checkpoints.places workflow.events "
    "workflow.meaning.resizing",
    "checkpoints.mapped models.dequantize media.encoders media.palette sweeps.axes sweeps.plot "
    "server.frames server.guard server.kept workflow.arithmetic workflow.graph",
    "checkpoints.safetensors checkpoints.gguf_values checkpoints.shards checkpoints.strangers "
    "server.messages workflow.output_names workflow.schema",
    "checkpoints.gguf server.sockets server.worker workflow.types.rows",
    "disk draft_list problems sheet shapes tiling checkpoints.files checkpoints.folders "
    "media.image sampling.samplers sampling.schedules models.config models.dims "
    "models.runtime server.jobs workflow.types.conditioning workflow.types.elsewhere "
    "workflow.types.images workflow.types.latents workflow.types.loaders workflow.types.media "
    "workflow.types.plain workflow.types.sampling",
    "server.places checkpoints.index checkpoints.stored media.tags models.video_layers "
    "sweeps.results server.listing workflow.types pieces",
    "server.view sweeps.choice server.object_info workflow.api workflow.changed workflow.plain "
    "workflow.sheet workflow.ui_values models.side_by_side",
    "server.upload sweeps.plots workflow.forecast workflow.layout workflow.trail "
    "workflow.ui_levels workflow.validate",
    "checkpoints.layout text.vocabulary media.read media.write presets request_fields "
    "request_report sampling.denoise metrics_flow metrics_sound stages.lock stages.runs "
    "models.rope hub_hashes server.prompts workflow.forecast_rules workflow.recognise_pixels "
    "workflow.traps workflow.ui",
    "metrics_video models.quantized checkpoints.lora_keys checkpoints.upscalers media.sequences "
    "media.sound media.footage workflow.read workflow.values",
    "metrics models.linear media.outputs sweeps.pictures upscale.networks "
    "workflow.meaning.statistics",
    "checkpoints.fit models.adaln models.adapters models.attention models.loading "
    "models.residency upscale.tiles",
    "models.quantize checkpoints.scan request_inputs request_output request_stages "
    "request_windows stages.store text.tokenizer models.connectors models.gemma "
    "models.lora_build models.parts models.streams hub",
    "models.audio_coder models.lora models.tiny_decoder models.upsampler_network "
    "models.video_coder models.vocoder",
    "checkpoints.library checkpoints.misplaced request models.transformer models.text_encoder "
    "models.video_vae models.audio_vae models.latent_upsampler",
    "request_read stages.given stages.beside upscale.plan workflow.build_output "
    "workflow.build_sampling workflow.embedded workflow.file_names workflow.nearest "
    "workflow.wanted_files",
    "request_set advice memory models.denoiser stages.plan upscale.rtx workflow.build_inputs "
    "workflow.check workflow.lost workflow.recognise_sampling",
    "planner stages.inputs upscale.stream models.tiled_denoiser workflow.build "
    "workflow.meaning.steering workflow.recognise_climb",
    "machine models.rates readiness stages.report stages.windows workflow.recognise_inputs "
    "workflow.recognise_models",
    "preview proposal stages.progress stages.writing server.about server.setup workflow.engine "
    "workflow.recognise",
    "stages.steps doctor server.context workflow.imported workflow.meaning.means workflow.live",
    "pipeline server.routes workflow.meaning.decoding workflow.meaning.denoising "
    "workflow.meaning.inpainting workflow.meaning.loaders workflow.meaning.pictures "
    "workflow.meaning.plain workflow.meaning.sigmas workflow.meaning.sounds",
    "sweeps.plan server.serve workflow.meaning.sampling workflow.meaning.videos",
    "drafts sweeps.run workflow.meaning.guides workflow.meaning.latents",
    "chosen sweeps.files workflow.meaning.conditions workflow.meaning.saving "
    "workflow.meaning.looping",
    "sweeps.page workflow.meaning",
    "console workflow.execute",
    "commands.flags commands.running commands.node_lines server.work",
    "commands.advise commands.bench commands.doctor commands.make commands.measure "
    "commands.models commands.presets commands.serve commands.workflow_files",
    "commands.draft commands.runs commands.upscale commands.workflow_run",
    "commands.sweep cli commands.workflow",
)
"""The modules of each rank, lowest first. A module without a rank is an error."""

RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}

WITHOUT_TORCH = (
    "cli", "doctor", "request", "advice", "shapes", "checkpoints.library", "media.write",
    "server.serve", "workflow.imported",
)  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    """Every module by dotted name, but for packages whose file holds only a docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__":
            yield ".".join(parts), path
        elif parts != ("__init__",) and len(ast.parse(path.read_text()).body) > 1:
            yield ".".join(parts[:-1]), path


def imports(path: Path) -> Iterator[str]:
    """Modules of this package that ``path`` imports, function-level ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] + [base]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("latent_ladder."):
                yield name.removeprefix("latent_ladder.")


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda v: str(v)[-40:])
def test_imports_point_to_a_lower_rank(name: str, path: Path) -> None:
    assert name in RANKS, f"{name} has no rank: add a row to RANKS"
    for imported in imports(path):
        if imported in RANKS:
            assert RANKS[imported] < RANKS[name], (
                f"{name} (rank {RANKS[name]}) imports {imported} (rank {RANKS[imported]})"
            )


def test_every_rank_row_is_a_module() -> None:
    missing = set(RANKS) - {name for name, _ in modules()}
    assert not missing, f"rows without a module: {sorted(missing)}"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_starts_without_torch(name: str) -> None:
    code = (
        f"import sys, latent_ladder.{name}; "
        "heavy = {'torch', 'diffusers', 'transformers', 'av'} & set(sys.modules); "
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_needs_diffusers_or_transformers() -> None:
    for name, path in modules():
        tree = ast.parse(path.read_text())
        named = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        named += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not {m.split(".")[0] for m in named} & {"diffusers", "transformers"}, name


def test_print_only_in_the_cli() -> None:
    for name, path in modules():
        if name == "cli" or name.startswith("commands."):
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
        assert not calls, f"{name} prints"

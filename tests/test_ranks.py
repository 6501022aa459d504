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

RANKS: dict[str, int] = {
    "errors": 0,
    "shapes": 1,
    "tiling": 1,
    "checkpoints.files": 1,
    "latents": 1,
    "sampling.names": 1,
    "sampling.schedules": 1,
    "sampling.guiders": 1,
    "sampling.samplers": 1,
    "request": 2,
    "advice": 2,
    "memory": 2,
    "checkpoints.layout": 2,
    "sampling.denoise": 2,
    "media.read": 2,
    "media.write": 2,
    "models.linear": 2,
    "models.rope": 2,
    "checkpoints.library": 3,
    "stages.store": 3,
    "models.loading": 3,
    "text.tokenizer": 3,
    "models.lora": 4,
    "models.text_encoder": 5,
    "models.video_vae": 5,
    "models.audio_vae": 5,
    "models.latent_upsampler": 5,
    "models.denoiser": 5,
    "stages.plan": 5,
    "stages.steps": 6,
    "pipeline": 7,
    "cli": 9,
}
"""The rank of each module; a module without a row is an error."""

WITHOUT_TORCH = ("cli", "request", "advice", "shapes", "checkpoints.library", "media.write")


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package but the empty ``__init__`` files, by dotted name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


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


def test_only_one_module_knows_diffusers() -> None:
    knowing = [
        n
        for n, p in modules()
        if "import diffusers" in (t := p.read_text()) or "from diffusers" in t
    ]
    assert len(knowing) <= 1, knowing


def test_print_only_in_the_cli() -> None:
    for name, path in modules():
        if name == "cli":
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
        assert not calls, f"{name} prints"

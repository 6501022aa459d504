"""Import contracts: packages in order, no torch where a command must start fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latent_ladder

PACKAGE = Path(latent_ladder.__file__).parent

WITHOUT_TORCH = (
    "cli.app", "diagnostics.doctor", "diagnostics.request_warnings", "request.model",
    "latents.shapes", "checkpoints.selection", "media.video_writer", "server.app",
    "comfyui.conversion",
)  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    """Every module by dotted name, but for packages whose file holds only a docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__":
            yield ".".join(parts), path
        elif parts != ("__init__",) and len(ast.parse(path.read_text()).body) > 1:
            yield ".".join(parts[:-1]), path


def test_packages_import_only_those_below_them() -> None:
    """The contracts of pyproject.toml hold, and their list of packages is complete."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=PACKAGE.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_starts_without_torch(name: str) -> None:
    code = (
        f"import sys, latent_ladder.{name}; "
        "heavy = {'torch', 'diffusers', 'transformers', 'av'} & set(sys.modules); "
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_module_needs_diffusers_or_transformers() -> None:
    for name, path in modules():
        tree = ast.parse(path.read_text())
        named = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        named += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not {m.split(".")[0] for m in named} & {"diffusers", "transformers"}, name


def test_print_only_in_the_cli() -> None:
    for name, path in modules():
        if name.split(".")[0] == "cli":
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
        assert not calls, f"{name} prints"

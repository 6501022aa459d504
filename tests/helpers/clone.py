"""A folder as a newcomer has it after ``git clone`` and ``make``: a shell that finds no ``ladder``.

``.venv`` is a real virtual environment whose packages are those of the running tests, so that
``make`` has nothing to install and no network is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """#!{python}
import sys

from {module} import {name}

sys.exit({name}())
"""


def make_clone(folder: Path) -> Path:
    """``folder`` with Makefile, project files and an installed ``.venv``."""
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    venv.EnvBuilder(symlinks=os.name != "nt").create(folder / ".venv")
    (packages,) = (folder / ".venv").glob("lib/python*/site-packages")
    paths = [str(Path(path).resolve()) for path in sys.path if path and Path(path).is_dir()]
    (packages / "tests.pth").write_text("\n".join(paths))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, _, name = scripts["ladder"].partition(":")
    command = folder / ".venv" / "bin" / "ladder"
    python = folder / ".venv" / "bin" / "python"
    command.write_text(SCRIPT.format(python=python, module=module, name=name))
    command.chmod(0o755)
    (folder / ".venv" / ".installed").touch()  # what make writes after pip
    return folder


def run_shell(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run lines in one bash without ``ladder`` on its PATH; stop at the first that fails."""
    environment = {
        "HOME": str(folder),
        "LADDER_STORE": str(folder / "store"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

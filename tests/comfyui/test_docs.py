"""``docs/guide/workflows.md`` lists exactly the node types and the warning codes of the package."""

from __future__ import annotations

import re
from pathlib import Path

from latent_ladder.comfyui.node_defs import NODE_TYPES

DOC = (Path(__file__).parents[2] / "docs" / "guide" / "workflows.md").read_text("utf-8")
SOURCES = Path(__file__).parents[2] / "src" / "latent_ladder" / "comfyui"


def section(title: str) -> str:
    return DOC.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_node_type_is_listed() -> None:
    run, _, unsupported = section("Nodes").partition("known and do not run")
    names = {name for name in re.findall(r"`([^`]+)`", run) if name in NODE_TYPES}
    assert names == {name for name, row in NODE_TYPES.items() if not row.unsupported_reason}
    found = {name for name in re.findall(r"`([^`]+)`", unsupported) if not name.startswith("--")}
    assert found == {name for name, row in NODE_TYPES.items() if row.unsupported_reason}
    assert f"{len(names)} types run" in run


def test_every_finding_code_is_documented() -> None:
    code = r'(?:ctx\.warn\(\s*|LintFinding\(\s*|yield \(\s*|yield )"([a-z_0-9]+)",'
    files = ("analysis/lint.py", "analysis/shape_rules.py", "analysis/check.py", "formats/ui.py")
    used = {found for name in files for found in re.findall(code, (SOURCES / name).read_text())}
    used |= {"sound_longer", "sound_shorter"}
    rows = [line for line in section("Check").splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row.split("|")[1])}
    assert listed == used

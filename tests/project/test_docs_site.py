"""The documents: the site builds without a warning and without the network, and says what is true.

Messages, variables and commands that a page names exist in the source; pages that are written from
the code are complete.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = ROOT / "src" / "latent_ladder"
sys.path += [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

import memory_table  # noqa: E402
import reference  # noqa: E402
import reference_api  # noqa: E402
import reference_commands  # noqa: E402
import reference_request  # noqa: E402

PAGES = sorted(DOCS.rglob("*.md"))
ROOT_PAGES = sorted(ROOT.glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of ``root`` as ``make docs`` does."""
    pytest.importorskip("mkdocs")
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


class Requests(HTMLParser):
    """Addresses that a browser fetches when it opens a page; links to click are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        fetched = {"src", "srcset", "poster", "data"} | ({"href"} if tag == "link" else set())
        if values.get("rel") in ("canonical", "next", "prev"):
            fetched -= {"href"}
        self.found += [values[name] for name in fetched & set(values)]
        # what makes the theme's script ask GitHub or load a library from a CDN
        classes = values.get("class", "").split()
        if values.get("data-md-component") == "source" or "mermaid" in classes:
            self.found.append(f"https://by-script/{tag}")


@pytest.mark.slow
@pytest.mark.slow
def test_the_site_builds_and_asks_nobody(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.rglob("*.html"))
    assert len(files) >= 40
    for file in files:
        page = Requests()
        page.feed(file.read_text("utf-8"))
        outside = [url for url in page.found if re.match(r"(https?:)?//", url)]
        assert not outside, f"{file.name} fetches {outside}"
    for file in tmp_path.rglob("*.css"):
        outside = re.findall(
            r"url\([\"']?(?:https?:)?//[^)]*|@import[^;]*", file.read_text("utf-8")
        )
        assert not outside, f"{file.name} fetches {outside}"
    shown = (tmp_path / reference_commands.FOLDER / "make.html").read_text("utf-8")
    assert "<code>--preset" in shown
    assert "stage 2" in (tmp_path / "guide" / "tutorial.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.slow
def test_a_broken_link_a_missing_anchor_and_an_orphan_stop_the_build(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(ROOT / "mkdocs.yml", root)
    for folder in ("docs", "scripts"):
        shutil.copytree(ROOT / folder, root / folder)
    (root / "docs" / "orphan.md").write_text("# Orphan\n\n[x](no.md) [y](index.md#no)\n")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0
    for said in ("not included in the", "'no.md'", "'index.md#no'"):
        assert said in done.stderr, said


def test_every_command_and_flag_is_described() -> None:
    texts = reference.pages()
    seen = 0
    for name, command in reference_commands.commands():
        text = texts[f"{reference_commands.FOLDER}/{name.split()[0]}.md"]
        assert f" ladder {name}\n" in text
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert parameter.help, f"{name} {parameter.opts}"
                for flag in (*parameter.opts, *parameter.secondary_opts):
                    assert re.search(rf"`{re.escape(flag)}[` ]", text), f"{name} {flag}"
                    seen += 1
    assert seen >= 200


def test_every_field_preset_error_and_exit_code_is_described() -> None:
    texts = reference.pages()
    assert reference_request.find_undocumented() == []
    for _, model in reference_request.models():
        for field in model.model_fields:
            assert f"| `{field}` |" in texts["reference/request.md"]
    for file in (SOURCES / "request" / "presets").glob("*.toml"):
        assert f"| `{file.stem}` |" in texts["reference/presets.md"]
    for error, _ in reference_api.tree():
        assert f"| `{error.__name__}` |" in texts["reference/python.md"]
        assert f"{error.exit_code} |" in texts["reference/exit-codes.md"]


@pytest.mark.slow
def test_the_table_of_cards_is_what_the_planner_says() -> None:
    page = (DOCS / "explanation" / "memory.md").read_text("utf-8")
    assert memory_table.table().strip() in page


@cache
def templates() -> list[str]:
    """Every text of the source, with … for what is filled in."""
    return [
        text
        for file in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if (text := _template(node))
    ]


def _template(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    return None


@pytest.mark.slow
def test_every_message_of_troubleshooting_exists() -> None:
    page = (DOCS / "guide" / "troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert len(messages) >= 40
    for message in messages:
        words = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
        assert any(words.search(text) for text in templates()), message


def test_every_variable_of_the_environment_is_described() -> None:
    """Names are read by ``environ.get`` and the like, or stand in constants as LADDER_ names."""
    read = {text for text in templates() if re.fullmatch(r"LADDER_[A-Z_]+", text)}
    pattern = re.compile(r"(?:environ|environment)(?:\.get|\.setdefault)?[(\[]\s*\"([A-Z_0-9]+)\"")
    for file in SOURCES.rglob("*.py"):
        read |= set(pattern.findall(file.read_text("utf-8")))
    page = (DOCS / "reference" / "configuration.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[A-Z_]+`[^|]*)\|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z_0-9]+)`", row)}
    others = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"}
    assert named - others == read
    assert "LADDER_STORE" in read
    assert "TERM" in read


def typed_commands() -> Iterator[tuple[str, list[str]]]:
    """Every line of a code block that calls ``ladder``, as words."""
    for page in (*ROOT_PAGES, *PAGES):
        for kind, body in FENCE.findall(page.read_text("utf-8")):
            if kind in ("", "sh"):
                for line in body.splitlines():
                    if line.startswith("ladder "):
                        yield f"{page.name}: {line}", shlex.split(line, comments=True)[1:]


def test_every_command_that_a_page_shows_is_understood() -> None:
    texts = list(typed_commands())
    assert len(texts) >= 80
    root = reference_commands.root()
    for where, words in texts:
        try:
            parse("ladder", root, words)
        except Exception as error:
            raise AssertionError(f"{where}: {error}") from error


def parse(name: str, command: Any, words: list[str], parent: Any = None) -> None:
    """Parse words as typer would, without running anything; raises what is wrong with them."""
    context = command.make_context(name, list(words), parent=parent)
    if getattr(command, "commands", None) is not None:
        rest = [*context._protected_args, *context.args]
        if rest:  # else: ladder --version
            below, one, more = command.resolve_command(context, rest)
            parse(below, one, more, context)


def test_every_python_name_of_a_page_exists() -> None:
    """``latent_ladder.a.b`` in text, and ``from latent_ladder.a import b`` in code."""
    names: set[str] = set()
    for page in (*ROOT_PAGES, *PAGES):
        text = page.read_text("utf-8")
        names |= set(re.findall(r"\blatent_ladder(?:\.[A-Za-z_]\w*)+", text))
        for module, imported in re.findall(r"^from (latent_ladder[\w.]*) import (.+)$", text, re.M):
            names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    assert len(names) >= 8
    for name in names:
        assert pkgutil.resolve_name(name) is not None, name


def test_links_of_the_root_files_lead_somewhere() -> None:
    for page in ROOT_PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_user_pages_keep_out_of_the_laboratory() -> None:
    """Figures of measurements are in the laboratory; other pages link to it."""
    for page in (*(DOCS / "guide").glob("*.md"), *(DOCS / "reference").glob("*.md")):
        text = page.read_text("utf-8")
        assert "benchmarks/" not in text.replace("laboratory/benchmarks.md", ""), page.name

"""Hooks of the site's build: the reference pages are written from the code while it is built.

``mkdocs.yml`` names this file. The entry ``Commands`` of its navigation is filled with one page for
each subcommand, so that a new command needs no other change.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import reference
import reference_commands
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_startup(**_: Any) -> None:
    """Count warnings under ``--quiet`` too, which otherwise hides them from ``--strict``."""
    logger = logging.getLogger("mkdocs")
    logger.setLevel(min(logger.level, logging.WARNING))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of all commands in the navigation."""
    _fill(config.nav or [])
    return config


def _fill(entries: list[Any]) -> None:
    for entry in entries:
        for title, below in entry.items() if isinstance(entry, dict) else ():
            if title == "Commands":
                folder = reference_commands.FOLDER
                below[:] = [f"{folder}/index.md"]
                below += [
                    {f"ladder {n}": f"{folder}/{n}.md"} for n in reference_commands.top_commands()
                ]
            elif isinstance(below, list):
                _fill(below)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let the search find user pages before notes of the laboratory."""
    if page.file.src_uri.startswith("laboratory/"):
        page.meta["search"] = {"boost": 0.3}
    return markdown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of ``docs/``."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    return files

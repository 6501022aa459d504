"""A real Chromium, driven by playwright. Without one tests are skipped, in CI they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 120_000
"""Limit for what a slow machine does."""
MUST_RUN = "LADDER_BROWSER_TESTS"
"""Variable that makes a missing browser an error (CI)."""
FLAGS = [
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def find_browser() -> str | None:
    """Path of an installed Chromium."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test with a reason; where the tests must run, fail."""
    if os.environ.get(MUST_RUN):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser until the block ends."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        skip_or_fail(f"{error.name} is not installed: make browser")
    executable = find_browser()
    if executable is None:
        skip_or_fail("Chromium is not installed: make browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()

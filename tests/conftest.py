"""Fixtures shared by the suite: the goldens, and a cache folder of the tests' own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from helpers.goldens import GOLDEN_2_5, Goldens

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, by any test


@pytest.fixture(scope="session")
def golden() -> Goldens:
    """Access to the goldens."""
    return Goldens()


@pytest.fixture(scope="session")
def golden_2_5() -> Goldens:
    """Access to the goldens of LTX-2.5."""
    return Goldens(GOLDEN_2_5)


def pytest_configure() -> None:
    """Take Ctrl-C as a terminal would give it: a background shell starts its jobs without it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Store caches next to the tests' other files, not in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADDER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

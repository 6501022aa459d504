"""The process that plans: its errors come back whole, and it is replaced when it dies."""

from __future__ import annotations

import asyncio
import os
from typing import NoReturn

import pytest

from latent_ladder.errors import LadderError, RequestError
from latent_ladder.server.ladder_api.planner import Planner

pytestmark = pytest.mark.slow


def refuse() -> NoReturn:
    """Raise an error with several problems."""
    raise RequestError("two problems", "a hint", (("a=1 is wrong", "use 2"), ("b is", None)))


def die() -> NoReturn:
    """End the process at once."""
    os._exit(9)


def test_an_error_keeps_its_problems_and_a_dead_process_is_replaced() -> None:
    async def use() -> None:
        planner = Planner()
        try:
            with pytest.raises(RequestError) as found:
                await planner.call(refuse)
            assert found.value.hint == "a hint"
            assert found.value.problems[0] == ("a=1 is wrong", "use 2")
            first = await planner.call(os.getpid)
            with pytest.raises(LadderError, match="ended twice"):
                await planner.call(die)
            assert await planner.call(os.getpid) not in (first, os.getpid())
        finally:
            planner.close()

    asyncio.run(asyncio.wait_for(use(), 120))

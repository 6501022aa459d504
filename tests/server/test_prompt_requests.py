"""Any body of ``POST /prompt`` becomes a job or an error, and both are JSON."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from helpers.comfyui_server import clip_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_ladder.checkpoints.search_paths import EMBEDDED, ModelFolder
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.server.file_listing import FileListing
from latent_ladder.server.prompt_requests import PromptError, read_prompt

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e300, 2**70, "", "x", "../a", [], ["1", 0], ["1", -1], ["1", 99], ["9", 0],
    [1, 0], ["1", "0"], {}, {"__value__": [1]}, [[]], ["1", True], "a\0b", "\ud800", ["6", 0],
)  # fmt: skip
FIELDS = ("client_id", "prompt_id", "number", "extra_data", "partial_execution_targets")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_changed_prompt_is_a_job_or_an_error(data: st.DataObject) -> None:
    body: dict[str, Any] = {"prompt": clip_graph()}
    odd_value = st.sampled_from(ODD_VALUES).map(copy.deepcopy)
    for _ in range(data.draw(st.integers(1, 3))):
        node = body["prompt"][data.draw(st.sampled_from(sorted(clip_graph())))]
        target = data.draw(st.sampled_from(["class_type", "inputs", "input", "body"]))
        if target == "body":
            body[data.draw(st.sampled_from(FIELDS))] = data.draw(odd_value)
        elif target == "input" and isinstance(node["inputs"], dict) and node["inputs"]:
            node["inputs"][data.draw(st.sampled_from(sorted(node["inputs"])))] = data.draw(
                odd_value
            )
        elif target != "input":
            node[target] = data.draw(odd_value | st.sampled_from(sorted(NODE_TYPES)))
    try:
        request = read_prompt(body, FileListing((ModelFolder(EMBEDDED),), Path("nowhere")))
    except PromptError as error:
        assert error.body["error"]["type"]
        json.dumps(error.body)
    else:
        assert request.outputs == ("9",)
        json.dumps(request.to_job(lambda: 1).item())

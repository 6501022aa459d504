"""Prompts from text, CSV and JSON Lines files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from latent_ladder.errors import RequestError
from latent_ladder.request.prompt_files import PromptRow, read_prompt_rows


def rows(tmp_path: Path, name: str, text: str) -> tuple[PromptRow, ...]:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return read_prompt_rows(path)


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    found = rows(tmp_path, "p.txt", "\ufeffa ball\n\n# no\n  a box, blue \n")
    assert found == (PromptRow(1, "a ball"), PromptRow(4, "a box, blue"))
    assert all(row.is_plain for row in found)


def test_a_table_gives_fields_to_rows(tmp_path: Path) -> None:
    text = 'prompt, seed, image, refine.denoise\n"a ball, red", 7, in.png:last, 0.4\na box,,,\n'
    ball, box = rows(tmp_path, "p.csv", text)
    assert ball.prompt == "a ball, red"
    assert ball.fields == {"seed": "7"}
    assert ball.images == (f"{tmp_path / 'in.png'}:last",)
    assert ball.sets == ("refine.denoise=0.4",)
    assert box.is_plain


def test_json_lines(tmp_path: Path) -> None:
    table = {"prompt": "a ball", "seed": 2**64 - 1, "image": ["a.png", "/b.png"], "base.steps": 3}
    (row,) = rows(tmp_path, "p.jsonl", json.dumps(table) + "\n\n")
    assert row.fields == {"seed": str(2**64 - 1)}
    assert row.images == (str(tmp_path / "a.png"), "/b.png")
    assert row.sets == ("base.steps=3",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "# only\n", "holds no prompt"),
        ("p.csv", "prompt,sed\na,3\n", "did you mean seed?"),
        ("p.csv", "seed\n3\n", "row 1 has no prompt"),
        ("p.csv", "prompt,seed\na,1,2\n", "more cells"),
        ("p.jsonl", "[1]\n", "not a JSON object"),
        ("p.jsonl", '{"prompt": "a"\n', "line 1 is not JSON"),
        ("p.jsonl", "[" * 5000 + "\n", "not JSON"),
    ],
)
def test_wrong_files_are_errors(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        rows(tmp_path, name, text)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_devices_pipes_large_and_binary_files_are_refused(tmp_path: Path) -> None:
    pipe, large, binary = tmp_path / "pipe", tmp_path / "large", tmp_path / "binary"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(9_000_000)
    binary.write_bytes(b"ELF\0\0")
    cases = {
        Path("/dev/zero"): "a device",
        pipe: "a pipe",
        tmp_path: "a folder",
        large: "too large",
        binary: "binary",
        tmp_path / "none": "does not exist",
    }
    for path, said in cases.items():
        with pytest.raises(RequestError, match=said):
            read_prompt_rows(path)

"""Tables within a width: names in one piece, columns below their row, words wrapped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latent_ladder.cli.table_layout import Table, cell_width, wrap

LINK = "https://huggingface.co/Lightricks/LTX-2.3/tree/main/a/very/long/path/to/the/file"


def test_a_table_that_fits_has_one_line_per_row() -> None:
    lines = Table(("a", "file"), [("1", "x.mp4"), ("22", "y.mp4")], whole=("file",)).lines(80)
    assert lines == ["a   file", "─────────", "1   x.mp4", "22  y.mp4"]


def test_names_move_below_their_row_and_stay_in_one_piece() -> None:
    table = Table(("file", "size", "page"), [("a.safetensors", "1 GB", LINK)], whole=("page",))
    assert f"    {LINK}" in table.lines(60)
    assert table.lines(None)[-1] == f"a.safetensors  1 GB  {LINK}"


def test_other_columns_move_below_with_their_names() -> None:
    words = " ".join(["sigma"] * 20)
    lines = Table(("stage", "sigmas"), [("base", words)], below=("sigmas",)).lines(40)
    assert lines[0] == "stage"
    assert lines[3].startswith("    sigmas sigma")
    assert max(map(len, lines)) <= 40


@given(
    st.lists(st.lists(st.text(alphabet="ab 中", max_size=60), min_size=3, max_size=3), max_size=4),
    st.integers(40, 120),
)
def test_no_line_is_wider_than_the_terminal_unless_it_is_a_name(
    rows: list[list[str]], width: int
) -> None:
    rows = [[name.replace(" ", "x"), *others] for name, *others in rows]
    lines = Table(("name", "b", "c"), rows, whole=("name",), below=("c", "b")).lines(width)
    names = {row[0] for row in rows}
    for line in lines:
        longest = max((cell_width(word) for word in line.split()), default=0)
        assert cell_width(line) <= max(width, longest + 4) or line.strip() in names


def test_text_is_broken_at_spaces_only() -> None:
    assert wrap("a-b " + "c" * 30, 20) == ["a-b", "c" * 30]

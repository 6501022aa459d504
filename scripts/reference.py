"""Reference pages of the documents, written from the code: commands, request, presets, APIs.

    python scripts/reference.py FOLDER      # write the pages into a folder, to look at them

The site's build calls :func:`pages` (``scripts/docs_hooks.py``), so the pages are never stored and
never out of date. Whatever a page says about a flag, a field or a preset stands in the source.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

import reference_api  # noqa: E402
import reference_commands  # noqa: E402
import reference_request  # noqa: E402
import reference_studio  # noqa: E402


def pages() -> dict[str, str]:
    """Every generated page: path below ``docs/`` -> Markdown."""
    return {
        **reference_commands.pages(),
        "reference/request.md": reference_request.page(),
        "reference/presets.md": reference_request.presets_page(),
        "reference/python.md": reference_api.page(),
        "reference/studio-api.md": reference_studio.page(),
        "reference/exit-codes.md": reference_api.exit_codes_page(),
    }


def main() -> None:
    """Write all pages below the folder that the command line names."""
    folder = Path(sys.argv[1])
    for name, text in pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()

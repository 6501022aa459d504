"""Names of the files in the folder of a session of drafts."""

SHEET, PAGE, GRID, LIVE = "sheet.png", "sheet.html", "drafts.mp4", "live.png"
"""The sheet of all drafts as a picture and as a page with playing clips, the video of all, the live
preview."""


def clip_name(number: int) -> str:
    """The file of one draft's own clip, if it was asked for."""
    return f"draft-{number}.mp4"

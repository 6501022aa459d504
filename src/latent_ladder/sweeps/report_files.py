"""Names of the files in the folder of a sweep."""

JSON, CSV, PAGE = "sweep.json", "sweep.csv", "report.html"
POINTS = "points"
"""Folder of the results of the points."""

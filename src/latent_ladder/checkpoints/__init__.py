"""Model files: containers, key names, quantised formats, search, selection, download."""

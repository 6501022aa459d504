"""Model files: containers, layouts, quantised formats, the library."""

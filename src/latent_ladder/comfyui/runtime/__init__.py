"""Model access, values, events and output paths of graphs that run."""

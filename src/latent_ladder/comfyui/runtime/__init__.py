"""Runtime of a graph: model access, link values, events, previews and output paths."""

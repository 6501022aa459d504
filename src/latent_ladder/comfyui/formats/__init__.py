"""ComfyUI's two JSON formats, read into one graph."""

"""Import of ComfyUI graphs as requests."""

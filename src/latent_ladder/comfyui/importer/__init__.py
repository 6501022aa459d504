"""ComfyUI graphs read backwards into requests."""

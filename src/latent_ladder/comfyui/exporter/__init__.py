"""Export of requests as ComfyUI graphs."""

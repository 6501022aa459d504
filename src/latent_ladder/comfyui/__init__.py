"""ComfyUI workflows without ComfyUI: read, check, run, import and export them."""

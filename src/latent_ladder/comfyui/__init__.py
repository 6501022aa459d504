"""ComfyUI workflows: read, checked, run, explained and written without ComfyUI."""

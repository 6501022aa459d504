"""Checks on a ComfyUI graph before it runs: links, shapes, required files, known pitfalls."""

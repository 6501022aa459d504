"""Requests written as ComfyUI graphs."""

"""Readers of ComfyUI's two JSON formats; both produce the same graph."""

"""Test support: tiny model files, servers and ComfyUI graphs."""

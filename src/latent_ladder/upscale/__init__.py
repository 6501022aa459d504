"""Upscaling of decoded frames (stage 3): Lanczos, networks of upscale_models/, NVIDIA RTX."""

"""Upscaling decoded frames: Lanczos, networks from upscale_models/, NVIDIA's; stage 3."""

"""Geometry of pixels, latents, tokens and tiles."""

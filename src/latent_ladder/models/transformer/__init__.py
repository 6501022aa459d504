"""The diffusion transformer and the models that samplers call."""

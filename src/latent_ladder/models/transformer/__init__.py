"""LTX-2 transformer, and the denoisers that samplers call."""

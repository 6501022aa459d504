"""Adapters (LoRA and related kinds): reading, building and attaching."""

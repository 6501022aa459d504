"""LoRA adapters: reading, building and attaching."""

"""Networks that upsample video latents in space or time."""

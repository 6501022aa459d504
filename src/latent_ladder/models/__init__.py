"""Neural networks: transformer, VAEs, text encoder, latent upsamplers, LoRA, weight storage."""

"""Audio VAE (log-mel spectrograms and latents) and vocoder."""

"""Audio VAE and vocoder."""

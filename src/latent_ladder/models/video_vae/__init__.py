"""Video VAE: encoder, decoders and tiled decoding."""
